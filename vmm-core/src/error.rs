//! What can go wrong on the host's side while a virtual machine is set up.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use ossature_boot::CacheError;
use ossature_memory::DirtyLogError;

/// Something that KVM must be able to do for this crate to work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Capability {
    /// Guest RAM from memory of this process (`KVM_CAP_USER_MEMORY`).
    UserMemory,
    /// Interrupt controllers inside the kernel (`KVM_CAP_IRQCHIP`).
    Irqchip,
    /// A table of interrupt routes, for message-signalled interrupts (`KVM_CAP_IRQ_ROUTING`).
    IrqRouting,
    /// Interrupts raised through an eventfd (`KVM_CAP_IRQFD`).
    Irqfd,
    /// Guest writes that signal an eventfd (`KVM_CAP_IOEVENTFD`).
    Ioeventfd,
    /// Guests start and stop processors by PSCI (`KVM_CAP_ARM_PSCI_0_2`).
    Psci,
    /// Leaving the guest at once (`KVM_CAP_IMMEDIATE_EXIT`, Linux 4.11).
    ImmediateExit,
    /// Registers set through the shared page (`KVM_CAP_SYNC_REGS`, Linux 4.17).
    SyncRegs,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UserMemory => "KVM_CAP_USER_MEMORY (guest RAM from this process)",
            Self::Irqchip => "KVM_CAP_IRQCHIP (interrupt controllers in the kernel)",
            Self::IrqRouting => "KVM_CAP_IRQ_ROUTING (message-signalled interrupts)",
            Self::Irqfd => "KVM_CAP_IRQFD (interrupts through an eventfd)",
            Self::Ioeventfd => "KVM_CAP_IOEVENTFD (guest writes that signal an eventfd)",
            Self::Psci => "KVM_CAP_ARM_PSCI_0_2 (guests start processors by PSCI)",
            Self::ImmediateExit => "KVM_CAP_IMMEDIATE_EXIT (Linux 4.11 or newer)",
            Self::SyncRegs => "KVM_CAP_SYNC_REGS (Linux 4.17 or newer)",
        })
    }
}

