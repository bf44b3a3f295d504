//! `agent.toml`: what it may say, and what is said back where it says it wrong.

pub use crate::link_limits::LinkConfig;
use crate::link_limits::{LimitWindow, RawLimitWindow};
use crate::policy::{OnFenced, Policy, StreamMode, TimeoutChoice, within};
use crate::rights::Role;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::Spanned;
use types::limits;

mod guests;

pub use guests::GuestsConfig;
use guests::RawGuests;

/// Where the operator's commands look for the agent and for keys too, unless they are told otherwise.
const RUN_DIR: &str = "/run/holdfast";
const PKI_DIR: &str = "/etc/holdfast/pki";
/// Modes of disks' sockets: with nobody else named, and with a group.
const SOCKET_MODE_OF_USER: u32 = 0o600;
const SOCKET_MODE_OF_GROUP: u32 = 0o660;

/// How frames are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As measured: what the data and the link are worth.
    #[default]
    Auto,
    None,
    Lz4,
    Zstd,
}

/// Where a journal's replica stands; see `journal::Mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum JournalMode {
    #[default]
    RollForward,
    Rollback,
}

impl From<JournalMode> for journal::Mode {
    fn from(mode: JournalMode) -> Self {
        match mode {
            JournalMode::RollForward => journal::Mode::RollForward,
            JournalMode::Rollback => journal::Mode::Rollback,
        }
    }
}

/// Groups of this host whose members have a role at the API's socket.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RightsConfig {
    viewer: Option<String>,
    operator: Option<String>,
    builder: Option<String>,
    admin: Option<String>,
}

impl RightsConfig {
    pub fn group_of(&self, role: Role) -> Option<&str> {
        match role {
            Role::Viewer => self.viewer.as_deref(),
            Role::Operator => self.operator.as_deref(),
            Role::Builder => self.builder.as_deref(),
            Role::Admin => self.admin.as_deref(),
        }
    }
}

/// What holds for all journals this agent keeps, unless one is set otherwise.
#[derive(Debug, Clone)]
pub struct JournalConfig {
    /// Journals lie in folders of it.
    pub folder: PathBuf,
    /// Replicas lie in folders of it, if not with their journals.
    pub replica_folder: Option<PathBuf>,
    /// A segment is closed at this size at the latest.
    pub segment_bytes: u64,
    pub mode: JournalMode,
    pub keep_all_seconds: u64,
    pub keep_minutely_seconds: u64,
    pub keep_tagged_seconds: u64,
    /// Nothing is kept shorter, whatever a protected side asks for.
    pub history_seconds_min: u64,
    /// Below this many free bytes nothing more is journaled.
    pub free_bytes_min: u64,
    /// Of all folding together; 0 for no limit.
    pub fold_bytes_per_second: u64,
    /// Of all scrubbing together; 0 turns it off.
    pub scrub_bytes_per_second: u64,
}

/// The agent's configuration, every value checked.
#[derive(Debug, Clone)]
pub struct Config {
    pub site: String,
    pub agent: String,
    pub state_dir: PathBuf,
    pub journal_dir: PathBuf,
    pub run_dir: PathBuf,
    pub pki_dir: PathBuf,
    pub api_socket: PathBuf,
    pub api_listen: Option<SocketAddr>,
    pub stream_listen: Option<SocketAddr>,
    /// Where disks are served over TCP, behind TLS.
    pub nbd_listen: Option<SocketAddr>,
    pub compression: Compression,
    pub link: LinkConfig,
    /// DSCP of the packets of streams, 0 to 63.
    pub dscp: u8,
    /// Memory of all buffers together, in bytes.
    pub buffer_pool_bytes: u64,
    /// Spills lie in folders of it.
    pub spill_dir: PathBuf,
    pub journal: JournalConfig,
    pub rights: RightsConfig,
    /// The group that may use the sockets of disks, beside the agent's user.
    pub socket_group: Option<String>,
    /// The mode of these sockets.
    pub socket_mode: u32,
    pub qemu: PathBuf,
    pub guests: GuestsConfig,
    /// What guests are started through: this binary as it is now, also where another version has been installed meanwhile.
    pub launcher: PathBuf,
    /// How often the change log of a VM under the tap is begun anew.
    pub change_log_seconds: u64,
    pub log_json: bool,
    /// What every alert is handed to.
    pub alert_command: Option<PathBuf>,
    pub(crate) defaults: Policy,
}

