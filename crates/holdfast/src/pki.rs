//! Commands of keys and certificates. They work on files and need no agent.

use crate::cli::{PkiCommand, Whose};
use crate::print;
use agent::Purpose;
use agent::pki::{Pki, Shown, Wanted, show};
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub(crate) fn run(command: PkiCommand, json: bool) -> Result<ExitCode> {
    match command {
        PkiCommand::Show { dir, file } => {
            print::one(json, &show(&file.unwrap_or_else(|| dir.join("ca.pem")))?, text)?;
        }
        PkiCommand::Fingerprint { dir, file } => {
            let shown = show(&file.unwrap_or_else(|| dir.join("ca.pem")))?;
            print::one(json, &shown, |shown| format!("{}\n", shown.fingerprint))?;
        }
        other => {
            let written = write(other)?;
            // Not of a list.
            let shown = show(&written).ok();
            let fingerprint = shown.map(|shown| shown.fingerprint);
            let answer = serde_json::json!({ "written": written, "fingerprint": fingerprint });
            print::one(json, &answer, |_| {
                let mut text = format!("wrote {}\n", written.display());
                text.extend(fingerprint.map(|fingerprint| format!("SHA-256 fingerprint {fingerprint}\n")));
                text
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Carries a command out that writes a file; its path.
fn write(command: PkiCommand) -> Result<PathBuf> {
    match command {
        PkiCommand::Init { dir, site } => Pki::new(dir).init(&site),
        PkiCommand::Issue { dir, whose, days } => {
            let (wanted, stem) = wanted(whose, days);
            Pki::new(dir).issue_for(&wanted, &stem)
        }
        PkiCommand::Request { dir, site, whose } => {
            let (wanted, stem) = wanted(whose, 1);
            Pki::new(dir).request(&wanted, &stem, site.as_deref())
        }
        PkiCommand::Sign { dir, request, whose, days, fingerprint, to } => {
            check_fingerprint(&request, fingerprint.as_deref())?;
            let to = to.unwrap_or_else(|| request.with_extension("pem"));
            Pki::new(dir).sign(&request, &wanted(whose, days).0, &to)?;
            Ok(to)
        }
        PkiCommand::Install { dir, certificate, ca } => Pki::new(dir).install(&certificate, ca.as_deref()),
        PkiCommand::Withdraw { dir, site, what } if Path::new(&what).exists() => {
            if site.is_some() {
                bail!("{what} says itself which site has issued it: leave --site out");
            }
            Pki::new(dir).withdraw_file(Path::new(&what))
        }
        PkiCommand::Withdraw { dir, site, what } => Pki::new(dir).withdraw(site.as_deref(), &what),
        PkiCommand::Trust { dir, site, certificate, fingerprint } => {
            check_fingerprint(&certificate, fingerprint.as_deref())?;
            Pki::new(dir).trust(&site, &certificate)
        }
        PkiCommand::Show { .. } | PkiCommand::Fingerprint { .. } => unreachable!("write nothing"),
    }
}

/// A certificate that is wanted, and what its files are called.
fn wanted(whose: Whose, days: u32) -> (Wanted, String) {
    let Whose { agent, hosts, operator, role, client, disks } = whose;
    let (purpose, stem) = match (operator, client) {
        (None, None) => (Purpose::Agent, "agent".to_owned()),
        (Some(stem), _) => (Purpose::Operator(role), stem),
        (None, Some(stem)) => (Purpose::Client(disks), stem),
    };
    let name = agent.unwrap_or_else(|| stem.clone());
    (Wanted { name, purpose, hosts, days }, stem)
}

/// Refuses a file whose fingerprint is another than was told; how that is written does not matter.
fn check_fingerprint(file: &Path, told: Option<&str>) -> Result<()> {
    let Some(told) = told else { return Ok(()) };
    let found = show(file)?.fingerprint;
    let digits = |text: &str| text.replace([':', ' '], "").to_ascii_lowercase();
    if digits(&found) != digits(told) {
        bail!(
            "{} has the fingerprint {found}, which is not the one you were told: do not use it",
            file.display()
        );
    }
    Ok(())
}

fn text(shown: &Shown) -> String {
    let mut out = format!("{} of {}\n", shown.kind, shown.subject);
    let mut line = |name: &str, value: &str| out.push_str(&format!("  {name:<12} {value}\n"));
    shown.names.iter().for_each(|name| line("for", name));
    for (name, value) in [
        ("issued by", &shown.issuer),
        ("serial", &shown.serial),
        ("from", &shown.from),
        ("until", &shown.until),
    ] {
        if let Some(value) = value {
            line(name, value);
        }
    }
    line("SHA-256", &shown.fingerprint);
    out
}
