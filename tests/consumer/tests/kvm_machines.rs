//! The VMM on KVM.

mod machines;

use std::sync::Arc;

use consumer::Vmm;
use consumer::printer::{END, Paper};
use ossature::virtio::Inline;
use ossature::vmm::machine::Outcome;
use ossature::vmm::{CpuidRegisters, Kvm, Registers};
use vm_memory::{Bytes, GuestAddress};

#[test]
fn two_machines_on_one_loop_are_watched_and_one_is_killed_by_a_time_out() {
    let kvm = Kvm::open().unwrap();
    machines::run_and_kill([&kvm, &kvm]);
}

#[test]
fn a_guest_reads_the_cpuid_leaf_that_the_vmm_added() {
    const LEAF: u32 = 0x4000_0010;
    const CODE: &[u8] = &[
        0x0f, 0xa2, // cpuid
        0x66, 0x89, 0x1e, 0x00, 0x20, // mov [0x2000], ebx
        0xba, 0x00, 0x07, // mov dx, the printer's port
        0xbe, 0x00, 0x20, 0xb9, 0x04, 0x00, 0xf3, 0x6e, // mov si, 0x2000; mov cx, 4; rep outsb
        0xb0, END, 0xee, 0xf4, // mov al, END; out dx, al; hlt
    ];
    let name = CpuidRegisters { ebx: u32::from_le_bytes(*b"OURS"), ..CpuidRegisters::default() };
    let paper = Arc::new(Paper::default());
    let machine = Vmm::parts("cpuid", &paper, Arc::new(Inline::new().unwrap()))
        .vm(|vm| vm.cpuid(move |cpuid, _| cpuid.set(LEAF, 0, name)))
        .payload(|memory: &ossature::memory::GuestMmap, _: &_| {
            memory.write_slice(CODE, GuestAddress(0x1000))?;
            Ok(Registers { rax: LEAF.into(), ..Registers::real_mode(0x1000) })
        })
        .build(&Kvm::open().unwrap())
        .unwrap();
    machine.start().unwrap();
    assert_eq!(machine.wait().unwrap(), Outcome::Shutdown);
    assert_eq!(paper.text(), "OURS");
}
