//! A queue as a driver sees it that sleeps until it is interrupted.

#![allow(clippy::unwrap_used, reason = "a test")]

use super::*;
use crate::disks_in_tests::{Blank, held};
use crate::thread_start::refusing;
use crate::vhost_user::in_flight::Region;
use rustix::event::{PollFd, Timespec, poll};
use vhost::vhost_user::message::VhostUserMemoryRegion;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

const TABLE: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const HEADER: u64 = 0x4000;
const DATA: u64 = 0x5000;
const STATUS: u64 = 0x6000;
const SLOTS: u16 = 16;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// The driver's side of a queue.
struct Driver {
    memory: Memory,
    kick: File,
    call: File,
    asked: u16,
}

fn event() -> File {
    File::from(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap())
}

fn start() -> (Driver, Running) {
    let driver = Driver::new();
    let running = driver.serve(Arc::new(Blank::of(1 << 20)), driver.queue(), None);
    (driver, running)
}

/// The in-flight region of one queue, which outlives those who serve it.
fn region() -> Arc<Region> {
    let file = File::from(rustix::fs::memfd_create("in-flight", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.set_len(Region::bytes(1, SLOTS)).unwrap();
    Arc::new(Region::map(&file, 0, 1, SLOTS).unwrap())
}

/// Stops a queue; it must come to its end.
fn stop(running: Running) -> Queue {
    let (tell, stopped) = std::sync::mpsc::channel();
    std::thread::spawn(move || drop(tell.send(running.stop())));
    stopped.recv_timeout(Duration::from_secs(30)).expect("it does not stop")
}

impl Driver {
    fn new() -> Self {
        let file = File::from(rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(1 << 20).unwrap();
        let region =
            VhostUserMemoryRegion { guest_phys_addr: 0, memory_size: 1 << 20, user_addr: 0, mmap_offset: 0 };
        let memory = Memory::map(&[region], vec![file]).unwrap();
        Self { memory, kick: event(), call: event(), asked: 0 }
    }

    fn queue(&self) -> Queue {
        let mut queue = Queue::new(SLOTS).unwrap();
        queue.set_size(SLOTS);
        queue.try_set_desc_table_address(GuestAddress(TABLE)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(AVAIL)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_event_idx(true);
        queue.set_ready(true);
        queue
    }

    fn serve(&self, device: Arc<dyn BlockDevice>, queue: Queue, region: Option<&Arc<Region>>) -> Running {
        Running::start(self.setup(device, queue, region)).map_err(|(_, error)| error).unwrap()
    }

    fn setup(&self, device: Arc<dyn BlockDevice>, queue: Queue, region: Option<&Arc<Region>>) -> Setup {
        Setup {
            writer: None,
            queue,
            memory: self.memory.clone(),
            device,
            serial: *b"a disk in a test\0\0\0\0",
            kick: self.kick.try_clone().unwrap(),
            call: Arc::new(Mutex::new(Some(self.call.try_clone().unwrap()))),
            in_flight: region.map(|region| region.queue(0, SLOTS).unwrap()),
            label: "a test's disk".into(),
        }
    }

    fn write(&self, bytes: &[u8], at: u64) {
        self.memory.guest.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    fn descriptor(&self, index: u64, address: u64, len: u32, flags: u16) {
        let next = index as u16 + 1;
        let bytes =
            [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()];
        self.write(&bytes.concat(), TABLE + 16 * index);
    }

    /// Asks for one thing, and sleeps until it is interrupted; the status. `data` is written by the device where
    /// `fetches`.
    fn ask(&mut self, kind: u32, sector: u64, data: u32, fetches: bool) -> u8 {
        self.submit(kind, sector, data, fetches);
        self.sleep()
    }

    fn submit(&mut self, kind: u32, sector: u64, data: u32, fetches: bool) {
        self.write(&[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat(), HEADER);
        self.write(&[0xff], STATUS);
        self.descriptor(0, HEADER, 16, NEXT);
        match data {
            0 => self.descriptor(1, STATUS, 1, WRITE),
            _ => {
                self.descriptor(1, DATA, data, NEXT | if fetches { WRITE } else { 0 });
                self.descriptor(2, STATUS, 1, WRITE);
            }
        }
        // It wants to be interrupted behind this one, and not before.
        self.write(&self.asked.to_le_bytes(), AVAIL + 4 + 2 * u64::from(SLOTS));
        self.write(&0u16.to_le_bytes(), AVAIL + 4 + 2 * u64::from(self.asked % SLOTS));
        self.asked += 1;
        self.write(&self.asked.to_le_bytes(), AVAIL + 2);
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
    }

    fn used(&self) -> u16 {
        self.memory.guest.read_obj(GuestAddress(USED + 2)).unwrap()
    }

    fn status(&self) -> u8 {
        self.memory.guest.read_obj(GuestAddress(STATUS)).unwrap()
    }

    fn sleep(&self) -> u8 {
        let patience = Timespec { tv_sec: 10, tv_nsec: 0 };
        let mut interrupt = [PollFd::new(&self.call, PollFlags::IN)];
        assert_eq!(poll(&mut interrupt, Some(&patience)).unwrap(), 1, "never interrupted");
        rustix::io::read(&self.call, &mut [0u8; 8]).unwrap();
        assert_eq!(self.used(), self.asked, "interrupted for nothing");
        self.status()
    }
}

#[test]
fn a_request_that_needs_no_disk_interrupts_as_any_other_does() {
    let (mut driver, running) = start();
    assert_eq!(driver.ask(VIRTIO_BLK_T_FLUSH, 0, 0, false), 0);
    assert_eq!(driver.ask(VIRTIO_BLK_T_GET_ID, 0, 20, true), 0);
    let mut serial = [0; 16];
    driver.memory.guest.read_slice(&mut serial, GuestAddress(DATA)).unwrap();
    assert_eq!(&serial, b"a disk in a test");
    // Too little room for a serial; no such command; outside of the disk; nothing at all; nothing to be discarded.
    assert_eq!(driver.ask(VIRTIO_BLK_T_GET_ID, 0, 19, true), Status::IoError as u8);
    assert_eq!(driver.ask(99, 0, 16, true), Status::Unsupported as u8);
    assert_eq!(driver.ask(VIRTIO_BLK_T_IN, 1 << 20, 512, true), Status::IoError as u8);
    assert_eq!(driver.ask(VIRTIO_BLK_T_OUT, 0, 0, false), 0);
    driver.write(&[0; 16], DATA);
    assert_eq!(driver.ask(VIRTIO_BLK_T_DISCARD, 0, 16, false), 0);
    assert_eq!(driver.ask(VIRTIO_BLK_T_IN, 0, 512, true), 0);
    let queue = running.stop();
    assert_eq!(queue.next_avail(), driver.asked);
}

#[test]
fn a_queue_that_is_stopped_leaves_a_held_write_to_whoever_serves_it_next() {
    let (device, capture) = held();
    let (mut driver, region) = (Driver::new(), region());
    let running = driver.serve(device.clone(), driver.queue(), Some(&region));
    driver.submit(VIRTIO_BLK_T_OUT, 0, 512, false);
    while capture.status().writes == 0 {
        std::thread::yield_now();
    }
    let queue = stop(running);
    assert_eq!((queue.next_avail(), driver.used(), driver.status()), (1, 0, 0xff), "taken, and not answered");
    let running = driver.serve(device, queue, Some(&region));
    while capture.status().writes == 1 {
        std::thread::yield_now();
    }
    capture.release(capture.status().last);
    assert_eq!(driver.sleep(), 0, "done again, and answered once the other side has it");
    assert_eq!(stop(running).next_avail(), 1);
}

#[test]
fn without_marks_a_held_write_fails_when_its_queue_is_stopped() {
    let (device, capture) = held();
    let mut driver = Driver::new();
    let running = driver.serve(device, driver.queue(), None);
    driver.submit(VIRTIO_BLK_T_OUT, 0, 512, false);
    while capture.status().writes == 0 {
        std::thread::yield_now();
    }
    stop(running);
    assert_eq!((driver.used(), driver.status()), (1, Status::IoError as u8));
}

#[test]
fn a_queue_whose_recovered_requests_are_broken_stops_before_and_after_that_is_found() {
    for finds_out in [true, false] {
        let region = region();
        let marks = region.queue(0, SLOTS).unwrap();
        marks.recover(0);
        let driver = Driver::new();
        for head in [1, 2] {
            marks.taken(head, head.into());
            // Outside of the guest's memory.
            driver.descriptor(head.into(), 1 << 40, 16, NEXT);
        }
        let running = driver.serve(Arc::new(Blank::of(1 << 20)), driver.queue(), Some(&region));
        if finds_out {
            std::thread::sleep(Duration::from_millis(100));
        }
        stop(running);
        assert_eq!(marks.recover(0).0, [1, 2], "they are not done");
    }
}

#[test]
fn a_queue_for_which_there_is_no_thread_is_given_back() {
    let mut driver = Driver::new();
    let device = Arc::new(Blank::of(1 << 20));
    refusing::set(true);
    let refused = Running::start(driver.setup(device.clone(), driver.queue(), None));
    refusing::set(false);
    let (queue, _) = refused.err().unwrap();
    let running = driver.serve(device, queue, None);
    assert_eq!(driver.ask(VIRTIO_BLK_T_FLUSH, 0, 0, false), 0);
    stop(running);
}
