//! How Linux boots here, and from the state in which a payload wants to start to a vCPU's registers.

use ossature_boot::Platform;
use ossature_boot::x86_64::smbios::Smbios;
use ossature_boot::x86_64::{self, BootError, BootProtocol, BootSpec, cpu};
use ossature_memory::GuestMmap;

use super::registers::{Registers, SegmentRegister, Table};
use crate::arch::linux::{Linux, Start, StartError};

/// What a kernel is started with on this architecture only.
#[derive(Clone, Debug)]
pub(crate) struct LinuxOptions {
    complete_cmdline: bool,
    smbios: Option<Smbios>,
    protocol: BootProtocol,
}

impl Default for LinuxOptions {
    fn default() -> Self {
        Self { complete_cmdline: true, smbios: Some(Smbios::new()), protocol: BootProtocol::default() }
    }
}

impl Linux {
    /// Has the machine put what it needs ([`machine_words`](ossature_boot::x86_64::machine_words)), such as `pci=off`
    /// without PCI, before the [command line](Self::cmdline), but for parameters that the command line sets; which it does
    /// by default. Or leaves the command line as it is. On x86_64 only.
    #[must_use]
    pub fn complete_cmdline(mut self, complete: bool) -> Self {
        self.options.complete_cmdline = complete;
        self
    }

    /// On a machine that says that it is this one: vendor, product, serial number, UUID, OEM strings. `None` leaves the
    /// SMBIOS tables out. On x86_64 only.
    #[must_use]
    pub fn smbios(mut self, smbios: impl Into<Option<Smbios>>) -> Self {
        self.options.smbios = smbios.into();
        self
    }

    /// Entered by this protocol. On x86_64 only.
    #[must_use]
    pub fn protocol(mut self, protocol: BootProtocol) -> Self {
        self.options.protocol = protocol;
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
    let mut spec = BootSpec::new(start.kernel, start.cmdline);
    spec.initrd = start.initrd;
    spec.complete_cmdline = options.complete_cmdline;
    spec.smbios = options.smbios.as_ref();
    spec.protocol = options.protocol;
    match x86_64::prepare(memory, platform, &spec) {
        Ok(booted) => Ok(booted.cpu.into()),
        Err(BootError::Kernel(error)) => Err(StartError::Kernel(error.into())),
        Err(
            error
            @ (BootError::ReadInitrd { .. } | BootError::EmptyInitrd | BootError::InitrdTooLarge { .. }),
        ) => Err(StartError::Initrd(error.into())),
        Err(error) => Err(StartError::Other(error.into())),
    }
}

impl From<cpu::CpuState> for Registers {
    fn from(state: cpu::CpuState) -> Self {
        let data = state.data.into();
        Self {
            rip: state.rip,
            rbx: state.rbx,
            rsi: state.rsi,
            rflags: state.rflags,
            cr0: state.cr0,
            cr3: state.cr3,
            cr4: state.cr4,
            efer: state.efer,
            cs: state.cs.into(),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: state.tr.into(),
            gdt: state.gdt.into(),
            idt: state.idt.into(),
            ..Self::default()
        }
    }
}

impl From<cpu::SegmentRegister> for SegmentRegister {
    fn from(segment: cpu::SegmentRegister) -> Self {
        /// The segment is present and of privilege level 0.
        const PRESENT: u16 = 1 << 7;
        let bit = |set: bool, at: u32| u16::from(set) << at;
        Self {
            selector: segment.selector,
            base: segment.base,
            limit: segment.limit,
            access: u16::from(segment.kind)
                | bit(segment.code_or_data, 4)
                | PRESENT
                | bit(segment.long, 13)
                | bit(segment.db, 14)
                | bit(segment.granularity, 15),
        }
    }
}

impl From<cpu::DescriptorTable> for Table {
    fn from(table: cpu::DescriptorTable) -> Self {
        Self { base: table.base, limit: table.limit }
    }
}
