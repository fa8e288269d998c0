//! A snapshot of a machine that goes on meanwhile: its memory is protected against writes, and what is about to be written
//! is copied first.
//!
//! Protecting memory takes the longer the more there is, so it is done while the guest runs, and what it writes meanwhile
//! is noted. Only that is protected again while the guest is paused for its state. From then on each chunk is copied once:
//! in its turn, or sooner when somebody waits to write to it.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use ossature_bus::{Event, Panic, spawn_thread};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{
    Dma, Filled, HeldPages, RamSlot, Userfault, UserfaultEvent, UserfaultMode, host_page_size,
};

use super::error::SnapshotError;
use super::file::NewFile;
use super::identity::Identity;
use super::memory::{CHUNK, MemoryTable, PlacedChunk};
use super::save;
use super::shape::Shape;
use super::tree::SnapshotKey;
use crate::machine::control::Control;
use crate::machine::status::Status;
use crate::machine::{LifecycleState, MachineHandle, MachineState};

const CALL: &str = "write a live snapshot of";
/// What is written while memory is being protected is noted in pieces of this size.
const PIECE: u64 = 64 << 10;
/// So much is protected with one call.
const STRIDE: u64 = 64 << 20;
/// What was written meanwhile is protected again this often, or until it is this little.
const ROUNDS: u32 = 4;
const LITTLE: usize = 8;

/// What it has cost the guest to be saved while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LiveSnapshot {
    /// How long the guest was paused.
    pub paused: Duration,
    /// How long some of its memory was protected.
    pub protected: Duration,
    /// How often a vCPU or a device waited to write.
    pub waits: u64,
}

impl MachineHandle {
    /// As [`snapshot`](Self::snapshot), of a machine that runs, and that goes on while its memory is written. It is paused
    /// for the state of its vCPUs and devices only, which takes no longer if it has more memory; the snapshot is of that
    /// moment. Until all is written, a vCPU or a device that writes to memory waits if that is not copied yet, once for
    /// each 2 MiB. Other control of the machine than [`stop`](Self::stop) waits until the file is written.
    ///
    /// It takes userfaultfd(2) with write protection, which the host must permit, and memory that is private, or a memfd.
    /// Memory of huge pages is refused by name, and memory that is mapped from a snapshot on a disk: restore such machines
    /// [on demand](super::Snapshot::on_demand). What is still to come on demand is fetched first. Do not use it with
    /// vhost-user back ends: other processes write to a memfd without waiting.
    ///
    /// If the machine ends meanwhile, or the file cannot be written, nothing is left of it, and a guest that runs goes on.
    ///
    /// ```
    /// # use ossature_core::machine::{Machine, Snapshot};
    /// # use ossature_core::scripted::{Script, Scripted};
    /// # if ossature_memory::Userfault::open(ossature_memory::UserfaultMode::WriteProtected).is_err() { return Ok(()) }
    /// # let folder = tempfile::tempdir()?;
    /// # let path = folder.path().join("guest.snap");
    /// # let machine = Machine::builder("live").build(&Scripted::new([Script::new()]))?;
    /// machine.start()?;
    /// let saved = machine.snapshot_live(&path)?;
    /// println!("paused for {:?}", saved.paused);
    /// Snapshot::open(&path)?.verify_memory()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn snapshot_live(&self, path: impl AsRef<Path>) -> Result<LiveSnapshot, SnapshotError> {
        let file = NewFile::create(path.as_ref())?;
        let saved = self
            .shared
            .control(CALL, |control| Ok(control.save_live(file.file(), control.key.clone())))??;
        file.commit()?;
        Ok(saved)
    }
}

impl Control {
    /// Writes the machine, which runs, into an empty file, with this key.
    pub(in crate::machine) fn save_live(
        &mut self,
        file: &File,
        key: Option<SnapshotKey>,
    ) -> Result<LiveSnapshot, SnapshotError> {
        self.save_live_with(file, key, |protect| protect())
    }

