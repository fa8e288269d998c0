//! What this host's `/dev/kvm` can do.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;

/// Major 10 and minor 232: the numbers of `/dev/kvm` (Linux, `admin-guide/devices.txt`).
const KVM_NUMBER: u64 = 10 << 8 | 232;

/// What can run guests with stock kernels here, if anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kvm {
    /// The processor's own virtualization: any guest runs.
    Full,
    /// There is a KVM, but it emulates in software: small guests only.
    Limited,
    /// There is none that this user may open: why.
    Missing(String),
}

impl Kvm {
    /// Asks the host.
    pub fn detect() -> Kvm {
        let device = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        match device.and_then(|device| device.metadata()) {
            Err(error) => return Kvm::Missing(format!("/dev/kvm: {error}")),
            Ok(file) if file.rdev() != KVM_NUMBER => return Kvm::Missing("/dev/kvm is not KVM".to_owned()),
            Ok(_) => {}
        }
        if has_virtualization(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()) {
            Kvm::Full
        } else {
            Kvm::Limited
        }
    }

    /// One line that says where guests with stock kernels run.
    pub fn summary(&self) -> String {
        match self {
            Kvm::Full => "this host's KVM runs stock kernels: guests run directly".to_owned(),
            Kvm::Limited => {
                "the processor has neither vmx nor svm: guests run in a nested machine, emulated by QEMU"
                    .to_owned()
            }
            Kvm::Missing(why) => format!("{why}: guests run in a nested machine, emulated by QEMU"),
        }
    }
}

fn has_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.strip_prefix("flags"))
        .any(|flags| flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_is_a_whole_word_on_the_right_line() {
        assert!(has_virtualization("processor\t: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(has_virtualization("flags\t\t: fpu svm\n"));
        assert!(!has_virtualization("flags\t\t: fpu svm_lock avmx\nmodel name\t: svm\n"));
    }
}
