//! Which codec a batch is compressed with: what the data and this machine have shown to pay.
//!
//! A stream that keeps up compresses with LZ4 where that saves a fifth, for the journal's sake, and sends
//! raw where it does not. A stream that lags takes whatever brings a byte over soonest: a codec costs
//! `max(its CPU time, its share of the link's time)`, as measured; compressing and sending overlap.

use batch::Codec;
use std::time::Duration;

/// How the operator wants batches compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Always(Codec),
    /// As measured.
    Adaptive,
}

/// Every so many batches another codec is tried, so that what it costs stays known.
const PROBE_EVERY: u32 = 64;
/// LZ4 is worth its while on an idle link where it saves this much.
const RATIO_WORTH: f64 = 0.8;
/// A codec that costs the processor more has to be sooner by more than this: data that does not compress takes
/// the link as long with any.
const AS_SOON: f64 = 1.05;
/// The weight of a new measurement.
const NEW: f64 = 0.2;
/// By what they cost the processor.
const CODECS: [Codec; 3] = [Codec::Raw, Codec::Lz4, Codec::Zstd];

/// Chooses for one stream.
#[derive(Debug, Clone)]
pub struct CodecChooser {
    wanted: Compression,
    costs: [Option<Cost>; 3],
    batches: u32,
    /// Bytes a second, measured while the stream waited for the link.
    link: Option<f64>,
}

#[derive(Debug, Clone, Copy)]
struct Cost {
    seconds_per_byte: f64,
    /// Stored bytes for each plain one.
    ratio: f64,
}

impl CodecChooser {
    pub fn new(wanted: Compression) -> Self {
        Self { wanted, costs: [None; 3], batches: 0, link: None }
    }

    /// The codec of the next batch; `lags`: writes wait for the link.
    pub fn choose(&mut self, lags: bool) -> Codec {
        let Compression::Adaptive = self.wanted else {
            let Compression::Always(codec) = self.wanted else { unreachable!("one of two") };
            return codec;
        };
        self.batches += 1;
        let unknown = CODECS.into_iter().find(|&codec| self.cost(codec).is_none());
        if let Some(codec) = unknown {
            return codec;
        }
        if self.batches.is_multiple_of(PROBE_EVERY) {
            return CODECS[(self.batches / PROBE_EVERY) as usize % CODECS.len()];
        }
        if !lags {
            let pays = self.cost(Codec::Lz4).is_some_and(|cost| cost.ratio <= RATIO_WORTH);
            return if pays { Codec::Lz4 } else { Codec::Raw };
        }
        let soonest = CODECS.into_iter().map(|codec| self.seconds(codec)).fold(f64::INFINITY, f64::min);
        let cheapest = CODECS.into_iter().find(|&codec| self.seconds(codec) <= soonest * AS_SOON);
        cheapest.expect("there are three")
    }

    /// A batch was encoded: `plain` bytes of payload became `stored`.
    pub fn note_encoded(&mut self, codec: Codec, plain: usize, stored: usize, took: Duration) {
        if plain == 0 {
            return;
        }
        let new =
            Cost { seconds_per_byte: took.as_secs_f64() / plain as f64, ratio: stored as f64 / plain as f64 };
        let cost = &mut self.costs[codec as usize];
        *cost = Some(cost.map_or(new, |old| Cost {
            seconds_per_byte: old.seconds_per_byte * (1.0 - NEW) + new.seconds_per_byte * NEW,
            ratio: old.ratio * (1.0 - NEW) + new.ratio * NEW,
        }));
    }

    /// The link has carried so many bytes in a time in which it was never idle.
    pub fn note_link(&mut self, bytes: u64, took: Duration) {
        if took.is_zero() {
            return;
        }
        let new = bytes as f64 / took.as_secs_f64();
        self.link = Some(self.link.map_or(new, |old| old * (1.0 - NEW) + new * NEW));
    }

    fn cost(&self, codec: Codec) -> Option<Cost> {
        self.costs[codec as usize]
    }

    /// Seconds until a plain byte is over.
    fn seconds(&self, codec: Codec) -> f64 {
        let Some(cost) = self.cost(codec) else { return f64::INFINITY };
        cost.seconds_per_byte.max(self.link.map_or(0.0, |link| cost.ratio / link.max(1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// Raw at 5 GB/s, LZ4 at 500 MB/s and zstd at 200 MB/s, with these ratios.
    fn measured(lz4: f64, zstd: f64, link: f64) -> CodecChooser {
        let mut chooser = CodecChooser::new(Compression::Adaptive);
        for (codec, ratio, rate) in [(Codec::Raw, 1.0, 5e9), (Codec::Lz4, lz4, 5e8), (Codec::Zstd, zstd, 2e8)]
        {
            assert_eq!(chooser.choose(false), codec, "each is tried once");
            let took = Duration::from_secs_f64(MIB as f64 / rate);
            chooser.note_encoded(codec, MIB, (MIB as f64 * ratio) as usize, took);
        }
        chooser.note_link(link as u64, Duration::from_secs(1));
        chooser
    }

    #[test]
    fn a_slow_link_is_worth_the_densest_codec() {
        assert_eq!(measured(0.5, 0.3, 1e7).choose(true), Codec::Zstd);
    }

    #[test]
    fn a_fast_link_is_not() {
        assert_eq!(measured(0.5, 0.3, 3e9).choose(true), Codec::Raw);
        assert_eq!(measured(0.5, 0.45, 2e8).choose(true), Codec::Lz4);
    }

    #[test]
    fn what_does_not_shrink_is_sent_raw() {
        assert_eq!(measured(1.0, 1.0, 1e8).choose(true), Codec::Raw);
        assert_eq!(measured(1.0, 1.0, 1e8).choose(false), Codec::Raw);
        assert_eq!(measured(0.999, 0.998, 1e8).choose(true), Codec::Raw);
    }

    #[test]
    fn the_operators_word_is_obeyed() {
        assert_eq!(CodecChooser::new(Compression::Always(Codec::Zstd)).choose(false), Codec::Zstd);
    }
}
