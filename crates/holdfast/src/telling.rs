//! How long work is told of on standard error: on a terminal in one line that is written over, else in a line for each thing
//! that changes, and one now and then while nothing does. Standard output is the answer's alone.

use crate::print;
use agent::clock;
use std::io::IsTerminal;
use std::time::Duration;
use types::Monotonic;

/// Between two lines that say the same, where nobody looks on.
const SAME_AGAIN_AFTER: Duration = Duration::from_secs(60);
/// What is done by then is not told of at all.
const WORTH_A_LINE: Duration = Duration::from_secs(2);

/// How work stands.
#[derive(Debug, Clone, Default)]
pub(crate) struct Standing {
    /// What makes it another than before, for whoever reads a log.
    pub(crate) key: String,
    /// How much of it is done, from 0 to 1, where that is known.
    pub(crate) share: Option<f64>,
    pub(crate) text: String,
}

/// Who is told, and what he knows.
#[derive(Debug)]
pub(crate) struct Teller {
    looks_on: bool,
    quiet_until: Monotonic,
    told: Option<(String, Monotonic)>,
}

impl Teller {
    /// Tells from the beginning on.
    pub(crate) fn new() -> Self {
        Self { looks_on: std::io::stderr().is_terminal(), quiet_until: clock::now(), told: None }
    }

    /// Of work that may be done in a moment: tells what is not.
    pub(crate) fn patient() -> Self {
        Self { quiet_until: clock::now().plus(WORTH_A_LINE), ..Self::new() }
    }

    pub(crate) fn tell(&mut self, standing: &Standing) {
        if let Some(line) = self.line(clock::now(), standing) {
            eprint!("{line}");
        }
    }

    /// What is printed now, if anything is.
    fn line(&mut self, now: Monotonic, standing: &Standing) -> Option<String> {
        if now < self.quiet_until {
            return None;
        }
        let is_new = self
            .told
            .as_ref()
            .is_none_or(|(key, at)| *key != standing.key || now.since(*at) >= SAME_AGAIN_AFTER);
        if !self.looks_on && !is_new {
            return None;
        }
        self.told = Some((standing.key.clone(), now));
        let bar = standing.share.map_or(String::new(), |share| format!("{} ", print::bar(share)));
        Some(match self.looks_on {
            true => format!("\r\x1b[2K{bar}{}", standing.text),
            false => format!("{}\n", standing.text),
        })
    }

    /// What comes next begins a line of its own.
    pub(crate) fn end(&self) {
        if self.looks_on && self.told.is_some() {
            eprintln!();
        }
    }
}

/// How fast bytes have come since the first look.
#[derive(Debug, Default)]
pub(crate) struct Speed(Option<(Monotonic, u64)>);

impl Speed {
    /// In words, with a comma before them; none where it is too early to tell.
    pub(crate) fn of(&mut self, bytes: u64) -> String {
        self.at(clock::now(), bytes)
    }

    fn at(&mut self, now: Monotonic, bytes: u64) -> String {
        let (begun, first) = *self.0.get_or_insert((now, bytes));
        let seconds = now.since(begun).as_secs_f64();
        if seconds < 1.0 {
            return String::new();
        }
        format!(", {}/s", print::bytes((bytes.saturating_sub(first) as f64 / seconds) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic(Duration::from_secs(seconds))
    }

    fn standing(key: &str, text: &str) -> Standing {
        Standing { key: key.into(), share: Some(0.5), text: text.into() }
    }

    #[test]
    fn a_log_gets_a_line_for_what_changes_and_one_now_and_then() {
        let mut teller = Teller { looks_on: false, quiet_until: at(0), told: None };
        assert_eq!(teller.line(at(1), &standing("a", "1 %")).as_deref(), Some("1 %\n"));
        assert_eq!(teller.line(at(2), &standing("a", "2 %")), None);
        assert_eq!(teller.line(at(3), &standing("b", "3 %")).as_deref(), Some("3 %\n"));
        assert_eq!(teller.line(at(62), &standing("b", "4 %")), None);
        assert_eq!(teller.line(at(63), &standing("b", "5 %")).as_deref(), Some("5 %\n"));
    }

    #[test]
    fn a_terminal_gets_one_line_with_a_bar_that_is_written_over() {
        let mut teller = Teller { looks_on: true, quiet_until: at(2), told: None };
        assert_eq!(teller.line(at(1), &standing("a", "1 %")), None, "it may be done in a moment");
        for second in [2, 3] {
            let line = teller.line(at(second), &standing("a", "1 %")).unwrap();
            assert!(line.starts_with("\r\x1b[2K[####") && line.ends_with("] 1 %"), "{line:?}");
        }
    }

    #[test]
    fn a_speed_is_told_once_it_means_something() {
        let mut speed = Speed::default();
        assert_eq!(speed.at(at(5), 100 << 20), "");
        assert_eq!(speed.at(at(7), 120 << 20), ", 10.0 MiB/s");
        assert_eq!(speed.at(at(9), 0), ", 0 B/s", "it has begun anew");
    }
}
