//! One connection's device: what QEMU has set up so far. Queues run while everything they need is there.

use super::features::{EVENT_INDEX, SERIAL_BYTES, configuration, offered, offered_by_protocol};
use super::in_flight::Region;
use super::memory::Memory;
use super::vring::{Running, Setup};
use crate::nbd::Export;
use crate::writers::{Client, Writer};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use types::limits::{VIRTIO_MEMORY_SLOTS_MAX, VIRTIO_QUEUE_SIZE_MAX, VIRTIO_QUEUES_MAX};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryBackend;

pub(super) struct Device {
    export: Export,
    label: String,
    /// Kept over a reset of the device: the guest behind it is the same.
    writer: Option<Arc<Writer>>,
    features: u64,
    memory: Memory,
    queues: Vec<QueueState>,
    in_flight: Option<Arc<Region>>,
}

/// A queue as it was set up, and its thread while it runs.
#[derive(Default)]
struct QueueState {
    /// None while a thread has it.
    queue: Option<Queue>,
    size: u16,
    has_addresses: bool,
    next_avail: u16,
    kick: Option<File>,
    call: Arc<Mutex<Option<File>>>,
    enabled: bool,
    running: Option<Running>,
}

fn refused(why: impl Into<String>) -> Error {
    Error::ReqHandlerError(io::Error::new(io::ErrorKind::InvalidInput, why.into()))
}

impl Device {
    pub(super) fn new(export: Export, label: String, client: Client) -> Self {
        let writer = Writer::connect(export.device.writers(), client);
        let queues = (0..VIRTIO_QUEUES_MAX).map(|_| QueueState::default()).collect();
        Self { export, label, writer, features: 0, memory: Memory::default(), queues, in_flight: None }
    }

    fn queue(&mut self, index: u32) -> Result<&mut QueueState> {
        self.queues.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    /// Starts every queue that has all it needs and does not run.
    fn start_ready(&mut self) -> Result<()> {
        for index in 0..self.queues.len() {
            self.start(index)?;
        }
        Ok(())
    }

    fn start(&mut self, index: usize) -> Result<()> {
        // Without the protocol's features there is no enabling: queues run from the kick on.
        let always = self.features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0;
        let state = &mut self.queues[index];
        let is_ready = state.running.is_none() && state.has_addresses && (state.enabled || always);
        let Some(kick) = state.kick.as_ref().filter(|_| is_ready) else { return Ok(()) };
        let kick = kick.try_clone().map_err(Error::ReqHandlerError)?;
        rustix::io::ioctl_fionbio(&kick, true).map_err(|errno| Error::ReqHandlerError(errno.into()))?;
        let in_flight = self.in_flight.as_ref().map(|region| {
            region.queue(index as u16, state.size).ok_or_else(|| refused("the in-flight region is too small"))
        });
        let in_flight = in_flight.transpose()?;
        // From here on it is put back on every way out.
        let Some(mut queue) = state.queue.take() else { return Ok(()) };
        queue.set_event_idx(self.features & EVENT_INDEX != 0);
        queue.set_ready(true);
        if !queue.is_valid(&self.memory.guest) {
            state.queue = Some(queue);
            return Err(refused(format!("queue {index} does not lie in the guest's memory")));
        }
        let setup = Setup {
            queue,
            memory: self.memory.clone(),
            device: self.export.device.clone(),
            writer: self.writer.clone(),
            serial: serial(&self.export.name),
            kick,
            call: state.call.clone(),
            in_flight,
            label: self.label.clone(),
        };
        match Running::start(setup) {
            Ok(running) => state.running = Some(running),
            Err((queue, error)) => {
                state.queue = Some(queue);
                return Err(Error::ReqHandlerError(error));
            }
        }
        // What lies in the queue already is not kicked for any more.
        if let Some(kick) = &state.kick {
            let _ = rustix::io::write(kick, &1u64.to_ne_bytes());
        }
        Ok(())
    }

    fn stop(&mut self, index: usize) {
        let state = &mut self.queues[index];
        if let Some(running) = state.running.take() {
            let queue = running.stop();
            state.next_avail = queue.next_avail();
            state.queue = Some(queue);
        }
    }

    /// Finishes everything that was taken, and takes no more.
    pub(super) fn stop_all(&mut self) {
        self.queues.iter().filter_map(|state| state.running.as_ref()).for_each(Running::begin_stop);
        (0..self.queues.len()).for_each(|index| self.stop(index));
    }

    fn set_memory(&mut self, memory: io::Result<Memory>) -> Result<()> {
        let memory = memory.map_err(Error::ReqHandlerError)?;
        // Nothing in flight refers to the old memory behind this.
        self.stop_all();
        self.memory = memory;
        self.start_ready()
    }
}

/// A serial number by which a guest finds the disk: its name, cut to size.
fn serial(name: &str) -> [u8; SERIAL_BYTES] {
    let mut serial = [0; SERIAL_BYTES];
    let len = name.len().min(SERIAL_BYTES);
    serial[..len].copy_from_slice(&name.as_bytes()[..len]);
    serial
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.stop_all();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.stop_all();
        self.queues.iter_mut().for_each(|queue| *queue = QueueState::default());
        self.features = 0;
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(offered(&*self.export.device))
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !offered(&*self.export.device) != 0 {
            return Err(Error::InvalidParam);
        }
        self.features = features;
        self.start_ready()
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        self.set_memory(Memory::map(regions, files)).map(|()| None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let size =
            u16::try_from(num).ok().filter(|size| *size <= VIRTIO_QUEUE_SIZE_MAX && size.is_power_of_two());
        let size = size.ok_or_else(|| refused(format!("a queue of {num} descriptors")))?;
        self.queue(index)?;
        self.stop(index as usize);
        let state = self.queue(index)?;
        let mut queue = Queue::new(VIRTIO_QUEUE_SIZE_MAX).expect("a power of two");
        queue.set_size(size);
        queue.set_next_avail(state.next_avail);
        state.queue = Some(queue);
        state.size = size;
        state.has_addresses = false;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        self.queue(index)?;
        self.stop(index as usize);
        let find = |address| {
            self.memory.guest_address(address).ok_or_else(|| refused("a queue outside of the guest's memory"))
        };
        let (table, used, available) = (find(descriptor)?, find(used)?, find(available)?);
        let guest = self.memory.guest.clone();
        let state = self.queue(index)?;
        let next_avail = state.next_avail;
        let queue = state.queue.as_mut().ok_or_else(|| refused("addresses of a queue without a size"))?;
        queue.try_set_desc_table_address(table).map_err(|error| refused(error.to_string()))?;
        queue.try_set_avail_ring_address(available).map_err(|error| refused(error.to_string()))?;
        queue.try_set_used_ring_address(used).map_err(|error| refused(error.to_string()))?;
        queue.set_next_avail(next_avail);
        let used = queue.used_idx(&guest, std::sync::atomic::Ordering::Acquire);
        queue.set_next_used(used.map_err(|error| refused(error.to_string()))?.0);
        state.has_addresses = true;
        self.start(index as usize)
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| refused("a queue's base of over 16 bits"))?;
        self.queue(index)?;
        self.stop(index as usize);
        let state = self.queue(index)?;
        state.next_avail = base;
        if let Some(queue) = &mut state.queue {
            queue.set_next_avail(base);
        }
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.queue(index)?;
        self.stop(index as usize);
        let state = self.queue(index)?;
        // The queue is at rest until it is kicked anew.
        state.kick = None;
        Ok(VhostUserVringState::new(index, state.next_avail.into()))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.queue(index.into())?;
        self.stop(index.into());
        self.queue(index.into())?.kick = fd;
        self.start(index.into())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let state = self.queue(index.into())?;
        // It may have been finished with before anybody could be told.
        if let Some(fd) = &fd {
            let _ = rustix::io::ioctl_fionbio(fd.as_fd(), true);
            let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
        }
        *state.call.lock().expect("a panic aborts the process") = fd;
        Ok(())
    }

