//! What a driver says, and when.

use super::*;
use crate::source::record::ProtectionRecord;
use crate::source::tests::{record, source, take_up};
use joint::membership::FirstSync;
use types::RunNumber;

fn driver(vm: &Arc<ProtectedVm>, source: &Arc<Source>) -> (Driver, mpsc::UnboundedReceiver<Outgoing>) {
    let mut driver = Driver::new(vm.clone(), source.clone(), Arc::default(), mpsc::channel(INPUTS_AHEAD).0);
    let (queue, said) = mpsc::unbounded_channel();
    driver.link.queue = Some(queue);
    (driver, said)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_sync_is_closed_once_it_is_written_down_that_its_end_may_be_heard() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let vm = take_up(&source, record(folder.path(), "web", FirstSync::Running));
    let (mut driver, _said) = driver(&vm, &source);
    vm.capture().leave_tracking();
    let file_name = vm.record().file_name();
    let hinders = source.state.path(&file_name).with_extension("partial");
    std::fs::create_dir_all(&hinders).unwrap();
    driver.close_sync();
    assert!(vm.capture().status().gap_open && vm.first_sync() == FirstSync::Running);
    std::fs::remove_dir(&hinders).unwrap();
    driver.close_sync();
    let recorded: ProtectionRecord = source.state.load(&file_name).unwrap().unwrap();
    assert_eq!(recorded.first_sync, FirstSync::Closing);
    assert!(!vm.capture().status().gap_open && vm.first_sync() == FirstSync::Closing);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_run_of_what_a_greeting_tells_is_recorded_first() {
    let folder = tempfile::tempdir().unwrap();
    let source = source(folder.path());
    let vm = take_up(&source, record(folder.path(), "web", FirstSync::Running));
    let greet = |run| {
        let (mut driver, mut said) = driver(&vm, &source);
        let told = WriteSeq::before_run(RunNumber(run)).next();
        driver.greet(Epoch::FIRST, Incarnation::from_bytes([1; 16]), WriteSeq::ZERO, told);
        said.try_recv().is_ok()
    };
    assert!(greet(9));
    assert_eq!(source.state.next_run().unwrap(), RunNumber(10));
    std::fs::create_dir(source.state.path("run.partial")).unwrap();
    assert!(!greet(20), "it is told of a run that is not recorded");
}
