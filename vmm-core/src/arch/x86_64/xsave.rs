//! The FPU and vector registers, as XSAVE lays them out.

use kvm_bindings::{Xsave, kvm_xsave};
use kvm_ioctls::{Cap, VcpuFd, VmFd};

use crate::VmError;
use crate::call::call;

/// Bytes of what every kernel has.
const REGION: usize = size_of::<kvm_xsave>();
const WORD: usize = size_of::<u32>();

/// How many bytes the kernel reads and writes: more than a page where guests may have AMX.
fn size(vm: &VmFd) -> usize {
    usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or(0).max(REGION).next_multiple_of(WORD)
}

fn buffer(size: usize) -> Result<Xsave, VmError> {
    Xsave::new((size - REGION) / WORD)
        .map_err(|_| VmError::Unsupported { what: "an XSAVE area of this size" })
}

/// Reads the area.
pub(super) fn read(vm: &VmFd, vcpu: &VcpuFd) -> Result<Vec<u32>, VmError> {
    let size = size(vm);
    if size == REGION {
        return Ok(vcpu.get_xsave().map_err(call("KVM_GET_XSAVE"))?.region.to_vec());
    }
    let mut area = buffer(size)?;
    // SAFETY: the area is as long as the kernel says.
    unsafe { vcpu.get_xsave2(&mut area) }.map_err(call("KVM_GET_XSAVE2"))?;
    let mut words = area.as_fam_struct_ref().xsave.region.to_vec();
    words.extend_from_slice(area.as_slice());
    Ok(words)
}

/// Writes the area, which must be as long as this host's.
pub(super) fn write(vm: &VmFd, vcpu: &VcpuFd, words: &[u32]) -> Result<(), VmError> {
    let size = size(vm);
    let (region, extra) = words
        .split_first_chunk()
        .filter(|_| words.len() * WORD == size)
        .ok_or(VmError::InvalidState { part: "XSAVE area", reason: "not as long as this host's" })?;
    let mut area = buffer(size)?;
    area.as_mut_slice().copy_from_slice(extra);
    // SAFETY: the length of the area stays as it is.
    unsafe { area.as_mut_fam_struct() }.xsave.region = *region;
    // SAFETY: the area is as long as the kernel says.
    unsafe { vcpu.set_xsave2(&area) }.map_err(call("KVM_SET_XSAVE"))
}
