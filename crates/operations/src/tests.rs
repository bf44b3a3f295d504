//! Every step failed, cancelled, cut short and run twice, over a small world that remembers what was done to it.

use super::*;
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fmt;
use types::VmId;
use types::limits::OPERATIONS_MAX;

/// Makes a thing under a chosen name, fills it, and takes an old one away: from there on there is no way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Make,
    Fill,
    Replace,
    Clean,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Swap {
    new: u32,
    /// What filling it has found.
    found: Option<u32>,
}

impl Plan for Swap {
    type Step = Step;

    fn steps(&self) -> Vec<Step> {
        vec![Step::Make, Step::Fill, Step::Replace, Step::Clean]
    }

    fn is_final(&self, step: Step) -> bool {
        matches!(step, Step::Replace | Step::Clean)
    }

    fn may_be_left(&self, step: Step) -> bool {
        step == Step::Clean
    }

    fn locks(&self) -> BTreeSet<Lock> {
        [Lock::Kept(VmId::from_bytes([1; 16]))].into()
    }

    fn counts_as(&self) -> Option<&'static str> {
        None
    }
}

/// The agent is gone: nothing more happens to the world until it starts again.
struct Killed;

/// What outlives the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
struct World {
    things: BTreeSet<u32>,
    filled: BTreeSet<u32>,
    /// Counts up each time something is found out.
    next_find: u32,
    current: u32,
    record: Option<Record<Swap>>,
}

impl World {
    fn new() -> Self {
        Self { things: [1].into(), filled: [1].into(), next_find: 100, current: 1, record: None }
    }
}

/// One life of the agent over the world. Each change of the world is one instruction, after `dies_at` of which it is gone.
struct Life {
    world: RefCell<World>,
    instructions: Cell<usize>,
    dies_at: Option<usize>,
    /// The step that fails, and how often.
    fails: RefCell<Option<(Step, Failure, usize)>>,
    cancels_at: Option<Step>,
    /// A step that is cancelled leaves off; or it has not looked.
    hears: bool,
    /// The call of the ledger that fails, counted from 0; what is written then is not.
    no_ledger_at: Option<usize>,
    kept: Cell<usize>,
    control: Control,
}

impl Life {
    /// One instruction. A real agent would not be there to see the error.
    fn change(&self, change: impl FnOnce(&mut World)) -> Result<(), Killed> {
        let at = self.instructions.get();
        if self.dies_at.is_some_and(|dies_at| at >= dies_at) {
            return Err(Killed);
        }
        self.instructions.set(at + 1);
        change(&mut self.world.borrow_mut());
        Ok(())
    }

    fn step(&self, plan: &mut Swap, step: Step, at: &mut At<'_, Swap>) -> Result<(), Failure> {
        let killed = |Killed| Failure::NotNow("killed".into());
        match step {
            Step::Make => self
                .change(|world| {
                    world.things.insert(plan.new);
                })
                .map_err(killed),
            Step::Fill => {
                if plan.found.is_none() {
                    let mut found = 0;
                    self.change(|world| {
                        world.next_find += 1;
                        found = world.next_find;
                    })
                    .map_err(killed)?;
                    plan.found = Some(found);
                    at.keep(plan)?;
                }
                self.change(|world| {
                    world.filled.insert(plan.new);
                })
                .map_err(killed)
            }
            Step::Replace => self.change(|world| world.current = plan.new).map_err(killed),
            Step::Clean => {
                self.change(|world| {
                    world.filled.remove(&1);
                })
                .map_err(killed)?;
                self.change(|world| {
                    world.things.remove(&1);
                })
                .map_err(killed)
            }
        }
    }
}

impl Ledger<Swap> for Life {
    fn keep(&self, record: &Record<Swap>) -> Result<(), LedgerError> {
        let call = self.kept.replace(self.kept.get() + 1);
        if self.no_ledger_at == Some(call) {
            return Err(LedgerError("no room".into()));
        }
        self.change(|world| world.record = Some(record.clone()))
            .map_err(|Killed| LedgerError("killed".into()))
    }
}

impl Work<Swap> for Life {
    fn is_done(&self, plan: &Swap, step: Step) -> Result<bool, Trouble> {
        let world = self.world.borrow();
        Ok(match step {
            Step::Make => world.things.contains(&plan.new),
            Step::Fill => world.filled.contains(&plan.new),
            Step::Replace => world.current == plan.new,
            Step::Clean => !world.things.contains(&1),
        })
    }

