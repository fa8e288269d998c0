//! The engine that has many requests in flight: io_uring(7).
//!
//! The ring is made by the first request, on the thread that serves the queue, so that it belongs to it and to its
//! sandbox. `unsafe` is the handing over of guest memory: what a request works with is pinned until its completion has
//! been read, and an engine that is dropped waits for all of them.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use io_uring::{IoUring, Probe, cqueue, opcode, squeue, types};
use ossature_bus::{DeviceError, DeviceEvent, Event, EventSink};
use ossature_memory::{Dma, DmaIoError, Pinned};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::raw::space;
use crate::{Completion, Engine, EngineSetup, Finished, Operation, RawFile, Submitted, SyncEngine};

/// How often in a row the kernel may say that a request, or a batch, has to be made again.
const TRIES: u8 = 100;
/// How long the kernel may be short of what a batch needs before it is given up.
const SHORT: Duration = Duration::from_secs(1);

/// Requests of a [`RawFile`] with io_uring: as many in flight as the queue has, started with one system call a batch. The
/// file is registered with the ring.
///
/// If the host's kernel does not allow io_uring, requests are served as by [`SyncEngine`], and a
/// [`HostError`](DeviceEvent::HostError) event says so. The same if the kernel takes no more requests later: those that it
/// has not taken fail.
pub struct UringEngine {
    disk: Arc<RawFile>,
    events: EventSink,
    /// Watches the ring, so that it is readable while completions wait in there, and not because of some that were read in
    /// the turn that submitted them: those end no wait of the thread's, as an event that the kernel signals would.
    ready: OwnedFd,
    /// Watched too: the kernel is to be asked again.
    retry: Event,
    retries: bool,
    state: State,
    make_ring: fn(&UringEngine) -> io::Result<IoUring>,
    /// The memory of the newest request; others share it if theirs is the same.
    dma: Option<Arc<Dma>>,
    slots: Box<[Slot]>,
    /// Indices of those that are not used.
    free: Vec<u16>,
    /// Entries that the kernel has not taken.
    queued: usize,
    /// Entries that were ever put into the ring.
    pushed: u64,
    /// Since when the kernel has taken no batch.
    refused: Option<Instant>,
}

enum State {
    /// There was no request so far.
    New,
    Ring(Box<IoUring>),
    /// io_uring cannot be used, or no more: a ring completes what the kernel had taken before; what it had not ends
    /// in an error.
    Fallback {
        engine: SyncEngine<RawFile>,
        ring: Option<Box<IoUring>>,
        not_taken: Vec<u16>,
    },
}

/// A request in flight.
#[derive(Debug, Default)]
struct Slot {
    token: u64,
    kind: Kind,
    offset: u64,
    len: u64,
    /// For transfers.
    pinned: Pinned,
    /// Of the registered files: 0 is the file, 1 the same without the page cache.
    file: u32,
    tries: u8,
    /// Which of all entries it is in the ring.
    number: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    Read,
    Write {
        durable: bool,
    },
    #[default]
    Flush,
    Discard,
    WriteZeroes {
        /// Of fallocate(2).
        mode: libc::c_int,
        durable: bool,
    },
}

impl std::fmt::Debug for UringEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UringEngine").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

impl UringEngine {
    /// An engine on `disk`.
    pub fn new(disk: Arc<RawFile>, setup: &EngineSetup) -> Result<Self, DeviceError> {
        let (ready, retry) = watched().map_err(|e| DeviceError::new("epoll failed").with_source(e))?;
        Ok(Self {
            disk,
            events: setup.events.clone(),
            ready,
            retry,
            retries: false,
            state: State::New,
            make_ring: Self::ring,
            dma: None,
            slots: (0..setup.depth).map(|_| Slot::default()).collect(),
            free: (0..setup.depth).rev().collect(),
            queued: 0,
            pushed: 0,
            refused: None,
        })
    }

