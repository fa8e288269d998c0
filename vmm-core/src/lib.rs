//! KVM, vCPUs and machines: the part of the Ossature VMM SDK that runs guests.
//!
//! Three levels, each usable without the ones above it:
//!
//! - [`Kvm`] opens the host's KVM and makes [`Vm`]s: RAM, interrupts, doorbells, register pages. What is connected to
//!   a [`Vm`] is a guard ([`Irqfd`], [`Ioeventfd`], [`MsiRoute`], [`MemorySlot`]); dropping it disconnects it.
//! - A [`Vcpu`] runs the guest step by step, on whatever thread calls [`Vcpu::run_once`], and has the two
//!   [`Buses`] answer the guest's accesses. A [`Kicker`] makes it leave the guest, from any thread.
//! - [`machine`] builds whole machines from devices and a kernel, with vCPU threads and a life cycle: start, pause,
//!   reset in place, stop; snapshots; devices that come and go; handles and events for other threads.
//!
//! [`program`] is for a VMM that is a process of its own: signals, messages, arguments.
//!
//! [`scripted`] stands in for KVM: a script plays the guest, so that a VMM's tests need no `/dev/kvm`.
//!
//! ```
//! use std::sync::Arc;
//!
//! use ossature_bus::{Access, AddressSpace, Bus, BusFault, Effect, Mmio, Size, VmRequest};
//! use ossature_core::scripted::{Script, Scripted};
//! use ossature_core::{Buses, Hypervisor, Step, VmConfig};
//!
//! /// A register that powers the machine off.
//! struct PowerOff;
//!
//! impl Mmio for PowerOff {
//!     fn read(&self, _: Access) -> Result<u64, BusFault> {
//!         Err(BusFault::WriteOnly)
//!     }
//!     fn write(&self, _: Access, _: u64) -> Result<Effect, BusFault> {
//!         Ok(Effect::Vm(VmRequest::Shutdown))
//!     }
//! }
//!
//! let memory = Bus::new(AddressSpace::Mmio);
//! memory.insert(0xd000_0000, 4, "power", Arc::new(PowerOff))?;
//! let ports = Bus::new(AddressSpace::Pio);
//!
//! // On a host with KVM: `let hypervisor = Kvm::open()?`.
//! let hypervisor = Scripted::new([Script::new().mmio_write(0xd000_0000, Size::B4, 1)]);
//! let vm = hypervisor.create_vm(&VmConfig::default())?;
//! let mut vcpu = vm.create_vcpu(0, Buses::new(ports.cursor(), memory.cursor()))?;
//! let end = loop {
//!     match vcpu.run_once()? {
//!         Step::Handled | Step::Interrupted => {}
//!         step => break step,
//!     }
//! };
//! assert_eq!(end, Step::Effect(Effect::Vm(VmRequest::Shutdown)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it does to the process
//!
//! No globals, and no signal handlers unless a VMM asks for them ([`program`], [`install_kick_handler`]). A thread that
//! runs a vCPU gets the kick signal blocked, and no other signal changed; see [`KickSignal`] for the choices. Several
//! hypervisors, machines and versions of this crate can live in one process.
//!
//! The kernel sends signals for I/O that it refuses, and their default is to end the process: SIGXFSZ for a file beyond
//! the limit on file sizes (`ulimit -f`), such as a disk or the log of a serial port that grows, SIGPIPE for a pipe that
//! nobody reads. To have errors instead, which devices report and their guests see, block or ignore both before the
//! machine is built, as [`program::block_io_signals`] does. (Rust's runtime ignores SIGPIPE in a program whose `main` is
//! Rust's, and leaves SIGXFSZ as it is.)
//!
//! # Errors
//!
//! Each error's `Display` says what is behind it. A program whose `main` returns a [`Failure`] shows it so.
//!
//! What the host cannot do is a [`VmError`]. A guest that cannot go on is a [`VcpuError::Crash`] with registers
//! and code. The guest's accesses to what does not exist are no errors: reads give all ones, writes nothing, and
//! the [`Buses`]' cursors count them.
//!
//! The code of a device or of the VMM that panics, on a vCPU's thread or in a handler that belongs to a machine, ends
//! that machine with [`Outcome::Panicked`](machine::Outcome::Panicked), and no other.
#![deny(unsafe_code)]

mod arch;
mod backend;
mod call;
mod config;
mod crash;
mod dirty_log;
mod error;
mod failure;
mod guard;
mod irq_routes;
mod kick;
mod kvm;
pub mod machine;
pub mod program;
pub mod scripted;
#[allow(unsafe_code)] // see the module
mod sigset;
mod state;
mod stats;
mod vcpu;

pub use arch::public::*;
pub use backend::{Doorbell, DoorbellAddress, Hypervisor, Vm};
pub use config::{Irqchip, VmConfig};
pub use crash::{CrashReason, VcpuCrash};
pub use dirty_log::GuestDirtyLog;
pub use error::{Capability, VmError, error_chain};
pub use failure::Failure;
pub use guard::{Ioeventfd, Irqfd, MemorySlot, MsiRoute};
pub use kick::{KickSignal, Kicker};
pub use kvm::{Capabilities, Emulation, Kvm, install_kick_handler};
pub use sigset::is_ignored as signal_is_ignored;
pub use state::{VcpuState, VmState};
pub use stats::{Stat, StatsReader};
pub use vcpu::{Buses, Step, Vcpu, VcpuError};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
