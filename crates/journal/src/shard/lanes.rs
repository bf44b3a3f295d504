//! Whose turn it is to be framed and to be written, decided without threads, clock or disk.
//!
//! Each journal has a lane: what was handed in, in its order, and what of that is framed. One thread at a time frames for a
//! lane, and one writes for it, so that its order holds. What holds beside: a thread that does not come back is not counted
//! any more, and whoever is behind it in the same lane waits; all others go on, on the same disk as long as few threads stand
//! there. So there are never more threads than [`Lanes::new`]'s `count` of each role, and [`STUCK_PER_DISK_MAX`] for a disk.
//!
//! ```text
//! push ──▶ queue ── take_to_frame, framed ──▶ framed ── take_to_write, written ──▶ (reported)
//! ```

use std::collections::{BTreeMap, VecDeque};

/// Groups that are framed and not taken to be written, for each thread that writes; as many of one lane are synced together.
const FRAMED_MAX: usize = 4;
/// Threads of each role that may stand at one disk: who else comes there waits.
const STUCK_PER_DISK_MAX: usize = 8;
/// Who was seen at the same work at so many looks in a row stands there.
const LOOKS_MAX: u32 = 2;

/// What a thread does for journals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    Frame,
    Write,
}

/// One journal's work, of which a thread has the turn until it says that it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn(u64);

#[derive(Debug)]
struct Lane<I, F> {
    disk: u64,
    queue: VecDeque<I>,
    framed: VecDeque<F>,
    framing: Option<Turn>,
    writing: Option<Turn>,
    /// Since when it waits to be framed and to be written, counted in turns.
    waits_since: [u64; 2],
}

impl<I, F> Lane<I, F> {
    fn is_done(&self) -> bool {
        let is_left = !self.queue.is_empty() || !self.framed.is_empty();
        !is_left && self.framing.is_none() && self.writing.is_none()
    }
}

#[derive(Debug)]
struct Running {
    role: Role,
    lane: u64,
    disk: u64,
    looks: u32,
}

/// All lanes, and the threads that have turns there. `I` is what is handed in, `F` what is framed.
#[derive(Debug)]
pub(super) struct Lanes<I, F> {
    count: usize,
    lanes: BTreeMap<u64, Lane<I, F>>,
    running: BTreeMap<Turn, Running>,
    /// Threads of each role.
    threads: [usize; 2],
    turns: u64,
    /// Nothing more is handed in.
    pub(super) has_ended: bool,
}

impl<I, F> Lanes<I, F> {
    /// For `count` threads of each role that get on.
    pub(super) fn new(count: usize) -> Self {
        let (lanes, running) = (BTreeMap::new(), BTreeMap::new());
        Self { count, lanes, running, threads: [0; 2], turns: 0, has_ended: false }
    }

