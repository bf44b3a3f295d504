//! Waiting for long work, telling how far it is, how fast it goes, and what holds it up.

use crate::cli::Limit;
use crate::not_waited::{Ended, NotWaited};
use crate::print::{self, bytes};
use crate::telling::{Speed, Standing, Teller};
use agent::clock;
use anyhow::{Context, Result, bail};
use api::{Client, ClientError, ProtectedVm, Verify};
use std::time::Duration;

/// Between two looks.
pub(crate) const PACE: Duration = Duration::from_millis(300);

/// Waits for the agent's answer, and tells that it is waited for where it takes its time.
pub(crate) async fn answered<T>(what: &str, work: impl Future<Output = Result<T, ClientError>>) -> Result<T> {
    let (mut work, begun) = (std::pin::pin!(work), clock::now());
    let mut teller = Teller::patient();
    loop {
        tokio::select! {
            done = &mut work => {
                teller.end();
                return Ok(done?);
            }
            () = tokio::time::sleep(PACE) => {}
        }
        let seconds = clock::now().since(begun).as_secs();
        teller.tell(&Standing {
            key: what.to_owned(),
            share: None,
            text: format!("{what}: {seconds} s, waiting for the agent's answer"),
        });
    }
}

/// Waits for a state that comes after what was asked for, no longer than is wanted.
pub(crate) async fn within<T>(limit: &Limit, work: impl Future<Output = Result<T>>) -> Result<T> {
    let Some(seconds) = limit.timeout else { return work.await };
    match tokio::time::timeout(Duration::from_secs(seconds), work).await {
        Ok(done) => done,
        Err(_) => Err(NotWaited::unknown(Ended::Timeout).into()),
    }
}

/// In percent, and in steps that a log is told.
pub(crate) fn percent(share: f64) -> (String, u64) {
    (format!("{:.0} %", share * 100.0), (share * 10.0) as u64)
}

/// Waits until a VM is journaling, telling how far its sync is and what its link does. A state that does not end by itself
/// ends the waiting.
pub(crate) async fn synced(client: &Client, name: &str) -> Result<ProtectedVm> {
    let mut teller = Teller::new();
    loop {
        let vm = client.protected_vm(name).await?;
        teller.tell(&sync_standing(&vm));
        let ended = matches!(vm.state.as_str(), "journaling" | "paused" | "fenced" | "failed");
        if ended {
            teller.end();
        }
        match vm.state.as_str() {
            "journaling" => return Ok(vm),
            _ if ended => bail!("VM {name} is {}: {}", vm.state, vm.last_error.unwrap_or(vm.reason)),
            _ => tokio::time::sleep(PACE).await,
        }
    }
}

fn sync_standing(vm: &ProtectedVm) -> Standing {
    let trouble = vm.last_error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
    let how = format!("{}: {}, link {}", vm.name, vm.state, vm.link);
    let Some(share) = vm.sync_progress else {
        let text = format!("{how}{trouble}");
        return Standing { key: text.clone(), share: None, text };
    };
    let (percent, step) = percent(share);
    let left = vm.to_sync_bytes.map_or("unknown".into(), bytes);
    let rate = bytes(vm.sent_bytes_per_second as u64);
    Standing {
        key: format!("{how} {step}{trouble}"),
        share: Some(share),
        text: format!("{how}, {percent}, {left} left, sending {rate}/s{trouble}"),
    }
}

/// Waits until a verification is done and what differed is repaired.
pub(crate) async fn verified(client: &Client, name: &str) -> Result<ProtectedVm> {
    let (mut teller, mut speed) = (Teller::new(), Speed::default());
    loop {
        let vm = client.protected_vm(name).await?;
        let verify = vm.verify.clone().context("the agent was restarted; begin again")?;
        teller.tell(&verify_standing(&vm, &verify, &speed.of(verify.compared_bytes)));
        let stopped = matches!(vm.state.as_str(), "paused" | "fenced" | "failed");
        let done = verify.state == "done" && (verify.differing_bytes == 0 || verify.repaired);
        if done || stopped {
            teller.end();
        }
        if done {
            return Ok(vm);
        }
        if stopped {
            bail!("VM {name} is {}: {}", vm.state, vm.last_error.unwrap_or(vm.reason));
        }
        tokio::time::sleep(PACE).await;
    }
}

fn verify_standing(vm: &ProtectedVm, verify: &Verify, rate: &str) -> Standing {
    let share = verify.compared_bytes as f64 / verify.total_bytes.max(1) as f64;
    let (percent, step) = percent(share);
    let differing = match verify.unreadable_bytes {
        0 => format!("{} differ", bytes(verify.differing_bytes)),
        unread => format!("{} differ, {} cannot be read", bytes(verify.differing_bytes), bytes(unread)),
    };
    let waits = match verify.state.as_str() {
        "waiting" => {
            let trouble = vm.last_error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
            format!(", waits for its stream ({}, link {}{trouble})", vm.state, vm.link)
        }
        "done" => ", what differed is being sent again".to_owned(),
        _ => String::new(),
    };
    let waits = if verify.state == "done" && verify.differing_bytes == 0 { String::new() } else { waits };
    Standing {
        key: format!("{step} {differing}{waits}"),
        share: Some(share),
        text: format!("{}: {percent} compared{rate}, {differing}{waits}", vm.name),
    }
}

/// Tells of a journal that is read here: how much of it, of how much where that is known.
pub(crate) struct ReadingThrough {
    what: String,
    total_bytes: Option<u64>,
    speed: Speed,
    teller: Teller,
}

impl ReadingThrough {
    pub(crate) fn new(what: String, total_bytes: Option<u64>) -> Self {
        Self { what, total_bytes, speed: Speed::default(), teller: Teller::patient() }
    }

    pub(crate) fn tell(&mut self, read_bytes: u64, found: &str) {
        let rate = self.speed.of(read_bytes);
        let share = self.total_bytes.map(|total| (read_bytes as f64 / total.max(1) as f64).min(1.0));
        let (percent, step) =
            share.map(percent).map_or((String::new(), 0), |(text, step)| (format!(", {text}"), step));
        let text = format!("{}{percent}: {} read{rate}{found}", self.what, print::bytes(read_bytes));
        self.teller.tell(&Standing { key: format!("{step}"), share, text });
    }

    pub(crate) fn end(&self) {
        self.teller.end();
    }
}
