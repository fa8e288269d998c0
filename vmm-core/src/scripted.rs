//! A guest that follows a script, in place of KVM: tests of machines that need no `/dev/kvm`.
//!
//! A [`Script`] is what one vCPU does, step by step: accesses to ports, registers and RAM, what it expects to
//! read, interrupts that it waits for. [`Scripted`] gives the machine in which such vCPUs live. Interrupts and
//! doorbells work as KVM's do: an event that is connected to a line wakes a step that awaits it, and a write
//! that a doorbell answers does not reach the bus.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//!
//! use ossature_bus::{Access, AddressSpace, Bus, BusFault, Effect, MmioMut, Size, VmRequest};
//! use ossature_core::scripted::{Script, Scripted};
//! use ossature_core::{Buses, Hypervisor, Step, VmConfig};
//!
//! /// A register that keeps what is written to it, and asks for a reset when that is 0.
//! struct Latch(u64);
//!
//! impl MmioMut for Latch {
//!     fn read(&mut self, _: Access) -> Result<u64, BusFault> {
//!         Ok(self.0)
//!     }
//!     fn write(&mut self, _: Access, value: u64) -> Result<Effect, BusFault> {
//!         self.0 = value;
//!         Ok(if value == 0 { Effect::Vm(VmRequest::Reset) } else { Effect::None })
//!     }
//! }
//!
//! let ports = Bus::new(AddressSpace::Pio);
//! ports.insert(0x80, 1, "latch", Arc::new(Mutex::new(Latch(7))))?;
//!
//! let guest = Script::new()
//!     .pio_expect(0x80, Size::B1, 7)
//!     .pio_write(0x80, Size::B1, 9)
//!     .pio_expect(0x80, Size::B1, 9)
//!     .pio_write(0x80, Size::B1, 0);
//!
//! let scripted = Scripted::new([guest]);
//! let vm = scripted.create_vm(&VmConfig::default())?;
//! let memory = Bus::new(AddressSpace::Mmio);
//! let mut vcpu = vm.create_vcpu(0, Buses::new(ports.cursor(), memory.cursor()))?;
//! let end = loop {
//!     match vcpu.run_once()? {
//!         Step::Handled => {}
//!         step => break step,
//!     }
//! };
//! assert_eq!(end, Step::Effect(Effect::Vm(VmRequest::Reset)));
//! assert_eq!(scripted.remaining(), 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod vcpu;
mod vm;
mod wiring;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ossature_bus::Size;
use ossature_memory::vm_memory::GuestAddress;

use crate::backend::sealed::Sealed;
use crate::state::VcpuStateOf;
use crate::{Hypervisor, VcpuState, Vm, VmConfig, VmError};

/// What one vCPU does, in order. After the last step it is idle: it waits to be kicked, for ever.
#[derive(Clone, Debug, Default)]
pub struct Script {
    steps: Vec<Action>,
}

#[derive(Clone, Debug)]
enum Action {
    PioWrite { port: u16, size: Size, value: u64 },
    PioWriteBytes { port: u16, bytes: Vec<u8> },
    PioExpect { port: u16, size: Size, value: u64 },
    MmioWrite { address: u64, size: Size, value: u64 },
    MmioExpect { address: u64, size: Size, value: u64 },
    MmioRead { address: u64, size: Size },
    RamWrite { address: GuestAddress, bytes: Vec<u8> },
    RamExpect { address: GuestAddress, bytes: Vec<u8> },
    AwaitInterrupt { gsi: u32 },
    ExpectLine { gsi: u32, asserted: bool },
    AwaitKick,
    Halt,
    TripleFault,
}

impl Script {
    /// A script without steps.
    pub fn new() -> Self {
        Self::default()
    }

    fn then(mut self, action: Action) -> Self {
        self.steps.push(action);
        self
    }

    /// Writes to an I/O port.
    pub fn pio_write(self, port: u16, size: Size, value: u64) -> Self {
        self.then(Action::PioWrite { port, size, value })
    }

    /// Writes each byte to an I/O port, in one string instruction (`rep outsb`).
    pub fn pio_write_bytes(self, port: u16, bytes: &[u8]) -> Self {
        self.then(Action::PioWriteBytes { port, bytes: bytes.into() })
    }

    /// Reads from an I/O port; another value than `value` ends the run with an error.
    pub fn pio_expect(self, port: u16, size: Size, value: u64) -> Self {
        self.then(Action::PioExpect { port, size, value })
    }

    /// Writes to memory that is not RAM: to a doorbell, or to a register.
    pub fn mmio_write(self, address: u64, size: Size, value: u64) -> Self {
        self.then(Action::MmioWrite { address, size, value })
    }

