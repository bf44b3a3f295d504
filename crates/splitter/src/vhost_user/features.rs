//! What the device says of itself: features and configuration space.

use crate::device::BlockDevice;
use types::limits::{SECTOR_BYTES, VIRTIO_SEGMENTS_MAX};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

pub(super) const EVENT_INDEX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// Bytes of the serial number a guest may ask for.
pub(super) const SERIAL_BYTES: usize = 20;
/// Ranges one discard or write of zeroes may name.
pub(super) const DISCARD_SEGMENTS_MAX: u32 = 1;
/// The longest such range, in sectors: 2 GiB.
pub(super) const DISCARD_SECTORS_MAX: u32 = 1 << 22;
/// Sectors that guests do well to align discards to.
const DISCARD_ALIGNMENT: u32 = 8;
/// Physical blocks are 4096 bytes: 2 to the power of this logical ones.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;

/// The features the device offers.
pub(super) fn offered(device: &dyn BlockDevice) -> u64 {
    let mut bits = vec![
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_MQ,
    ];
    if device.is_read_only() {
        bits.push(VIRTIO_BLK_F_RO);
    } else {
        bits.extend([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
    }
    let features: u64 = bits.into_iter().map(|bit| 1 << bit).sum();
    features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
}

pub(super) fn offered_by_protocol() -> VhostUserProtocolFeatures {
    use VhostUserProtocolFeatures as Has;
    Has::CONFIG | Has::MQ | Has::REPLY_ACK | Has::CONFIGURE_MEM_SLOTS | Has::INFLIGHT_SHMFD
}

/// `struct virtio_blk_config`, section 5.2.4, as far as the features above reach: 60 bytes.
pub(super) fn configuration(device: &dyn BlockDevice, queues: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(60);
    bytes.extend((device.size_bytes() / SECTOR_BYTES).to_le_bytes()); // capacity
    bytes.extend(0u32.to_le_bytes()); // size_max: not offered
    bytes.extend(VIRTIO_SEGMENTS_MAX.to_le_bytes()); // seg_max
    bytes.extend([0; 4]); // geometry: not offered
    bytes.extend((SECTOR_BYTES as u32).to_le_bytes()); // blk_size
    bytes.extend([PHYSICAL_BLOCK_EXPONENT, 0]); // physical_block_exp, alignment_offset
    bytes.extend(1u16.to_le_bytes()); // min_io_size
    bytes.extend(0u32.to_le_bytes()); // opt_io_size: no advice
    bytes.extend([0, 0]); // writeback: not offered, unused
    bytes.extend(queues.to_le_bytes()); // num_queues
    for _ in ["discard", "write zeroes"] {
        bytes.extend(DISCARD_SECTORS_MAX.to_le_bytes());
        bytes.extend(DISCARD_SEGMENTS_MAX.to_le_bytes());
        // Of discards their alignment; of zeroes whether they may unmap, and three unused bytes.
        let is_discard = bytes.len() == 44;
        bytes.extend(if is_discard { DISCARD_ALIGNMENT } else { 1 }.to_le_bytes());
    }
    bytes
}
