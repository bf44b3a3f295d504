//! One VM's stream on the protected side, against a recovery side that tells the truth.

#![allow(clippy::unwrap_used, reason = "a test")]

use super::played::{BLOCKS, Munich, Paris};
use super::*;
use replication::{SenderEvent, State};

/// A guest that writes faster than the link takes it, for so many rounds; what of it has gone through the spill.
fn over_a_slow_link(paris: &mut Paris, munich: &mut Munich, rounds: u64) -> u64 {
    let mut spilled = 0;
    for round in 0..rounds {
        for write in 0..6 {
            paris.write((round * 5 + write) % BLOCKS);
            paris.step(SenderEvent::Tick);
        }
        spilled = spilled.max(paris.spilled_writes());
        munich.acknowledge(paris, 1);
        munich.answer(paris);
    }
    spilled
}

#[test]
fn no_byte_of_a_sync_goes_through_the_spill() {
    let folder = tempfile::tempdir().unwrap();
    let mut paris = Paris::new(folder.path());
    let mut munich = Munich::of(&mut paris);
    paris.step(SenderEvent::Tick);
    // Each step looks that no copy lies in the spill.
    let spilled = over_a_slow_link(&mut paris, &mut munich, 100);
    assert_eq!(paris.core.sender().state(), State::InitialSync);
    assert!(spilled > 0, "the guest's writes go through the spill, or this tells nothing");
    assert!(munich.gets_all(&mut paris));

    paris.step(SenderEvent::Resync);
    let spilled = over_a_slow_link(&mut paris, &mut munich, 100);
    assert!(
        matches!(paris.core.sender().state(), State::DeltaSync { .. }),
        "{:?}",
        paris.core.sender().state()
    );
    assert!(spilled > 0, "the guest's writes go through the spill, or this tells nothing");
    assert!(munich.gets_all(&mut paris));
}

#[test]
fn a_batch_that_was_built_and_could_not_be_sent_is_built_again_over_the_next_link() {
    let folder = tempfile::tempdir().unwrap();
    let mut paris = Paris::new(folder.path());
    paris.step(SenderEvent::Tick);
    assert!(Munich::of(&mut paris).gets_all(&mut paris));
    paris.write(3);
    // As the driver does where it cannot write down what the batch tells.
    paris.core.push(SenderEvent::Tick);
    while let Some(task) = paris.core.next(paris.now) {
        if matches!(task, Task::WantBatch) {
            let next = paris.core.batch(1 << 20, WallTime(0), |_| Codec::Raw).unwrap();
            assert!(next.is_some());
            paris.core.not_sent();
            paris.core.link_dropped();
            paris.core.push(SenderEvent::LinkLost);
            break;
        }
    }
    assert!(Munich::of(&mut paris).gets_all(&mut paris), "nothing is sent any more");
}