    fn run(&self, plan: &mut Swap, step: Step, at: &mut At<'_, Swap>) -> Result<(), Failure> {
        if self.cancels_at == Some(step) {
            let _ = self.control.cancel(); // Too late for some.
            if self.hears {
                at.check()?;
            }
        }
        if let Some((fails, failure, times)) = self.fails.borrow_mut().as_mut()
            && *fails == step
            && *times > 0
        {
            *times -= 1;
            return Err(failure.clone());
        }
        self.step(plan, step, at)
    }

    fn undo(&self, plan: &Swap, step: Step) -> Result<(), Trouble> {
        let undone = match step {
            Step::Make => self.change(|world| {
                world.things.remove(&plan.new);
            }),
            Step::Fill => self.change(|world| {
                world.filled.remove(&plan.new);
            }),
            Step::Replace | Step::Clean => panic!("there is no way back from {step}"),
        };
        undone.map_err(|Killed| Trouble("killed".into()))
    }
}

/// How a play differs from one in which all goes well.
#[derive(Debug, Clone, Default)]
struct Plays {
    fails: Option<(Step, Failure, usize)>,
    cancels_at: Option<Step>,
    is_deaf: bool,
    no_ledger_at: Option<usize>,
}

fn life(world: World, plays: &Plays, dies_at: Option<usize>) -> Life {
    Life {
        world: RefCell::new(world),
        instructions: Cell::new(0),
        dies_at,
        fails: RefCell::new(plays.fails.clone()),
        cancels_at: plays.cancels_at,
        hears: !plays.is_deaf,
        no_ledger_at: plays.no_ledger_at,
        kept: Cell::new(0),
        control: Control::default(),
    }
}

fn key(key: &str, request: &str) -> Option<RequestKey> {
    Some(RequestKey { key: key.into(), request: request.into() })
}

fn first_record() -> Record<Swap> {
    Record {
        id: OperationId::from_bytes([7; 16]),
        plan: Swap { new: 2, found: None },
        standing: Standing::Forward { next: 0 },
        key: None,
        left_undone: Vec::new(),
        began_at: 5,
        ended_at: None,
        heard: false,
    }
}

fn live(world: World, plays: &Plays, dies_at: Option<usize>) -> (World, Pass, usize) {
    let life = life(world, plays, dies_at);
    let begun = life.world.borrow().record.clone();
    let mut record = begun.unwrap_or_else(first_record);
    let mut pass = match life.keep(&record) {
        Ok(()) => go_on(&mut record, &life, &life, &life.control, &|| 9),
        Err(error) => Pass::Stands(Trouble(error.to_string())),
    };
    // A step that stands is tried again, as long as the agent lives.
    while dies_at.is_none_or(|dies_at| life.instructions.get() < dies_at) && pass != Pass::Ended {
        pass = go_on(&mut record, &life, &life, &life.control, &|| 9);
    }
    (life.world.into_inner(), pass, life.instructions.get())
}

/// All of it was done, or nothing.
fn check_end(world: &World, plays: &Plays) -> Standing {
    let record = world.record.as_ref().expect("an operation that has ended has a record");
    match &record.standing {
        Standing::Done => {
            assert_eq!(world.current, 2, "{plays:?}");
            assert_eq!(world.things, [2].into(), "{plays:?}");
            assert_eq!(world.filled, [2].into(), "{plays:?}");
            assert_eq!(
                record.plan.found,
                Some(world.next_find),
                "found once, and never forgotten: {plays:?}"
            );
        }
        Standing::TakenBack { .. } => {
            assert_eq!(
                (world.current, &world.things, &world.filled),
                (1, &[1].into(), &[1].into()),
                "{plays:?}"
            );
        }
        other => panic!("no end: {other:?} in {plays:?}"),
    }
    assert_eq!(record.ended_at, Some(9));
    record.standing.clone()
}

fn all_plays() -> Vec<Plays> {
    let steps = [Step::Make, Step::Fill, Step::Replace, Step::Clean];
    let mut plays = vec![Plays::default()];
    for step in steps {
        for failure in [Failure::Refused("no".into()), Failure::NotNow("later".into())] {
            plays.push(Plays { fails: Some((step, failure, 2)), ..Plays::default() });
        }
        for is_deaf in [false, true] {
            plays.push(Plays { cancels_at: Some(step), is_deaf, ..Plays::default() });
        }
    }
    plays
}

