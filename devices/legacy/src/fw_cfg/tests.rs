use ossature_bus::testing::TestBoard;
use ossature_bus::{Access, BusFault, Effect, Mmio, Size};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, GuestMmap};
use proptest::prelude::*;

use super::files::{MAX_FILES, MAX_LEN};
use super::*;
use crate::testing::state::{d2_mutations, saved};
use crate::testing::{lives_twice, metric, reset_is_complete};

const RAM: u64 = 64 << 10;
const NAME: &str = "opt/org.example/hostname";

fn device() -> FwCfg {
    let device = FwCfg::new("fw-cfg").file("opt/org.example/token", [0xff, 0, 1].as_slice()).unwrap();
    device.file(NAME, "clone-1").unwrap()
}

/// A guest with two ranges of RAM: the first 64 KiB, and a page at 4 GiB.
struct Guest {
    device: FwCfg,
    dma: Dma,
    port: Arc<dyn Mmio>,
}

impl Guest {
    fn quiet(mut device: FwCfg) -> Self {
        let ranges = [(GuestAddress(0), RAM as usize), (GuestAddress(1 << 32), 4096)];
        let dma = Dma::new(Arc::new(GuestMmap::from_ranges(&ranges).unwrap()));
        let mut board = TestBoard::with_ram(dma.clone());
        assert_eq!(board.attach(&mut device).unwrap(), NodeKind::FwCfg);
        Self { port: board.port(REGISTERS).unwrap(), device, dma }
    }

    fn new(device: FwCfg) -> Self {
        let mut guest = Self::quiet(device);
        guest.device.resume().unwrap();
        guest
    }

    fn select(&self, selector: u16) {
        let at = Access { offset: 0, size: Size::B2 };
        assert_eq!(self.port.write(at, selector.into()), Ok(Effect::None));
    }

    fn bytes(&self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.port.read(Access { offset: 1, size: Size::B1 }).unwrap() as u8).collect()
    }

    fn item(&self, selector: u16, count: usize) -> Vec<u8> {
        self.select(selector);
        self.bytes(count)
    }

    /// As Linux finds a file: selector and length, by its name.
    fn find(&self, name: &str) -> Option<(u16, usize)> {
        let count = u32::from_be_bytes(self.item(0x19, 4).try_into().unwrap());
        (0..count).map(|_| self.bytes(64)).find_map(|entry| {
            assert_eq!(entry[6..8], [0, 0]);
            let found = entry[8..].split(|&byte| byte == 0).next().unwrap();
            let size = u32::from_be_bytes(entry[..4].try_into().unwrap()) as usize;
            let selector = u16::from_be_bytes(entry[4..6].try_into().unwrap());
            (found == name.as_bytes()).then_some((selector, size))
        })
    }

    fn file(&self, name: &str) -> Vec<u8> {
        let (selector, len) = self.find(name).unwrap();
        self.item(selector, len)
    }

    fn start(&self, at: u64) {
        for (offset, half) in [(4, at >> 32), (8, at)] {
            let value = (half as u32).swap_bytes();
            let at = Access { offset, size: Size::B4 };
            assert_eq!(self.port.write(at, value.into()), Ok(Effect::None));
        }
    }

    /// Has a request carried out that lies at `at`, and returns its control field after that.
    fn transfer_at(&self, at: u64, control: u32, length: u32, address: u64) -> u32 {
        let mut request = [control.to_be_bytes(), length.to_be_bytes()].concat();
        request.extend_from_slice(&address.to_be_bytes());
        self.dma.write(GuestAddress(at), &request).unwrap();
        self.start(at);
        u32::from_be(self.dma.read_obj(GuestAddress(at)).unwrap())
    }

    fn transfer(&self, control: u32, length: u32, address: u64) -> u32 {
        self.transfer_at(0x100, control, length, address)
    }

    fn ram(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.dma.read(GuestAddress(at), &mut bytes).unwrap();
        bytes
    }

    /// Fills RAM from `at` on.
    fn fill(&self, at: u64, len: usize) {
        self.dma.write(GuestAddress(at), &vec![0xee; len]).unwrap();
    }
}

