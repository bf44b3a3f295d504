//! QMP: one line of JSON for each command, answer and event.
//! <https://www.qemu.org/docs/master/interop/qmp-spec.html>
//!
//! The `qapi` crate's client is not used: it panics where the monitor hangs up instead of greeting, which would end
//! the agent, and it cannot read an event that was not known when it was generated.

use serde_json::{Value, json};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use types::limits::QMP_LINE_BYTES_MAX;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection to a monitor. Others may be connected to other monitors of the same process.
#[derive(Debug)]
pub(super) struct Qmp {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum QmpError {
    #[error("QEMU refuses {command}: {said}")]
    Refused { command: String, said: String },
    #[error("QEMU's monitor does not answer")]
    Io(#[from] io::Error),
}

impl Qmp {
    pub(super) fn connect(socket: &Path) -> Result<Self, QmpError> {
        let writer = UnixStream::connect(socket)?;
        writer.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        writer.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let mut qmp = Self { reader: BufReader::new(writer.try_clone()?), writer };
        qmp.read()?;
        qmp.execute("qmp_capabilities")?;
        Ok(qmp)
    }

    /// The return value of a command without arguments.
    pub(super) fn execute(&mut self, command: &str) -> Result<Value, QmpError> {
        self.ask(command, &json!({}))
    }

    /// The return value of a command; events in between are passed over.
    pub(super) fn ask(&mut self, command: &str, arguments: &Value) -> Result<Value, QmpError> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.writer.write_all(line.as_bytes())?;
        loop {
            let mut answer = self.read()?;
            if let Some(error) = answer.get("error") {
                let said = error["desc"].as_str().map_or_else(|| error.to_string(), str::to_owned);
                return Err(QmpError::Refused { command: command.to_owned(), said });
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    /// What the monitor says by itself next; waits for it.
    pub(super) fn next_event(&mut self) -> io::Result<Value> {
        self.writer.set_read_timeout(None)?;
        self.read()
    }

    fn read(&mut self) -> io::Result<Value> {
        let mut line = Vec::new();
        (&mut self.reader).take(QMP_LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        serde_json::from_slice(&line).map_err(io::Error::other)
    }
}
