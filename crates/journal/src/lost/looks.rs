//! How many pieces are looked at: tests count that, since what is done under a lock is bounded by it.

#[cfg(test)]
thread_local! {
    static LOOKED_AT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// One more was looked at.
pub(super) fn count() {
    #[cfg(test)]
    LOOKED_AT.with(|looked| looked.set(looked.get() + 1));
}

/// How many this thread looks at in `work`.
#[cfg(test)]
pub(crate) fn during(work: impl FnOnce()) -> usize {
    let before = LOOKED_AT.with(std::cell::Cell::get);
    work();
    LOOKED_AT.with(std::cell::Cell::get) - before
}
