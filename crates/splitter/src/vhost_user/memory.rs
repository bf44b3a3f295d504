//! The guest's memory, as QEMU shares it.

use super::shared_memory::Watched;
use std::fs::File;
use std::io;
use std::sync::Arc;
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::mmap::MmapRegion;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// One stretch of it.
#[derive(Debug, Clone)]
struct Stretch {
    /// Where QEMU has it mapped: queues are given by such addresses.
    user_address: u64,
    guest_address: u64,
    len: u64,
    watched: Arc<Watched>,
}

/// All of it, mapped. Clones share the mapping.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory {
    /// Dropped before the mapping is.
    stretches: Arc<Vec<Stretch>>,
    pub(super) guest: GuestMemoryMmap<()>,
}

impl Memory {
    /// Maps what `regions` describe.
    ///
    /// # Errors
    /// Where they overlap, or reach beyond their files.
    pub(super) fn map(regions: &[VhostUserMemoryRegion], files: Vec<File>) -> io::Result<Self> {
        let mut mapped = Vec::new();
        let mut stretches = Vec::new();
        let mut regions: Vec<_> = regions.iter().zip(files).collect();
        regions.sort_by_key(|(region, _)| region.guest_phys_addr);
        for (region, file) in regions {
            let (mapping, stretch) = map_one(region, file)?;
            mapped.push(mapping);
            stretches.push(stretch);
        }
        let guest = GuestMemoryMmap::from_regions(mapped).map_err(io::Error::other)?;
        Ok(Self { guest, stretches: stretches.into() })
    }

    /// The same memory with one region more.
    ///
    /// # Errors
    /// As [`Memory::map`].
    pub(super) fn with(&self, region: &VhostUserMemoryRegion, file: File) -> io::Result<Self> {
        let (mapping, stretch) = map_one(region, file)?;
        let guest = self.guest.insert_region(mapping.into()).map_err(io::Error::other)?;
        let mut stretches = self.stretches.to_vec();
        stretches.push(stretch);
        Ok(Self { guest, stretches: stretches.into() })
    }

    /// The same memory without a region.
    ///
    /// # Errors
    /// Where there is no such region.
    pub(super) fn without(&self, region: &VhostUserMemoryRegion) -> io::Result<Self> {
        let base = GuestAddress(region.guest_phys_addr);
        let (guest, _) = self.guest.remove_region(base, region.memory_size).map_err(io::Error::other)?;
        let mut stretches = self.stretches.to_vec();
        stretches.retain(|stretch| stretch.guest_address != region.guest_phys_addr);
        Ok(Self { guest, stretches: stretches.into() })
    }

    /// Whether the hypervisor has taken some of it away, without a word.
    pub(super) fn is_lost(&self) -> bool {
        self.stretches.iter().any(|stretch| stretch.watched.is_lost())
    }

    /// The guest's address of what QEMU has at `user_address`.
    pub(super) fn guest_address(&self, user_address: u64) -> Option<GuestAddress> {
        self.stretches.iter().find_map(|stretch| {
            let offset = user_address.checked_sub(stretch.user_address)?;
            (offset < stretch.len).then(|| GuestAddress(stretch.guest_address + offset))
        })
    }
}

fn map_one(region: &VhostUserMemoryRegion, file: File) -> io::Result<(GuestRegionMmap<()>, Stretch)> {
    let refuse = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    let (at, len) = (region.guest_phys_addr, region.memory_size);
    if at.checked_add(len).is_none() || region.user_addr.checked_add(len).is_none() {
        return Err(refuse("a region of memory that ends nowhere"));
    }
    // The file's length is checked, and overlapping stretches are refused.
    let place = FileOffset::new(file, region.mmap_offset);
    let mapping = MmapRegion::<()>::from_file(place, len as usize).map_err(io::Error::other)?;
    let watched = Watched::begin(mapping.as_ptr(), mapping.size());
    let watched = Arc::new(watched.ok_or_else(|| refuse("too many guests share their memory"))?);
    let mapping =
        GuestRegionMmap::new(mapping, GuestAddress(at)).ok_or_else(|| refuse("a region of memory"))?;
    Ok((mapping, Stretch { user_address: region.user_addr, guest_address: at, len, watched }))
}
