//! What the operator's command has been told of alerts, and what it is to be told next. Decided here, without I/O.
//!
//! The command is told of each alert that begins and of each that ends. What it was told is written down only once it has
//! said that it knows, so after a crash it is told twice rather than not at all.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What becomes of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Event {
    Raised,
    Cleared,
}

/// As many at a time: whatever happens, the command is given lines that it can read at once.
const LINES_MAX: usize = 1000;

/// The alerts that the command has been told stand, by how they are written down.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told {
    standing: BTreeMap<String, api::Alert>,
}

/// One alert that has begun or ended since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct News {
    key: String,
    pub(super) event: Event,
    pub(super) alert: api::Alert,
}

impl Told {
    /// What it does not know yet: what has ended first. Of what is `unknown` it is told nothing, for after a restart
    /// an alert may stand that nobody has looked at since.
    pub(super) fn news(
        &self,
        standing: &BTreeMap<String, api::Alert>,
        unknown: &BTreeSet<String>,
    ) -> Vec<News> {
        let news = |event, (key, alert): (&String, &api::Alert)| News {
            key: key.clone(),
            event,
            alert: alert.clone(),
        };
        let ended =
            self.standing.iter().filter(|(key, _)| !standing.contains_key(*key) && !unknown.contains(*key));
        let begun = standing.iter().filter(|(key, _)| !self.standing.contains_key(*key));
        let ended = ended.map(|row| news(Event::Cleared, row));
        ended.chain(begun.map(|row| news(Event::Raised, row))).take(LINES_MAX).collect()
    }

    /// It has been told.
    pub(super) fn note(&mut self, news: Vec<News>) {
        for News { key, event, alert } in news {
            match event {
                Event::Raised => drop(self.standing.insert(key, alert)),
                Event::Cleared => drop(self.standing.remove(&key)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert(subject: &str) -> (String, api::Alert) {
        let word = || "x".to_owned();
        let row = api::Alert {
            kind: word(),
            subject: subject.to_owned(),
            severity: word(),
            since: word(),
            age_seconds: 0,
            text: word(),
            to_do: word(),
        };
        (format!("x {subject}"), row)
    }

    fn said(news: &[News]) -> Vec<(Event, &str)> {
        news.iter().map(|news| (news.event, news.alert.subject.as_str())).collect()
    }

    #[test]
    fn each_alert_is_told_once_when_it_begins_and_once_when_it_ends() {
        let mut told = Told::default();
        let both = BTreeMap::from([alert("a"), alert("b")]);
        let news = told.news(&both, &BTreeSet::new());
        assert_eq!(said(&news), [(Event::Raised, "a"), (Event::Raised, "b")]);
        assert_eq!(told.news(&both, &BTreeSet::new()), news, "until it is known to be told");
        told.note(news);
        assert!(told.news(&both, &BTreeSet::new()).is_empty());
        let other = BTreeMap::from([alert("b"), alert("c")]);
        let news = told.news(&other, &BTreeSet::new());
        assert_eq!(said(&news), [(Event::Cleared, "a"), (Event::Raised, "c")]);
        told.note(news);
        assert!(told.news(&other, &BTreeSet::new()).is_empty());
    }

    #[test]
    fn nothing_is_told_to_have_ended_that_nobody_has_looked_at_since_a_restart() {
        let mut told = Told::default();
        let stood = BTreeMap::from([alert("a"), alert("b")]);
        told.note(told.news(&stood, &BTreeSet::new()));
        let mut unknown = BTreeSet::from(["x a".to_owned(), "x b".to_owned()]);
        assert!(told.news(&BTreeMap::new(), &unknown).is_empty());
        unknown.remove("x b");
        assert_eq!(said(&told.news(&BTreeMap::new(), &unknown)), [(Event::Cleared, "b")]);
    }

    #[test]
    fn of_very_many_alerts_each_is_told_in_its_turn() {
        let (mut told, mut lines) = (Told::default(), 0);
        let stood: BTreeMap<_, _> = (0..2 * LINES_MAX + 1).map(|n| alert(&n.to_string())).collect();
        loop {
            let news = told.news(&stood, &BTreeSet::new());
            if news.is_empty() {
                break;
            }
            assert!(news.len() <= LINES_MAX);
            lines += news.len();
            told.note(news);
        }
        assert_eq!(lines, stood.len());
    }
}
