//! Who has the authority over a group whose failover was asked for, and which epoch that is of.
//!
//! ```text
//!   Starting ──▶ Running ──▶ Committed
//!      │            │
//!      │            ▼
//!      ├──▶ RollingBack ──▶ RolledBack
//!      └───────────────────────▲ nothing was made yet, or all of it is gone again
//! ```
//!
//! Until a failover is rolled back, nobody else writes to the group's journals. Its epoch stays with the group for ever: the
//! next failover is above it, whatever the journals that answer say.

use types::Epoch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Fenced; images are being opened and VMs started, by an operation.
    Starting,
    Running,
    Committed,
    /// It goes back, and nowhere else: VMs may be stopped and images be gone already.
    RollingBack,
    /// The group is the protected side's again, with the epoch of the failover.
    RolledBack,
}

impl Phase {
    /// The protected side may write again.
    pub fn is_released(self) -> bool {
        self == Self::RolledBack
    }

    /// It is neither final nor undone: an operator may still roll it back, or do so again.
    pub fn is_undecided(self) -> bool {
        match self {
            Self::Starting | Self::Running | Self::RollingBack => true,
            Self::Committed | Self::RolledBack => false,
        }
    }
}

/// The epoch of a failover: above all that the group's journals know, and above the failover before.
pub fn epoch_of(journals: impl IntoIterator<Item = Epoch>, before: Option<Epoch>) -> Epoch {
    journals.into_iter().chain(before).max().unwrap_or(Epoch(0)).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_above_the_failover_before_also_where_no_journal_answers() {
        assert_eq!(epoch_of([Epoch(3), Epoch(7)], None), Epoch(8));
        assert_eq!(epoch_of([Epoch(3)], Some(Epoch(9))), Epoch(10));
        assert_eq!(epoch_of([], Some(Epoch(9))), Epoch(10));
        assert_eq!(epoch_of([], None), Epoch(1));
    }

    #[test]
    fn only_a_rollback_gives_a_group_back() {
        let all = [Phase::Starting, Phase::Running, Phase::Committed, Phase::RollingBack, Phase::RolledBack];
        assert_eq!(all.map(Phase::is_released), [false, false, false, false, true]);
        assert_eq!(all.map(Phase::is_undecided), [true, true, false, true, false]);
    }
}
