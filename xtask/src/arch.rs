//! The processor architectures that guests and nested machines have: what differs between them, in one table.

use clap::ValueEnum;

/// An architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Arch {
    /// 64-bit x86.
    #[value(name = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    #[value(name = "aarch64")]
    Aarch64,
}

/// What is different on each.
#[derive(Debug)]
pub struct Facts {
    /// As the compiler names it.
    pub target: &'static str,
    /// As Debian names it.
    pub debian: &'static str,
    /// The guest's first serial port in the example VMM.
    pub console: &'static str,
    /// The kernel command line of the guests that `xtask report` measures: as the example VMM's, but quiet, because a
    /// console's speed is not the point.
    pub report_cmdline: &'static str,
    /// What emulates the nested machine, with what it consists of.
    pub qemu: &'static [&'static str],
    /// Its processor.
    pub cpu: &'static str,
    /// What its processor has or lacks beside that where time counts, and not instructions.
    pub sooner: &'static str,
    /// What runs a program of it on another architecture, as far as the program asks little of its kernel.
    pub emulator: &'static str,
    /// The nested machine's own serial port, and what else its kernel is told.
    pub nested_cmdline: &'static str,
    /// What the nested machine's kernel has as modules and only this architecture needs.
    pub nested_modules: &'static [&'static str],
}

const X86_64: Facts = Facts {
    target: "x86_64-unknown-linux-gnu",
    debian: "amd64",
    console: "ttyS0",
    report_cmdline: "console=ttyS0 8250.nr_uarts=1 panic=-1 pci=off quiet",
    qemu: &["qemu-system-x86_64", "-M", "q35"],
    cpu: "max,+svm",
    // Kernels copy and clear by single bytes where a processor says that it is fast at it; the emulator takes as long for a
    // byte as for eight.
    sooner: ",-erms,-fsrm",
    emulator: "qemu-x86_64",
    nested_cmdline: "console=ttyS0 8250.nr_uarts=1 mitigations=off",
    nested_modules: &["kvm-amd", "dm-mod"],
};

const AARCH64: Facts = Facts {
    target: "aarch64-unknown-linux-gnu",
    debian: "arm64",
    console: "ttyAMA0",
    report_cmdline: "console=ttyAMA0 panic=-1 quiet",
    qemu: &["qemu-system-aarch64", "-M", "virt,virtualization=on"],
    // Pointer authentication by the algorithm that the architecture prescribes takes the emulator half of its time.
    cpu: "max,pauth-impdef=on",
    sooner: "",
    emulator: "qemu-aarch64",
    nested_cmdline: "console=ttyAMA0 mitigations=off",
    nested_modules: &[],
};

impl Arch {
    /// This host's.
    pub const HOST: Self = if cfg!(target_arch = "aarch64") { Self::Aarch64 } else { Self::X86_64 };

    /// What is different on it.
    pub fn facts(self) -> &'static Facts {
        match self {
            Self::X86_64 => &X86_64,
            Self::Aarch64 => &AARCH64,
        }
    }

    /// Programs for it run on this host as they are.
    pub fn is_host(self) -> bool {
        self == Self::HOST
    }
}
