use super::*;
use proptest::prelude::*;

/// What somebody does who is about a journal.
#[derive(Debug, Clone, Copy)]
enum Step {
    Lease(u8),
    GiveBack(usize),
    Stay(usize, u8),
    Leave(u8),
    Begin,
    NotOpened,
    Opened,
    Bound(u8),
    Close(u8),
    Closed,
    GiveUpClosing,
    GiveFolderBack,
    Deleted,
}

const USES: [Use; 5] = [Use::Stream, Use::Upkeep, Use::Scrub, Use::Image, Use::Look];
const REASONS: [Reason; 3] = [Reason::Failed, Reason::Taken(Task::Move), Reason::Taken(Task::Delete)];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..5).prop_map(Step::Lease),
        4 => (0usize..8).prop_map(Step::GiveBack),
        3 => (0usize..8, 0u8..3).prop_map(|(lease, image)| Step::Stay(lease, image)),
        1 => (0u8..3).prop_map(Step::Leave),
        3 => Just(Step::Begin),
        1 => Just(Step::NotOpened),
        3 => Just(Step::Opened),
        4 => (0u8..3).prop_map(Step::Bound),
        2 => (0u8..3).prop_map(Step::Close),
        3 => Just(Step::Closed),
        1 => Just(Step::GiveUpClosing),
        2 => Just(Step::GiveFolderBack),
        1 => Just(Step::Deleted),
    ]
}

/// A journal's folder as a test sees it: which life each lease and each image was given.
#[derive(Debug, Default)]
struct Folder {
    life: u64,
    leases: Vec<(LeaseId, Use, u64)>,
    images: BTreeMap<u8, u64>,
}

impl Folder {
    /// Does a step where whoever performs the machine could come to it.
    fn play(&mut self, life: &mut Life<u8>, step: Step) {
        let state = life.state();
        match step {
            Step::Lease(at) => {
                let what = USES[usize::from(at)];
                match life.lease(what) {
                    Ok(lease) => self.leases.push((lease, what, self.life)),
                    Err(refused) => assert_eq!(refused, Refused::State(state)),
                }
            }
            Step::GiveBack(at) if at < self.leases.len() => {
                let (lease, _, _) = self.leases.remove(at);
                assert_eq!(life.give_back(lease), life.may_close());
            }
            Step::Stay(at, image) if at < self.leases.len() && self.leases[at].1 == Use::Image => {
                if life.stay(self.leases[at].0, image).is_ok() {
                    self.images.insert(image, self.life);
                }
            }
            Step::Leave(image) => {
                life.leave(&image);
                self.images.remove(&image);
            }
            Step::Begin => drop(life.begin()),
            Step::NotOpened if state == State::Opening => life.not_opened(),
            Step::Opened if state == State::Opening => {
                self.life += 1;
                let to_bind = life.opened();
                assert_eq!(to_bind, self.images.keys().copied().collect::<Vec<_>>());
            }
            Step::Bound(image) if state == State::Binding && self.images.contains_key(&image) => {
                self.images.insert(image, self.life);
                life.bound(&image);
            }
            Step::Close(at) => drop(life.close(REASONS[usize::from(at)])),
            Step::Closed if life.may_close() => life.closed(),
            Step::GiveUpClosing if matches!(state, State::Closing(_)) => life.give_up_closing(),
            Step::GiveFolderBack if matches!(state, State::Taken(_)) => life.give_folder_back(),
            Step::Deleted if state == State::Taken(Task::Delete) => life.deleted(),
            Step::GiveBack(_)
            | Step::Stay(..)
            | Step::NotOpened
            | Step::Opened
            | Step::Bound(_)
            | Step::Closed
            | Step::GiveUpClosing
            | Step::GiveFolderBack
            | Step::Deleted => {}
        }
    }

