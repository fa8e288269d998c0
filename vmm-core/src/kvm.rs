//! KVM: opening it, what it can do, making virtual machines.

#[allow(unsafe_code)]
mod run;
#[allow(unsafe_code)]
mod signal;
#[allow(unsafe_code)]
mod sys;
mod vcpu;
#[allow(unsafe_code)]
mod vm;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Cap;
use vmm_sys_util::errno;

use crate::backend::sealed::Sealed;
use crate::{Capability, Hypervisor, Vm, VmConfig, VmError};

pub use signal::install_kick_handler;

/// The version of the interface since Linux 2.6.22 (`KVM_GET_API_VERSION`).
const API_VERSION: i32 = 12;

/// Where KVM is.
const DEVICE: &str = "/dev/kvm";

/// What a machine cannot be made without.
const REQUIRED: [(Capability, Cap); 7] = [
    (Capability::UserMemory, Cap::UserMemory),
    (Capability::Irqchip, Cap::Irqchip),
    (Capability::IrqRouting, Cap::IrqRouting),
    (Capability::Irqfd, Cap::Irqfd),
    (Capability::Ioeventfd, Cap::Ioeventfd),
    (Capability::ImmediateExit, Cap::ImmediateExit),
    (Capability::SyncRegs, Cap::SyncRegs),
];

/// The host's KVM. Cheap to clone; one serves any number of machines.
#[derive(Clone, Debug)]
pub struct Kvm {
    host: Arc<Host>,
}

/// The open device, and what is asked of it once.
#[derive(Debug)]
struct Host {
    kvm: kvm_ioctls::Kvm,
    cpuid: OnceLock<Vec<kvm_cpuid_entry2>>,
    register_pages: OnceLock<bool>,
    tsc_deadline: OnceLock<bool>,
}

/// What this host's KVM can do beyond what every machine needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The most vCPUs that one machine can have.
    pub max_vcpus: u32,
    /// The most pieces of memory (RAM slots and register pages) that one machine can have.
    pub memory_slots: u32,
    /// Whether register pages can be read without an exit.
    pub register_pages: bool,
    /// Whether there are counters (`KVM_GET_STATS_FD`).
    pub stats: bool,
    /// Whether the local APIC's timer has a TSC-deadline mode.
    pub tsc_deadline: bool,
}

impl Kvm {
    /// Opens `/dev/kvm` and checks that it can do what machines need.
    pub fn open() -> Result<Self, VmError> {
        Self::open_at(Path::new(DEVICE))
    }

    /// As [`open`](Self::open), with the device node at another path.
    pub fn open_at(path: &Path) -> Result<Self, VmError> {
        let kvm = sys::open_kvm(path).map_err(|e| open_error(path, e))?;
        // The newest of what is required: a kernel that has it has the others, and one question does.
        if !kvm.check_extension(Cap::SyncRegs) {
            let found = kvm.get_api_version();
            if found != API_VERSION {
                return Err(VmError::ApiVersion { found });
            }
            check(|cap| kvm.check_extension(cap))?;
        }
        let host = Host {
            kvm,
            cpuid: OnceLock::new(),
            register_pages: OnceLock::new(),
            tsc_deadline: OnceLock::new(),
        };
        Ok(Self { host: Arc::new(host) })
    }

    /// What this host's KVM can do.
    pub fn capabilities(&self) -> Capabilities {
        let kvm = &self.host.kvm;
        Capabilities {
            max_vcpus: saturating(kvm.get_max_vcpus()),
            memory_slots: saturating(kvm.get_nr_memslots()),
            register_pages: self.host.register_pages(),
            stats: kvm.check_extension_raw(kvm_bindings::KVM_CAP_BINARY_STATS_FD.into()) > 0,
            tsc_deadline: self.host.tsc_deadline(),
        }
    }
}

impl Sealed for Kvm {}

impl Hypervisor for Kvm {
    fn create_vm(&self, config: &VmConfig) -> Result<Box<dyn Vm>, VmError> {
        Ok(Box::new(vm::KvmVm::new(&self.host, config)?))
    }
}

impl Host {
    /// The CPUID that KVM can give to guests. The same for all machines, so asked once.
    fn cpuid(&self) -> Result<&[kvm_cpuid_entry2], VmError> {
        if let Some(cpuid) = self.cpuid.get() {
            return Ok(cpuid);
        }
        let cpuid =
            self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(call("KVM_GET_SUPPORTED_CPUID"))?;
        Ok(self.cpuid.get_or_init(|| cpuid.as_slice().to_vec()))
    }

    fn register_pages(&self) -> bool {
        *self.register_pages.get_or_init(|| self.kvm.check_extension(Cap::ReadonlyMem))
    }

    fn tsc_deadline(&self) -> bool {
        *self.tsc_deadline.get_or_init(|| self.kvm.check_extension(Cap::TscDeadlineTimer))
    }
}

fn check(has: impl Fn(Cap) -> bool) -> Result<(), VmError> {
    let missing: Vec<_> = REQUIRED.iter().filter(|(_, cap)| !has(*cap)).map(|(name, _)| *name).collect();
    if missing.is_empty() { Ok(()) } else { Err(VmError::MissingCapabilities { missing }) }
}

fn saturating(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Turns a failed ioctl into an error that names it.
fn call(call: &'static str) -> impl FnOnce(errno::Error) -> VmError {
    move |e| VmError::Call { call, source: e.into() }
}

/// Does an ioctl again that a signal interrupted before it had any effect.
fn retry<T>(mut ioctl: impl FnMut() -> errno::Result<T>) -> errno::Result<T> {
    loop {
        match ioctl() {
            Err(e) if e.errno() == libc::EINTR => {}
            result => return result,
        }
    }
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
