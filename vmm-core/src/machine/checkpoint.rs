//! Checkpoints: a machine goes back to where it was by undoing what was written since.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Weak};

use ossature_memory::{Ram, memory_file};

use super::LifecycleState;
use super::control::{Control, Shared};
use super::events::MachineEvent;
use super::handle::MachineHandle;
use super::snapshot::{self, NewFile, Originals, Snapshot, SnapshotError, SnapshotKey, Written};
use crate::{GuestDirtyLog, VmError};

/// A moment in a machine's life to which it can [go back](MachineHandle::reset_to), any number of times, in place: the
/// same virtual machine, threads, devices and memory, of which only the pages are copied that were written since.
///
/// It has a copy of all memory that is not zero, in a memfd; or none, if the machine was restored from a snapshot and built
/// [with a checkpoint](super::MachineBuilder::build_with_checkpoint): that file has it already, and must stay as it is; one
/// that was saved with a key is copied, and checked, before the first reset, and the pages of each diff from then on when
/// it is written. While a checkpoint exists, the machine's writes are logged, which costs the guest a fault for each page
/// that it writes after each reset. So there is one checkpoint at a time, and no other
/// [`dirty_log`](MachineHandle::dirty_log) beside it; dropping it ends that. What the caller's own threads write to guest
/// memory while it goes back may be undone or not.
///
/// ```
/// use ossature_core::machine::Machine;
/// use ossature_core::scripted::{Script, Scripted};
/// use ossature_memory::vm_memory::GuestAddress;
///
/// // With KVM: `&Kvm::open()?` instead of a guest that follows a script.
/// let machine = Machine::builder("target").build(&Scripted::new([Script::new()]))?;
/// machine.start()?;
/// // ... until the guest is where each run is to begin.
/// let mut checkpoint = machine.checkpoint()?;
/// for input in [b"first ", b"second"] {
///     machine.ram().dma().write(GuestAddress(0x1000), input)?;
///     // ... until the guest is through with it.
///     machine.reset_to(&mut checkpoint)?;
///     assert_eq!(machine.ram().dma().read_obj::<[u8; 6]>(GuestAddress(0x1000))?, [0; 6]);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Checkpoint {
    /// What the machine was like.
    originals: Originals,
    log: GuestDirtyLog,
    /// What was written since and taken out of the log: ascending guest addresses of whole pages.
    dirty: Vec<Range<u64>>,
    machine: Weak<Shared>,
}

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checkpoint").field("snapshot", self.snapshot()).finish_non_exhaustive()
    }
}

impl Checkpoint {
    pub(super) fn new(
        snapshot: Snapshot,
        log: GuestDirtyLog,
        machine: &Arc<Shared>,
    ) -> Result<Self, SnapshotError> {
        Self::of(Originals::new(snapshot)?, log, machine)
    }

    fn of(originals: Originals, log: GuestDirtyLog, machine: &Arc<Shared>) -> Result<Self, SnapshotError> {
        Ok(Self { originals, log, dirty: Vec::new(), machine: Arc::downgrade(machine) })
    }

    /// The snapshot that it is, to write it to a file ([`Snapshot::merge`]) or to ask for its id.
    pub fn snapshot(&self) -> &Snapshot {
        self.originals.snapshot()
    }

    fn expect_of(&self, machine: &MachineHandle) -> Result<(), SnapshotError> {
        let own = std::ptr::eq(self.machine.as_ptr(), Arc::as_ptr(&machine.shared));
        if own { Ok(()) } else { Err(SnapshotError::OtherMachine) }
    }

    /// Takes what was written out of the log. The machine does not run.
    fn collect(&mut self) -> Result<(), VmError> {
        let pages = self.log.take()?;
        add(&mut self.dirty, pages.ranges());
        Ok(())
    }

    /// Makes the pages that were written what they were.
    fn undo(&mut self, ram: &Ram) -> Result<(), SnapshotError> {
        self.collect()?;
        self.originals.copy_to(ram, &self.dirty)?;
        self.dirty.clear();
        self.log.forget_own();
        Ok(())
    }
}

/// Takes pages out of the log, as a diff does that then fails.
#[cfg(test)]
pub(super) fn collected(checkpoint: &mut Checkpoint) -> &[Range<u64>] {
    checkpoint.collect().ok();
    &checkpoint.dirty
}

