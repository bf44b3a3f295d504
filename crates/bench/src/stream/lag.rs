//! How old the oldest write is that is not yet durable at the recovery side, under a steady load; and RPO
//! now with a checkpoint every second.

use super::headline::incompressible;
use super::pair::{Pair, write};
use crate::Run;
use crate::clock::Moment;
use crate::figures::{Figure, Goal};
use anyhow::Result;
use api::ProtectSettings;
use std::collections::VecDeque;
use std::time::Duration;

const DISK_BYTES: u64 = 16 << 30;
const WRITE: usize = 64 << 10;
const BYTES_PER_SECOND: f64 = 100e6;

pub(crate) fn run(run: &Run) -> Result<Vec<Figure>> {
    let source = incompressible();
    let pair = Pair::start(&run.folder.join("lag"), "")?;
    let settings = ProtectSettings { checkpoint_interval_seconds: Some(1), ..ProtectSettings::default() };
    let capture = pair.protect("vm", DISK_BYTES, settings)?;
    let seconds = if run.quick { 5.0 } else { 30.0 };
    let (mut ages, mut rpo) = (Vec::new(), Vec::new());
    // Each write with the moment it was given to the capture.
    let mut waiting: VecDeque<(types::WriteSeq, Moment)> = VecDeque::new();
    let (begun, mut number, mut looked_at) = (Moment::now(), 0u64, 0.0);
    while begun.elapsed() < seconds {
        while (number as f64) * (WRITE as f64) < begun.elapsed() * BYTES_PER_SECOND {
            let from = (number as usize * WRITE) % source.len();
            write(&capture, (number * WRITE as u64) % DISK_BYTES, &source.slice(from..from + WRITE))?;
            waiting.push_back((capture.status().last, Moment::now()));
            number += 1;
        }
        let released = capture.status().released;
        while waiting.front().is_some_and(|(seq, _)| *seq <= released) {
            waiting.pop_front();
        }
        ages.push(waiting.front().map_or(0.0, |(_, at)| at.elapsed()));
        if begun.elapsed() - looked_at > 0.1 {
            looked_at = begun.elapsed();
            rpo.extend(pair.vm("vm")?.rpo_now_seconds);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(vec![
        Figure::alone(
            "age of the oldest write under way, 100 MB/s, p99",
            &[p99(&mut ages)],
            "s",
            Goal::AtMost(1.0),
        ),
        Figure::alone("RPO now, a checkpoint every second, p99", &[p99(&mut rpo)], "s", Goal::AtMost(1.5)),
    ])
}

pub(super) fn p99(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get((values.len() * 99 / 100).min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
