//! Files a VM definition names (kernel, initrd, firmware), kept by what they contain.

use anyhow::{Context, Result, bail};
use replication::wire::{ArtifactHash, ArtifactPart};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use types::limits::ARTIFACT_BYTES_MAX;

/// A folder of files named by their BLAKE3.
#[derive(Debug)]
pub struct Artifacts {
    folder: PathBuf,
}

impl Artifacts {
    /// Uses `folder`, making it where it does not exist.
    ///
    /// # Errors
    /// As the file system says.
    pub fn open(folder: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        Ok(Self { folder })
    }

    /// Where a file with this hash is, whole, or will be.
    pub fn path(&self, hash: ArtifactHash) -> PathBuf {
        self.folder.join(hash.to_string())
    }

    pub fn has(&self, hash: ArtifactHash) -> bool {
        self.path(hash).exists()
    }

    /// Removes all but these, and what had come of others in part. How many.
    ///
    /// # Errors
    /// As the file system says.
    pub(crate) fn keep_only(&self, wanted: &BTreeSet<ArtifactHash>) -> Result<usize> {
        let names: BTreeSet<String> = wanted.iter().map(ArtifactHash::to_string).collect();
        let mut count = 0;
        for row in std::fs::read_dir(&self.folder).context("list the files of definitions")? {
            let row = row.context("list the files of definitions")?;
            if row.file_name().to_str().is_none_or(|name| !names.contains(name)) {
                std::fs::remove_file(row.path())
                    .with_context(|| format!("remove {}", row.path().display()))?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// Copies a file in; its hash and size in bytes.
    ///
    /// # Errors
    /// As the file system says, or where the file is too large.
    pub fn take(&self, source: &Path) -> Result<(ArtifactHash, u64)> {
        // Two that are taken at once are never one file. What a crash leaves goes at the next start.
        static TAKEN: AtomicU64 = AtomicU64::new(0);
        let partial = self.folder.join(format!("taking-{}.partial", TAKEN.fetch_add(1, Ordering::Relaxed)));
        let taken = self.take_over(source, &partial);
        if taken.is_err() {
            let _ = std::fs::remove_file(&partial);
        }
        taken
    }

    fn take_over(&self, source: &Path, partial: &Path) -> Result<(ArtifactHash, u64)> {
        let open = || format!("read {}", source.display());
        let mut from = File::open(source).with_context(open)?;
        let mut to = BufWriter::new(File::create(partial).context("make a partial file")?);
        let mut hasher = blake3::Hasher::new();
        let mut size = 0;
        let mut buf = vec![0; 1 << 20];
        loop {
            let len = from.read(&mut buf).with_context(open)?;
            if len == 0 {
                break;
            }
            size += len as u64;
            if size > ARTIFACT_BYTES_MAX {
                bail!("{} is over 1 GiB", source.display());
            }
            hasher.update(&buf[..len]);
            to.write_all(&buf[..len]).context("write a partial file")?;
        }
        let hash = ArtifactHash(*hasher.finalize().as_bytes());
        to.into_inner().map_err(|error| error.into_error())?.sync_all()?;
        std::fs::rename(partial, self.path(hash)).context("name the file")?;
        Ok((hash, size))
    }

    /// Takes a part that came over the wire; true once the file is whole and checks.
    ///
    /// # Errors
    /// Where the whole file is not what its hash says, or the file system fails.
    pub fn keep_part(&self, part: &ArtifactPart) -> Result<bool> {
        if self.has(part.hash) {
            return Ok(true);
        }
        let partial = self.path(part.hash).with_extension("partial");
        let file = OpenOptions::new()
            .create(true)
            .truncate(part.offset == 0)
            .read(true)
            .write(true)
            .open(&partial)
            .with_context(|| format!("open {}", partial.display()))?;
        file.write_all_at(&part.bytes, part.offset).context("write a partial file")?;
        if part.offset + (part.bytes.len() as u64) < part.size_bytes {
            return Ok(false);
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(&partial)?).context("read a partial file")?;
        if hasher.finalize().as_bytes() != &part.hash.0 {
            std::fs::remove_file(&partial).context("remove a partial file")?;
            bail!("file {} arrived damaged", part.hash);
        }
        file.sync_all()?;
        std::fs::rename(&partial, self.path(part.hash)).context("name the file")?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_no_definition_names_any_more_go() {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open(folder.path().join("files")).unwrap();
        let take = |text: &str| {
            let path = folder.path().join("kernel");
            std::fs::write(&path, text).unwrap();
            artifacts.take(&path).unwrap().0
        };
        let (old, new) = (take("old"), take("new"));
        std::fs::write(artifacts.path(new).with_extension("partial"), "ha").unwrap();
        assert_eq!(artifacts.keep_only(&BTreeSet::from([new])).unwrap(), 2);
        assert!(artifacts.has(new) && !artifacts.has(old));
        assert_eq!(artifacts.keep_only(&BTreeSet::from([new])).unwrap(), 0);
    }

    #[test]
    fn two_files_that_are_taken_at_once_are_each_what_their_hashes_say() {
        let folder = tempfile::tempdir().unwrap();
        let artifacts = Artifacts::open(folder.path().join("files")).unwrap();
        let (slow, quick) = (folder.path().join("slow"), folder.path().join("quick"));
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &slow, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        std::fs::write(&quick, vec![2; 2 << 20]).unwrap();
        let hashes = std::thread::scope(|scope| {
            let taken = scope.spawn(|| artifacts.take(&slow).unwrap().0);
            let mut end = OpenOptions::new().write(true).open(&slow).unwrap();
            end.write_all(&vec![1; 2 << 20]).unwrap();
            let quick = artifacts.take(&quick).unwrap().0;
            end.write_all(&vec![1; 2 << 20]).unwrap();
            drop(end);
            [taken.join().unwrap(), quick]
        });
        for hash in hashes {
            let bytes = std::fs::read(artifacts.path(hash)).unwrap();
            assert_eq!(blake3::hash(&bytes).as_bytes(), &hash.0);
        }
        assert_eq!(std::fs::read_dir(folder.path().join("files")).unwrap().count(), 2);
    }
}
