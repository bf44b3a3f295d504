//! Carrying out each command.

use crate::cli::{
    AuditCommand, CheckpointCommand, Cli, Command, Connect, FailoverCommand, GroupCommand, ImageCommand,
    JournalCommand, Limit, Protect, SetGroup, SetVm, VmCommand, Wait,
};
use crate::exit::{DAMAGED, NOT_ALL_RUN};
use crate::not_waited::{Ended, NotWaited};
use crate::operating::{Came, operated, operation};
use crate::{journal_tools, pki, print, waiting};
use agent::config::Config;
use agent::hypervisor::Launch;
use agent::operator_client;
use anyhow::{Context, Result, bail};
use api::{
    ChangeRequest, Client, Endpoint, FailoverRequest, GroupChangeRequest, JournalSettings, LockRequest,
    OpenImageRequest, PinRequest, PromoteRequest, ProtectDisk, ProtectRequest, SeedRequest,
};
use clap::CommandFactory;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

pub(crate) fn run(cli: Cli) -> Result<ExitCode> {
    let Cli { connect, json, command } = cli;
    match command {
        Command::Agent { config, check } => run_agent(&config, check),
        Command::Pki(command) => pki::run(command, json),
        Command::Journal(JournalCommand::Inspect { folder, records }) => {
            journal_tools::read_through(&folder, false, records, json)
        }
        Command::Journal(JournalCommand::Verify { folder }) => {
            journal_tools::read_through(&folder, true, false, json)
        }
        Command::Journal(JournalCommand::Repair { folder, replicas }) => {
            journal_tools::repair(&folder, replicas, json)
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "holdfast", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
        Command::Openapi => {
            let document = agent::http::openapi().to_pretty_json().context("print the document")?;
            println!("{document}");
            Ok(ExitCode::SUCCESS)
        }
        Command::LaunchGuest { folder, uid, gid, groups, cgroup, needs, command } => {
            match (Launch { folder, uid, gid, groups, cgroup, needs, command }).run()? {}
        }
        other => {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().context("start")?;
            runtime.block_on(async {
                let mut asked = std::pin::pin!(ask(connect, other, json));
                tokio::select! {
                    // Whoever knows what goes on says so.
                    biased;
                    done = &mut asked => done,
                    listened = tokio::signal::ctrl_c() => {
                        listened.context("listen for interrupts")?;
                        Err(NotWaited::unknown(Ended::Interrupt).into())
                    }
                }
            })
        }
    }
}

fn run_agent(path: &Path, check: bool) -> Result<ExitCode> {
    // What the agent tells of its sockets is of use from anywhere.
    let path = &std::path::absolute(path).context("find the configuration")?;
    let config = Config::load(path)?;
    if check {
        println!("{}: fine", path.display());
        return Ok(ExitCode::SUCCESS);
    }
    let filter = EnvFilter::try_from_env("HOLDFAST_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if config.log_json {
        log.json().init();
    } else {
        log.with_ansi(false).init();
    }
    agent::memory::keep_freed();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start")?;
    runtime.block_on(agent::run(config))?;
    // Guests' threads may still be in a read; the process does not wait for them.
    runtime.shutdown_timeout(Duration::from_secs(2));
    Ok(ExitCode::SUCCESS)
}

async fn ask(connect: Connect, command: Command, json: bool) -> Result<ExitCode> {
    let client = client(connect)?;
    match command {
        Command::Vm(VmCommand::Verify { name, no_wait, limit }) => {
            return verify(&client, &name, (!no_wait).then_some(limit), json).await;
        }
        Command::Vm(command) => vm(&client, command, json).await,
        Command::Status { watch } => status(&client, watch, json).await,
        Command::Alerts => print::one(json, &client.alerts().await?, |alerts| print::alerts(alerts)),
        Command::Checkpoint(command) => checkpoint(&client, command, json).await,
        Command::Image(command) => image(&client, command, json).await,
        Command::Group(command) => group(&client, command, json).await,
        Command::Failover(FailoverCommand::Start { group, at, vms, without, wait }) => {
            return fail_over(&client, &group, &FailoverRequest { at, vms, without }, &wait, json).await;
        }
        Command::Failover(command) => failover(&client, command, json).await,
        Command::Journal(command) => journal(&client, command, json).await,
        Command::Operation(command) => return operation(&client, command, json).await,
        Command::Audit(command) => audit(&client, command, json).await,
        Command::Agent { .. }
        | Command::Pki(_)
        | Command::Completions { .. }
        | Command::Openapi
        | Command::LaunchGuest { .. } => {
            unreachable!("carried out without an agent")
        }
    }?;
    Ok(ExitCode::SUCCESS)
}

fn client(connect: Connect) -> Result<Client> {
    let Some(agent) = connect.agent else {
        return Ok(Client::new(Endpoint::Unix(connect.socket)));
    };
    let (host, port) = agent.rsplit_once(':').context("--agent is HOST:PORT")?;
    let port = port.parse().context("--agent is HOST:PORT")?;
    let (Some(ca), Some(cert), Some(key)) = (&connect.ca, &connect.cert, &connect.key) else {
        bail!("--agent needs --ca, --cert and --key");
    };
    Ok(Client::new(Endpoint::Tls { host: host.to_owned(), port, config: operator_client(ca, cert, key)? }))
}

async fn vm(client: &Client, command: VmCommand, json: bool) -> Result<()> {
    match command {
        VmCommand::Protect(protect) => {
            let (syncs, wait) = (protect.wait, protect.operation.clone());
            let request = request(*protect)?;
            let ask = async |asking| client.protect(&request, &asking).await;
            let came = operated(client, &wait, &format!("protecting {}", request.name), ask).await?;
            match came {
                Came::Done(vm) if syncs => {
                    eprintln!("VM {} is protected here; its disks are served on {}", vm.name, vm.socket);
                    let vm = waiting::within(&wait.limit, waiting::synced(client, &vm.name)).await?;
                    print::one(json, &vm, print::protected)
                }
                came => came.print(json, print::protected),
            }
        }
        VmCommand::Set(set) => {
            let SetVm { name, peer, peer_agent, definition, dry_run, policy, operation } = *set;
            let definition = definition.as_deref().map(read_definition).transpose()?;
            let request = ChangeRequest { settings: policy.into(), peer, peer_agent, definition, dry_run };
            let ask = async |asking| client.change_vm(&name, &request, &asking).await;
            let came = operated(client, &operation, &format!("changing {name}"), ask).await?;
            came.print(json, print::change)
        }
        VmCommand::HandOver { name, to } => {
            let done = client.hand_over(&name, &to).await?;
            print::one(json, &done, |done| format!("{}\n", done.what.clone().unwrap_or_default()))
        }
        VmCommand::List => print::one(json, &client.status().await?.protected, |vms| print::vm_table(vms)),
        VmCommand::Show { name } => print::one(json, &client.protected_vm(&name).await?, print::protected),
        VmCommand::Pause { name } => print::one(json, &client.pause(&name).await?, print::protected),
        VmCommand::Resume { name, wait, limit } => {
            let vm = client.resume(&name).await?;
            let vm = if wait { waiting::within(&limit, waiting::synced(client, &name)).await? } else { vm };
            print::one(json, &vm, print::protected)
        }
        VmCommand::Verify { .. } => unreachable!("has an exit code of its own"),
        VmCommand::Resync { name, wait, limit } => {
            let vm = client.resync(&name).await?;
            let vm = if wait { waiting::within(&limit, waiting::synced(client, &name)).await? } else { vm };
            print::one(json, &vm, print::protected)
        }
        VmCommand::Unprotect { name, wait } => {
            let ask = async |asking| client.unprotect(&name, &asking).await;
            let came = operated(client, &wait, &format!("unprotecting {name}"), ask).await?;
            came.print(json, |_| format!("{name} is not protected any more\n"))
        }
        VmCommand::Forget { name, wait } => {
            let ask = async |asking| client.forget(&name, &asking).await;
            let came = operated(client, &wait, &format!("forgetting {name}"), ask).await?;
            came.print(json, |done| {
                format!("{}\n", done.what.clone().unwrap_or_else(|| format!("{name} is forgotten")))
            })
        }
    }
}

/// Disks given as NAME=PATH, the path made whole.
fn named_disks(given: &[String]) -> Result<Vec<ProtectDisk>> {
    let mut disks = named(given, "PATH")?;
    for disk in &mut disks {
        let path = std::path::absolute(&disk.path);
        disk.path =
            path.with_context(|| format!("--disk {}={}", disk.name, disk.path))?.display().to_string();
    }
    Ok(disks)
}

/// Disks given as our name and `what` the other word is, which is taken as it stands.
fn named(given: &[String], what: &str) -> Result<Vec<ProtectDisk>> {
    let parse = |disk: &String| {
        let (name, word) =
            disk.split_once('=').with_context(|| format!("--disk {disk}: give NAME={what}"))?;
        Ok(ProtectDisk { name: name.to_owned(), path: word.to_owned() })
    };
    given.iter().map(parse).collect()
}

async fn verify(client: &Client, name: &str, wait: Option<Limit>, json: bool) -> Result<ExitCode> {
    let vm = client.verify(name).await?;
    let vm = match wait {
        Some(limit) => waiting::within(&limit, waiting::verified(client, name)).await?,
        None => vm,
    };
    let found = vm.verify.context("the agent was restarted; begin again")?;
    print::one(json, &found, |found| print::verify(name, found))?;
    let is_equal = found.differing_bytes == 0 && found.unreadable_bytes == 0;
    Ok(if !is_equal { ExitCode::from(DAMAGED) } else { ExitCode::SUCCESS })
}

fn request(protect: Protect) -> Result<ProtectRequest> {
    let qmp = protect.qmp.as_deref().map(std::path::absolute).transpose().context("find the QMP socket")?;
    let disks = match &qmp {
        Some(_) => named(&protect.disks, "DEVICE")?,
        None => named_disks(&protect.disks)?,
    };
    Ok(ProtectRequest {
        qmp: qmp.map(|path| path.display().to_string()),
        format: protect.format.clone(),
        shared: protect.shared,
        ublk: protect.ublk,
        name: protect.name,
        group: protect.group,
        coordinator: protect.coordinator,
        disks,
        peer: protect.peer,
        definition: protect.definition.as_deref().map(read_definition).transpose()?,
        settings: protect.policy.into(),
    })
}

/// Reads a definition and makes the paths in it absolute, as seen from its own folder.
fn read_definition(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let definition =
        agent::hypervisor::VmDefinition::parse(&text).with_context(|| format!("{}", path.display()))?;
    let folder = std::path::absolute(path).context("find the definition's folder")?;
    let folder = folder.parent().unwrap_or(Path::new("/"));
    definition.with_files_in(folder).to_toml().context("write the definition")
}

async fn audit(client: &Client, command: AuditCommand, json: bool) -> Result<()> {
    let AuditCommand::List { since, limit, cursor } = command;
    let query = [("since", &since), ("cursor", &cursor)];
    let query: Vec<_> =
        query.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))).collect();
    let page = client.audit(limit, &query).await?;
    print::one(json, &page, print::audit)
}

