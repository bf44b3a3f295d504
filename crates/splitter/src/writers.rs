//! Who may write to a disk: one client, the first that does, until its last connection has gone. Everybody else reads.
//!
//! A plain QEMU takes a lock on its image so that no second VM mounts the same file system and destroys it. Behind our
//! sockets that lock is the agent's, and this stands for it. A client is a process on this host, or a certificate over
//! TCP: several connections of one are one client. The QEMU that a VM has migrated to may write as soon as the one it
//! comes from has gone: its first write waits a while for that.
//!
//! A disk that is fenced takes no newcomers at all, see [`Fence`].

use crate::fence::Fence;
use crate::peer_process::{peer_process, started_at};
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// How long the first write of another client waits for one to go that has the disk and is there.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(3);
/// How long for one that may be gone already: a process that has ended while its last requests are under way, or a
/// host that is gone without a word, which is found out within 30 s.
const GONE_PATIENCE: Duration = Duration::from_secs(40);
/// So many refusals are remembered until they are asked for.
const REFUSALS_MAX: usize = 16;

/// Whoever is at the other end of a connection.
#[derive(Debug, Clone)]
pub struct Client {
    key: Key,
    label: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Process(u32),
    Named(String),
    /// Processes that the system does not name, as those of another container: they are one client, for a VM that has
    /// several connections must not be kept from its own disk.
    Unnamed,
}

impl Client {
    /// The process that has connected to a unix socket.
    pub fn of_process(stream: &UnixStream) -> Self {
        let Some(pid) = peer_process(stream) else {
            return Self { key: Key::Unnamed, label: "a process of another container".into() };
        };
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let label = match name.trim() {
            "" => format!("process {pid}"),
            name => format!("process {pid} ({name})"),
        };
        Self { key: Key::Process(pid), label }
    }

    /// Whether it is known to be there still.
    fn is_there(&self) -> bool {
        match &self.key {
            Key::Process(pid) => Path::new("/proc").join(pid.to_string()).exists(),
            Key::Named(_) => false,
            Key::Unnamed => true,
        }
    }

    /// Whoever goes by a name that nobody else can have, such as a certificate's.
    pub fn named(name: impl Into<String>) -> Self {
        let label = name.into();
        Self { key: Key::Named(label.clone()), label }
    }
}

impl PartialEq for Client {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for Client {}

impl Hash for Client {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.label)
    }
}

/// The clients of one disk.
#[derive(Debug, Default)]
pub struct Writers {
    /// Everybody may write: they agree among themselves, as the nodes of a cluster do.
    is_shared: bool,
    state: Mutex<State>,
    owner_gone: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// How many connections each has.
    clients: HashMap<Client, usize>,
    owner: Option<Client>,
    fence: Option<Fence>,
    refusals: Vec<Refusal>,
}

/// A client that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Its write, because another has the disk.
    Second { client: String, owner: String },
    /// It has come after the fence.
    Newcomer { client: String },
}

/// A client comes to a disk that is fenced, and was not there before.
#[derive(Debug, thiserror::Error)]
#[error(
    "{client} is refused: the group of this disk has failed over, and its disks take nobody who was not there before. Roll \
     the failover back at the other site, or unprotect the VM here"
)]
pub(crate) struct Newcomer {
    client: String,
}

impl Writers {
    /// Everybody may write.
    pub fn shared() -> Self {
        Self { is_shared: true, ..Self::default() }
    }

    /// Who writes to the disk, if somebody does.
    pub fn owner(&self) -> Option<String> {
        self.lock().owner.as_ref().map(Client::to_string)
    }

    /// The processes which the system names that may be the ones whose disk it is: whoever writes to it, if somebody
    /// does; else all clients.
    pub fn processes(&self) -> Vec<u32> {
        let process = |client: &Client| match client.key {
            Key::Process(pid) => Some(pid),
            Key::Named(_) | Key::Unnamed => None,
        };
        let state = self.lock();
        match &state.owner {
            Some(owner) => process(owner).into_iter().collect(),
            None => state.clients.keys().filter_map(process).collect(),
        }
    }

    /// The clients that are no processes which the system names: they cannot be told by their age.
    pub fn not_processes(&self) -> Vec<String> {
        let named = |client: &&Client| !matches!(client.key, Key::Process(_));
        self.lock().clients.keys().filter(named).map(Client::to_string).collect()
    }

    /// Takes no newcomers from here on; none of those that are here is one.
    pub fn fence(&self, fence: Fence) {
        let here = self.not_processes();
        let mut state = self.lock();
        let fence = state.fence.insert(fence);
        fence.known.extend(here);
    }

