use super::*;
use crate::x86_64::testing::machine;

fn read(mem: &GuestMmap, addr: u64) -> u64 {
    mem.read_obj(GuestAddress(addr)).unwrap()
}

/// What the page tables make of `addr`.
fn translate(mem: &GuestMmap, addr: u64) -> Option<u64> {
    let mut table = layout::PAGE_TABLES;
    for shift in [39, 30] {
        let entry = read(mem, table + (addr >> shift & 511) * 8);
        if entry & (PRESENT | WRITABLE) != PRESENT | WRITABLE {
            return None;
        }
        table = entry & !0xfff;
    }
    let entry = read(mem, table + (addr >> 21 & 511) * 8);
    let flags = PRESENT | WRITABLE | LARGE_PAGE;
    (entry & 0xfff == flags).then_some((entry & !0xfff) + addr % (2 << 20))
}

#[test]
fn pvh_starts_in_flat_protected_mode() {
    let (mem, _) = machine(2);
    let cpu = prepare(&mem, Entry::Pvh(0x100_0040), 0x200_0000).unwrap();
    assert_eq!((cpu.rip, cpu.rbx, cpu.rflags), (0x100_0040, layout::START_INFO, 2));
    assert_eq!((cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer), (1, 0, 0, 0));
    assert!(
        cpu.cs.db && !cpu.cs.long && cpu.data.db && cpu.cs.limit == u32::MAX && cpu.data.limit == u32::MAX
    );
    assert_eq!((cpu.cs.kind, cpu.data.kind, cpu.tr.kind), (0xb, 0x3, 0xb));
    let mut page = [0; 4096];
    mem.read_slice(&mut page, GuestAddress(layout::GDT)).unwrap();
    assert_eq!(page, [0; 4096], "nothing is written for what the protocol leaves open");
}

#[test]
fn linux_starts_in_64_bit_mode_on_the_descriptors_in_memory() {
    let (mem, _) = machine(2);
    let cpu = prepare(&mem, Entry::Linux64(0x100_0200), 0x200_0000).unwrap();
    assert_eq!((cpu.rip, cpu.rsi, cpu.rflags), (0x100_0200, layout::ZERO_PAGE, 2));
    assert_eq!((cpu.cr0, cpu.cr3, cpu.cr4, cpu.efer), (0x8000_0001, layout::PAGE_TABLES, 0x20, 0x500));
    assert!(cpu.cs.long && !cpu.cs.db);
    assert_eq!((cpu.gdt.base, cpu.gdt.limit), (layout::GDT, 31));
    // __BOOT_CS and __BOOT_DS as the kernel's own tables spell them.
    assert_eq!((cpu.cs.selector, cpu.data.selector), (0x10, 0x18));
    assert_eq!(read(&mem, layout::GDT + 0x10), 0x00af_9b00_0000_ffff);
    assert_eq!(read(&mem, layout::GDT + 0x18), 0x00cf_9300_0000_ffff);
}

#[test]
fn addresses_map_to_themselves_up_to_the_end_of_the_kernel() {
    for (mapped, gib) in [(1, 1), (1 << 30, 1), ((1 << 30) + 1, 2), (1 << 32, 4)] {
        let (mem, _) = machine(2);
        prepare(&mem, Entry::Linux64(0x100_0200), mapped).unwrap();
        let end = gib << 30;
        for addr in [0, 0x7000, 0x1f_ffff, 0x20_0000, 0x100_0200, end - 1] {
            assert_eq!(translate(&mem, addr), Some(addr), "{addr:#x} of {end:#x}");
        }
        assert_eq!(translate(&mem, end), None, "{end:#x}");
    }
}