#[test]
fn an_operation_is_done_whole_or_taken_back_whole() {
    for plays in all_plays() {
        let (world, pass, _) = live(World::new(), &plays, None);
        assert_eq!(pass, Pass::Ended);
        let before_the_last_way_back = |step| matches!(step, Some(Step::Make | Step::Fill));
        let is_taken_back = before_the_last_way_back(plays.cancels_at)
            || matches!(&plays.fails, Some((step, Failure::Refused(_), _)) if before_the_last_way_back(Some(*step)));
        let end = check_end(&world, &plays);
        assert_eq!(matches!(end, Standing::TakenBack { .. }), is_taken_back, "{plays:?}");
    }
}

#[test]
fn an_agent_that_is_killed_at_any_instruction_goes_on_to_an_end() {
    for plays in all_plays() {
        let (_, _, instructions) = live(World::new(), &plays, None);
        for first in 0..instructions {
            let (once, _, _) = live(World::new(), &plays, Some(first));
            // Again on the way to the end, at any instruction.
            for second in 0..=instructions {
                let (twice, _, _) = live(once.clone(), &Plays::default(), Some(second));
                let (world, pass, _) = live(twice, &Plays::default(), None);
                assert_eq!(pass, Pass::Ended);
                // What was found before a kill that came before it was kept is found again.
                if world.record.as_ref().is_some_and(|record| record.standing == Standing::Done) {
                    assert_eq!(
                        (world.current, world.things.len(), world.filled.len()),
                        (2, 1, 1),
                        "{plays:?}"
                    );
                } else {
                    check_end(&world, &plays);
                }
            }
        }
    }
}

#[test]
fn a_ledger_that_fails_once_at_any_call_loses_nothing_that_was_found() {
    for plays in all_plays() {
        for call in 1..12 {
            let plays = Plays { no_ledger_at: Some(call), ..plays.clone() };
            let (world, pass, _) = live(World::new(), &plays, None);
            assert_eq!(pass, Pass::Ended);
            check_end(&world, &plays);
        }
    }
}

#[test]
fn a_cancel_that_was_taken_is_never_forgotten_and_one_that_comes_too_late_is_refused() {
    // It is taken while the last step with a way back runs, which does not look.
    let plays = Plays { cancels_at: Some(Step::Fill), is_deaf: true, ..Plays::default() };
    let cancelled = life(World::new(), &plays, None);
    let mut record = first_record();
    assert_eq!(go_on(&mut record, &cancelled, &cancelled, &cancelled.control, &|| 9), Pass::Ended);
    assert!(matches!(record.standing, Standing::TakenBack { .. }), "{record:?}");
    let late = life(World::new(), &Plays::default(), None);
    let mut record = Record { standing: Standing::Forward { next: 2 }, ..first_record() };
    late.control.cancel().unwrap(); // An agent that has just started does not know yet how far it is.
    assert_eq!(go_on(&mut record, &late, &late, &late.control, &|| 9), Pass::Ended);
    assert_eq!(record.standing, Standing::Done);
    let done = life(World::new(), &Plays::default(), None);
    let mut record = first_record();
    assert_eq!(go_on(&mut record, &done, &done, &done.control, &|| 9), Pass::Ended);
    assert_eq!(done.control.cancel(), Err(TooLate));
}

/// One step, which has no way back once it has kept that.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Crossing {
    crossed: bool,
    kind: Option<&'static str>,
}

impl Plan for Crossing {
    type Step = Step;

    fn steps(&self) -> Vec<Step> {
        vec![Step::Replace, Step::Clean]
    }

    fn is_final(&self, step: Step) -> bool {
        step == Step::Clean || self.crossed
    }

    fn may_be_left(&self, _: Step) -> bool {
        false
    }

    fn locks(&self) -> BTreeSet<Lock> {
        BTreeSet::new()
    }

    fn counts_as(&self) -> Option<&'static str> {
        self.kind
    }
}

/// Cancels before or after the crossing; the ledger fails as often as is said.
struct Walk<'a> {
    control: &'a Control,
    cancels_before: bool,
    ledger_fails: Cell<usize>,
}

impl Ledger<Crossing> for Walk<'_> {
    fn keep(&self, _: &Record<Crossing>) -> Result<(), LedgerError> {
        match self.ledger_fails.get() {
            0 => Ok(()),
            left => {
                self.ledger_fails.set(left - 1);
                Err(LedgerError("no room".into()))
            }
        }
    }
}

impl Work<Crossing> for Walk<'_> {
    fn is_done(&self, _: &Crossing, _: Step) -> Result<bool, Trouble> {
        Ok(false)
    }

    fn run(&self, plan: &mut Crossing, _: Step, at: &mut At<'_, Crossing>) -> Result<(), Failure> {
        if self.cancels_before {
            let _ = self.control.cancel();
        }
        plan.crossed = true;
        at.keep(plan)?;
        assert_eq!(self.control.cancel(), Err(TooLate));
        at.check()
    }

    fn undo(&self, plan: &Crossing, _: Step) -> Result<(), Trouble> {
        assert!(!plan.crossed);
        Ok(())
    }
}