    /// Takes whoever comes.
    pub fn unfence(&self) {
        self.lock().fence = None;
    }

    /// Whether a client may come.
    pub(crate) fn admit(&self, client: &Client) -> Result<(), Newcomer> {
        let mut state = self.lock();
        let Some(fence) = &state.fence else { return Ok(()) };
        let is_known = match client.key {
            Key::Process(process) => fence.takes_process(started_at(process)),
            Key::Named(_) | Key::Unnamed => fence.takes_named(&client.label),
        };
        if is_known || state.clients.contains_key(client) {
            return Ok(());
        }
        let client = client.to_string();
        state.refuse(Refusal::Newcomer { client: client.clone() });
        Err(Newcomer { client })
    }

    /// Who was refused since this was asked last.
    pub fn take_refusals(&self) -> Vec<Refusal> {
        std::mem::take(&mut self.lock().refusals)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a panic aborts the process")
    }
}

impl State {
    fn refuse(&mut self, refusal: Refusal) {
        if self.refusals.len() < REFUSALS_MAX && !self.refusals.contains(&refusal) {
            self.refusals.push(refusal);
        }
    }
}

/// A connection of a client, as far as it writes.
#[derive(Debug)]
pub(crate) struct Writer {
    writers: Arc<Writers>,
    client: Client,
    /// Known once it is the owner, and true until it has gone.
    is_owner: AtomicBool,
    was_refused: AtomicBool,
}

impl Writer {
    /// Of a client that connects; none where nobody can write. Where another writes already, the log says so.
    pub(crate) fn connect(writers: Option<&Arc<Writers>>, client: Client) -> Option<Arc<Self>> {
        let writers = writers?.clone();
        let owner = {
            let mut state = writers.lock();
            *state.clients.entry(client.clone()).or_default() += 1;
            state.owner.clone().filter(|owner| *owner != client)
        };
        if let Some(owner) = owner {
            let (client, owner) = (client.to_string(), owner.to_string());
            tracing::info!(
                client,
                owner,
                "connected, and can only read while somebody else writes to this disk"
            );
        }
        let (is_owner, was_refused) = (AtomicBool::new(writers.is_shared), AtomicBool::new(false));
        Some(Arc::new(Self { writers, client, is_owner, was_refused }))
    }

    /// Whether it may write; the first that asks may, and others once it has gone.
    pub(crate) fn may_write(&self) -> bool {
        self.is_owner.load(Ordering::Relaxed) || self.may_become_owner(HANDOVER_PATIENCE, GONE_PATIENCE)
    }

