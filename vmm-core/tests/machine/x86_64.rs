//! Interrupts by PICs, local APICs and the PIT; ports; another vCPU by its APIC.

use std::sync::Arc;

use ossature_bus::Size::{B1, B4};
use ossature_bus::{Event, MsiMessage};
use ossature_core::{Doorbell, DoorbellAddress, Kvm, Registers, Step, VmConfig};
use ossature_memory::RegisterPage;
use ossature_memory::vm_memory::GuestAddress;

use crate::guest::Seen::Write;
use crate::guest::{CODE, DATA, Guest, LAPIC, MMIO};
use crate::run;

/// Real mode at [`CODE`], FS at the local APIC.
fn at_lapic() -> Registers {
    let mut registers = Registers::real_mode(CODE);
    registers.fs.base = LAPIC;
    registers.rsp = 0x8000;
    registers
}

/// Puts a handler for `vector` into the guest: out 0x80, al; acknowledge; iret.
fn handle(guest: &Guest, vector: u64, acknowledge: &[u8]) {
    let handler = 0x3000u32;
    let mut code = vec![0xe6, 0x80]; // out 0x80, al
    code.extend_from_slice(acknowledge);
    code.push(0xcf); // iret
    guest.write(handler.into(), &code);
    guest.write(4 * vector, &handler.to_le_bytes());
}

#[test]
fn an_irqfd_raises_an_edge_for_each_signal() {
    let guest = Guest::new(
        VmConfig::default(),
        &[
            0xb0, 0x11, 0xe6, 0x20, // the first PIC: initialize,
            0xb0, 0x20, 0xe6, 0x21, // vectors from 0x20,
            0xb0, 0x04, 0xe6, 0x21, // the second one on line 2,
            0xb0, 0x01, 0xe6, 0x21, // 8086 mode,
            0xb0, 0xdf, 0xe6, 0x21, // all masked but line 5
            0xb0, 0x55, 0xe6, 0x81, // out 0x81: ready
            0xfb, 0xf4, 0xeb, 0xfd, // sti; hlt; jmp to the hlt
        ],
    );
    handle(&guest, 0x25, &[0xb0, 0x20, 0xe6, 0x20, 0xb0, 0x55]); // end of interrupt
    let event = Arc::new(Event::new().expect("an eventfd"));
    let _line = guest.vm.irqfd(&event, 5, None).expect("an irqfd");
    let vcpu = guest.vcpu_with(0, at_lapic());
    let kicker = vcpu.kicker();
    let (seen, thread) = run(vcpu);
    assert_eq!(seen.recv().expect("the guest is ready"), Step::Handled);
    assert_eq!(guest.ports.take(), [Write(0x81, B1, 0x55)]);
    for _ in 0..100 {
        event.signal().expect("a signal");
        assert_eq!(seen.recv().expect("an interrupt"), Step::Handled);
        assert_eq!(guest.ports.take(), [Write(0x80, B1, 0x55)]);
    }
    kicker.kick();
    thread.join().expect("the vCPU's thread");
}

#[test]
fn a_message_goes_where_its_route_says_now() {
    let guest = Guest::new(
        VmConfig::default(),
        &[
            0x64, 0x66, 0xc7, 0x06, 0xf0, 0x00, 0xff, 0x01, 0x00, 0x00, // local APIC: on
            0xb0, 0x55, 0xe6, 0x81, // out 0x81: ready
            0xfb, 0xf4, 0xeb, 0xfd, // sti; hlt; jmp to the hlt
        ],
    );
    // mov dword fs:[0xb0], 0: end of interrupt
    let acknowledge = [0x64, 0x66, 0xc7, 0x06, 0xb0, 0x00, 0x00, 0x00, 0x00, 0x00];
    handle(&guest, 0x41, &acknowledge);
    let to_vector = |data| MsiMessage::new(LAPIC, data);
    // A route to a vector that the guest does not handle; changed before it is used.
    let route = guest.vm.add_msi_route(to_vector(0x40)).expect("a route");
    route.set(to_vector(0x41)).expect("another message");
    let event = Arc::new(Event::new().expect("an eventfd"));
    let _line = guest.vm.irqfd(&event, route.gsi(), None).expect("an irqfd");
    let vcpu = guest.vcpu_with(0, at_lapic());
    let kicker = vcpu.kicker();
    let (seen, thread) = run(vcpu);
    assert_eq!(seen.recv().expect("the guest is ready"), Step::Handled);
    guest.ports.take();
    for _ in 0..10 {
        event.signal().expect("a signal");
        assert_eq!(seen.recv().expect("an interrupt"), Step::Handled);
        assert_eq!(guest.ports.take(), [Write(0x80, B1, 0x55)]);
    }
    kicker.kick();
    thread.join().expect("the vCPU's thread");
}

