use proptest::prelude::*;

use super::*;

fn registers() -> impl Strategy<Value = Registers> {
    (any::<[u64; 16]>(), any::<(u16, u64, u32, u16)>(), any::<(u64, u16)>()).prop_map(|(g, s, t)| {
        // Bits 8 to 11 of the access rights belong to the limit.
        let segment = SegmentRegister { selector: s.0, base: s.1, limit: s.2, access: s.3 & 0xf0ff };
        Registers {
            rax: g[0],
            rbp: g[1],
            rsp: g[2],
            r8: g[3],
            r15: g[4],
            rip: g[5],
            rflags: g[6] | RFLAGS_RESET,
            cr0: g[7],
            cr2: g[8],
            cr3: g[9],
            cr4: g[10],
            efer: g[11],
            cs: segment,
            tr: segment,
            gdt: Table { base: t.0, limit: t.1 },
            ..Registers::default()
        }
    })
}

proptest! {
    #[test]
    fn survive_the_way_through_kvm(registers in registers()) {
        let mut sregs = kvm_sregs::default();
        registers.apply_to_kvm_sregs(&mut sregs);
        prop_assert_eq!(Registers::from_kvm(&registers.to_kvm_regs(), &sregs), registers);
    }
}

#[test]
fn setting_registers_keeps_the_apic_base_and_pending_interrupts() {
    let mut sregs =
        kvm_sregs { apic_base: 0xfee0_0900, interrupt_bitmap: [1, 2, 3, 4], ..Default::default() };
    Registers::real_mode(0).apply_to_kvm_sregs(&mut sregs);
    assert_eq!((sregs.apic_base, sregs.interrupt_bitmap), (0xfee0_0900, [1, 2, 3, 4]));
}

#[test]
fn segments_that_are_not_present_are_unusable() {
    assert_eq!(segment_to_kvm(&SegmentRegister::default()).unusable, 1);
    assert_eq!(segment_to_kvm(&Registers::real_mode(0).cs).unusable, 0);
}

#[test]
fn a_dump_names_every_register_once() {
    let dump = Registers { rip: 0xdead_beef, ..Registers::real_mode(0) }.to_string();
    for name in ["rax", "r8 ", "r15", "rip 00000000deadbeef", "cr3", "efer", "cs ", "tr ", "gdt", "idt"] {
        assert_eq!(dump.matches(name).count(), 1, "{name} in\n{dump}");
    }
}
