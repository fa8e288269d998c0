//! A vCPU that follows its script.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ossature_bus::{AddressSpace, Effect, Event, Size};
use ossature_memory::vm_memory::GuestAddress;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::wiring::Wiring;
use super::{Action, Script};
use crate::backend::VcpuBackend;
use crate::kick::Kick;
use crate::state::VcpuStateOf;
use crate::{
    Buses, CrashReason, DoorbellAddress, Kicker, Registers, StatsReader, Step, VcpuCrash, VcpuError,
    VcpuState, VmError,
};

/// See [`Script`].
#[derive(Debug)]
pub(super) struct ScriptedVcpu {
    index: u32,
    steps: Vec<Action>,
    next: usize,
    /// True while a step is played: a device has panicked in it if it still is when the next one begins.
    playing: bool,
    registers: Registers,
    kick: Arc<KickEvent>,
    wiring: Arc<Wiring>,
    remaining: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct KickEvent(Event);

impl Kick for KickEvent {
    fn kick(&self) {
        // Adding one to a counter only fails when it is full, and then the vCPU is kicked.
        let _ = self.0.signal();
    }
}

/// What a step came to.
enum Played {
    /// The guest goes on without leaving.
    Inside,
    /// It leaves.
    Exit(Step),
    /// It leaves, and does the same step again.
    Kicked,
    /// It leaves for good.
    Crash(CrashReason),
}

/// What was not as the script says.
enum Failure {
    Expectation(String),
    Host(&'static str, io::Error),
}

impl ScriptedVcpu {
    pub(super) fn new(
        index: u32,
        script: Script,
        wiring: Arc<Wiring>,
        remaining: Arc<AtomicUsize>,
    ) -> Result<Self, VmError> {
        let kick = Event::new().map_err(|source| VmError::Call { call: "eventfd", source })?;
        let (steps, kick) = (script.steps, Arc::new(KickEvent(kick)));
        Ok(Self {
            index,
            steps,
            next: 0,
            playing: false,
            registers: Registers::default(),
            kick,
            wiring,
            remaining,
        })
    }

    fn play(&self, action: &Action, buses: &mut Buses) -> Result<Played, Failure> {
        match action {
            Action::PioWrite { port, size, value } => {
                if self.rings(DoorbellAddress::Pio(*port), *size, *value)? {
                    return Ok(Played::Inside);
                }
                let effect = buses.write_ports(*port, *size, bytes_of(*size, &value.to_le_bytes()));
                Ok(exit(effect))
            }
            Action::PioWriteBytes { port, bytes } => Ok(exit(buses.write_ports(*port, Size::B1, bytes))),
            Action::PioExpect { port, size, value } => {
                let mut data = [0; 8];
                buses.read_ports(*port, *size, bytes_of_mut(*size, &mut data));
                expect(format_args!("port {port:#x}"), *size, *value, u64::from_le_bytes(data))?;
                Ok(exit(Effect::None))
            }
            Action::MmioWrite { address, size, value } => {
                if self.rings(DoorbellAddress::Mmio(*address), *size, *value)? {
                    return Ok(Played::Inside);
                }
                let effect = buses.write_memory(*address, bytes_of(*size, &value.to_le_bytes()));
                Ok(exit(effect))
            }
            Action::MmioExpect { address, size, value } => {
                if let Some(got) = self.wiring.page_value(*address, *size) {
                    expect(format_args!("register page {address:#x}"), *size, *value, got)?;
                    return Ok(Played::Inside);
                }
                let mut data = [0; 8];
                buses.read_memory(*address, bytes_of_mut(*size, &mut data));
                expect(format_args!("memory {address:#x}"), *size, *value, u64::from_le_bytes(data))?;
                Ok(exit(Effect::None))
            }
            Action::MmioRead { address, size } => {
                if self.wiring.page_value(*address, *size).is_some() {
                    return Ok(Played::Inside);
                }
                buses.read_memory(*address, bytes_of_mut(*size, &mut [0; 8]));
                Ok(exit(Effect::None))
            }
            Action::RamWrite { address, bytes } => {
                self.wiring.ram().ok_or_else(no_ram)?.write(*address, bytes).map_err(not_ram)?;
                Ok(Played::Inside)
            }
            Action::RamExpect { address, bytes } => self.expect_ram(*address, bytes),
            Action::AwaitInterrupt { gsi } => self.await_interrupt(*gsi),
            Action::ExpectLine { gsi, asserted } => {
                if self.wiring.is_asserted(*gsi) != *asserted {
                    let level = if *asserted { "asserted" } else { "deasserted" };
                    return Err(Failure::Expectation(format!("line {gsi} is not {level}")));
                }
                Ok(Played::Inside)
            }
            Action::AwaitKick => {
                self.await_any(&[&self.kick.0])?;
                Ok(Played::Exit(Step::Interrupted))
            }
            Action::Halt => Ok(Played::Exit(Step::Halted)),
            Action::TripleFault => Ok(Played::Crash(CrashReason::TripleFault)),
        }
    }

