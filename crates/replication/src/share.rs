//! How the streams to one peer share its link.
//!
//! Deficit round robin: a stream that wants to send waits its turn, and in each turn is given credit by its
//! weight, the priority of its group (1–9); a stream that only syncs gives way with an eighth of its weight.
//! What all may have in flight together is bounded, so that weights hold where the link itself is the limit;
//! a token bucket for the peer, and one for each group that has a limit, hold where the operator set one.
//! No clock is read here, and nothing is sent: whoever holds this is told who may send next.

use std::collections::{BTreeMap, VecDeque};
use types::Monotonic;
use types::limits::{BATCH_BYTES_TARGET, PEER_WINDOW_BYTES};

/// Credit of weight one in each turn, in bytes.
const QUANTUM: u64 = 16 << 10;
/// Live writes weigh so much more than a sync.
const LIVE_FACTOR: u64 = 8;

/// A stream of a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// The link to one peer.
#[derive(Debug, Default)]
pub struct Share {
    bucket: Bucket,
    groups: BTreeMap<String, Bucket>,
    streams: BTreeMap<StreamId, Stream>,
    /// Those that wait, the next first.
    turn: VecDeque<StreamId>,
    in_flight: u64,
}

#[derive(Debug, Default)]
struct Stream {
    group: String,
    weight: u64,
    deficit: u64,
    /// Bytes it wants to send, about.
    wants: Option<u64>,
    in_flight: u64,
}

#[derive(Debug, Default)]
struct Bucket {
    /// No limit where it is zero.
    bytes_per_second: u64,
    tokens: f64,
    filled_at: Monotonic,
}

impl Share {
    /// All streams together, in bytes a second; 0 for no limit.
    pub fn set_limit(&mut self, bytes_per_second: u64) {
        self.bucket.bytes_per_second = bytes_per_second;
    }

    /// All streams of a group together; 0 for no limit.
    pub fn set_group_limit(&mut self, group: &str, bytes_per_second: u64) {
        self.groups.entry(group.to_owned()).or_default().bytes_per_second = bytes_per_second;
    }

    /// The most bytes a batch should have, so that one does not take much longer than a tenth of a second.
    pub fn batch_bytes(&self, group: &str) -> usize {
        let limits = [Some(&self.bucket), self.groups.get(group)].into_iter().flatten();
        let limits = limits.map(|bucket| bucket.bytes_per_second).filter(|&limit| limit > 0);
        limits.min().map_or(BATCH_BYTES_TARGET, |limit| {
            usize::try_from(limit / 10).unwrap_or(usize::MAX).clamp(64 << 10, BATCH_BYTES_TARGET)
        })
    }

    /// A stream wants to send about so many bytes. It waits until it is among [`Share::grants`].
    pub fn want(&mut self, id: StreamId, group: &str, priority: u8, syncs_only: bool, bytes: u64) {
        let stream = self.streams.entry(id).or_default();
        stream.weight = u64::from(priority) * if syncs_only { 1 } else { LIVE_FACTOR };
        if stream.group != group {
            group.clone_into(&mut stream.group);
        }
        if stream.wants.replace(bytes.max(1)).is_none() {
            self.turn.push_back(id);
        }
    }

    /// Those that may send now; each has had its wish taken as sent, and says with [`Share::sent`] how many
    /// bytes it really was.
    pub fn grants(&mut self, now: Monotonic) -> Vec<(StreamId, u64)> {
        self.bucket.fill(now);
        self.groups.values_mut().for_each(|bucket| bucket.fill(now));
        let mut granted = Vec::new();
        let mut passed_over = 0;
        while passed_over < self.turn.len() {
            if self.in_flight >= PEER_WINDOW_BYTES || !self.bucket.has_tokens() {
                break;
            }
            let id = self.turn.pop_front().expect("not all were passed over");
            let stream = self.streams.get_mut(&id).expect("who waits is known");
            let group = self.groups.get_mut(&stream.group);
            if group.as_ref().is_some_and(|group| !group.has_tokens()) {
                self.turn.push_back(id);
                passed_over += 1;
                continue;
            }
            passed_over = 0;
            let wants = stream.wants.expect("who waits wants something");
            stream.deficit += QUANTUM * stream.weight;
            if stream.deficit < wants && !self.turn.is_empty() {
                self.turn.push_back(id);
                continue;
            }
            stream.deficit = stream.deficit.saturating_sub(wants);
            stream.wants = None;
            stream.in_flight += wants;
            self.in_flight += wants;
            self.bucket.spend(wants as i64);
            if let Some(group) = group {
                group.spend(wants as i64);
            }
            granted.push((id, wants));
        }
        granted
    }