    /// Waits for an owner for as long as `patience`, and then, for one that may be gone, as long as `gone_patience`.
    fn may_become_owner(&self, patience: Duration, gone_patience: Duration) -> bool {
        let is_others = |state: &mut State| state.owner.as_ref().is_some_and(|owner| *owner != self.client);
        let mut state = self.writers.lock();
        if is_others(&mut state) && !self.was_refused.load(Ordering::Relaxed) {
            let waited = self.writers.owner_gone.wait_timeout_while(state, patience, is_others);
            (state, _) = waited.expect("a panic aborts the process");
            if is_others(&mut state) && !state.owner.as_ref().is_some_and(Client::is_there) {
                let waited = self.writers.owner_gone.wait_timeout_while(state, gone_patience, is_others);
                (state, _) = waited.expect("a panic aborts the process");
            }
        }
        if is_others(&mut state) {
            if !self.was_refused.swap(true, Ordering::Relaxed) {
                let owner = state.owner.as_ref().map(Client::to_string).unwrap_or_default();
                let client = self.client.to_string();
                tracing::warn!(client, owner, "writes are refused: somebody else writes to this disk");
                state.refuse(Refusal::Second { client, owner });
            }
            return false;
        }
        state.owner = Some(self.client.clone());
        self.is_owner.store(true, Ordering::Relaxed);
        true
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut state = self.writers.lock();
        let left = state.clients.get_mut(&self.client).map_or(0, |connections| {
            *connections -= 1;
            *connections
        });
        if left > 0 {
            return;
        }
        state.clients.remove(&self.client);
        if state.owner.as_ref() == Some(&self.client) {
            state.owner = None;
            self.writers.owner_gone.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_ONCE: Duration = Duration::ZERO;

    fn connect(writers: &Arc<Writers>, name: &str) -> Arc<Writer> {
        Writer::connect(Some(writers), Client::named(name)).unwrap()
    }

    #[test]
    fn the_first_that_writes_has_the_disk_until_its_last_connection_has_gone() {
        let writers = Arc::new(Writers::default());
        let [first, again, other] = ["a", "a", "b"].map(|name| connect(&writers, name));
        assert_eq!(writers.owner(), None, "who only reads has nothing");
        assert!(first.may_become_owner(AT_ONCE, AT_ONCE));
        assert!(!other.may_become_owner(AT_ONCE, AT_ONCE) && again.may_become_owner(AT_ONCE, AT_ONCE));
        assert!(!other.may_become_owner(AT_ONCE, AT_ONCE));
        let refusal = Refusal::Second { client: "b".into(), owner: "a".into() };
        assert_eq!((writers.take_refusals(), writers.take_refusals()), (vec![refusal], vec![]));
        drop(first);
        assert!(!other.may_become_owner(AT_ONCE, AT_ONCE), "another connection of the same client is there");
        drop(again);
        assert_eq!(writers.owner(), None);
        assert!(other.may_write());
        assert!(!connect(&writers, "a").may_become_owner(AT_ONCE, AT_ONCE));
    }

    #[test]
    fn a_process_that_only_looks_is_not_the_one_whose_disk_it_is() {
        let writers = Arc::new(Writers::default());
        let process = |id| {
            let client = Client { key: Key::Process(id), label: String::new() };
            Writer::connect(Some(&writers), client).unwrap()
        };
        let (vm, _looks) = (process(1), process(2));
        let mut may_be = writers.processes();
        may_be.sort_unstable();
        assert_eq!(may_be, [1, 2]);
        assert!(vm.may_write());
        assert_eq!(writers.processes(), [1]);
    }

    #[test]
    fn a_write_waits_for_the_one_before_to_go() {
        let writers = Arc::new(Writers::default());
        let (before, next) = (connect(&writers, "before"), connect(&writers, "next"));
        assert!(before.may_write());
        std::thread::scope(|scope| {
            let taking_over = scope.spawn(|| next.may_become_owner(Duration::from_secs(600), AT_ONCE));
            drop(before);
            assert!(taking_over.join().unwrap());
        });
    }

    #[test]
    fn one_that_may_be_gone_is_waited_for_longer() {
        let writers = Arc::new(Writers::default());
        let (before, next) = (connect(&writers, "a host"), connect(&writers, "next"));
        assert!(before.may_write());
        std::thread::scope(|scope| {
            let taking_over = scope.spawn(|| next.may_become_owner(AT_ONCE, Duration::from_secs(600)));
            drop(before);
            assert!(taking_over.join().unwrap());
        });
        let this = Client { key: Key::Process(std::process::id()), label: String::new() };
        assert!(this.is_there() && !Client { key: Key::Process(u32::MAX), ..this }.is_there());
    }

    #[test]
    fn a_fenced_disk_takes_whoever_was_there_and_no_newcomer() {
        let writers = Arc::new(Writers::default());
        let [here, before, later] = ["here", "before", "later"].map(Client::named);
        let writer = connect(&writers, "here");
        let this = Client { key: Key::Process(std::process::id()), label: "this".into() };
        let takes = |clients: &[&Client]| clients.iter().for_each(|client| writers.admit(client).unwrap());
        takes(&[&here, &later, &this]);
        let known = || ["before".to_owned()].into();
        writers.fence(Fence { since: Duration::MAX, known: known() });
        takes(&[&here, &before, &this]);
        let said = writers.admit(&later).unwrap_err().to_string();
        assert!(said.starts_with("later is refused: the group of this disk has failed over"), "{said}");
        writers.admit(&later).unwrap_err();
        assert_eq!(writers.take_refusals(), [Refusal::Newcomer { client: "later".into() }]);
        drop(writer);
        writers.admit(&here).expect("it was there when the fence came");

        // As after a start of the host: no process is older.
        writers.fence(Fence { since: Duration::ZERO, known: known() });
        assert!(writers.admit(&this).is_err() && writers.admit(&here).is_err());
        writers.admit(&before).unwrap();
        writers.unfence();
        takes(&[&this, &later]);
    }

    #[test]
    fn a_shared_disk_is_everybodys() {
        let writers = Arc::new(Writers::shared());
        let both = ["a", "b"].map(|name| connect(&writers, name));
        assert!(both.iter().all(|writer| writer.may_write()));
    }

    #[test]
    fn connections_of_one_process_are_one_client() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert_eq!(Client::of_process(&ours), Client::of_process(&theirs));
        assert!(Client::of_process(&ours).to_string().contains(&std::process::id().to_string()));
        assert_ne!(Client::of_process(&ours), Client::named("process"));
    }
}
