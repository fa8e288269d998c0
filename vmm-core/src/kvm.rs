//! KVM: opening it, what it can do, making virtual machines.

mod dirty;
mod emulation;
mod host;
mod reset;
#[allow(unsafe_code)]
mod ring;
#[allow(unsafe_code)]
mod run;
mod shared;
#[allow(unsafe_code)]
mod signal;
#[allow(unsafe_code)]
mod slots;
#[allow(unsafe_code)]
mod sys;
mod vcpu;
mod vm;

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kvm_ioctls::Cap;

use self::host::Host;
use crate::arch;
use crate::backend::sealed::Sealed;
use crate::state::VcpuStateOf;
use crate::{Hypervisor, VcpuState, Vm, VmConfig, VmError};

pub use emulation::Emulation;
pub use signal::install_kick_handler;

/// The version of the interface since Linux 2.6.22 (`KVM_GET_API_VERSION`).
const API_VERSION: i32 = 12;

/// Where KVM is.
const DEVICE: &str = "/dev/kvm";

/// The host's KVM. Cheap to clone; one serves any number of machines.
#[derive(Clone, Debug)]
pub struct Kvm {
    host: Arc<Host>,
}

/// What this host's KVM can do beyond what every machine needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The most vCPUs that one machine can have.
    pub max_vcpus: u32,
    /// The most pieces of memory (RAM slots and register pages) that one machine can have.
    pub memory_slots: u32,
    /// True if register pages can be read without an exit.
    pub register_pages: bool,
    /// The most entries that a [ring of dirty pages](crate::VmConfig::dirty_ring) can have; 0 if there are no rings.
    pub dirty_ring: u32,
    /// True if there are counters (`KVM_GET_STATS_FD`).
    pub stats: bool,
}

impl Kvm {
    /// Opens `/dev/kvm` and checks that it can do what machines need.
    pub fn open() -> Result<Self, VmError> {
        Self::open_at(Path::new(DEVICE))
    }

    /// As [`open`](Self::open), with the device node at another path.
    pub fn open_at(path: &Path) -> Result<Self, VmError> {
        Self::new(sys::open_kvm(path).map_err(|e| open_error(path, e))?)
    }

    /// As [`open`](Self::open), with a device node that is open already, for reading and writing: for processes that
    /// cannot open it.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, VmError> {
        Self::new(sys::kvm_from_fd(fd))
    }

    /// A virtual machine that somebody else has created, on this KVM, such as one of a type that
    /// [`create_vm`](Hypervisor::create_vm) does not make. It must have no memory, no vCPUs and no interrupt controllers
    /// yet, and its guests as many bits of addresses as [`Hypervisor::address_bits`] says: KVM cannot be asked how many they are.
    pub fn vm_from_fd(&self, fd: OwnedFd, config: &VmConfig) -> Result<Box<dyn Vm>, VmError> {
        Ok(Box::new(vm::KvmVm::new(&self.host, config, Some(fd))?))
    }

    fn new(kvm: kvm_ioctls::Kvm) -> Result<Self, VmError> {
        // One question does, mostly.
        if !kvm.check_extension(arch::NEWEST) {
            let found = kvm.get_api_version();
            if found != API_VERSION {
                return Err(VmError::ApiVersion { found });
            }
            check(|cap| kvm.check_extension(cap))?;
        }
        Ok(Self { host: Arc::new(Host::new(kvm)) })
    }

    /// What this host's KVM can do.
    pub fn capabilities(&self) -> Capabilities {
        let kvm = &self.host.kvm;
        Capabilities {
            max_vcpus: self.host.max_vcpus(),
            memory_slots: host::saturating(kvm.get_nr_memslots()),
            register_pages: self.host.register_pages(),
            dirty_ring: self.host.dirty_ring(),
            stats: kvm.check_extension_raw(kvm_bindings::KVM_CAP_BINARY_STATS_FD.into()) > 0,
        }
    }

    /// Finds out if this KVM emulates the kernels of its guests, as that of a host without VMX or SVM does: a warning
    /// to give before a stock kernel seems to hang. Asks the processor alone where that has VMX or SVM; elsewhere, it
    /// times a loop of a guest of its own, for some milliseconds.
    ///
    /// ```no_run
    /// # use ossature_core::Kvm;
    /// if let Some(emulation) = Kvm::open()?.emulation()? {
    ///     eprintln!("warning: {emulation}");
    /// }
    /// # Ok::<(), ossature_core::VmError>(())
    /// ```
    pub fn emulation(&self) -> Result<Option<Emulation>, VmError> {
        Emulation::of(self)
    }
}

impl AsFd for Kvm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        sys::borrow(&self.host.kvm)
    }
}

impl Sealed for Kvm {}

impl Hypervisor for Kvm {
    fn create_vm(&self, config: &VmConfig) -> Result<Box<dyn Vm>, VmError> {
        Ok(Box::new(vm::KvmVm::new(&self.host, config, None)?))
    }

    fn address_bits(&self) -> u32 {
        arch::address_bits((&self.host.kvm, &self.host.facts))
    }

    fn check_states(&self, config: &VmConfig, vcpus: &[VcpuState]) -> Result<(), VmError> {
        let parts = vcpus.iter().map(|state| match &state.0 {
            VcpuStateOf::Kvm(parts) => Ok(&**parts),
            VcpuStateOf::Scripted(_) => Err(VmError::foreign_state()),
        });
        let parts = parts.collect::<Result<Vec<_>, _>>()?;
        arch::check_states(&parts, (&self.host.kvm, &self.host.facts), config)
    }
}

fn check(has: impl Fn(Cap) -> bool) -> Result<(), VmError> {
    let missing: Vec<_> =
        arch::REQUIRED.iter().filter(|(_, cap)| !has(*cap)).map(|(name, _)| *name).collect();
    if missing.is_empty() { Ok(()) } else { Err(VmError::MissingCapabilities { missing }) }
}

fn open_error(path: &Path, source: io::Error) -> VmError {
    let path = PathBuf::from(path);
    match source.kind() {
        io::ErrorKind::NotFound => VmError::NoKvm { path },
        io::ErrorKind::PermissionDenied => {
            let group = owning_group(&path, &fs::read_to_string("/etc/group").unwrap_or_default());
            VmError::Permission { path, group }
        }
        // A node whose driver is not loaded, as in some containers.
        _ if source.raw_os_error() == Some(libc::ENODEV) || source.raw_os_error() == Some(libc::ENXIO) => {
            VmError::NoKvm { path }
        }
        _ => VmError::Open { path, source },
    }
}

/// The name of the group that owns `path`, or its number. `groups` is the text of group(5).
fn owning_group(path: &Path, groups: &str) -> String {
    let Ok(gid) = fs::metadata(path).map(|m| m.gid().to_string()) else { return "kvm".into() };
    let name = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == gid).then(|| name.to_owned())
    });
    name.unwrap_or(gid)
}

#[cfg(test)]
mod tests;
