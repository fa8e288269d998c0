//! A vCPU of KVM: how it is set up, and what its exits come to.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use kvm_bindings::KVM_EXIT_SYSTEM_EVENT;
use ossature_bus::{AddressSpace, Effect};
use ossature_memory::vm_memory::GuestAddress;

use super::run::{Entered, Exit, VcpuRun};
use super::shared::VmShared;
use super::sys;
use crate::arch::{self, KvmRegisters, VcpuAccess, VcpuParts};
use crate::backend::VcpuBackend;
use crate::call::call;
use crate::state::VcpuStateOf;
use crate::{
    Buses, CrashReason, Kicker, Registers, StatsReader, Step, VcpuCrash, VcpuError, VcpuState, VmError,
};

/// More exits than one instruction can cause before it is interrupted: KVM interrupts string instructions every 1,024
/// elements, each of which may be read and written in two pieces.
const MAX_PIECES: u32 = 4096;

/// See [`crate::Vcpu`].
#[derive(Debug)]
pub(super) struct KvmVcpu {
    run: VcpuRun,
    vm: Arc<VmShared>,
    index: u32,
    /// Nothing of its state was set.
    is_new: bool,
}

impl KvmVcpu {
    /// Creates vCPU `index`.
    pub(super) fn new(vm: &Arc<VmShared>, index: u32) -> Result<Self, VmError> {
        let fd = vm.vcpu(index)?;
        arch::complete_vcpu(&fd, &vm.host.kvm, &vm.config)?;
        vm.add_ring(index, &fd)?;
        let run = VcpuRun::new(fd, vm.fd.run_size(), vm.config.kick);
        Ok(Self { run, vm: Arc::clone(vm), index, is_new: true })
    }

    fn access(&self) -> Result<VcpuAccess<'_>, VmError> {
        let vm = &*self.vm;
        let host = (&vm.host.kvm, &vm.host.facts);
        let is_new = self.is_new && !self.run.has_run();
        VcpuAccess::new(&vm.fd, (self.run.fd(), self.index, is_new), host, &vm.config)
    }

    /// Completes the access that the last exit was for: KVM would do so when the guest is next entered, with whatever
    /// registers there are by then. What its devices ask for are the vCPU's next steps.
    fn complete_access(&mut self, buses: &mut Buses) -> Result<(), VmError> {
        if !self.run.has_access() {
            return Ok(());
        }
        for _ in 0..MAX_PIECES {
            self.run.leave_at_once();
            match self.run_once(buses) {
                // A kick that arrived meanwhile sent no signal: the flag stays.
                Ok(Step::Interrupted) => {
                    self.run.leave_at_once();
                    return Ok(());
                }
                Ok(Step::Effect(effect)) => buses.ask(effect),
                Ok(_) => {}
                // No access is under way any more.
                Err(VcpuError::Crash(_)) => return Ok(()),
                Err(VcpuError::Call { call, source, .. }) => return Err(VmError::Call { call, source }),
                Err(VcpuError::Script { .. }) => break,
            }
        }
        Err(VmError::InvalidState { part: "access under way", reason: "endless" })
    }

    fn write(&mut self, parts: &VcpuParts, buses: &mut Buses) -> Result<(), VmError> {
        self.complete_access(buses)?;
        let written = parts.write(self.access()?);
        self.is_new = false;
        written?;
        self.run.forget_registers();
        Ok(())
    }

    /// Does what a system event asks for, as far as the architecture has it.
    #[cold]
    fn system_event(&self, event: u32) -> Result<Step, VcpuError> {
        let is_ram =
            |address, len| self.vm.ram().is_some_and(|ram| ram.check(GuestAddress(address), len).is_ok());
        let known = self.access().and_then(|access| arch::answer_system_event(event, access, is_ram));
        if known.map_err(|error| self.vm_failed(error))? {
            return Ok(Step::Handled);
        }
        Err(self.crash(CrashReason::UnexpectedExit { exit_reason: KVM_EXIT_SYSTEM_EVENT }, None))
    }

    #[cold]
    fn failed(&self, (call, source): (&'static str, io::Error)) -> VcpuError {
        VcpuError::Call { index: self.index, call, source }
    }

    #[cold]
    fn vm_failed(&self, error: VmError) -> VcpuError {
        let (call, source) = match error {
            VmError::Call { call, source } => (call, source),
            other => ("answering an exit", io::Error::other(other)),
        };
        self.failed((call, source))
    }

    #[cold]
    fn crash(&self, reason: CrashReason, code: Option<Vec<u8>>) -> VcpuError {
        let registers = self.registers().ok();
        let code = code.or_else(|| self.code_at(registers.as_ref()?)).unwrap_or_default();
        let exception = arch::exception_registers(self.run.fd());
        VcpuError::Crash(Box::new(VcpuCrash { index: self.index, reason, registers, exception, code }))
    }

    /// The bytes at the program counter, up to the first that is not RAM.
    fn code_at(&self, registers: &Registers) -> Option<Vec<u8>> {
        let ram = self.vm.ram()?;
        let byte = |n| {
            let address = arch::instruction_byte(self.run.fd(), &ram, registers, n)?;
            ram.read_obj::<u8>(GuestAddress(address)).ok()
        };
        Some((0..).map_while(byte).collect())
    }
}

