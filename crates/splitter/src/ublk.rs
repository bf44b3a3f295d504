//! ublk: a disk as a block device of this host's own kernel, `/dev/ublkbN`, for whatever runs here without a
//! hypervisor that could be told of a socket.
//!
//! The kernel hands requests to a queue of ours and copies their data to and from its buffers; from there on they
//! go through a [`DiskQueue`] as those of any front end do. When the process ends, in whatever way, the device
//! stays, and requests wait in the kernel until somebody serves it again under the same number; those that were
//! not answered are then asked once more (`UBLK_F_USER_RECOVERY_REISSUE`), as a guest does after a reconnection.

use crate::bounce::Bounce;
use crate::device::BlockDevice;
use crate::queue::{Action, Answer, DiskQueue, Done, Job};
use crate::writers::{Client, Writer};
use libublk::ctrl::{UblkCtrl, UblkCtrlBuilder};
use libublk::helpers::IoBuf;
use libublk::io::{BufDescList, UblkDev, UblkIOCtx, UblkQueue};
use libublk::{BufDesc, UblkError, UblkFlags, UblkIORes, sys};
use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::fs::OFlags;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use types::ByteRange;

/// Requests in flight.
const DEPTH: u16 = 64;
/// Of one request. As much memory for each of [`DEPTH`] is touched only once it is used.
const BUFFER_BYTES: u32 = 512 << 10;
const SECTOR_BYTES: u64 = 512;
/// Discarded or zeroed by one request.
const ZERO_BYTES_MAX: u64 = 1 << 30;

/// Why a disk cannot be a device of this host.
#[derive(Debug, thiserror::Error)]
pub enum UblkServeError {
    #[error(
        "this host's kernel has no ublk, or it is not loaded: try `modprobe ublk_drv` (Linux 6.0 or later)"
    )]
    NoDriver,
    #[error("ublk device {id}: {detail}")]
    Refused { id: u32, detail: String },
    #[error("cannot serve a ublk device")]
    Io(#[from] io::Error),
}

/// A disk served as a block device, until it is left or removed.
#[derive(Debug)]
pub struct UblkDevice {
    id: u32,
    stop: Arc<Stop>,
    quiet: Mutex<Receiver<()>>,
    thread: JoinHandle<()>,
}

#[derive(Debug)]
struct Stop {
    leave: AtomicBool,
    wake: OwnedFd,
}

impl UblkDevice {
    /// A number that no device has.
    pub fn free_id(taken: &[u32]) -> u32 {
        (0..).find(|id| !taken.contains(id) && !is_known(*id)).expect("there are not so many devices")
    }

    /// Serves a disk as device `id`: one that is there, left by a process that has ended, or a new one.
    ///
    /// # Errors
    /// [`UblkServeError`]: no driver, or somebody else serves the device.
    pub fn serve(device: Arc<dyn BlockDevice>, id: u32) -> Result<Self, UblkServeError> {
        if !Path::new("/dev/ublk-control").exists() {
            return Err(UblkServeError::NoDriver);
        }
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(io::Error::from)?;
        let stop = Arc::new(Stop { leave: AtomicBool::new(false), wake });
        let (is_quiet, quiet) = channel();
        let (tell, told) = channel();
        let serving = Serving { device, id, stop: stop.clone(), is_quiet };
        let run = move || serving.run(&tell);
        let thread = std::thread::Builder::new().name(format!("ublk-{id}")).spawn(run)?;
        let started = told.recv().unwrap_or_else(|_| Err("its thread has ended".to_owned()));
        started.map_err(|detail| UblkServeError::Refused { id, detail })?;
        Ok(Self { id, stop, quiet: Mutex::new(quiet), thread })
    }

    /// The block device.
    pub fn path(&self) -> PathBuf {
        format!("/dev/ublkb{}", self.id).into()
    }

    /// Whether it is mounted, or held by somebody who wants it alone.
    pub fn is_in_use(&self) -> bool {
        let options = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::EXCL.bits().cast_signed())
            .open(self.path());
        options.is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
    }

    /// Takes no more requests and waits for those that were taken. The device stays as long as the kernel runs.
    pub fn leave(&self) {
        self.stop.leave.store(true, Ordering::SeqCst);
        // A full counter wakes as well.
        let _ = rustix::io::write(&self.stop.wake, &1u64.to_ne_bytes());
        // An error means that the queue has ended, which is as good.
        let _ = self.quiet.lock().expect("a panic aborts the process").recv();
    }

    /// Ends the device, for everybody. Requests that come meanwhile are answered still.
    ///
    /// # Errors
    /// [`UblkServeError::Refused`], as the kernel says.
    pub fn remove(self) -> Result<(), UblkServeError> {
        kill(self.id)?;
        // It removes what is left of the device.
        let _ = self.thread.join();
        Ok(())
    }

    /// Ends a device that nobody serves; one that is not there is fine. Requests that wait for it fail.
    ///
    /// # Errors
    /// [`UblkServeError::Refused`], as the kernel says.
    pub fn remove_unserved(id: u32) -> Result<(), UblkServeError> {
        if !is_known(id) {
            return Ok(());
        }
        let control = kill(id)?;
        control.del_dev().map(drop).map_err(|error| refused(id, &error))
    }
}

