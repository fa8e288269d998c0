use super::*;

const BASE: u64 = 0xf_8000;
const ROOM: u64 = 0x7ff0;

/// The structures: type, formatted area, strings.
fn structures(tables: &[u8]) -> Vec<(u8, Vec<u8>, Vec<String>)> {
    let mut found = Vec::new();
    let mut at = STRUCTURES;
    while at < tables.len() {
        let len = usize::from(tables[at + 1]);
        let area = tables[at..at + len].to_vec();
        at += len;
        let end = at + tables[at..].windows(2).position(|pair| pair == [0, 0]).unwrap();
        let strings =
            tables[at..end].split(|&byte| byte == 0).map(|s| String::from_utf8(s.to_vec()).unwrap());
        found.push((area[0], area.clone(), strings.filter(|string| !string.is_empty()).collect()));
        at = end + 2;
    }
    found
}

fn full() -> Smbios {
    Smbios::new()
        .manufacturer("ACME")
        .product("Rocket")
        .version("2")
        .serial("0042")
        .sku("R2")
        .family("Vehicles")
        .uuid("00112233-4455-6677-8899-aabbccddeeff".parse().unwrap())
        .oem_string("first")
        .oem_string("the second")
}

#[test]
fn g8_the_entry_point_is_one_that_linux_takes() {
    let tables = Smbios::new().tables(BASE, ROOM).unwrap();
    let entry = &tables[..ENTRY_POINT];
    assert_eq!(&entry[..5], b"_SM3_");
    assert_eq!((entry[6], entry[7], entry[10]), (24, 3, 1));
    assert_eq!(entry.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)), 0);
    let size = u32::from_le_bytes(entry[12..16].try_into().unwrap());
    let address = u64::from_le_bytes(entry[16..24].try_into().unwrap());
    assert_eq!((address, size as usize), (BASE + 32, tables.len() - 32));
}

#[test]
fn g8_each_field_is_where_guests_look_for_it() {
    let tables = full().tables(BASE, ROOM).unwrap();
    let found = structures(&tables);
    assert_eq!(found.iter().map(|(kind, ..)| *kind).collect::<Vec<_>>(), [0, 1, 11, 127]);
    let handles: Vec<_> = found.iter().map(|(_, area, _)| u16::from_le_bytes([area[2], area[3]])).collect();
    assert_eq!(handles, [0, 1, 2, 3]);

    let (_, bios, strings) = &found[0];
    assert_eq!((bios.len(), bios[0x13] & 0x10), (0x1a, 0x10), "a virtual machine");
    assert_eq!(strings, &["Ossature", "1", "01/01/2026"]);
    let (_, system, strings) = &found[1];
    assert_eq!(system.len(), 0x1b);
    assert_eq!(strings, &["ACME", "Rocket", "2", "0042", "R2", "Vehicles"]);
    assert_eq!([4, 5, 6, 7, 0x19, 0x1a].map(|at| system[at]), [1, 2, 3, 4, 5, 6]);
    let uuid = [0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff];
    assert_eq!(system[8..24], uuid);
    let (_, oem, strings) = &found[2];
    assert_eq!((oem.len(), oem[4]), (5, 2));
    assert_eq!(strings, &["first", "the second"]);
    assert_eq!(found[3], (127, vec![127, 4, 3, 0], vec![]));
}

#[test]
fn g8_what_is_not_said_is_not_there() {
    let found = structures(&Smbios::new().tables(BASE, ROOM).unwrap());
    assert_eq!(found.iter().map(|(kind, ..)| *kind).collect::<Vec<_>>(), [0, 1, 127]);
    let (_, system, strings) = &found[1];
    assert_eq!(strings, &["Ossature", "Virtual Machine"]);
    assert_eq!([6, 7, 0x19, 0x1a].map(|at| system[at]), [0; 4]);
    assert_eq!(system[8..24], [0; 16]);
    // Without any string, two zeros end the structure.
    let bare = Smbios::new().manufacturer("").product("").tables(BASE, ROOM).unwrap();
    assert_eq!(structures(&bare)[1].2, [""; 0]);
}

#[test]
fn g8_strings_that_guests_could_not_read_are_refused() {
    let invalid = |smbios: Smbios| smbios.tables(BASE, ROOM).unwrap_err();
    assert_eq!(
        invalid(Smbios::new().serial("a\0b")),
        SmbiosError::InvalidByte { field: "serial", byte: 0, position: 1 }
    );
    assert_eq!(
        invalid(Smbios::new().product("caf\u{e9}")).to_string(),
        "the SMBIOS product has byte 0xc3 at position 3; only printable ASCII is possible"
    );
    assert_eq!(invalid(Smbios::new().oem_string("")), SmbiosError::EmptyOemString);
    let many = |count| (0..count).fold(Smbios::new(), |smbios, _| smbios.oem_string("x"));
    assert!(many(255).tables(BASE, ROOM).is_ok());
    assert_eq!(invalid(many(256)), SmbiosError::TooManyOemStrings { count: 256 });
    let long = Smbios::new().oem_string("x".repeat(0x8000));
    assert!(matches!(invalid(long), SmbiosError::TooLarge { room: ROOM, len } if len > 0x8000));
}

#[test]
fn uuids_are_read_and_written() {
    let text = "123e4567-e89b-12d3-a456-426614174000";
    let uuid: Uuid = text.parse().unwrap();
    assert_eq!((uuid.0[0], uuid.0[15], uuid.to_string()), (0x12, 0, text.to_owned()));
    for wrong in
        ["", "123e4567e89b12d3a456426614174000", "123e4567-e89b-12d3-a456-42661417400g", "-", "1-2-3-4-5"]
    {
        assert_eq!(wrong.parse::<Uuid>(), Err(InvalidUuid), "{wrong}");
    }
}
