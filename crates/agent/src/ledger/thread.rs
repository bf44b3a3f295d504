//! The threads that operations are carried out in. They are none of the runtime's: what takes hours holds up neither
//! requests nor the agent's stop, after which it goes on where it was.

use tokio::runtime::Handle;

/// Does `work` in a thread of its own, which is not waited for when the agent stops.
///
/// # Errors
/// Where no thread can be started.
pub(crate) fn in_thread(work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let runtime = Handle::try_current().ok();
    let run = move || {
        let _entered = runtime.as_ref().map(Handle::enter);
        work();
    };
    std::thread::Builder::new().name("operation".into()).spawn(run).map(drop)
}
