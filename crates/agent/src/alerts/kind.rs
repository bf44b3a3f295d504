//! Everything that can be wrong, how much it matters, and what an operator does about it. The guide has the same table.

/// How much an alert matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    /// Something is not protected, or runs twice.
    Critical,
    /// Something will be, unless somebody looks.
    Warning,
}

impl Severity {
    /// The word for it in API and screens.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
        }
    }
}

/// Everything that can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum AlertKind {
    /// The newest complete checkpoint of a VM is older than its bound.
    Rpo,
    /// No checkpoint of a VM was ever complete at the recovery side.
    NeverCopied,
    /// The recovery side keeps, or will keep, less history than was asked for.
    History,
    /// Guest writes should wait for the recovery side, and do not.
    SyncDegraded,
    /// The recovery side has not been reached for longer than the bound.
    LinkDown,
    /// The recovery side refuses a stream, or a bound has stopped it.
    Failed,
    /// The group's authority has passed to the recovery side.
    Fenced,
    /// A protection is recorded and cannot be taken up.
    Protection,
    /// A VM has disks that are not protected, or not any more.
    Disks,
    /// A disk does not give all of itself, or a VM under the tap cannot be read for a sync.
    Reading,
    /// A disk image that is open is not what is protected.
    Image,
    /// Somebody else than the VM has written to a disk image.
    WrittenBeside,
    /// A second client wanted to write to a disk that another writes to.
    SecondWriter,
    /// The recovery side does not know yet that a VM has left.
    Departure,
    /// At the recovery side: a VM's site has sent nothing for longer than the bound.
    SourceSilent,
    /// At the recovery side: a VM's site asks for less history than is kept.
    AskedLess,
    /// At the recovery side: a journal is full and its history is locked.
    LockedFull,
    /// At the recovery side: somebody has asked that the lock of a history be lifted.
    LiftAsked,
    /// At the recovery side: the VM's group has failed over, and its own site is there and sends.
    RunsTwice,
    /// At the recovery side: an image that is recorded is not served, or only in part.
    ImageUnserved,
    /// Something happened to a VM that runs here.
    Guest,
    /// A VM that was started here does not run any more.
    GuestEnded,
    /// What waits for the link of a VM has no room but memory, though room on a disk was asked for.
    NoSpill,
    /// The agent itself: a listener, a certificate, a file.
    Agent,
}

impl AlertKind {
    /// What is said of a VM that is protected here.
    pub(super) const OF_A_PROTECTION: [Self; 14] = [
        Self::Rpo,
        Self::NeverCopied,
        Self::History,
        Self::SyncDegraded,
        Self::LinkDown,
        Self::Failed,
        Self::Fenced,
        Self::Protection,
        Self::Disks,
        Self::Reading,
        Self::Image,
        Self::WrittenBeside,
        Self::SecondWriter,
        Self::NoSpill,
    ];

