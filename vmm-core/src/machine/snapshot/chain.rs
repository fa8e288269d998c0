//! Diffs on what they are based on: which page is in which file, and how memory becomes all of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{FilePiece, MapFileError, Ram, host_page_size, map_file};

use super::error::SnapshotError;
use super::identity::{self, Base, SnapshotId};
use super::memory::{CHUNK, MAX_PIECES, MemoryTable, PAGE};
use super::pager::Prefetch;
use super::pages::PageSet;
use super::tree::{self, SnapshotKey};
use super::{Contents, Header, Snapshot};

/// The memory of one file of a chain.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) file: Arc<File>,
    /// The first byte of memory in there.
    pub(super) start: u64,
    pub(super) memory: Arc<MemoryTable>,
}

/// Pages of a chunk that no later file has.
struct Visible {
    layer: usize,
    chunk: usize,
    pages: PageSet,
}

/// A chunk is mapped if its runs of pages have at least so many on average: to map a run takes the kernel some
/// microseconds, and about as many to copy a few pages.
const LONG_RUNS: usize = 8;

impl Snapshot {
    /// Opens a chain: a full snapshot, a diff of it, a diff of that, and so on. It is the snapshot that the last one
    /// stands for, and is used like any other. Nothing is merged or copied; each file must stay as it is while a machine
    /// that was restored from it lives.
    ///
    /// Each file is the caller's choice: what a diff says of its base is compared, and opens nothing.
    pub fn open_chain<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>) -> Result<Self, SnapshotError> {
        Self::open_paths(paths, None)
    }

    pub(super) fn open_paths<P: AsRef<Path>>(
        paths: impl IntoIterator<Item = P>,
        key: Option<&SnapshotKey>,
    ) -> Result<Self, SnapshotError> {
        let mut chain: Option<Self> = None;
        for path in paths {
            let path = path.as_ref();
            let next = Self::open_path(path, key)?;
            let whole = match chain {
                Some(base) => next.on(base),
                None => next.expect_whole().map(|()| next),
            };
            chain = Some(whole.map_err(|error| error.opened(path))?);
        }
        chain.ok_or(SnapshotError::EmptyChain)
    }

    /// Puts a diff on what it is based on: a full snapshot, or a diff that has its own base.
    pub fn on(mut self, base: Self) -> Result<Self, SnapshotError> {
        let Some(Base { id, seal, root }) = self.identity.and_then(|identity| identity.base) else {
            return Err(SnapshotError::NotADiff);
        };
        base.expect_whole()?;
        if base.id() != Some(id) {
            return Err(SnapshotError::OtherBase { expected: id, found: base.id() });
        }
        self.expect_key()?;
        if self.key() != base.key() {
            let (found, base) = (self.key_id(), base.key_id());
            return Err(SnapshotError::MixedKeys { found, base });
        }
        // With a tree, it is this very file, or one that its key's owner has merged it into.
        let roots = [base.seal.map(|seal| seal.root), base.identity.and_then(|base| base.stands_for)];
        let is_same = self.seal.is_none() || (root.is_some() && roots.contains(&root));
        if !is_same || identity::seal(&base.sections) != seal || !self.memory.is_beside(&base.memory) {
            return Err(SnapshotError::ChangedBase { base: id });
        }
        self.file()?;
        self.below = base.layers()?;
        Ok(self)
    }

    /// What names this snapshot in those that are based on it. `None` in version 1 of the format.
    pub fn id(&self) -> Option<SnapshotId> {
        Some(self.identity?.id)
    }

    /// The id of the snapshot that this is a diff of, if it is one.
    pub fn base(&self) -> Option<SnapshotId> {
        Some(self.identity?.base?.id)
    }

    /// How many bytes of memory are in this file, and not in those that it is based on, page by page. In a full snapshot,
    /// memory counts in pieces of 2 MiB.
    pub fn memory_in_file(&self) -> u64 {
        if self.memory.is_diff() {
            return self.memory.pages().map(|(_, pages)| (pages.count() * PAGE) as u64).sum();
        }
        self.memory.chunks().filter(|(_, sum)| sum.is_some()).map(|(chunk, _)| chunk.len as u64).sum()
    }

    /// The same files.
    pub(in crate::machine) fn duplicate(&self) -> Result<Self, SnapshotError> {
        Ok(Self {
            contents: Contents::File(Arc::clone(self.file()?)),
            prefetch: Prefetch::Nothing,
            number: self.number,
            header: self.header,
            seal: self.seal,
            identity: self.identity,
            shape: self.shape.clone(),
            memory: Arc::clone(&self.memory),
            below: self.below.clone(),
            sections: self.sections.clone(),
        })
    }

    /// Its file, which can be mapped.
    pub(in crate::machine) fn file(&self) -> Result<&Arc<File>, SnapshotError> {
        match &self.contents {
            Contents::File(file) => Ok(file),
            Contents::Source(_) => Err(self.no_file()),
        }
    }

    /// Why what comes on demand cannot be used.
    pub(super) fn no_file(&self) -> SnapshotError {
        let reason = "it is used as one of several files here: open it as a file, and not on demand";
        SnapshotError::OnDemand { reason: reason.to_owned() }
    }

    /// What diffs of it say of it.
    pub(super) fn as_base(&self) -> Result<Base, SnapshotError> {
        let id = self.id().ok_or(SnapshotError::NoId)?;
        self.expect_key()?;
        Ok(Base { id, seal: identity::seal(&self.sections), root: self.stands_for() })
    }

    /// The root that diffs of it name: its own, or that of what it was merged of.
    pub(super) fn stands_for(&self) -> Option<tree::Hash> {
        self.identity.and_then(|identity| identity.stands_for).or(self.seal.map(|seal| seal.root))
    }

    /// Fails if it is a diff without its base, or has a tree and no key.
    pub(super) fn expect_whole(&self) -> Result<(), SnapshotError> {
        self.expect_key()?;
        match self.base() {
            Some(base) if self.below.is_empty() => Err(SnapshotError::NeedsBase { base }),
            _ => Ok(()),
        }
    }

    /// The memory of each file, the last one first.
    pub(super) fn layers(&self) -> Result<Vec<Layer>, SnapshotError> {
        let Header { memory: start, .. } = self.header;
        let own = Layer { file: Arc::clone(self.file()?), start, memory: Arc::clone(&self.memory) };
        Ok(std::iter::once(own).chain(self.below.iter().cloned()).collect())
    }

    /// Fills RAM, which is zero: the full snapshot first, then what of each diff no later one has.
    pub(super) fn fill(&self, ram: &Ram) -> Result<(), SnapshotError> {
        let mut diffs = self.layers()?;
        let Some(full) = diffs.pop() else { return Ok(()) };
        full.memory.fill(ram, &full.file, full.start)?;
        let visible = visible(&diffs);
        if self.key().is_some() {
            return copy(&diffs, ram, visible.iter());
        }
        let (mapped, pieces) = plan(&diffs, &visible, host_page_size());
        for (layer, pieces) in diffs.iter().zip(&pieces) {
            match map_file(&ram.map(), &layer.file, pieces) {
                // Shared memory, or huge pages: all of it is copied.
                Err(MapFileError::Backing { .. }) => return copy(&diffs, ram, visible.iter()),
                other => other?,
            }
        }
        copy(&diffs, ram, visible.iter().filter(|part| !part.can_be_mapped(mapped)))
    }
}

