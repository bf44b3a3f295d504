//! Ranges as long as disks are: what a guest's `mkfs` or `fstrim` costs.

use crate::stage::Stage;
use lab::NbdClient;
use std::fs::File;

const DISK_BYTES: u64 = 1 << 40;

/// Memory that a process holds, in bytes.
fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[test]
fn discarding_a_disk_of_a_tebibyte_costs_its_records_at_both_sides() {
    let stage = Stage::set();
    let disk = stage.path("disk.raw");
    File::create(&disk).unwrap().set_len(DISK_BYTES).unwrap();
    let socket = stage.protect("web", "web", &disk);
    let mut client = NbdClient::connect(&socket, "vda").unwrap();
    client.write(5 << 30, &[1; 4096]).unwrap();
    client.write(DISK_BYTES - 4096, &[1; 4096]).unwrap();
    // Who writes first is the disk's writer for as long as he stays.
    drop(client);
    stage.drained("web");
    let agents = [&stage.a, &stage.b].map(|site| site.agent_pid().unwrap());
    let before = agents.map(resident_bytes);
    let uri = format!("nbd+unix:///vda?socket={socket}");
    lab::discard_all(&uri).unwrap();
    let mut client = NbdClient::connect(&socket, "vda").unwrap();
    client.write(700 << 30, &[2; 4096]).unwrap();
    stage.drained("web");
    for ((pid, before), side) in agents.into_iter().zip(before).zip(["A", "B"]) {
        let more = resident_bytes(pid).saturating_sub(before);
        assert!(more < 64 << 20, "the agent at {side} holds {} MiB more", more >> 20);
    }
    let image = stage.b.ask(&["image", "open", "--vm", "web", "--at", "latest"]).unwrap();
    let mut image = NbdClient::connect(image["socket"].as_str().unwrap(), "vda").unwrap();
    for (at, byte) in [(5 << 30, 0), (DISK_BYTES - 4096, 0), (700 << 30, 2)] {
        let mut found = [9; 4096];
        image.read(at, &mut found).unwrap();
        assert_eq!(found, [byte; 4096], "at {at}");
    }
    for site in [&stage.a, &stage.b] {
        assert_eq!(site.unannounced(&[]).unwrap(), Vec::<String>::new());
    }
}
