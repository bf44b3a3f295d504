//! Starting the agent: take the folders, take up what is recorded, listen, and run until told to stop.

use crate::alerts::{AlertCommand, Alerts};
use crate::artifacts::Artifacts;
use crate::audit::Audit;
use crate::config::Config;
use crate::http::{App, serve};
use crate::pki::Pki;
use crate::privacy;
use crate::recovery::Recovery;
use crate::rights::LocalRights;
use crate::service;
use crate::sockets::{RunDir, SocketAccess};
use crate::source::{Source, serve_disks};
use crate::state::{StateDir, boot_id};
use crate::stream::listen;
use anyhow::{Context, Result};
use splitter::Capture;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// How long before its certificate expires an agent says so, and how often it looks.
const CERTIFICATE_NOTICE: time::Duration = time::Duration::days(14);
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(5);

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    source: Arc<Source>,
    api_socket: PathBuf,
}

/// Runs the agent until SIGTERM or SIGINT.
///
/// # Errors
/// Where it cannot start; the message says what to do.
pub async fn run(config: Config) -> Result<()> {
    let agent = Agent::start(config).await?;
    service::ready();
    tokio::spawn(service::say_alive());
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    service::stopping();
    agent.stop();
    Ok(())
}

impl Agent {
    /// Starts: takes the folders, takes up what is recorded, listens.
    ///
    /// # Errors
    /// Where it cannot start; the message says what to do.
    pub async fn start(config: Config) -> Result<Self> {
        let rights = LocalRights::new(&config.rights)?;
        let sockets = SocketAccess::new(config.socket_group.as_deref(), config.socket_mode)?;
        let state = Arc::new(StateDir::open(&config.state_dir)?);
        std::fs::create_dir_all(&config.journal_dir)
            .with_context(|| format!("make {}", config.journal_dir.display()))?;
        privacy::close(&config)?;
        let run_dir = RunDir::make(&config.run_dir, sockets)?;
        if rights.names_any() {
            run_dir.let_all_pass()?;
        }
        let run = state.next_run()?;
        let artifacts = Arc::new(Artifacts::open(state.path("files"))?);
        let boot_id = boot_id()?;
        let alerts = Arc::new(Alerts::remembered_in(state.clone()));
        if let Some(program) = config.alert_command.clone() {
            let command = AlertCommand::new(program, config.site.clone(), config.agent.clone());
            command.serve(alerts.clone(), state.clone());
        }
        let source = {
            let (run_dir, state, artifacts) = (run_dir.clone(), state.clone(), artifacts.clone());
            Source::new(&config, run_dir, state, artifacts, run, boot_id, alerts.clone())
        };
        let recovery = Recovery::new(&config, run_dir, state, artifacts.clone(), boot_id, alerts.clone());
        let pki = Pki::new(&config.pki_dir);
        tracing::info!(site = config.site, agent = config.agent, run = run.0, "agent starts");
        if let Err(error) = raise_file_limit() {
            tracing::warn!(%error, "the limit of open files stays as it is: few journals can be kept");
        }
        // The protected side first: guests wait for their disks, journals can wait.
        source.resume_all().await?;
        tokio::spawn(source.clone().retry_regularly());
        tokio::spawn(source.clone().go_on_with_operations());
        let audit = Audit::in_folder(&config.state_dir.join("audit"), alerts.clone())
            .context("begin the audit record")?;
        let app = App::new(&config, run, source.clone(), recovery.clone(), alerts.clone(), audit);
        let resumed = {
            let recovery = recovery.clone();
            tokio::task::spawn_blocking(move || recovery.resume_all()).await.context("open journals")?
        };
        match resumed {
            Ok(()) => {
                forget_files(&artifacts, &source, &recovery);
                if let Some(address) = config.stream_listen {
                    tokio::spawn(listen(
                        recovery.clone(),
                        source.clone(),
                        pki.clone(),
                        (address, config.dscp),
                        alerts.clone(),
                    ));
                    tokio::spawn(recovery.clone().watch_guest_users());
                }
                look_after(recovery);
            }
            // Without knowing which groups have failed over, no stream may be taken.
            Err(error) => alerts.raise("recovery side", format!("no streams are accepted: {error:#}")),
        }
        if let Some(address) = config.nbd_listen {
            tokio::spawn(serve_disks(source.clone(), pki.clone(), address, alerts.clone()));
        }
        tokio::spawn(watch_certificate(pki.clone(), alerts));
        serve(app, (&config.api_socket, rights), config.api_listen, &pki).await?;
        tracing::info!(socket = %config.api_socket.display(), "ready");
        Ok(Self { source, api_socket: config.api_socket })
    }

    /// Where a protected VM's writes are captured: for a front end in this process.
    pub fn capture(&self, vm: &str) -> Option<Arc<Capture>> {
        self.source.vm(vm).ok().map(|vm| vm.capture().clone())
    }

    /// Ends the protections cleanly; to be called last.
    pub fn stop(&self) {
        tracing::info!("agent stops");
        self.source.stop_all();
        let _ = std::fs::remove_file(&self.api_socket);
    }
}

/// Begins what the recovery side does by itself.
fn look_after(recovery: Arc<Recovery>) {
    tokio::spawn(recovery.clone().watch_sources());
    tokio::spawn(recovery.clone().watch_for_ended_guests());
    tokio::spawn(recovery.clone().keep_up_regularly());
    tokio::spawn(recovery.clone().watch_clock());
    tokio::spawn(recovery.clone().serve_waiting_images());
    tokio::spawn(recovery.clone().go_on_with_operations());
    tokio::spawn(recovery.scrub_regularly());
}

/// Removes the files of definitions that nobody needs any more, before anybody brings others.
fn forget_files(artifacts: &Artifacts, source: &Source, recovery: &Recovery) {
    let (Some(mut files), Some(kept)) = (source.files_in_use(), recovery.files_in_use()) else { return };
    files.extend(kept);
    match artifacts.keep_only(&files) {
        Ok(0) => {}
        Ok(count) => tracing::info!(count, "files that no definition names any more are removed"),
        Err(error) => {
            tracing::warn!(error = format!("{error:#}"), "files that no definition names any more stay");
        }
    }
}

/// Says so while the agent's certificate is about to expire.
async fn watch_certificate(pki: Pki, alerts: Arc<Alerts>) {
    loop {
        match pki.check_own(CERTIFICATE_NOTICE) {
            Ok(()) => alerts.clear("certificate"),
            Err(error) => alerts.raise("certificate", format!("{error:#}")),
        }
        tokio::time::sleep(CERTIFICATE_INTERVAL).await;
    }
}

/// Every journal has a few files open: as many as the system allows may be.
fn raise_file_limit() -> std::io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?)
}