    /// A ring that works, on the calling thread.
    fn ring(&self) -> io::Result<IoUring> {
        let entries = u32::try_from(self.slots.len().next_power_of_two()).unwrap_or(1);
        let mut ring = IoUring::builder().dontfork().build(entries)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [opcode::Read::CODE, opcode::Write::CODE, opcode::Fallocate::CODE, opcode::Fsync::CODE];
        if !needed.iter().all(|code| probe.is_supported(*code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let (file, direct) = self.disk.files();
        let files = [Some(file), direct.map(|direct| direct.file())];
        let files: Vec<_> = files.into_iter().flatten().map(|file| file.as_raw_fd()).collect();
        ring.submitter().register_files(&files)?;
        // A filter may allow one call and not another: nothing is in flight yet, and the fallback still possible.
        // SAFETY: the entry refers to nothing.
        unsafe { ring.submission().push(&opcode::Nop::new().build()) }.map_err(io::Error::other)?;
        ring.submit_and_wait(1)?;
        ring.completion().next().ok_or(io::ErrorKind::Unsupported)?;
        // SAFETY: the ring owns the descriptor, and lives.
        let fd = unsafe { BorrowedFd::borrow_raw(ring.as_raw_fd()) };
        // Forgotten when the ring is closed.
        epoll::add(&self.ready, fd, EventData::new_u64(0), EventFlags::IN)?;
        Ok(ring)
    }

    fn prepare(&mut self) {
        self.state = match (self.make_ring)(self) {
            Ok(ring) => State::Ring(Box::new(ring)),
            Err(error) => {
                let reason = format!("io_uring cannot be used, the disk is served synchronously: {error}");
                self.events.report(DeviceEvent::HostError { reason });
                self.fallback(None, Vec::new())
            }
        };
    }

    fn fallback(&self, ring: Option<Box<IoUring>>, not_taken: Vec<u16>) -> State {
        State::Fallback { engine: SyncEngine::new(Arc::clone(&self.disk)), ring, not_taken }
    }

    /// The kernel takes nothing more. It is not asked again: of the entries that it has not taken, it must not see any
    /// later.
    #[cold]
    fn give_up(&mut self, error: &io::Error) {
        let State::Ring(ring) = mem::replace(&mut self.state, State::New) else { return };
        let reason =
            format!("io_uring does not work any more, the disk is served synchronously from now on: {error}");
        self.events.report(DeviceEvent::HostError { reason });
        let taken = self.pushed - self.queued as u64;
        let in_use = |index: &u16| !self.free.contains(index);
        let waits =
            |index: &u16| self.slots.get(usize::from(*index)).is_some_and(|slot| slot.number >= taken);
        let not_taken = (0..self.slots.len() as u16).filter(in_use).filter(waits).collect();
        self.queued = 0;
        self.state = self.fallback(Some(ring), not_taken);
        // Whoever waits for completions finds those that have failed. An event of ours cannot fail.
        self.ask_again();
    }

    /// Puts the slot's entry into the ring.
    fn push(&mut self, index: u16) -> Result<(), DmaIoError> {
        let State::Ring(ring) = &mut self.state else { return Err(closed()) };
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return Err(closed()) };
        slot.number = self.pushed;
        let entry = slot.entry().user_data(index.into());
        // SAFETY: the slot keeps the memory that it has pinned, and the list of its pieces, until the completion has been
        // read; the files are registered.
        let pushed = unsafe { ring.submission().push(&entry) };
        // There is room for as many as there are slots.
        pushed.map_err(|e| DmaIoError::Io(io::Error::other(e)))?;
        self.queued += 1;
        self.pushed += 1;
        Ok(())
    }

    /// What a completion makes of its request: it has ended, or goes on.
    fn complete(&mut self, index: u16, result: i32) -> Option<Completion> {
        let slot = self.slots.get_mut(usize::from(index))?;
        let ended = match slot.judge(&self.disk, result) {
            Next::Ended(ended) => ended,
            Next::Again => match self.push(index) {
                Ok(()) => return None,
                Err(error) => Err(error),
            },
        };
        let slot = self.slots.get_mut(usize::from(index))?;
        let moved = slot.pinned.moved();
        if slot.kind == Kind::Read {
            // Of a read that failed, any part may have been written.
            slot.pinned.mark_dirty(if ended.is_ok() { moved } else { u64::MAX });
        }
        slot.pinned.release();
        self.free.push(index);
        Some(Completion::new(slot.token, Finished::new(moved, ended)))
    }

    /// Has the thread make a turn, which asks the kernel again.
    fn ask_again(&mut self) {
        let _ = self.retry.signal();
        self.retries = true;
    }

    /// The slot and the result of a request that the kernel has done with, or will never begin with.
    fn next_completion(&mut self) -> Option<(u16, i32)> {
        // The user data is an index of ours.
        let result = |entry: cqueue::Entry| (entry.user_data() as u16, entry.result());
        match &mut self.state {
            State::New => None,
            State::Ring(ring) => ring.completion().next().map(result),
            State::Fallback { ring, not_taken, .. } => match not_taken.pop() {
                Some(index) => Some((index, -libc::EIO)),
                None => ring.as_mut()?.completion().next().map(result),
            },
        }
    }

    /// Fills a free slot.
    fn take(&mut self, mem: &Dma, token: u64, operation: Operation<'_>) -> Result<u16, DmaIoError> {
        let busy = || DmaIoError::Io(io::ErrorKind::ResourceBusy.into());
        let index = *self.free.last().ok_or_else(busy)?;
        let (kind, segments, offset, len) = match operation {
            Operation::Read { to, offset } => (Kind::Read, Some(to), offset, to.len()),
            Operation::Write { from, offset, durable } => {
                (Kind::Write { durable }, Some(from), offset, from.len())
            }
            Operation::Flush => (Kind::Flush, None, 0, 0),
            Operation::Discard { offset, len } => (Kind::Discard, None, offset, len),
            Operation::WriteZeroes { offset, len, unmap, durable } => {
                let mode = if unmap { space::PUNCH_HOLE } else { space::ZERO_RANGE };
                (Kind::WriteZeroes { mode, durable }, None, offset, len)
            }
        };
        let (_, direct) = self.disk.files();
        let slot = self.slots.get_mut(usize::from(index)).ok_or_else(busy)?;
        (slot.token, slot.kind, slot.offset, slot.len, slot.tries) = (token, kind, offset, len, 0);
        if let Some(segments) = segments {
            slot.file = direct.is_some_and(|direct| direct.takes(segments, offset)).into();
            let dma = match &mut self.dma {
                Some(dma) if dma.shows_same_as(mem) => dma,
                other => other.insert(Arc::new(mem.clone())),
            };
            slot.pinned.pin(dma, segments)?;
        }
        self.free.pop();
        Ok(index)
    }
}

/// An epoll(7) instance that watches an event.
fn watched() -> io::Result<(OwnedFd, Event)> {
    let (epoll, event) = (epoll::create(CreateFlags::CLOEXEC)?, Event::new()?);
    epoll::add(&epoll, &event, EventData::new_u64(0), EventFlags::IN)?;
    Ok((epoll, event))
}

/// The ring is not there, or a slot: it cannot be.
#[cold]
fn closed() -> DmaIoError {
    DmaIoError::Io(io::ErrorKind::NotConnected.into())
}

enum Next {
    Ended(Result<(), DmaIoError>),
    Again,
}

impl Slot {
    fn entry(&self) -> squeue::Entry {
        let fd = types::Fixed(self.file);
        let at = self.offset.wrapping_add(self.pinned.moved());
        let (vecs, count) = self.pinned.iovecs();
        let single = self.pinned.single().map(|(base, len)| (base.cast::<u8>(), len as u32));
        match (self.kind, single) {
            (Kind::Read, Some((base, len))) => opcode::Read::new(fd, base, len).offset(at).build(),
            (Kind::Read, None) => opcode::Readv::new(fd, vecs.cast(), count).offset(at).build(),
            (Kind::Write { durable }, Some((base, len))) => {
                opcode::Write::new(fd, base, len).offset(at).rw_flags(dsync(durable)).build()
            }
            (Kind::Write { durable }, None) => {
                opcode::Writev::new(fd, vecs.cast(), count).offset(at).rw_flags(dsync(durable)).build()
            }
            (Kind::Flush, _) => {
                opcode::Fsync::new(types::Fixed(0)).flags(types::FsyncFlags::DATASYNC).build()
            }
            (Kind::Discard, _) => self.fallocate(space::PUNCH_HOLE),
            (Kind::WriteZeroes { mode, .. }, _) => self.fallocate(mode),
        }
    }