fn kill(id: u32) -> Result<UblkCtrl, UblkServeError> {
    let control = UblkCtrl::new_simple(id.cast_signed()).map_err(|error| refused(id, &error))?;
    control.kill_dev().map_err(|error| refused(id, &error))?;
    Ok(control)
}

fn refused(id: u32, error: &UblkError) -> UblkServeError {
    UblkServeError::Refused { id, detail: error.to_string() }
}

/// Whether there is a device of that number, served or not.
fn is_known(id: u32) -> bool {
    Path::new(&format!("/sys/class/ublk-char/ublkc{id}")).exists()
}

/// What the thread of a device needs.
struct Serving {
    device: Arc<dyn BlockDevice>,
    id: u32,
    stop: Arc<Stop>,
    is_quiet: Sender<()>,
}

impl Serving {
    /// Serves the device until it is removed; says when it is there, or why not.
    fn run(self, tell: &Sender<Result<(), String>>) {
        let flags = match is_known(self.id) {
            true => UblkFlags::UBLK_DEV_F_RECOVER_DEV,
            false => UblkFlags::UBLK_DEV_F_ADD_DEV,
        };
        let control = UblkCtrlBuilder::default()
            .name("holdfast")
            .id(self.id.cast_signed())
            .nr_queues(1)
            .depth(DEPTH)
            .io_buf_bytes(BUFFER_BYTES)
            .ctrl_flags(u64::from(sys::UBLK_F_USER_RECOVERY | sys::UBLK_F_USER_RECOVERY_REISSUE))
            .dev_flags(flags)
            .build();
        // Until whoever served a device that is taken up has gone entirely.
        let control = control.and_then(|control| {
            let is_refused = flags == UblkFlags::UBLK_DEV_F_RECOVER_DEV && control.start_user_recover()? < 0;
            if is_refused { Err(UblkError::OtherError(-libc::EBUSY)) } else { Ok(control) }
        });
        // Whoever has asked waits for one answer, and does not hear a second.
        let control = match control {
            Ok(control) => control,
            Err(error) => return drop(tell.send(Err(error.to_string()))),
        };
        let (size, read_only) = (self.device.size_bytes(), self.device.is_read_only());
        let (device, stop, is_quiet) = (self.device, self.stop, self.is_quiet);
        let queue = move |number: u16, of: &UblkDev| match Queue::open(number, of, device, stop) {
            Ok(queue) => queue.serve(&is_quiet),
            Err(error) => tracing::error!(%error, "a ublk queue cannot be served"),
        };
        let parameters = |of: &mut UblkDev| {
            of.set_default_params(size);
            describe(&mut of.tgt.params, read_only);
            Ok(())
        };
        let is_there = tell.clone();
        if let Err(error) = control.run_target(parameters, queue, move |_| drop(is_there.send(Ok(())))) {
            // The device is left as it is, for whoever tries again.
            return drop(tell.send(Err(error.to_string())));
        }
        // A new one goes with its control; of one that was taken up this is what is left to do.
        let _ = control.del_dev();
    }
}

fn describe(parameters: &mut sys::ublk_params, read_only: bool) {
    parameters.types |= sys::UBLK_PARAM_TYPE_DISCARD;
    parameters.basic.attrs |= sys::UBLK_ATTR_FUA;
    if read_only {
        parameters.basic.attrs |= sys::UBLK_ATTR_READ_ONLY;
    }
    let sectors = (ZERO_BYTES_MAX / SECTOR_BYTES) as u32;
    parameters.discard.discard_granularity = 4096;
    parameters.discard.max_discard_sectors = sectors;
    parameters.discard.max_write_zeroes_sectors = sectors;
    parameters.discard.max_discard_segments = 1;
}

/// The one queue of a device, on its own thread.
struct Queue<'a> {
    kernel: UblkQueue<'a>,
    /// One for each request in flight, by its tag.
    buffers: Vec<IoBuf<u8>>,
    disk: DiskQueue,
    in_flight: usize,
    stop: Arc<Stop>,
}

impl<'a> Queue<'a> {
    fn open(
        number: u16,
        of: &'a UblkDev,
        device: Arc<dyn BlockDevice>,
        stop: Arc<Stop>,
    ) -> Result<Self, UblkError> {
        let buffers = of.alloc_queue_io_bufs();
        let writer = Writer::connect(device.writers(), Client::named("this host's own block device"));
        let disk = DiskQueue::new(device, writer).map_err(UblkError::IOError)?;
        let kernel =
            UblkQueue::new(number, of)?.submit_fetch_commands_unified(BufDescList::Slices(Some(&buffers)))?;
        Ok(Self { kernel, buffers, disk, in_flight: 0, stop })
    }