async fn status(client: &Client, watch: bool, json: bool) -> Result<()> {
    loop {
        let status = client.status().await?;
        if watch && !json {
            print!("\x1b[H\x1b[2J");
        }
        print::one(json, &status, print::status)?;
        if !watch {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn checkpoint(client: &Client, command: CheckpointCommand, json: bool) -> Result<()> {
    match command {
        CheckpointCommand::List { vm, limit, cursor, from, to, kind, tag, newest_first } => {
            let newest_first = newest_first.then(|| "true".to_owned());
            let query = [
                ("cursor", &cursor),
                ("from", &from),
                ("to", &to),
                ("kind", &kind),
                ("tag", &tag),
                ("newest_first", &newest_first),
            ];
            let query: Vec<_> =
                query.into_iter().filter_map(|(name, value)| Some((name, value.as_deref()?))).collect();
            let page = client.checkpoints(&vm, limit, &query).await?;
            print::one(json, &page, print::checkpoints)
        }
        CheckpointCommand::Tag { group, tag } => {
            let checkpoint = client.tag(&group, &tag).await?;
            print::one(json, &checkpoint, |checkpoint| {
                format!("checkpoint {} of group {group} tagged {:?}\n", checkpoint.id, checkpoint.tag)
            })
        }
    }
}

async fn image(client: &Client, command: ImageCommand, json: bool) -> Result<()> {
    match command {
        ImageCommand::Open { vm, at, writable } => {
            let opening = format!("opening an image of {vm} as of {at}");
            let request = OpenImageRequest { vm, at, writable };
            let image = waiting::answered(&opening, client.open_image(&request)).await?;
            print::one(json, &image, print::image)
        }
        ImageCommand::Promote { id, rate, lost_as_zeroes, wait } => {
            let request = PromoteRequest { bytes_per_second: rate, lost_as_zeroes };
            let ask = async |asking| client.promote(&id, &request, &asking).await;
            operated(client, &wait, &format!("promoting image {id}"), ask).await?.print(json, print::image)
        }
        ImageCommand::List => print::one(json, &client.images().await?, |images| print::image_table(images)),
        ImageCommand::Close { id, discard } => {
            let closing = client.close_image(&id, discard);
            let closed = waiting::answered(&format!("closing image {id}"), closing).await?;
            print::one(json, &closed, |closed| print::closed_image(&id, closed))
        }
    }
}

async fn journal(client: &Client, command: JournalCommand, json: bool) -> Result<()> {
    match command {
        JournalCommand::Show { vm } => print::one(json, &client.journal(&vm).await?, print::journal),
        JournalCommand::Set(set) => {
            let settings = JournalSettings {
                mode: set.mode,
                bytes_soft: set.soft,
                keep_all_seconds: set.keep_all,
                keep_minutely_seconds: set.keep_minutely,
                keep_tagged_seconds: set.keep_tagged,
                take_asked: set.take_asked,
                let_go: set.let_go,
            };
            let setting = format!("setting the journal of {}", set.vm);
            let journal = waiting::answered(&setting, client.set_journal(&set.vm, &settings)).await?;
            print::one(json, &journal, print::journal)
        }
        JournalCommand::Lock { vm, group, until, seconds } => {
            let request = LockRequest { until, for_seconds: seconds };
            match (vm, group) {
                (Some(vm), None) => {
                    let locking = client.lock_journal(&vm, &request);
                    let locked = waiting::answered(&format!("locking the history of {vm}"), locking).await?;
                    print::one(json, &locked, |locked| print::locked(std::slice::from_ref(locked)))
                }
                (None, Some(group)) => {
                    let locking = client.lock_group(&group, &request);
                    let what = format!("locking the histories of group {group}");
                    let locked = waiting::answered(&what, locking).await?;
                    print::one(json, &locked, |locked| print::locked(locked))
                }
                _ => unreachable!("clap asks for one of the two"),
            }
        }
        JournalCommand::Lift { vm, confirm, withdraw } => {
            let journal = match (confirm, withdraw) {
                (Some(id), _) => client.confirm_lift(&vm, &id).await?,
                (None, Some(id)) => client.withdraw_lift(&vm, &id).await?,
                (None, None) => client.ask_to_lift(&vm).await?,
            };
            print::one(json, &journal, |journal| print::locked(std::slice::from_ref(journal)))
        }
        JournalCommand::Move { vm, to, wait } => {
            let ask = async |asking| client.move_journal(&vm, &to, &asking).await;
            let moving = format!("moving the journal of {vm}");
            operated(client, &wait, &moving, ask).await?.print(json, print::journal)
        }
        JournalCommand::Seed { vm, disks } => {
            let request = SeedRequest { vm: vm.clone(), disks: named_disks(&disks)? };
            let done = waiting::answered(&format!("taking replicas of {vm}"), client.seed(&request)).await?;
            print::one(json, &done, |_| {
                format!("the replicas of {vm} wait here; protect it on the other side\n")
            })
        }
        JournalCommand::Pin { vm, at, owner, expires } => {
            let request = PinRequest { at, owner, expires_seconds: expires };
            print::one(json, &client.pin(&vm, &request).await?, print::pin)
        }
        JournalCommand::Unpin { vm, id } => {
            print::one(json, &client.unpin(&vm, id).await?, |_| format!("pin {id} of {vm} is gone\n"))
        }
        JournalCommand::Inspect { .. } | JournalCommand::Verify { .. } | JournalCommand::Repair { .. } => {
            unreachable!("carried out without an agent")
        }
    }
}

async fn group(client: &Client, command: GroupCommand, json: bool) -> Result<()> {
    match command {
        GroupCommand::List => print::one(json, &client.groups().await?, |groups| print::groups(groups)),
        GroupCommand::Set(set) => {
            let SetGroup { group, dry_run, policy, operation } = *set;
            let request = GroupChangeRequest { settings: policy.into(), dry_run };
            let ask = async |asking| client.change_group(&group, &request, &asking).await;
            let came = operated(client, &operation, &format!("changing group {group}"), ask).await?;
            came.print(json, print::change)
        }
        GroupCommand::RemoveHost { group, host } => {
            let done = client.remove_host(&group, &host).await?;
            print::one(json, &done, |_| format!("group {group} goes on without {host}\n"))
        }
    }
}

async fn fail_over(
    client: &Client,
    group: &str,
    request: &FailoverRequest,
    wait: &Wait,
    json: bool,
) -> Result<ExitCode> {
    if !json {
        eprintln!("failing group {group} over to {} …", request.at);
    }
    let ask = async |asking| client.failover(group, request, &asking).await;
    let came = operated(client, wait, &format!("failing group {group} over"), ask).await?;
    came.print(json, print::failover)?;
    let Came::Done(failover) = came else { return Ok(ExitCode::SUCCESS) };
    // Where none of them is defined, the images are all that was wanted.
    let runs = |vm: &&api::FailoverVm| vm.run_state == "running";
    let some_do_not = failover.vms.iter().any(|vm| !runs(&vm));
    let is_partial = some_do_not && failover.vms.iter().any(|vm| vm.run_state != "not-defined");
    Ok(if is_partial { ExitCode::from(NOT_ALL_RUN) } else { ExitCode::SUCCESS })
}

async fn failover(client: &Client, command: FailoverCommand, json: bool) -> Result<()> {
    match command {
        FailoverCommand::Start { .. } => unreachable!("has an exit code of its own"),
        FailoverCommand::Commit { group, wait } => {
            let ask = async |asking| client.commit(&group, &asking).await;
            let committing = format!("committing the failover of group {group}");
            operated(client, &wait, &committing, ask).await?.print(json, print::failover)
        }
        FailoverCommand::Rollback { group, wait } => {
            let ask = async |asking| client.rollback(&group, &asking).await;
            let undoing = format!("rolling the failover of group {group} back");
            operated(client, &wait, &undoing, ask).await?.print(json, print::failover)
        }
        FailoverCommand::Pause { group } => {
            print::one(json, &client.pause_failover(&group).await?, print::failover)
        }
        FailoverCommand::Resume { group } => {
            print::one(json, &client.resume_failover(&group).await?, print::failover)
        }
        FailoverCommand::Screenshot { group, vm, to } => {
            let png = client.screenshot(&group, &vm).await?;
            std::fs::write(&to, &png).with_context(|| format!("write {}", to.display()))?;
            let saved = serde_json::json!({ "path": to, "bytes": png.len() });
            print::one(json, &saved, |_| format!("the screen of {vm} is in {}\n", to.display()))
        }
        FailoverCommand::List => print::one(json, &client.groups().await?, |groups| print::groups(groups)),
    }
}