#[test]
fn a_second_vcpu_starts_when_the_first_one_says_so() {
    let guest = Guest::new(
        VmConfig::new(2),
        &[
            0x64, 0x66, 0xc7, 0x06, 0xf0, 0x00, 0xff, 0x01, 0x00, 0x00, // local APIC: on
            0x64, 0x66, 0xc7, 0x06, 0x10, 0x03, 0x00, 0x00, 0x00, 0x01, // to APIC 1:
            0x64, 0x66, 0xc7, 0x06, 0x00, 0x03, 0x00, 0x45, 0x00, 0x00, // INIT
            0x64, 0x66, 0xc7, 0x06, 0x00, 0x03, 0x02, 0x46, 0x00, 0x00, // start at DATA
            0xf4,
        ],
    );
    guest.write(DATA, &[0xb0, 0x77, 0xe6, 0x82, 0xf4]); // mov al, 0x77; out 0x82, al; hlt
    let (first, second) = (guest.vcpu_with(0, at_lapic()), guest.vcpu(1));
    let kickers = [first.kicker(), second.kicker()];
    let (seen, second) = run(second);
    let (_first_exits, first) = run(first);
    while guest.ports.take() != [Write(0x82, B1, 0x77)] {
        assert_eq!(seen.recv().expect("the second vCPU's access"), Step::Handled);
    }
    kickers.iter().for_each(ossature_core::Kicker::kick);
    for thread in [first, second] {
        thread.join().expect("a vCPU's thread");
    }
}

#[test]
fn doorbells_ring_without_an_exit() {
    let guest = Guest::bare(&[
        0x64, 0x66, 0xc7, 0x06, 0x50, 0x00, 0x05, 0x00, 0x00, 0x00, // mov dword fs:[0x50], 5
        0x64, 0x66, 0xc7, 0x06, 0x50, 0x00, 0x06, 0x00, 0x00, 0x00, // mov dword fs:[0x50], 6
        0x64, 0xc6, 0x06, 0x60, 0x00, 0x07, // mov byte fs:[0x60], 7
        0xb0, 0x08, 0xe6, 0x90, // out 0x90, al
        0xe7, 0x90, // out 0x90, ax
        0xe6, 0x91, // out 0x91, al
        0xf4, // hlt
    ]);
    let bells = [
        Doorbell::new(DoorbellAddress::Mmio(MMIO + 0x50), B4, Some(5)),
        Doorbell::new(DoorbellAddress::Mmio(MMIO + 0x60), B4, None),
        Doorbell::new(DoorbellAddress::Pio(0x90), B1, None),
    ];
    let events = bells.map(|bell| {
        let event = Arc::new(Event::new().expect("an eventfd"));
        (guest.vm.ioeventfd(&event, bell).expect("an ioeventfd"), event)
    });
    let mut vcpu = guest.vcpu(0);
    while vcpu.run_once().expect("a guest that halts") != Step::Halted {}
    assert_eq!(events.map(|(_bell, event)| event.take().expect("a count")), [1, 1, 2]);
    assert_eq!(guest.memory.take(), [Write(0x50, B4, 6)], "another value");
    assert_eq!(guest.ports.take().len(), 1, "another port");
}

