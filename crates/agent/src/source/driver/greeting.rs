//! What a protected VM says of itself when it greets.

use super::Driver;
use crate::clock;
use crate::source::record::parse_hash;
use replication::wire::{ArtifactOffer, Hello, VERSION};
use splitter::BlockDevice;
use types::{Epoch, GroupId, Incarnation, WriteSeq};

impl Driver {
    pub(super) fn hello(
        &self,
        epoch: Epoch,
        incarnation: Incarnation,
        acked: WriteSeq,
        last_seq: WriteSeq,
    ) -> Hello {
        let vm = &self.vm;
        let record = vm.record();
        let group = record.group_id.parse().unwrap_or(GroupId::from_bytes([0; 16]));
        let disks = record.disks.iter().zip(vm.disks());
        let files = record.files.iter().filter_map(|file| {
            let hash = parse_hash(&file.hash)?;
            Some(ArtifactOffer { name: file.name.clone(), hash, size_bytes: file.size_bytes })
        });
        Hello {
            speaks: VERSION,
            vm: vm.id(),
            vm_name: record.name.clone(),
            group,
            group_name: record.group.clone(),
            epoch,
            incarnation,
            acked,
            last_seq,
            sent_at: clock::wall(),
            history_seconds: record.policy.history_seconds,
            journal_bytes_max: record.policy.journal_bytes_max,
            rpo_seconds: record.policy.rpo_seconds as u32,
            checkpoint_interval_seconds: record.policy.checkpoint_interval_seconds as u32,
            spans_hosts: vm.group().spans_hosts(),
            disks: disks
                .map(|(disk, open)| types::DiskSpec {
                    name: disk.name.clone(),
                    size_bytes: open.size_bytes(),
                })
                .collect(),
            definition: record.definition.clone(),
            artifacts: files.collect(),
        }
    }
}
