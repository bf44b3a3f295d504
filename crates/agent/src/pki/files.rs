//! The small files of a folder of keys and certificates: read whole, replaced as a whole, durably.

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The certificates in a file.
///
/// # Errors
/// Where it cannot be read, with the system's own error below, or holds none.
pub(crate) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let what = || format!("read certificate {}; run `holdfast pki issue`", path.display());
    let found: Result<Vec<_>, _> = match CertificateDer::pem_file_iter(path) {
        Ok(found) => found.collect(),
        Err(error) => Err(error),
    };
    let found = found.map_err(|error| failed(error, &what()))?;
    if found.is_empty() {
        bail!("{} holds no certificate", path.display());
    }
    Ok(found)
}

/// The keys in a file.
///
/// # Errors
/// As [`read_certificates`].
pub(crate) fn read_keys(path: &Path) -> Result<Vec<PrivateKeyDer<'static>>> {
    let what = || format!("read key {}; run `holdfast pki issue`", path.display());
    let found: Result<Vec<_>, _> = match PrivateKeyDer::pem_file_iter(path) {
        Ok(found) => found.collect(),
        Err(error) => Err(error),
    };
    let found = found.map_err(|error| failed(error, &what()))?;
    if found.is_empty() {
        bail!("{} holds no key", path.display());
    }
    Ok(found)
}

fn failed(error: pem::Error, what: &str) -> anyhow::Error {
    match error {
        pem::Error::Io(error) => anyhow::Error::new(error).context(what.to_owned()),
        other => anyhow::anyhow!("{what}: {other}"),
    }
}

/// Keeps whoever else changes a folder of keys and certificates waiting until this is dropped: two that change one file, or
/// a pair, would each lose what the other has written.
///
/// # Errors
/// Where it cannot be made or locked.
pub(super) fn lock(folder: &Path) -> Result<File> {
    let take = || -> std::io::Result<File> {
        std::fs::create_dir_all(folder)?;
        let locked = File::open(folder)?;
        flock(&locked, FlockOperation::LockExclusive)?;
        Ok(locked)
    };
    take().with_context(|| format!("lock {}", folder.display()))
}

/// Writes a file that is not there yet.
///
/// # Errors
/// Where it is, or cannot be made durable.
pub(crate) fn write_new(path: &Path, text: &str) -> Result<()> {
    let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(path);
    // Synced, or a power cut could leave an empty key under the name.
    file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .with_context(|| format!("write {}", path.display()))
}

/// Puts a file in the place of the one that is there: whoever reads finds either whole, also after a power cut.
///
/// # Errors
/// Where it cannot be made durable.
pub(crate) fn replace(path: &Path, text: &str) -> Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Path::new(&partial);
    let _ = std::fs::remove_file(partial);
    write_new(partial, text)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::rename(partial, path)
        .and_then(|()| File::open(folder)?.sync_all())
        .with_context(|| format!("write {}", path.display()))
}
