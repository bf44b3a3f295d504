//! QMP: one line of JSON for each command, answer and event.
//! <https://www.qemu.org/docs/master/interop/qmp-spec.html>
//!
//! Every command has a number, and only the answer with that number is its answer: one that comes after its command
//! was given up is passed over. What a monitor says by itself is told to whoever wants to hear it as soon as anybody reads
//! it. A command has one deadline for all that is said until its answer. A monitor that let one
//! pass is not asked again: whoever waits for this connection waits once, not once for each question.
//!
//! The `qapi` crate's client is not used: it panics where the monitor hangs up instead of greeting, which would end
//! the agent, and it cannot read an event that was not known when it was generated.

use crate::clock;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use types::Monotonic;
use types::limits::{QMP_ANSWER_PATIENCE, QMP_GUEST_LINE_BYTES_MAX, QMP_LINE_BYTES_MAX};

/// A connection to a monitor. Others may be connected to other monitors of the same process.
#[derive(Debug)]
pub(super) struct Qmp {
    reader: BufReader<UnixStream>,
    writer: Arc<UnixStream>,
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
    line_bytes_max: u64,
    last_number: u64,
    /// It has let a deadline pass.
    is_silent: bool,
    hears: Option<Hears>,
}

/// Whoever wants to hear of events.
struct Hears(Box<dyn Fn(&Value) + Send>);

impl std::fmt::Debug for Hears {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hears")
    }
}

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    #[error("QEMU refuses {command}: {said}")]
    Refused { command: String, said: String },
    #[error("cannot connect to QEMU's monitor")]
    Connect(#[source] io::Error),
    #[error(
        "QEMU's monitor says nothing for {} seconds: its process stands still, or somebody else is connected to this \
         monitor",
        QMP_ANSWER_PATIENCE.as_secs()
    )]
    Silent,
    #[error("QEMU's monitor has hung up")]
    HungUp,
    #[error("QEMU's monitor says what is not QMP")]
    NotQmp,
    #[error("cannot speak with QEMU's monitor")]
    Io(#[source] io::Error),
}

impl QmpError {
    fn of_io(error: io::Error) -> Self {
        match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::Silent,
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => Self::HungUp,
            _ => Self::Io(error),
        }
    }
}

/// What QEMU said, and what to do where it is about who may use our sockets.
fn explained(said: String) -> String {
    if !said.contains("Permission denied") {
        return said;
    }
    format!(
        "{said}: QEMU runs as a user who may not use this agent's sockets; name a group of that user with \
         `[sockets] group` in agent.toml and restart the agent"
    )
}

/// Connects without waiting to be let in: a process that stands still takes in nobody, and where a few have waited
/// already the system would have the next one wait for ever.
fn connect_at_once(socket: &Path) -> Result<UnixStream, QmpError> {
    let connect = || -> rustix::io::Result<_> {
        let address = SocketAddrUnix::new(socket)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let ours = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&ours, &address)?;
        Ok(ours)
    };
    let stream = match connect() {
        Ok(ours) => UnixStream::from(ours),
        Err(Errno::AGAIN) => return Err(QmpError::Silent),
        Err(error) => return Err(QmpError::Connect(error.into())),
    };
    stream.set_nonblocking(false).map_err(QmpError::Io)?;
    Ok(stream)
}

impl Qmp {
    pub(super) fn connect(socket: &Path) -> Result<Self, QmpError> {
        Self::greet(Self::over(connect_at_once(socket)?)?)
    }

    /// Connects to a guest that the agent has started, whose process may have been taken over by what runs in it.
    pub(super) fn connect_to_guest(socket: &Path) -> Result<Self, QmpError> {
        let line_bytes_max = QMP_GUEST_LINE_BYTES_MAX;
        Self::greet(Self { line_bytes_max, ..Self::over(connect_at_once(socket)?)? })
    }

    fn greet(mut qmp: Self) -> Result<Self, QmpError> {
        let greeting = qmp.read(Some(clock::now().plus(QMP_ANSWER_PATIENCE)))?;
        if greeting.get("QMP").is_none() {
            return Err(QmpError::NotQmp);
        }
        qmp.execute("qmp_capabilities")?;
        Ok(qmp)
    }

