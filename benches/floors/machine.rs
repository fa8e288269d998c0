//! Floor: the least that makes a machine with one vCPU in real mode, enters it, and takes it down again.
//!
//! Run alone, it makes one machine whose guest writes one byte to a port.
#![allow(dead_code)] // each program that has it as a module uses some of it

use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

use kvm_bindings::{
    CpuId, KVM_IRQ_ROUTING_MSI, KVM_MAX_CPUID_ENTRIES, KVM_MEM_READONLY, KvmIrqRouting, Msrs, kvm_ioeventfd,
    kvm_irq_routing_entry, kvm_irqfd, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};

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

/// The host's KVM, and what every vCPU starts with.
pub(crate) struct Host {
    pub(crate) kvm: Kvm,
    cpuid: CpuId,
}

impl Host {
    pub(crate) fn open() -> Self {
        let kvm = Kvm::new().expect("/dev/kvm");
        let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        let deadline = u32::from(kvm.check_extension(Cap::TscDeadlineTimer));
        for leaf in cpuid.as_mut_slice().iter_mut().filter(|leaf| leaf.function == 1) {
            leaf.ecx |= deadline << 24;
        }
        Self { kvm, cpuid }
    }

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
        let vm = self.kvm.create_vm().unwrap();
        vm.set_tss_address(0xfffb_d000).unwrap();
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
        vm.create_irq_chip().unwrap();
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
        let vcpu = vm.create_vcpu(0).unwrap();
        vcpu.set_cpuid2(&self.cpuid).unwrap();
        let msr = |index, data| kvm_msr_entry { index, data, reserved: 0 };
        // IA32_MISC_ENABLE: fast strings; IA32_MTRR_DEF_TYPE: on, write-back.
        let msrs = Msrs::from_entries(&[msr(0x1a0, 1), msr(0x2ff, 0x806)]).unwrap();
        assert_eq!(vcpu.set_msrs(&msrs).unwrap(), 2);
        Machine { vcpu, vm, events, ram, pages: mapped }
    }
}

/// Has an interrupt line carry a message.
pub(crate) fn route(vm: &VmFd, gsi: u32, address: u32, data: u32) {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    (entry.u.msi.address_lo, entry.u.msi.data) = (address, data);
    vm.set_gsi_routing(&KvmIrqRouting::from_entries(&[entry]).unwrap()).unwrap();
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

/// A flat segment as KVM takes it; its type is code (11) or data (3).
pub(crate) fn segment(kind: u8, selector: u16, base: u64, limit: u32, protected: bool) -> kvm_segment {
    let flag = u8::from(protected);
    kvm_segment {
        base,
        limit,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        db: flag,
        g: flag,
        ..Default::default()
    }
}

/// Real mode at `code`, FS at `fs`; the rest as the processor resets it.
pub(crate) fn real_mode(vcpu: &VcpuFd, code: u64, fs: u64) {
    let data = segment(3, 0, 0, 0xffff, false);
    let system = |kind| kvm_segment { limit: 0xffff, type_: kind, present: 1, ..Default::default() };
    let sregs = kvm_sregs {
        cs: segment(11, 0, 0, 0xffff, false),
        ds: data,
        es: data,
        fs: kvm_segment { base: fs, ..data },
        gs: data,
        ss: data,
        tr: system(11),
        ldt: system(2),
        cr0: 0x10,
        apic_base: 0xfee0_0900,
        ..Default::default()
    };
    vcpu.set_sregs(&sregs).unwrap();
    vcpu.set_regs(&kvm_regs { rip: code, rflags: 2, ..Default::default() }).unwrap();
}

/// Makes a machine, lets its guest write one byte to port 0x600 on a thread of its own, and takes it down.
pub(crate) fn once(host: &Host, code: &[u8]) {
    let mut machine = host.machine(1 << 20, &[9], &[], &[]);
    machine.ram.write(0x1000, code);
    real_mode(&machine.vcpu, 0x1000, 0);
    let Machine { mut vcpu, vm, events, ram, pages } = machine;
    let run = move || match vcpu.run().unwrap() {
        VcpuExit::IoOut(0x600, [_]) => {}
        other => panic!("{other:?}"),
    };
    std::thread::spawn(run).join().unwrap();
    drop((vm, events, ram, pages));
}

fn main() {
    // mov dx, 0x600; mov al, 0x34; out dx, al
    once(&Host::open(), &[0xba, 0x00, 0x06, 0xb0, 0x34, 0xee]);
}
