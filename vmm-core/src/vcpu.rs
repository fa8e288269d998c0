//! One virtual CPU, run step by step on whatever thread calls.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use ossature_bus::{AddressSpace, BusCursor, BusFault, Effect, Size};

use crate::backend::VcpuBackend;
use crate::{Kicker, Registers, StatsReader, VcpuCrash, VcpuState, VmError};

/// A vCPU's view of the two address spaces in which devices are.
#[derive(Debug)]
#[non_exhaustive]
pub struct Buses {
    /// I/O ports.
    pub pio: BusCursor,
    /// Guest-physical memory.
    pub mmio: BusCursor,
    /// What devices have asked for beside what the exit's step says: the next steps.
    due: VecDeque<Effect>,
}

impl Buses {
    /// The cursors of one vCPU.
    pub fn new(pio: BusCursor, mmio: BusCursor) -> Self {
        Self { pio, mmio, due: VecDeque::new() }
    }

    /// Notes what a device asks for. What is asked for already is not asked for twice, so that a string instruction
    /// leaves no more behind than there are ranges to move and to remove.
    #[cold]
    pub(crate) fn ask(&mut self, effect: Effect) {
        if effect != Effect::None && !self.due.contains(&effect) {
            self.due.push_back(effect);
        }
    }

    /// Forgets what was asked for: the guest that did so is gone.
    pub(crate) fn forget_effects(&mut self) {
        self.due.clear();
    }

    /// What to do after an access, given what an earlier one of the same instruction asks for, which comes first.
    #[inline]
    fn after(&mut self, before: Effect, access: Result<Effect, BusFault>) -> Effect {
        match access.unwrap_or(Effect::None) {
            effect if before == Effect::None => effect,
            Effect::None => before,
            effect => {
                if effect != before {
                    self.ask(effect);
                }
                before
            }
        }
    }

    /// Writes each element of `data`, which has elements of `size`, to the port: `outs` as single accesses.
    /// Returns the first effect; others are due.
    #[inline]
    pub(crate) fn write_ports(&mut self, port: u16, size: Size, data: &[u8]) -> Effect {
        let mut effect = Effect::None;
        for element in data.chunks_exact(size as usize) {
            let written = self.pio.write(port.into(), size, load(size, element));
            effect = self.after(effect, written);
        }
        effect
    }

    /// Reads each element of `data`, which has elements of `size`, from the port: `ins` as single accesses.
    #[inline]
    pub(crate) fn read_ports(&mut self, port: u16, size: Size, data: &mut [u8]) {
        for element in data.chunks_exact_mut(size as usize) {
            store(size, element, self.pio.read(port.into(), size).unwrap_or(size.mask()));
        }
    }

    /// Writes `data` to memory: in one access where a register can have its width, else in several.
    #[inline]
    pub(crate) fn write_memory(&mut self, mut address: u64, mut data: &[u8]) -> Effect {
        let mut effect = Effect::None;
        while let Some(size) = widest(data.len()) {
            let (piece, rest) = data.split_at(size as usize);
            let written = self.mmio.write(address, size, load(size, piece));
            effect = self.after(effect, written);
            (address, data) = (address.wrapping_add(size.bytes()), rest);
        }
        effect
    }

    /// Reads `data` from memory: in one access where a register can have its width, else in several.
    #[inline]
    pub(crate) fn read_memory(&mut self, mut address: u64, mut data: &mut [u8]) {
        while let Some(size) = widest(data.len()) {
            let (piece, rest) = data.split_at_mut(size as usize);
            store(size, piece, self.mmio.read(address, size).unwrap_or(size.mask()));
            (address, data) = (address.wrapping_add(size.bytes()), rest);
        }
    }
}

/// The widest access that `len` bytes begin with; `None` for no bytes.
#[inline]
fn widest(len: usize) -> Option<Size> {
    match len {
        0 => None,
        1 => Some(Size::B1),
        2..4 => Some(Size::B2),
        4..8 => Some(Size::B4),
        8.. => Some(Size::B8),
    }
}

/// The number in `bytes`, which are `size` long.
#[inline]
fn load(size: Size, bytes: &[u8]) -> u64 {
    match (size, bytes) {
        (Size::B1, &[a]) => a.into(),
        (Size::B2, &[a, b]) => u16::from_le_bytes([a, b]).into(),
        (Size::B4, &[a, b, c, d]) => u32::from_le_bytes([a, b, c, d]).into(),
        (_, bytes) => bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)),
    }
}

/// Puts a number into `bytes`, which are `size` long.
#[inline]
fn store(size: Size, bytes: &mut [u8], value: u64) {
    match (size, bytes) {
        (Size::B1, [a]) => *a = value as u8,
        (Size::B2, [a, b]) => [*a, *b] = (value as u16).to_le_bytes(),
        (Size::B4, [a, b, c, d]) => [*a, *b, *c, *d] = (value as u32).to_le_bytes(),
        (_, bytes) => bytes.iter_mut().zip(value.to_le_bytes()).for_each(|(byte, v)| *byte = v),
    }
}

