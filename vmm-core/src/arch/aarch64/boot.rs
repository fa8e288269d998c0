//! How Linux boots here.

use ossature_boot::Platform;
use ossature_boot::aarch64::{self, BootError, BootSpec, Tables};
use ossature_memory::GuestMmap;

use super::registers::Registers;
use crate::arch::linux::{Linux, Start, StartError};

/// What a kernel is started with on this architecture only.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinuxOptions {
    tables: Tables,
}

impl Linux {
    /// On a machine that is described by these tables: a device tree by default. On aarch64 only.
    #[must_use]
    pub fn tables(mut self, tables: Tables) -> Self {
        self.options.tables = tables;
        self
    }
}

/// Puts a kernel into guest memory, and says how vCPU 0 starts.
pub(crate) fn load_linux(
    memory: &GuestMmap,
    platform: &Platform,
    start: &Start,
    options: &LinuxOptions,
) -> Result<Registers, StartError> {
    let mut seed = [0; 64];
    getrandom::fill(&mut seed).map_err(|error| StartError::Other(error.into()))?;
    let mut spec = BootSpec::new(start.kernel, start.cmdline);
    spec.initrd = start.initrd;
    spec.seed = Some(&seed);
    spec.tables = options.tables;
    match aarch64::prepare(memory, platform, &spec) {
        Ok(booted) => {
            let mut registers =
                Registers { pc: booted.cpu.pc, pstate: booted.cpu.pstate, ..Registers::default() };
            if let Some(first) = registers.x.first_mut() {
                *first = booted.cpu.x0;
            }
            Ok(registers)
        }
        Err(BootError::Kernel(error)) => Err(StartError::Kernel(error.into())),
        Err(
            error
            @ (BootError::ReadInitrd { .. } | BootError::EmptyInitrd | BootError::InitrdTooLarge { .. }),
        ) => Err(StartError::Initrd(error.into())),
        Err(error) => Err(StartError::Other(error.into())),
    }
}
