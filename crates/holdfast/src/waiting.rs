//! Waiting for long work, telling how far it is, how fast it goes, and what holds it up.

use crate::print::{self, bytes};
use crate::telling::{Speed, Standing, Teller};
use agent::clock;
use anyhow::{Context, Result, bail};
use api::{Client, ClientError, Failover, FailoverRequest, Image, Journal, ProtectedVm, RecoveredVm, Verify};
use std::time::Duration;

/// Between two looks.
const PACE: Duration = Duration::from_millis(300);

/// Waits for the agent's answer, and tells that it is waited for. `look` finds out more, if there is more to know.
async fn told_of<T>(
    what: &str,
    work: impl Future<Output = Result<T, ClientError>>,
    look: impl AsyncFn() -> Option<Standing>,
) -> Result<T> {
    let (mut work, begun) = (std::pin::pin!(work), clock::now());
    let mut teller = Teller::patient();
    loop {
        let looking = async {
            tokio::time::sleep(PACE).await;
            look().await
        };
        let standing = tokio::select! {
            done = &mut work => {
                teller.end();
                return Ok(done?);
            }
            standing = looking => standing,
        };
        let seconds = clock::now().since(begun).as_secs();
        let standing = standing.unwrap_or_else(|| Standing {
            key: what.to_owned(),
            share: None,
            text: format!("{what}: {seconds} s, waiting for the agent's answer"),
        });
        teller.tell(&standing);
    }
}

/// Waits for the agent's answer, and tells that it is waited for where it takes its time.
pub(crate) async fn answered<T>(what: &str, work: impl Future<Output = Result<T, ClientError>>) -> Result<T> {
    told_of(what, work, async || None).await
}

/// In percent, and in steps that a log is told.
fn percent(share: f64) -> (String, u64) {
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

/// Waits until an image needs nothing of its journal.
pub(crate) async fn promoted(client: &Client, id: &str) -> Result<Image> {
    let (mut teller, mut speed) = (Teller::new(), Speed::default());
    loop {
        let images = client.images().await?;
        let image = images.into_iter().find(|image| image.id == id).context("the image was closed")?;
        let promotion = &image.promotion;
        let share = promotion.own_bytes as f64 / promotion.total_bytes.max(1) as f64;
        let ((percent, step), rate) = (percent(share), speed.of(promotion.own_bytes));
        let (own, total) = (bytes(promotion.own_bytes), bytes(promotion.total_bytes));
        let (state, error) = (&promotion.state, promotion.error.as_ref());
        let trouble = error.map_or_else(String::new, |error| format!(": {error}"));
        teller.tell(&Standing {
            key: format!("{state} {step}{trouble}"),
            share: Some(share),
            text: format!("image {id}: promotion {state}, {percent}, {own} of {total}{rate}{trouble}"),
        });
        if promotion.state != "running" {
            teller.end();
        }
        match promotion.state.as_str() {
            "running" => tokio::time::sleep(PACE).await,
            "done" => return Ok(image),
            _ => bail!("promotion has stopped: {}", promotion.error.as_deref().unwrap_or("it was asked to")),
        }
    }
}

/// Moves a journal and waits until it is there.
pub(crate) async fn moved(client: &Client, name: &str, folder: &str) -> Result<Journal> {
    let speed = std::cell::RefCell::new(Speed::default());
    let look = async || {
        let status = client.status().await.ok()?;
        let meant = |vm: &RecoveredVm| {
            vm.id == name || vm.name == name || name.split_once('/') == Some((&vm.site, &vm.name))
        };
        let moving = status.recovered.into_iter().filter(meant).find_map(|vm| vm.moving)?;
        let share = moving.bytes_done as f64 / moving.bytes_total.max(1) as f64;
        let ((percent, step), rate) = (percent(share), speed.borrow_mut().of(moving.bytes_done));
        let (done, total) = (bytes(moving.bytes_done), bytes(moving.bytes_total));
        Some(Standing {
            key: step.to_string(),
            share: Some(share),
            text: format!(
                "journal of {name}: {percent}, {done} of {total} copied to {}{rate}",
                moving.folder
            ),
        })
    };
    told_of(&format!("moving the journal of {name}"), client.move_journal(name, folder), look).await
}

/// Fails a group over and waits until that is done.
pub(crate) async fn failed_over(client: &Client, word: &str, request: &FailoverRequest) -> Result<Failover> {
    let look = async || {
        let meant = |group: &api::Group| {
            group.id == word || group.name == word || word.split_once('/') == Some((&group.site, &group.name))
        };
        let group = client.groups().await.ok()?.into_iter().find(meant)?;
        let failover = group.failover.filter(|failover| failover.phase == "starting")?;
        let (open, of) = (failover.vms.iter().filter(|vm| !vm.socket.is_empty()).count(), group.vms.len());
        let run = failover.vms.iter().filter(|vm| vm.run_state == "running").count();
        let text = format!("group {word}: fenced; images of {open} of {of} VMs are open, {run} VMs run");
        Some(Standing { key: text.clone(), share: None, text })
    };
    told_of(&format!("failing group {word} over"), client.failover(word, request), look).await
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