    /// Nothing is left to be done.
    pub(super) fn is_idle(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Something was handed in for a journal, which lies on `disk`.
    pub(super) fn push(&mut self, lane: u64, disk: u64, item: I) {
        let now = self.next_turn().0;
        let lane = self.lanes.entry(lane).or_insert_with(|| Lane {
            disk,
            queue: VecDeque::new(),
            framed: VecDeque::new(),
            framing: None,
            writing: None,
            waits_since: [now; 2],
        });
        lane.queue.push_back(item);
    }

    /// Takes what `group` takes of the queue of the lane that has waited longest, to be framed.
    pub(super) fn take_to_frame<G>(
        &mut self,
        group: impl FnOnce(&mut VecDeque<I>) -> G,
    ) -> Option<(Turn, G)> {
        let key = self.next(Role::Frame)?;
        let turn = self.begin(Role::Frame, key);
        let lane = self.lanes.get_mut(&key).expect("it was found just now");
        Some((turn, group(&mut lane.queue)))
    }

    /// It is framed; nothing is to be written where that failed.
    pub(super) fn framed(&mut self, turn: Turn, framed: Option<F>) {
        let key = self.end(turn);
        let lane = self.lanes.get_mut(&key).expect("a lane stays while it has turns");
        lane.framed.extend(framed);
        self.forget(key);
    }

    /// Takes all that is framed of the lane that has waited longest, to be written.
    pub(super) fn take_to_write(&mut self) -> Option<(Turn, Vec<F>)> {
        let key = self.next(Role::Write)?;
        let turn = self.begin(Role::Write, key);
        let lane = self.lanes.get_mut(&key).expect("it was found just now");
        Some((turn, lane.framed.drain(..).collect()))
    }

    /// It is written, or was not and never will be.
    pub(super) fn written(&mut self, turn: Turn) {
        let key = self.end(turn);
        self.forget(key);
    }

    /// Whether a thread of this role has nothing to come any more.
    pub(super) fn is_over(&self, role: Role) -> bool {
        let has_work = |lane: &Lane<I, F>| role == Role::Write || !lane.queue.is_empty();
        self.has_ended && !self.lanes.values().any(has_work)
    }

    /// A thread of this role begins.
    pub(super) fn add_thread(&mut self, role: Role) {
        self.threads[role as usize] += 1;
    }

    /// A thread of this role is gone.
    pub(super) fn drop_thread(&mut self, role: Role) {
        self.threads[role as usize] -= 1;
    }

    /// Whether another took the place of a thread that stood somewhere, and has come back now.
    pub(super) fn is_surplus(&self, role: Role) -> bool {
        self.get_on(role) > self.count
    }

    /// Whether there is work for one more thread, in the place of one that stands somewhere.
    pub(super) fn wants_thread(&self, role: Role) -> bool {
        self.get_on(role) < self.count && self.next(role).is_some()
    }

    /// Looks at whoever has a turn, at equal times: who has it for longer stands there.
    pub(super) fn look(&mut self) {
        for running in self.running.values_mut() {
            running.looks = running.looks.saturating_add(1);
        }
    }

    /// Threads of this role that do not stand somewhere.
    fn get_on(&self, role: Role) -> usize {
        self.threads[role as usize] - self.stuck(role).count()
    }

    fn stuck(&self, role: Role) -> impl Iterator<Item = &Running> {
        self.running.values().filter(move |running| running.role == role && running.looks >= LOOKS_MAX)
    }

    fn has_room(&self, role: Role, disk: u64) -> bool {
        self.stuck(role).filter(|running| running.disk == disk).count() < STUCK_PER_DISK_MAX
    }

    /// Whose turn is next.
    fn next(&self, role: Role) -> Option<u64> {
        if role == Role::Frame && self.framed_ahead() >= FRAMED_MAX * self.count {
            return None;
        }
        let waits = |lane: &Lane<I, F>| match role {
            Role::Frame => lane.framing.is_none() && !lane.queue.is_empty() && lane.framed.len() < FRAMED_MAX,
            Role::Write => lane.writing.is_none() && !lane.framed.is_empty(),
        };
        let waiting = self.lanes.iter().filter(|(_, lane)| waits(lane) && self.has_room(role, lane.disk));
        waiting.min_by_key(|(_, lane)| lane.waits_since[role as usize]).map(|(key, _)| *key)
    }

    /// Groups that wait to be written and will be: what stands behind a thread that stands is none of them.
    fn framed_ahead(&self) -> usize {
        let stands = |turn: &Turn| self.running.get(turn).is_some_and(|running| running.looks >= LOOKS_MAX);
        let goes_on = |lane: &&Lane<I, F>| {
            !lane.writing.as_ref().is_some_and(stands) && self.has_room(Role::Write, lane.disk)
        };
        self.lanes.values().filter(goes_on).map(|lane| lane.framed.len()).sum()
    }

    fn next_turn(&mut self) -> Turn {
        self.turns += 1;
        Turn(self.turns)
    }

    fn begin(&mut self, role: Role, key: u64) -> Turn {
        let turn = self.next_turn();
        let lane = self.lanes.get_mut(&key).expect("only a lane that is there has a turn");
        match role {
            Role::Frame => lane.framing = Some(turn),
            Role::Write => lane.writing = Some(turn),
        }
        self.running.insert(turn, Running { role, lane: key, disk: lane.disk, looks: 0 });
        turn
    }

    /// The lane whose turn has ended; it waits again from now on.
    fn end(&mut self, turn: Turn) -> u64 {
        let Running { role, lane: key, .. } = self.running.remove(&turn).expect("a turn ends once");
        let now = self.next_turn().0;
        let lane = self.lanes.get_mut(&key).expect("a lane stays while it has turns");
        match role {
            Role::Frame => lane.framing = None,
            Role::Write => lane.writing = None,
        }
        lane.waits_since[role as usize] = now;
        key
    }

    fn forget(&mut self, key: u64) {
        if self.lanes.get(&key).is_some_and(Lane::is_done) {
            self.lanes.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    type Numbers = Lanes<u32, u32>;

    /// Frames one of the lane that is next.
    fn frame(lanes: &mut Numbers) -> Option<u32> {
        let (turn, item) = lanes.take_to_frame(|queue| queue.pop_front().unwrap())?;
        lanes.framed(turn, Some(item));
        Some(item)
    }

    fn stand(lanes: &mut Numbers) {
        (0..LOOKS_MAX).for_each(|_| lanes.look());
    }

    #[test]
    fn a_journal_has_one_thread_of_each_role_and_its_order() {
        let mut lanes = Numbers::new(2);
        (0..4).for_each(|item| lanes.push(1, 0, item));
        let (framing, first) = lanes.take_to_frame(|queue| queue.pop_front().unwrap()).unwrap();
        assert_eq!((first, frame(&mut lanes)), (0, None));
        lanes.framed(framing, Some(first));
        let (writing, written) = lanes.take_to_write().unwrap();
        assert_eq!((written, frame(&mut lanes), frame(&mut lanes)), (vec![0], Some(1), Some(2)));
        assert!(lanes.take_to_write().is_none(), "what is behind waits");
        lanes.written(writing);
        let (writing, written) = lanes.take_to_write().unwrap();
        assert_eq!(written, [1, 2]);
        lanes.written(writing);
        assert!(!lanes.is_idle());
        assert_eq!(frame(&mut lanes), Some(3));
        let (writing, _) = lanes.take_to_write().unwrap();
        lanes.written(writing);
        assert!(lanes.is_idle());
    }

    #[test]
    fn journals_take_turns() {
        let mut lanes = Numbers::new(1);
        [10, 11, 20, 21].into_iter().for_each(|item| lanes.push(u64::from(item / 10), 0, item));
        assert_eq!([0; 4].map(|_| frame(&mut lanes).unwrap()), [10, 20, 11, 21]);
    }

    #[test]
    fn a_thread_that_stands_is_replaced_and_goes_once_it_has_come_back() {
        let mut lanes = Numbers::new(1);
        lanes.add_thread(Role::Write);
        lanes.push(1, 0, 1);
        frame(&mut lanes);
        let (stands, _) = lanes.take_to_write().unwrap();
        lanes.push(2, 0, 2);
        frame(&mut lanes);
        lanes.look();
        assert!(!lanes.wants_thread(Role::Write), "it may come back at once");
        lanes.look();
        assert!(lanes.wants_thread(Role::Write));
        lanes.add_thread(Role::Write);
        assert!(!lanes.wants_thread(Role::Write) && !lanes.is_surplus(Role::Write));
        let (other, written) = lanes.take_to_write().unwrap();
        assert_eq!(written, [2]);
        lanes.written(other);
        lanes.written(stands);
        assert!(lanes.is_surplus(Role::Write));
    }

    #[test]
    fn a_disk_takes_a_bounded_number_of_threads_and_no_room_from_others() {
        let mut lanes = Numbers::new(1);
        let mut threads = 0;
        for number in 0..40 {
            lanes.push(number, 7, 0);
            frame(&mut lanes);
            if lanes.take_to_write().is_some() {
                threads += 1;
                stand(&mut lanes);
            }
        }
        assert_eq!(threads, STUCK_PER_DISK_MAX);
        for item in 1..=FRAMED_MAX as u32 {
            lanes.push(100, 8, item);
            assert_eq!(frame(&mut lanes), Some(item));
        }
        assert_eq!(lanes.take_to_write().unwrap().1.len(), FRAMED_MAX);
    }

    #[test]
    fn what_is_framed_ahead_is_bounded_also_of_a_journal_that_stands() {
        let mut lanes = Numbers::new(1);
        (0..50).for_each(|item| lanes.push(1, 0, item));
        let ahead = |lanes: &mut Numbers| std::iter::from_fn(|| frame(lanes)).count();
        assert_eq!(ahead(&mut lanes), FRAMED_MAX);
        let _stands = lanes.take_to_write().unwrap();
        stand(&mut lanes);
        assert_eq!(ahead(&mut lanes), FRAMED_MAX);
        lanes.push(2, 0, 50);
        assert_eq!(frame(&mut lanes), Some(50), "another does not wait for it");
    }
}
