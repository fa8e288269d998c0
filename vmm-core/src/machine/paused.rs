//! A paused machine: its vCPUs can be read and changed, its state saved and restored.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use super::LifecycleState;
use super::control::Control;
use super::error::LifecycleError;
use super::handle::MachineHandle;
use super::snapshot::{self, NewFile, Pager, SnapshotError, SnapshotKey, Written};
use super::state::MachineState;
use crate::{Registers, VcpuState};

impl MachineHandle {
    /// Pauses all vCPUs between two instructions, then all devices. Dropping the guard resumes the machine. Fails if
    /// the machine ends meanwhile.
    pub fn pause(&self) -> Result<Paused, LifecycleError> {
        let pause = self.shared.control("pause", |control| {
            control.pause()?;
            Ok(control.pauses)
        })?;
        Ok(Paused { machine: self.clone(), pause, kept: false })
    }
}

/// A paused machine. Dropping this resumes it, unless the pause is [kept](Self::keep).
#[derive(Debug)]
pub struct Paused {
    machine: MachineHandle,
    /// Which of the machine's pauses this is.
    pause: u64,
    kept: bool,
}

impl Paused {
    /// Resumes the machine. Fails if a device cannot resume, and the machine then stays paused; and if another thread
    /// has ended this pause before.
    pub fn resume(mut self) -> Result<(), LifecycleError> {
        self.kept = true;
        self.end("resume")
    }

    /// Ends this pause, and no later one.
    fn end(&self, call: &'static str) -> Result<(), LifecycleError> {
        self.machine.shared.control(call, |control| {
            if control.pauses != self.pause {
                return Err(LifecycleError::Illegal { call, state: control.state() });
            }
            control.resume()
        })
    }

    /// Leaves the machine paused until [`MachineHandle::resume`] or [`MachineHandle::stop`].
    pub fn keep(mut self) {
        self.kept = true;
    }

    /// Its vCPUs.
    pub fn vcpus(&self) -> PausedVcpus<'_> {
        PausedVcpus { machine: &self.machine }
    }

    /// Everything about the machine but its memory: vCPUs, interrupt controllers, devices with what they have in flight.
    ///
    /// Copy the memory afterwards, while the machine is still paused: what an interrupt controller has of messages, as on
    /// aarch64, is written there by this.
    pub fn save(&self) -> Result<MachineState, LifecycleError> {
        self.machine.shared.control("save", |control| {
            control.expect(&[LifecycleState::Paused], "save")?;
            control.save()
        })
    }

    /// Writes a [`Snapshot`](super::Snapshot) into an open, empty file, such as a memfd, while the machine is paused. When it
    /// lasts is up to the caller, as is what is in the file after an error, which is no snapshot;
    /// [`MachineHandle::snapshot`] makes a file that is there in full or not at all.
    pub fn snapshot_to(&self, file: &File) -> Result<(), SnapshotError> {
        self.machine
            .shared
            .control(SNAPSHOT, |control| Ok(control.snapshot_to(file, control.key.clone())))??;
        Ok(())
    }

    /// Restores a state of a machine of the same configuration, whose memory the caller has restored: before each time, since
    /// the guest's interrupt controller, as on aarch64, takes messages that wait from there and may write to it. If it does not
    /// fit, the error names what does not; after an error that is not about a device, the machine can only be reset.
    pub fn restore(&self, state: MachineState) -> Result<(), LifecycleError> {
        self.machine.shared.control("restore", |control| {
            control.expect(&[LifecycleState::Paused], "restore")?;
            control.restore(state)
        })
    }
}

impl MachineHandle {
    /// Writes the machine, which is paused meanwhile, to a [`Snapshot`](super::Snapshot) at `path`. It goes on when all is
    /// written, before that is known to last; one that is paused, or has not started, stays so.
    ///
    /// The file is written beside its place, made to last, and renamed. So it is there in full, or on any error not at
    /// all, and a snapshot that was there is replaced, or is left as it was. The one exception is the last step: if the
    /// folder cannot be synced, the new snapshot is in its place, and an error says that it may not last. Any other file at
    /// `path` is refused. Only its owner may read it: it has all that the guest knows.
    ///
    /// What is still to come [on demand](super::Snapshot::on_demand) is fetched first, before a machine that runs is paused.
    /// If some of it is not what was saved, or cannot be read, the machine ends and there is no snapshot. The same holds for
    /// checkpoints, diffs and templates.
    ///
    /// What is on disks is no part of it. Copy them while the machine is [paused](Self::pause), or stop it before its guest
    /// goes on.
    pub fn snapshot(&self, path: impl AsRef<Path>) -> Result<(), SnapshotError> {
        let file = NewFile::create(path.as_ref())?;
        self.shared.control(SNAPSHOT, |control| {
            Ok(control.at_rest(SNAPSHOT, |control| control.snapshot_to(file.file(), control.key.clone())))
        })??;
        file.commit()
    }
}

/// What a call is named that writes a snapshot.
const SNAPSHOT: &str = "write a snapshot of";

impl Control {
    /// Waits until memory that comes on demand is there. What could not come reads as zeros from then on, so nothing is
    /// saved before that is known.
    pub(super) fn fetch_all(&mut self) -> Result<(), SnapshotError> {
        self.pager.as_mut().map_or(Ok(()), Pager::finish)
    }

    /// Writes a snapshot of the machine, which does not run, into an empty file.
    pub(super) fn snapshot_to(
        &mut self,
        file: &File,
        key: Option<SnapshotKey>,
    ) -> Result<Written, SnapshotError> {
        self.expect(&[LifecycleState::Created, LifecycleState::Paused], SNAPSHOT)?;
        self.fetch_all()?;
        let state = self.save()?;
        snapshot::write(file, &self.board.shape(self.cpus), &state, self.board.ram(), key.as_ref())
    }
}

impl Deref for Paused {
    type Target = MachineHandle;

    fn deref(&self) -> &MachineHandle {
        &self.machine
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        if !self.kept {
            // A device that cannot go on is an event of the machine, which stays paused.
            let _ = self.end("resume");
        }
    }
}

/// The vCPUs of a paused machine, each reached on its own thread.
#[derive(Clone, Copy, Debug)]
pub struct PausedVcpus<'a> {
    machine: &'a MachineHandle,
}

impl PausedVcpus<'_> {
    fn with<R: Send + 'static>(
        &self,
        index: u32,
        f: impl FnOnce(&mut crate::Vcpu) -> Result<R, crate::VmError> + Send + 'static,
    ) -> Result<R, LifecycleError> {
        self.machine.shared.control("reach a vCPU of", |control| {
            control.expect(&[LifecycleState::Paused], "reach a vCPU of")?;
            Ok(control.with_vcpu(index, f)??)
        })
    }

    /// The registers of vCPU `index`.
    pub fn registers(&self, index: u32) -> Result<Registers, LifecycleError> {
        self.with(index, |vcpu| vcpu.registers())
    }

    /// Sets the registers of vCPU `index`.
    pub fn set_registers(&self, index: u32, registers: Registers) -> Result<(), LifecycleError> {
        self.with(index, move |vcpu| vcpu.set_registers(&registers))
    }

    /// The complete state of vCPU `index`.
    pub fn state(&self, index: u32) -> Result<VcpuState, LifecycleError> {
        self.with(index, |vcpu| vcpu.state())
    }

    /// Sets the complete state of vCPU `index`.
    pub fn set_state(&self, index: u32, state: VcpuState) -> Result<(), LifecycleError> {
        self.with(index, move |vcpu| vcpu.set_state(&state))
    }
}