    fn set_vring_err(&mut self, _index: u8, _fd: Option<File>) -> Result<()> {
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(offered_by_protocol())
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        if features & !offered_by_protocol().bits() != 0 {
            return Err(Error::InvalidParam);
        }
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(VIRTIO_QUEUES_MAX as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.queue(index)?.enabled = enable;
        if enable {
            self.start(index as usize)
        } else {
            self.stop(index as usize);
            Ok(())
        }
    }

    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let mut bytes = configuration(&*self.export.device, VIRTIO_QUEUES_MAX as u16);
        let end = offset.checked_add(size).filter(|end| *end <= 4096).ok_or(Error::InvalidParam)? as usize;
        // What lies behind belongs to features that are not offered.
        bytes.resize(bytes.len().max(end), 0);
        Ok(bytes[offset as usize..end].to_vec())
    }

    fn set_config(&mut self, _offset: u32, _buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        Err(refused("nothing of this device's configuration can be set"))
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        Err(refused("no GPU"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(refused("no shared objects"))
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queues, size) = (wanted.num_queues, wanted.queue_size);
        if queues == 0 || usize::from(queues) > VIRTIO_QUEUES_MAX || size == 0 || size > VIRTIO_QUEUE_SIZE_MAX
        {
            return Err(refused("an in-flight region of an impossible size"));
        }
        let bytes = Region::bytes(queues, size);
        let file = rustix::fs::memfd_create("holdfast-in-flight", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(|errno| Error::ReqHandlerError(errno.into()))?;
        let file = File::from(file);
        file.set_len(bytes).map_err(Error::ReqHandlerError)?;
        Ok((VhostUserInflight::new(bytes, 0, queues, size), file))
    }

    fn set_inflight_fd(&mut self, given: &VhostUserInflight, file: File) -> Result<()> {
        let region = Region::map(&file, given.mmap_offset, given.num_queues, given.queue_size);
        self.stop_all();
        self.in_flight = Some(Arc::new(region.map_err(Error::ReqHandlerError)?));
        self.start_ready()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(VIRTIO_MEMORY_SLOTS_MAX as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<u64>> {
        if self.memory.guest.num_regions() >= VIRTIO_MEMORY_SLOTS_MAX {
            return Err(refused("too many regions of memory"));
        }
        let memory = self.memory.with(region, file);
        self.set_memory(memory).map(|()| None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let memory = self.memory.without(region);
        self.set_memory(memory)
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        Err(refused("the device has no state to transfer"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(refused("the device has no state to transfer"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(refused("no shared memory of the device's own"))
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(refused("pages are not logged: a VM on this device cannot migrate"))
    }
}
