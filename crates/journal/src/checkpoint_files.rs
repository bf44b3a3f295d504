//! The files of checkpoints, each in two copies: a page of rows is read from whichever copy has it whole.
//!
//! A page is written to both copies, each synced, before the manifest counts it, so that no crash leaves one that counts in
//! one copy only. What rots in one of them costs nothing, and the scrub writes it anew. Of a page that neither copy gives
//! the tagged checkpoints are listed out of the manifest, which has their words; it is told, and all others are listed.

use crate::checkpoints::{CheckpointFacts, CheckpointQuery, ROW_BYTES};
use crate::manifest::{CheckpointFile, Manifest};
use crate::page::{PAGE_BYTES, PageKind, ROWS_BYTES, open_page, seal_page};
use crate::store::{Store, StoreFile};
use std::cell::OnceCell;
use std::io;
use std::sync::Arc;
use types::WriteSeq;

const ROWS_PER_PAGE: usize = ROWS_BYTES / ROW_BYTES;
/// A file of checkpoints is closed after this many pages.
pub(crate) const FILE_PAGES_MAX: u32 = 256;

type PageBytes = [u8; PAGE_BYTES as usize];

/// Pages of a checkpoint file that neither copy gives.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name}, pages {first} to {last}: {what}, in both copies; automatic checkpoints from {first_cut} to {last_cut} are not listed"
)]
pub struct CheckpointError {
    pub name: String,
    pub first: u32,
    pub last: u32,
    pub what: String,
    pub first_cut: WriteSeq,
    pub last_cut: WriteSeq,
}

/// Reads rows of the files a manifest names.
pub(crate) struct Files<'a> {
    pub(crate) store: &'a dyn Store,
    pub(crate) manifest: &'a Manifest,
}

impl Files<'_> {
    /// Offers what the query wants, in its order, until `take` has enough and says false. What could not be read is
    /// added to `unread`.
    pub(crate) fn visit(
        &self,
        query: &CheckpointQuery,
        unread: &mut Vec<CheckpointError>,
        take: &mut dyn FnMut(CheckpointFacts) -> bool,
    ) -> bool {
        let files = self.manifest.checkpoints.iter().filter(|file| query.may_be_in(file));
        let files: Vec<_> = if query.newest_first { files.rev().collect() } else { files.collect() };
        for file in files {
            let copies = Copies::of(self.store, self.manifest, file);
            for page in copies.pages_from(query) {
                let mut rows = copies.rows_or_tags(page, unread);
                if let (Some(first), Some(last)) = (rows.first(), rows.last())
                    && query.skips_page(first, last)
                {
                    continue;
                }
                if query.newest_first {
                    rows.reverse();
                }
                for row in rows.into_iter().filter(|row| query.wants(row)) {
                    if !take(row) {
                        return false;
                    }
                }
            }
        }
        true
    }

    /// What is wrong with the copies, and what both have lost.
    pub(crate) fn look_through(&self) -> (Vec<String>, Vec<CheckpointError>) {
        let (mut spoilt, mut lost) = (Vec::new(), Vec::new());
        for file in &self.manifest.checkpoints {
            let copies = Copies::past_the_cache(self.store, self.manifest, file);
            spoilt.extend(copies.spoilt().into_iter().map(|copy| copy.what));
            copies.pages().for_each(|page| drop(copies.rows_or_tags(page, &mut lost)));
        }
        (spoilt, lost)
    }
}

/// What was made again, and what both copies have lost.
#[derive(Debug, Default)]
pub(crate) struct Mended {
    pub(crate) mended: Vec<String>,
    pub(crate) lost: Vec<CheckpointError>,
}

/// A copy that is not as it was written.
struct Spoilt {
    name: String,
    pages: Vec<u32>,
    /// The first of them, and what is wrong with it.
    what: String,
}

/// The copies of one file, each opened when it is wanted.
pub(crate) struct Copies<'a> {
    store: &'a dyn Store,
    manifest: &'a Manifest,
    file: &'a CheckpointFile,
    is_direct: bool,
    open: [OnceCell<io::Result<Arc<dyn StoreFile>>>; 2],
}