    fn fallocate(&self, mode: libc::c_int) -> squeue::Entry {
        opcode::Fallocate::new(types::Fixed(0), self.len).offset(self.offset).mode(mode).build()
    }

    /// What comes after this result of the kernel's.
    fn judge(&mut self, disk: &RawFile, result: i32) -> Next {
        let error = (result < 0).then(|| io::Error::from_raw_os_error(result.wrapping_neg()));
        if let Some(error) = error {
            if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) && self.tries < TRIES {
                self.tries += 1;
                return Next::Again;
            }
            return match self.kind {
                Kind::Discard if space::is_unsupported(&error) => Next::Ended(Ok(())),
                Kind::WriteZeroes { mode, durable } if space::is_unsupported(&error) => {
                    if mode == space::PUNCH_HOLE {
                        self.kind = Kind::WriteZeroes { mode: space::ZERO_RANGE, durable };
                        return Next::Again;
                    }
                    // Rare: a file system without either.
                    match space::write_zeros(disk.files().0, self.offset, self.len) {
                        Ok(()) => self.zeroed(durable),
                        Err(error) => Next::Ended(Err(error.into())),
                    }
                }
                _ => Next::Ended(Err(error.into())),
            };
        }
        match self.kind {
            Kind::Read | Kind::Write { .. } => {}
            Kind::WriteZeroes { durable, .. } => return self.zeroed(durable),
            Kind::Flush | Kind::Discard => return Next::Ended(Ok(())),
        }
        self.pinned.advance(result.unsigned_abs().into());
        match self.pinned.left() {
            0 => Next::Ended(Ok(())),
            _ if result == 0 => Next::Ended(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())),
            _ => {
                // What is left need not be aligned.
                (self.file, self.tries) = (0, 0);
                Next::Again
            }
        }
    }
}