    fn rings(&self, address: DoorbellAddress, size: Size, value: u64) -> Result<bool, Failure> {
        let Some(event) = self.wiring.doorbell(address, size, value) else { return Ok(false) };
        event.signal().map_err(|e| Failure::Host("signalling a doorbell", e))?;
        Ok(true)
    }

    fn expect_ram(&self, address: GuestAddress, bytes: &[u8]) -> Result<Played, Failure> {
        let mut got = vec![0; bytes.len()];
        self.wiring.ram().ok_or_else(no_ram)?.read(address, &mut got).map_err(not_ram)?;
        if got != bytes {
            let reason = format!("expected {bytes:02x?} in RAM at {:#x}, found {got:02x?}", address.0);
            return Err(Failure::Expectation(reason));
        }
        Ok(Played::Inside)
    }

    fn await_interrupt(&self, gsi: u32) -> Result<Played, Failure> {
        let lines = self.wiring.lines(gsi);
        if lines.is_empty() && !self.wiring.is_called(gsi) {
            return Err(Failure::Expectation(format!("nothing is connected to interrupt {gsi}")));
        }
        let edges = lines.iter().map(|line| &*line.event);
        let all: Vec<_> = edges.chain([self.wiring.raised(), &self.kick.0]).collect();
        loop {
            take(self.wiring.raised())?;
            let mut raised = u64::from(self.wiring.is_asserted(gsi)) + self.wiring.take_edges(gsi);
            for line in &lines {
                let signals = take(&line.event)?;
                if let Some(resample) = line.resample.as_ref().filter(|_| signals > 0) {
                    // The guest acknowledges at once.
                    resample.signal().map_err(|e| Failure::Host("signalling an acknowledgement", e))?;
                }
                raised += signals;
            }
            if raised > 0 {
                return Ok(Played::Inside);
            }
            if take(&self.kick.0)? > 0 {
                return Ok(Played::Kicked);
            }
            wait(&all)?;
        }
    }

    /// Waits until one of `events` was signalled, and takes all of their signals.
    fn await_any(&self, events: &[&Event]) -> Result<(), Failure> {
        loop {
            let mut signals = 0;
            for event in events {
                signals += take(event)?;
            }
            if signals > 0 {
                return Ok(());
            }
            wait(events)?;
        }
    }

    fn failed(&self, failure: Failure) -> VcpuError {
        let index = self.index;
        match failure {
            Failure::Expectation(reason) => VcpuError::Script { index, step: self.next, reason },
            Failure::Host(call, source) => VcpuError::Call { index, call, source },
        }
    }

    /// The access of a step.
    fn access_of(&self, step: usize) -> Option<(AddressSpace, u64)> {
        match self.steps.get(step)? {
            Action::PioWrite { port, .. }
            | Action::PioWriteBytes { port, .. }
            | Action::PioExpect { port, .. } => Some((AddressSpace::Pio, (*port).into())),
            Action::MmioWrite { address, .. } | Action::MmioExpect { address, .. } => {
                Some((AddressSpace::Mmio, *address))
            }
            _ => None,
        }
    }

