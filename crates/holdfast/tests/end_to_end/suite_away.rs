//! The table in `docs/operate/the-agent-dies.md`: what guests see while the agent is away for a tenth of a second,
//! for five, for sixty, and for good, on each front end.

use crate::stage::{SOON, Stage};
use lab::{Guest, GuestDisk, GuestFiles, GuestOptions, Ticks, Work, make_disk, wait_until};
use std::time::Duration;

/// A guest, and what its QEMU was told to do while the agent is away.
struct Row {
    guest: Guest,
    waits: Waits,
    name: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Waits {
    /// As long as it takes.
    Always,
    /// So long; then its requests fail.
    AtMost(Duration),
    /// It has its disk elsewhere.
    NotAtAll,
}

fn ticks(guest: &mut Guest) -> u64 {
    Ticks::reported(&mut guest.console).unwrap().last().map_or(0, |tick| tick.number)
}

fn start(stage: &Stage, files: &GuestFiles, name: &'static str, waits: Waits) -> Row {
    let image = stage.path(&format!("{name}.raw"));
    make_disk(&image, 64 << 20).unwrap();
    let control = stage.path(&format!("{name}.qmp"));
    let mut more = Vec::new();
    let disk = match name {
        "tapped" => {
            more.extend(["-qmp".to_owned(), format!("unix:{},server=on,wait=off", control.display())]);
            GuestDisk::image(&image, "raw")
        }
        _ => {
            let socket = stage.protect(name, name, &image);
            let vm = stage.a.protected(name).unwrap();
            let vhost = vm["disks"][0]["vhost_user_socket"].as_str().unwrap().to_owned();
            let delay = match waits {
                Waits::AtMost(limit) => format!("reconnect-delay={}", limit.as_secs()),
                _ => "reconnect-delay=300".to_owned(),
            };
            let on_nbd = Guest::on_socket(&socket, "vda").replace("reconnect-delay=300", &delay);
            match name {
                "vhost-user" => GuestDisk::VhostUser { socket: vhost, queues: 1 },
                _ => GuestDisk::Blockdevs(vec![on_nbd]),
            }
        }
    };
    let folder = stage.folder.path().to_path_buf();
    let options = GuestOptions { files, work: Work::Tick, disk, folder, name, more: &more };
    let mut guest = Guest::start(&options).unwrap();
    guest.console.wait_for("READY", Duration::from_secs(120)).unwrap();
    if name == "tapped" {
        let (control, peer) = (control.display().to_string(), stage.b.peer());
        stage.a.ask(&["vm", "protect", name, "--qmp", &control, "--peer", &peer]).unwrap();
        stage.a.wait_for_state(name, "journaling", SOON).unwrap();
    }
    Row { guest, waits, name }
}

/// Whether a guest writes records in the next seconds.
fn goes_on(guest: &mut Guest) -> bool {
    let before = ticks(guest);
    wait_until("a record", Duration::from_secs(10), || Ok((ticks(guest) > before).then_some(()))).is_ok()
}

#[test]
#[ignore = "suite: away"]
fn guests_see_what_the_table_says_while_the_agent_is_away() {
    let mut stage = Stage::set();
    let files = GuestFiles::find().unwrap();
    let twenty = Waits::AtMost(Duration::from_secs(20));
    let mut rows: Vec<Row> = [
        ("nbd", Waits::Always),
        ("nbd-20", twenty),
        ("nbd-0", Waits::AtMost(Duration::ZERO)),
        ("vhost-user", Waits::Always),
        ("tapped", Waits::NotAtAll),
    ]
    .into_iter()
    .map(|(name, waits)| start(&stage, &files, name, waits))
    .collect();
    for away in [Duration::from_millis(100), Duration::from_secs(5), Duration::from_secs(60)] {
        assert!(rows.iter_mut().all(|row| goes_on(&mut row.guest)));
        stage.a.kill_agent().unwrap();
        let at_kill: Vec<u64> = rows.iter_mut().map(|row| ticks(&mut row.guest)).collect();
        std::thread::sleep(away);
        for (row, before) in rows.iter_mut().zip(at_kill) {
            let now = ticks(&mut row.guest);
            match row.waits {
                Waits::NotAtAll => {
                    assert!(away.as_secs() < 5 || now > before + 5, "{} stands still", row.name)
                }
                // One record may be done already and not yet on the console.
                _ => assert!(now <= before + 1, "{} went on without a disk", row.name),
            }
        }
        stage.a.start_agent().unwrap();
        rows.retain_mut(|row| {
            let goes_on = goes_on(&mut row.guest);
            let expected = match row.waits {
                Waits::Always | Waits::NotAtAll => true,
                // Whether it has asked for anything in that moment is chance.
                Waits::AtMost(Duration::ZERO) if away < Duration::from_secs(1) => goes_on,
                Waits::AtMost(limit) => away < limit,
            };
            assert_eq!(goes_on, expected, "{} after {away:?}", row.name);
            // One whose requests have failed has its file system read-only, and is done with.
            expected
        });
    }
    // For good: those that wait for ever stand still, the one on its own image does not notice.
    stage.a.kill_agent().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row.name).collect();
    assert_eq!(names, ["nbd", "vhost-user", "tapped"]);
    std::thread::sleep(Duration::from_secs(1));
    assert!(rows.iter_mut().all(|row| goes_on(&mut row.guest) == (row.waits == Waits::NotAtAll)));
}
