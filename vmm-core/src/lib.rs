//! KVM and vCPUs.
#![deny(unsafe_code)]

mod arch;
mod backend;
mod crash;
mod cursor;
pub use cursor::BusCursor;
mod error;
mod kick;
#[allow(unsafe_code)] // in run, signal, sys and vm: each block says why
mod kvm;
mod stats;
mod vcpu;

pub use arch::{Registers, Segment, Table};
pub use backend::{Doorbell, DoorbellAddress, Hypervisor, Irqchip, MsiMessage, Vm, VmConfig};
pub use crash::{CrashReason, VcpuCrash};
pub use error::{Capability, VmError};
pub use kick::{KickSignal, Kicker};
pub use kvm::{Capabilities, Kvm, install_kick_handler};
pub use stats::{Stat, StatsReader};
pub use vcpu::{Buses, Step, Vcpu, VcpuError};