    /// Serves until the device is removed, or is left.
    fn serve(mut self, is_quiet: &Sender<()>) {
        loop {
            let leaving = self.stop.leave.load(Ordering::SeqCst);
            let mut asked = Vec::new();
            let taken = self.kernel.flush_and_wake_io_tasks(
                |data, completion, _| {
                    if completion.result() == sys::UBLK_IO_RES_OK.cast_signed() {
                        asked.push(UblkIOCtx::user_data_to_tag(data) as u16);
                    }
                },
                0,
            );
            let Ok(taken) = taken else { return };
            // What is not begun is asked again of whoever serves the device next.
            if !leaving {
                asked.iter().for_each(|tag| self.begin(*tag));
            }
            if leaving {
                self.disk.end_patience();
            }
            let has_ended = self.end_all();
            if leaving && self.in_flight == 0 {
                let _ = is_quiet.send(());
                // To return would end the device. It is the end of the process that leaves it.
                loop {
                    std::thread::park();
                }
            }
            // After what was aborted one more look finds the queue ended.
            if taken == 0 && !has_ended {
                self.wait(leaving);
            }
        }
    }

    fn wait(&mut self, leaving: bool) {
        // SAFETY: the queue, which is alive, has the descriptor.
        let requests = unsafe { BorrowedFd::borrow_raw(self.kernel.as_raw_fd()) };
        let watched = [(requests, PollFlags::IN), (self.stop.wake.as_fd(), PollFlags::IN)];
        self.disk.wait(if leaving { &[] } else { &watched });
    }

    fn begin(&mut self, tag: u16) {
        match self.action(tag) {
            Ok((action, durable)) => {
                self.in_flight += 1;
                self.disk.submit(Job { token: tag.into(), action, durable });
            }
            Err(errno) => self.complete(tag, -errno),
        }
    }

    /// What the disk is asked for, and whether it must be durable at once; an error number where that makes no
    /// sense.
    fn action(&self, tag: u16) -> Result<(Action, bool), i32> {
        let asked = self.kernel.get_iod(tag);
        let operation = asked.op_flags & 0xff;
        if operation == sys::UBLK_IO_OP_FLUSH {
            // It is of no place.
            return Ok((Action::Flush, false));
        }
        let has_data = matches!(operation, sys::UBLK_IO_OP_READ | sys::UBLK_IO_OP_WRITE);
        let len = u64::from(asked.nr_sectors) * SECTOR_BYTES;
        let start = asked.start_sector.checked_mul(SECTOR_BYTES).ok_or(libc::EIO)?;
        let range = ByteRange::new(start, len);
        if !range.fits(self.disk.device().size_bytes()) || (has_data && len > u64::from(BUFFER_BYTES)) {
            return Err(libc::EIO);
        }
        let action = match operation {
            sys::UBLK_IO_OP_READ => Action::Read { at: range.start, len: range.len as usize },
            sys::UBLK_IO_OP_WRITE => {
                let mut bounce = Bounce::take(range.len as usize);
                bounce.copy_from_slice(&self.buffers[usize::from(tag)].as_slice()[..range.len as usize]);
                Action::Write { at: range.start, bytes: bounce.into_bytes() }
            }
            sys::UBLK_IO_OP_DISCARD => Action::Discard { range },
            sys::UBLK_IO_OP_WRITE_ZEROES => {
                Action::Zero { range, unmap: asked.op_flags & sys::UBLK_IO_F_NOUNMAP == 0 }
            }
            _ => return Err(libc::EOPNOTSUPP),
        };
        Ok((action, asked.op_flags & sys::UBLK_IO_F_FUA != 0))
    }

    /// Tells the kernel of what is done; false where nothing is.
    fn end_all(&mut self) -> bool {
        let mut any = false;
        while let Some(Done { token, result }) = self.disk.next_done() {
            any = true;
            self.in_flight -= 1;
            let tag = token as u16;
            let bytes = i32::try_from(u64::from(self.kernel.get_iod(tag).nr_sectors) * SECTOR_BYTES);
            let result = match result {
                Ok(Answer::Read(data)) => {
                    self.buffers[usize::from(tag)].as_mut_slice()[..data.len()].copy_from_slice(&data);
                    bytes.unwrap_or(i32::MAX)
                }
                Ok(Answer::Nothing | Answer::Told(_)) => bytes.unwrap_or(i32::MAX),
                // The kernel asks again of whoever serves the device next.
                Ok(Answer::Abandoned) => continue,
                Err(error) => {
                    tracing::warn!(%error, "request of a ublk device failed");
                    -error.raw_os_error().unwrap_or(libc::EIO)
                }
            };
            self.complete(tag, result);
        }
        any
    }

    fn complete(&mut self, tag: u16, result: i32) {
        let buffer = BufDesc::Slice(self.buffers[usize::from(tag)].as_slice());
        if let Err(error) = self.kernel.complete_io_cmd_unified(tag, buffer, Ok(UblkIORes::Result(result))) {
            tracing::error!(%error, "the kernel cannot be told of a request's end");
        }
    }
}
