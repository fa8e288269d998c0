//! The memory slots of a machine, and what keeps the memory behind them mapped.

use std::sync::Arc;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::VmFd;
use ossature_memory::{RamSlot, RegisterPage, SlotId, host_page_size};
use vmm_sys_util::errno;

use crate::VmError;
use crate::call::call;

#[derive(Debug, Default)]
pub(super) struct Slots {
    ram: Vec<Ram>,
    pages: Vec<(u32, Arc<RegisterPage>)>,
    /// True for each number that is in use.
    used: Vec<bool>,
    /// True if the kernel logs which pages of RAM are dirty.
    logging: bool,
}

#[derive(Debug)]
struct Ram {
    region: kvm_userspace_memory_region,
    /// Keeps the memory mapped.
    slot: RamSlot,
}

impl Ram {
    fn place(&self) -> (u64, u64) {
        (self.region.guest_phys_addr, self.region.memory_size / host_page_size() as u64)
    }
}

/// Makes memory of this process guest memory, or changes or removes such a slot.
fn set(vm: &VmFd, region: kvm_userspace_memory_region) -> errno::Result<()> {
    // SAFETY: `Slots` keeps what a region points to mapped until the kernel has taken the slot away or `vm` is closed, and
    // guest memory is only reached through copies and atomics.
    unsafe { vm.set_user_memory_region(region) }
}

impl Slots {
    /// The lowest number that is free.
    fn number(&self) -> u32 {
        self.used.iter().position(|used| !used).unwrap_or(self.used.len()) as u32
    }

    fn take(&mut self, slot: u32) {
        let len = self.used.len().max(slot as usize + 1);
        self.used.resize(len, false);
        self.used.get_mut(slot as usize).into_iter().for_each(|used| *used = true);
    }

    fn free(&mut self, slot: u32) {
        self.used.get_mut(slot as usize).into_iter().for_each(|used| *used = false);
    }

    pub(super) fn add_ram(&mut self, vm: &VmFd, slot: &RamSlot) -> Result<(), VmError> {
        let region = kvm_userspace_memory_region {
            slot: self.number(),
            flags: if self.logging { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
            guest_phys_addr: slot.guest_addr,
            memory_size: slot.size,
            userspace_addr: slot.host_addr,
        };
        set(vm, region).map_err(call("KVM_SET_USER_MEMORY_REGION"))?;
        self.take(region.slot);
        self.ram.push(Ram { region, slot: slot.clone() });
        Ok(())
    }

    pub(super) fn remove_ram(&mut self, vm: &VmFd, id: SlotId) {
        let Some(at) = self.ram.iter().position(|ram| ram.slot.id == id) else { return };
        let Some(Ram { region, .. }) = self.ram.get(at) else { return };
        let gone = kvm_userspace_memory_region { memory_size: 0, flags: 0, ..*region };
        // Should the kernel keep it all the same, its memory is kept too.
        if set(vm, gone).is_ok() {
            self.free(gone.slot);
            self.ram.remove(at);
        }
    }

    /// Makes a page readable to the guest. Returns the slot's number.
    pub(super) fn add_page(
        &mut self,
        vm: &VmFd,
        guest_addr: u64,
        page: &Arc<RegisterPage>,
    ) -> errno::Result<u32> {
        let region = kvm_userspace_memory_region {
            slot: self.number(),
            flags: KVM_MEM_READONLY,
            guest_phys_addr: guest_addr,
            memory_size: host_page_size() as u64,
            userspace_addr: page.host_address(),
        };
        set(vm, region)?;
        self.take(region.slot);
        self.pages.push((region.slot, Arc::clone(page)));
        Ok(region.slot)
    }

    pub(super) fn remove_page(&mut self, vm: &VmFd, slot: u32) {
        let gone = kvm_userspace_memory_region { slot, flags: KVM_MEM_READONLY, ..Default::default() };
        // As for RAM.
        if set(vm, gone).is_ok() {
            self.free(slot);
            self.pages.retain(|(other, _)| *other != slot);
        }
    }

    /// Has the kernel log the pages that the guest writes, or not.
    pub(super) fn log_dirty(&mut self, vm: &VmFd, on: bool) -> Result<(), VmError> {
        let flags = if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 };
        self.logging = on;
        for ram in &mut self.ram {
            let region = kvm_userspace_memory_region { flags, ..ram.region };
            set(vm, region).map_err(call("KVM_SET_USER_MEMORY_REGION"))?;
            ram.region = region;
        }
        Ok(())
    }

    /// Takes the kernel's bitmaps of dirty pages, each with the guest address of its first page.
    pub(super) fn take_bitmaps(&self, vm: &VmFd, visit: &mut dyn FnMut(u64, &[u64])) -> Result<(), VmError> {
        for Ram { region, .. } in &self.ram {
            let bitmap = vm.get_dirty_log(region.slot, region.memory_size as usize);
            visit(region.guest_phys_addr, &bitmap.map_err(call("KVM_GET_DIRTY_LOG"))?);
        }
        Ok(())
    }

    /// The guest address and the number of pages of RAM in slot `number`.
    pub(super) fn place(&self, number: u32) -> Option<(u64, u64)> {
        self.ram.iter().find(|ram| ram.region.slot == number).map(Ram::place)
    }

    /// The guest address and the number of pages of each slot of RAM.
    pub(super) fn places(&self) -> impl Iterator<Item = (u64, u64)> + use<'_> {
        self.ram.iter().map(Ram::place)
    }
}