#[test]
fn a_step_that_comes_to_a_point_of_no_return_is_cancelled_before_it_or_never() {
    for (cancels_before, ledger_fails) in [(false, 0), (true, 0), (false, 2)] {
        let control = Control::default();
        let walk = Walk { control: &control, cancels_before, ledger_fails: Cell::new(ledger_fails) };
        let mut record = Record {
            id: OperationId::from_bytes([7; 16]),
            plan: Crossing { crossed: false, kind: None },
            standing: Standing::Forward { next: 0 },
            key: None,
            left_undone: Vec::new(),
            began_at: 5,
            ended_at: None,
            heard: false,
        };
        while go_on(&mut record, &walk, &walk, &control, &|| 9) != Pass::Ended {}
        assert_eq!(matches!(record.standing, Standing::TakenBack { .. }), cancels_before);
        assert_eq!(record.plan.crossed, !cancels_before);
    }
}

#[test]
fn what_only_frees_room_is_left_at_an_operators_word_and_nothing_else_is() {
    for (step, is_left) in [(Step::Clean, true), (Step::Replace, false)] {
        let plays = Plays { fails: Some((step, Failure::Refused("no".into()), 9)), ..Plays::default() };
        let life = life(World::new(), &plays, None);
        let mut record = first_record();
        assert!(matches!(go_on(&mut record, &life, &life, &life.control, &|| 9), Pass::Stands(_)));
        life.control.leave();
        let pass = go_on(&mut record, &life, &life, &life.control, &|| 9);
        assert_eq!(pass == Pass::Ended, is_left, "{step}");
        assert_eq!(record.left_undone, if is_left { vec!["Clean: no".to_owned()] } else { vec![] });
    }
}

#[test]
fn a_record_that_no_plan_of_this_version_can_mean_is_not_gone_on_with() {
    let with = |standing| Record { standing, ..first_record() };
    let back = |left| with(Standing::Back { left, why: "cancelled".into() });
    let mut book = Book::default();
    let refused = [
        (with(Standing::Forward { next: 5 }), BadRecord::NoSuchStep { at: 5, steps: 4 }),
        (back(9), BadRecord::NoSuchStep { at: 9, steps: 4 }),
        (back(3), BadRecord::NoWayBack),
    ];
    for (record, why) in refused {
        assert_eq!(book.resume(record).unwrap_err(), Refused::Bad(why));
    }
    let good = [with(Standing::Forward { next: 4 }), back(2), back(0), with(Standing::Done)];
    for record in good {
        assert_eq!(record.check(), Ok(()));
    }
}

#[test]
fn what_stands_says_why_and_a_cancelled_one_says_so() {
    let plays = Plays {
        fails: Some((Step::Clean, Failure::Refused("the disk is gone".into()), 1)),
        ..Plays::default()
    };
    let life = life(World::new(), &plays, None);
    let mut book = Book::default();
    let id = OperationId::from_bytes([3; 16]);
    let begun = book.begin(id, Swap { new: 2, found: None }, key("once", "swap 2"), 1);
    let Ok(Begun::New(mut record, control)) = begun else { panic!("{begun:?}") };
    let pass = go_on(&mut record, &life, &life, &control, &|| 2);
    assert_eq!(pass, Pass::Stands(Trouble("Clean: the disk is gone".into())));
    assert_eq!(control.trouble().as_deref(), Some("Clean: the disk is gone"));
    assert_eq!(control.cancel(), Err(TooLate));
    assert_eq!(go_on(&mut record, &life, &life, &control, &|| 3), Pass::Ended);
    assert_eq!((&record.standing, control.trouble()), (&Standing::Done, None));
}