const ERROR: u32 = 1;
const READ: u32 = 2;
const SKIP: u32 = 4;
const SELECT: u32 = 8;
const WRITE: u32 = 16;

#[test]
fn a_driver_finds_signature_features_and_files() {
    let guest = Guest::new(device());
    assert_eq!(guest.item(0, 4), b"QEMU");
    // Both interfaces.
    assert_eq!(guest.item(1, 4), [3, 0, 0, 0]);
    assert_eq!(guest.item(0x19, 4), [0, 0, 0, 2]);
    assert_eq!(guest.find(NAME), Some((0x20, 7)));
    assert_eq!(guest.find("opt/org.example/token"), Some((0x21, 3)));
    assert_eq!(guest.file(NAME), b"clone-1");
    assert_eq!(guest.file("opt/org.example/token"), [0xff, 0, 1]);
    // "QEMU CFG", whatever is read of it.
    let read = |offset, size| guest.port.read(Access { offset, size });
    assert_eq!(read(4, Size::B4), Ok(u32::from_le_bytes(*b"QEMU").into()));
    assert_eq!(read(8, Size::B4), Ok(u32::from_le_bytes(*b" CFG").into()));
    assert_eq!(read(10, Size::B2), Ok(u16::from_le_bytes(*b"FG").into()));
    assert_eq!(read(7, Size::B1), Ok(b'U'.into()));
}

#[test]
fn items_end_with_zeros_and_begin_again_when_they_are_selected() {
    let guest = Guest::new(device());
    guest.select(0x20);
    assert_eq!(guest.bytes(10), b"clone-1\0\0\0");
    guest.select(0x20);
    assert_eq!(guest.bytes(2), b"cl");
    // The channel for writing is the same item.
    assert_eq!(guest.item(0x4020, 7), b"clone-1");
}

#[test]
fn selectors_that_do_not_exist_are_empty() {
    let guest = Guest::new(device());
    for selector in (2..0x19).chain(0x1a..0x20).chain(0x22..0x4000).chain([0x8000, 0x8020, 0xc020, 0xffff]) {
        assert_eq!(guest.item(selector, 3), [0; 3], "{selector:#x}");
    }
    guest.fill(0x1000, 16);
    assert_eq!(guest.transfer(0xffff << 16 | SELECT | READ, 8, 0x1000), 0);
    assert_eq!(guest.ram(0x1000, 9), [0, 0, 0, 0, 0, 0, 0, 0, 0xee]);
}

#[test]
fn contents_are_an_identity_that_is_not_shown() {
    let with = |contents: &[&str]| {
        let files = (0..).zip(contents);
        let device = files.fold(FwCfg::new("fw-cfg"), |device, (name, contents): (u32, _)| {
            device.file(format!("opt/{name}"), *contents).unwrap()
        });
        device.identities()
    };
    let all = [&[""][..], &["secret"], &["secret", ""], &["", "secret"]].map(with);
    for (index, one) in all.iter().enumerate() {
        assert_eq!(all.iter().position(|other| other == one), Some(index), "no two are the same");
        assert_eq!(one.len(), 1);
        assert_eq!(
            format!("{} {:?}", one[0], one[0]),
            "contents of all files Identity(contents of all files)"
        );
    }
    assert_eq!(with(&["secret"]), with(&["secret"]));
    assert_eq!(with(&[]), []);
}

#[test]
fn names_are_in_one_order_whatever_order_they_were_given_in() {
    let one = FwCfg::new("a").file("opt/b", "b").unwrap().file("opt/a", "a").unwrap();
    let other = FwCfg::new("a").file("opt/a", "a").unwrap().file("opt/b", "b").unwrap();
    let [one, other] = [one, other].map(Guest::new);
    assert_eq!(one.item(0x19, 4 + 128), other.item(0x19, 4 + 128));
    assert_eq!(one.find("opt/b"), Some((0x21, 1)));
}

