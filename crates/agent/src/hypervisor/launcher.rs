//! What stands between the agent and a guest's QEMU: a process that gives up all that is the agent's, and then is QEMU.
//!
//! It is this same binary, by its command `launch-guest`, with one thread, so that what it gives up is given up whole. Nothing
//! can be taken back later: there is no capability left, and no way to get one.

use super::guest_folder::{EVENTS, FILE_BYTES_MAX, MONITOR};
use anyhow::{Context, Result};
use rustix::fs::Gid;
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::process::{Resource, Rlimit, Uid, getrlimit, setrlimit};
use rustix::thread::{self, CapabilitySet, CapabilitySets};
use std::ffi::OsString;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What is kept of the agent's environment.
const KEPT_VARIABLES: [&str; 3] = ["PATH", "LANG", "TZ"];
/// Open files of a guest's process: a disk or a network card takes a handful.
const FILES_MAX: u64 = 65_536;
/// How often a control group is made anew that is removed before it is entered.
const ENTER_TRIES: u32 = 100;
/// Capabilities have numbers below this.
const CAPABILITIES_MAX: u32 = 64;

/// How a guest's process is started.
#[derive(Debug)]
pub struct Launch {
    /// Where it stands.
    pub folder: PathBuf,
    /// Whom it runs as; as whoever starts it where none is named.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Its other groups.
    pub groups: Vec<u32>,
    /// The control group that it is to be in.
    pub cgroup: Option<PathBuf>,
    /// Files that it has to be able to read and write.
    pub needs: Vec<PathBuf>,
    /// The program, and its arguments.
    pub command: Vec<OsString>,
}

impl Launch {
    /// Becomes the guest's process; comes back only where that fails.
    ///
    /// # Errors
    /// Always, with what failed.
    pub fn run(&self) -> Result<std::convert::Infallible> {
        let (program, arguments) = self.command.split_first().context("no program is named")?;
        let program = program_path(Path::new(program))?;
        self.leave_the_agents_place()?;
        std::env::set_current_dir(&self.folder).context("go to the guest's folder")?;
        close_at_exec();
        let monitors = [listen(MONITOR)?, listen(EVENTS)?];
        self.become_the_guests_user()?;
        for path in &self.needs {
            let opened = File::options().read(true).write(true).open(path);
            opened.with_context(|| format!("open {} as the user of a VM", path.display()))?;
        }
        let mut command = Command::new(&program);
        // Of whoever looks for processes it is known by its folder.
        command.arg0(self.folder.join(program.file_name().unwrap_or_default()));
        command.args(arguments).args(monitors.iter().enumerate().flat_map(monitor_arguments));
        command.env_clear();
        command.envs(KEPT_VARIABLES.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
        Err(command.exec()).with_context(|| format!("start {}; is QEMU installed?", program.display()))
    }

    /// What ends the agent, or is given to it, is nothing to the guest any more.
    fn leave_the_agents_place(&self) -> Result<()> {
        if let Some(cgroup) = &self.cgroup {
            enter(cgroup).context("go to the guest's control group")?;
        }
        match rustix::process::setsid() {
            // It leads a group of processes already.
            Ok(_) | Err(Errno::PERM) => {}
            Err(error) => return Err(error).context("begin a session"),
        }
        // The system ends the agent last where memory runs out, and lets its threads go first.
        let _ = std::fs::write("/proc/self/oom_score_adj", "0");
        rustix::process::setpriority_process(None, 0).context("give up the agent's priority")?;
        let files = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX).min(FILES_MAX);
        limit(Resource::Nofile, files).context("limit the guest's open files")?;
        // Its disks are sockets: what it writes to files is its console and what it says, in the memory of `/run`.
        limit(Resource::Fsize, FILE_BYTES_MAX).context("limit the guest's files")?;
        outlive_full_files();
        // The agent's unit may let its threads go before others'.
        limit(Resource::Nice, 0).context("forbid the guest to go before others")?;
        limit(Resource::Rtprio, 0).context("forbid the guest to go before others")?;
        // What a guest has in its memory is not written to a file because its process has crashed.
        limit(Resource::Core, 0).context("forbid core files")
    }

