//! Looks at the images of a protected VM each second.
//!
//! - What they are seen as is noted beside the dirty map, by which the next agent tells whether anybody else wrote to
//!   them.
//! - A name that leads to another file or to none, or a size that is another, is an alert, and the VM counts as failed. As
//!   long as somebody uses the disk it stays open, for a guest must not lose it, and what is written is still sent; once
//!   nobody does, it is closed, so that nobody begins to write to what is gone at the agent's next start.
//! - An image that changes while nobody of ours writes to it was changed by somebody else: everything is compared.
//!
//! A look never waits for another: one that hangs on a disk that hangs is followed by none. It has a thread of its own, so
//! that it costs no other VM's look, nor whatever else is waited for.

use super::driver::Command;
use super::looking::Looking;
use super::vm::ProtectedVm;
use super::{ProtectionRecord, Source};
use crate::alerts::{AlertKind, Cause};
use crate::clock;
use splitter::{BlockDevice, DiskIdentity, FileTime, ProtectedDisk, Refusal};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::oneshot;
use types::limits::REGION_LOG_NOTE_INTERVAL;

const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Every so many looks what the images are seen as is made durable, for the time after a crash of the host.
const LOOKS_PER_DURABLE_NOTE: u64 = REGION_LOG_NOTE_INTERVAL.as_secs() / LOOK_INTERVAL.as_secs();
/// For so many looks others' writes are told of.
const LOOKS_TOLD: u64 = 60;

type Seen = Vec<Option<DiskIdentity>>;

/// What the looks so far have found.
#[derive(Debug, Default)]
struct Watch {
    looks: u64,
    /// What was last made durable.
    durable: Option<Seen>,
    /// How many writes of ours had been made when nothing was under way, and what the images were then.
    quiet: Option<(u64, Vec<FileTime>)>,
    /// When others' writes were last found.
    others_at: Option<u64>,
    /// When a second client was last found that wanted to write.
    refused_at: Option<u64>,
    /// What its clients have open.
    above: Looking,
}

/// Watches until the VM is stopped or forgotten.
pub(super) async fn watch(source: Arc<Source>, vm: Weak<ProtectedVm>) {
    let mut watch = Watch::default();
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let Some(vm) = vm.upgrade().filter(|vm| !vm.is_ending()) else {
            return watch.above.end(&source.alerts);
        };
        let (source, (tell, told)) = (source.clone(), oneshot::channel());
        let look = move || {
            let (id, name, let_go) = (vm.id(), vm.name(), watch.look(&source, &vm));
            drop(vm);
            let_go.iter().for_each(|why| source.let_image_go(id, &name, why));
            let _ = tell.send(watch); // Nobody is there when the agent ends.
        };
        if let Err(error) = std::thread::Builder::new().name("images".into()).spawn(look) {
            tracing::warn!(%error, "images are not looked at just now");
        }
        // What was known is lost with a thread that never began.
        watch = told.await.unwrap_or_default();
    }
}

impl Watch {
    /// Looks once. Why the images are to be let go, if they are.
    fn look(&mut self, source: &Source, vm: &Arc<ProtectedVm>) -> Option<String> {
        let quiet_before = vm.capture().quiet_since();
        let looked = vm.identities().and_then(|seen| Ok((seen, vm.trouble_with_images()?)));
        let (seen, trouble) = match looked {
            Ok(looked) => looked,
            Err(error) => {
                tracing::warn!(vm = vm.name(), %error, "a disk cannot be looked at");
                return None;
            }
        };
        vm.capture().note_alive(clock::wall(), &seen);
        self.find_refused(source, vm);
        note_clients(source, vm);
        self.find_others(source, vm, quiet_before, &seen);
        if self.looks.is_multiple_of(LOOKS_PER_DURABLE_NOTE) {
            self.note_durably(vm, seen);
        }
        self.looks += 1;
        let trouble = trouble.or(self.above.look(&vm.name(), vm.clients_on_socket(), &source.alerts));
        let cause = Cause::new(AlertKind::Image, vm.name());
        match trouble {
            None => {
                vm.set_trouble(None);
                source.alerts.clear(cause);
            }
            Some(trouble) if trouble.may_stay_open || vm.is_used() => {
                let text = format!("VM {} is not protected: {}", vm.name(), trouble.text);
                source.alerts.raise(cause, text);
                vm.set_trouble(Some(trouble.text));
            }
            Some(trouble) => {
                source.alerts.clear(cause);
                return Some(trouble.text);
            }
        }
        None
    }

