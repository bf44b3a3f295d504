//! Guests wait for the threads that serve their disks, and for no other of the agent: these go before the stream's.

use rustix::process::setpriority_process;

/// Nine times the weight of a thread at 0, by the kernel's table; guests' own processors stand at 0.
const NICE: i32 = -10;

/// The calling thread goes before the others of this process, and so do threads that it starts from here on, where
/// the system allows it.
pub(crate) fn take() {
    static SAID: std::sync::Once = std::sync::Once::new();
    // Linux keeps this for each thread; none is the one that asks.
    if let Err(error) = setpriority_process(None, NICE) {
        SAID.call_once(|| {
            tracing::info!(
                %error,
                "disks are served at the stream's own priority; CAP_SYS_NICE, or LimitNICE={NICE} in the unit, lets \
                 guests go before it on a busy host"
            );
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use rustix::process::getpriority_process;

    /// A process that may not do so stays where it is, which this test does not look at.
    #[test]
    fn a_thread_goes_before_the_one_that_started_it() {
        let before = getpriority_process(None).unwrap();
        let (its, of_its_own) = std::thread::spawn(|| {
            super::take();
            let of_its_own = std::thread::spawn(|| getpriority_process(None).unwrap());
            (getpriority_process(None).unwrap(), of_its_own.join().unwrap())
        })
        .join()
        .unwrap();
        assert!(its == super::NICE || its == before);
        assert_eq!(its, of_its_own);
        assert_eq!(getpriority_process(None).unwrap(), before);
    }
}