    fn become_the_guests_user(&self) -> Result<()> {
        let may_lower = thread::capabilities(None).context("look at the capabilities")?.effective;
        if may_lower.contains(CapabilitySet::SETPCAP) {
            drop_bounding_set()?;
        }
        if let (Some(uid), Some(gid)) = (self.uid, self.gid) {
            let groups: Vec<Gid> = self.groups.iter().map(|group| Gid::from_raw(*group)).collect();
            thread::set_thread_groups(&groups).context("set the guest's groups")?;
            let gid = Gid::from_raw(gid);
            thread::set_thread_res_gid(gid, gid, gid).context("set the guest's group")?;
            let uid = Uid::from_raw(uid);
            thread::set_thread_res_uid(uid, uid, uid).context("set the guest's user")?;
        }
        let none = CapabilitySet::empty();
        let none = CapabilitySets { effective: none, permitted: none, inheritable: none };
        thread::set_capabilities(None, none).context("give up all capabilities")?;
        thread::clear_ambient_capability_set().context("give up all capabilities")?;
        thread::set_no_new_privs(true).context("forbid new privileges")
    }
}

/// Goes to a control group. Whoever starts another guest removes those in which nothing runs, this one too before it is
/// entered: it is made until it stays.
fn enter(cgroup: &Path) -> std::io::Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        std::fs::create_dir_all(cgroup)?;
        match std::fs::write(cgroup.join("cgroup.procs"), "0") {
            Err(error) if error.kind() == ErrorKind::NotFound && tries < ENTER_TRIES => {}
            other => return other,
        }
    }
}

fn limit(what: Resource, most: u64) -> rustix::io::Result<()> {
    setrlimit(what, Rlimit { current: Some(most), maximum: Some(most) })
}

/// A write that would make a file too large fails, and ends nothing; QEMU leaves that as it finds it.
fn outlive_full_files() {
    // SAFETY: the signal is ignored, so no code of ours runs by it.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// A program by its path seen from here; one by its name alone is looked for in `PATH`.
fn program_path(program: &Path) -> Result<PathBuf> {
    if program.components().count() < 2 {
        return Ok(program.to_path_buf());
    }
    std::path::absolute(program).context("find the program")
}

/// Whatever the agent has open stays its own.
fn close_at_exec() {
    // SAFETY: it sets a flag of descriptors and closes none: all that is open here stays usable until the program is
    // another one.
    // A system before Linux 5.11 has no such call; all that the agent opens itself has the flag anyway.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

/// A socket in the guest's folder that its process inherits.
fn listen(name: &str) -> Result<UnixListener> {
    let _ = std::fs::remove_file(name);
    let listener = UnixListener::bind(name).with_context(|| format!("listen at {name}"))?;
    fcntl_setfd(&listener, FdFlags::empty()).with_context(|| format!("hand {name} down"))?;
    Ok(listener)
}

fn monitor_arguments((number, listener): (usize, &UnixListener)) -> [String; 4] {
    let fd = listener.as_raw_fd();
    [
        "-chardev".to_owned(),
        format!("socket,id=monitor-{number},fd={fd},server=on,wait=off"),
        "-mon".to_owned(),
        format!("chardev=monitor-{number},mode=control"),
    ]
}

fn drop_bounding_set() -> Result<()> {
    for number in 0..CAPABILITIES_MAX {
        match thread::remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << number)) {
            Ok(()) => {}
            // The system knows none of that number.
            Err(Errno::INVAL) => return Ok(()),
            Err(error) => return Err(error).context("give up all capabilities for good"),
        }
    }
    Ok(())
}