/// Why [`Vcpu::run_once`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// The guest's access was answered. Call again.
    Handled,
    /// The vCPU was kicked, or a signal arrived. Every access is complete: this is the moment to stop, to look
    /// for messages, or to read the registers. May happen without a kick.
    Interrupted,
    /// The guest executed HLT on a machine without interrupt controllers, on x86_64.
    Halted,
    /// A device, or the guest through its hypervisor interface, asks the machine for something; never
    /// [`Effect::None`].
    Effect(Effect),
}

impl Step {
    pub(crate) fn of(effect: Effect) -> Self {
        if effect == Effect::None { Self::Handled } else { Self::Effect(effect) }
    }
}

/// The vCPU cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VcpuError {
    /// The guest's state allows no further instruction.
    #[error(transparent)]
    Crash(Box<VcpuCrash>),
    /// The host failed.
    #[error("vCPU {index}: {call} failed: {source}")]
    Call {
        /// Which vCPU.
        index: u32,
        /// The system call, as the kernel documents it.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A scripted guest did not see what its script expects.
    #[error("vCPU {index}, step {step} of its script: {reason}")]
    Script {
        /// Which vCPU.
        index: u32,
        /// Which step, from 0.
        step: usize,
        /// What it saw.
        reason: String,
    },
}

/// A virtual CPU. Runs on any thread, one at a time: move it to where it shall run.
#[derive(Debug)]
pub struct Vcpu {
    backend: Box<dyn VcpuBackend>,
    buses: Buses,
}

impl Vcpu {
    pub(crate) fn new(backend: Box<dyn VcpuBackend>, buses: Buses) -> Self {
        Self { backend, buses }
    }

    /// Runs the guest until something happens that is not the kernel's to handle, and answers the guest's
    /// accesses on the buses. An access that no device answers reads all ones and writes nothing.
    pub fn run_once(&mut self) -> Result<Step, VcpuError> {
        if let Some(effect) = self.buses.due.pop_front() {
            return Ok(Step::Effect(effect));
        }
        let step = self.backend.run_once(&mut self.buses)?;
        if step == Step::Interrupted {
            // Whoever removed a device may wait for this vCPU to notice, and has kicked it.
            self.sync_buses();
        }
        Ok(step)
    }

    /// Takes notice of changes of the buses without running the guest: this vCPU then no longer uses what was removed
    /// from them. For a vCPU that is paused.
    pub fn sync_buses(&mut self) {
        self.buses.pio.sync();
        self.buses.mmio.sync();
    }

    /// Where the access was that the last [`run_once`](Self::run_once) answered, or tried to: after the panic of a
    /// device, this tells which one it was. `None` if the guest was left for another reason.
    pub fn last_access(&self) -> Option<(AddressSpace, u64)> {
        self.backend.last_access()
    }

    /// Its view of the buses, with the counts of the guest's mistakes.
    pub fn buses(&self) -> &Buses {
        &self.buses
    }

    /// A handle that makes the vCPU leave the guest, for other threads.
    pub fn kicker(&self) -> Kicker {
        self.backend.kicker()
    }

    /// The registers. Between [`Step::Handled`] and the next step, those of an access under way.
    pub fn registers(&self) -> Result<Registers, VmError> {
        self.backend.registers()
    }

    /// Sets the registers: where the vCPU starts.
    pub fn set_registers(&mut self, registers: &Registers) -> Result<(), VmError> {
        self.backend.set_registers(registers)
    }

    /// The complete state. Call it after [`Step::Interrupted`]: an access under way is completed first, and what its
    /// devices ask for are the next [`Step::Effect`]s of this vCPU. They are no part of the state.
    pub fn state(&mut self) -> Result<VcpuState, VmError> {
        self.backend.state(&mut self.buses)
    }

    /// Goes back to a state of this vCPU, or of the one with the same index of a machine of the same configuration.
    /// [`Step::Interrupted`] may be the next step. After an error, which names what the host refused, the vCPU is
    /// to be reset or given another state.
    pub fn set_state(&mut self, state: &VcpuState) -> Result<(), VmError> {
        self.backend.set_state(state, &mut self.buses)?;
        self.buses.forget_effects();
        Ok(())
    }

    /// Returns to the state before the vCPU ever ran, except for the time-stamp counter, which goes on. The first reset
    /// of a machine creates a second one for a moment, to see what that state is. [`Step::Interrupted`] may be the next
    /// step.
    pub fn reset(&mut self) -> Result<(), VmError> {
        self.backend.reset(&mut self.buses)?;
        self.buses.forget_effects();
        Ok(())
    }

    /// Tells the guest that it was paused, so that its watchdogs do not take the time for a lockup. Call it after a
    /// pause, before the vCPU runs again. Does nothing for guests without a paravirtual clock.
    pub fn notify_paused(&self) -> Result<(), VmError> {
        self.backend.notify_paused()
    }

    /// The descriptor of the vCPU, for what this crate has no method for, such as debugging; `None` where there is none,
    /// as for a scripted vCPU.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.backend.descriptor()
    }

    /// The hypervisor's own counters of this vCPU. Call it while the vCPU does not run; the reader can be read at any
    /// time.
    pub fn stats_reader(&self) -> Result<StatsReader, VmError> {
        self.backend.stats_reader()
    }
}

#[cfg(test)]
mod tests;