#[test]
fn dma_reads_skips_and_selects() {
    let guest = Guest::new(device());
    guest.fill(0x1000, 64);
    assert_eq!(guest.transfer(0x20 << 16 | SELECT | READ, 7, 0x1000), 0);
    assert_eq!(guest.ram(0x1000, 8), b"clone-1\xee");
    assert_eq!(guest.transfer(0x20 << 16 | SELECT | SKIP, 6, 0), 0);
    // Beyond the end there are zeros, and the offset stays.
    assert_eq!(guest.transfer(READ, 4, 0x1000), 0);
    assert_eq!(guest.ram(0x1000, 5), [b'1', 0, 0, 0, b'e']);
    assert_eq!(guest.transfer(SKIP, u32::MAX, 0), 0);
    assert_eq!(guest.bytes(2), [0, 0]);
    // Selecting alone, and nothing at all.
    assert_eq!(guest.transfer(0x21 << 16 | SELECT, 5, 0), 0);
    assert_eq!(guest.transfer(0, 5, 0x1000), 0);
    assert_eq!(guest.bytes(3), [0xff, 0, 1]);
    // Reading goes before writing, and writing before skipping.
    assert_eq!(guest.transfer(0x20 << 16 | SELECT | READ | WRITE | SKIP, 1, 0x1000), 0);
    assert_eq!((guest.ram(0x1000, 1), guest.bytes(1)), (b"c".to_vec(), b"l".to_vec()));
    // The interfaces share the offset; addresses above 4 GiB.
    assert_eq!(guest.transfer_at(0x1_0000_0010, READ, 3, 0x1_0000_0ffd), 0);
    assert_eq!(guest.ram(0x1_0000_0ffd, 3), b"one");
    assert_eq!((metric(&guest.device, "transfers"), metric(&guest.device, "refused_transfers")), (8, 0));
}

#[test]
fn a_transfer_that_is_longer_than_a_page_of_zeros() {
    let guest = Guest::new(device());
    guest.fill(0x1000, 0x8000);
    assert_eq!(guest.transfer(0x20 << 16 | SELECT | READ, 0x5001, 0x1000), 0);
    let ram = guest.ram(0x1000, 0x5002);
    assert_eq!(&ram[..7], b"clone-1");
    assert!(ram[7..0x5001].iter().all(|&byte| byte == 0));
    assert_eq!(ram[0x5001], 0xee);
}

#[test]
fn the_upper_half_of_the_address_is_for_one_transfer() {
    let guest = Guest::new(device());
    let write = |offset, value: u32| {
        let at = Access { offset, size: Size::B4 };
        assert_eq!(guest.port.write(at, value.swap_bytes().into()), Ok(Effect::None));
    };
    assert_eq!(guest.transfer_at(0x1_0000_0000, 0x20 << 16 | SELECT, 0, 0), 0);
    // Without the upper half again, this is another request.
    guest.dma.write(GuestAddress(0), &[0, 0x21, 0, SELECT as u8]).unwrap();
    write(8, 0);
    assert_eq!(guest.bytes(1), [0xff]);
}

#[test]
fn hostile_transfers_move_nothing_and_say_so() {
    let guest = Guest::new(device());
    let select = 0x20 << 16 | SELECT;
    guest.fill(0x1000, 0x1000);
    let before = guest.ram(0x200, RAM as usize - 0x200);
    for (control, length, address) in [
        // Lengths beyond RAM, beyond what is allowed, and the most.
        (READ, u32::MAX, 0x1000),
        (READ, u32::MAX, 0),
        (READ, MAX_LEN as u32 + 1, 0),
        (READ, MAX_LEN as u32, 0x1000),
        (READ, 2, RAM - 1),
        // Addresses outside of RAM, of registers, and such as wrap.
        (READ, 1, RAM),
        (READ, 1, 0xd000_0000),
        (READ, 4, u64::MAX - 1),
        (READ, 2, u64::MAX),
        (READ, 4097, 1 << 32),
        (READ, 1, (1 << 32) - 1),
        // Writes, of whatever length.
        (WRITE, 1, 0x1000),
        (WRITE | SKIP, 1, 0x1000),
        (WRITE, 0, 0),
        (WRITE, u32::MAX, u64::MAX),
    ] {
        let answer = guest.transfer(select | control, length, address);
        assert_eq!(answer, ERROR, "{control:#x}, {length:#x} bytes at {address:#x}");
        assert_eq!(guest.bytes(7), b"clone-1", "the item is selected, and nothing of it read");
    }
    assert!(guest.ram(0x200, RAM as usize - 0x200) == before, "RAM has changed");
    assert_eq!(metric(&guest.device, "refused_transfers"), 15);
}