    /// The same, where the caller has the last step of the pause done, which protects memory.
    fn save_live_with(
        &mut self,
        file: &File,
        key: Option<SnapshotKey>,
        last: impl FnOnce(&mut dyn FnMut()),
    ) -> Result<LiveSnapshot, SnapshotError> {
        self.expect(&[LifecycleState::Running], CALL)?;
        self.fetch_all()?;
        let slots: Vec<RamSlot> = self.board.ram().slots().collect();
        let table = MemoryTable::of_slots(&slots).ok_or(SnapshotError::TooLarge)?.with_key(key.as_ref());
        // Before anything is registered: it waits for pages that are being given back, which would wait for the thread. And
        // it lives longer than the thread, with which the protection ends.
        let _held = HeldPages::of(&slots);
        let mut faults = Userfault::open(UserfaultMode::WriteProtected)?;
        for slot in &slots {
            faults.register(slot, 0, slot.size)?;
        }
        let wake = Arc::new(Event::new().map_err(failed)?);
        let ((order, orders), (ready, is_ready)) = (channel(), channel());
        let order = Orders { order: Some(order), wake: Arc::clone(&wake) };
        let chunks: Vec<PlacedChunk> = table.placed(0).collect();
        let copier = Copier {
            faults,
            dma: self.board.ram().dma(),
            slots: slots.iter().map(|slot| (slot.guest_addr, slot.size)).collect(),
            done: vec![false; chunks.len()],
            chunks,
            file: file.try_clone().map_err(failed)?,
            wake,
            orders,
            ready,
            status: Arc::clone(&self.status),
            written: BTreeSet::new(),
            waiting: VecDeque::new(),
            buffer: vec![0; CHUNK as usize],
            waits: 0,
        };
        let started = Instant::now();
        let thread = spawn_thread("live snapshot", move || {
            // Whatever becomes of it, the protection ends with it, and nobody waits any more.
            let copied = Panic::catch(move || copier.run());
            copied.unwrap_or_else(|panic| Err(SnapshotError::OnDemand { reason: panic.message }))
        });
        let thread = thread.map_err(failed)?;
        // If that fails, the thread says why.
        let _ = is_ready.recv();
        let started_pause = Instant::now();
        // On an error the order ends with it, and with that the thread and the protection.
        let begun = self.pause_and_save(&slots, move |shape, state| {
            last(&mut || {
                order.send(Order::Protect);
                let _ = is_ready.recv();
            });
            let (identity, sections) = (Identity::new(None)?, save::sections(shape, state));
            let header = save::begin(file, &identity, &sections, &table)?;
            order.send(Order::Copy(table, header.memory));
            Ok((identity, header))
        });
        let paused = started_pause.elapsed();
        let shape = self.board.shape(self.cpus);
        let copied = thread.join().unwrap_or(Err(ENDED));
        let (table, waits, (state, (identity, header))) = match (begun, copied) {
            (Ok(begun), Ok((table, waits))) => (table, waits, begun),
            // The thread has ended because the other has failed.
            (Err(error), Err(SnapshotError::Interrupted { .. }) | Ok(_)) | (_, Err(error)) => {
                return Err(error);
            }
        };
        let protected = started.elapsed();
        save::end(file, &identity, &save::sections(&shape, &state), &table, header)?;
        Ok(LiveSnapshot { paused, protected, waits })
    }