/// Adds ranges to others, all of them ascending.
fn add(ranges: &mut Vec<Range<u64>>, more: impl Iterator<Item = Range<u64>>) {
    if ranges.is_empty() {
        ranges.extend(more);
        return;
    }
    let mut all: Vec<_> = std::mem::take(ranges).into_iter().chain(more).collect();
    all.sort_by_key(|range| range.start);
    for range in all {
        match ranges.last_mut().filter(|last| range.start <= last.end) {
            Some(last) => last.end = last.end.max(range.end),
            None => ranges.push(range),
        }
    }
}

/// What calls are named.
const CHECKPOINT: &str = "take a checkpoint of";
const RESET: &str = "reset";
const DIFF: &str = "write a snapshot of";

impl MachineHandle {
    /// Takes a checkpoint of the machine, which is paused meanwhile. Its memory is copied into a memfd. Fails while there
    /// is another one, or while the host's kernel writes guest memory for a device (vhost), which no log sees.
    pub fn checkpoint(&self) -> Result<Checkpoint, SnapshotError> {
        let file = memory_file().map_err(|source| SnapshotError::Io { part: "memfd", source })?;
        let (snapshot, log) = self.checkpoint_in(file)?;
        Checkpoint::of(Originals::own(snapshot)?, log, &self.shared)
    }

    /// Writes a [`snapshot`](Self::snapshot) to `path` that is a checkpoint, too. It must stay as it is.
    pub fn checkpoint_at(&self, path: impl AsRef<Path>) -> Result<Checkpoint, SnapshotError> {
        let file = NewFile::create(path.as_ref())?;
        let same =
            file.file().try_clone().map_err(|source| SnapshotError::Io { part: "descriptor", source })?;
        let (snapshot, log) = self.checkpoint_in(same)?;
        let checkpoint = Checkpoint::new(snapshot, log, &self.shared)?;
        file.commit()?;
        Ok(checkpoint)
    }

    fn checkpoint_in(&self, file: File) -> Result<(Snapshot, GuestDirtyLog), SnapshotError> {
        let (log, written, key) = self.shared.control(CHECKPOINT, |control| {
            Ok(control.at_rest(CHECKPOINT, |control| {
                let board = &control.board;
                let log = board.vm().dirty_log(board.ram())?;
                let written = control.snapshot_to(&file, control.key.clone())?;
                Ok((log, written, control.key.clone()))
            }))
        })??;
        Ok((written.open(file, key.as_ref())?, log))
    }

    /// Takes the machine, running or paused, back to a checkpoint of it, in place: memory, of which the pages are copied
    /// that vCPUs and devices have written or that were discarded since, vCPUs, interrupt controllers, timers and devices.
    /// It goes on from there if it ran, and stays paused if it was.
    ///
    /// The guest's clocks (kvmclock, TSC and timers) are what they were at the checkpoint: each run sees the same time
    /// again. What is outside of the machine stays: disks keep what was written to them, so give a guest that writes a
    /// new overlay each time, or none; what was sent is sent, and vsock's connections are gone. Pages that the guest has
    /// taken from the host stay taken.
    ///
    /// Refused before anything changes, by name: a checkpoint of another machine, and one from before slots of RAM or
    /// devices were added or removed. After any other error, the machine is paused, and can be reset again.
    pub fn reset_to(&self, checkpoint: &mut Checkpoint) -> Result<(), SnapshotError> {
        checkpoint.expect_of(self)?;
        self.shared.control(RESET, |control| Ok(control.reset_to(checkpoint)))?
    }
}

