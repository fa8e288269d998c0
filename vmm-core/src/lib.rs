//! KVM and vCPUs.
#![deny(unsafe_code)]

mod arch;
mod backend;
mod crash;
mod error;
mod kick;
mod kvm;
pub mod scripted;
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