/// The host could not do what a virtual machine asked of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// There is no KVM device.
    #[error(
        "{}: not found: the processor or the outer hypervisor offers no virtualization, or the kernel's \
         kvm_intel or kvm_amd module is not loaded",
        path.display()
    )]
    NoKvm {
        /// The device node.
        path: PathBuf,
    },
    /// The KVM device exists, but not for this user.
    #[error(
        "{}: permission denied: it belongs to group `{group}`; add the user with `usermod -aG {group} USER` \
         and log in again",
        path.display()
    )]
    Permission {
        /// The device node.
        path: PathBuf,
        /// The group that owns it, by name where it has one.
        group: String,
    },
    /// The KVM device cannot be opened for another reason.
    #[error("{}: cannot be opened: {source}", path.display())]
    Open {
        /// The device node.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The device speaks another version of the interface. It has been 12 since Linux 2.6.22.
    #[error("KVM speaks version {found} of its interface; version 12 is needed")]
    ApiVersion {
        /// What it answered.
        found: i32,
    },
    /// KVM lacks something without which this crate cannot work.
    #[error("this kernel's KVM lacks {}", list(missing))]
    MissingCapabilities {
        /// Everything that it lacks.
        missing: Vec<Capability>,
    },
    /// A vCPU index beyond what the host's KVM allows, or what the machine was created for.
    #[error("{} vCPUs are more than the {max} that are possible here", u64::from(*index) + 1)]
    TooManyVcpus {
        /// The vCPU, from 0.
        index: u32,
        /// How many there can be.
        max: u32,
    },
    /// A vCPU whose number is too high: packages of processors begin at numbers that are multiples of a power of two.
    #[error(
        "vCPU {index} would have the APIC id {number}, of which there are {max} here: NUMA nodes with as many vCPUs each take \
         the fewest"
    )]
    VcpuNumber {
        /// The vCPU, from 0.
        index: u32,
        /// Its number.
        number: u32,
        /// The first one that cannot be.
        max: u32,
    },
    /// Guest RAM was set before; it is set once in a machine's life.
    #[error("the machine already has its RAM")]
    MemoryAlreadySet,
    /// The machine has no interrupt controller, but is asked for an interrupt.
    #[error("interrupt {gsi} needs a machine with an interrupt controller")]
    NoIrqchip {
        /// The interrupt line.
        gsi: u32,
    },
    /// All interrupt lines for message-signalled interrupts are taken.
    #[error("all {max} message-signalled interrupt routes are taken")]
    NoFreeRoute {
        /// How many there are.
        max: u32,
    },
    /// The interrupt line is no message-signalled one.
    #[error("interrupt {gsi} has no message-signalled route")]
    NoSuchRoute {
        /// The interrupt line.
        gsi: u32,
    },
    /// KVM does not take a model-specific register.
    #[error("KVM refused to set MSR {msr:#x} of vCPU {index} to {value:#x}")]
    MsrRefused {
        /// The vCPU.
        index: u32,
        /// The register.
        msr: u32,
        /// The value.
        value: u64,
    },
    /// KVM does not take the value of a register.
    #[error("KVM refused to set {register} of vCPU {index} to {value}: {source}")]
    RegisterRefused {
        /// The vCPU.
        index: u32,
        /// The register, by the name that the architecture gives it where that is known here.
        register: String,
        /// The value.
        value: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Dirty pages cannot be logged.
    #[error("dirty pages cannot be logged: {source}")]
    DirtyLog {
        /// Why not.
        source: DirtyLogError,
    },
    /// A vCPU cannot have the features that were asked for.
    #[error("vCPU {index} cannot be as it is configured: {source}")]
    VcpuConfig {
        /// The vCPU.
        index: u32,
        /// The feature, and what is wrong with it.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The guest cannot be told of the caches that it is to have.
    #[error("caches: {source}")]
    Caches {
        /// What is wrong with them.
        source: CacheError,
    },
    /// The host lacks something that the vCPU had where its state was saved.
    #[error("the host's processor, or its KVM, lacks what the guest has: {feature}")]
    MissingFeature {
        /// What.
        feature: String,
    },
    /// A state that this machine or vCPU cannot be in.
    #[error("the state cannot be taken over: its {part} is {reason}")]
    InvalidState {
        /// The part of it.
        part: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The guest has told its interrupt controller to keep something where there is no memory, so its state cannot be read.
    #[error("the machine cannot be saved: the guest has {what} where it has no memory")]
    NotInMemory {
        /// What.
        what: &'static str,
    },
    /// A system call failed.
    #[error("{call} failed: {source}")]
    Call {
        /// Its name as the kernel documents it.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// This back end has no such thing.
    #[error("{what} is not available here")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
    },
}

impl VmError {
    /// What a listener of this crate said.
    pub(crate) fn from_listener(error: Box<dyn Error + Send + Sync>) -> Self {
        let refused = Self::Unsupported { what: "this guest memory" };
        error.downcast().map_or(refused, |error: Box<Self>| *error)
    }

    /// A state that another back end made.
    pub(crate) fn foreign_state() -> Self {
        Self::InvalidState { part: "back end", reason: "another one" }
    }
}

fn list(missing: &[Capability]) -> String {
    missing.iter().map(Capability::to_string).collect::<Vec<_>>().join(", ")
}

/// An error's text with those of the errors behind it (its sources), as far as it does not say them itself: what a
/// program tells its user before it ends.
///
/// ```
/// # use std::io::Error;
/// let error = ossature_core::VmError::Call { call: "KVM_CREATE_VM", source: Error::from_raw_os_error(24) };
/// assert_eq!(ossature_core::error_chain(&error), "KVM_CREATE_VM failed: Too many open files (os error 24)");
/// ```
pub fn error_chain(error: &(dyn Error + 'static)) -> String {
    let (mut text, mut next) = (error.to_string(), error.source());
    while let Some(error) = next {
        let what = error.to_string();
        if !text.contains(&what) {
            text = format!("{text}: {what}");
        }
        next = error.source();
    }
    text
}
