use super::*;

const TABLES: Range<u64> = 0x2_0000..0x20_0000;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// What a kernel finds from the system table on.
fn written() -> (Layout, Vec<u8>) {
    let ram = [RamRange::new(0, 0xc000_0000), RamRange::new(1 << 32, 5 << 30)];
    let layout = Layout::new(&ram, &TABLES);
    let bytes = layout.write(0x2_1230);
    assert_eq!(bytes.len() as u64, layout.len());
    (layout, bytes)
}

#[test]
fn the_system_table_is_whole() {
    let (layout, mut bytes) = written();
    assert_eq!(layout.efi().system_table, 0x2_0000);
    assert_eq!(&bytes[..8], b"IBI SYST");
    assert_eq!((u32_at(&bytes, 8), u32_at(&bytes, 12)), (0x2_0050, 120));
    let crc = u32_at(&bytes, 16);
    bytes[16..20].fill(0);
    assert_eq!(crc, crc32fast::hash(&bytes[..120]));
    let vendor = (u64_at(&bytes, 24) - 0x2_0000) as usize;
    let vendor: Vec<_> =
        bytes[vendor..].chunks(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
    assert_eq!(String::from_utf16(&vendor[..8]).unwrap(), "Ossature");
    assert!(vendor[8..100].iter().all(|unit| *unit == 0), "kernels read 100 units");
    // Consoles, and services of the run time and of the boot: none.
    assert!(bytes[40..104].iter().all(|byte| *byte == 0));
}

#[test]
fn configuration_tables_say_where_acpi_is_and_that_no_service_can_be_called() {
    let (_, bytes) = written();
    assert_eq!(u64_at(&bytes, 104), 3);
    let tables = (u64_at(&bytes, 112) - 0x2_0000) as usize;
    let table = |guid: &[u8; 16]| {
        let found = bytes[tables..].chunks(24).take(3).find(|table| table[..16] == *guid);
        u64_at(found.unwrap(), 16)
    };
    // As they lie in the specification: 8868e871-e4f1-11d3-bc22-0080c73c8881 and eb66918a-7eef-402a-842e-931d21c38ae9.
    let acpi = b"\x71\xe8\x68\x88\xf1\xe4\xd3\x11\xbc\x22\x00\x80\xc7\x3c\x88\x81";
    let services = b"\x8a\x91\x66\xeb\xef\x7e\x2a\x40\x84\x2e\x93\x1d\x21\xc3\x8a\xe9";
    let reserved = b"\xc6\xb0\x8e\x88\xde\x8e\xf5\x4f\xa8\xf0\x9a\xee\x5c\xb9\x77\xc2";
    assert_eq!(table(acpi), 0x2_1230);
    let services = (table(services) - 0x2_0000) as usize;
    assert_eq!(bytes[services..services + 8], [1, 0, 8, 0, 0, 0, 0, 0]);
    let reserved = (table(reserved) - 0x2_0000) as usize;
    assert_eq!((reserved % 8, &bytes[reserved..reserved + 16]), (0, &[0; 16][..]));
}

/// Kind, start and bytes of each range in a memory map.
fn map(ram: &[RamRange], tables: &Range<u64>) -> Vec<(u32, u64, u64)> {
    let layout = Layout::new(ram, tables);
    let (bytes, efi) = (layout.write(0), layout.efi());
    assert_eq!(efi.memory_map.end - tables.start, bytes.len() as u64);
    let map = &bytes[(efi.memory_map.start - tables.start) as usize..];
    let descriptors = map.chunks(DESCRIPTOR as usize).map(|descriptor| {
        assert_eq!((u64_at(descriptor, 16), u64_at(descriptor, 32)), (0, 0xf));
        (u32_at(descriptor, 0), u64_at(descriptor, 8), u64_at(descriptor, 24) * 4096)
    });
    descriptors.collect()
}

#[test]
fn the_memory_map_is_all_ram_with_the_tables_kept() {
    let ram = [RamRange::new(0, 0xc000_0000), RamRange::new(1 << 32, 5 << 30)];
    let expected = [
        (LOADER_DATA, 0, 0x2_0000),
        (ACPI_RECLAIM, 0x2_0000, 0x1e_0000),
        (CONVENTIONAL, 0x20_0000, 0xbfe0_0000),
        (CONVENTIONAL, 1 << 32, 5 << 30),
    ];
    assert_eq!(map(&ram, &TABLES), expected);
}

#[test]
fn ram_that_is_no_whole_pages_is_not_counted() {
    let ram = [RamRange::new(0, 0x40_0001), RamRange::new(0x100_0800, 0x1000), RamRange::new(u64::MAX, 1)];
    let expected = [
        (LOADER_DATA, 0, 0x2_0000),
        (ACPI_RECLAIM, 0x2_0000, 0x1e_0000),
        (CONVENTIONAL, 0x20_0000, 0x20_0000),
    ];
    assert_eq!(map(&ram, &TABLES), expected);
}
