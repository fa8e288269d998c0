//! How turns are found and taken, and the protocol by which no wake-up is lost.
//!
//! Whoever makes a turn due does so in the table and, if the table says that the loop is asleep, signals the poller's
//! event. The loop is asleep in a wait, and between passes: so whoever watches the poller's descriptor instead of
//! running the loop learns of each turn that becomes due. Before anybody has run or watched it there is nobody to wake.

use std::io;
use std::sync::Arc;

use super::cell::TakeTurn;
use super::handler::{Source, Turn, WatchError};
use super::poller::{Poller, Ready};
use super::table::{NOBODY, Table};
use crate::Panic;
use crate::sync::{AtomicU64, Mutex, MutexGuard, Ordering, lock, this_thread};

pub(super) struct Core {
    pub(super) poller: Poller,
    table: Mutex<Table>,
    /// Held by the thread that runs the loop.
    run: Mutex<Storage>,
    /// The handler whose turn is under way.
    current: AtomicU64,
}

/// What a pass needs to remember: storage only.
struct Storage {
    ready: Ready,
    due: Vec<(u64, u16)>,
    turns: Vec<(Arc<dyn TakeTurn>, u64, u16)>,
}

/// A thread's right to run the loop. Between passes, and when it ends, the loop is asleep.
struct Running<'a> {
    core: &'a Core,
    storage: MutexGuard<'a, Storage>,
    /// Nobody has run or watched the loop before.
    first: bool,
}

impl Core {
    pub(super) fn new() -> io::Result<Self> {
        let storage = Storage { ready: Ready::new(), due: Vec::new(), turns: Vec::new() };
        Ok(Self {
            poller: Poller::new()?,
            table: Mutex::new(Table::new()),
            run: Mutex::new(storage),
            current: AtomicU64::new(NOBODY),
        })
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        lock(&self.table)
    }

    /// Lets the loop see what has been changed in the table.
    pub(super) fn changed(&self, mut table: MutexGuard<'_, Table>) {
        let asleep = std::mem::take(&mut table.asleep);
        drop(table);
        if asleep {
            self.poller.wake();
        }
    }

    /// Makes the poller's descriptor one to watch.
    pub(super) fn watched(&self) -> &Poller {
        let mut table = self.table();
        if std::mem::take(&mut table.fresh) {
            table.asleep = true;
            if !table.due.is_empty() || table.stop {
                self.changed(table);
            }
        }
        &self.poller
    }

    /// Watches a descriptor for a handler.
    pub(super) fn watch(&self, table: &mut Table, id: u64, source: Source) -> Result<(), WatchError> {
        let Some(slot) = table.slot(id) else { return Ok(()) };
        let known = slot.fds.contains(&source.fd);
        self.poller.watch(id, source, known)?;
        if !known {
            slot.fds.push(source.fd);
        }
        Ok(())
    }

    /// Watches one of a handler's first descriptors: none of them may come twice.
    pub(super) fn watch_new(&self, table: &mut Table, id: u64, source: Source) -> Result<(), WatchError> {
        self.poller.watch(id, source, false)?;
        if let Some(slot) = table.slot(id) {
            slot.fds.push(source.fd);
        }
        Ok(())
    }

    /// Takes a handler off the loop.
    pub(super) fn remove(&self, id: u64) {
        let mut table = self.table();
        let Some(slot) = table.remove(id) else { return };
        slot.fds.iter().for_each(|fd| self.poller.forget(*fd));
        // The handler is not dropped with the lock held.
        drop(table);
    }

    pub(super) fn is_running(&self) -> bool {
        self.table().runner.is_some()
    }

    pub(super) fn is_running_here(&self) -> bool {
        self.table().runner == Some(this_thread())
    }

    /// Returns true if called by the turn of the handler `id`.
    pub(super) fn is_turn_of(&self, id: u64) -> bool {
        self.current.load(Ordering::Relaxed) == id && self.is_running_here()
    }

    /// Runs the loop until it is stopped.
    pub(super) fn run(&self) -> io::Result<()> {
        let mut running = self.begin()?;
        while !std::mem::take(&mut self.table().stop) {
            running.pass(true)?;
        }
        Ok(())
    }

    /// One pass without waiting for a descriptor.
    pub(super) fn pass(&self) -> io::Result<bool> {
        self.begin()?.pass(false)
    }

    fn begin(&self) -> io::Result<Running<'_>> {
        if self.is_running_here() {
            let reason = "an event loop cannot be run by a turn of its own";
            return Err(io::Error::new(io::ErrorKind::Deadlock, reason));
        }
        let storage = lock(&self.run);
        let mut table = self.table();
        table.runner = Some(this_thread());
        let first = std::mem::take(&mut table.fresh);
        drop(table);
        Ok(Running { core: self, storage, first })
    }

    /// Gives a handler its turn.
    fn take_turn(&self, handler: Arc<dyn TakeTurn>, id: u64, token: u16) {
        self.current.store(id, Ordering::Relaxed);
        let turn = handler.take_turn(token, &mut || self.remove(id));
        self.current.store(NOBODY, Ordering::Relaxed);
        match turn {
            Ok(Turn::Sleep) => {}
            Ok(Turn::Again) => self.table().is_due(id, token),
            Err(panic) => handler.report(panic),
        }
        // This may be the last of a handler that was given up, and of its hook.
        let _ = Panic::catch(|| drop(handler));
    }
}

impl Running<'_> {
    /// Takes all turns that are due by now. Returns false if there were none.
    fn pass(&mut self, block: bool) -> io::Result<bool> {
        let Storage { ready, due, turns } = &mut *self.storage;
        let block = {
            let mut table = self.core.table();
            due.append(&mut table.due);
            table.asleep = block && due.is_empty() && !table.stop;
            table.asleep
        };
        // Each handler on a new loop is due: descriptors need not be looked at yet.
        if !std::mem::take(&mut self.first) || due.is_empty() {
            self.core.poller.wait(block, ready)?;
        }
        {
            let mut table = self.core.table();
            table.asleep = false;
            for (id, token) in ready.iter().chain(due.drain(..)) {
                if let Some(slot) = table.slot(id) {
                    turns.push((slot.handler.clone(), id, token));
                }
            }
        }
        let busy = !turns.is_empty() || ready.is_full();
        for (handler, id, token) in turns.drain(..) {
            self.core.take_turn(handler, id, token);
        }
        Ok(busy)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut table = self.core.table();
        table.runner = None;
        table.asleep = true;
        // Edge-triggered watchers need an edge for what is left over.
        if !table.due.is_empty() || self.storage.ready.is_full() {
            self.core.changed(table);
        }
    }
}
