//! Builds that other chores need: the binary and the guest. Made once, kept under `target/`.

use crate::backports;
use crate::packages::{self, unpack_kernel};
use anyhow::{Context, Result, bail, ensure};
use lab::GuestFiles;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The workspace's folder.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Cargo, run in the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a command whose output is for the person.
pub(crate) fn run_visibly(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} ended with {status}");
    }
    Ok(())
}

/// The folder cargo builds into.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// What a release binary may be large: it once was 84 MB, most of it lines for debuggers, on every host.
const RELEASE_BYTES_MAX: u64 = 25 << 20;

/// Builds the release binary; its path.
///
/// # Errors
/// Where it cannot be built, or is larger than it may be.
pub(crate) fn release_binary() -> Result<PathBuf> {
    run_visibly(cargo().args(["build", "--release", "--package", "holdfast"]))?;
    let binary = target().join("release/holdfast");
    let facts = std::fs::metadata(&binary).with_context(|| format!("look at {}", binary.display()))?;
    check_size(&binary, facts.len())?;
    Ok(binary)
}

/// Whether a release binary is as small as it is to be.
fn check_size(binary: &Path, bytes: u64) -> Result<()> {
    ensure!(
        bytes <= RELEASE_BYTES_MAX,
        "{} has {:.1} MiB, and may have {}: see that [profile.release] in Cargo.toml strips what only debuggers read \
         (`strip = \"debuginfo\"`), and what came in with the last dependency; where all of it is needed, raise \
         RELEASE_BYTES_MAX in crates/xtask/src/prepare.rs",
        binary.display(),
        bytes as f64 / f64::from(1 << 20),
        RELEASE_BYTES_MAX >> 20
    );
    Ok(())
}

/// Builds the binary that tests use; its path.
pub(crate) fn debug_binary() -> Result<PathBuf> {
    run_visibly(cargo().args(["build", "--quiet", "--workspace", "--bin", "holdfast"]))?;
    Ok(target().join("debug/holdfast"))
}

/// Builds the binary with the feature `ublk`, for guests, without what only debuggers read.
fn binary_with_ublk() -> Result<()> {
    let arguments = ["build", "--quiet", "--workspace", "--bin", "holdfast", "--features", "holdfast/ublk"];
    run_visibly(cargo().args(arguments))?;
    let (built, stripped) = (target().join("debug/holdfast"), target().join("guest/holdfast-ublk"));
    lab::run_quietly(Command::new("strip").arg("-o").arg(stripped).arg(built))
}

/// Makes the guest, unless it is there already and nothing it is made of has changed.
pub(crate) fn guest() -> Result<GuestFiles> {
    packages::ensure(packages::GUEST)?;
    let folder = target().join("guest");
    let kernel = folder.join("kernel-package");
    if !kernel.exists() {
        std::fs::create_dir_all(&folder).context("make the guest's folder")?;
        unpack_kernel(&kernel)?;
    }
    GuestFiles::make(&folder, &kernel)
}

/// Makes everything that end-to-end tests need: packages, the guest and what is added to it, the newer QEMU.
pub(crate) fn for_tests() -> Result<()> {
    packages::ensure(packages::BUILD)?;
    packages::ensure(packages::UBLK)?;
    let folder = target().join("guest");
    let guest = guest()?;
    // Only now: where tools of a newer QEMU were there, installing the guest's QEMU has taken them away.
    packages::ensure(packages::PEERS)?;
    guest.add_nbd_client(&folder.join("kernel-package"))?;
    backports::QEMU_TEN.ensure(&folder)?;
    binary_with_ublk()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    #[test]
    fn a_release_binary_with_lines_for_debuggers_is_refused_with_the_cure() {
        let binary = Path::new("target/release/holdfast");
        check_size(binary, RELEASE_BYTES_MAX).unwrap();
        let said = check_size(binary, 84_000_000).unwrap_err().to_string();
        assert!(said.contains("target/release/holdfast has 80.1 MiB, and may have 25"), "{said}");
        assert!(said.contains("strip = \"debuginfo\""), "{said}");
        assert!(check_size(binary, RELEASE_BYTES_MAX + 1).is_err());
    }

    #[test]
    fn the_release_profile_strips_what_only_debuggers_read() {
        let text = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
        let manifest: toml::Table = text.parse().unwrap();
        assert_eq!(manifest["profile"]["release"]["strip"].as_str(), Some("debuginfo"));
    }
}
