//! QEMU's own record of the order of a guest's writes against the journal's.
//!
//! The `blklogwrites` driver stands above our NBD disk and logs every write with its data, in the order
//! QEMU sees them completed. The guest has one request under way at a time: of two that are under way
//! together either may be seen first, and both orders are right. The log's format is that of
//! dm-log-writes:
//! <https://docs.kernel.org/admin-guide/device-mapper/log-writes.html>

use crate::stage::Stage;
use lab::{Guest, GuestDisk, GuestFiles, GuestOptions, Work, make_disk, wait_until};
use serde_json::Value;
use std::time::Duration;

const SECTOR: usize = 512;
const LOG_MAGIC: u64 = 0x006a_7366_7773_6872;
const FLAG_DISCARD: u64 = 4;

/// A write as QEMU has logged it; a discard has no data.
struct Logged {
    start: u64,
    len: u64,
    data: Option<Vec<u8>>,
}

fn read_log(bytes: &[u8]) -> Vec<Logged> {
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!(number(0), LOG_MAGIC);
    let count = number(16);
    let mut at = SECTOR;
    let mut log = Vec::new();
    for _ in 0..count {
        let (start, len, flags) = (number(at) * 512, number(at + 8) * 512, number(at + 16));
        at += SECTOR;
        if flags & FLAG_DISCARD != 0 {
            log.push(Logged { start, len, data: None });
        } else if len > 0 {
            log.push(Logged { start, len, data: Some(bytes[at..at + len as usize].to_vec()) });
            at += len as usize;
        }
    }
    log
}

#[test]
fn the_journal_has_the_order_that_qemu_saw() {
    let files = GuestFiles::find().unwrap();
    let mut stage = Stage::set();
    let disk = stage.path("disk.raw");
    make_disk(&disk, 96 << 20).unwrap();
    let socket = stage.protect("web", "web", &disk);
    let log = stage.path("writes.log");
    std::fs::File::create(&log).unwrap().set_len(1 << 30).unwrap();
    let mut guest = Guest::start(&GuestOptions {
        files: &files,
        work: Work::Burst,
        disk: GuestDisk::Blockdevs(vec![
            Guest::on_socket(&socket, "vda").replace("node-name=disk", "node-name=nbd"),
            format!("driver=file,node-name=log,filename={}", log.display()),
            "driver=blklogwrites,node-name=disk,file=nbd,log=log,log-sector-size=512,discard=unmap".into(),
        ]),
        more: &[],
        folder: stage.folder.path().to_path_buf(),
        name: "guest",
    })
    .unwrap();
    guest.console.wait_for("DONE", Duration::from_secs(180)).unwrap();
    wait_until("the guest's end", Duration::from_secs(60), || Ok((!guest.is_running()?).then_some(())))
        .unwrap();
    stage.drained("web");
    let id = stage.b.recovered("web").unwrap()["id"].as_str().unwrap().to_owned();
    stage.b.stop_agent().unwrap();

    let folder = stage.b.folder.join("state/journals").join(id);
    let folder = folder.display().to_string();
    let verified = stage.b.ask(&["journal", "verify", &folder]).unwrap();
    assert_eq!(verified["damage"].as_array().unwrap().len(), 0);
    let inspected = stage.b.ask(&["journal", "inspect", "--records", &folder]).unwrap();
    let records = inspected["records"].as_array().unwrap();
    let guest_writes = records
        .iter()
        .filter(|record| matches!(record["kind"].as_str().unwrap(), "write" | "zero" | "discard"));
    compare(&read_log(&std::fs::read(&log).unwrap()), guest_writes.collect());
}

/// Every logged write must be found in the journal, at its turn, whole and with the same bytes. The
/// journal may hold one in several records: it cuts at 1 MiB and where 64 KiB of zeroes begin and end.
fn compare(log: &[Logged], records: Vec<&Value>) {
    assert!(log.len() > 100, "a burst of {} writes proves little", log.len());
    let mut records = records.into_iter();
    for (turn, write) in log.iter().enumerate() {
        let mut at = write.start;
        while at < write.start + write.len {
            let record = records.next().unwrap_or_else(|| panic!("the journal ends before write {turn}"));
            let (start, len) = (record["start"].as_u64().unwrap(), record["bytes"].as_u64().unwrap());
            assert_eq!(start, at, "write {turn} of {} bytes at {}", write.len, write.start);
            let from = (at - write.start) as usize;
            match (&write.data, record["kind"].as_str().unwrap()) {
                (None, "discard" | "zero") => {}
                (Some(data), "write") => {
                    let crc = crc32c::crc32c(&data[from..from + len as usize]);
                    assert_eq!(u64::from(crc), record["crc32c"].as_u64().unwrap(), "bytes of write {turn}");
                }
                (Some(data), "zero" | "discard") => {
                    assert!(
                        data[from..from + len as usize].iter().all(|&byte| byte == 0),
                        "zeroes of write {turn}"
                    );
                }
                (_, kind) => panic!("write {turn} is a {kind} in the journal"),
            }
            at += len;
        }
        assert_eq!(at, write.start + write.len, "write {turn} is as long in the journal");
    }
    assert!(records.next().is_none(), "the journal has more writes than QEMU made");
}
