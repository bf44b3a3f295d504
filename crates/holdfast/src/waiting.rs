//! Waiting for long work, telling how far it is and what holds it up: on a terminal in one line that is written over, else
//! in a line for each thing that changes.

use crate::print;
use anyhow::{Context, Result, bail};
use api::{Client, Image, Journal, ProtectedVm, RecoveredVm};
use std::io::IsTerminal;
use std::time::Duration;

/// Between two looks.
const PACE: Duration = Duration::from_millis(300);

/// What is told of long work.
struct Teller {
    shows: bool,
    told: String,
}

impl Teller {
    fn new() -> Self {
        Self { shows: std::io::stderr().is_terminal(), told: String::new() }
    }

    /// `now` is how it stands to somebody who looks on, `change` what a log is told where it is another than before.
    fn tell(&mut self, now: &str, change: &str) {
        if self.shows {
            eprint!("\r\x1b[2K{now}");
        } else if self.told != change {
            eprintln!("{change}");
            change.clone_into(&mut self.told);
        }
    }

    fn end(&self) {
        if self.shows {
            eprintln!();
        }
    }
}

/// Waits until a VM is journaling, telling how far its sync is and what its link does. A state that does not end by itself
/// ends the waiting.
pub(crate) async fn synced(client: &Client, name: &str) -> Result<ProtectedVm> {
    let mut teller = Teller::new();
    loop {
        let vm = client.protected_vm(name).await?;
        let trouble = vm.last_error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
        let tenths = vm
            .sync_progress
            .map_or_else(String::new, |progress| format!(", {:.0} % sent", (progress * 10.0).floor() * 10.0));
        let change = format!("{name}: {}, link {}{tenths}{trouble}", vm.state, vm.link);
        teller.tell(&format!("{}{trouble}", print::sync_line(&vm)), &change);
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

/// Waits until a verification is done and what differed is repaired, showing how far it is where somebody
/// looks on.
pub(crate) async fn verified(client: &Client, name: &str) -> Result<ProtectedVm> {
    let shows = std::io::stderr().is_terminal();
    loop {
        let vm = client.protected_vm(name).await?;
        let verify = vm.verify.clone().context("the agent was restarted; begin again")?;
        if shows {
            eprint!("\r\x1b[2K{}", print::verify_line(&verify));
        }
        let stopped = matches!(vm.state.as_str(), "paused" | "fenced" | "failed");
        let done = verify.state == "done" && (verify.differing_bytes == 0 || verify.repaired);
        if shows && (done || stopped) {
            eprintln!();
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

/// Waits until an image needs nothing of its journal, showing how far it is where somebody looks on.
pub(crate) async fn promoted(client: &Client, id: &str) -> Result<Image> {
    let shows = std::io::stderr().is_terminal();
    loop {
        let images = client.images().await?;
        let image = images.into_iter().find(|image| image.id == id).context("the image was closed")?;
        let promotion = &image.promotion;
        if shows {
            eprint!("\r\x1b[2K{}", print::promotion_line(promotion));
        }
        let ended = promotion.state != "running";
        if ended && shows {
            eprintln!();
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
    let shows = std::io::stderr().is_terminal();
    let mut done = std::pin::pin!(client.move_journal(name, folder));
    loop {
        tokio::select! {
            journal = &mut done => {
                if shows {
                    eprintln!();
                }
                return Ok(journal?);
            }
            () = tokio::time::sleep(PACE) => {}
        }
        if !shows {
            continue;
        }
        let status = client.status().await?;
        let meant = |vm: &RecoveredVm| {
            vm.id == name || vm.name == name || name.split_once('/') == Some((&vm.site, &vm.name))
        };
        let moving = status.recovered.into_iter().filter(meant).find_map(|vm| vm.moving);
        if let Some(moving) = moving {
            eprint!("\r\x1b[2K{}", print::moving_line(&moving));
        }
    }
}