    /// What was granted as `granted` bytes was sent as `bytes`; zero where nothing was.
    pub fn sent(&mut self, id: StreamId, granted: u64, bytes: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let more = bytes as i64 - granted as i64;
        stream.in_flight = (stream.in_flight + bytes).saturating_sub(granted);
        self.in_flight = (self.in_flight + bytes).saturating_sub(granted);
        self.bucket.spend(more);
        if let Some(group) = self.groups.get_mut(&stream.group) {
            group.spend(more);
        }
    }

    /// So many bytes of a stream are acknowledged.
    pub fn acknowledged(&mut self, id: StreamId, bytes: u64) {
        if let Some(stream) = self.streams.get_mut(&id) {
            let bytes = bytes.min(stream.in_flight);
            stream.in_flight -= bytes;
            self.in_flight -= bytes;
        }
    }

    /// The stream's connection is gone: nothing of it is in flight, and it waits for nothing.
    pub fn leave(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.remove(&id) {
            self.in_flight -= stream.in_flight;
            self.turn.retain(|waiting| *waiting != id);
        }
    }
}

impl Bucket {
    fn fill(&mut self, now: Monotonic) {
        let elapsed = now.since(self.filled_at).as_secs_f64();
        self.filled_at = now;
        let rate = self.bytes_per_second as f64;
        self.tokens = (self.tokens + elapsed * rate).min(rate / 10.0);
    }

    fn has_tokens(&self) -> bool {
        self.bytes_per_second == 0 || self.tokens > 0.0
    }

    fn spend(&mut self, bytes: i64) {
        if self.bytes_per_second > 0 {
            self.tokens -= bytes as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const MIB: u64 = 1 << 20;

    fn at(millis: u64) -> Monotonic {
        Monotonic(Duration::from_millis(millis))
    }

    /// Bytes each of the streams sends in so many rounds, all of them always wanting more and the peer
    /// acknowledging at once.
    fn play(share: &mut Share, streams: &[(u64, u8, bool)], rounds: u64, step_millis: u64) -> Vec<u64> {
        let mut sent = vec![0; streams.len()];
        for round in 0..rounds {
            for &(id, priority, syncs) in streams {
                share.want(StreamId(id), if id == 9 { "slow" } else { "fast" }, priority, syncs, MIB);
            }
            for (id, bytes) in share.grants(at(round * step_millis)) {
                let place = streams.iter().position(|stream| stream.0 == id.0).expect("a stream of ours");
                sent[place] += bytes;
                share.sent(id, bytes, bytes);
                share.acknowledged(id, bytes);
            }
        }
        sent
    }

    #[test]
    fn a_limit_is_kept_and_shared_by_weight() {
        let mut share = Share::default();
        share.set_limit(100 * MIB);
        let sent = play(&mut share, &[(1, 2, false), (2, 6, false)], 10_000, 10);
        let total = sent[0] + sent[1];
        assert!((9_900 * MIB..10_100 * MIB).contains(&total), "{} MiB in 100 s", total / MIB);
        let ratio = sent[1] as f64 / sent[0] as f64;
        assert!((2.5..3.5).contains(&ratio), "{ratio}");
    }

    #[test]
    fn a_sync_gives_way_and_is_not_starved() {
        let mut share = Share::default();
        share.set_limit(100 * MIB);
        let sent = play(&mut share, &[(1, 5, false), (2, 5, true)], 10_000, 10);
        let ratio = sent[0] as f64 / sent[1] as f64;
        assert!((6.0..10.0).contains(&ratio), "{ratio}");
    }

    #[test]
    fn a_groups_own_limit_leaves_the_rest_to_others() {
        let mut share = Share::default();
        share.set_limit(100 * MIB);
        share.set_group_limit("slow", 10 * MIB);
        let sent = play(&mut share, &[(9, 9, false), (2, 1, false)], 10_000, 10);
        assert!((900 * MIB..1_100 * MIB).contains(&sent[0]), "{} MiB in 100 s", sent[0] / MIB);
        assert!(sent[1] > 8_800 * MIB, "{} MiB in 100 s", sent[1] / MIB);
    }

    #[test]
    fn without_a_limit_only_what_is_in_flight_is_bounded() {
        let mut share = Share::default();
        let mut granted = 0;
        for id in 0..200 {
            share.want(StreamId(id), "group", 5, false, MIB);
        }
        for (_, bytes) in share.grants(at(0)) {
            granted += bytes;
        }
        assert_eq!(granted, PEER_WINDOW_BYTES);
        share.acknowledged(StreamId(0), MIB);
        assert_eq!(share.grants(at(0)).len(), 1);
        share.leave(StreamId(1));
        assert_eq!(share.grants(at(0)).len(), 1, "what a lost link had in flight is free");
    }
}
