//! How the boot processor starts, by the kernel's protocol (`Documentation/arch/arm64/booting.rst`).

/// PSTATE: EL1 with its own stack pointer, debug exceptions, SErrors, IRQs and FIQs masked.
const EL1H_MASKED: u64 = 0x3c5;

/// The registers with which the boot processor starts. The others are zero, its MMU and its data cache are off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CpuState {
    /// The device tree's address.
    pub x0: u64,
    /// The kernel's entry point.
    pub pc: u64,
    /// Exception level and masks.
    pub pstate: u64,
}

impl CpuState {
    pub(super) const fn new(entry: u64, fdt: u64) -> Self {
        Self { x0: fdt, pc: entry, pstate: EL1H_MASKED }
    }
}
