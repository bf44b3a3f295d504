//! The operator's command that every alert is handed to: started with a line of JSON on its standard input for each alert that has
//! begun or ended. One runs at a time, and one that does not end is ended, so that it costs nobody anything else.

use super::told::{Event, News, Told};
use super::{AlertKind, Alerts, Cause};
use crate::clock;
use crate::state::StateDir;
use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::Serialize;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::sleep;
use std::time::Duration;

const FILE: &str = "alerts-told.json";
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
const END_INTERVAL: Duration = Duration::from_millis(20);
/// A command that takes longer is ended and counts as failed.
const RUNTIME_MAX: Duration = Duration::from_secs(60);
/// So long one that was killed is waited for.
const KILLED_PATIENCE: Duration = Duration::from_secs(10);
/// After a failure it is tried again so much later, and twice as much after each further one.
const PATIENCE: Duration = Duration::from_secs(10);
const PATIENCE_MAX: Duration = Duration::from_secs(300);

/// What alerts are handed to, and whose they are.
#[derive(Debug, Clone)]
pub(crate) struct AlertCommand {
    program: PathBuf,
    site: String,
    agent: String,
    runtime_max: Duration,
    /// One that was killed and has not ended.
    stuck: Arc<Mutex<Option<Child>>>,
}

/// One line of what it reads.
#[derive(Serialize)]
struct Line<'a> {
    event: Event,
    site: &'a str,
    agent: &'a str,
    #[serde(flatten)]
    alert: &'a api::Alert,
}

impl AlertCommand {
    pub(crate) fn new(program: PathBuf, site: String, agent: String) -> Self {
        Self { program, site, agent, runtime_max: RUNTIME_MAX, stuck: Arc::default() }
    }

    /// Hands over what begins and ends, on a thread of its own, for as long as the agent lives.
    pub(crate) fn serve(self, alerts: Arc<Alerts>, state: Arc<StateDir>) {
        std::thread::spawn(move || {
            let mut told = state.load(FILE).ok().flatten().unwrap_or_default();
            let mut patience = PATIENCE;
            loop {
                sleep(LOOK_INTERVAL);
                patience = match self.hand_over(&alerts, &state, &mut told) {
                    Ok(()) => PATIENCE,
                    Err(_) => {
                        sleep(patience);
                        PATIENCE_MAX.min(patience * 2)
                    }
                };
            }
        });
    }

    /// Tells the command what it does not know yet. That it fails is an alert itself, the only one it is not told of.
    fn hand_over(&self, alerts: &Alerts, state: &StateDir, told: &mut Told) -> Result<()> {
        let of_itself = Cause::new(AlertKind::Agent, "alert command");
        let (mut standing, unknown) = alerts.in_view();
        standing.remove(&of_itself.key());
        let news = told.news(&standing, &unknown);
        if news.is_empty() {
            return Ok(());
        }
        match self.run(&news) {
            Ok(()) => alerts.clear(of_itself),
            Err(error) => {
                alerts.raise(of_itself, format!("alerts are handed to nobody: {error:#}; it is tried again"));
                return Err(error);
            }
        }
        told.note(news);
        if let Err(error) = state.save(FILE, &*told) {
            tracing::warn!(error = format!("{error:#}"), "what the alert command was told is not recorded");
        }
        Ok(())
    }

