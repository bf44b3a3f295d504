//! Figures: what was measured beside what, the goal, and whether it holds.

use serde::Serialize;

/// What a figure must be.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
    /// Measured for its own sake.
    None,
}

/// One number asked for.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figure {
    pub(crate) name: String,
    /// The median of the rounds.
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// The median of what it is measured against, in the same unit.
    pub(crate) reference: Option<f64>,
    pub(crate) ratio: Option<f64>,
    pub(crate) goal: Option<String>,
    /// Whether the ratio, or the value where there is none, meets the goal.
    pub(crate) holds: Option<bool>,
}

impl Figure {
    /// A figure against a reference measured beside it, round by round.
    pub(crate) fn against(
        name: &str,
        values: &[f64],
        references: &[f64],
        unit: &'static str,
        goal: Goal,
    ) -> Self {
        let (value, reference) = (median(values), median(references));
        let ratio = value / reference;
        Self::new(name, value, unit, Some(reference), Some(ratio), goal)
    }

    /// A figure that stands alone.
    pub(crate) fn alone(name: &str, values: &[f64], unit: &'static str, goal: Goal) -> Self {
        Self::new(name, median(values), unit, None, None, goal)
    }

    fn new(
        name: &str,
        value: f64,
        unit: &'static str,
        reference: Option<f64>,
        ratio: Option<f64>,
        goal: Goal,
    ) -> Self {
        let judged = ratio.unwrap_or(value);
        let (goal, holds) = match goal {
            Goal::AtLeast(least) => (Some(format!("≥ {least}")), Some(judged >= least)),
            Goal::AtMost(most) => (Some(format!("≤ {most}")), Some(judged <= most)),
            Goal::None => (None, None),
        };
        Self { name: name.to_owned(), value, unit, reference, ratio, goal, holds }
    }

    /// A line for a person.
    pub(crate) fn line(&self) -> String {
        let number = |value: f64| if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.3}") };
        let reference = self.reference.map_or(String::new(), |reference| {
            format!(" against {} {}: {:.2}", number(reference), self.unit, self.ratio.unwrap_or(0.0))
        });
        let verdict = match (&self.goal, self.holds) {
            (Some(goal), Some(true)) => format!("  (goal {goal}: holds)"),
            (Some(goal), _) => format!("  (goal {goal}: MISSED)"),
            (None, _) => String::new(),
        };
        format!("{:58} {} {}{reference}{verdict}", self.name, number(self.value), self.unit)
    }
}

/// The middle one of `values`.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

/// All figures of a bench, as its last line says them.
#[derive(Debug, Serialize)]
pub(crate) struct Findings {
    pub(crate) bench: &'static str,
    pub(crate) machine: String,
    pub(crate) figures: Vec<Figure>,
}
