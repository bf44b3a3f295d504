//! The command line.

use crate::policy::Policy;
use crate::units;
use agent::Role;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use std::ffi::OsString;
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
    /// Who has changed what at the agent.
    #[command(subcommand)]
    Audit(AuditCommand),
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
    /// that are moved, VMs that are protected, unprotected or forgotten.
    #[command(subcommand)]
    Operation(OperationCommand),
    /// Print a completion script for your shell.
    Completions { shell: Shell },
    /// Print the OpenAPI document of the agent's API.
    Openapi,
    /// Become a guest's process: what the agent starts, and nobody else.
    #[command(hide = true)]
    LaunchGuest {
        #[arg(long)]
        folder: PathBuf,
        #[arg(long, requires = "gid")]
        uid: Option<u32>,
        #[arg(long, requires = "uid")]
        gid: Option<u32>,
        #[arg(long = "group")]
        groups: Vec<u32>,
        #[arg(long)]
        cgroup: Option<PathBuf>,
        #[arg(long)]
        needs: Vec<PathBuf>,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
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
        #[command(flatten)]
        whose: Whose,
        /// How long it is valid.
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
    /// Make a key here, which stays here, and a request that the site's authority signs elsewhere (`pki sign`).
    Request {
        #[arg(long, default_value = "/etc/holdfast/pki", value_name = "FOLDER")]
        dir: PathBuf,
        /// The site, where the folder does not say it yet.
        #[arg(long)]
        site: Option<String>,
        #[command(flatten)]
        whose: Whose,
    },
    /// Sign a request with the site's authority. Say whose the certificate is to be: a request for something else is refused.
    Sign {
        #[arg(long, default_value = "/etc/holdfast/pki", value_name = "FOLDER")]
        dir: PathBuf,
        /// The request (`agent.csr`).
        request: PathBuf,
        #[command(flatten)]
        whose: Whose,
        /// How long it is valid.
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
        /// Refuse a request that has not this fingerprint.
        #[arg(long, value_name = "FINGERPRINT")]
        fingerprint: Option<String>,
        /// The certificate's file; beside the request by default.
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// Take a certificate that was signed for a request of here into use, with its key: both at once, without a restart.
    Install {
        #[arg(long, default_value = "/etc/holdfast/pki", value_name = "FOLDER")]
        dir: PathBuf,
        /// The certificate.
        certificate: PathBuf,
        /// The site's CA certificate, where it is not here yet.
        #[arg(long, value_name = "FILE")]
        ca: Option<PathBuf>,
    },
    /// What a certificate or a request is, and its fingerprint, to be compared over the telephone.
    Show {
        #[arg(long, default_value = "/etc/holdfast/pki", value_name = "FOLDER")]
        dir: PathBuf,
        /// This site's CA certificate by default.
        file: Option<PathBuf>,
    },
    /// The same, and nothing but the fingerprint.
    Fingerprint {
        #[arg(long, default_value = "/etc/holdfast/pki", value_name = "FOLDER")]
        dir: PathBuf,
        /// This site's CA certificate by default.
        file: Option<PathBuf>,
    },
    /// Take one certificate no more, though its authority is trusted. Connections that stand with it end. It holds on the
    /// host it is said on: copy the list to the others of the site, and to those of sites that trust it.
    Withdraw {
        #[arg(long, default_value = "/etc/holdfast/pki", value_name = "FOLDER")]
        dir: PathBuf,
        /// The site that has issued it, with a serial number; this one by default.
        #[arg(long)]
        site: Option<String>,
        /// The certificate's file, or its serial number, as `pki show` and `openssl x509 -serial` tell it.
        #[arg(value_name = "SERIAL|FILE")]
        what: String,
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
        /// Refuse a file that has not this fingerprint.
        #[arg(long, value_name = "FINGERPRINT")]
        fingerprint: Option<String>,
    },
}

/// Whose a certificate is to be, and what for.
#[derive(Debug, Args)]
pub(crate) struct Whose {
    /// The agent's name.
    #[arg(long, required_unless_present_any = ["operator", "client"])]
    pub(crate) agent: Option<String>,
    /// A host name or address the agent is reached at; may be given again.
    #[arg(long = "host", value_name = "HOST")]
    pub(crate) hosts: Vec<String>,
    /// Issue a certificate for an operator, to NAME.pem and NAME.key instead of the agent's own.
    #[arg(long, value_name = "NAME")]
    pub(crate) operator: Option<String>,
    /// Issue a certificate for whoever opens disks over TCP, as a hypervisor on another host, to NAME.pem and NAME.key.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["agent", "operator"], requires = "disks")]
    pub(crate) client: Option<String>,
    /// A disk that the client may open, or a VM whose disks it all may; may be given again.
    #[arg(long = "disk", value_name = "VM[/DISK]", requires = "client")]
    pub(crate) disks: Vec<String>,
    /// What the operator may do: viewer, operator, builder or admin. Each may do what those before it may.
    #[arg(long, default_value = "operator", requires = "operator")]
    pub(crate) role: Role,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Protect a VM: prints the NBD socket to start it on.
    Protect(Box<Protect>),
    /// Change what a protection is kept to, at once and with its history kept.
    Set(Box<SetVm>),
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
        #[command(flatten)]
        limit: Limit,
    },
    /// Compare both sides while the guest writes, and send again what differs. Exit code 7 where something
    /// did, or could not be read.
    Verify {
        name: String,
        /// Begin only, and do not wait for the end; `vm show` tells how far it is.
        #[arg(long)]
        no_wait: bool,
        #[command(flatten)]
        limit: Limit,
    },
    /// Compare both sides from the beginning and send what differs; until then no checkpoint is taken.
    /// Checkpoints that are there stay.
    Resync {
        name: String,
        /// Wait until it is done, and show how far it is.
        #[arg(long)]
        wait: bool,
        #[command(flatten)]
        limit: Limit,
    },
    /// End a protection. The VM's image stays; the journal at the other side stays too.
    Unprotect {
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// At the recovery side: take a VM from another agent of its site from now on, which was installed anew or has taken the
    /// VM over.
    HandOver {
        /// The VM: its name, SITE/NAME or id.
        name: String,
        /// The agent that sends it from now on.
        #[arg(long, value_name = "AGENT")]
        to: String,
    },
    /// At the recovery side: forget a VM and remove its journal, for good. At the protected side: no longer tell a recovery
    /// side that is gone for good that a VM was unprotected.
    Forget {
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
}

/// How long a command waits.
#[derive(Debug, Clone, Args)]
pub(crate) struct Limit {
    /// Wait no longer than this: then exit code 9, and what was asked for goes on.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u64>,
}

/// How a command that begins an operation is waited for, and what it is called.
#[derive(Debug, Clone, Args)]
pub(crate) struct Wait {
    /// Begin the operation only, and print it; `operation wait` waits for its end.
    #[arg(long, conflicts_with = "timeout")]
    pub(crate) no_wait: bool,
    #[command(flatten)]
    pub(crate) limit: Limit,
    /// A name of 1 to 128 bytes for this request: the same one with the same name again begins nothing anew, and answers what
    /// the first one does.
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
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
    /// Wait until the initial sync is done too, and show how far it is.
    #[arg(long, conflicts_with = "no_wait")]
    pub(crate) wait: bool,
    #[command(flatten)]
    pub(crate) operation: Wait,
    /// The VM's definition, TOML, which the recovery side starts it from.
    #[arg(long, value_name = "FILE")]
    pub(crate) definition: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) policy: Policy,
}

/// What to change; what is not given stays.
#[derive(Debug, Args)]
pub(crate) struct SetVm {
    pub(crate) name: String,
    /// Where the recovery side's agent is reached from now on.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) peer: Option<String>,
    /// The agent that is to answer there, where it is another than the one so far, as its certificate names it.
    #[arg(long, value_name = "AGENT.SITE")]
    pub(crate) peer_agent: Option<String>,
    /// The VM's definition, TOML.
    #[arg(long, value_name = "FILE")]
    pub(crate) definition: Option<PathBuf>,
    /// Change nothing, and say what would be changed and what that costs.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) policy: Policy,
    #[command(flatten)]
    pub(crate) operation: Wait,
}

/// What to change; what is not given stays.
#[derive(Debug, Args)]
pub(crate) struct SetGroup {
    /// The protection group: its name, SITE/NAME or id.
    #[arg(long)]
    pub(crate) group: String,
    /// Change nothing, and say what would be changed and what that costs.
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) policy: Policy,
    #[command(flatten)]
    pub(crate) operation: Wait,
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
    /// Change what all VMs of a group are kept to that are protected on this host.
    Set(Box<SetGroup>),
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
        /// So much a second; as fast as it goes by default.
        #[arg(long, default_value_t = 0, value_parser = units::bytes, value_name = "SIZE")]
        rate: u64,
        /// Make zeroes of what the journal has lost for good, and say where. Without it the promotion waits there.
        #[arg(long)]
        lost_as_zeroes: bool,
        #[command(flatten)]
        wait: Wait,
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
        #[command(flatten)]
        wait: Wait,
    },
    /// Keep it.
    Commit {
        /// The protection group: its name, SITE/NAME or id.
        #[arg(long)]
        group: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Undo it: VMs stop, what they wrote is thrown away, protection may go on.
    Rollback {
        /// The protection group: its name, SITE/NAME or id.
        #[arg(long)]
        group: String,
        #[command(flatten)]
        wait: Wait,
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
pub(crate) enum AuditCommand {
    /// The changes that were asked of the agent, the newest first.
    List {
        /// Asked for at this time (RFC 3339) or later.
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// The most rows to print.
        #[arg(long, default_value_t = 100)]
        limit: usize,
        /// Begin behind this one, as printed at the end of the page before.
        #[arg(long)]
        cursor: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum OperationCommand {
    /// Those that go on, and those that have ended lately; the newest first.
    List(Box<ListOperations>),
    /// One operation: its steps, how far it is, and what is in its way.
    Show { id: String },
    /// Wait for the end of an operation, and show how far it is. Exit code 4 where it was taken back.
    Wait {
        id: String,
        #[command(flatten)]
        limit: Limit,
    },
    /// Have an operation taken back, where there still is a way back, and wait for that.
    Cancel {
        id: String,
        /// Ask for it only.
        #[arg(long, conflicts_with = "timeout")]
        no_wait: bool,
        #[command(flatten)]
        limit: Limit,
    },
    /// Have what an operation cannot do or undo left as it is, where that costs nothing but room, and wait for its end.
    Leave {
        id: String,
        /// Ask for it only.
        #[arg(long, conflicts_with = "timeout")]
        no_wait: bool,
        #[command(flatten)]
        limit: Limit,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ListOperations {
    /// Only those that have not ended.
    #[arg(long)]
    pub(crate) running: bool,
    /// Only `going`, `going-back`, `done` or `taken-back` ones.
    #[arg(long)]
    pub(crate) state: Option<String>,
    /// Only of this kind: `failover`, `commit`, `rollback`, `move`, `forget`, `promote`, `protect` or `unprotect`.
    #[arg(long)]
    pub(crate) kind: Option<String>,
    /// Only of this VM: its id, its name or SITE/NAME.
    #[arg(long)]
    pub(crate) vm: Option<String>,
    /// Only of this group: its id, its name or SITE/NAME.
    #[arg(long)]
    pub(crate) group: Option<String>,
    /// Only what the request of this idempotency key has begun, or found under way.
    #[arg(long, value_name = "KEY")]
    pub(crate) idempotency_key: Option<String>,
    /// The most rows to print.
    #[arg(long, default_value_t = 100)]
    pub(crate) limit: usize,
    /// Begin behind this one, as printed at the end of the page before.
    #[arg(long)]
    pub(crate) cursor: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum JournalCommand {
    /// The journal of a VM: sizes, history, limits, pins, damage.
    Show { vm: String },
    /// Change settings of a VM's journal; what is not given stays.
    Set(SetJournal),
    /// Lock the history of a VM, or of all VMs kept of a group: nothing of it goes before the date, whoever asks. It can be made
    /// longer by one person, and lifted by two.
    Lock {
        /// The VM.
        #[arg(required_unless_present = "group", conflicts_with = "group")]
        vm: Option<String>,
        /// All VMs that are kept of this group now.
        #[arg(long)]
        group: Option<String>,
        /// A date, to its end in UTC, or a time (RFC 3339).
        #[arg(long, value_name = "DATE", required_unless_present = "for", conflicts_with = "for")]
        until: Option<String>,
        /// From now on, as 30d.
        #[arg(long = "for", id = "for", value_parser = units::seconds, value_name = "TIME")]
        seconds: Option<u64>,
    },
    /// Ask that the lock of a VM's history be lifted, or confirm what another person has asked.
    Lift {
        vm: String,
        /// Lift it, as another person has asked by the request of this id.
        #[arg(long, value_name = "ID", conflicts_with = "withdraw")]
        confirm: Option<String>,
        /// Take the request of this id back.
        #[arg(long, value_name = "ID")]
        withdraw: Option<String>,
    },
    /// Move a VM's journal to a new or empty folder. The source buffers meanwhile.
    Move {
        vm: String,
        /// Its full path, at the recovery side.
        #[arg(long)]
        to: String,
        #[command(flatten)]
        wait: Wait,
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
        /// It goes away by itself after so long.
        #[arg(long, value_parser = units::seconds, value_name = "TIME")]
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
    /// Fold early above this size, 1G to 20T; 0 for no limit.
    #[arg(long, value_parser = units::bytes, value_name = "SIZE")]
    pub(crate) soft: Option<u64>,
    /// Keep all checkpoints up to this age.
    #[arg(long, value_parser = units::seconds, value_name = "TIME")]
    pub(crate) keep_all: Option<u64>,
    /// Then one a minute up to this age, then one in 15 minutes.
    #[arg(long, value_parser = units::seconds, value_name = "TIME")]
    pub(crate) keep_minutely: Option<u64>,
    /// Let tagged checkpoints younger than this hold the history.
    #[arg(long, value_parser = units::seconds, value_name = "TIME")]
    pub(crate) keep_tagged: Option<u64>,
    /// Keep to what the VM's site asks for from now on, though that is less history.
    #[arg(long)]
    pub(crate) take_asked: bool,
    /// Let go of the newest whole state, which is held beyond the history as long as the newest state is damaged.
    #[arg(long)]
    pub(crate) let_go: bool,
}
