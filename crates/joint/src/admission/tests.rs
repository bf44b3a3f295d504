use super::*;
use proptest::prelude::*;
use types::{Incarnation, WallTime, WriteSeq};

const WEB: VmId = VmId::from_bytes([1; 16]);
const DB: VmId = VmId::from_bytes([2; 16]);
const SHOP: GroupId = GroupId::from_bytes([1; 16]);
const MAIL: GroupId = GroupId::from_bytes([2; 16]);
const DAY: u64 = 24 * 3600;
const GB: u64 = 1_000_000_000;

fn disks(size_bytes: u64) -> Vec<DiskSpec> {
    vec![DiskSpec { name: "vda".into(), size_bytes }]
}

fn hello() -> Hello {
    Hello {
        speaks: replication::wire::VERSION,
        vm: WEB,
        vm_name: "web".into(),
        group: SHOP,
        group_name: "shop".into(),
        epoch: Epoch(5),
        incarnation: Incarnation::from_bytes([3; 16]),
        acked: WriteSeq::ZERO,
        last_seq: WriteSeq::ZERO,
        sent_at: WallTime(0),
        history_seconds: DAY,
        journal_bytes_max: 100 * GB,
        rpo_seconds: 60,
        checkpoint_interval_seconds: 5,
        spans_hosts: false,
        disks: disks(1 << 20),
        definition: String::new(),
        artifacts: Vec::new(),
    }
}

fn open(epoch: u64) -> Journal {
    Journal::Open(Open { epoch: Epoch(epoch), disks: disks(1 << 20), no_room: None })
}

fn vm() -> Vm<'static> {
    Vm {
        site: "paris",
        peer: "agent-1.paris",
        name: "web",
        group: SHOP,
        group_name: "shop",
        left: false,
        forgotten: false,
        terms: Terms { history_seconds: DAY, bytes_max: 100 * GB },
        journal: open(5),
    }
}

fn other() -> Other<'static> {
    Other {
        id: DB,
        site: "paris",
        peer: "agent-2.paris",
        name: "db",
        group: SHOP,
        group_name: "shop",
        left: false,
    }
}

fn side<'a>(vm: Kept<'a>, others: &'a [Other<'a>]) -> Side<'a> {
    Side {
        peer: "agent-1.paris",
        site: "paris",
        vm,
        group_site: None,
        failover: Failover::Never,
        others,
        history_seconds_min: 3600,
    }
}

/// What an answer comes to, in a word.
fn word(answer: &Answer) -> String {
    match answer {
        Answer::Refuse(refuse) => match refuse.why {
            Refusal::Fenced { epoch, released } => format!("fenced {epoch} {released}"),
            why => format!("{why}"),
        },
        Answer::Make(_) => "make".into(),
        Answer::Open => "open".into(),
        Answer::Accept(accept) => match accept.asks_less {
            None => "accept".into(),
            Some(_) => "accept, asks less".into(),
        },
    }
}

#[test]
fn each_state_of_what_is_kept_has_its_answer() {
    let away = |state| Kept::Is(Vm { journal: Journal::Away(state), ..vm() });
    let table = [
        (Kept::Not, "make"),
        (Kept::Unreadable("bad bytes"), "journal failed"),
        (Kept::Is(vm()), "accept"),
        (Kept::Is(Vm { site: "lyon", ..vm() }), "not accepted"),
        (Kept::Is(Vm { peer: "agent-2.paris", ..vm() }), "not accepted"),
        (Kept::Is(Vm { group: MAIL, ..vm() }), "not accepted"),
        (Kept::Is(Vm { left: true, ..vm() }), "not accepted"),
        (Kept::Is(Vm { forgotten: true, ..vm() }), "stream busy"),
        (Kept::Is(Vm { journal: open(4), ..vm() }), "accept"),
        (Kept::Is(Vm { journal: open(6), ..vm() }), "fenced 6 true"),
        (away(State::Closed), "open"),
        (away(State::Opening), "open"),
        (away(State::Binding), "open"),
        (away(State::Open), "open"),
        (away(State::Closing(Reason::Failed)), "open"),
        (away(State::Closing(Reason::Taken(Task::Move))), "stream busy"),
        (away(State::Closing(Reason::Taken(Task::Delete))), "stream busy"),
        (away(State::Taken(Task::Move)), "stream busy"),
        (away(State::Taken(Task::Delete)), "stream busy"),
        (away(State::Gone), "stream busy"),
    ];
    for (kept, expected) in table {
        let answer = decide(&hello(), &side(kept.clone(), &[]));
        assert_eq!(word(&answer), expected, "{kept:?}");
    }
}