impl VcpuBackend for KvmVcpu {
    fn run_once(&mut self, buses: &mut Buses) -> Result<Step, VcpuError> {
        match self.run.enter() {
            Ok(Entered::Exited) => {}
            Ok(Entered::Again) => return Ok(Step::Handled),
            Ok(Entered::Interrupted) => return Ok(Step::Interrupted),
            Err(error) => return Err(self.failed(error)),
        }
        let effect = match self.run.exit() {
            Exit::Pio { port, size, write: true, data } => buses.write_ports(port, size, data),
            Exit::Pio { port, size, write: false, data } => {
                buses.read_ports(port, size, data);
                Effect::None
            }
            Exit::Mmio { address, write: true, data } => buses.write_memory(address, data),
            Exit::Mmio { address, write: false, data } => {
                buses.read_memory(address, data);
                Effect::None
            }
            Exit::Halt => return Ok(Step::Halted),
            Exit::Interrupted => return Ok(Step::Interrupted),
            Exit::DirtyRingFull => {
                let full = self.vm.harvest_rings(Some(self.index));
                return full.map(|()| Step::Handled).map_err(|error| self.vm_failed(error));
            }
            Exit::Request(request) => Effect::Vm(request),
            Exit::SystemEvent(event) => return self.system_event(event),
            Exit::Crash(reason, code) => return Err(self.crash(reason, code)),
        };
        Ok(Step::of(effect))
    }

    fn kicker(&self) -> Kicker {
        self.run.kicker()
    }

    fn registers(&self) -> Result<Registers, VmError> {
        let left = self.run.left_registers();
        Ok(left.map_or_else(|| KvmRegisters::read(self.run.fd()), Ok)?.into())
    }

    fn set_registers(&mut self, registers: &Registers) -> Result<(), VmError> {
        let is_new = std::mem::take(&mut self.is_new) && !self.run.has_run() && self.vm.config.has_irqchip();
        let known = self.run.left_registers().or_else(|| KvmRegisters::new(self.index).filter(|_| is_new));
        let mut all = known.map_or_else(|| KvmRegisters::read(self.run.fd()), Ok)?;
        all.apply(registers);
        if self.run.leave_registers(self.index, &all) {
            return Ok(());
        }
        all.write(self.run.fd())
    }

    fn state(&mut self, buses: &mut Buses) -> Result<VcpuState, VmError> {
        self.complete_access(buses)?;
        let parts = VcpuParts::read(self.access()?, self.run.left_registers())?;
        Ok(VcpuState(VcpuStateOf::Kvm(Box::new(parts))))
    }

    fn set_state(&mut self, state: &VcpuState, buses: &mut Buses) -> Result<(), VmError> {
        let VcpuStateOf::Kvm(parts) = &state.0 else { return Err(VmError::foreign_state()) };
        self.write(parts, buses)
    }

    fn reset(&mut self, buses: &mut Buses) -> Result<(), VmError> {
        let reset = self.vm.reset_state()?;
        let max = self.vm.config.cpus;
        let parts = reset.vcpus.get(self.index as usize);
        self.write(parts.ok_or(VmError::TooManyVcpus { index: self.index, max })?, buses)
    }

    fn notify_paused(&self) -> Result<(), VmError> {
        arch::notify_paused(self.run.fd())
    }

    fn last_access(&self) -> Option<(AddressSpace, u64)> {
        self.run.last_access()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(sys::borrow(self.run.fd()))
    }

    fn stats_reader(&self) -> Result<StatsReader, VmError> {
        StatsReader::new(sys::stats_fd(self.run.fd()).map_err(call("KVM_GET_STATS_FD"))?)
    }
}
