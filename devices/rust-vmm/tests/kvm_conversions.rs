//! What one side has opened, created or mapped, used by the other, on the host's KVM.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::expect_used, clippy::panic)] // helpers of tests, too, may panic

use ossature_bus::{AddressSpace, Bus};
use ossature_core::machine::Machine;
use ossature_core::scripted::{Script, Scripted};
use ossature_core::{Buses, Hypervisor, Registers, Step, Vcpu, Vm, VmConfig};
use ossature_memory::{Ram, RamConfig};
use ossature_rust_vmm::kvm_ioctls;
use ossature_rust_vmm::vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const CODE: GuestAddress = GuestAddress(0x1000);
/// inc word [0x2000]; hlt
const GUEST: &[u8] = &[0xff, 0x06, 0x00, 0x20, 0xf4];

fn memory() -> GuestMemoryMmap<()> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).expect("memory");
    memory.write_slice(GUEST, CODE).expect("RAM");
    memory
}

fn run(vm: &dyn Vm) -> Vcpu {
    let buses = Buses::new(Bus::new(AddressSpace::Pio).cursor(), Bus::new(AddressSpace::Mmio).cursor());
    let mut vcpu = vm.create_vcpu(0, buses).expect("a vCPU");
    vcpu.set_registers(&Registers::real_mode(CODE.0 as u16)).expect("registers");
    loop {
        match vcpu.run_once().expect("a guest that halts") {
            Step::Handled | Step::Interrupted => {}
            Step::Halted => return vcpu,
            step => panic!("{step:?}"),
        }
    }
}

fn config() -> VmConfig {
    VmConfig::default().irqchip(ossature_core::Irqchip::None)
}

#[test]
fn our_vcpus_run_in_a_virtual_machine_and_in_memory_of_theirs() {
    let theirs = kvm_ioctls::Kvm::new().expect("KVM");
    let ours = kvm_ioctls::hypervisor_of(&theirs).expect("the same KVM");
    let vm_fd = theirs.create_vm().expect("a VM");
    let vm = kvm_ioctls::vm_of(&ours, &vm_fd, &config()).expect("the same VM");
    drop((theirs, vm_fd));
    let memory = memory();
    let ram = Ram::from_memory(&memory).expect("the same memory");
    vm.set_memory(&ram).expect("a memory slot");
    drop(ram);
    run(&*vm);
    assert_eq!(memory.read_obj::<u16>(GuestAddress(0x2000)).expect("RAM"), 1);
}

#[test]
fn their_ioctls_reach_our_machine() {
    let ours = ossature_core::Kvm::open().expect("KVM");
    let vm = ours.create_vm(&config()).expect("a VM");
    let ram = Ram::new(&RamConfig::new(2 << 20)).expect("RAM");
    ram.dma().write(CODE, GUEST).expect("RAM");
    vm.set_memory(&ram).expect("memory slots");
    let theirs = kvm_ioctls::kvm_of(&ours).expect("the same KVM");
    assert_eq!(theirs.get_api_version(), 12);
    let vm_fd = kvm_ioctls::vm_fd_of(&ours, &*vm).expect("the same VM");
    let vcpu = run(&*vm);
    // SAFETY: only its registers are asked for, by an ioctl.
    let vcpu_fd = unsafe { kvm_ioctls::vcpu_fd_of(&vm_fd, &vcpu) }.expect("the same vCPU");
    assert_eq!(vcpu_fd.get_regs().expect("registers").rip, vcpu.registers().expect("registers").rip);
    assert_eq!(vcpu.registers().expect("registers").rip, CODE.0 + GUEST.len() as u64);
}

#[test]
fn a_machine_runs_on_what_somebody_else_has() {
    let theirs = kvm_ioctls::Kvm::new().expect("KVM");
    let memory = memory();
    let machine = Machine::builder("foreign")
        .ram(Ram::from_memory(&memory).expect("the same memory"))
        .payload(|_: &ossature_memory::GuestMmap, _: &ossature_boot::Platform| {
            Ok(Registers::real_mode(CODE.0 as u16))
        })
        .build(&kvm_ioctls::hypervisor_of(&theirs).expect("the same KVM"))
        .expect("a machine");
    machine.start().expect("it starts");
    while memory.read_obj::<u16>(GuestAddress(0x2000)).expect("RAM") == 0 {
        std::thread::yield_now();
    }
    machine.stop().expect("it stops");
}

#[test]
fn a_machine_that_is_not_of_kvm_has_no_descriptor() {
    let ours = ossature_core::Kvm::open().expect("KVM");
    let scripted = Scripted::new([Script::new()]).create_vm(&VmConfig::default()).expect("a VM");
    let error = kvm_ioctls::vm_fd_of(&ours, &*scripted).expect_err("an error");
    assert_eq!(error.kind(), std::io::ErrorKind::Unsupported);
}