    /// Notes what was seen where it is new since the last such note, once the disks have it as well.
    fn note_durably(&mut self, vm: &ProtectedVm, seen: Seen) {
        if self.durable.as_ref() != Some(&seen) {
            if let Some(durable) = &self.durable {
                // The sync may take its time, and the agent is there meanwhile.
                vm.capture().note_durable(clock::wall(), durable);
            }
            if let Err(error) = vm.disks().iter().try_for_each(|disk| disk.sync_all()) {
                let text = "a disk cannot be synced: after a crash of the host more is compared";
                tracing::warn!(vm = vm.name(), %error, "{text}");
                return;
            }
        }
        vm.capture().note_durable(clock::wall(), &seen);
        self.durable = Some(seen);
    }

    /// Finds clients that wanted to write to a disk that another writes to.
    fn find_refused(&mut self, source: &Source, vm: &ProtectedVm) {
        let cause = Cause::new(AlertKind::SecondWriter, vm.name());
        let record = vm.record();
        for (disk, open) in record.disks.iter().zip(vm.disks()) {
            let refusals = open.writers().map(|writers| writers.take_refusals());
            for refusal in refusals.unwrap_or_default() {
                source.alerts.raise(cause.clone(), told(&refusal, &disk.name, &record.name));
                self.refused_at = Some(self.looks);
            }
        }
        if self.refused_at.is_some_and(|at| self.looks > at + LOOKS_TOLD) {
            self.refused_at = None;
            source.alerts.clear(cause);
        }
    }

    /// Finds images that have changed between two looks though nothing of ours was written, or under way, from before
    /// the first until after the second.
    fn find_others(&mut self, source: &Source, vm: &ProtectedVm, quiet_before: Option<u64>, seen: &Seen) {
        let prompt = vm.disks().iter().map(|disk| disk.has_prompt_times());
        let times = seen.iter().zip(prompt).map(|(identity, prompt)| {
            identity.filter(|_| prompt).map_or(FileTime::default(), |identity| identity.modified_at)
        });
        let times: Vec<FileTime> = times.collect();
        let still_quiet = quiet_before.is_some() && vm.capture().quiet_since() == quiet_before;
        let quiet = quiet_before.filter(|_| still_quiet).map(|writes| (writes, times));
        let cause = Cause::new(AlertKind::WrittenBeside, vm.name());
        if let (Some((writes, times)), Some((writes_now, times_now))) = (&self.quiet, &quiet)
            && writes == writes_now
            && times != times_now
        {
            let at = times.iter().zip(times_now).position(|(then, now)| then != now).unwrap_or(0);
            let record: ProtectionRecord = vm.record();
            let path = record.disks.get(at).map(|disk| disk.path.display().to_string()).unwrap_or_default();
            let text = format!(
                "VM {}: disk image {path} was written to by somebody else, not through the agent: everything is compared. \
                 Find out who did; `fuser --verbose {path}` shows who has it open",
                record.name
            );
            source.alerts.raise(cause.clone(), text);
            vm.command(Command::Resync);
            self.others_at = Some(self.looks);
        }
        if self.others_at.is_some_and(|at| self.looks > at + LOOKS_TOLD) {
            self.others_at = None;
            source.alerts.clear(cause);
        }
        self.quiet = quiet;
    }
}

/// What a client's refusal means.
fn told(refusal: &Refusal, disk: &str, vm: &str) -> String {
    match refusal {
        Refusal::Second { client, owner } => format!(
            "{client} wanted to write to disk {disk} of VM {vm}, which {owner} writes to, and was refused: two VMs on one disk \
             destroy its file system. End the one that is not meant; disks of a cluster are protected with `--shared`"
        ),
        Refusal::Newcomer { client } => format!(
            "{client} came to disk {disk} of VM {vm}, whose group has failed over, and was refused: the VM may run at the other \
             site. Start it there, roll the failover back there, or unprotect the VM here"
        ),
    }
}

/// Notes clients that are known by name only: while the VM is fenced those that were there before are taken.
fn note_clients(source: &Source, vm: &ProtectedVm) {
    let of_disk = |disk: &Arc<ProtectedDisk>| disk.writers().map(|writers| writers.not_processes());
    let clients: Vec<String> = vm.disks().iter().filter_map(of_disk).flatten().collect();
    let noted = vm.note(&source.state, |record| {
        let mut is_news = false;
        clients.iter().for_each(|client| is_news |= record.note_had_by(client));
        is_news
    });
    if let Err(error) = noted {
        tracing::warn!(vm = vm.name(), error = format!("{error:#}"), "who has its disks is not recorded");
    }
}