impl<'a> Copies<'a> {
    pub(crate) fn of(store: &'a dyn Store, manifest: &'a Manifest, file: &'a CheckpointFile) -> Self {
        Self { store, manifest, file, is_direct: false, open: Default::default() }
    }

    /// As the disk has them, and not memory.
    pub(crate) fn past_the_cache(
        store: &'a dyn Store,
        manifest: &'a Manifest,
        file: &'a CheckpointFile,
    ) -> Self {
        Self { is_direct: true, ..Self::of(store, manifest, file) }
    }

    fn pages(&self) -> std::ops::Range<u32> {
        0..self.file.pages
    }

    /// The names of the copies there are.
    fn names(&self) -> impl Iterator<Item = String> {
        self.file.file_names().into_iter().take(if self.file.is_double { 2 } else { 1 })
    }

    /// A page as a copy has it.
    fn page(&self, copy: usize, page: u32) -> Result<(PageBytes, Vec<CheckpointFacts>), String> {
        let name = &self.file.file_names()[copy];
        let opened = self.open[copy].get_or_init(|| match self.is_direct {
            true => self.store.open_direct(name, false),
            false => self.store.open(name, false),
        });
        let unread = |error: &io::Error| format!("cannot be read: {error}");
        let mut bytes = [0; PAGE_BYTES as usize];
        let opened = opened.as_ref().map_err(unread)?;
        opened.read_at(u64::from(page) * PAGE_BYTES, &mut bytes).map_err(|error| unread(&error))?;
        let rows = open_page(&bytes, PageKind::Checkpoints, page, self.file.stamp, ROW_BYTES)?;
        let rows = bytes[..rows * ROW_BYTES].chunks_exact(ROW_BYTES);
        let rows = rows.map(|row| CheckpointFacts::decode(row, &self.manifest.tags));
        Ok((bytes, rows.collect::<Result<_, _>>()?))
    }

    /// The rows of a page, out of the first copy that has it whole.
    fn rows(&self, page: u32) -> Result<Vec<CheckpointFacts>, String> {
        let of_first = self.page(0, page);
        let found =
            if of_first.is_err() && self.file.is_double { self.page(1, page).or(of_first) } else { of_first };
        found.map(|(_, rows)| rows)
    }

    /// The rows of a page; where neither copy gives it, what the manifest knows of it and of those beside it that are
    /// lost too, which is told once.
    fn rows_or_tags(&self, page: u32, unread: &mut Vec<CheckpointError>) -> Vec<CheckpointFacts> {
        let what = match self.rows(page) {
            Ok(rows) => return rows,
            Err(what) => what,
        };
        let name = &self.file.file_names()[0];
        if !unread.last().is_some_and(|l| l.name == *name && (l.first..=l.last).contains(&page)) {
            unread.push(self.lost_around(page, what));
        }
        let lost = unread.last().expect("pushed just now, or before");
        let is_in_them = |cut: u64| lost.first_cut.raw() <= cut && cut <= lost.last_cut.raw();
        let tags = self.manifest.tags.iter().filter(|tag| page == lost.first && is_in_them(tag.cut));
        tags.map(CheckpointFacts::of_tag).collect()
    }

    /// The lost pages around one of them, and which cuts they were of.
    fn lost_around(&self, page: u32, what: String) -> CheckpointError {
        let is_lost = |page: &u32| self.rows(*page).is_err();
        let first = (0..page).rev().take_while(is_lost).last().unwrap_or(page);
        let last = (page + 1..self.file.pages).take_while(is_lost).last().unwrap_or(page);
        let before = first.checked_sub(1).and_then(|page| self.rows(page).ok()?.pop());
        let first_cut = before.map_or(WriteSeq::from_raw(self.file.first_cut), |before| before.cut().next());
        let last_cut =
            self.begins(last + 1).map_or(WriteSeq::from_raw(self.file.last_cut), |cut| cut.previous());
        CheckpointError { name: self.file.file_names()[0].clone(), first, last, what, first_cut, last_cut }
    }

