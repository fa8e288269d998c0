//! Guest memory that comes when it is touched: one thread for each machine, which fills missing pages from a
//! [`SnapshotSource`].
//!
//! A chunk of 2 MiB is read when its first page is touched, compared with its checksum, or with its leaf of the tree, and
//! put into memory as a whole, the touched page first. Whatever fails ends the machine: its vCPUs are told to stop before
//! those who wait are let go on, with zeros. A device's thread among these is not told before it has gone on, and may write
//! the zeros to a disk. What saves the machine asks first whether all has come.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ossature_bus::{Event, Panic, spawn_thread};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{
    Filled, Ram, Userfault, UserfaultError, UserfaultEvent, UserfaultMode, host_page_size,
};

use super::error::SnapshotError;
use super::memory::{CHUNK, MemoryTable, PlacedChunk};
use super::source::SnapshotSource;
use super::working_set::WorkingSet;
use crate::error_chain;
use crate::machine::outcome::Outcome;
use crate::machine::status::Status;

/// What the machine's outcome calls this part of it.
const PART: &str = "memory";
/// This much is there before whoever has touched it goes on.
const FIRST: u64 = 64 << 10;

/// How far memory that comes on demand has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryProgress {
    /// How often a vCPU, a device or this process had to wait for memory that was not there.
    pub faults: u64,
    /// Bytes that were read from the source.
    pub fetched: u64,
    /// Bytes that have not come yet.
    pub missing: u64,
    /// True while memory is fetched that nobody has touched.
    pub prefetching: bool,
}

/// How often is looked whether a machine has ended that waits for its memory.
const LOOK: Duration = Duration::from_millis(10);

/// What is fetched before it is touched.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Prefetch {
    #[default]
    Nothing,
    These(Vec<u32>),
    All,
}

/// What a pager needs to know of the machine.
#[derive(Clone, Debug)]
pub(in crate::machine) struct Pages {
    pub(in crate::machine) machine: String,
    pub(in crate::machine) status: Arc<Status>,
}

/// The thread that fills a machine's memory. When this is dropped, memory that has not come reads as zero.
#[derive(Debug)]
pub(in crate::machine) struct Pager {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    snapshot: u64,
    status: Arc<Status>,
}