#[test]
fn a_register_page_is_read_without_an_exit() {
    let guest = Guest::bare(&[
        0x64, 0x66, 0xa1, 0x04, 0x10, // mov eax, fs:[0x1004]
        0x66, 0xe7, 0x80, // out 0x80, eax
        0x64, 0x66, 0xa3, 0x08, 0x00, // mov fs:[8], eax
        0xf4, // hlt
    ]);
    let page = Arc::new(RegisterPage::new().expect("a page"));
    page.store(4, 0x1234_5678);
    let mapped = guest.vm.map_register_page(GuestAddress(MMIO + 0x1000), &page).expect("a page");
    let host = Kvm::open().expect("KVM").capabilities();
    assert_eq!(mapped.is_some(), host.register_pages);
    let mut vcpu = guest.vcpu(0);
    let mut steps = 0;
    while vcpu.run_once().expect("a guest that halts") != Step::Halted {
        steps += 1;
    }
    // Where the host has no such pages the read reaches the bus, where nobody answers.
    let (value, exits) = if mapped.is_some() { (0x1234_5678, 2) } else { (0xffff_ffff, 3) };
    assert_eq!(guest.ports.take(), [Write(0x80, B4, value)]);
    assert_eq!(guest.memory.take(), [Write(8, B4, value)]);
    assert_eq!(steps, exits);
}

#[test]
fn a_doorbell_that_is_dropped_is_a_write_to_the_bus() {
    // mov al, 8; out 0x90, al; hlt; out 0x90, al; hlt
    let guest = Guest::bare(&[0xb0, 0x08, 0xe6, 0x90, 0xf4, 0xe6, 0x90, 0xf4]);
    let event = Arc::new(Event::new().expect("an eventfd"));
    let bell = Doorbell::new(DoorbellAddress::Pio(0x90), B1, None);
    let connected = guest.vm.ioeventfd(&event, bell).expect("an ioeventfd");
    let mut vcpu = guest.vcpu(0);
    assert_eq!(vcpu.run_once().expect("a guest that halts"), Step::Halted);
    drop(connected);
    while vcpu.run_once().expect("a guest that halts") != Step::Halted {}
    assert_eq!((event.take().expect("a count"), guest.ports.take()), (1, vec![Write(0x90, B1, 8)]));
}

#[test]
fn a_machine_can_have_a_timer_chip() {
    let config = VmConfig::default().pit();
    // in al, 0x61; test al, 0x10 until the refresh bit toggles would need time: that the kernel answers is enough.
    let guest = Guest::new(config, &[0xe4, 0x61, 0xe6, 0x80, 0xf4]); // in al, 0x61; out 0x80, al; hlt
    let mut vcpu = guest.vcpu(0);
    assert_eq!(vcpu.run_once().expect("one access"), Step::Handled);
    assert!(matches!(guest.ports.take()[..], [Write(0x80, B1, _)]), "port 0x61 did not reach the bus");
}

#[test]
fn registers_read_as_they_were_set_whether_or_not_the_guest_has_run() {
    let code = [0x00, 0xc3, 0xe6, 0x80, 0xeb, 0xfa]; // add bl, al; out 0x80, al; jmp back
    let guest = Guest::new(VmConfig::new(2), &code);
    let set = Registers { rax: 7, rbx: 1, ..Registers::real_mode(0x1000) };
    for index in [1, 0] {
        let mut vcpu = guest.vcpu(index);
        vcpu.set_registers(&set).expect("registers");
        assert_eq!(vcpu.registers().expect("registers"), set, "vCPU {index}");
        if index == 0 {
            assert_eq!(vcpu.run_once().expect("an exit"), Step::Handled);
            assert_eq!(vcpu.registers().expect("registers").rbx, 8);
            vcpu.set_registers(&Registers { rbx: 0x20, rcx: 5, ..set }).expect("registers");
            assert_eq!(vcpu.registers().expect("registers").rbx, 0x20);
            assert_eq!(vcpu.run_once().expect("an exit"), Step::Handled);
            let after = vcpu.registers().expect("registers");
            assert_eq!((after.rbx, after.rcx), (0x27, 5));
        }
    }
}
