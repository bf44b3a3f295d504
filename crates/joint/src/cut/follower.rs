//! A host's part in a cut that another host's agent coordinates: it holds, draws and marks when it is told to, and lets
//! go by itself.

use super::{Disbelieved, Part};
use batch::decode_mark;
use replication::wire::CutMessage;
use types::limits::CUT_HOLD_MAX;
use types::{Monotonic, WriteSeq};

/// One for each group that is followed, over all connections to its coordinator.
///
/// A lost connection releases nothing: the hold ends by itself.
#[derive(Debug, Default)]
pub struct Follower {
    hold: Option<Hold>,
    /// The cut that was made here last and is not settled.
    made: Option<WriteSeq>,
    /// The newest cut the coordinator was told is durable here.
    told_durable: WriteSeq,
}

#[derive(Debug, Clone, Copy)]
struct Hold {
    number: u64,
    until: Monotonic,
}

impl Follower {
    /// Does what the coordinator says; what to answer.
    ///
    /// # Errors
    /// Where that has no place here: the connection is to end.
    pub fn heard(
        &mut self,
        now: Monotonic,
        message: CutMessage,
        part: &mut impl Part,
    ) -> Result<Option<CutMessage>, Disbelieved> {
        match message {
            CutMessage::Prepare { cut } => Ok(Some(self.prepare(now, cut, part))),
            CutMessage::Settle { cut, mark } => {
                self.release(part);
                let made = self.made.take() == Some(cut);
                if let Some(mark) = mark {
                    if !made {
                        let why = format!("cut {cut} is said to stand, which was not made here");
                        return Err(Disbelieved(why));
                    }
                    let checkpoint = decode_mark(&mark).map_err(|error| Disbelieved(error.to_string()))?;
                    if checkpoint.cut != cut {
                        let why = format!("the mark of cut {cut} is of cut {}", checkpoint.cut);
                        return Err(Disbelieved(why));
                    }
                    // What cannot be marked here is a checkpoint that is never complete; the next one may be.
                    let _ = part.mark(&checkpoint, &[]);
                }
                Ok(None)
            }
            CutMessage::Joined { .. } | CutMessage::Prepared { .. } | CutMessage::Durable { .. } => {
                Err(Disbelieved("something that has no place here".to_owned()))
            }
        }
    }

    fn prepare(&mut self, now: Monotonic, cut: WriteSeq, part: &mut impl Part) -> CutMessage {
        self.release(part);
        let number = part.hold();
        let refused = part.draw(cut).err();
        self.made = refused.is_none().then_some(cut);
        self.hold = Some(Hold { number, until: now.plus(CUT_HOLD_MAX) });
        if refused.is_some() {
            self.release(part);
        }
        CutMessage::Prepared { cut, refused }
    }

    /// When [`tick`](Self::tick) has to be called at the latest.
    pub fn due(&self) -> Option<Monotonic> {
        self.hold.map(|hold| hold.until)
    }

    /// Lets go what was held for too long.
    pub fn tick(&mut self, now: Monotonic, part: &mut impl Part) {
        if self.hold.is_some_and(|hold| hold.until <= now) {
            self.release(part);
        }
    }

    /// What to tell the coordinator, where the newest cut that is durable in all streams here is a newer one.
    pub fn durable(&mut self, newest: WriteSeq) -> Option<CutMessage> {
        (newest > self.told_durable).then(|| {
            self.told_durable = newest;
            CutMessage::Durable { cut: newest }
        })
    }

    /// A new connection to the coordinator has taken the place of the last.
    pub fn connected(&mut self) {
        self.made = None;
        self.told_durable = WriteSeq::ZERO;
    }

    fn release(&mut self, part: &mut impl Part) {
        if let Some(hold) = self.hold.take() {
            part.release(hold.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::part::Willing;
    use super::*;
    use batch::encode_mark;
    use types::{Checkpoint, CheckpointId, CheckpointKind, WallTime};

    fn settle(cut: u64, marked: u64) -> CutMessage {
        let (kind, tag, taken_at) = (CheckpointKind::Automatic, String::new(), WallTime::default());
        let of = WriteSeq::from_raw(marked);
        let checkpoint = Checkpoint { id: CheckpointId(of), cut: of, kind, taken_at, members: 2, tag };
        CutMessage::Settle { cut: WriteSeq::from_raw(cut), mark: Some(encode_mark(&checkpoint)) }
    }

    #[test]
    fn only_the_cut_that_was_made_here_last_is_marked_and_once() {
        let (mut follower, mut part, now) = (Follower::default(), Willing::default(), Monotonic::default());
        let mut hear = |message, part: &mut Willing| follower.heard(now, message, part);
        let prepare = |cut| CutMessage::Prepare { cut: WriteSeq::from_raw(cut) };
        assert!(hear(settle(10, 10), &mut part).is_err(), "none was made");
        hear(prepare(20), &mut part).unwrap();
        hear(prepare(30), &mut part).unwrap();
        assert!(hear(settle(20, 20), &mut part).is_err(), "another was made since");
        hear(prepare(40), &mut part).unwrap();
        assert!(hear(settle(40, 39), &mut part).is_err(), "the mark of another cut");
        hear(prepare(50), &mut part).unwrap();
        assert!(hear(settle(50, 50), &mut part).is_ok());
        assert!(hear(settle(50, 50), &mut part).is_err(), "it is settled");
        assert_eq!(part.marked, [WriteSeq::from_raw(50)]);
    }
}