impl MachineHandle {
    /// Writes a diff to `path`: the machine, which is paused meanwhile, and of its memory the pages only that were written
    /// since the checkpoint, by vCPUs or devices. It is restored together with the snapshot of the checkpoint, see
    /// [`Snapshot::open_chain`]: the file that it was [written to](Self::checkpoint_at), or that the machine was restored
    /// from. From then on, the checkpoint is this diff: [`reset_to`](Self::reset_to) goes back to it,
    /// and the next diff is based on it.
    ///
    /// The file is there in full or not at all, as what [`snapshot`](Self::snapshot) writes. After an error, the
    /// checkpoint is what it was.
    ///
    /// ```
    /// use ossature_core::machine::{Machine, Snapshot};
    /// use ossature_core::scripted::{Script, Scripted};
    /// use ossature_memory::vm_memory::GuestAddress;
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # let path = |name: &str| folder.path().join(name);
    /// let machine = Machine::builder("first").build(&Scripted::new([Script::new()]))?;
    /// machine.start()?;
    /// let mut checkpoint = machine.checkpoint_at(path("base.snap"))?;
    /// machine.ram().dma().write(GuestAddress(0x1000), b"one")?;
    /// machine.snapshot_diff(&mut checkpoint, path("1.diff"))?; // one page
    /// machine.ram().dma().write(GuestAddress(0x2000), b"two")?;
    /// machine.snapshot_diff(&mut checkpoint, path("2.diff"))?; // another one
    ///
    /// let chain = Snapshot::open_chain(["base.snap", "1.diff", "2.diff"].map(path))?;
    /// chain.merge(path("whole.snap"))?; // or restore it as it is:
    /// let again = Machine::builder("again").restore(chain).build(&Scripted::new([Script::new()]))?;
    /// assert_eq!(again.ram().dma().read_obj::<[u8; 3]>(GuestAddress(0x1000))?, *b"one");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn snapshot_diff(
        &self,
        checkpoint: &mut Checkpoint,
        path: impl AsRef<Path>,
    ) -> Result<(), SnapshotError> {
        checkpoint.expect_of(self)?;
        let base = checkpoint.snapshot();
        base.id().ok_or(SnapshotError::NoId)?;
        let file = NewFile::create(path.as_ref())?;
        let same =
            file.file().try_clone().map_err(|source| SnapshotError::Io { part: "descriptor", source })?;
        let written = self.shared.control(DIFF, |control| {
            Ok(control.at_rest(DIFF, |control| control.diff_to(checkpoint, file.file())))
        })??;
        let base = checkpoint.snapshot().duplicate()?;
        let diff = written.open(same, base.key())?.on(base)?;
        checkpoint.originals.go_on(diff, || file.commit())?;
        checkpoint.dirty.clear();
        Ok(())
    }
}

impl Control {
    fn diff_to(&mut self, checkpoint: &mut Checkpoint, file: &File) -> Result<Written, SnapshotError> {
        let base = checkpoint.snapshot();
        base.expect_slots(self.board.ram())?;
        if self.key.as_ref() != base.key() {
            let found = self.key.as_ref().map(SnapshotKey::id);
            return Err(SnapshotError::MixedKeys { found, base: base.key_id() });
        }
        let state = self.save()?;
        checkpoint.collect()?;
        let (shape, ram) = (self.board.shape(self.cpus), self.board.ram());
        snapshot::write_diff(file, &shape, &state, ram, checkpoint.snapshot(), &checkpoint.dirty)
    }

    /// Does something with the machine, with all its memory, while it does not run.
    pub(super) fn at_rest<R>(
        &mut self,
        call: &'static str,
        f: impl FnOnce(&mut Self) -> Result<R, SnapshotError>,
    ) -> Result<R, SnapshotError> {
        self.expect(&[LifecycleState::Created, LifecycleState::Running, LifecycleState::Paused], call)?;
        // While the guest goes on.
        self.fetch_all()?;
        if self.entered() != LifecycleState::Running {
            return f(self);
        }
        self.pause()?;
        let result = f(self);
        self.resume()?;
        result
    }

    fn reset_to(&mut self, checkpoint: &mut Checkpoint) -> Result<(), SnapshotError> {
        self.expect(&[LifecycleState::Running, LifecycleState::Paused], RESET)?;
        let snapshot = checkpoint.snapshot();
        snapshot.expect_machine(&self.board.shape(self.cpus), self.board.ram())?;
        let state = snapshot.state()?;
        checkpoint.originals.prepare()?;
        let ran = self.entered() == LifecycleState::Running;
        if ran {
            self.pause_vcpus(RESET)?;
            self.enter(LifecycleState::Paused);
            self.board.quiesce()?;
        }
        checkpoint.undo(self.board.ram())?;
        self.restore(state)?;
        self.status.guest_restarts();
        self.status.events.push(MachineEvent::Reset);
        if ran {
            self.go_on()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