    fn step_done(&mut self) {
        self.next += 1;
        self.remaining.fetch_sub(1, Ordering::AcqRel);
    }
}

impl VcpuBackend for ScriptedVcpu {
    fn run_once(&mut self, buses: &mut Buses) -> Result<Step, VcpuError> {
        if std::mem::take(&mut self.playing) {
            // As KVM completes the access, whatever became of it.
            self.step_done();
        }
        loop {
            // Between two steps of its script a vCPU can be kicked, unless the kick is what the step is about.
            let action = self.steps.get(self.next);
            if !matches!(action, None | Some(Action::AwaitKick))
                && take(&self.kick.0).map_err(|e| self.failed(e))? > 0
            {
                return Ok(Step::Interrupted);
            }
            let Some(action) = action else {
                self.await_any(&[&self.kick.0]).map_err(|e| self.failed(e))?;
                return Ok(Step::Interrupted);
            };
            self.playing = true;
            let played = self.play(action, buses);
            self.playing = false;
            match played.map_err(|e| self.failed(e))? {
                Played::Inside => self.step_done(),
                Played::Exit(step) => {
                    self.step_done();
                    return Ok(step);
                }
                Played::Kicked => return Ok(Step::Interrupted),
                Played::Crash(reason) => {
                    self.step_done();
                    let (index, registers) = (self.index, Some(self.registers));
                    return Err(VcpuError::Crash(Box::new(VcpuCrash {
                        index,
                        reason,
                        registers,
                        exception: Vec::new(),
                        code: Vec::new(),
                    })));
                }
            }
        }
    }

    fn kicker(&self) -> Kicker {
        Kicker::new(Arc::clone(&self.kick) as Arc<dyn Kick>)
    }

    fn registers(&self) -> Result<Registers, VmError> {
        Ok(self.registers)
    }

    fn set_registers(&mut self, registers: &Registers) -> Result<(), VmError> {
        self.registers = *registers;
        Ok(())
    }

    fn state(&mut self, _: &mut Buses) -> Result<VcpuState, VmError> {
        Ok(VcpuState(VcpuStateOf::Scripted(Box::new(self.registers))))
    }

    fn set_state(&mut self, state: &VcpuState, _: &mut Buses) -> Result<(), VmError> {
        let VcpuStateOf::Scripted(registers) = &state.0 else { return Err(VmError::foreign_state()) };
        self.registers = **registers;
        Ok(())
    }

    fn reset(&mut self, _: &mut Buses) -> Result<(), VmError> {
        self.registers = Registers::default();
        Ok(())
    }

    fn notify_paused(&self) -> Result<(), VmError> {
        Ok(())
    }

    fn last_access(&self) -> Option<(AddressSpace, u64)> {
        let step = if self.playing { Some(self.next) } else { self.next.checked_sub(1) };
        self.access_of(step?)
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn stats_reader(&self) -> Result<StatsReader, VmError> {
        Err(VmError::Unsupported { what: "a counter of a scripted vCPU" })
    }
}

fn exit(effect: Effect) -> Played {
    Played::Exit(Step::of(effect))
}

fn bytes_of(size: Size, bytes: &[u8; 8]) -> &[u8] {
    bytes.get(..size as usize).unwrap_or(bytes)
}

fn bytes_of_mut(size: Size, bytes: &mut [u8; 8]) -> &mut [u8] {
    bytes.split_at_mut(size as usize).0
}

fn expect(place: fmt::Arguments<'_>, size: Size, expected: u64, got: u64) -> Result<(), Failure> {
    if got == expected {
        return Ok(());
    }
    let bits = 8 * size.bytes();
    Err(Failure::Expectation(format!("expected {expected:#x} from {place} ({bits} bits), read {got:#x}")))
}

fn no_ram() -> Failure {
    Failure::Expectation("the machine has no RAM".into())
}

fn not_ram(error: ossature_memory::DmaError) -> Failure {
    Failure::Expectation(error.to_string())
}

fn take(event: &Event) -> Result<u64, Failure> {
    event.take().map_err(|e| Failure::Host("reading an eventfd", e))
}

/// Waits until one of `events` is readable.
fn wait(events: &[&Event]) -> Result<(), Failure> {
    let wait = || -> io::Result<()> {
        let epoll = Epoll::new()?;
        for event in events {
            let fd = event.as_raw_fd();
            match epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0)) {
                // The same event on a line twice.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                result => result?,
            }
        }
        loop {
            match epoll.wait(-1, &mut [EpollEvent::default()]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => return result.map(drop),
            }
        }
    };
    wait().map_err(|e| Failure::Host("epoll", e))
}
