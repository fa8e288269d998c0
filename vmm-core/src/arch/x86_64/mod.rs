//! x86: registers, CPUID, the MSRs that a boot needs, interrupt routes.

mod boot;
mod cpuid;
mod irq;
mod msrs;
mod registers;

pub(crate) use cpuid::{CpuFeatures, cpuid};
pub(crate) use irq::IrqRoutes;
pub(crate) use msrs::boot_msrs;
pub(crate) use registers::reset_sregs;
pub use registers::{Registers, Segment, Table};

/// Three pages below the BIOS area that Intel hosts without unrestricted guests use for real mode. KVM puts
/// its identity map on the page before them. No RAM and no device may be there.
pub(crate) const TSS_ADDRESS: usize = 0xfffb_d000;