    /// Reads from memory that is not RAM: from a register page, or from a register. Another value than `value`
    /// ends the run with an error.
    pub fn mmio_expect(self, address: u64, size: Size, value: u64) -> Self {
        self.then(Action::MmioExpect { address, size, value })
    }

    /// Reads from memory that is not RAM, and takes whatever comes.
    pub fn mmio_read(self, address: u64, size: Size) -> Self {
        self.then(Action::MmioRead { address, size })
    }

    /// Writes to RAM.
    pub fn ram_write(self, address: GuestAddress, bytes: &[u8]) -> Self {
        self.then(Action::RamWrite { address, bytes: bytes.into() })
    }

    /// Reads from RAM; other bytes than `bytes` end the run with an error.
    pub fn ram_expect(self, address: GuestAddress, bytes: &[u8]) -> Self {
        self.then(Action::RamExpect { address, bytes: bytes.into() })
    }

    /// Looks at level line `gsi`; another level than `asserted` ends the run with an error.
    pub fn expect_line(self, gsi: u32, asserted: bool) -> Self {
        self.then(Action::ExpectLine { gsi, asserted })
    }

    /// Halts until an event that is connected to line `gsi` is signalled, and takes all its signals, or until the line
    /// is asserted.
    pub fn await_interrupt(self, gsi: u32) -> Self {
        self.then(Action::AwaitInterrupt { gsi })
    }

    /// Computes without an access until the vCPU is kicked.
    pub fn await_kick(self) -> Self {
        self.then(Action::AwaitKick)
    }

    /// Ends [`run_once`](crate::Vcpu::run_once) with [`Step::Halted`](crate::Step::Halted), as HLT does on a
    /// machine without interrupt controllers.
    pub fn halt(self) -> Self {
        self.then(Action::Halt)
    }

    /// Crashes with [`CrashReason::TripleFault`](crate::CrashReason::TripleFault).
    pub fn triple_fault(self) -> Self {
        self.then(Action::TripleFault)
    }
}

/// A [`Hypervisor`] whose one machine has vCPUs that follow scripts. A clone is another handle to the same.
///
/// The script is the guest's whole life: after a reset, and with another state, it goes on with its next step. A state
/// holds the registers, and a machine's the level lines.
///
/// Differences from KVM: all vCPUs run from the start, at most 1024 of them; there are no counters.
#[derive(Clone, Debug)]
pub struct Scripted {
    /// Taken by the machine.
    scripts: Arc<Mutex<Option<Vec<Script>>>>,
    remaining: Arc<AtomicUsize>,
    address_bits: u32,
    messages: bool,
}

impl Scripted {
    /// The first script is vCPU 0's, and so on. A vCPU without one is idle.
    pub fn new(scripts: impl IntoIterator<Item = Script>) -> Self {
        let scripts: Vec<_> = scripts.into_iter().collect();
        let remaining = scripts.iter().map(|script| script.steps.len()).sum();
        Self {
            scripts: Arc::new(Mutex::new(Some(scripts))),
            remaining: Arc::new(AtomicUsize::new(remaining)),
            address_bits: ADDRESS_BITS,
            messages: true,
        }
    }

    /// The same where guests have so many bits of addresses: 52 if nothing is said.
    #[must_use]
    pub fn with_address_bits(mut self, address_bits: u32) -> Self {
        self.address_bits = address_bits;
        self
    }

    /// The same where messages are no interrupts, as with a GICv2.
    #[must_use]
    pub fn without_messages(mut self) -> Self {
        self.messages = false;
        self
    }

    /// The number of steps of all scripts that have not been done yet. A test asserts that it is 0 at its end.
    pub fn remaining(&self) -> usize {
        self.remaining.load(Ordering::Acquire)
    }
}

impl Sealed for Scripted {}

/// As many as there can be on any architecture.
const ADDRESS_BITS: u32 = 52;
/// As many as KVM allows by default on x86_64.
const MAX_VCPUS: u32 = 1024;

impl Hypervisor for Scripted {
    fn create_vm(&self, config: &VmConfig) -> Result<Box<dyn Vm>, VmError> {
        if config.cpus > MAX_VCPUS {
            return Err(VmError::TooManyVcpus { index: config.cpus - 1, max: MAX_VCPUS });
        }
        let scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner).take();
        let scripts =
            scripts.ok_or(VmError::Unsupported { what: "a second machine from the same scripts" })?;
        Ok(Box::new(vm::ScriptedVm::new(config, scripts, self)?))
    }

    fn address_bits(&self) -> u32 {
        self.address_bits
    }

    fn check_states(&self, _: &VmConfig, vcpus: &[VcpuState]) -> Result<(), VmError> {
        let foreign = vcpus.iter().any(|state| !matches!(state.0, VcpuStateOf::Scripted(_)));
        if foreign { Err(VmError::foreign_state()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
