//! Floor: the least that makes a machine with one vCPU, enters it, and takes it down again.
//!
//! Run alone, it makes one machine whose guest powers it off.
#![allow(dead_code)] // each program that has it as a module uses some of it

#[cfg_attr(target_arch = "x86_64", path = "machine/x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "machine/aarch64.rs")]
mod arch;

use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

pub(crate) use arch::*;
use kvm_bindings::{KVM_MEM_READONLY, kvm_ioeventfd, kvm_irqfd, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuFd, VmFd};

/// What a machine takes from the kernel.
pub(crate) struct Machine {
    pub(crate) vcpu: VcpuFd,
    pub(crate) vm: VmFd,
    pub(crate) events: Vec<std::os::fd::OwnedFd>,
    pub(crate) ram: Memory,
    /// Pages that the guest reads.
    pub(crate) pages: Vec<Memory>,
}

/// Anonymous memory.
pub(crate) struct Memory {
    pub(crate) base: NonNull<u8>,
    pub(crate) len: usize,
}

impl Memory {
    pub(crate) fn new(len: usize) -> Self {
        let (rw, anonymous) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping touches no memory that exists.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, rw, anonymous | libc::MAP_NORESERVE, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED);
        Self { base: NonNull::new(base.cast()).unwrap(), len }
    }

    /// A file's, copy on write.
    pub(crate) fn of(file: &std::fs::File, len: usize) -> Self {
        let (rw, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_NORESERVE);
        // SAFETY: a new mapping touches no memory that exists.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, rw, flags, file.as_raw_fd(), 0) };
        assert_ne!(base, libc::MAP_FAILED);
        Self { base: NonNull::new(base.cast()).unwrap(), len }
    }

    pub(crate) fn write(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        // SAFETY: checked to be inside; no vCPU runs.
        unsafe { self.base.add(at).copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: ours, and the slots that refer to it are gone or never entered again.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

impl Host {
    /// A machine with interrupt controllers, RAM, and one vCPU; as many irqfds, and doorbells and pages of
    /// registers as the lists say.
    pub(crate) fn machine(
        &self,
        ram: usize,
        irqs: &[u32],
        doorbells: &[kvm_ioeventfd],
        pages: &[u64],
    ) -> Machine {
        self.machine_in(Memory::new(ram), irqs, doorbells, pages)
    }

    /// The same in this memory.
    pub(crate) fn machine_in(
        &self,
        ram: Memory,
        irqs: &[u32],
        doorbells: &[kvm_ioeventfd],
        pages: &[u64],
    ) -> Machine {
        let vm = self.vm();
        // Memory first: a change of the slots waits for what the kernel has changed before.
        let low = ram.len.min(3 << 30);
        region(&vm, 0, 0, 0, ram.base, low);
        if ram.len > low {
            // SAFETY: inside.
            region(&vm, 1 + pages.len() as u32, 0, 4 << 30, unsafe { ram.base.add(low) }, ram.len - low);
        }
        let mut mapped = Vec::new();
        for (index, &address) in (1..).zip(pages) {
            let page = Memory::new(4096);
            slot(&vm, index, KVM_MEM_READONLY, address, &page);
            mapped.push(page);
        }
        let vcpu = self.vcpu(&vm);
        let mut events = Vec::new();
        for &gsi in irqs {
            let event = event();
            let request = kvm_irqfd { fd: event.as_raw_fd() as u32, gsi, ..Default::default() };
            ioctl(&vm, 0x4020_ae76, &request);
            events.push(event);
        }
        for doorbell in doorbells {
            let event = event();
            ioctl(&vm, 0x4040_ae79, &kvm_ioeventfd { fd: event.as_raw_fd(), ..*doorbell });
            events.push(event);
        }
        Machine { vcpu, vm, events, ram, pages: mapped }
    }
}

fn event() -> std::os::fd::OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: a new descriptor, which nobody else has.
    unsafe { std::os::fd::OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)) }
}

fn ioctl<T>(vm: &VmFd, request: libc::c_ulong, argument: &T) {
    // SAFETY: the kernel reads the struct whose size is in the request.
    assert_eq!(unsafe { libc::ioctl(vm.as_raw_fd(), request, argument) }, 0);
}

fn slot(vm: &VmFd, slot: u32, flags: u32, guest_phys_addr: u64, memory: &Memory) {
    region(vm, slot, flags, guest_phys_addr, memory.base, memory.len);
}

fn region(vm: &VmFd, slot: u32, flags: u32, guest_phys_addr: u64, base: NonNull<u8>, len: usize) {
    let (memory_size, userspace_addr) = (len as u64, base.as_ptr() as u64);
    let region = kvm_userspace_memory_region { slot, flags, guest_phys_addr, memory_size, userspace_addr };
    // SAFETY: the machine keeps the memory for as long as its vCPU lives.
    unsafe { vm.set_user_memory_region(region) }.unwrap();
}

/// Makes a machine, lets its guest power it off on a thread of its own, and takes it down.
pub(crate) fn once(host: &Host) {
    let mut machine = host.machine(1 << 20, &[9], &[], &[]);
    machine.ram.write(0x1000, POWER_OFF);
    enter(&machine.vcpu, 0x1000, 0);
    let Machine { mut vcpu, vm, events, ram, pages } = machine;
    let run = move || assert!(is_off(&vcpu.run().unwrap()));
    std::thread::spawn(run).join().unwrap();
    drop((vm, events, ram, pages));
}

fn main() {
    once(&Host::open());
}
