//! Who holds a lock that was not to be had, for whoever is to end it: which process, and what it waits for where it was
//! killed and cannot end.
//!
//! Such a lock is never taken over: a thread that waits in the kernel may still finish what it was at, in the state folder too,
//! once its disk answers, and two agents would have written there.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What is known of one thread, as `/proc/PID/task/TID` tells it.
#[derive(Debug, Default)]
struct Thread {
    /// The lines of its `status`.
    status: String,
    /// Where in the kernel it waits.
    place: String,
    /// The file that its system call is about.
    file: Option<String>,
}

/// Says who has a lock file, in words for an error; as much as can be found out.
pub(crate) fn told(lock: &Path) -> String {
    let holder = std::fs::metadata(lock).ok().and_then(|facts| {
        let locks = std::fs::read_to_string("/proc/locks").ok()?;
        holder(&locks, facts.ino())
    });
    holder.map_or_else(
        || "which process that is cannot be told from here".to_owned(),
        |process| describe(process, &command(process), &threads(process)),
    )
}

/// The one process that has a file's lock, of the rows of `/proc/locks`. The number of the file system there is not always
/// what a file says itself.
fn holder(locks: &str, inode: u64) -> Option<u32> {
    let end = format!(":{inode}");
    let of_file =
        |row: &&str| row.contains("FLOCK") && row.split_whitespace().any(|word| word.ends_with(&end));
    let mut rows = locks.lines().filter(|row| !row.contains("->")).filter(of_file);
    let row = rows.next().filter(|_| rows.next().is_none())?;
    row.split_whitespace().nth(4)?.parse().ok()
}

fn command(process: u32) -> String {
    let read = std::fs::read_to_string(format!("/proc/{process}/comm"));
    read.map(|name| name.trim().to_owned()).unwrap_or_default()
}

fn threads(process: u32) -> Vec<Thread> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let read = |folder: &Path, name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
    let thread = |folder: &Path| Thread {
        status: read(folder, "status"),
        place: read(folder, "wchan"),
        file: file_of(&read(folder, "syscall"))
            .and_then(|number| std::fs::read_link(folder.join("fd").join(number.to_string())).ok())
            .map(|path| path.display().to_string()),
    };
    tasks.map(|row| thread(&row.path())).collect()
}

/// The first argument of a system call, which is a file's number where it reads, writes or syncs one.
fn file_of(system_call: &str) -> Option<u64> {
    let argument = system_call.split_whitespace().nth(1)?;
    u64::from_str_radix(argument.trim_start_matches("0x"), 16).ok()
}

impl Thread {
    fn field(&self, name: &str) -> &str {
        let rows = self.status.lines().filter_map(|row| row.split_once(':'));
        rows.filter(|(key, _)| *key == name).map(|(_, value)| value.trim()).next().unwrap_or_default()
    }

    fn waits_for_disk(&self) -> bool {
        self.field("State").starts_with('D')
    }

    /// It runs nothing of its own any more.
    fn was_killed(&self) -> bool {
        let kill = 1 << 8;
        let pending = |name| u64::from_str_radix(self.field(name), 16).unwrap_or(0) & kill != 0;
        pending("SigPnd") || pending("ShdPnd")
    }
}

fn describe(process: u32, command: &str, threads: &[Thread]) -> String {
    let who = format!("process {process} ({command})");
    let Some(waits) = threads.iter().find(|thread| thread.waits_for_disk() && thread.was_killed()) else {
        return format!("{who} has it");
    };
    let place = if waits.place.is_empty() { "an unknown place".to_owned() } else { waits.place.clone() };
    let about = waits.file.as_ref().map_or_else(String::new, |file| format!(" for {file}"));
    format!(
        "{who} has it, which was killed and cannot end: its thread {} waits in the kernel at {place}{about}, for a disk that does \
         not answer. See to that disk, or restart the host; the lock is not taken from it, since it may finish what it was at",
        waits.field("Pid")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_was_killed_and_waits_for_a_disk_is_told_with_what_it_waits_for() {
        let thread = |state: &str, pending: &str, file: Option<&str>| Thread {
            status: format!(
                "Name:\tagent\nPid:\t77\nState:\t{state}\nSigPnd:\t{pending}\nShdPnd:\t0000000000000000\n"
            ),
            place: "folio_wait_bit".into(),
            file: file.map(str::to_owned),
        };
        let (none, kill) = ("0000000000000000", "0000000000000100");
        let dead = thread("Z (zombie)", none, None);
        let hangs = thread("D (disk sleep)", kill, Some("/slow/segment-00000001"));
        let told = describe(70, "holdfast", &[dead, hangs]);
        for word in ["process 70 (holdfast)", "thread 77", "folio_wait_bit", "/slow/segment-00000001"] {
            assert!(told.contains(word), "{told}");
        }
        let lives = thread("D (disk sleep)", none, None);
        assert_eq!(describe(70, "holdfast", &[lives]), "process 70 (holdfast) has it");
    }

    #[test]
    fn the_holder_is_the_one_whose_lock_is_of_the_file() {
        let rows = "1: POSIX  ADVISORY  WRITE 11 08:01:99 0 EOF\n2: FLOCK  ADVISORY  WRITE 12 08:01:99 0 EOF\n\
                    2: -> FLOCK  ADVISORY  WRITE 13 08:01:99 0 EOF\n3: FLOCK  ADVISORY  WRITE 14 08:01:199 0 EOF\n";
        assert_eq!(holder(rows, 99), Some(12));
        assert_eq!(holder(rows, 1), None);
        assert_eq!(holder("garbage 99\n:99 FLOCK\n", 99), None);
        assert_eq!(file_of("1 0x1b 0x0 0x7 0x0 0x0 0x0 0x7ffe 0x7f\n"), Some(27));
        assert_eq!(file_of("running"), None);
    }
}
