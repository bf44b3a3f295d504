//! The command line.

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use std::path::PathBuf;

/// Where an agent's API is unless it is told otherwise.
const SOCKET: &str = "/run/holdfast/agent.sock";

/// Continuous data protection and disaster recovery for virtual machines.
#[derive(Debug, Parser)]
#[command(name = "holdfast", version, about, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) connect: Connect,
    /// Print one JSON document instead of text.
    #[arg(long, global = true, help_heading = None)]
    pub(crate) json: bool,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which agent to talk to.
#[derive(Debug, Args)]
#[command(next_help_heading = "Which agent to talk to")]
pub(crate) struct Connect {
    /// The agent's API socket.
    #[arg(
        long,
        global = true,
        env = "HOLDFAST_SOCKET",
        default_value = SOCKET,
        value_parser = socket_path,
        value_name = "PATH"
    )]
    pub(crate) socket: PathBuf,
    /// Talk to an agent over TLS instead: HOST:PORT. Needs --ca, --cert and --key.
    #[arg(long, global = true, value_name = "HOST:PORT", requires_all = ["ca", "cert", "key"])]
    pub(crate) agent: Option<String>,
    /// The CA certificate of the agent's site.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// Your certificate, issued by that CA.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) cert: Option<PathBuf>,
    /// The key of your certificate.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
}