/// What the thread and the others share.
#[derive(Debug)]
struct Shared {
    wake: Event,
    stop: AtomicBool,
    /// All is to be fetched, and then the thread ends.
    all: AtomicBool,
    prefetching: AtomicBool,
    faults: AtomicU64,
    fetched: AtomicU64,
    missing: AtomicU64,
    /// The chunks that were touched, each once, and before those the ones that were prefetched.
    touched: Mutex<Vec<u32>>,
    failed: Mutex<Option<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pager {
    /// Serves the faults of `ram`, which is zero and has the slots of `table`. Gives the source back if such memory
    /// cannot come on demand.
    pub(super) fn start(
        ram: &Ram,
        table: &Arc<MemoryTable>,
        source: Box<dyn SnapshotSource>,
        (start, snapshot): (u64, u64),
        prefetch: Prefetch,
        pages: Pages,
    ) -> Result<Result<Self, Box<dyn SnapshotSource>>, SnapshotError> {
        let mut faults = Userfault::open(UserfaultMode::Missing)?;
        let slots: Vec<_> = ram.slots().collect();
        let pieces = table.pieces(start);
        for piece in &pieces {
            let inside = |at: u64, size: u64| piece.addr.0.checked_sub(at).is_some_and(|at| at < size);
            let Some(slot) = slots.iter().find(|slot| inside(slot.guest_addr, slot.size)) else { continue };
            match faults.register(slot, piece.addr.0 - slot.guest_addr, piece.len) {
                Err(UserfaultError::Backing { .. }) => return Ok(Err(source)),
                registered => registered?,
            }
        }
        let covered = |addr: u64| {
            let next = pieces.partition_point(|piece| piece.addr.0 <= addr);
            let piece = next.checked_sub(1).and_then(|last| pieces.get(last));
            piece.is_some_and(|piece| addr - piece.addr.0 < piece.len)
        };
        let chunks: Vec<PlacedChunk> = table.placed(start).collect();
        // What is zero, and nowhere near what is not, is zero memory already.
        let here: Vec<bool> = chunks.iter().map(|chunk| !covered(chunk.addr)).collect();
        let left = chunks.iter().zip(&here).filter(|(_, here)| !**here);
        let missing = left.map(|(chunk, _)| chunk.len as u64).sum();
        let prefetched = if let Prefetch::These(chunks) = &prefetch { chunks.clone() } else { Vec::new() };
        let shared = Arc::new(Shared {
            wake: Event::new().map_err(thread_failed)?,
            stop: AtomicBool::new(false),
            all: AtomicBool::new(prefetch == Prefetch::All),
            prefetching: AtomicBool::new(prefetch != Prefetch::Nothing),
            faults: AtomicU64::new(0),
            fetched: AtomicU64::new(0),
            missing: AtomicU64::new(missing),
            touched: Mutex::new(prefetched.clone()),
            failed: Mutex::new(None),
        });
        let mut handler = Handler {
            faults,
            source,
            table: Arc::clone(table),
            chunks,
            here,
            removed: BTreeMap::new(),
            waiting: VecDeque::new(),
            serving: None,
            prefetch: prefetched.into(),
            rest: 0,
            page: host_page_size() as u64,
            bytes: Vec::new(),
            failed: false,
            shared: Arc::clone(&shared),
            status: Arc::clone(&pages.status),
        };
        let name = format!("pager:{}", pages.machine);
        let thread = spawn_thread(&name, move || {
            while let Err(panic) = Panic::catch(|| handler.run()) {
                let message = panic.message;
                *lock(&handler.shared.failed) = Some(message.clone());
                handler.status.panicked(PART, message);
                handler.failed = true;
            }
            // The source may panic once more when it is dropped.
            let _ = Panic::catch(move || drop(handler));
        });
        let thread = Some(thread.map_err(thread_failed)?);
        Ok(Ok(Self { shared, thread, snapshot, status: pages.status }))
    }

    pub(in crate::machine) fn progress(&self) -> MemoryProgress {
        let Shared { faults, fetched, missing, prefetching, .. } = &*self.shared;
        MemoryProgress {
            faults: faults.load(Ordering::Relaxed),
            fetched: fetched.load(Ordering::Relaxed),
            missing: missing.load(Ordering::Acquire),
            prefetching: prefetching.load(Ordering::Acquire),
        }
    }

    pub(in crate::machine) fn working_set(&self) -> WorkingSet {
        WorkingSet { snapshot: self.snapshot, chunks: lock(&self.shared.touched).clone() }
    }

    /// Why it has ended the machine, if it has.
    pub(in crate::machine) fn failure(&self) -> Option<SnapshotError> {
        lock(&self.shared.failed).clone().map(|reason| SnapshotError::OnDemand { reason })
    }

    /// Fetches what is missing, and ends, unless the machine does before.
    pub(in crate::machine) fn finish(&mut self) -> Result<(), SnapshotError> {
        self.end(&self.shared.all);
        while self.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            if self.status.outcome().is_some() {
                let ended = SnapshotError::Interrupted { reason: "the machine has ended" };
                return Err(self.failure().unwrap_or(ended));
            }
            thread::sleep(LOOK);
        }
        if let Some(thread) = self.thread.take() {
            // It does not panic: what it runs is caught.
            let _ = thread.join();
        }
        self.failure().map_or(Ok(()), Err)
    }

    fn end(&self, how: &AtomicBool) {
        how.store(true, Ordering::Release);
        // An eventfd that the kernel has made takes a count.
        let _ = self.shared.wake.signal();
    }
}

