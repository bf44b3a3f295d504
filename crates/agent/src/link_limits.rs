//! How much of a link the operator gives to replication, and when.

use serde::Deserialize;
use types::WallTime;

const DAY_MINUTES: u32 = 24 * 60;

/// A part of the day with a limit of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LimitWindow {
    /// Minutes after midnight, UTC; a window whose end is not after its beginning goes over midnight.
    from: u32,
    to: u32,
    bytes_per_second: u64,
}

/// As `agent.toml` has it.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawLimitWindow {
    from: String,
    to: String,
    bytes_per_second: u64,
}

/// What holds for the links to peers.
#[derive(Debug, Clone, Default)]
pub struct LinkConfig {
    /// All streams to one peer together, in bytes a second; 0 for no limit.
    pub(crate) bytes_per_second: u64,
    pub(crate) windows: Vec<LimitWindow>,
}

impl LinkConfig {
    /// The limit at a time: the first window it lies in, else the general one; 0 for none.
    pub(crate) fn limit_at(&self, now: WallTime) -> u64 {
        let minutes = now.0.div_euclid(60_000_000).rem_euclid(i64::from(DAY_MINUTES)) as u32;
        let window = self.windows.iter().find(|window| window.holds_at(minutes));
        window.map_or(self.bytes_per_second, |window| window.bytes_per_second)
    }
}

impl LimitWindow {
    /// Reads a window, or says what is wrong with it.
    pub(crate) fn parse(raw: &RawLimitWindow) -> Result<Self, String> {
        Ok(Self {
            from: parse_time(&raw.from)?,
            to: parse_time(&raw.to)?,
            bytes_per_second: raw.bytes_per_second,
        })
    }

    fn holds_at(&self, minutes: u32) -> bool {
        if self.from < self.to {
            (self.from..self.to).contains(&minutes)
        } else {
            minutes >= self.from || minutes < self.to
        }
    }
}

fn parse_time(text: &str) -> Result<u32, String> {
    let refused = || format!("{text:?} is no time of day: use HH:MM, in UTC");
    let (hours, minutes) = text.split_once(':').ok_or_else(refused)?;
    let number = |part: &str| if part.len() == 2 { part.parse::<u32>().ok() } else { None };
    match (number(hours), number(minutes)) {
        (Some(hours @ 0..=23), Some(minutes @ 0..=59)) => Ok(hours * 60 + minutes),
        _ => Err(refused()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(from: &str, to: &str, bytes_per_second: u64) -> LimitWindow {
        LimitWindow::parse(&RawLimitWindow { from: from.into(), to: to.into(), bytes_per_second }).unwrap()
    }

    fn at(hours: i64, minutes: i64) -> WallTime {
        WallTime((86_400 * 20_000 + hours * 3600 + minutes * 60) * 1_000_000)
    }

    #[test]
    fn the_window_of_the_hour_holds_and_else_the_general_limit() {
        let windows = vec![window("08:00", "18:30", 10), window("22:00", "06:00", 0)];
        let config = LinkConfig { bytes_per_second: 50, windows };
        let limits =
            [(8, 0), (18, 29), (18, 30), (23, 0), (5, 59), (6, 0)].map(|(h, m)| config.limit_at(at(h, m)));
        assert_eq!(limits, [10, 10, 50, 0, 0, 50]);
    }

    #[test]
    fn a_time_that_is_none_is_named() {
        for bad in ["8:00", "24:00", "12:60", "noon", "12:0"] {
            assert!(parse_time(bad).unwrap_err().contains(bad));
        }
    }
}