    /// The first cut of the first page from `page` on that can be read.
    fn begins(&self, page: u32) -> Option<WriteSeq> {
        let mut rows = (page..self.file.pages).filter_map(|page| self.rows(page).ok());
        rows.next()?.first().map(CheckpointFacts::cut)
    }

    /// The pages in the query's order, from the one on that `after` lies in.
    fn pages_from(&self, query: &CheckpointQuery) -> Box<dyn Iterator<Item = u32>> {
        let Some(after) = query.after else {
            return if query.newest_first { Box::new(self.pages().rev()) } else { Box::new(self.pages()) };
        };
        // The first page that begins above `after`; one that is lost may hold what lies below, and is looked at as well.
        let (mut low, mut high) = (0, self.file.pages);
        while low < high {
            let middle = (low + high) / 2;
            if self.begins(middle).is_some_and(|cut| cut <= after) { low = middle + 1 } else { high = middle }
        }
        match query.newest_first {
            true => Box::new((0..self.file.pages.min(low + 1)).rev()),
            false => Box::new(low.saturating_sub(1)..self.file.pages),
        }
    }

    fn spoilt(&self) -> Vec<Spoilt> {
        let mut spoilt: Vec<Spoilt> = Vec::new();
        for (copy, name) in self.names().enumerate() {
            for page in self.pages() {
                let Err(what) = self.page(copy, page).map(drop) else { continue };
                match spoilt.last_mut().filter(|last| last.name == name) {
                    Some(last) => last.pages.push(page),
                    None => {
                        let what = format!("{name}, page {page}: {what}");
                        spoilt.push(Spoilt { name: name.clone(), pages: vec![page], what });
                    }
                }
            }
        }
        spoilt
    }

    /// Whether all of it is there twice.
    pub(crate) fn are_whole(&self) -> bool {
        self.file.is_double && self.spoilt().is_empty()
    }

    /// Writes anew, synced, what one copy has and the other has not.
    pub(crate) fn mend(&self) -> io::Result<Mended> {
        let mut done = Mended::default();
        for Spoilt { name, mut pages, what } in self.spoilt() {
            pages.retain(|page| {
                self.rows_or_tags(*page, &mut done.lost);
                self.rows(*page).is_ok()
            });
            if !pages.is_empty() {
                self.write_pages(&name, pages)?;
                done.mended.push(what);
            }
        }
        done.lost.dedup();
        if !self.file.is_double {
            let pages = self.pages().filter(|page| self.rows(*page).is_ok()).collect();
            self.write_pages(&self.file.file_names()[1], pages)?;
        }
        Ok(done)
    }

    fn write_pages(&self, name: &str, pages: Vec<u32>) -> io::Result<()> {
        let is_new = !self.store.exists(name)?;
        let open = self.store.open(name, true)?;
        for page in pages {
            let good = [0, 1].into_iter().find_map(|copy| self.page(copy, page).ok());
            let (bytes, _) = good.expect("one copy has it, as was seen just now");
            open.write_at(u64::from(page) * PAGE_BYTES, &bytes)?;
        }
        open.sync_data()?;
        if is_new { self.store.sync_folder() } else { Ok(()) }
    }
}

/// Writes `rows`, ascending by cut, as pages from `page` on; not synced.
pub(crate) fn write_rows(
    file: &dyn StoreFile,
    rows: &[CheckpointFacts],
    page: u32,
    stamp: u32,
) -> io::Result<()> {
    for (chunk, page) in rows.chunks(ROWS_PER_PAGE).zip(page..) {
        let bytes: Vec<u8> = chunk.iter().flat_map(CheckpointFacts::encode).collect();
        let sealed = seal_page(&bytes, chunk.len() as u16, PageKind::Checkpoints, page, stamp);
        file.write_at(u64::from(page) * PAGE_BYTES, &sealed)?;
    }
    Ok(())
}

/// The pages a number of rows takes.
pub(crate) fn pages_for(rows: usize) -> u32 {
    rows.div_ceil(ROWS_PER_PAGE) as u32
}
