//! A vCPU of KVM: how it is set up, and what its exits come to.

use std::io;
use std::sync::Arc;

use kvm_bindings::{CpuId, Msrs, kvm_sregs};
use ossature_bus::Effect;
use ossature_memory::vm_memory::GuestAddress;

use super::run::{Entered, Exit, VcpuRun};
use super::vm::VmShared;
use super::{call, retry, sys};
use crate::arch;
use crate::backend::VcpuBackend;
use crate::{
    Buses, CrashReason, Irqchip, Kicker, Registers, StatsReader, Step, VcpuCrash, VcpuError, VmError,
};

/// The longest instruction (SDM vol. 2, 2.3.11).
const MAX_INSTRUCTION: u64 = 15;

/// See [`crate::Vcpu`].
#[derive(Debug)]
pub(super) struct KvmVcpu {
    run: VcpuRun,
    vm: Arc<VmShared>,
    index: u32,
}

impl KvmVcpu {
    /// Creates vCPU `index` with its CPUID and MSRs. The local APIC and the FPU stay as KVM resets them: LINT0
    /// of vCPU 0 passes the PICs' interrupts on, and operating systems set up the rest.
    pub(super) fn new(vm: &Arc<VmShared>, index: u32) -> Result<Self, VmError> {
        let fd = retry(|| vm.fd.create_vcpu(index.into())).map_err(call("KVM_CREATE_VCPU"))?;
        let cpuid = arch::cpuid(vm.host.cpuid()?, index, vm.cpu_features());
        let cpuid = CpuId::from_entries(&cpuid)
            .map_err(|_| VmError::Unsupported { what: "a processor with this many CPUID leaves" })?;
        fd.set_cpuid2(&cpuid).map_err(call("KVM_SET_CPUID2"))?;
        let entries = arch::boot_msrs();
        let msrs =
            Msrs::from_entries(&entries).map_err(|_| VmError::Unsupported { what: "a list of MSRs" })?;
        let written = fd.set_msrs(&msrs).map_err(call("KVM_SET_MSRS"))?;
        if let Some(refused) = entries.get(written) {
            return Err(VmError::MsrRefused { index, msr: refused.index, value: refused.data });
        }
        let run = VcpuRun::new(fd, vm.fd.run_size(), vm.config.kick);
        Ok(Self { run, vm: Arc::clone(vm), index })
    }

    fn sregs(&self) -> Result<kvm_sregs, VmError> {
        self.run.fd().get_sregs().map_err(call("KVM_GET_SREGS"))
    }

    #[cold]
    fn failed(&self, (call, source): (&'static str, io::Error)) -> VcpuError {
        VcpuError::Call { index: self.index, call, source }
    }

    #[cold]
    fn crash(&self, reason: CrashReason, code: Option<Vec<u8>>) -> VcpuError {
        let registers = self.registers().ok();
        let code = code.or_else(|| self.code_at(registers.as_ref()?)).unwrap_or_default();
        VcpuError::Crash(Box::new(VcpuCrash { index: self.index, reason, registers, code }))
    }

    /// The bytes at the program counter, up to the first that is not RAM.
    fn code_at(&self, registers: &Registers) -> Option<Vec<u8>> {
        let ram = self.vm.ram()?;
        let start = registers.cs.base.wrapping_add(registers.rip);
        let byte = |n: u64| {
            let translation = self.run.fd().translate_gva(start.wrapping_add(n)).ok()?;
            let present = translation.valid != 0;
            present.then(|| ram.read_obj::<u8>(GuestAddress(translation.physical_address)).ok())?
        };
        Some((0..MAX_INSTRUCTION).map_while(byte).collect())
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
            Exit::Request(request) => Effect::Vm(request),
            Exit::Crash(reason, code) => return Err(self.crash(reason, code)),
        };
        Ok(Step::of(effect))
    }

    fn kicker(&self) -> Kicker {
        self.run.kicker()
    }

    fn registers(&self) -> Result<Registers, VmError> {
        let (regs, sregs) = match self.run.registers_to_set() {
            Some(set) => set,
            None => (self.run.fd().get_regs().map_err(call("KVM_GET_REGS"))?, self.sregs()?),
        };
        Ok(Registers::from_kvm(&regs, &sregs))
    }

    fn set_registers(&mut self, registers: &Registers) -> Result<(), VmError> {
        let mut sregs = match self.run.registers_to_set() {
            Some((_, sregs)) => sregs,
            None if !self.run.has_run() && self.vm.config.irqchip == Irqchip::Kernel => {
                arch::reset_sregs(self.index)
            }
            None => self.sregs()?,
        };
        registers.apply_to_kvm_sregs(&mut sregs);
        let regs = registers.to_kvm_regs();
        if self.index == 0 {
            self.run.set_registers(regs, sregs);
            return Ok(());
        }
        // Another vCPU may wait to be started, and what is set now must not come after what starts it.
        self.run.fd().set_sregs(&sregs).map_err(call("KVM_SET_SREGS"))?;
        self.run.fd().set_regs(&regs).map_err(call("KVM_SET_REGS"))
    }

    fn stats_reader(&self) -> Result<StatsReader, VmError> {
        StatsReader::new(sys::stats_fd(self.run.fd()).map_err(call("KVM_GET_STATS_FD"))?)
    }
}