#[test]
fn requests_that_are_not_in_ram_are_counted() {
    let guest = Guest::new(device());
    for at in [RAM, RAM - 15, 0xd000_0000, u64::MAX, u64::MAX - 15, (1 << 32) + 4090] {
        guest.start(at);
    }
    assert_eq!((metric(&guest.device, "transfers"), metric(&guest.device, "refused_transfers")), (6, 6));
    assert_eq!(guest.item(0, 4), b"QEMU");
}

#[test]
fn a_transfer_onto_its_own_request_ends() {
    let guest = Guest::new(device());
    // The answer comes last.
    assert_eq!(guest.transfer(0x20 << 16 | SELECT | READ, 7, 0x100), 0);
    assert_eq!(guest.ram(0x104, 3), b"e-1");
}

#[test]
fn accesses_of_other_widths_and_writes_of_data_are_faults() {
    let guest = Guest::new(device());
    guest.select(0x20);
    let read = |offset, size| guest.port.read(Access { offset, size });
    let write = |offset, size| guest.port.write(Access { offset, size }, 0);
    for size in [Size::B1, Size::B2, Size::B4, Size::B8] {
        assert_eq!(read(0, size), Err(BusFault::WriteOnly));
        for offset in [2, 3, 12, 13, 1 << 40, u64::MAX] {
            assert!(read(offset, size).is_err(), "{offset} {size:?}");
            assert!(write(offset, size).is_err(), "{offset} {size:?}");
        }
        if size != Size::B1 {
            assert_eq!((read(1, size), write(1, size)), (Err(BusFault::Width), Err(BusFault::Width)));
        }
        if size != Size::B2 {
            assert_eq!(write(0, size), Err(BusFault::Width));
        }
        if size != Size::B4 {
            assert_eq!([write(4, size), write(8, size)], [Err(BusFault::Width); 2]);
        }
        assert_eq!(write(6, size), Err(BusFault::Width));
    }
    assert_eq!(
        [read(4, Size::B8), read(9, Size::B4), read(11, Size::B2)].map(|read| read.is_err()),
        [true; 3]
    );
    assert_eq!(write(1, Size::B1), Err(BusFault::ReadOnly));
    // None of this was a transfer, or changed what is selected.
    assert_eq!(metric(&guest.device, "transfers"), 0);
    assert_eq!(guest.bytes(7), b"clone-1");
}

fn device_in_memory() -> FwCfg {
    let device = FwCfg::in_memory("fw-cfg").file("opt/org.example/token", [0xff, 0, 1].as_slice()).unwrap();
    device.file(NAME, "clone-1").unwrap()
}

/// As Linux on arm64 selects an item: big-endian.
fn select_in_memory(guest: &Guest, selector: u16) {
    let at = Access { offset: 8, size: Size::B2 };
    assert_eq!(guest.port.write(at, selector.swap_bytes().into()), Ok(Effect::None));
}

#[test]
fn in_memory_data_are_read_in_any_width_and_the_selector_is_big_endian() {
    let guest = Guest::new(device_in_memory());
    let request = &guest.device.requires().registers[0];
    assert_eq!((request.space, request.size), (ossature_bus::AddressSpace::Mmio, 24));
    let read = |offset, size| guest.port.read(Access { offset, size });
    select_in_memory(&guest, 0);
    assert_eq!(read(0, Size::B4), Ok(u32::from_le_bytes(*b"QEMU").into()));
    select_in_memory(&guest, 0x20);
    assert_eq!(read(0, Size::B1), Ok(b'c'.into()));
    assert_eq!(read(0, Size::B2), Ok(u16::from_le_bytes(*b"lo").into()));
    assert_eq!(read(0, Size::B8), Ok(u64::from_le_bytes(*b"ne-1\0\0\0\0")));
    // The number of files, as a driver has it: the selector of the ports names nothing.
    select_in_memory(&guest, 0x19);
    assert_eq!(read(0, Size::B4), Ok(2 << 24));
    select_in_memory(&guest, 0x19_u16.swap_bytes());
    assert_eq!(read(0, Size::B4), Ok(0));
    assert_eq!(read(16, Size::B8), Ok(u64::from_le_bytes(*b"QEMU CFG")));
    assert_eq!(read(20, Size::B4), Ok(u32::from_le_bytes(*b" CFG").into()));
}