#[test]
fn each_state_of_the_groups_failover_has_its_answer() {
    let recorded = |epoch, released| Failover::Recorded { epoch: Epoch(epoch), released };
    let table = [
        (Failover::Never, "accept"),
        (Failover::Unreadable("bad bytes"), "journal failed"),
        (recorded(5, true), "accept"),
        (recorded(4, true), "accept"),
        (recorded(6, true), "fenced 6 true"),
        (recorded(4, false), "fenced 4 false"),
        (recorded(6, false), "fenced 6 false"),
    ];
    for (failover, expected) in table {
        let answer = decide(&hello(), &Side { failover, ..side(Kept::Is(vm()), &[]) });
        assert_eq!(word(&answer), expected, "{failover:?}");
        // Also of a VM that joins a group which has failed over.
        let new = decide(&hello(), &Side { failover, ..side(Kept::Not, &[]) });
        assert_eq!(word(&new), if expected == "accept" { "make" } else { expected }, "{failover:?}");
    }
}

#[test]
fn each_clash_with_what_is_kept_beside_it_has_its_answer() {
    let table = [
        (other(), "make"),
        (Other { site: "lyon", ..other() }, "not accepted"),
        (Other { site: "lyon", group: MAIL, ..other() }, "make"),
        (Other { site: "lyon", group: MAIL, name: "web", ..other() }, "make"),
        (Other { group: MAIL, ..other() }, "not accepted"),
        (Other { group: MAIL, left: true, ..other() }, "make"),
        (Other { group: MAIL, group_name: "mail", ..other() }, "make"),
        (Other { name: "web", ..other() }, "not accepted"),
        (Other { name: "web", left: true, ..other() }, "make"),
        (Other { id: WEB, name: "web", ..other() }, "make"),
    ];
    for (other, expected) in table {
        let others = [other];
        assert_eq!(word(&decide(&hello(), &side(Kept::Not, &others))), expected, "{other:?}");
    }
    let many = vec![other(); KEPT_VMS_OF_SITE_MAX];
    assert_eq!(word(&decide(&hello(), &side(Kept::Not, &many))), "not accepted");
    assert_eq!(word(&decide(&hello(), &side(Kept::Is(vm()), &many))), "accept", "who is kept goes on");
}

#[test]
fn disks_and_room_are_looked_at_before_anything_is_taken_over() {
    let of = |open: Open| Kept::Is(Vm { journal: Journal::Open(open), ..vm() });
    let fits = Open { epoch: Epoch(5), disks: disks(1 << 20), no_room: None };
    let differs = decide(&hello(), &side(of(Open { disks: disks(1 << 21), ..fits.clone() }), &[]));
    assert_eq!(word(&differs), "disks differ");
    let full = decide(&hello(), &side(of(Open { no_room: Some("7 bytes are free".into()), ..fits }), &[]));
    assert_eq!(word(&full), "journal full");
}