    fn check(&self, life: &Life<u8>) {
        let in_use = !self.leases.is_empty();
        match life.state() {
            State::Open => {
                assert!(self.images.values().all(|of| *of == self.life), "every image reads from this life");
            }
            State::Closing(_) => {}
            State::Closed | State::Opening | State::Binding => assert!(!in_use, "a use outlives its life"),
            State::Taken(_) | State::Gone => {
                assert!(!in_use && self.images.is_empty(), "somebody needs a folder that is another's");
            }
        }
        assert!(self.leases.iter().all(|(_, _, of)| *of == self.life), "a use is of the life there is");
    }
}

proptest! {
    #[test]
    fn no_use_and_no_image_of_one_life_meets_the_next(steps in prop::collection::vec(step(), 1..200)) {
        let (mut life, mut folder) = (Life::default(), Folder::default());
        for step in steps {
            folder.play(&mut life, step);
            folder.check(&life);
        }
    }
}

fn open(images: &[&'static str]) -> Life<&'static str> {
    let mut life = Life::default();
    life.begin().unwrap();
    assert!(life.opened().is_empty());
    for image in images {
        let lease = life.lease(Use::Image).unwrap();
        life.stay(lease, *image).unwrap();
        life.give_back(lease);
    }
    life
}

#[test]
fn an_image_that_is_being_opened_while_its_journal_fails_is_bound_to_the_next_life() {
    let mut life = open(&[]);
    let opening = life.lease(Use::Image).unwrap();
    life.close(Reason::Failed).unwrap();
    assert!(!life.may_close(), "who opens an image is waited for");
    life.stay(opening, "a").unwrap();
    assert!(life.give_back(opening));
    life.closed();
    life.begin().unwrap();
    assert_eq!(life.opened(), ["a"]);
    assert_eq!(life.lease(Use::Upkeep), Err(Refused::State(State::Binding)), "nothing is folded before");
    life.bound(&"a");
    life.lease(Use::Upkeep).unwrap();
}

#[test]
fn a_folder_is_not_taken_from_under_an_image() {
    for task in [Task::Move, Task::Delete] {
        let mut life = open(&["a"]);
        assert_eq!(life.close(Reason::Taken(task)), Err(Refused::Images));
        life.leave(&"a");
        let opening = life.lease(Use::Image).unwrap();
        assert_eq!(life.close(Reason::Taken(task)), Err(Refused::Images), "one is being opened");
        life.give_back(opening);
        life.close(Reason::Taken(task)).unwrap();
        assert!(life.lease(Use::Image).is_err(), "and none is while it is waited for");
        life.closed();
        assert_eq!(life.state(), State::Taken(task));
        assert_eq!(life.begin(), Err(Refused::State(State::Taken(task))));
    }
}

#[test]
fn a_closed_journal_is_taken_at_once_unless_its_images_need_it() {
    let mut life = open(&["a"]);
    life.close(Reason::Failed).unwrap();
    life.closed();
    assert_eq!(life.close(Reason::Taken(Task::Move)), Err(Refused::Images));
    life.leave(&"a");
    life.close(Reason::Taken(Task::Move)).unwrap();
    life.give_folder_back();
    life.begin().unwrap();
}

#[test]
fn an_image_that_cannot_be_bound_keeps_nobody_from_the_journal() {
    let mut life = open(&["a", "b"]);
    life.close(Reason::Failed).unwrap();
    life.closed();
    life.begin().unwrap();
    assert_eq!(life.opened(), ["a", "b"]);
    life.bound(&"a");
    life.leave(&"b");
    assert_eq!(life.state(), State::Open);
}

#[test]
fn who_does_not_wait_any_longer_leaves_it_open() {
    let mut life = open(&[]);
    let fold = life.lease(Use::Upkeep).unwrap();
    life.close(Reason::Taken(Task::Move)).unwrap();
    assert_eq!(life.uses().into_iter().collect::<Vec<_>>(), [Use::Upkeep]);
    life.give_up_closing();
    let scrub = life.lease(Use::Scrub).unwrap();
    assert!(!life.give_back(fold) && !life.give_back(scrub));
}