#[test]
fn in_memory_the_address_is_written_in_halves_or_at_once() {
    let guest = Guest::new(device_in_memory());
    let write = |offset, size, value: u64| {
        assert_eq!(guest.port.write(Access { offset, size }, value), Ok(Effect::None));
    };
    let request = |control: u32, to: u64| {
        let request = [control.to_be_bytes(), 7_u32.to_be_bytes()].concat();
        guest.dma.write(GuestAddress(1 << 32), &[&request[..], &to.to_be_bytes()].concat()).unwrap();
    };
    request(0x20 << 16 | SELECT | READ, 0x1000);
    write(16, Size::B4, u64::from(1_u32.to_be()));
    write(20, Size::B4, 0);
    assert_eq!((guest.ram(0x1000, 7), guest.ram(1 << 32, 4)), (b"clone-1".to_vec(), vec![0; 4]));
    // Half an address that was left there is none of the next.
    write(16, Size::B4, u64::from(7_u32.to_be()));
    request(0x20 << 16 | SELECT | READ, 0x2000);
    write(16, Size::B8, (1_u64 << 32).to_be());
    assert_eq!((guest.ram(0x2000, 7), guest.ram(1 << 32, 4)), (b"clone-1".to_vec(), vec![0; 4]));
    assert_eq!((metric(&guest.device, "transfers"), metric(&guest.device, "refused_transfers")), (2, 0));
    write(16, Size::B8, u64::MAX);
    assert_eq!((metric(&guest.device, "transfers"), metric(&guest.device, "refused_transfers")), (3, 1));
}

#[test]
fn in_memory_accesses_beside_the_registers_are_faults() {
    let guest = Guest::new(device_in_memory());
    select_in_memory(&guest, 0x20);
    for size in [Size::B1, Size::B2, Size::B4, Size::B8] {
        let read = |offset| guest.port.read(Access { offset, size });
        let write = |offset| guest.port.write(Access { offset, size }, 0);
        assert_eq!((read(8), write(0)), (Err(BusFault::WriteOnly), Err(BusFault::ReadOnly)));
        for offset in (1..8).chain(9..16).chain([24, 25, 1 << 40, u64::MAX]) {
            assert_eq!((read(offset), write(offset)), (Err(BusFault::Unmapped), Err(BusFault::Unmapped)));
        }
        for offset in [17, 18, 19, 21, 22, 23] {
            assert_eq!(write(offset), Err(BusFault::Width));
        }
        if size != Size::B2 {
            assert_eq!(write(8), Err(BusFault::Width));
        }
        if size != Size::B4 {
            assert_eq!(write(20), Err(BusFault::Width));
        }
        if matches!(size, Size::B1 | Size::B2) {
            assert_eq!(write(16), Err(BusFault::Width));
        }
        assert!(read(24 - size.bytes()).is_ok() && read(25 - size.bytes()).is_err(), "{size:?}");
    }
    // None of this was a transfer, or changed what is selected.
    assert_eq!(metric(&guest.device, "transfers"), 0);
    let data = guest.port.read(Access { offset: 0, size: Size::B8 });
    assert_eq!(data, Ok(u64::from_le_bytes(*b"clone-1\0")));
}

#[test]
fn a_state_has_no_place() {
    let guest = Guest::new(device());
    assert_eq!(guest.item(0x20, 6), b"clone-");
    let mut device = guest.device;
    device.quiesce().unwrap();
    let mut in_memory = Guest::quiet(device_in_memory());
    in_memory.device.restore(Handover::new(saved(&mut device))).unwrap();
    in_memory.device.resume().unwrap();
    assert_eq!(in_memory.port.read(Access { offset: 0, size: Size::B1 }), Ok(b'1'.into()));
    reset_is_complete(device_in_memory);
}