/// A configuration that cannot be used: where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}:{line}: {what}", path.display())]
pub struct ConfigError {
    pub path: PathBuf,
    pub line: usize,
    pub what: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    site: Spanned<String>,
    agent: Spanned<String>,
    state_dir: Spanned<PathBuf>,
    journal_dir: Option<PathBuf>,
    run_dir: Option<PathBuf>,
    pki_dir: Option<PathBuf>,
    #[serde(default)]
    api: RawApi,
    #[serde(default)]
    stream: RawStream,
    #[serde(default)]
    nbd: RawNbd,
    #[serde(default)]
    sockets: RawSockets,
    #[serde(default)]
    rights: RightsConfig,
    #[serde(default)]
    buffers: RawBuffers,
    #[serde(default)]
    journal: RawJournal,
    #[serde(default)]
    defaults: RawDefaults,
    #[serde(default)]
    qemu: RawQemu,
    #[serde(default)]
    guests: RawGuests,
    #[serde(default)]
    alerts: RawAlerts,
    #[serde(default)]
    log: RawLog,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawAlerts {
    command: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawApi {
    socket: Option<PathBuf>,
    listen: Option<SocketAddr>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawStream {
    listen: Option<SocketAddr>,
    #[serde(default)]
    compression: Compression,
    bytes_per_second: Option<u64>,
    #[serde(default)]
    limit: Vec<Spanned<RawLimitWindow>>,
    dscp: Option<Spanned<u64>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawNbd {
    listen: Option<SocketAddr>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawSockets {
    group: Option<String>,
    mode: Option<Spanned<u32>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawBuffers {
    pool_bytes: Option<Spanned<u64>>,
    spill_dir: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawJournal {
    segment_bytes: Option<Spanned<u64>>,
    replica_dir: Option<PathBuf>,
    #[serde(default)]
    mode: JournalMode,
    keep_all_seconds: Option<Spanned<u64>>,
    keep_minutely_seconds: Option<Spanned<u64>>,
    keep_tagged_seconds: Option<Spanned<u64>>,
    history_seconds_min: Option<Spanned<u64>>,
    free_bytes_min: Option<Spanned<u64>>,
    fold_bytes_per_second: Option<Spanned<u64>>,
    scrub_bytes_per_second: Option<Spanned<u64>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawDefaults {
    checkpoint_interval_seconds: Option<Spanned<u64>>,
    history_seconds: Option<Spanned<u64>>,
    journal_bytes_max: Option<Spanned<u64>>,
    rpo_seconds: Option<Spanned<u64>>,
    buffer_bytes: Option<Spanned<u64>>,
    spill_bytes: Option<Spanned<u64>>,
    #[serde(default)]
    mode: StreamMode,
    sync_timeout_seconds: Option<Spanned<u64>>,
    #[serde(default)]
    on_timeout: TimeoutChoice,
    priority: Option<Spanned<u64>>,
    bytes_per_second_max: Option<u64>,
    #[serde(default)]
    fail_when_exceeded: bool,
    #[serde(default)]
    coalesce: bool,
    #[serde(default)]
    on_fenced: OnFenced,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawQemu {
    binary: Option<PathBuf>,
    change_log_seconds: Option<Spanned<u64>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawLog {
    #[serde(default)]
    json: bool,
}

impl Config {
    /// Reads a file. Relative paths in it are relative to its folder.
    ///
    /// # Errors
    /// [`ConfigError`] naming the line and the cure.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let refuse = |what| ConfigError { path: path.to_path_buf(), line: 1, what };
        let text = std::fs::read_to_string(path).map_err(|error| {
            refuse(format!("cannot read the configuration: {error}; see config/agent.toml for a sample"))
        })?;
        Self::parse(&text, path)
    }

    /// Reads the text of a file that lies at `path`.
    ///
    /// # Errors
    /// [`ConfigError`] naming the line and the cure.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let at = |offset: usize, what: String| {
            let line = text[..offset.min(text.len())].matches('\n').count() + 1;
            ConfigError { path: path.to_path_buf(), line, what }
        };
        let raw: Raw = toml::from_str(text)
            .map_err(|error| at(error.span().map_or(0, |span| span.start), cure(error.message())))?;
        raw.check_names().map_err(|(offset, what)| at(offset, what))?;
        let base = path.parent().map(Path::to_path_buf).unwrap_or_default();
        let state_dir = base.join(raw.state_dir.get_ref());
        let outside = |given: Option<PathBuf>, default: &str| match given {
            Some(path) => base.join(path),
            None => PathBuf::from(default),
        };
        let inside = |given: Option<PathBuf>, name: &str| match given {
            Some(path) => base.join(path),
            None => state_dir.join(name),
        };
        let ranged = |name: &str, value: &Option<Spanned<u64>>, default, range| match value {
            None => Ok(default),
            Some(value) => match within(name, *value.get_ref(), range) {
                Ok(()) => Ok(*value.get_ref()),
                Err(error) => Err(at(value.span().start, error.detail)),
            },
        };
        let kept_from = raw.groups();
        let defaults = raw.defaults.to_policy(ranged)?;
        let journal_dir = inside(raw.journal_dir, "journals");
        let mut journal = raw.journal.check(ranged)?;
        journal.folder.clone_from(&journal_dir);
        journal.replica_folder = journal.replica_folder.map(|folder| base.join(folder));
        let run_dir = outside(raw.run_dir, RUN_DIR);
        let socket_mode = raw.sockets.mode().map_err(|(offset, what)| at(offset, what))?;
        let windows = raw.stream.windows().map_err(|(offset, what)| at(offset, what))?;
        let guests = raw.guests.check().map_err(|(offset, what)| at(offset, what))?;
        let dscp = ranged("dscp", &raw.stream.dscp, 0, (0, 63))?;
        let change_log_seconds = raw.qemu.change_log_seconds(ranged)?;
        let buffer_pool_bytes = ranged(
            "pool_bytes",
            &raw.buffers.pool_bytes,
            limits::BUFFER_POOL_BYTES_DEFAULT,
            limits::BUFFER_POOL_BYTES_RANGE,
        )?;
        Ok(Self {
            link: LinkConfig { bytes_per_second: raw.stream.bytes_per_second.unwrap_or(0), windows },
            dscp: u8::try_from(dscp).expect("checked to be at most 63"),
            buffer_pool_bytes,
            spill_dir: inside(raw.buffers.spill_dir, "spill"),
            journal_dir,
            pki_dir: outside(raw.pki_dir, PKI_DIR),
            socket_group: raw.sockets.group,
            socket_mode,
            rights: raw.rights,
            api_socket: raw.api.socket.map_or_else(|| run_dir.join("agent.sock"), |path| base.join(path)),
            run_dir,
            api_listen: raw.api.listen,
            stream_listen: raw.stream.listen,
            nbd_listen: raw.nbd.listen,
            compression: raw.stream.compression,
            journal,
            change_log_seconds,
            qemu: raw.qemu.binary.unwrap_or_else(|| "qemu-system-x86_64".into()),
            guests: GuestsConfig { kept_from, ..guests },
            launcher: format!("/proc/{}/exe", std::process::id()).into(),
            log_json: raw.log.json,
            alert_command: raw.alerts.command.map(|path| base.join(path)),
            defaults,
            site: raw.site.into_inner(),
            agent: raw.agent.into_inner(),
            state_dir,
        })
    }
}

/// What is wrong, and where in the text.
type Misplaced = (usize, String);

impl Raw {
    fn check_names(&self) -> Result<(), Misplaced> {
        for (name, value) in [("site", &self.site), ("agent", &self.agent)] {
            check_label(value.get_ref())
                .map_err(|what| (value.span().start, format!("{name} = {:?}: {what}", value.get_ref())))?;
        }
        Ok(())
    }
}

impl Raw {
    /// The groups that may use what the agent serves, each with the setting that names it.
    fn groups(&self) -> Vec<(String, String)> {
        let sockets = self.sockets.group.iter().map(|group| ("[sockets] group".to_owned(), group.clone()));
        let rights = Role::ALL
            .into_iter()
            .filter_map(|role| Some((format!("[rights] {role}"), self.rights.group_of(role)?.to_owned())));
        sockets.chain(rights).collect()
    }
}

impl RawStream {
    fn windows(&self) -> Result<Vec<LimitWindow>, Misplaced> {
        let parse = |window: &Spanned<RawLimitWindow>| {
            LimitWindow::parse(window.get_ref()).map_err(|what| (window.span().start, what))
        };
        self.limit.iter().map(parse).collect()
    }
}

impl RawSockets {
    fn mode(&self) -> Result<u32, Misplaced> {
        let Some(given) = &self.mode else {
            return Ok(if self.group.is_some() { SOCKET_MODE_OF_GROUP } else { SOCKET_MODE_OF_USER });
        };
        match *given.get_ref() {
            mode if mode & !SOCKET_MODE_OF_GROUP == 0 => Ok(mode),
            mode => {
                let what = format!(
                    "mode = 0o{mode:o} is more than 0o660: who may use a disk's socket reads and writes the disk; \
                     name the hypervisor's group with group = \"…\" instead"
                );
                Err((given.span().start, what))
            }
        }
    }
}

impl RawQemu {
    fn change_log_seconds(
        &self,
        ranged: impl Fn(&str, &Option<Spanned<u64>>, u64, (u64, u64)) -> Result<u64, ConfigError>,
    ) -> Result<u64, ConfigError> {
        let (default, range) = (limits::CHANGE_LOG_SECONDS_DEFAULT, limits::CHANGE_LOG_SECONDS_RANGE);
        ranged("change_log_seconds", &self.change_log_seconds, default, range)
    }
}

impl RawJournal {
    fn check(
        &self,
        ranged: impl Fn(&str, &Option<Spanned<u64>>, u64, (u64, u64)) -> Result<u64, ConfigError>,
    ) -> Result<JournalConfig, ConfigError> {
        let ages = (0, limits::HISTORY_SECONDS_RANGE.1);
        let keep_all_seconds =
            ranged("keep_all_seconds", &self.keep_all_seconds, limits::KEEP_ALL_SECONDS_DEFAULT, ages)?;
        Ok(JournalConfig {
            folder: PathBuf::new(),
            replica_folder: self.replica_dir.clone(),
            segment_bytes: ranged(
                "segment_bytes",
                &self.segment_bytes,
                limits::SEGMENT_BYTES_DEFAULT,
                limits::SEGMENT_BYTES_RANGE,
            )?,
            mode: self.mode,
            keep_all_seconds,
            keep_minutely_seconds: ranged(
                "keep_minutely_seconds",
                &self.keep_minutely_seconds,
                limits::KEEP_MINUTELY_SECONDS_DEFAULT.max(keep_all_seconds),
                (keep_all_seconds, ages.1),
            )?,
            keep_tagged_seconds: ranged("keep_tagged_seconds", &self.keep_tagged_seconds, 0, ages)?,
            history_seconds_min: ranged(
                "history_seconds_min",
                &self.history_seconds_min,
                limits::HISTORY_SECONDS_RANGE.0,
                limits::HISTORY_SECONDS_RANGE,
            )?,
            free_bytes_min: ranged(
                "free_bytes_min",
                &self.free_bytes_min,
                limits::FREE_BYTES_MIN_DEFAULT,
                limits::FREE_BYTES_MIN_RANGE,
            )?,
            fold_bytes_per_second: ranged(
                "fold_bytes_per_second",
                &self.fold_bytes_per_second,
                0,
                (0, u64::MAX),
            )?,
            scrub_bytes_per_second: ranged(
                "scrub_bytes_per_second",
                &self.scrub_bytes_per_second,
                limits::SCRUB_BYTES_PER_SECOND_DEFAULT,
                (0, u64::MAX),
            )?,
        })
    }
}

impl RawDefaults {
    fn to_policy(
        &self,
        ranged: impl Fn(&str, &Option<Spanned<u64>>, u64, (u64, u64)) -> Result<u64, ConfigError>,
    ) -> Result<Policy, ConfigError> {
        let base = Policy::default();
        Ok(Policy {
            checkpoint_interval_seconds: ranged(
                "checkpoint_interval_seconds",
                &self.checkpoint_interval_seconds,
                base.checkpoint_interval_seconds,
                limits::CHECKPOINT_INTERVAL_SECONDS_RANGE,
            )?,
            history_seconds: ranged(
                "history_seconds",
                &self.history_seconds,
                base.history_seconds,
                limits::HISTORY_SECONDS_RANGE,
            )?,
            journal_bytes_max: ranged(
                "journal_bytes_max",
                &self.journal_bytes_max,
                base.journal_bytes_max,
                limits::JOURNAL_BYTES_RANGE,
            )?,
            rpo_seconds: ranged(
                "rpo_seconds",
                &self.rpo_seconds,
                base.rpo_seconds,
                limits::RPO_SECONDS_RANGE,
            )?,
            buffer_bytes: ranged(
                "buffer_bytes",
                &self.buffer_bytes,
                base.buffer_bytes,
                limits::BUFFER_BYTES_RANGE,
            )?,
            spill_bytes: ranged(
                "spill_bytes",
                &self.spill_bytes,
                base.spill_bytes,
                (0, limits::SPILL_BYTES_MAX),
            )?,
            mode: self.mode,
            sync_timeout_seconds: ranged(
                "sync_timeout_seconds",
                &self.sync_timeout_seconds,
                base.sync_timeout_seconds,
                limits::SYNC_TIMEOUT_SECONDS_RANGE,
            )?,
            on_timeout: self.on_timeout,
            priority: ranged("priority", &self.priority, base.priority, limits::PRIORITY_RANGE)?,
            bytes_per_second_max: self.bytes_per_second_max.unwrap_or(0),
            fail_when_exceeded: self.fail_when_exceeded,
            coalesce: self.coalesce,
            on_fenced: self.on_fenced,
        })
    }
}

/// Checks a name that becomes part of a host name: letters, digits and hyphens.
pub(crate) fn check_label(name: &str) -> Result<(), &'static str> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 40 || !name.chars().all(allowed) || name.starts_with('-') {
        return Err("use 1 to 40 lower-case letters, digits and hyphens");
    }
    Ok(())
}

/// Adds what to do to what the parser says.
fn cure(message: &str) -> String {
    if message.starts_with("unknown field") {
        format!("{message}; remove it or correct its spelling")
    } else if message.starts_with("missing field") {
        format!("{message}; add it, config/agent.toml shows how")
    } else if message.starts_with("unknown variant") {
        format!("{message}; use one of these")
    } else {
        format!("{message}; correct this line")
    }
}

#[cfg(test)]
mod tests;