#[test]
fn a_greeting_makes_history_longer_and_never_shorter() {
    let ask = |history_seconds, journal_bytes_max| {
        let hello = Hello { history_seconds, journal_bytes_max, ..hello() };
        match decide(&hello, &side(Kept::Is(vm()), &[])) {
            Answer::Accept(accept) => {
                (accept.terms.history_seconds, accept.terms.bytes_max, accept.asks_less.is_some())
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ask(DAY, 100 * GB), (DAY, 100 * GB, false));
    assert_eq!(ask(2 * DAY, 0), (2 * DAY, 0, false));
    assert_eq!(ask(3600, 100 * GB), (DAY, 100 * GB, true));
    assert_eq!(ask(2 * DAY, GB), (2 * DAY, 100 * GB, true));
    // What this side has set is less than nobody's word.
    let floor = Side { history_seconds_min: 3 * DAY, ..side(Kept::Not, &[]) };
    let terms = Terms { history_seconds: 3 * DAY, bytes_max: 100 * GB };
    assert_eq!(decide(&hello(), &floor), Answer::Make(terms));
    // And no less than that can be taken over, so that it is not said to be asked for.
    let kept = Side { history_seconds_min: 3 * DAY, ..side(Kept::Is(Vm { terms, ..vm() }), &[]) };
    assert_eq!(decide(&hello(), &kept), Answer::Accept(Accept { terms, asks_less: None }));
}

fn state() -> impl Strategy<Value = State> {
    prop::sample::select(vec![
        State::Closed,
        State::Opening,
        State::Binding,
        State::Open,
        State::Closing(Reason::Failed),
        State::Closing(Reason::Taken(Task::Move)),
        State::Closing(Reason::Taken(Task::Delete)),
        State::Taken(Task::Move),
        State::Taken(Task::Delete),
        State::Gone,
    ])
}

fn few() -> impl Strategy<Value = u64> {
    prop_oneof![3 => 0u64..4, 1 => prop::sample::select(vec![GB, u64::MAX - 1, u64::MAX])]
}

fn name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["", "web", "db", "paris", "lyon"])
}

fn journal() -> impl Strategy<Value = Journal> {
    let open = (few(), few(), any::<bool>()).prop_map(|(epoch, size, full)| {
        let no_room = full.then(|| "full".to_owned());
        Journal::Open(Open { epoch: Epoch(epoch), disks: disks(size), no_room })
    });
    prop_oneof![state().prop_map(Journal::Away), open]
}

fn kept() -> impl Strategy<Value = Kept<'static>> {
    let flags = (0u8..8, 0u8..8, 1u8..3);
    let agent = prop::sample::select(vec!["agent-1.paris", "agent-1.paris", "agent-2.paris"]);
    let is = (name(), agent, name(), flags, few(), few(), journal()).prop_map(
        |(site, peer, name, (left, forgotten, group), history_seconds, bytes_max, journal)| {
            Kept::Is(Vm {
                site,
                peer,
                name,
                group: GroupId::from_bytes([group; 16]),
                group_name: "shop",
                left: left == 0,
                forgotten: forgotten == 0,
                terms: Terms { history_seconds, bytes_max },
                journal,
            })
        },
    );
    prop_oneof![1 => Just(Kept::Not), 1 => Just(Kept::Unreadable("bad")), 8 => is]
}

fn failover() -> impl Strategy<Value = Failover<'static>> {
    let recorded = (few(), any::<bool>())
        .prop_map(|(epoch, released)| Failover::Recorded { epoch: Epoch(epoch), released });
    prop_oneof![2 => Just(Failover::Never), 1 => Just(Failover::Unreadable("bad")), 3 => recorded]
}

fn others() -> impl Strategy<Value = Vec<Other<'static>>> {
    let one = (1u8..4, name(), name(), 1u8..3, name(), any::<bool>()).prop_map(
        |(id, site, name, group, group_name, left)| Other {
            id: VmId::from_bytes([id; 16]),
            site,
            peer: "agent-1",
            name,
            group: GroupId::from_bytes([group; 16]),
            group_name,
            left,
        },
    );
    prop::collection::vec(one, 0..3)
}

fn no_less(terms: Terms, than: Terms) -> bool {
    terms.history_seconds >= than.history_seconds
        && (terms.bytes_max == 0 || (than.bytes_max != 0 && terms.bytes_max >= than.bytes_max))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn whatever_is_said_nothing_is_lowered_and_nothing_of_others_is_touched(
        said in (few(), few(), few(), few(), name(), name()),
        kept in kept(),
        failover in failover(),
        others in others(),
        floor in few(),
    ) {
        let (epoch, history_seconds, journal_bytes_max, size, vm_name, group_name) = said;
        let hello = Hello {
            epoch: Epoch(epoch),
            history_seconds,
            journal_bytes_max,
            disks: disks(size),
            vm_name: vm_name.into(),
            group_name: group_name.into(),
            ..hello()
        };
        let side = Side { failover, history_seconds_min: floor, ..side(kept.clone(), &others) };
        let answer = decide(&hello, &side);
        let Answer::Refuse(_) = answer else {
            prop_assert!(!matches!(failover, Failover::Unreadable(_)));
            if let Failover::Recorded { epoch, released } = failover {
                prop_assert!(released && hello.epoch >= epoch, "who has lost the authority is let in");
            }
            prop_assert!(others.iter().all(|other| other.site == "paris" || other.group != SHOP));
            return check_taken(&hello, &kept, &answer, floor);
        };
    }
}

