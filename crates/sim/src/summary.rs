//! What runs went through: counters, so that a test can say that anything was played at all.

use std::fmt;

macro_rules! summary {
    ($($name:ident: $words:literal,)*) => {
        /// What a run went through.
        #[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
        pub struct Summary {
            $(pub $name: u64,)*
        }

        impl Summary {
            pub fn add(&mut self, other: &Summary) {
                $(self.$name += other.$name;)*
            }
        }

        impl fmt::Display for Summary {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let counted = [$((self.$name, $words),)*];
                for (at, (count, words)) in counted.iter().filter(|(count, _)| *count > 0).enumerate() {
                    write!(f, "{}{count} {words}", if at > 0 { ", " } else { "" })?;
                }
                Ok(())
            }
        }
    };
}

summary! {
    writes: "guest writes",
    checkpoints_compared: "checkpoints compared in full",
    links_cut: "links cut",
    source_crashes: "crashes of the source",
    recovery_crashes: "of the recovery side",
    power_losses: "losses of power",
    failovers: "failovers",
    folds: "folds",
    merges: "merges",
    full_disks: "full disks",
    failed_syncs: "failed syncs",
    half_open: "links half open",
    clock_jumps: "clock jumps",
    verifications: "verifications",
    batches_spilled: "batches spilled",
    writes_left_out: "writes left out",
    promises: "promises in synchronous mode",
    blocks_found_to_differ: "blocks found to differ",
    source_power_losses: "losses of power at the source",
    pages_spoilt: "pages spoilt",
    damages: "damages contained",
    blocks_asked_again: "blocks asked for again",
    damaged_checkpoints: "damaged checkpoints compared",
    images_opened: "images opened",
    image_reads: "reads of images compared",
    image_writes: "writes to images",
    promoted: "images promoted",
    pins: "pins",
    tags: "tags",
    filled_up: "disks filled up",
    killed_within: "agents killed in the middle of something",
    stood_still: "disks that stood still",
    gone: "checkpoints gone by retention",
    held_by_tags: "times that a tag held it back",
    unreadable: "files that could not be read",
    copies_rotten: "copies rotten",
    joins: "VMs protected",
    joins_failed: "of them given up at once",
    departures: "departures",
    cuts: "cuts of groups",
    lives_ended: "lives of journals that failed",
    moves: "journals moved",
    lies: "lies of another site",
    rollbacks: "failovers rolled back",
    commits: "committed",
    cuts_opened: "checkpoints opened whole",
    rotten: "pages that rotted at any time",
    rot_found: "damages that a scrub found of them",
}