    /// Pauses the machine, takes its state, begins with what is to be done with it, and has it go on: with devices that may
    /// write to memory at once, and wait while they hold what others need to go on. So whoever lets them write must be at
    /// work before.
    fn pause_and_save<T>(
        &mut self,
        slots: &[RamSlot],
        begin: impl FnOnce(&Shape, &MachineState) -> Result<T, SnapshotError>,
    ) -> Result<(MachineState, T), SnapshotError> {
        self.pause()?;
        let begun = self.save().map_err(SnapshotError::from).and_then(|state| {
            let same = |slot: &RamSlot| (slot.id, slot.guest_addr, slot.size);
            if !self.board.ram().slots().map(|slot| same(&slot)).eq(slots.iter().map(same)) {
                return Err(SnapshotError::Interrupted { reason: "memory was added or removed" });
            }
            // Last: to save a state may write to memory.
            let begun = begin(&self.board.shape(self.cpus), &state)?;
            Ok((state, begun))
        });
        self.resume()?;
        begun
    }
}

const ENDED: SnapshotError = SnapshotError::Interrupted { reason: "the machine has ended" };

fn failed(source: std::io::Error) -> SnapshotError {
    SnapshotError::Io { part: "memory, by userfaultfd", source }
}

enum Order {
    /// The machine is paused: protect what was written.
    Protect,
    /// Copy memory to this offset of the file.
    Copy(MemoryTable, u64),
}

/// Tells the thread what to do. Dropped, it tells it to end.
struct Orders {
    order: Option<Sender<Order>>,
    wake: Arc<Event>,
}

impl Orders {
    fn send(&self, order: Order) {
        if let Some(sender) = &self.order {
            // A thread that has ended says why when it is joined.
            let _ = sender.send(order);
        }
        // An eventfd that the kernel has made takes a count.
        let _ = self.wake.signal();
    }
}

impl Drop for Orders {
    fn drop(&mut self) {
        self.order = None;
        let _ = self.wake.signal();
    }
}

/// The thread's own. It writes to no guest memory, and takes no lock that is held while somebody does.
struct Copier {
    faults: Userfault,
    dma: Dma,
    /// Address and size of each.
    slots: Vec<(u64, u64)>,
    /// All of memory, by ascending address.
    chunks: Vec<PlacedChunk>,
    file: File,
    wake: Arc<Event>,
    orders: Receiver<Order>,
    ready: Sender<()>,
    status: Arc<Status>,
    /// Which chunks are copied, and not protected any more.
    done: Vec<bool>,
    /// Pieces that were written before the machine was paused.
    written: BTreeSet<u64>,
    waiting: VecDeque<GuestAddress>,
    buffer: Vec<u8>,
    waits: u64,
}

impl Copier {
    fn run(mut self) -> Result<(MemoryTable, u64), SnapshotError> {
        self.protect_all()?;
        for _ in 0..ROUNDS {
            if self.written.len() <= LITTLE {
                break;
            }
            self.protect_written()?;
        }
        // Whoever waits for this has gone only after an error.
        let _ = self.ready.send(());
        match self.next_order(true)? {
            Order::Protect => {
                self.let_through()?;
                self.protect_written()?;
            }
            Order::Copy(..) => return Err(ENDED),
        }
        let _ = self.ready.send(());
        match self.next_order(false)? {
            Order::Copy(table, start) => self.copy_all(table, start),
            Order::Protect => Err(ENDED),
        }
    }

    /// Waits for an order, and lets writes through meanwhile, or has them wait.
    fn next_order(&mut self, let_through: bool) -> Result<Order, SnapshotError> {
        loop {
            if let_through {
                self.let_through()?;
            }
            match self.orders.try_recv() {
                Ok(order) => return Ok(order),
                Err(TryRecvError::Disconnected) => return Err(ENDED),
                Err(TryRecvError::Empty) => {}
            }
            if let_through {
                self.faults.wait(Some(self.wake.as_fd())).map_err(failed)?;
                self.wake.take().map_err(failed)?;
            } else {
                return self.orders.recv().map_err(|_| ENDED);
            }
        }
    }

    fn protect_all(&mut self) -> Result<(), SnapshotError> {
        for (addr, size) in self.slots.clone() {
            for at in (0..size).step_by(STRIDE as usize) {
                self.protect(addr + at, STRIDE.min(size - at))?;
                self.let_through()?;
            }
        }
        Ok(())
    }

