//! All operations of one agent: which go on, what they lock, and which request began each.

use crate::control::Control;
use crate::lock::Lock;
use crate::plan::Plan;
use crate::record::{BadRecord, OperationId, Record, RequestKey, Standing};
use std::collections::BTreeMap;
use std::sync::Arc;
use types::limits::{ENDED_OPERATIONS_MAX, OPERATION_KEY_BYTES_MAX, OPERATIONS_MAX};

/// What came of asking for an operation.
#[derive(Debug)]
pub enum Begun<P> {
    /// It is a new one. Its record is to be made durable before its first step.
    New(Record<P>, Arc<Control>),
    /// The same request was made before.
    Same(OperationId),
}

/// Why an operation does not begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Another one has what this would change.
    #[error("{lock} is being changed by operation {by}: wait for its end, or cancel it")]
    Locked { lock: Lock, by: OperationId },
    /// As many as there may be.
    #[error("{OPERATIONS_MAX} operations of kind {kind} go on already: wait for some to end, or cancel one")]
    TooMany { kind: &'static str },
    /// The record is none that can be gone on with.
    #[error(transparent)]
    Bad(#[from] BadRecord),
    /// The key belongs to a request for something else.
    #[error("the idempotency key {0:?} was used for another request: choose another for each")]
    KeyOfAnother(String),
    #[error("an idempotency key has 1 to {OPERATION_KEY_BYTES_MAX} bytes")]
    BadKey,
}

#[derive(Debug)]
struct Row<P> {
    record: Record<P>,
    control: Arc<Control>,
}

/// The operations. Ended ones stay for a while, so that whoever asks hears how they ended.
#[derive(Debug)]
pub struct Book<P> {
    rows: BTreeMap<OperationId, Row<P>>,
    locks: BTreeMap<Lock, OperationId>,
}

impl<P> Default for Book<P> {
    fn default() -> Self {
        Self { rows: BTreeMap::new(), locks: BTreeMap::new() }
    }
}

impl<P: Plan> Book<P> {
    /// Takes up an operation that was recorded. What it locks is its own again, before anybody else may begin.
    ///
    /// # Errors
    /// If another one has a lock of it: two records cannot both go on. Or if it is none that can be gone on with.
    pub fn resume(&mut self, record: Record<P>) -> Result<Arc<Control>, Refused> {
        record.check()?;
        if !record.standing.is_end() {
            self.lock(&record)?;
        }
        let control = Arc::new(Control::default());
        if matches!(record.standing, Standing::Forward { .. }) && !record.has_way_back() {
            // Whoever cancels it is told that it is too late. Nobody has yet.
            let _ = control.shut();
        }
        self.rows.insert(record.id, Row { record, control: control.clone() });
        Ok(control)
    }

    /// The operation that the same request began, before anything is planned for it: what has been done already can
    /// often not be planned again.
    ///
    /// # Errors
    /// If the key is none, or was another request's.
    pub fn same(&self, key: &RequestKey) -> Result<Option<OperationId>, Refused> {
        let RequestKey { key, request } = key;
        if key.is_empty() || key.len() > OPERATION_KEY_BYTES_MAX {
            return Err(Refused::BadKey);
        }
        let keyed = self.rows.values().filter_map(|row| Some((row.record.key.as_ref()?, row.record.id)));
        let mut before = keyed.filter(|(before, _)| before.key == *key);
        match before.next() {
            Some((before, id)) if before.request == *request => Ok(Some(id)),
            Some(_) => Err(Refused::KeyOfAnother(key.clone())),
            None => Ok(None),
        }
    }

    /// Begins an operation, or finds the one that the same request began.
    ///
    /// # Errors
    /// As [`Refused`] says.
    pub fn begin(
        &mut self,
        id: OperationId,
        plan: P,
        key: Option<RequestKey>,
        now: i64,
    ) -> Result<Begun<P>, Refused> {
        if let Some(id) = key.as_ref().map_or(Ok(None), |key| self.same(key))? {
            return Ok(Begun::Same(id));
        }
        if let Some(kind) = plan.counts_as().filter(|kind| self.going(kind) >= OPERATIONS_MAX) {
            return Err(Refused::TooMany { kind });
        }
        let standing = Standing::Forward { next: 0 };
        let record = Record {
            id,
            plan,
            standing,
            key,
            left_undone: Vec::new(),
            began_at: now,
            ended_at: None,
            heard: false,
        };
        self.lock(&record)?;
        let control = Arc::new(Control::default());
        self.rows.insert(id, Row { record: record.clone(), control: control.clone() });
        Ok(Begun::New(record, control))
    }

    /// How many of a kind have not ended.
    fn going(&self, kind: &str) -> usize {
        let going = self.rows.values().map(|row| &row.record).filter(|record| !record.standing.is_end());
        going.filter(|record| record.plan.counts_as() == Some(kind)).count()
    }

    fn lock(&mut self, record: &Record<P>) -> Result<(), Refused> {
        let locks = record.plan.locks();
        if let Some((lock, by)) = locks.iter().find_map(|lock| Some((*lock, *self.locks.get(lock)?))) {
            return Err(Refused::Locked { lock, by });
        }
        self.locks.extend(locks.into_iter().map(|lock| (lock, record.id)));
        Ok(())
    }

    /// Notes how far an operation is. Of one that has ended the locks are given back; the ids of those that are no
    /// longer remembered are returned: their records may go.
    pub fn note(&mut self, record: &Record<P>) -> Vec<OperationId> {
        let Some(row) = self.rows.get_mut(&record.id) else { return Vec::new() };
        row.record = record.clone();
        if !record.standing.is_end() {
            return Vec::new();
        }
        self.locks.retain(|_, by| *by != record.id);
        // Whatever the clock says, the one that has just ended is not the oldest: somebody waits for it.
        let ended = self.rows.values().filter_map(|row| Some((row.record.ended_at?, row.record.id)));
        let mut ended: Vec<_> = ended.filter(|(_, id)| *id != record.id).collect();
        ended.sort_unstable();
        let surplus = (ended.len() + 1).saturating_sub(ENDED_OPERATIONS_MAX);
        let old: Vec<_> = ended.into_iter().take(surplus).map(|(_, id)| id).collect();
        for id in &old {
            self.rows.remove(id);
        }
        old
    }

    /// Forgets one whose record could not be written: it has done nothing.
    pub fn forget(&mut self, id: OperationId) {
        self.rows.remove(&id);
        self.locks.retain(|_, by| *by != id);
    }

    /// Who is at this.
    #[must_use]
    pub fn holder(&self, lock: Lock) -> Option<OperationId> {
        self.locks.get(&lock).copied()
    }

    /// One operation.
    #[must_use]
    pub fn get(&self, id: OperationId) -> Option<(&Record<P>, &Arc<Control>)> {
        self.rows.get(&id).map(|row| (&row.record, &row.control))
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = (&Record<P>, &Arc<Control>)> {
        self.rows.values().map(|row| (&row.record, &row.control))
    }
}
