//! Floor: the least that makes a machine go on where another one was, with memory that they share copy on write, and the
//! connections of a disk, a network card, vsock and a serial port.
//!
//! Run alone, it makes one.
#![allow(dead_code)] // each program that has it as a module uses some of it

#[path = "machine.rs"]
mod machine;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Instant;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, kvm_clock_data, kvm_debugregs,
    kvm_ioeventfd, kvm_ioeventfd_flag_nr_datamatch, kvm_irqchip, kvm_lapic_state, kvm_mp_state,
    kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use machine::{Host, Machine, Memory};
use rustix::fs::{MemfdFlags, memfd_create};

/// Interrupt lines: serial port, disk, network card, vsock.
const LINES: [u32; 4] = [4, 5, 6, 7];
/// Register pages: disk, network card, vsock, generation ID.
const PAGES: [u64; 4] = [0xd000_0000, 0xd000_1000, 0xd000_2000, 0xd000_3000];
/// Queues of each of the first three.
const QUEUES: [u64; 3] = [1, 3, 3];

/// All that a machine was.
struct State {
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: kvm_xsave,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    events: kvm_vcpu_events,
    msrs: Vec<Msrs>,
    lapic: kvm_lapic_state,
    mp_state: kvm_mp_state,
    chips: [kvm_irqchip; 3],
    clock: u64,
}

pub(crate) struct Template {
    host: Host,
    file: File,
    len: usize,
    doorbells: Vec<kvm_ioeventfd>,
    state: State,
}

/// A machine that runs until its guest writes to a port.
pub(crate) struct Child(Option<JoinHandle<(VcpuFd, Instant)>>, Parts);

#[allow(unused)]
struct Parts {
    vcpu: Option<VcpuFd>,
    vm: kvm_ioctls::VmFd,
    events: Vec<std::os::fd::OwnedFd>,
    ram: Memory,
    pages: Vec<Memory>,
}

impl Child {
    /// Waits until its guest has run, and says when that wrote to the port, once.
    pub(crate) fn wait(&mut self) -> Option<Instant> {
        let (vcpu, ran) = self.0.take()?.join().unwrap();
        self.1.vcpu = Some(vcpu);
        Some(ran)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.wait();
    }
}

impl Template {
    /// Of a machine with so many bytes of memory, whose guest is about to run `code`.
    pub(crate) fn new(len: usize, code: &[u8]) -> Self {
        Self::in_file(memfd_create("floor", MemfdFlags::CLOEXEC).unwrap().into(), len, code)
    }

    /// The same in this file.
    pub(crate) fn in_file(file: File, len: usize, code: &[u8]) -> Self {
        let host = Host::open();
        file.set_len(len as u64).unwrap();
        file.write_all_at(code, 0x1000).unwrap();
        let doorbell = |(page, queue): (u64, u64)| kvm_ioeventfd {
            addr: page + 0x50,
            len: 4,
            datamatch: queue,
            flags: 1 << kvm_ioeventfd_flag_nr_datamatch,
            ..Default::default()
        };
        let queues = PAGES.into_iter().zip(QUEUES);
        let doorbells: Vec<_> = queues
            .flat_map(|(page, queues)| (0..queues).map(move |queue| (page, queue)))
            .map(doorbell)
            .collect();
        let parent = host.machine_in(Memory::of(&file, len), &LINES, &doorbells, &PAGES);
        machine::enter(&parent.vcpu, 0x1000, 0);
        let state = State::of(&host, &parent);
        Self { host, file, len, doorbells, state }
    }

    pub(crate) fn fork(&self) -> Child {
        self.child(&self.file)
    }

    /// From a file that has memory, of which as much is read as a state takes.
    pub(crate) fn restore(&self, path: &Path, state: usize) -> Child {
        let file = File::open(path).unwrap();
        file.read_exact_at(&mut vec![0; state], 0).unwrap();
        self.child(&file)
    }

    fn child(&self, file: &File) -> Child {
        let ram = Memory::of(file, self.len);
        let machine = self.host.machine_in(ram, &LINES, &self.doorbells, &PAGES);
        self.state.write(&machine);
        let Machine { mut vcpu, vm, events, ram, pages } = machine;
        let run = move || {
            assert!(matches!(vcpu.run().unwrap(), VcpuExit::IoOut(0x600, [_])));
            let now = Instant::now();
            (vcpu, now)
        };
        Child(Some(std::thread::spawn(run)), Parts { vcpu: None, vm, events, ram, pages })
    }
}

impl State {
    fn of(host: &Host, machine: &Machine) -> Self {
        let Machine { vcpu, vm, .. } = machine;
        let listed = host.kvm.get_msr_index_list().unwrap();
        let mut known = Vec::new();
        for index in listed.as_slice().iter().copied().filter(|msr| !(0x4000_0000..0x4000_0200).contains(msr))
        {
            let mut one = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }]).unwrap();
            if vcpu.get_msrs(&mut one).is_ok_and(|read| read == 1)
                && vcpu.set_msrs(&one).is_ok_and(|written| written == 1)
            {
                known.push(one.as_slice()[0]);
            }
        }
        let mut chips = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC]
            .map(|chip_id| kvm_irqchip { chip_id, ..Default::default() });
        chips.iter_mut().for_each(|chip| vm.get_irqchip(chip).unwrap());
        Self {
            regs: vcpu.get_regs().unwrap(),
            sregs: vcpu.get_sregs().unwrap(),
            xsave: vcpu.get_xsave().unwrap(),
            xcrs: vcpu.get_xcrs().unwrap(),
            debug: vcpu.get_debug_regs().unwrap(),
            events: vcpu.get_vcpu_events().unwrap(),
            msrs: known.chunks(256).map(|msrs| Msrs::from_entries(msrs).unwrap()).collect(),
            lapic: vcpu.get_lapic().unwrap(),
            mp_state: vcpu.get_mp_state().unwrap(),
            chips,
            clock: vm.get_clock().unwrap().clock,
        }
    }

    fn write(&self, machine: &Machine) {
        let Machine { vcpu, vm, .. } = machine;
        self.chips.iter().for_each(|chip| vm.set_irqchip(chip).unwrap());
        vm.set_clock(&kvm_clock_data { clock: self.clock, ..Default::default() }).unwrap();
        vcpu.set_mp_state(self.mp_state).unwrap();
        vcpu.set_regs(&self.regs).unwrap();
        vcpu.set_sregs(&self.sregs).unwrap();
        vcpu.set_xcrs(&self.xcrs).unwrap();
        // SAFETY: the area is as long as a processor without AMX has it.
        unsafe { vcpu.set_xsave(&self.xsave) }.unwrap();
        vcpu.set_debug_regs(&self.debug).unwrap();
        vcpu.set_lapic(&self.lapic).unwrap();
        for msrs in &self.msrs {
            assert_eq!(vcpu.set_msrs(msrs).unwrap(), msrs.as_slice().len());
        }
        vcpu.set_vcpu_events(&self.events).unwrap();
    }
}

fn main() {
    drop(Template::new(128 << 20, &[0xba, 0x00, 0x06, 0xb0, 0x34, 0xee]).fork());
}