impl Slot {
    /// The zeros are there.
    fn zeroed(&mut self, durable: bool) -> Next {
        if !durable {
            return Next::Ended(Ok(()));
        }
        (self.kind, self.tries) = (Kind::Flush, 0);
        Next::Again
    }
}

fn dsync(durable: bool) -> i32 {
    if durable { libc::RWF_DSYNC } else { 0 }
}

impl Engine for UringEngine {
    fn submit(&mut self, mem: &Dma, token: u64, operation: Operation<'_>) -> Submitted {
        if let State::New = self.state {
            self.prepare();
        }
        if let State::Fallback { engine, .. } = &mut self.state {
            return engine.submit(mem, token, operation);
        }
        let nothing = match operation {
            Operation::Read { to: data, .. } | Operation::Write { from: data, .. } => data.is_empty(),
            Operation::Discard { len, .. } | Operation::WriteZeroes { len, .. } => len == 0,
            Operation::Flush => false,
        };
        if nothing {
            return Submitted::Finished(Finished::new(0, Ok(())));
        }
        if let Operation::Discard { offset, len } = operation
            && self.disk.is_device()
        {
            // The ring has nothing for it.
            let done = space::discard(self.disk.files().0, true, offset, len);
            return Submitted::Finished(Finished::new(0, done.map_err(Into::into)));
        }
        let begun = self.take(mem, token, operation).and_then(|index| self.push(index));
        match begun {
            Ok(()) => Submitted::Pending,
            Err(error) => Submitted::Finished(Finished::new(0, Err(error))),
        }
    }

    fn start(&mut self) {
        if mem::take(&mut self.retries) {
            let _ = self.retry.take();
        }
        while self.queued > 0 {
            let State::Ring(ring) = &self.state else { return };
            match ring.submit() {
                Ok(taken) if taken > 0 => {
                    self.queued = self.queued.saturating_sub(taken);
                    self.refused = None;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                refused => {
                    // The kernel is short of something: it is asked again in the next turn.
                    let error = refused.err().unwrap_or_else(|| io::ErrorKind::ResourceBusy.into());
                    let is_short = matches!(error.raw_os_error(), None | Some(libc::EAGAIN | libc::EBUSY));
                    let since = *self.refused.get_or_insert_with(Instant::now);
                    if !is_short || since.elapsed() >= SHORT {
                        return self.give_up(&error);
                    }
                    return self.ask_again();
                }
            }
        }
    }

    fn reap(&mut self) -> Option<Completion> {
        loop {
            while let Some((index, result)) = self.next_completion() {
                if let Some(completion) = self.complete(index, result) {
                    return Some(completion);
                }
            }
            let queued = self.queued;
            if queued == 0 {
                return None;
            }
            self.start();
            if self.queued == queued {
                return None;
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ready.as_fd())
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        let (mut in_flight, start) = (self.slots.len() - self.free.len(), Instant::now());
        while in_flight > 0 {
            let ring = match &mut self.state {
                State::Ring(ring) => ring,
                // None is with the kernel.
                State::New => return,
                State::Fallback { ring: None, .. } => return,
                State::Fallback { not_taken, .. } if not_taken.len() == in_flight => return,
                State::Fallback { .. } => break,
            };
            let arrived = ring.completion().count();
            in_flight = in_flight.saturating_sub(arrived);
            if in_flight == 0 || arrived > 0 {
                continue;
            }
            match ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e)
                    if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY))
                        && start.elapsed() < SHORT => {}
                Err(_) => break,
            }
        }
        if in_flight > 0 {
            // The kernel may still write to the memory: it stays for good.
            mem::forget(mem::take(&mut self.slots));
        }
    }
}

#[cfg(test)]
mod tests;
