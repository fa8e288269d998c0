//! Floor: the least that answers a guest which does nothing but access registers: `KVM_RUN`, one look at what it
//! wants, one comparison of the address, one counter.
//!
//! Run alone, it takes 100,000 exits, to a port where there are ports.
#![allow(dead_code)] // each program that has it as a module uses some of it

#[path = "machine.rs"]
pub(crate) mod machine;

use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_EXIT_IO, KVM_EXIT_MMIO, kvm_run};
use machine::{Host, Machine};

/// Where the guest's port and its register are.
pub(crate) const PORT: u16 = 0x80;
pub(crate) const REGISTER: u64 = 0xd000_0000;

/// A guest in a loop of exits.
pub(crate) struct Exits {
    page: *mut kvm_run,
    machine: Machine,
    sum: u64,
}

impl Exits {
    pub(crate) fn new(host: &Host, code: &[u8]) -> Self {
        let mut machine = host.machine(1 << 20, &[], &[], &[]);
        machine.ram.write(0x1000, code);
        machine::enter(&machine.vcpu, 0x1000, REGISTER);
        let page = std::ptr::from_mut(machine.vcpu.get_kvm_run());
        Self { page, machine, sum: 0 }
    }

    /// One round trip.
    #[inline]
    pub(crate) fn step(&mut self) {
        // SAFETY: a vCPU's descriptor; KVM_RUN.
        let ret = unsafe { libc::ioctl(self.machine.vcpu.as_raw_fd(), 0xae80, 0) };
        assert_eq!(ret, 0);
        // SAFETY: the page is mapped as long as the vCPU lives, the kernel is not in it, and the exit reason
        // says which member of the union is valid.
        unsafe {
            match (*self.page).exit_reason {
                KVM_EXIT_IO => {
                    let io = &raw const (*self.page).__bindgen_anon_1.io;
                    assert_eq!((*io).port, PORT);
                    self.sum += u64::from(self.page.cast::<u8>().add((*io).data_offset as usize).read());
                }
                KVM_EXIT_MMIO => {
                    let mmio = &raw const (*self.page).__bindgen_anon_1.mmio;
                    assert_eq!((*mmio).phys_addr, REGISTER);
                    self.sum += u64::from((*mmio).data[0]);
                }
                other => panic!("exit {other}"),
            }
        }
    }
}

fn main() {
    let mut exits = Exits::new(&Host::open(), machine::EXITS[0].1);
    (0..100_000).for_each(|_| exits.step());
    assert_eq!(exits.sum, 0x55 * 100_000);
}