#[test]
fn files_that_cannot_be_are_refused_by_name() {
    let with = |names: &[&str]| {
        names.iter().try_fold(FwCfg::new("fw-cfg"), |device, name| device.file(*name, "")).map(|_| ())
    };
    let longest = "o".repeat(55);
    with(&[&longest]).unwrap();
    for name in ["", "/", "opt/", "/opt", "opt//a", "opt/../a", "./a", "opt/a b", "opt/ä", "a\0", "a\n"] {
        assert_eq!(with(&[name]), Err(FwCfgError::Name { name: name.into() }));
    }
    assert_eq!(with(&[&(longest.clone() + "o")]), Err(FwCfgError::Name { name: longest + "o" }));
    assert_eq!(with(&["opt/a", "opt/b", "opt/a"]), Err(FwCfgError::Twice { name: "opt/a".into() }));
    let folder = |file: &str, inside: &str| FwCfgError::Folder { file: file.into(), inside: inside.into() };
    assert_eq!(with(&["opt/a", "opt/a/b"]), Err(folder("opt/a", "opt/a/b")));
    assert_eq!(with(&["opt/a/b", "opt/a"]), Err(folder("opt/a", "opt/a/b")));
    with(&["opt/a", "opt/ab"]).unwrap();

    let names: Vec<_> = (0..=MAX_FILES).map(|index| format!("opt/{index}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    with(&names[..MAX_FILES]).unwrap();
    assert_eq!(with(&names), Err(FwCfgError::TooMany { name: format!("opt/{MAX_FILES}") }));

    let long = |len| FwCfg::new("fw-cfg").file("opt/long", vec![0; len]).map(|_| ());
    long(MAX_LEN).unwrap();
    assert_eq!(long(MAX_LEN + 1), Err(FwCfgError::TooLong { name: "opt/long".into() }));
}

#[test]
fn new_contents_are_seen_from_the_next_selection_on() {
    let guest = Guest::new(device());
    let files = guest.device.files();
    let (selector, _) = guest.find(NAME).unwrap();
    assert_eq!(guest.item(selector, 3), b"clo");
    files.set(NAME, "another").unwrap();
    assert_eq!(guest.bytes(5), b"ne-1\0", "what is being read is not torn");
    assert_eq!(guest.file(NAME), b"another");
    files.set(NAME, "of another length").unwrap();
    assert_eq!(guest.find(NAME), Some((selector, 17)));
    assert_eq!(guest.file(NAME), b"of another length");
    assert_eq!(files.set("opt/none", ""), Err(FwCfgError::Unknown { name: "opt/none".into() }));
    assert_eq!(files.set(NAME, vec![0; MAX_LEN + 1]), Err(FwCfgError::TooLong { name: NAME.into() }));
    assert_eq!(guest.file(NAME), b"of another length");
}

#[test]
fn a_clone_goes_on_in_the_middle_with_contents_of_its_own() {
    let guest = Guest::new(device());
    assert_eq!(guest.item(0x20, 6), b"clone-");
    let mut device = guest.device;
    device.quiesce().unwrap();
    let state = saved(&mut device);
    // No content is in the state.
    assert!(!state.payload.windows(5).any(|bytes| bytes == b"clone"));

    let clone = FwCfg::new("fw-cfg").file(NAME, "clone-2").unwrap();
    let clone = clone.file("opt/org.example/token", "another").unwrap();
    let mut guest = Guest::quiet(clone);
    guest.device.restore(Handover::new(state.clone())).unwrap();
    guest.device.resume().unwrap();
    assert_eq!(guest.bytes(2), b"2\0");
    assert_eq!(guest.file("opt/org.example/token"), b"another");

    // A device with other files is another device.
    let others = [
        FwCfg::new("fw-cfg"),
        FwCfg::new("fw-cfg").file(NAME, "").unwrap(),
        FwCfg::new("fw-cfg").file(NAME, "").unwrap().file("opt/org.example/tokens", "").unwrap(),
        self::device().file("opt/z", "").unwrap(),
    ];
    for other in others {
        let mut guest = Guest::quiet(other);
        let refused = guest.device.restore(Handover::new(state.clone())).unwrap_err();
        assert!(matches!(refused, StateError::Inconsistent { field: "files", .. }), "{refused}");
        assert_eq!(guest.bytes(4), b"QEMU");
    }
}

#[test]
fn d2_states_are_refused_or_become_what_they_say() {
    let guest = Guest::new(device());
    guest.item(0x20, 3);
    let mut device = guest.device;
    let state = saved(&mut device);
    d2_mutations(self::device, &state, |_, machine| {
        machine.read(0, 1);
        let transfer = machine.ports[0].write(Access { offset: 8, size: Size::B4 }, 0);
        assert_eq!(transfer, Ok(Effect::None));
    });
}

#[test]
fn a_reset_device_is_as_new() {
    reset_is_complete(device);
    let guest = Guest::new(device());
    guest.select(0x20);
    let half = guest.port.write(Access { offset: 4, size: Size::B4 }, 1);
    assert_eq!(half, Ok(Effect::None));
    let mut device = guest.device;
    device.quiesce().unwrap();
    device.reset().unwrap();
    assert_eq!(saved(&mut device), saved(&mut self::device()));
}

#[test]
fn a_detached_device_lets_go_of_its_machine_and_works_in_another() {
    lives_twice(&mut device(), |device, machine| {
        device.files().set(NAME, "again").unwrap();
        let select = machine.ports[0].write(Access { offset: 0, size: Size::B2 }, 0x20);
        assert_eq!(select, Ok(Effect::None));
        assert_eq!([machine.read(0, 1), machine.read(0, 1)], [b'a', b'g']);
    });
    // Late requests for DMA reach nobody's RAM.
    let guest = Guest::new(device());
    let mut device = guest.device;
    device.detach().unwrap();
    let late = guest.port.write(Access { offset: 8, size: Size::B4 }, 0);
    assert_eq!(late, Ok(Effect::None));
    assert_eq!(metric(&device, "transfers"), 1);
}

#[test]
fn contents_are_not_in_debug_output() {
    let device = device();
    let text = format!("{device:?} {:?}", device.files());
    assert!(text.contains(NAME) && !text.contains("clone-1"), "{text}");
}

/// What a guest does: an access, or a request that it has prepared.
fn step() -> impl Strategy<Value = (u64, usize, bool, u32, u32, u64)> {
    let address = prop_oneof![0..RAM, (1u64 << 32)..(1 << 32) + 5000, any::<u64>()];
    (0u64..14, 0usize..4, any::<bool>(), any::<u32>(), prop_oneof![0u32..100, any::<u32>()], address)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever a guest does, it is answered; a device that is restored goes on as the one that was saved does.
    #[test]
    fn any_access_is_answered_and_a_restored_device_goes_on(
        before in prop::collection::vec(step(), 0..60),
        after in prop::collection::vec(step(), 0..60),
    ) {
        let go = |guest: &Guest, &(offset, size, is_write, value, length, address): &(u64, usize, bool, u32, u32, u64)| {
            if offset == 13 {
                let at = address % (RAM - 16);
                return format!("{:x}", guest.transfer_at(at, value, length, address));
            }
            let size = [Size::B1, Size::B2, Size::B4, Size::B8][size];
            let at = Access { offset, size };
            match is_write {
                true => format!("{:?}", guest.port.write(at, u64::from(value) & size.mask())),
                false => format!("{:?}", guest.port.read(at)),
            }
        };
        let mut first = Guest::new(device());
        before.iter().for_each(|step| drop(go(&first, step)));
        first.device.quiesce().unwrap();
        let state = saved(&mut first.device);
        let mut second = Guest::quiet(device());
        second.device.restore(Handover::new(state.clone())).unwrap();
        prop_assert_eq!(&saved(&mut second.device), &state);
        // What the guest has in RAM goes with it.
        second.dma.write(GuestAddress(0), &first.ram(0, RAM as usize)).unwrap();
        second.dma.write(GuestAddress(1 << 32), &first.ram(1 << 32, 4096)).unwrap();
        first.device.resume().unwrap();
        second.device.resume().unwrap();
        for step in &after {
            prop_assert_eq!(go(&first, step), go(&second, step));
        }
        prop_assert_eq!(saved(&mut first.device), saved(&mut second.device));
        prop_assert!(first.ram(0, RAM as usize) == second.ram(0, RAM as usize));
    }
}