    /// The word for it in log, API and screens.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Rpo => "rpo",
            Self::NeverCopied => "never-copied",
            Self::History => "history",
            Self::SyncDegraded => "sync-degraded",
            Self::LinkDown => "link-down",
            Self::Failed => "failed",
            Self::Fenced => "fenced",
            Self::Protection => "protection",
            Self::Disks => "disks",
            Self::Reading => "reading",
            Self::Image => "image",
            Self::WrittenBeside => "written-beside",
            Self::SecondWriter => "second-writer",
            Self::Departure => "departure",
            Self::SourceSilent => "source-silent",
            Self::AskedLess => "asked-less",
            Self::LockedFull => "locked-full",
            Self::LiftAsked => "lift-asked",
            Self::RunsTwice => "runs-twice",
            Self::ImageUnserved => "image-unserved",
            Self::Guest => "guest",
            Self::GuestEnded => "guest-ended",
            Self::NoSpill => "no-spill",
            Self::Agent => "agent",
        }
    }

    pub(crate) fn severity(self) -> Severity {
        match self {
            Self::History
            | Self::LinkDown
            | Self::Departure
            | Self::SyncDegraded
            | Self::AskedLess
            | Self::LiftAsked
            | Self::NoSpill => Severity::Warning,
            Self::Rpo
            | Self::NeverCopied
            | Self::Failed
            | Self::Fenced
            | Self::Protection
            | Self::Disks
            | Self::Reading
            | Self::Image
            | Self::WrittenBeside
            | Self::SecondWriter
            | Self::SourceSilent
            | Self::LockedFull
            | Self::RunsTwice
            | Self::ImageUnserved
            | Self::Guest
            | Self::GuestEnded
            | Self::Agent => Severity::Critical,
        }
    }

    /// What an operator does about it.
    pub(crate) fn to_do(self) -> &'static str {
        match self {
            Self::Rpo => {
                "look at the VM's link, buffer and trouble with `holdfast vm show`; nothing newer can be recovered"
            }
            Self::NeverCopied => {
                "look at its first sync with `holdfast vm show`; nothing of it can be recovered yet"
            }
            Self::History => "give the journal more room, or ask for less history",
            Self::SyncDegraded => "mend the link; the VM goes back to synchronous mode by itself",
            Self::LinkDown => "look whether the recovery side's agent runs and can be reached",
            Self::Failed => "do what the trouble in `holdfast vm show` says; it is tried again by itself",
            Self::Fenced => {
                "the VM may run at both sites, unless `--on-fenced` says otherwise: stop it here, or roll the failover back at the recovery side"
            }
            Self::Protection => "do what the alert says; it is tried again by itself",
            Self::Disks => "do what the alert says, or plug the disk in again",
            Self::Reading => "do what the alert says; it is tried again by itself",
            Self::Image => "do what the alert says; it is tried again by itself",
            Self::SecondWriter => "end whichever of the two is not meant",
            Self::WrittenBeside => "find out who writes to the image beside the VM, and end that",
            Self::Departure => {
                "see that the recovery side can be reached, which is told again by itself; if it is gone for good, `holdfast vm forget`"
            }
            Self::AskedLess => "take it over if it is meant, or see who has changed it at the protected side",
            Self::LockedFull => {
                "give its journal more room; until then nothing of the VM is taken, and its site tracks what changes"
            }
            Self::LiftAsked => "ask whoever it was; confirm it where it is meant, else take it back",
            Self::SourceSilent => {
                "look at the VM's site: its host, its agent and the link; if it is gone for good, fail over or `holdfast vm forget`"
            }
            Self::RunsTwice => {
                "stop the VM at its own site, or have it stopped there with `--on-fenced`; or roll the failover back"
            }
            Self::ImageUnserved => "do what the alert says; it is tried again by itself",
            Self::Guest => "look at the VM with `holdfast failover list`",
            Self::GuestEnded => {
                "see in `holdfast failover list` what it last did; its image stays as it is until it is closed or rolled back"
            }
            Self::NoSpill => {
                "see to the folder of the spill; until then a link that is down for longer costs a comparison"
            }
            Self::Agent => "do what the alert says",
        }
    }
}

/// What an alert is about: one stands for each.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cause {
    pub(crate) kind: AlertKind,
    /// The VM, or the part of the agent.
    pub(crate) subject: String,
}

impl Cause {
    pub(crate) fn new(kind: AlertKind, subject: impl Into<String>) -> Self {
        Self { kind, subject: subject.into() }
    }

    /// How it is written down.
    pub(super) fn key(&self) -> String {
        format!("{} {}", self.kind.name(), self.subject)
    }
}

impl From<&str> for Cause {
    fn from(subject: &str) -> Self {
        Self::new(AlertKind::Agent, subject)
    }
}

impl From<String> for Cause {
    fn from(subject: String) -> Self {
        Self::new(AlertKind::Agent, subject)
    }
}

impl From<&String> for Cause {
    fn from(subject: &String) -> Self {
        Self::new(AlertKind::Agent, subject)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use AlertKind::*;

    const GUIDE: &str = include_str!("../../../../docs/operate/alerts.md");
    const ALL: [AlertKind; KINDS] = [
        Rpo,
        NeverCopied,
        History,
        SyncDegraded,
        LinkDown,
        Failed,
        Fenced,
        Protection,
        Disks,
        Reading,
        Image,
        WrittenBeside,
        SecondWriter,
        Departure,
        SourceSilent,
        AskedLess,
        LockedFull,
        LiftAsked,
        RunsTwice,
        ImageUnserved,
        Guest,
        GuestEnded,
        NoSpill,
        Agent,
    ];
    const KINDS: usize = Agent as usize + 1;

    #[test]
    fn the_guide_has_a_row_for_each_kind_with_its_severity_and_what_to_do_about_it() {
        for (index, kind) in ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index, "each is here once");
            let begins = format!("| `{}` | {} |", kind.name(), kind.severity().name());
            let row = GUIDE.lines().find(|line| line.starts_with(&begins));
            let row = row.unwrap_or_else(|| panic!("no row begins {begins:?}"));
            let to_do = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
            assert_eq!(to_do, kind.to_do(), "of {}", kind.name());
        }
        let rows = GUIDE.lines().filter(|line| line.starts_with("| `") && line.matches(" | ").count() == 3);
        assert_eq!(rows.count(), KINDS, "the guide has rows of what there is not");
    }
}
