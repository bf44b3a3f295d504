//! Groups, kept VMs and failovers in the words of the API.

use super::super::Recovery;
use super::super::at::time_of;
use super::super::groups::KeptGroup;
use super::super::vm::{RecoveredVm, checkpoint_to_api};
use super::record::{FailoverRecord, Phase};
use crate::hypervisor::RunState;
use std::sync::Arc;

impl Recovery {
    /// Groups whose journals are kept here.
    pub(crate) fn groups(&self) -> Vec<api::Group> {
        let to_api = |group: KeptGroup| {
            let failover = self.failovers().get(&group.id).cloned();
            let journals = group.all().filter_map(|vm| vm.journal());
            let epoch = journals.map(|journal| journal.status().epoch.0).max().unwrap_or(0);
            api::Group {
                id: group.id.to_string(),
                epoch: epoch.max(failover.as_ref().map_or(0, |failover| failover.epoch)),
                side: "recovery".into(),
                vms: group.members.iter().map(|vm| vm.name()).collect(),
                former: group.former.iter().map(|vm| vm.name()).collect(),
                failover: failover.as_ref().map(|failover| self.failover_to_api(failover)),
                name: group.name,
                site: group.site,
                ..api::Group::default()
            }
        };
        self.kept_groups().into_iter().map(to_api).collect()
    }

    /// Every kept VM for the operator.
    pub(crate) fn vms_to_api(&self) -> Vec<api::RecoveredVm> {
        let describe = |vm: Arc<RecoveredVm>| {
            let failover = self.failovers().get(&vm.group()).cloned();
            let state = failover.as_ref().and_then(|failover| match failover.phase {
                Phase::Starting | Phase::Running | Phase::RollingBack => Some("failed-over"),
                Phase::Committed => Some("committed"),
                Phase::RolledBack => None,
            });
            let moving = self.moving(&vm);
            let state = state.or(moving.as_ref().map(|_| "moving"));
            vm.to_api(&self.journal_config, state, failover.map_or(0, |failover| failover.epoch), moving)
        };
        self.list().into_iter().map(describe).collect()
    }

    pub(super) fn failover_to_api(&self, record: &FailoverRecord) -> api::Failover {
        let cut = record.cut();
        let kept: Vec<_> =
            self.list().into_iter().filter(|vm| vm.record().group_id == record.group_id).collect();
        let opened = kept.iter().find(|vm| record.vms.iter().any(|run| run.id == vm.id().to_string()));
        let journal = opened.or(kept.first()).and_then(|vm| vm.journal());
        // Of one that has failed in the middle none was chosen.
        let is_chosen = !record.vms.is_empty();
        let taken_at = journal.as_ref().filter(|_| is_chosen).and_then(|journal| time_of(journal, cut));
        let checkpoint = journal.and_then(|journal| journal.checkpoint(types::CheckpointId(cut)).ok()?);
        let checkpoint = checkpoint.as_ref().map(checkpoint_to_api);
        let vms = record.vms.iter().map(|run| {
            let state = run.pid.map(|pid| self.adapter.state(run.key(), pid));
            let alive = run.pid.filter(|_| state != Some(RunState::Stopped));
            api::FailoverVm {
                id: run.id.clone(),
                vm: run.vm.clone(),
                image: run.image.clone(),
                socket: self
                    .image(&run.image)
                    .map(|image| image.socket.display().to_string())
                    .unwrap_or_default(),
                pid: alive,
                disks: alive.map(|_| self.guest_disks(run.key())).unwrap_or_default(),
                last_event: self.last_event(run.key()),
                run_state: match state {
                    None => match record.phase {
                        Phase::Starting | Phase::RollingBack | Phase::RolledBack => "stopped".into(),
                        Phase::Running | Phase::Committed => "not-defined".into(),
                    },
                    Some(RunState::Stopped) => "stopped".into(),
                    Some(RunState::Paused) => "paused".into(),
                    Some(RunState::Running) => "running".into(),
                },
            }
        });
        let left_out = record.left_out.iter().map(|(id, vm, why)| api::LeftOut {
            id: id.clone(),
            vm: vm.clone(),
            why: why.clone(),
        });
        api::Failover {
            group: record.group.clone(),
            group_id: record.group_id.clone(),
            site: kept.first().map(|vm| vm.site()).unwrap_or_default(),
            left_out: left_out.collect(),
            notes: record.notes.clone(),
            epoch: record.epoch,
            phase: record.phase_name().to_owned(),
            cut: cut.to_string(),
            taken_at,
            checkpoint,
            vms: vms.collect(),
            image_open_seconds: record.image_open_seconds,
            start_seconds: record.start_seconds,
        }
    }
}