    fn run(&self, news: &[News]) -> Result<()> {
        let program = self.program.display();
        self.check_none_is_stuck()?;
        let mut lines = Vec::new();
        for News { event, alert, .. } in news {
            let line = Line { event: *event, site: &self.site, agent: &self.agent, alert };
            serde_json::to_writer(&mut lines, &line).context("write an alert as JSON")?;
            lines.push(b'\n');
        }
        // What it prints goes to the agent's log, if only where it complains.
        let mut command = Command::new(&self.program);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).process_group(0);
        let mut child = command.spawn().with_context(|| format!("start {program}"))?;
        let mut input = child.stdin.take().context("it has no standard input")?;
        // One that reads nothing would hold up whoever writes. It may also end without having read all.
        std::thread::spawn(move || drop(input.write_all(&lines)));
        let status = self.wait(child)?;
        if !status.success() {
            bail!("{program} ended with {status}");
        }
        Ok(())
    }

    fn stuck(&self) -> MutexGuard<'_, Option<Child>> {
        self.stuck.lock().expect("a panic aborts the process")
    }

    /// None is started beside one that does not end even by being killed: else there would be more and more of them.
    fn check_none_is_stuck(&self) -> Result<()> {
        let mut stuck = self.stuck();
        if let Some(child) = &mut *stuck {
            if child.try_wait().context("wait for the alert command")?.is_none() {
                let (program, id) = (self.program.display(), child.id());
                bail!("{program} was killed and does not end: process {id} waits for a disk");
            }
            *stuck = None;
        }
        Ok(())
    }

    /// Until it ends, or is ended with all that it has started.
    fn wait(&self, mut child: Child) -> Result<std::process::ExitStatus> {
        let begun = clock::now();
        loop {
            if let Some(status) = child.try_wait().context("wait for the alert command")? {
                return Ok(status);
            }
            if clock::now().since(begun) > self.runtime_max {
                let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
                if let Some(group) = group {
                    let _ = kill_process_group(group, Signal::KILL);
                }
                // It may have gone to another group.
                let _ = child.kill();
                if !is_reaped(&mut child)? {
                    *self.stuck() = Some(child);
                    self.check_none_is_stuck()?;
                }
                bail!("{} did not end within {} s", self.program.display(), self.runtime_max.as_secs());
            }
            sleep(END_INTERVAL);
        }
    }
}