fn check_taken(hello: &Hello, kept: &Kept<'_>, answer: &Answer, floor: u64) -> Result<(), TestCaseError> {
    match (kept, answer) {
        (Kept::Not, Answer::Make(terms)) => {
            prop_assert!(no_less(*terms, Terms::asked(hello, floor)) && terms.history_seconds >= floor);
        }
        (Kept::Is(vm), Answer::Open) => prop_assert!(matches!(vm.journal, Journal::Away(_))),
        (Kept::Is(vm), Answer::Accept(accept)) => {
            prop_assert!(vm.peer == "agent-1.paris", "another agent has the VM");
            prop_assert!(vm.site == "paris" && vm.group == hello.group && !vm.left && !vm.forgotten);
            prop_assert!(no_less(accept.terms, vm.terms), "{:?} of {:?}", accept.terms, vm.terms);
            prop_assert!(
                no_less(accept.terms, Terms::asked(hello, floor)) && accept.terms.history_seconds >= floor
            );
            let Journal::Open(open) = &vm.journal else { panic!("a closed journal takes a stream") };
            prop_assert!(hello.epoch >= open.epoch && open.disks == hello.disks && open.no_room.is_none());
        }
        (kept, answer) => prop_assert!(false, "{kept:?}: {answer:?}"),
    }
    Ok(())
}

#[test]
fn who_has_left_is_said_by_its_own_site_with_the_authority_over_its_group() {
    let said = |group, epoch| Leave { vm: WEB, group, epoch: Epoch(epoch), at: WriteSeq::ZERO };
    let ours = Kept::Is(vm());
    assert_eq!(leave(&said(SHOP, 5), "agent-1.paris", &ours, Failover::Never), Ok(true));
    assert_eq!(leave(&said(SHOP, 5), "agent-1.paris", &Kept::Not, Failover::Never), Ok(false));
    let why = |said: &Leave, peer: &str, failover| leave(said, peer, &ours, failover).unwrap_err().why;
    assert_eq!(why(&said(SHOP, 5), "agent-1.rome", Failover::Never), Refusal::NotAccepted);
    assert_eq!(why(&said(SHOP, 5), "agent-2.paris", Failover::Never), Refusal::NotAccepted);
    assert_eq!(why(&said(MAIL, 5), "agent-1.paris", Failover::Never), Refusal::NotAccepted);
    let fenced = |epoch, released| Refusal::Fenced { epoch: Epoch(epoch), released };
    assert_eq!(why(&said(SHOP, 4), "agent-1.paris", Failover::Never), fenced(5, true));
    let running = Failover::Recorded { epoch: Epoch(6), released: false };
    assert_eq!(why(&said(SHOP, 9), "agent-1.paris", running), fenced(6, false));
    let released = Failover::Recorded { epoch: Epoch(6), released: true };
    assert_eq!(why(&said(SHOP, 5), "agent-1.paris", released), fenced(6, true));
    assert_eq!(leave(&said(SHOP, 6), "agent-1.paris", &ours, released), Ok(true));
    assert_eq!(
        leave(&said(SHOP, 5), "agent-1.paris", &Kept::Unreadable("it rots"), Failover::Never),
        Err(unread("it rots"))
    );
}

#[test]
fn a_group_whose_vms_are_kept_no_more_stays_its_sites() {
    let answer = |group_site| decide(&hello(), &Side { group_site, ..side(Kept::Not, &[]) });
    let own = side(Kept::Not, &[]).site;
    assert!(matches!(answer(Some(own)), Answer::Make(_)));
    let Answer::Refuse(refused) = answer(Some("oslo")) else { panic!("it takes the group of another site") };
    assert!(
        refused.why == Refusal::NotAccepted && refused.detail.contains("of site oslo"),
        "{}",
        refused.detail
    );
}
