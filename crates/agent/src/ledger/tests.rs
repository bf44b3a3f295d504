//! What holds of the operations of any side, whatever they are of.

use super::*;
use operations::Ledger as _;
use serde::Deserialize;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;

thread_local! {
    /// Looks around while a plan is being written down.
    static WHILE_SAVED: RefCell<Option<Box<dyn Fn()>>> = const { RefCell::new(None) };
}

/// Of nothing, in one step.
#[derive(Debug, Clone, Deserialize)]
#[serde(from = "()")]
struct Probe;

impl From<()> for Probe {
    fn from((): ()) -> Self {
        Self
    }
}

impl Serialize for Probe {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        WHILE_SAVED.with_borrow(|look| look.iter().for_each(|look| look()));
        serializer.serialize_unit()
    }
}

#[derive(Debug, Clone, Copy)]
struct Step;

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("do nothing")
    }
}

impl Plan for Probe {
    type Step = Step;

    fn steps(&self) -> Vec<Step> {
        vec![Step]
    }

    fn is_final(&self, _: Step) -> bool {
        false
    }

    fn may_be_left(&self, _: Step) -> bool {
        false
    }

    fn locks(&self) -> BTreeSet<Lock> {
        BTreeSet::new()
    }

    fn counts_as(&self) -> Option<&'static str> {
        None
    }
}

impl OwnPlan for Probe {
    fn kind(&self) -> &'static str {
        "probe"
    }

    fn about(&self) -> String {
        "nothing".into()
    }

    fn subject(&self) -> Subject {
        Subject::default()
    }

    fn meanwhile(&self) -> &'static str {
        ""
    }
}

fn side(folder: &std::path::Path) -> Arc<Operations<Probe>> {
    let state = Arc::new(StateDir::open(folder).unwrap());
    Arc::new(Operations::new(state.clone(), Arc::new(Alerts::remembered_in(state)), "operations"))
}

#[test]
fn nobody_carries_an_operation_out_before_it_is_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let (side, looked) = (side(folder.path()), Arc::new(Mutex::new(Vec::new())));
    let look = {
        let (side, looked) = (side.clone(), looked.clone());
        // As whoever goes on with what nobody carries out.
        move || {
            let free = side.unended().iter().filter(|(id, _)| !side.busy.is_busy(id)).count();
            looked.lock().unwrap().push((side.unended().len(), free));
        }
    };
    WHILE_SAVED.set(Some(Box::new(look)));
    let held = side.begin(|| Probe, &Asker::default()).unwrap();
    let id = held.id;
    WHILE_SAVED.set(None);
    assert_eq!(*looked.lock().unwrap(), [(1, 0)]);
    drop(held);
    assert!(side.hold(id).is_some());
}

#[test]
fn a_request_that_is_sent_again_is_known_also_by_the_next_agent_and_another_by_its_name_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let key = |key: &str, request: &str| RequestKey { key: key.into(), request: request.into() };
    let asked = |key: RequestKey| Asker::of_request(Some(key), Box::new(()), true);
    let first = side(folder.path());
    let ((_one, one), (_other, other)) = (asked(key("k", "copy")), asked(key("l", "copy")));
    let id = first.begin(|| Probe, &one).unwrap().id;
    drop(first.join(id, &other).unwrap());
    assert_eq!(first.same(&key("l", "copy")).unwrap(), Some(id), "it has found it under way");
    let refused = first.same(&key("l", "move")).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Invalid, "{refused}");
    drop(first);
    let next = side(folder.path());
    next.resume().unwrap();
    assert_eq!(next.same(&key("k", "copy")).unwrap(), Some(id));
    let refused = next.same(&key("k", "move")).unwrap_err();
    assert!(refused.kind == ErrorKind::Invalid && refused.detail.contains("another request"), "{refused}");
    assert_eq!(next.same(&key("n", "copy")).unwrap(), None);
}

/// He would wait for the end of what has never begun.
#[test]
fn whoever_asks_for_what_could_not_be_recorded_is_not_told_that_it_has_begun() {
    let folder = tempfile::tempdir().unwrap();
    let side = side(folder.path());
    let (look, looks) = std::sync::mpsc::channel();
    let (go_on, goes_on) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let (begins, place) = (side.clone(), folder.path().join("operations"));
        scope.spawn(move || {
            WHILE_SAVED.set(Some(Box::new(move || {
                // As where its disk is full.
                std::fs::remove_dir_all(&place).unwrap();
                std::fs::write(&place, "").unwrap();
                look.send(()).unwrap();
                goes_on.recv().unwrap();
            })));
            begins.begin(|| Probe, &Asker::default()).map(|held| held.id).unwrap_err();
            WHILE_SAVED.set(None);
        });
        looks.recv().unwrap();
        let (id, _) = side.unended().remove(0);
        let (joined, has_joined) = std::sync::mpsc::channel();
        let by_another = side.clone();
        let joins = scope.spawn(move || {
            let joins = by_another.join(id, &Asker::default()).map(|held| held.is_some());
            let _ = joined.send(());
            joins
        });
        // He would be answered by now if he did not have to wait.
        let _ = has_joined.recv_timeout(Duration::from_millis(200));
        go_on.send(()).unwrap();
        let refused = joins.join().unwrap().unwrap_err();
        assert_eq!(refused.kind, ErrorKind::Unavailable, "{refused}");
    });
    assert!(side.unended().is_empty());
}

#[test]
fn that_the_end_of_a_forgotten_operation_was_heard_brings_no_record_of_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let side = side(folder.path());
    let id = side.begin(|| Probe, &Asker::default()).unwrap().id;
    let begun = side.book().get(id).map(|(record, _)| record.clone()).unwrap();
    let taken_back = Record { standing: Standing::TakenBack { why: "full".into() }, ..begun };
    let path = side.state.path(&side.file_name(id));
    side.book().forget(id);
    std::fs::remove_file(&path).unwrap();
    side.note_heard(&taken_back);
    assert!(!path.exists());
}

/// Both sides of an agent are asked for an operation: the one that does not have it tells nobody that it has ended.
#[test]
fn who_asks_a_side_for_what_it_does_not_have_waits_on() {
    let folder = tempfile::tempdir().unwrap();
    let side = side(folder.path());
    let (presence, asker) = Asker::present();
    assert_eq!(side.listen(OperationId::from_bytes([1; 16]), &asker), None);
    assert!(presence.leave(), "nothing is told to him");
    assert!(side.lock_listeners().is_empty());
}

#[test]
fn who_comes_to_an_operation_that_has_just_ended_takes_its_end_from_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let side = side(folder.path());
    let id = side.begin(|| Probe, &Asker::nobody()).unwrap().id;
    let (waits, waiting) = Asker::present();
    side.listen(id, &waiting).unwrap();
    let record = side.book().get(id).map(|(record, _)| record.clone()).unwrap();
    side.keep(&Record { standing: Standing::Done, ..record }).unwrap();
    let (looks, looking) = Asker::present();
    side.listen(id, &looking).unwrap();
    assert!(!looks.leave(), "he is told at once");
    assert!(side.is_heard(id, None));
    assert!(!waits.leave(), "he is told as well");
}