impl Drop for Pager {
    fn drop(&mut self) {
        self.end(&self.shared.stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn thread_failed(source: io::Error) -> SnapshotError {
    SnapshotError::Io { part: "memory's thread", source }
}

/// The thread's own.
struct Handler {
    faults: Userfault,
    source: Box<dyn SnapshotSource>,
    /// What they are compared with.
    table: Arc<MemoryTable>,
    /// All chunks of memory, by ascending address.
    chunks: Vec<PlacedChunk>,
    /// Which of them have come: a page of these that is missing was given back to the host, and is zero.
    here: Vec<bool>,
    /// Which pages of the others were given back to the host.
    removed: BTreeMap<usize, Vec<bool>>,
    /// Who waits.
    waiting: VecDeque<GuestAddress>,
    /// Who is served now: it waits still after a panic.
    serving: Option<GuestAddress>,
    prefetch: VecDeque<u32>,
    /// From where on all is fetched.
    rest: usize,
    page: u64,
    bytes: Vec<u8>,
    failed: bool,
    shared: Arc<Shared>,
    status: Arc<Status>,
}

/// What is to become of a page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fill {
    Zero,
    Bytes,
    /// It was given back to the host, and is zero when it is next touched.
    Removed,
}

impl Handler {
    fn run(&mut self) {
        if let Some(addr) = self.serving.take() {
            self.waiting.push_front(addr);
        }
        while !self.shared.stop.load(Ordering::Acquire) {
            match self.turn() {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) if self.failed => {
                    // Nobody can be served any more: the kernel does, with zeros.
                    self.fail(error_chain(&error));
                    return;
                }
                Err(error) => self.fail(error_chain(&error)),
            }
        }
    }

    /// Does one thing. Returns false if nothing is left to do.
    fn turn(&mut self) -> Result<bool, SnapshotError> {
        self.take_events()?;
        self.serving = self.waiting.pop_front();
        if let Some(addr) = self.serving {
            self.serve(addr)?;
            self.serving = None;
            return Ok(true);
        }
        let all = self.shared.all.load(Ordering::Acquire);
        if self.shared.missing.load(Ordering::Relaxed) == 0 || (self.failed && all) {
            self.shared.prefetching.store(false, Ordering::Release);
            return Ok(false);
        }
        match self.next_to_fetch(all).filter(|_| !self.failed) {
            Some(index) => self.install(index, 0)?,
            None => {
                self.shared.prefetching.store(false, Ordering::Release);
                self.faults.wait(Some(self.shared.wake.as_fd())).map_err(refused)?;
                self.shared.wake.take().map_err(refused)?;
            }
        }
        Ok(true)
    }

    fn next_to_fetch(&mut self, all: bool) -> Option<usize> {
        let missing = |here: &[bool], index: usize| here.get(index).is_some_and(|here| !here);
        while let Some(index) = self.prefetch.pop_front() {
            if missing(&self.here, index as usize) {
                return Some(index as usize);
            }
        }
        if !all {
            return None;
        }
        while self.rest < self.here.len() && !missing(&self.here, self.rest) {
            self.rest += 1;
        }
        Some(self.rest).filter(|rest| *rest < self.here.len())
    }

    /// Ends the machine, and then lets those go on who wait.
    fn fail(&mut self, reason: String) {
        *lock(&self.shared.failed) = Some(reason.clone());
        self.status.end(Outcome::Failed { part: PART.to_owned(), reason });
        self.failed = true;
        self.waiting.extend(self.serving.take());
    }

    fn take_events(&mut self) -> Result<(), SnapshotError> {
        while let Some(event) = self.faults.next_event().map_err(refused)? {
            match event {
                UserfaultEvent::Fault { addr } => self.waiting.push_back(addr),
                UserfaultEvent::Removed { addr, len } => self.remove(addr.0, len),
                _ => {}
            }
        }
        Ok(())
    }

    /// The chunk at an address.
    fn chunk_at(&self, addr: u64) -> Option<(usize, PlacedChunk)> {
        let index = self.chunks.partition_point(|chunk| chunk.addr <= addr).checked_sub(1)?;
        let chunk = self.chunks.get(index).filter(|chunk| addr - chunk.addr < chunk.len as u64)?;
        Some((index, *chunk))
    }

    /// Pages are given back to the host.
    fn remove(&mut self, addr: u64, len: u64) {
        let mut at = addr;
        while at < addr.saturating_add(len) {
            let Some((index, chunk)) = self.chunk_at(at) else { return };
            if self.here.get(index).is_some_and(|here| !here) {
                let pages = chunk.len / self.page as usize;
                let removed = self.removed.entry(index).or_insert_with(|| vec![false; pages]);
                if let Some(removed) = removed.get_mut(((at - chunk.addr) / self.page) as usize) {
                    *removed = true;
                }
            }
            at += self.page;
        }
    }

    fn is_removed(&self, index: usize, offset: u64) -> bool {
        let pages = self.removed.get(&index);
        pages.and_then(|pages| pages.get((offset / self.page) as usize)).is_some_and(|removed| *removed)
    }

    /// Lets whoever has touched `addr` go on.
    fn serve(&mut self, addr: GuestAddress) -> Result<(), SnapshotError> {
        if let Some((index, chunk)) = self.chunk_at(addr.0).filter(|_| !self.failed) {
            let missing = self.here.get(index).is_some_and(|here| !here);
            let offset = addr.0 - chunk.addr;
            if missing && !self.is_removed(index, offset) {
                self.shared.faults.fetch_add(1, Ordering::Relaxed);
                let mut touched = lock(&self.shared.touched);
                // It is on its way already, or was prefetched.
                if !touched.contains(&(index as u32)) {
                    touched.push(index as u32);
                }
                drop(touched);
                self.install(index, offset)?;
            }
        }
        // What has come, or was given back to the host meanwhile.
        loop {
            match self.faults.zero(addr, self.page).map_err(refused)? {
                Filled::Changing => self.after_change()?,
                _ => return Ok(()),
            }
        }
    }

    /// Whoever changes mappings goes on when its event was taken.
    fn after_change(&mut self) -> Result<(), SnapshotError> {
        self.take_events()?;
        thread::yield_now();
        Ok(())
    }

    /// Puts a chunk into memory, what is touched at `touched` first.
    fn install(&mut self, index: usize, touched: u64) -> Result<(), SnapshotError> {
        let Some(chunk) = self.chunks.get(index).copied() else { return Ok(()) };
        let mut bytes = std::mem::take(&mut self.bytes);
        if chunk.checksum.is_some() {
            bytes.resize(CHUNK as usize, 0);
            let bytes = bytes.get_mut(..chunk.len).unwrap_or_default();
            let failed = |source| SnapshotError::Source { addr: chunk.addr, source };
            self.source.fetch(chunk.offset, bytes).map_err(failed)?;
            self.table.check(index, std::iter::once(&*bytes))?;
            self.shared.fetched.fetch_add(chunk.len as u64, Ordering::Relaxed);
        }
        let from = touched - touched % FIRST;
        for range in [from..chunk.len as u64, 0..from] {
            self.fill(index, chunk, &bytes, range)?;
        }
        if let Some(here) = self.here.get_mut(index) {
            *here = true;
        }
        self.removed.remove(&index);
        self.shared.missing.fetch_sub(chunk.len as u64, Ordering::Release);
        self.bytes = bytes;
        Ok(())
    }

    /// Fills what is missing in a part of a chunk.
    fn fill(
        &mut self,
        index: usize,
        chunk: PlacedChunk,
        bytes: &[u8],
        range: std::ops::Range<u64>,
    ) -> Result<(), SnapshotError> {
        let (mut at, mut most) = (range.start, FIRST);
        while at < range.end {
            let what = self.what(index, chunk, bytes, at);
            let mut end = at + self.page;
            while end < range.end && end - at < most && self.what(index, chunk, bytes, end) == what {
                end += self.page;
            }
            let addr = GuestAddress(chunk.addr + at);
            let filled = match what {
                Fill::Removed => Ok(Filled::All),
                Fill::Zero => self.faults.zero(addr, end - at),
                Fill::Bytes => {
                    self.faults.copy(addr, bytes.get(at as usize..end as usize).unwrap_or_default())
                }
            };
            match filled.map_err(refused)? {
                Filled::All => at = end,
                Filled::Part(len) => at += len,
                Filled::Present => at += self.page,
                Filled::Changing => self.after_change()?,
                // Of what was mapped over, in part.
                Filled::Gone if end - at > self.page => most = self.page,
                _ => at = end,
            }
        }
        Ok(())
    }

    fn what(&self, index: usize, chunk: PlacedChunk, bytes: &[u8], at: u64) -> Fill {
        if self.is_removed(index, at) {
            return Fill::Removed;
        }
        let page = bytes.get(at as usize..(at + self.page) as usize);
        match page.filter(|_| chunk.checksum.is_some()) {
            Some(page) if page.iter().any(|byte| *byte != 0) => Fill::Bytes,
            _ => Fill::Zero,
        }
    }
}

fn refused(source: io::Error) -> SnapshotError {
    SnapshotError::Io { part: "memory, by userfaultfd", source }
}

#[cfg(test)]
mod tests;