#[test]
fn two_operations_never_change_the_same_thing() {
    let plan = Swap { new: 2, found: None };
    let id = |byte| OperationId::from_bytes([byte; 16]);
    let mut book = Book::default();
    let begun = book.begin(id(1), plan.clone(), key("k", "swap 2"), 1).unwrap();
    let Begun::New(mut record, _) = begun else { panic!("{begun:?}") };
    let lock = Lock::Kept(VmId::from_bytes([1; 16]));
    assert_eq!(book.begin(id(2), plan.clone(), None, 1).unwrap_err(), Refused::Locked { lock, by: id(1) });
    let again = book.begin(id(3), plan.clone(), key("k", "swap 2"), 1);
    assert!(matches!(again, Ok(Begun::Same(same)) if same == id(1)));
    let other = Swap { new: 9, found: None };
    assert!(matches!(book.begin(id(3), other, key("k", "swap 9"), 1), Err(Refused::KeyOfAnother(_))));
    assert_eq!(book.begin(id(3), plan.clone(), key("", "swap 2"), 1).unwrap_err(), Refused::BadKey);
    // A second book, after a restart, has the lock before anybody asks.
    let mut again = Book::default();
    again.resume(record.clone()).unwrap();
    assert_eq!(again.holder(lock), Some(id(1)));
    assert_eq!(again.begin(id(4), plan.clone(), None, 1).unwrap_err(), Refused::Locked { lock, by: id(1) });
    record.standing = Standing::Done;
    record.ended_at = Some(4);
    assert!(book.note(&record).is_empty());
    assert_eq!(book.holder(lock), None);
    assert!(matches!(book.begin(id(5), plan, None, 1), Ok(Begun::New(..))));
}

#[test]
fn what_goes_on_for_long_keeps_out_nothing_but_its_own_kind_and_never_what_ends_something() {
    let mut book = Book::default();
    let mut ids = (0..=u8::MAX).flat_map(|one| (0..=u8::MAX).map(move |other| [one, other]));
    let mut begin = |kind: Option<&'static str>| {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&ids.next().unwrap());
        book.begin(OperationId::from_bytes(bytes), Crossing { crossed: false, kind }, None, 1)
    };
    for _ in 0..OPERATIONS_MAX {
        begin(Some("promote")).unwrap();
    }
    assert_eq!(begin(Some("promote")).unwrap_err(), Refused::TooMany { kind: "promote" });
    begin(Some("failover")).unwrap();
    // More of them stand than any kind may have.
    for _ in 0..=OPERATIONS_MAX {
        begin(None).unwrap();
    }
    begin(Some("failover")).unwrap();
}

#[test]
fn a_cancel_that_comes_too_late_is_refused_after_a_restart_too() {
    for next in 0..=4 {
        let record = Record { standing: Standing::Forward { next }, ..first_record() };
        let has_way_back = record.has_way_back();
        assert_eq!(has_way_back, next < 2);
        let control = Book::default().resume(record).unwrap();
        assert_eq!(control.cancel().is_ok(), has_way_back, "told as taken, and done all the same: {next}");
    }
}

#[test]
fn ended_operations_are_remembered_up_to_a_bound() {
    use types::limits::ENDED_OPERATIONS_MAX;
    let mut book = Book::default();
    for at in 0..ENDED_OPERATIONS_MAX + 3 {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(at as u64).to_be_bytes());
        let id = OperationId::from_bytes(bytes);
        let begun = book.begin(id, Swap { new: 2, found: None }, None, 0).unwrap();
        let Begun::New(mut record, _) = begun else { panic!("{begun:?}") };
        (record.standing, record.ended_at) = (Standing::Done, Some(at as i64));
        let old = book.note(&record);
        assert_eq!(old.len(), usize::from(at >= ENDED_OPERATIONS_MAX));
    }
    assert_eq!(book.all().count(), ENDED_OPERATIONS_MAX);
    // The clock has gone back: whoever waits for the newest still hears of it.
    let id = OperationId::from_bytes([9; 16]);
    let begun = book.begin(id, Swap { new: 2, found: None }, None, 0).unwrap();
    let Begun::New(mut record, _) = begun else { panic!("{begun:?}") };
    (record.standing, record.ended_at) = (Standing::Done, Some(-5));
    assert_eq!(book.note(&record).len(), 1);
    assert!(book.get(id).is_some());
}

#[test]
fn a_record_is_read_as_it_was_written_wherever_it_stands() {
    let standings = [
        Standing::Forward { next: 2 },
        Standing::Back { left: 1, why: "cancelled".into() },
        Standing::Done,
        Standing::TakenBack { why: "no room".into() },
    ];
    for standing in standings {
        let left_undone = vec!["remove the old folder: no such device".to_owned()];
        let Record { id, key, began_at, ended_at, heard, .. } = first_record();
        let record = Record { id, plan: 7_u32, standing, key, left_undone, began_at, ended_at, heard };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record<u32>>(&text).unwrap(), record, "{text}");
        // Nobody is told anew what an agent of before has told.
        let of_before = text.replace(",\"heard\":false", "");
        assert_ne!(of_before, text);
        assert!(serde_json::from_str::<Record<u32>>(&of_before).unwrap().heard);
    }
}