    fn over(stream: UnixStream) -> Result<Self, QmpError> {
        stream.set_write_timeout(Some(QMP_ANSWER_PATIENCE)).map_err(QmpError::Io)?;
        let reader = BufReader::new(stream.try_clone().map_err(QmpError::Io)?);
        let (writer, partial) = (Arc::new(stream), Vec::new());
        let line_bytes_max = QMP_LINE_BYTES_MAX;
        Ok(Self { reader, writer, partial, line_bytes_max, last_number: 0, is_silent: false, hears: None })
    }

    /// The process that listens at the other end, where it can be told.
    pub(super) fn peer_pid(&self) -> Option<u32> {
        splitter::peer_process(&self.writer)
    }

    /// The return value of a command without arguments.
    pub(super) fn execute(&mut self, command: &str) -> Result<Value, QmpError> {
        self.ask(command, &json!({}))
    }

    /// The return value of a command; events in between are told.
    pub(super) fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
        if self.is_silent {
            return Err(QmpError::Silent);
        }
        let answer = self.ask_now(command, arguments);
        self.is_silent = matches!(answer, Err(QmpError::Silent));
        let value = answer?;
        self.tell_buffered()?;
        Ok(value)
    }

    fn ask_now(&mut self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
        let deadline = clock::now().plus(QMP_ANSWER_PATIENCE);
        self.last_number += 1;
        let number = self.last_number;
        let line = json!({ "execute": command, "arguments": arguments, "id": number }).to_string() + "\n";
        (&*self.writer).write_all(line.as_bytes()).map_err(QmpError::of_io)?;
        loop {
            let mut answer = self.read(Some(deadline))?;
            self.tell(&answer);
            // An error may come without a number: where the monitor could not read the command.
            if answer.get("id").is_some_and(|id| *id != number) {
                continue;
            }
            if let Some(error) = answer.get("error") {
                let said = error["desc"].as_str().map_or_else(|| error.to_string(), str::to_owned);
                return Err(QmpError::Refused { command: command.to_owned(), said: explained(said) });
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// What the monitor says by itself next; waits for it.
    pub(super) fn next_event(&mut self) -> Result<Value, QmpError> {
        self.read(None)
    }

    /// The next line, until the deadline.
    fn read(&mut self, deadline: Option<Monotonic>) -> Result<Value, QmpError> {
        loop {
            let left = match deadline.map(|deadline| deadline.since(clock::now())) {
                Some(Duration::ZERO) => return Err(QmpError::Silent),
                left => left,
            };
            self.writer.set_read_timeout(left).map_err(QmpError::Io)?;
            if let Some(line) = self.read_some()? {
                return Ok(line);
            }
        }
    }

    /// Reads once, and returns a line where that was the end of one.
    fn read_some(&mut self) -> Result<Option<Value>, QmpError> {
        let said = match self.reader.fill_buf() {
            Ok([]) => return Err(QmpError::HungUp),
            Ok(said) => said,
            Err(error) if error.kind() == ErrorKind::Interrupted => return Ok(None),
            Err(error) => return Err(QmpError::of_io(error)),
        };
        let end = said.iter().position(|&byte| byte == b'\n');
        let taken = end.map_or(said.len(), |end| end + 1);
        self.partial.extend_from_slice(&said[..taken]);
        self.reader.consume(taken);
        if self.partial.len() as u64 > self.line_bytes_max {
            return Err(QmpError::NotQmp);
        }
        if end.is_some() {
            let line = std::mem::take(&mut self.partial);
            return serde_json::from_slice(&line).map(Some).map_err(|_| QmpError::NotQmp);
        }
        Ok(None)
    }

    /// Tells of what has been said by itself, as far as it is there; waits for nothing.
    fn tell_said(&mut self) -> Result<(), QmpError> {
        if self.reader.buffer().is_empty()
            && is_readable(&self.writer, Duration::ZERO)?
            && let Some(line) = self.read_some()?
        {
            self.tell(&line);
        }
        self.tell_buffered()
    }

    /// Tells of what was read together with something else.
    fn tell_buffered(&mut self) -> Result<(), QmpError> {
        while !self.reader.buffer().is_empty() {
            if let Some(line) = self.read_some()? {
                self.tell(&line);
            }
        }
        Ok(())
    }

    fn tell(&self, line: &Value) {
        if let (Some(hears), true) = (&self.hears, line.get("event").is_some()) {
            hears.0(line);
        }
    }
}

/// Waits until there is something to read, or the other end has hung up; whether it came to that.
fn is_readable(stream: &UnixStream, within: Duration) -> Result<bool, QmpError> {
    let within = Timespec {
        tv_sec: i64::try_from(within.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: within.subsec_nanos().into(),
    };
    match poll(&mut [PollFd::new(stream, PollFlags::IN)], Some(&within)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(QmpError::Io(error.into())),
    }
}

/// A monitor that several ask, one command after the other: it takes one client only.
#[derive(Debug, Clone)]
pub(super) struct Monitor {
    qmp: Arc<Mutex<Qmp>>,
    /// To wait at without the lock.
    socket: Arc<UnixStream>,
}

impl Monitor {
    pub(super) fn new(qmp: Qmp) -> Self {
        let socket = qmp.writer.clone();
        Self { qmp: Arc::new(Mutex::new(qmp)), socket }
    }

    /// Has `told` hear each event from here on, from whoever reads it: it waits for nothing, and asks nothing.
    pub(super) fn on_event(&self, told: impl Fn(&Value) + Send + 'static) {
        self.lock().hears = Some(Hears(Box::new(told)));
    }

    /// Listens for what is said while nobody asks, for as long as `within`, or until `done` where that comes of it.
    ///
    /// # Errors
    /// Where nothing can be heard any more, at once.
    pub(super) fn listen(&self, within: Duration, done: impl Fn() -> bool) -> Result<(), QmpError> {
        let until = clock::now().plus(within);
        // What was read together with an answer that was a refusal.
        self.lock().tell_buffered()?;
        while !done() {
            let left = until.since(clock::now());
            if left.is_zero() {
                break;
            }
            if is_readable(&self.socket, left)? {
                self.lock().tell_said()?;
            }
        }
        Ok(())
    }

    /// As [`Qmp::execute`].
    pub(super) fn execute(&self, command: &str) -> Result<Value, QmpError> {
        self.ask(command, &json!({}))
    }

    /// As [`Qmp::ask`].
    pub(super) fn ask(&self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
        self.lock().ask(command, arguments)
    }

    /// As [`Qmp::peer_pid`].
    pub(super) fn peer_pid(&self) -> Option<u32> {
        self.lock().peer_pid()
    }

    fn lock(&self) -> MutexGuard<'_, Qmp> {
        self.qmp.lock().expect("a panic aborts the process")
    }

    /// The rows that a command returns.
    pub(super) fn rows(&self, command: &str, arguments: &Value) -> Result<Vec<Value>, QmpError> {
        match self.ask(command, arguments)? {
            Value::Array(rows) => Ok(rows),
            _ => Err(QmpError::NotQmp),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// A monitor that greets and then says each of `lines` when it is asked something.
    fn monitor(folder: &Path, lines: Vec<&'static str>) -> std::path::PathBuf {
        let socket = folder.join("monitor");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"{\"QMP\": {}}\n").unwrap();
            let mut asked = BufReader::new(stream.try_clone().unwrap()).lines();
            for line in lines {
                asked.next().unwrap().unwrap();
                stream.write_all(line.as_bytes()).unwrap();
            }
            asked.next();
        });
        socket
    }

    #[test]
    fn an_answer_to_another_command_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let late = "{\"event\": \"STOP\"}\n{\"return\": 7, \"id\": 1}\n{\"return\": 8, \"id\": 2}\n";
        let socket = monitor(folder.path(), vec!["{\"return\": {}, \"id\": 1}\n", late]);
        let mut qmp = Qmp::connect(&socket).unwrap();
        assert_eq!(qmp.execute("query-status").unwrap(), 8);
        assert_eq!(qmp.peer_pid(), Some(std::process::id()));
    }

    #[test]
    fn a_monitor_that_was_silent_is_not_waited_for_again() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut qmp = Qmp::over(ours).unwrap();
        assert!(matches!(qmp.execute("query-status"), Err(QmpError::Silent)));
        // Its answer comes after all.
        theirs.write_all(b"{\"return\": {}, \"id\": 1}\n").unwrap();
        assert!(matches!(qmp.execute("query-block"), Err(QmpError::Silent)));
        let mut asked = vec![0; 1 << 12];
        let len = std::io::Read::read(&mut theirs, &mut asked).unwrap();
        let asked = String::from_utf8_lossy(&asked[..len]);
        assert!(asked.contains("query-status") && !asked.contains("query-block"), "{asked}");
    }

    /// What is heard of a monitor, by the names of events.
    fn heard_of(monitor: &Monitor) -> std::sync::mpsc::Receiver<String> {
        let (tell, told) = std::sync::mpsc::channel();
        monitor.on_event(move |event| tell.send(event["event"].as_str().unwrap().to_owned()).unwrap());
        told
    }

    #[test]
    fn what_is_said_before_and_behind_an_answer_is_heard() {
        let folder = tempfile::tempdir().unwrap();
        let said = "{\"event\": \"STOP\"}\n{\"return\": 8, \"id\": 2}\n{\"event\": \"RESUME\"}\n";
        let socket = monitor(folder.path(), vec!["{\"return\": {}, \"id\": 1}\n", said]);
        let monitor = Monitor::new(Qmp::connect(&socket).unwrap());
        let told = heard_of(&monitor);
        assert_eq!(monitor.execute("query-status").unwrap(), 8);
        assert_eq!(told.try_iter().collect::<Vec<_>>(), ["STOP", "RESUME"]);
    }

    #[test]
    fn what_is_said_while_nobody_asks_is_heard_at_once() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let monitor = Monitor::new(Qmp::over(ours).unwrap());
        let told = heard_of(&monitor);
        std::thread::scope(|scope| {
            let listening = scope.spawn(|| monitor.listen(Duration::from_secs(600), || false));
            theirs.write_all(b"{\"event\": \"ST").unwrap();
            theirs.write_all(b"OP\"}\n{\"event\": \"RESUME\"}\n").unwrap();
            assert_eq!(told.recv_timeout(Duration::from_secs(60)).as_deref(), Ok("STOP"));
            assert_eq!(told.recv_timeout(Duration::from_secs(60)).as_deref(), Ok("RESUME"));
            drop(theirs);
            assert!(matches!(listening.join().unwrap(), Err(QmpError::HungUp)));
        });
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let monitor = Monitor::new(Qmp::over(ours).unwrap());
        monitor.listen(Duration::from_secs(600), || true).unwrap();
        monitor.listen(Duration::from_millis(1), || false).unwrap();
    }

    #[test]
    fn a_guest_of_ours_says_no_more_at_once_than_an_honest_one_has_to() {
        for (len, is_taken) in [(QMP_GUEST_LINE_BYTES_MAX - 100, true), (QMP_GUEST_LINE_BYTES_MAX, false)] {
            let folder = tempfile::tempdir().unwrap();
            let long = "x".repeat(usize::try_from(len).unwrap());
            let answer = format!("{{\"return\": \"{long}\", \"id\": 2}}\n").leak();
            let socket = monitor(folder.path(), vec!["{\"return\": {}, \"id\": 1}\n", answer]);
            let mut qmp = Qmp::connect_to_guest(&socket).unwrap();
            assert_eq!(qmp.execute("query-block").is_ok(), is_taken, "{len}");
        }
    }

    #[test]
    fn a_monitor_that_takes_in_nobody_is_silent() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("monitor");
        let _listener = UnixListener::bind(&socket).unwrap();
        // As many as the system has wait.
        let mut waiting = Vec::new();
        let refused = loop {
            match connect_at_once(&socket) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, QmpError::Silent), "{refused:?}");
    }

    #[test]
    fn a_monitor_that_hangs_up_or_says_something_else_is_told_of_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let socket = monitor(folder.path(), vec!["{\"return\": {}, \"id\": 1}\n", "what?\n"]);
        let mut qmp = Qmp::connect(&socket).unwrap();
        assert!(matches!(qmp.execute("query-status"), Err(QmpError::NotQmp)));
        assert!(matches!(Qmp::connect(&folder.path().join("none")), Err(QmpError::Connect(_))));
        assert!(!QmpError::Silent.to_string().contains("os error"));
        drop(socket);
    }
}