/// What of each diff is to be seen, by layer and chunk. Layers have the last one first.
fn visible(diffs: &[Layer]) -> Vec<Visible> {
    let mut covered = BTreeMap::<usize, PageSet>::new();
    let mut parts = Vec::new();
    for (layer, diff) in diffs.iter().enumerate() {
        for (chunk, pages) in diff.memory.pages() {
            let covered = covered.entry(chunk).or_default();
            let pages = pages.without(covered);
            covered.add(&pages);
            if !pages.is_empty() {
                parts.push(Visible { layer, chunk, pages });
            }
        }
    }
    parts
}

/// Which chunks are mapped.
#[derive(Clone, Copy, Debug)]
struct Mappable {
    /// Their runs have so many pages, on average.
    run: usize,
    /// Their runs are of whole pages of the host: a diff that was saved elsewhere may have smaller ones.
    page: usize,
}

impl Visible {
    fn can_be_mapped(&self, Mappable { run, page }: Mappable) -> bool {
        let whole = |bytes: Range<usize>| (bytes.start | bytes.end).is_multiple_of(page);
        self.pages.count() >= run.saturating_mul(self.pages.runs().count())
            && (page <= PAGE || self.pages.bytes().all(whole))
    }
}

/// What is to be mapped of each layer on a host with pages of `page` bytes: chunks whose runs are so long, which is returned
/// too, that there are not too many.
fn plan(diffs: &[Layer], visible: &[Visible], page: usize) -> (Mappable, Vec<Vec<FilePiece>>) {
    let mut mappable = Mappable { run: LONG_RUNS, page };
    loop {
        let mut pieces: Vec<Vec<FilePiece>> = vec![Vec::new(); diffs.len()];
        for part in visible.iter().filter(|part| part.can_be_mapped(mappable)) {
            let Some((layer, pieces)) = diffs.get(part.layer).zip(pieces.get_mut(part.layer)) else {
                continue;
            };
            let Some((chunk, _)) = layer.memory.chunk(part.chunk) else { continue };
            for bytes in part.pages.bytes() {
                let (addr, len) = (chunk.addr + bytes.start as u64, bytes.len() as u64);
                let offset = layer.start + chunk.offset + bytes.start as u64;
                let goes_on = |last: &&mut FilePiece| {
                    last.addr.0 + last.len == addr && last.offset + last.len == offset
                };
                match pieces.last_mut().filter(goes_on) {
                    Some(last) => last.len += len,
                    None => pieces.push(FilePiece { addr: GuestAddress(addr), offset, len }),
                }
            }
        }
        if pieces.iter().map(Vec::len).sum::<usize>() <= MAX_PIECES {
            return (mappable, pieces);
        }
        // No run of a chunk is longer than a chunk: in the end, none is mapped.
        mappable.run *= 2;
    }
}

/// Copies chunks whose pages have the right checksum.
fn copy<'a>(
    diffs: &[Layer],
    ram: &Ram,
    parts: impl Iterator<Item = &'a Visible>,
) -> Result<(), SnapshotError> {
    let dma = ram.dma();
    // Most machines have nothing to copy, and to make a buffer takes longer than much else of a fork.
    let mut buffer = Vec::new();
    for part in parts {
        let Some(layer) = diffs.get(part.layer) else { continue };
        buffer.resize(CHUNK as usize, 0);
        let read = layer.memory.read_pages(&mut &*layer.file, layer.start, part.chunk, &mut buffer)?;
        let Some(chunk) = read else { continue };
        for bytes in part.pages.bytes() {
            let addr = GuestAddress(chunk.addr + bytes.start as u64);
            dma.write(addr, buffer.get(bytes).unwrap_or_default())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
