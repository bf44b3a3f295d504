//! Single certificates that are not taken any more though their authority is: `trust/SITE.withdrawn`, a line each, of which
//! the first word is its serial number in hexadecimal. What follows is for people.
//!
//! The list is as good as the folder: whoever may write there can trust a whole site, or stop to. It is of the site that
//! has issued the certificates, and holds where it lies: each host has to be given it.

use super::files::replace;
use crate::clock;
use anyhow::{Context, Result, bail};
use rustls::pki_types::CertificateDer;
use std::io;
use std::path::{Path, PathBuf};

/// The most digits of a serial number: 20 bytes, and one for the sign.
const DIGITS_MAX: usize = 42;

/// Puts a serial number on a site's list; where that is.
///
/// # Errors
/// Where that is none, or the list is damaged or cannot be written.
pub(super) fn add(folder: &Path, site: &str, serial: &str, words: &str) -> Result<PathBuf> {
    let serial = parse(serial).with_context(|| format!("{serial:?} is no serial number"))?;
    let path = place(folder, site);
    let mut text = read(&path)?;
    if !listed(&text, &path)?.contains(&serial) {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text += &format!("{serial} {} {words}\n", clock::to_text(clock::wall()));
    }
    std::fs::create_dir_all(folder.join("trust")).context("make the folder")?;
    replace(&path, &text)?;
    Ok(path)
}

/// Whether a certificate that a site has issued was withdrawn.
///
/// # Errors
/// Where that cannot be told: the list is there, and cannot be read or is damaged.
pub(super) fn holds(folder: &Path, site: &str, certificate: &CertificateDer<'_>) -> Result<bool> {
    let path = place(folder, site);
    let listed = listed(&read(&path)?, &path)?;
    Ok(!listed.is_empty() && listed.contains(&serial(certificate)?))
}

fn place(folder: &Path, site: &str) -> PathBuf {
    folder.join("trust").join(format!("{site}.withdrawn"))
}

fn read(path: &Path) -> Result<String> {
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => other.with_context(|| format!("read {}", path.display())),
    }
}

/// The serial numbers of a list.
fn listed(text: &str, path: &Path) -> Result<Vec<String>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let serial = |line: &str| {
        let first = line.split_whitespace().next().unwrap_or_default();
        parse(first).with_context(|| format!("{} is damaged: {line:?} is no serial number", path.display()))
    };
    lines.map(serial).collect()
}

/// A serial number as it is compared: lower-case, and without zeroes before it. Colons between its bytes are taken too.
fn parse(text: &str) -> Result<String> {
    let digits = text.replace(':', "").to_ascii_lowercase();
    if digits.is_empty() || digits.len() > DIGITS_MAX || !digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    {
        bail!("it has to be hexadecimal");
    }
    Ok(digits.trim_start_matches('0').to_owned())
}

/// The serial number of a certificate.
///
/// # Errors
/// Where it is no certificate.
pub(super) fn serial(certificate: &CertificateDer<'_>) -> Result<String> {
    let leaf = webpki::EndEntityCert::try_from(certificate).context("read the certificate")?;
    let digits: String = leaf.serial().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(digits.trim_start_matches('0').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_number_is_the_same_however_it_is_written() {
        for text in ["0a:bb:01", "ABB01", "000abb01"] {
            assert_eq!(parse(text).unwrap(), "abb01");
        }
        for text in ["", "x1", "0x1", &"1".repeat(43)] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_list_is_added_to_and_one_that_is_damaged_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = add(folder.path(), "berlin", "0A:01", "anna").unwrap();
        std::fs::write(&path, format!("# ours\n\n{}", std::fs::read_to_string(&path).unwrap().trim_end()))
            .unwrap();
        add(folder.path(), "berlin", "b2", "hypervisor-7").unwrap();
        add(folder.path(), "berlin", "a01", "again").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(listed(&text, &path).unwrap(), ["a01", "b2"]);
        assert!(text.starts_with("# ours"), "{text}");
        std::fs::write(&path, "a01\nno number\n").unwrap();
        assert!(listed(&read(&path).unwrap(), &path).is_err());
        assert!(add(folder.path(), "berlin", "c3", "").is_err(), "what is damaged is not made to look whole");
    }
}
