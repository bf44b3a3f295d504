//! What a running VM does by itself, told as it happens.

use super::qemu::Adapter;
use super::qmp::Qmp;
use crate::clock;
use anyhow::{Context, Result};
use serde_json::Value;
use std::fmt;
use std::thread::sleep;
use std::time::Duration;
use types::Monotonic;
use types::limits::{QMP_GUEST_EVENTS_PER_SECOND, QMP_GUEST_NAME_CHARS_MAX};

/// Something that has happened to a running VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmEvent {
    PoweredOff,
    Restarted,
    Paused,
    Resumed,
    /// The guest's system has said so itself.
    Crashed,
    /// A request to a disk has failed.
    DiskFailed {
        disk: String,
    },
}

impl VmEvent {
    /// Whether an operator has to look at it.
    pub fn is_bad(&self) -> bool {
        matches!(self, Self::Crashed | Self::DiskFailed { .. })
    }

    fn from_qmp(said: &Value) -> Option<Self> {
        let data = &said["data"];
        Some(match said["event"].as_str()? {
            "SHUTDOWN" if data["reason"] == "guest-reset" => Self::Restarted,
            "SHUTDOWN" => Self::PoweredOff,
            "RESET" => Self::Restarted,
            "STOP" => Self::Paused,
            "RESUME" => Self::Resumed,
            "GUEST_PANICKED" => Self::Crashed,
            "BLOCK_IO_ERROR" => {
                let name = data["node-name"].as_str().unwrap_or_default().chars();
                let name = name.filter(|c| !c.is_control()).take(QMP_GUEST_NAME_CHARS_MAX);
                Self::DiskFailed { disk: name.collect() }
            }
            _ => return None,
        })
    }
}

impl fmt::Display for VmEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("powered off"),
            Self::Restarted => f.write_str("restarted"),
            Self::Paused => f.write_str("paused"),
            Self::Resumed => f.write_str("resumed"),
            Self::Crashed => f.write_str("crashed"),
            Self::DiskFailed { disk } => write!(f, "request to disk {disk} failed"),
        }
    }
}

/// Holds up whoever reads what a VM says, so that one that says something without an end costs little; it waits itself then.
struct Pace {
    since: Monotonic,
    events: u32,
}

impl Pace {
    /// How long to wait before the next event is read.
    fn after_event(&mut self, now: Monotonic) -> Duration {
        let passed = now.since(self.since);
        if passed >= Duration::from_secs(1) {
            *self = Self { since: now, events: 1 };
            return Duration::ZERO;
        }
        self.events += 1;
        if self.events < QMP_GUEST_EVENTS_PER_SECOND {
            Duration::ZERO
        } else {
            Duration::from_secs(1) - passed
        }
    }
}

impl Adapter {
    /// Tells of every event of the VM of that key until its process ends.
    ///
    /// # Errors
    /// Where the VM cannot be listened to.
    pub fn watch(&self, key: &str, mut tell: impl FnMut(VmEvent) + Send + 'static) -> Result<()> {
        let mut monitor = Qmp::connect_to_guest(&self.event_socket(key)).context("listen to the VM")?;
        let mut pace = Pace { since: clock::now(), events: 0 };
        let listen = move || {
            while let Ok(said) = monitor.next_event() {
                VmEvent::from_qmp(&said).into_iter().for_each(&mut tell);
                sleep(pace.after_event(clock::now()));
            }
        };
        std::thread::Builder::new().name("vm-events".into()).spawn(listen).context("start a thread")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_are_told_in_our_words() {
        let told = |event: Value| VmEvent::from_qmp(&event).map(|event| event.to_string());
        let failed = json!({ "event": "BLOCK_IO_ERROR", "data": { "node-name": "vda", "action": "report" } });
        assert_eq!(told(failed).as_deref(), Some("request to disk vda failed"));
        let reset = json!({ "event": "SHUTDOWN", "data": { "guest": true, "reason": "guest-reset" } });
        assert_eq!(told(reset).as_deref(), Some("restarted"));
        assert_eq!(told(json!({ "event": "JOB_STATUS_CHANGE", "data": {} })), None);
        assert_eq!(told(json!({ "return": {} })), None);
        let long = "x\n".repeat(10_000);
        let failed = told(json!({ "event": "BLOCK_IO_ERROR", "data": { "node-name": long } })).unwrap();
        assert_eq!(failed, format!("request to disk {} failed", "x".repeat(64)));
    }

    #[test]
    fn a_vm_that_says_something_without_an_end_is_read_at_a_rate() {
        let mut now = clock::now();
        let (begin, mut pace) = (now, Pace { since: now, events: 0 });
        for _ in 0..100 * QMP_GUEST_EVENTS_PER_SECOND {
            now = now.plus(pace.after_event(now));
        }
        assert!(now.since(begin) >= Duration::from_secs(99), "{:?}", now.since(begin));
        // One that says little is heard at once.
        now = now.plus(Duration::from_secs(2));
        assert_eq!(pace.after_event(now), Duration::ZERO);
    }
}