    /// Protects what was written once more.
    fn protect_written(&mut self) -> Result<(), SnapshotError> {
        self.let_through()?;
        for piece in std::mem::take(&mut self.written) {
            let (addr, len) = self.piece(piece);
            self.protect(addr, len)?;
        }
        Ok(())
    }

    fn protect(&mut self, addr: u64, len: u64) -> Result<(), SnapshotError> {
        self.faults.populate(GuestAddress(addr), len).map_err(failed)?;
        self.set_protection(addr, len, true)
    }

    fn set_protection(&mut self, addr: u64, len: u64, protect: bool) -> Result<(), SnapshotError> {
        loop {
            match self.faults.protect(GuestAddress(addr), len, protect).map_err(failed)? {
                // Whoever gives pages back goes on when that was seen.
                Filled::Changing => {
                    self.take_events()?;
                    thread::yield_now();
                }
                Filled::Gone => {
                    return Err(SnapshotError::Interrupted { reason: "memory was mapped over" });
                }
                _ => return Ok(()),
            }
        }
    }

    /// Lets those go on who wait to write, and notes what they write.
    fn let_through(&mut self) -> Result<(), SnapshotError> {
        self.take_events()?;
        while let Some(GuestAddress(addr)) = self.waiting.pop_front() {
            let piece = addr / PIECE;
            let (addr, len) = self.piece(piece);
            self.written.insert(piece);
            self.set_protection(addr, len, false)?;
        }
        Ok(())
    }

    /// What of a slot is in a piece.
    fn piece(&self, piece: u64) -> (u64, u64) {
        let (start, end) = (piece * PIECE, (piece * PIECE).saturating_add(PIECE));
        let slot = self.slots.iter().find(|(addr, size)| start < addr + size && *addr < end);
        let (start, end) = slot.map_or((start, end), |(addr, size)| (start.max(*addr), end.min(addr + size)));
        (start, end - start)
    }

    fn take_events(&mut self) -> Result<(), SnapshotError> {
        while let Some(event) = self.faults.next_event().map_err(failed)? {
            if let UserfaultEvent::Fault { addr } = event {
                self.waiting.push_back(addr);
            }
        }
        Ok(())
    }

    fn copy_all(mut self, mut table: MemoryTable, start: u64) -> Result<(MemoryTable, u64), SnapshotError> {
        let mut next = 0;
        loop {
            self.take_events()?;
            if self.status.outcome().is_some() {
                return Err(ENDED);
            }
            match self.waiting.pop_front() {
                Some(addr) => {
                    let index = self.chunks.partition_point(|chunk| chunk.addr <= addr.0).saturating_sub(1);
                    if self.done.get(index) == Some(&false) {
                        self.waits += 1;
                        self.copy(index, &mut table, start)?;
                    } else {
                        // It has waited since before that was copied.
                        self.set_protection(addr.0, host_page_size() as u64, false)?;
                    }
                }
                None if next < self.chunks.len() => {
                    if self.done.get(next) == Some(&false) {
                        self.copy(next, &mut table, start)?;
                    }
                    next += 1;
                }
                None => return Ok((table, self.waits)),
            }
        }
    }

    fn copy(&mut self, index: usize, table: &mut MemoryTable, start: u64) -> Result<(), SnapshotError> {
        let Some(chunk) = self.chunks.get(index).copied() else { return Ok(()) };
        let bytes = self.buffer.get_mut(..chunk.len).unwrap_or_default();
        self.dma.read(GuestAddress(chunk.addr), bytes)?;
        // From here on it may change.
        self.set_protection(chunk.addr, chunk.len as u64, false)?;
        if let Some(done) = self.done.get_mut(index) {
            *done = true;
        }
        table.write_chunk(
            index,
            self.buffer.get(..chunk.len).unwrap_or_default(),
            &self.file,
            start + chunk.offset,
        )
    }
}

#[cfg(test)]
mod tests;
