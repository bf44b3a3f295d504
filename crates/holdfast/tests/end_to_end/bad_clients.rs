//! Clients that stall, flood, leave in the middle of a write, or take the guest's memory away: each is answered or
//! hung up on, and nobody else notices.

use crate::stage::{Stage, refused, same_bytes};
use blkio::{Blkio, Completion, ReqFlags};
use lab::NbdClient;
use std::io::{Read, Write};
use std::mem::MaybeUninit;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

/// A connection to an export whose handshake is done.
fn connected(socket: &str) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x03vda").unwrap();
    stream.read_exact(&mut [0; 10]).unwrap();
    stream
}

fn request(command: u16, cookie: u64, at: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(at.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// Another client of the same disk, and one of another VM, are served.
fn assert_served(sockets: &[String; 2], byte: u8) {
    for socket in sockets {
        let mut client = NbdClient::connect(socket, "vda").unwrap();
        client.set_patience(Some(Duration::from_secs(20))).unwrap();
        client.write(1 << 20, &[byte; 4096]).unwrap();
        let mut back = [0; 4096];
        client.read(1 << 20, &mut back).unwrap();
        assert_eq!(back, [byte; 4096]);
    }
}

fn memory_of(stage: &Stage) -> u64 {
    let pid = stage.a.agent_pid().unwrap();
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

#[test]
fn nbd_clients_that_stall_flood_or_leave_hold_up_nobody() {
    let stage = Stage::set();
    let disks = ["web", "db"].map(|vm| (vm, stage.disk(&format!("{vm}.raw"), 16 << 20)));
    let sockets = [0, 1].map(|at: usize| stage.protect(disks[at].0, disks[at].0, &disks[at].1));
    let before = memory_of(&stage);
    // It asks for a gigabyte of reads and takes nothing of it.
    let mut flooding = connected(&sockets[0]);
    flooding.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    for cookie in 0..64 {
        if flooding.write_all(&request(0, cookie, 0, 16 << 20)).is_err() {
            break;
        }
    }
    // These say half of something, and no more.
    let mut stalled = vec![UnixStream::connect(&sockets[0]).unwrap()];
    for half in [&request(0, 1, 0, 4096)[..11], &request(1, 1, 0, 1 << 20)] {
        let mut stream = connected(&sockets[0]);
        stream.write_all(half).unwrap();
        stalled.push(stream);
    }
    assert_served(&sockets, 5);
    let more = memory_of(&stage).saturating_sub(before);
    assert!(more < 400 << 20, "{more} bytes more for a client that takes nothing");
    drop((flooding, stalled));
    // Half of a write is none.
    let mut leaving = connected(&sockets[0]);
    leaving.write_all(&request(1, 1, 0, 1 << 20)).unwrap();
    leaving.write_all(&[9; 500_000]).unwrap();
    drop(leaving);
    // Random bytes where a request is due.
    let mut babbling = connected(&sockets[0]);
    babbling.write_all(&[0x5a; 4096]).unwrap();
    assert_eq!(babbling.read(&mut [0; 16]).unwrap_or(0), 0, "it is hung up on");
    assert_served(&sockets, 6);
    let mut first = [0; 4096];
    NbdClient::connect(&sockets[0], "vda").unwrap().read(0, &mut first).unwrap();
    assert_ne!(first, [9; 4096]);
    for (vm, disk) in &disks {
        stage.drained(vm);
        assert!(same_bytes(&stage.copy_image(vm, "latest", &format!("{vm}.image")), disk), "{vm}");
    }
}

#[test]
fn a_socket_that_is_in_use_is_told_of() {
    let stage = Stage::set();
    let disk = stage.disk("disk.raw", 16 << 20);
    let folder = stage.a.folder.join("run/vms");
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["web.sock", "web.vda.vhost"] {
        let _other = UnixListener::bind(folder.join(name)).unwrap();
        refused(stage.try_protect("web", "web", &disk, &[]), 4, "served by another process");
        std::fs::remove_file(folder.join(name)).unwrap();
    }
    stage.protect("web", "web", &disk);
}

#[test]
fn vhost_user_clients_that_babble_or_take_memory_away_hold_up_nobody() {
    let stage = Stage::set();
    let disks = ["web", "db"].map(|vm| (vm, stage.disk(&format!("{vm}.raw"), 16 << 20)));
    let sockets = [0, 1].map(|at: usize| stage.protect(disks[at].0, disks[at].0, &disks[at].1));
    let vm = stage.a.protected("web").unwrap();
    let socket = vm["disks"][0]["vhost_user_socket"].as_str().unwrap().to_owned();
    for bytes in [vec![0xff; 4096], vec![0; 4096], b"\x01\0\0\0\x01\0\0\0\xff\xff\xff\x7f".to_vec()] {
        let mut babbling = UnixStream::connect(&socket).unwrap();
        babbling.write_all(&bytes).unwrap();
        babbling.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // It may be told something before it is hung up on, or after it leaves.
        let _ = babbling.shutdown(std::net::Shutdown::Write);
        let _ = babbling.read_to_end(&mut Vec::new());
    }
    for _ in 0..100 {
        let mut client = UnixStream::connect(&socket).unwrap();
        client.write_all(b"\x01\0\0\0\x01\0\0\0\0\0\0\0").unwrap();
        client.read_exact(&mut [0; 20]).expect("the features, though somebody was here just now");
    }
    let mut device = connected_device(&socket);
    device.set_i32("num-queues", 1).unwrap();
    let mut started = device.start().unwrap();
    let region = device.alloc_mem_region(1 << 20).unwrap();
    device.map_mem_region(&region).unwrap();
    let queue = &mut started.queues[0];
    let mut completions: [MaybeUninit<Completion>; 1] = [MaybeUninit::uninit()];
    let base = region.addr as *const u8;
    queue.write(0, base, 4096, 0, ReqFlags::empty());
    assert_eq!(queue.do_io(&mut completions, 1, None, None).unwrap(), 1);
    // The file behind the memory is cut short; this process must not touch it itself any more.
    // SAFETY: the descriptor is open; what is left of the mapping is not used.
    assert_eq!(unsafe { libc::ftruncate(region.fd, 0) }, 0);
    queue.write(8192, base, 4096, 0, ReqFlags::empty());
    let mut limit = Duration::from_millis(500);
    let _ = queue.do_io(&mut completions, 1, Some(&mut limit), None);
    assert_served(&sockets, 7);
    let mut block = [0; 4096];
    NbdClient::connect(&sockets[0], "vda").unwrap().read(8192, &mut block).unwrap();
    assert_ne!(block, [0; 4096], "zeroes that were never the guest's reached the disk");
    let log = std::fs::read_to_string(stage.a.log()).unwrap();
    assert!(log.contains("memory was taken away"));
    for (vm, disk) in &disks {
        stage.drained(vm);
        assert!(same_bytes(&stage.copy_image(vm, "latest", &format!("{vm}.image")), disk), "{vm}");
    }
}

/// Nobody has to wait until the client before was hung up on.
fn connected_device(socket: &str) -> Blkio {
    let mut device = Blkio::new("virtio-blk-vhost-user").unwrap();
    device.set_str("path", socket).unwrap();
    device.connect().unwrap();
    device
}