/// An empty variable counts as none.
fn socket_path(given: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(PathBuf::from(if given.is_empty() { SOCKET } else { given }))
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the agent on this host.
    Agent {
        /// The agent's configuration.
        #[arg(long, default_value = "/etc/holdfast/agent.toml", value_name = "FILE")]
        config: PathBuf,
        /// Only check the configuration.
        #[arg(long)]
        check: bool,
    },
    /// Keys and certificates of this site, and whom it trusts.
    #[command(subcommand)]
    Pki(PkiCommand),
    /// Protected VMs.
    #[command(subcommand)]
    Vm(VmCommand),
    /// Everything on the agent: state, RPO, buffers, journals.
    Status {
        /// Print it again every second until interrupted.
        #[arg(long)]
        watch: bool,
    },
    /// What is wrong, since when, and what to do about it.
    Alerts,
    /// Protection groups and their hosts.
    #[command(subcommand)]
    Group(GroupCommand),
    /// Checkpoints of groups and VMs.
    #[command(subcommand)]
    Checkpoint(CheckpointCommand),
    /// Images: a VM's disks as of a checkpoint.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Start a group at this side, and keep or undo that.
    #[command(subcommand)]
    Failover(FailoverCommand),
    /// Journals: their settings and pins; their folders, offline.
    #[command(subcommand)]
    Journal(JournalCommand),
    /// What changes more than one thing and goes on after a crash: failovers, commits and rollbacks, promotions, journals
    /// that are moved, VMs that are forgotten.
    #[command(subcommand)]
    Operation(OperationCommand),
    /// Print a completion script for your shell.
    Completions { shell: Shell },
    /// Print the OpenAPI document of the agent's API.
    Openapi,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PkiCommand {
    /// Make this site's certificate authority.
    Init {
        #[arg(long, default_value = "/etc/holdfast/pki", value_name = "FOLDER")]
        dir: PathBuf,
        /// The site's name.
        #[arg(long)]
        site: String,
    },
    /// Issue a certificate for an agent of this site, or for an operator.
    Issue {
        #[arg(long, default_value = "/etc/holdfast/pki", value_name = "FOLDER")]
        dir: PathBuf,
        /// The agent's name.
        #[arg(long, required_unless_present = "operator")]
        agent: Option<String>,
        /// A host name or address the agent is reached at; may be given again.
        #[arg(long = "host", value_name = "HOST")]
        hosts: Vec<String>,
        /// How long it is valid.
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
        /// Issue a certificate for an operator, or a hypervisor on another host, to NAME.pem and NAME.key instead of the
        /// agent's own.
        #[arg(long, value_name = "NAME")]
        operator: Option<String>,
    },
    /// Trust another site's certificate authority.
    Trust {
        #[arg(long, default_value = "/etc/holdfast/pki", value_name = "FOLDER")]
        dir: PathBuf,
        /// The other site's name.
        #[arg(long)]
        site: String,
        /// Its CA certificate (`ca.pem`).
        certificate: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Protect a VM: prints the NBD socket to start it on.
    Protect(Box<Protect>),
    /// The VMs protected here.
    List,
    /// One protected VM.
    Show { name: String },
    /// Stop sending; changes are tracked in the bitmap.
    Pause { name: String },
    /// Send again, beginning with what changed meanwhile.
    Resume {
        name: String,
        /// Wait until everything is sent, and show how far it is.
        #[arg(long)]
        wait: bool,
    },
    /// Compare both sides while the guest writes, and send again what differs. Exit code 7 where something
    /// did, or could not be read.
    Verify {
        name: String,
        /// Begin only, and do not wait for the end; `vm show` tells how far it is.
        #[arg(long)]
        no_wait: bool,
    },
    /// Compare both sides from the beginning and send what differs; until then no checkpoint is taken.
    /// Checkpoints that are there stay.
    Resync {
        name: String,
        /// Wait until it is done, and show how far it is.
        #[arg(long)]
        wait: bool,
    },
    /// End a protection. The VM's image stays; the journal at the other side stays too.
    Unprotect { name: String },
    /// At the recovery side: forget a VM and remove its journal, for good. At the protected side: no longer tell a recovery
    /// side that is gone for good that a VM was unprotected.
    Forget { name: String },
}

#[derive(Debug, Args)]
pub(crate) struct Protect {
    pub(crate) name: String,
    /// A disk, NAME=PATH: `vda=/var/lib/images/web.raw`; may be given again.
    #[arg(long = "disk", value_name = "NAME=PATH", required_unless_present = "qmp")]
    pub(crate) disks: Vec<String>,
    /// Protect a VM that runs on its own image, without a restart: the path of a QMP socket of its QEMU that
    /// nobody else uses. Disks are NAME=DEVICE then; all that can be written if none is given.
    #[arg(long, value_name = "SOCKET")]
    pub(crate) qmp: Option<PathBuf>,
    /// Let several clients write to the disks at once, as the nodes of a cluster do; else one VM has a disk until it is
    /// gone.
    #[arg(long, conflicts_with = "qmp")]
    pub(crate) shared: bool,
    /// `raw`: take the disks for raw ones though they begin as images of another format do, which a guest can write.
    #[arg(long, value_parser = ["raw"], conflicts_with = "qmp")]
    pub(crate) format: Option<String>,
    /// Make each disk a block device of this host, /dev/ublkbN, for what runs here without a hypervisor. Needs a
    /// holdfast built with it, and the kernel's ublk driver.
    #[arg(long, conflicts_with = "qmp")]
    pub(crate) ublk: bool,
    /// The recovery side's agent.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) peer: String,
    /// The protection group; the VM's own name by default.
    #[arg(long)]
    pub(crate) group: Option<String>,
    /// The agent that coordinates the group, where its first VM is protected on another host.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) coordinator: Option<String>,
    /// Wait until the initial sync is done, and show how far it is.
    #[arg(long)]
    pub(crate) wait: bool,
    /// The VM's definition, TOML, which the recovery side starts it from.
    #[arg(long, value_name = "FILE")]
    pub(crate) definition: Option<PathBuf>,
    /// Seconds between automatic checkpoints, 1 to 60.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) checkpoint_interval: Option<u64>,
    /// The history window in seconds, 3600 (1 h) to 2592000 (30 d).
    #[arg(long, value_name = "SECONDS")]
    pub(crate) history: Option<u64>,
    /// The journal's size limit in bytes, 1 GB to 20 TB.
    #[arg(long, value_name = "BYTES")]
    pub(crate) journal_max: Option<u64>,
    /// The RPO bound in seconds, 1 to 3600.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) rpo: Option<u64>,
    /// The memory buffer in bytes, 1 MiB to 4 GiB.
    #[arg(long, value_name = "BYTES")]
    pub(crate) buffer: Option<u64>,
    /// The spill on the agent's disk, in bytes: it keeps history whole through an outage. 0 turns it off.
    #[arg(long, value_name = "BYTES")]
    pub(crate) spill: Option<u64>,
    /// `async`, or `sync`: the guest's writes wait until they are durable at the recovery side.
    #[arg(long, value_parser = ["async", "sync"])]
    pub(crate) mode: Option<String>,
    /// How long a write waits at most, in synchronous mode, 1 to 300.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) sync_timeout: Option<u64>,
    /// What becomes of a write that waited that long: `degrade` (it goes on, with an alert) or `hold`.
    #[arg(long, value_parser = ["degrade", "hold"])]
    pub(crate) on_timeout: Option<String>,
    /// The group's weight on the link, 1 to 9.
    #[arg(long, value_name = "1-9")]
    pub(crate) priority: Option<u64>,
    /// The most the group sends, in bytes a second; 0 for no limit.
    #[arg(long, value_name = "BYTES")]
    pub(crate) rate: Option<u64>,
    /// Stop the protection when its RPO or its history is not kept to.
    #[arg(long)]
    pub(crate) fail_when_exceeded: bool,
    /// Leave out, while the link is too slow, what is overwritten before the next checkpoint.
    #[arg(long)]
    pub(crate) coalesce: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CheckpointCommand {
    /// The checkpoints of a VM whose journal is kept here, oldest first.
    List {
        /// The VM: its name, SITE/NAME or id.
        #[arg(long)]
        vm: String,
        /// The most rows to print.
        #[arg(long, default_value_t = 1000)]
        limit: usize,
        /// Begin behind this one, as printed at the end of the page before.
        #[arg(long)]
        cursor: Option<String>,
        /// Taken at this time (RFC 3339) or later.
        #[arg(long, value_name = "TIME")]
        from: Option<String>,
        /// Taken at this time (RFC 3339) or earlier.
        #[arg(long, value_name = "TIME")]
        to: Option<String>,
        /// Only `automatic` or only `tagged` ones.
        #[arg(long, value_name = "KIND")]
        kind: Option<String>,
        /// Only those with these words.
        #[arg(long)]
        tag: Option<String>,
        /// Newest first.
        #[arg(long)]
        newest_first: bool,
    },
    /// Take a checkpoint of a group now, with your words. On the protected side.
    Tag {
        /// The protection group: its name, SITE/NAME or id.
        #[arg(long)]
        group: String,
        /// Your words.
        tag: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum GroupCommand {
    /// The groups: their VMs, hosts and failovers.
    List,
    /// Forget a host that will not come back, so that checkpoints are taken without its VMs. At the coordinator.
    RemoveHost {
        /// The protection group: its name, SITE/NAME or id.
        #[arg(long)]
        group: String,
        /// The host, as `group list` names it.
        host: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Open an image: prints the NBD socket to attach to.
    Open {
        /// The VM: its name, SITE/NAME or id.
        #[arg(long)]
        vm: String,
        /// `latest`, a checkpoint's id, a time (RFC 3339) or a tag.
        #[arg(long)]
        at: String,
        /// Let writes go to an overlay.
        #[arg(long)]
        writable: bool,
    },
    /// The open images.
    List,
    /// Turn a writable image into plain disks that need nothing of the journal, while it is in use.
    Promote {
        id: String,
        /// Bytes a second; as fast as it goes by default.
        #[arg(long, default_value_t = 0, value_name = "BYTES")]
        rate: u64,
        /// Make zeroes of what the journal has lost for good, and say where. Without it the promotion waits there.
        #[arg(long)]
        lost_as_zeroes: bool,
        /// Wait until it is done, and show how far it is.
        #[arg(long)]
        wait: bool,
    },
    /// Close an image and throw its overlay away. The disks of one that was promoted are kept.
    Close {
        id: String,
        /// Also one of a committed failover that is not promoted: all that its VM wrote is thrown away.
        #[arg(long)]
        discard: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum FailoverCommand {
    /// Fail a group over to this side: fences the other one, opens images, starts the VMs. Exit code 8 where some
    /// of its VMs run and others do not.
    Start {
        /// The protection group: its name, SITE/NAME or id.
        #[arg(long)]
        group: String,
        /// `latest`, a checkpoint's id, a time (RFC 3339) or a tag.
        #[arg(long, default_value = "latest")]
        at: String,
        /// Only this VM of the group; may be given again. All that belonged to it at that moment by default.
        #[arg(long = "vm", value_name = "VM", conflicts_with = "without")]
        vms: Vec<String>,
        /// Do without this VM of the group, which cannot be opened; may be given again.
        #[arg(long, value_name = "VM")]
        without: Vec<String>,
    },
    /// Keep it.
    Commit {
        /// The protection group: its name, SITE/NAME or id.
        #[arg(long)]
        group: String,
    },
    /// Undo it: VMs stop, what they wrote is thrown away, protection may go on.
    Rollback {
        /// The protection group: its name, SITE/NAME or id.
        #[arg(long)]
        group: String,
    },
    /// Have its VMs stand still.
    Pause {
        /// The protection group: its name, SITE/NAME or id.
        #[arg(long)]
        group: String,
    },
    /// Let its VMs go on.
    Resume {
        /// The protection group: its name, SITE/NAME or id.
        #[arg(long)]
        group: String,
    },
    /// Save what one of its VMs shows on its screen, as PNG.
    Screenshot {
        /// The protection group: its name, SITE/NAME or id.
        #[arg(long)]
        group: String,
        /// The VM: its name, SITE/NAME or id.
        #[arg(long)]
        vm: String,
        /// The file to write.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// The groups and their failovers.
    List,
}

#[derive(Debug, Subcommand)]
pub(crate) enum OperationCommand {
    /// Those that go on, and those that have ended lately; the newest first.
    List,
    /// One operation: its steps, how far it is, and what is in its way.
    Show { id: String },
    /// Have an operation taken back, where there still is a way back.
    Cancel { id: String },
}

#[derive(Debug, Subcommand)]
pub(crate) enum JournalCommand {
    /// The journal of a VM: sizes, history, limits, pins, damage.
    Show { vm: String },
    /// Change settings of a VM's journal; what is not given stays.
    Set(SetJournal),
    /// Move a VM's journal to a new or empty folder. The source buffers meanwhile.
    Move {
        vm: String,
        /// Its full path, at the recovery side.
        #[arg(long)]
        to: String,
    },
    /// At the recovery side: take raw images as the first replicas of a VM that will be protected. They are
    /// moved beside the replicas, and then compared with the VM instead of being sent.
    Seed {
        /// The name the VM will have.
        vm: String,
        /// A disk, NAME=PATH; may be given again.
        #[arg(long = "disk", value_name = "NAME=PATH", required = true)]
        disks: Vec<String>,
    },
    /// Keep a state readable, whatever retention says.
    Pin {
        vm: String,
        /// `latest`, a checkpoint's id, a time (RFC 3339) or a tag.
        #[arg(long)]
        at: String,
        /// Who wants it, or what for.
        #[arg(long)]
        owner: String,
        /// It goes away by itself after so many seconds.
        #[arg(long, value_name = "SECONDS")]
        expires: Option<u64>,
    },
    /// Take a pin away.
    Unpin { vm: String, id: u64 },
    /// Offline: what a journal's folder holds.
    Inspect {
        folder: PathBuf,
        /// Every record too, in the order of the stream.
        #[arg(long)]
        records: bool,
    },
    /// Offline: read every byte, and say which checkpoints are good; exit code 7 where something is damaged.
    Verify { folder: PathBuf },
    /// Offline: make damaged indexes again, and contain what else is damaged; exit code 7 where that was
    /// needed. Nothing is guessed: what is lost is sent again by the source.
    Repair {
        folder: PathBuf,
        /// Where its replicas lie, if not in the journal's folder: `replica_dir/ID`, as `journal show` says.
        #[arg(long, value_name = "FOLDER")]
        replicas: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SetJournal {
    pub(crate) vm: String,
    /// `roll-forward` (the replica stands at the old end of the history) or `rollback` (at the new end).
    #[arg(long)]
    pub(crate) mode: Option<String>,
    /// Fold early above this many bytes, 1 GB to 20 TB; 0 for no limit.
    #[arg(long, value_name = "BYTES")]
    pub(crate) soft: Option<u64>,
    /// Keep all checkpoints up to this age.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) keep_all: Option<u64>,
    /// Then one a minute up to this age, then one in 15 minutes.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) keep_minutely: Option<u64>,
    /// Let tagged checkpoints younger than this hold the history.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) keep_tagged: Option<u64>,
    /// Keep to what the VM's site asks for from now on, though that is less history.
    #[arg(long)]
    pub(crate) take_asked: bool,
    /// Let go of the newest whole state, which is held beyond the history as long as the newest state is damaged.
    #[arg(long)]
    pub(crate) let_go: bool,
}