/// Waits for one that was killed, and not for ever: what it waits for in the system may not come. Whether it has ended.
fn is_reaped(child: &mut Child) -> Result<bool> {
    let killed = clock::now();
    while clock::now().since(killed) < KILLED_PATIENCE {
        if child.try_wait().context("wait for the alert command")?.is_some() {
            return Ok(true);
        }
        sleep(END_INTERVAL);
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    struct Stage {
        folder: tempfile::TempDir,
        alerts: Alerts,
        state: Arc<StateDir>,
        told: Told,
    }

    impl Stage {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let state = Arc::new(StateDir::open(&folder.path().join("state")).unwrap());
            let alerts = Alerts::remembered_in(state.clone());
            Self { folder, alerts, state, told: Told::default() }
        }

        fn command(&self, script: &str) -> AlertCommand {
            let (folder, program) = (self.folder.path().display(), self.folder.path().join("on-alert"));
            // By another process: one that this process has open for writing, or any that it starts meanwhile, cannot be run.
            let make = format!("cat > '{0}' && chmod +x '{0}'", program.display());
            let mut shell = Command::new("sh").args(["-c", &make]).stdin(Stdio::piped()).spawn().unwrap();
            write!(shell.stdin.take().unwrap(), "#!/bin/sh\ncd {folder}\n{script}\n").unwrap();
            assert!(shell.wait().unwrap().success());
            AlertCommand::new(program, "berlin".into(), "host-17".into())
        }

        fn hand_over(&mut self, command: &AlertCommand) -> Result<()> {
            command.hand_over(&self.alerts, &self.state, &mut self.told)
        }

        fn lines(&self) -> Vec<(String, String)> {
            let text = std::fs::read_to_string(self.folder.path().join("seen")).unwrap_or_default();
            let word = |value: &serde_json::Value, name: &str| value[name].as_str().unwrap().to_owned();
            let row = |line: &str| {
                let line = serde_json::from_str(line).unwrap();
                assert_eq!((word(&line, "site"), word(&line, "agent")), ("berlin".into(), "host-17".into()));
                (word(&line, "event"), word(&line, "subject"))
            };
            text.lines().map(row).collect()
        }
    }

    #[test]
    fn every_alert_is_handed_over_when_it_begins_and_when_it_ends_also_over_restarts() {
        let mut stage = Stage::new();
        let command = stage.command("cat >> seen");
        stage.alerts.raise("disk", "it hangs".into());
        stage.hand_over(&command).unwrap();
        stage.alerts.raise("disk", "it hangs still".into());
        stage.hand_over(&command).unwrap();
        let raised = ("raised".to_owned(), "disk".to_owned());
        assert_eq!(stage.lines(), std::slice::from_ref(&raised));

        stage.told = stage.state.load(FILE).unwrap().unwrap();
        stage.alerts = Alerts::remembered_in(stage.state.clone());
        stage.hand_over(&command).unwrap();
        stage.alerts.raise("disk", "it hangs".into());
        stage.hand_over(&command).unwrap();
        assert_eq!(stage.lines(), std::slice::from_ref(&raised));
        stage.alerts.clear("disk");
        stage.hand_over(&command).unwrap();
        assert_eq!(stage.lines(), [raised, ("cleared".to_owned(), "disk".to_owned())]);
    }

    /// One that waits for a disk does not end by being killed, and no other is started beside it.
    #[test]
    fn a_command_that_does_not_end_though_it_was_killed_is_told_and_the_only_one() {
        let mut stage = Stage::new();
        stage.alerts.raise("disk", "it hangs".into());
        let command = stage.command("cat >> seen");
        let stuck = Command::new("sleep").arg("1000").spawn().unwrap();
        let id = stuck.id();
        *command.stuck() = Some(stuck);
        let error = format!("{:#}", stage.hand_over(&command).unwrap_err());
        assert!(error.contains(&format!("process {id} waits")) && stage.lines().is_empty(), "{error}");
        command.stuck().as_mut().unwrap().kill().unwrap();
        while command.check_none_is_stuck().is_err() {
            sleep(END_INTERVAL);
        }
        stage.hand_over(&command).unwrap();
        assert_eq!(stage.lines().len(), 1);
    }

    /// It has gone where the kill of its group does not find it.
    #[test]
    fn a_command_that_has_left_its_group_is_ended_as_well() {
        let mut stage = Stage::new();
        stage.alerts.raise("disk", "it hangs".into());
        let mut left = stage.command("exec perl -e 'setpgrp(0, getpgrp(getppid)); sleep 1000'");
        left.runtime_max = Duration::from_millis(500);
        let error = format!("{:#}", stage.hand_over(&left).unwrap_err());
        assert!(error.contains("did not end within"), "{error}");
    }

    #[test]
    fn a_command_that_fails_hangs_or_is_not_there_is_an_alert_and_is_told_again() {
        let mut stage = Stage::new();
        stage.alerts.raise("disk", "it hangs".into());
        let mut hangs = stage.command("sleep 1000 & wait");
        hangs.runtime_max = Duration::from_millis(100);
        let missing = AlertCommand { program: Path::new("/nowhere/on-alert").into(), ..hangs.clone() };
        for (command, why) in [(missing, "start /nowhere/on-alert"), (hangs, "did not end within")] {
            let error = stage.hand_over(&command).unwrap_err();
            assert!(format!("{error:#}").contains(why), "{error:#}");
            let texts = stage.alerts.list();
            assert!(
                texts
                    .iter()
                    .any(|text| text.starts_with("alerts are handed to nobody") && text.contains(why)),
                "{texts:?}"
            );
        }
        let fails = stage.command("cat >> seen; exit 3");
        assert!(stage.hand_over(&fails).is_err());
        let command = stage.command("cat >> seen");
        stage.hand_over(&command).unwrap();
        assert_eq!(stage.lines().len(), 2, "once by the one that failed");
        assert_eq!(
            stage.alerts.list(),
            ["it hangs"],
            "nothing of the command itself stands, and nothing was told of it"
        );
    }

    #[test]
    fn a_command_that_reads_nothing_of_very_much_is_not_waited_for() {
        let mut stage = Stage::new();
        stage.alerts = Alerts::default();
        for number in 0..2000 {
            stage.alerts.raise(format!("disk {number}"), "it hangs".repeat(100));
        }
        let command = stage.command("exit 0");
        stage.hand_over(&command).unwrap();
        stage.hand_over(&command).unwrap();
        assert!(stage.told.news(&stage.alerts.in_view().0, &Default::default()).is_empty());
    }
}
