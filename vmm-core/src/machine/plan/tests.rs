use ossature_bus::{DoorbellRequest, InterruptRequest, RegistersRequest, Size, WindowRequest};

use super::*;

/// A machine without RAM.
const ABOVE: Above = Above { ram_end: 0, address_bits: 48 };

/// The nth of the lines that are handed out.
fn line(n: usize) -> u32 {
    arch::lines().nth(n).unwrap() as u32
}

/// What a virtio-mmio transport asks for.
fn virtio() -> Requires {
    let bell = DoorbellRequest::new("kick", 0x50, Size::B4).value(0);
    Requires::new()
        .registers(RegistersRequest::memory("registers", 0x1000).with_page().doorbell(bell))
        .interrupt(InterruptRequest::edge("irq"))
}

fn com1() -> Requires {
    Requires::new()
        .registers(RegistersRequest::ports("ports", 8).fixed(0x3f8))
        .interrupt(InterruptRequest::edge("irq").fixed(4))
}

fn level() -> Requires {
    Requires::new().interrupt(InterruptRequest::level("irq"))
}

/// The places of new devices.
fn places(devices: &[(&str, Requires)]) -> Result<Vec<Place>, Vec<BuildError>> {
    let asked: Vec<_> =
        devices.iter().map(|(id, requires)| Asked { id, requires, place: None, windows: None }).collect();
    plan(&asked, ABOVE)
}

fn place(registers: &[u64], interrupts: &[u32]) -> Place {
    let registers = registers.iter().copied().map(Some).collect();
    Place { registers, interrupts: interrupts.to_vec(), windows: Vec::new() }
}

#[test]
fn each_device_gets_its_own_places_in_the_order_in_which_it_asked() {
    let both = Requires::new()
        .registers(RegistersRequest::ports("a", 4).align(4))
        .registers(RegistersRequest::memory("b", 0x2000))
        .registers(RegistersRequest::ports("c", 1).fixed(0x80))
        .interrupt(InterruptRequest::edge("a"))
        .interrupt(InterruptRequest::edge("b").fixed(11));
    let places = places(&[("disk", virtio()), ("com1", com1()), ("both", both)]).unwrap();
    assert_eq!(places[0], place(&[0xd000_2000], &[line(1)]));
    assert_eq!(places[1], place(&[0x3f8], &[4]));
    assert_eq!(places[2], place(&[0xc000, 0xd000_0000, 0x80], &[line(0), 11]));
}

#[test]
fn places_do_not_depend_on_the_order_of_the_devices() {
    let one = places(&[("a", virtio()), ("b", virtio()), ("com1", com1()), ("l", level())]).unwrap();
    let other = places(&[("l", level()), ("com1", com1()), ("b", virtio()), ("a", virtio())]).unwrap();
    assert!(one.iter().eq(other.iter().rev()));
}

#[test]
fn a_device_that_comes_later_finds_room_beside_those_that_are_there() {
    let requires = [("a", virtio()), ("b", virtio())];
    let first = places(&requires).unwrap();
    let mut moved = first[0].clone();
    // It has been moved to where no device is put at first.
    moved.registers[0] = Some(0x1_0000_0000);
    let gone = Place { registers: vec![None], ..first[1].clone() };
    let new = virtio();
    let asked = [
        Asked { id: "a", requires: &requires[0].1, place: Some(&moved), windows: Some(&moved.windows) },
        Asked { id: "b", requires: &requires[1].1, place: Some(&gone), windows: Some(&gone.windows) },
        Asked { id: "c", requires: &new, place: None, windows: None },
    ];
    let places = plan(&asked, ABOVE).unwrap();
    assert_eq!(places, [moved, gone, place(&[0xd000_0000], &[line(2)])]);
}

#[test]
fn everything_wrong_is_told_at_once() {
    let fixed = |base| Requires::new().registers(RegistersRequest::memory("registers", 0x1000).fixed(base));
    let port = Requires::new().registers(RegistersRequest::ports("ports", 2).fixed(0x1_0000));
    let bell = DoorbellRequest::new("kick", 0x1000, Size::B4);
    let bell = virtio()
        .registers(RegistersRequest::memory("window", 0x1000).doorbell(bell))
        .registers(RegistersRequest::ports("tail", 1).with_page())
        .interrupt(InterruptRequest::edge("tail").resampled());
    let errors = places(&[
        ("com1", com1()),
        ("serial", com1()),
        ("ram", fixed(0x1000)),
        ("apic", fixed(0xfec0_0000)),
        ("port", port),
        ("bell", bell),
    ])
    .unwrap_err();
    let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
    let memory = if cfg!(target_arch = "x86_64") {
        "0xc0000000..=0xfebfffff, 0xfec01000..=0xfedfffff, 0xfee01000..=0xfffbbfff"
    } else {
        "0xc0000000..=0xefffffff"
    };
    assert_eq!(
        texts,
        [
            "device \"bell\" asks for a doorbell kick at 0x1000 of its window, which have no such place",
            "device \"bell\" asks for a register page for its tail, which are not one page of memory",
            "device \"bell\" asks for two things named kick, both doorbell",
            "device \"bell\" asks for an acknowledgement of its tail, which is not a level interrupt",
            &format!("memory addresses: apic requests 0xfec00000+0x1000, which is outside of {memory}"),
            &format!("memory addresses: ram requests 0x1000+0x1000, which is outside of {memory}"),
            "ports: port requests 0x10000+0x2, which is outside of 0x0..=0xffff",
            "ports: serial at 0x3f8+0x8 overlaps com1 at 0x3f8+0x8",
            "interrupts: serial and com1 both request interrupt 4; devices can share those that are level-triggered",
        ]
    );
}

#[test]
fn c2_running_out_of_interrupts_is_one_line_with_the_numbers_and_who_takes_them() {
    let lines = arch::lines().count();
    let ids: Vec<String> = (0..=lines).map(|i| format!("disk{i:02}")).collect();
    let devices: Vec<(&str, Requires)> = ids.iter().map(|id| (id.as_str(), virtio())).collect();
    assert!(places(&devices[..lines]).is_ok());
    let errors = places(&devices).unwrap_err();
    assert_eq!(errors.len(), 1);
    assert_eq!(
        errors[0].to_string(),
        format!(
            "interrupts: {lines} there are for devices, and {} are asked for by disk00, disk01, disk02, disk03, disk04, \
             disk05 and {} more; devices can share those that are level-triggered",
            lines + 1,
            lines + 1 - 6
        )
    );
}

#[test]
fn c2_running_out_of_addresses_counts_what_fixed_places_take_of_them() {
    let window = |base| Requires::new().registers(RegistersRequest::memory("window", 0x800_0000).fixed(base));
    let large = Requires::new().registers(RegistersRequest::memory("registers", 0x1000_0000));
    let asked = [("at", window(0xd000_0000)), ("outside", window(0xc000_0000)), ("large", large)];
    let errors = places(&asked).unwrap_err();
    let [BuildError::Exhausted { kind, available, asked, takers, .. }] = &errors[..] else {
        panic!("{errors:?}")
    };
    assert_eq!((*kind, *available, *asked), ("memory addresses", 0x1000_0000, 0x1800_0000));
    assert_eq!(takers, &["at", "large"]);
    assert_eq!(
        errors[0].to_string(),
        "memory addresses: 0x10000000 there are for devices, in 0xd0000000..=0xdfffffff, and 0x18000000 are asked for by at, \
         large; in the way there: at at 0xd0000000+0x8000000"
    );
}

#[test]
fn level_interrupts_share_lines_once_they_run_out() {
    // All but that of the serial port, and one for the edge.
    let shared = arch::lines().filter(|line| *line != 4).count() - 1;
    let count = 4 * shared;
    let ids: Vec<String> = (0..count).map(|i| format!("disk{i:03}")).collect();
    let mut devices: Vec<(&str, Requires)> = ids.iter().map(|id| (id.as_str(), level())).collect();
    devices.push(("com1", com1()));
    devices.push(("edge", virtio()));
    let places = places(&devices).unwrap();
    let edge = places[count + 1].interrupts[0];
    let lines: Vec<u32> = places[..count].iter().map(|place| place.interrupts[0]).collect();
    assert!(!lines.contains(&edge) && !lines.contains(&4));
    let sharers = |line| lines.iter().filter(|other| **other == line).count();
    assert!(lines.iter().all(|&line| sharers(line) == 4), "{lines:?}");
}

#[test]
fn level_interrupts_at_one_place_share_it_and_an_edge_does_not() {
    let fixed =
        |trigger: fn(&'static str) -> InterruptRequest| Requires::new().interrupt(trigger("irq").fixed(6));
    let level = || fixed(InterruptRequest::level);
    let both = places(&[("a", level()), ("b", level())]).unwrap();
    assert_eq!(both, [place(&[], &[6]), place(&[], &[6])]);
    let errors = places(&[("a", level()), ("b", fixed(InterruptRequest::edge))]).unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "interrupts: b and a both request interrupt 6; devices can share those that are level-triggered"
    );
}

#[test]
fn a_line_that_there_is_not_is_told_with_those_that_there_are() {
    let irq = Requires::new().interrupt(InterruptRequest::edge("irq").fixed(1000));
    let told = places(&[("far", irq)]).unwrap_err()[0].to_string();
    let (first, last) =
        if cfg!(target_arch = "x86_64") { (0, 23) } else { (0, arch::lines().last().unwrap()) };
    assert_eq!(
        told,
        format!("interrupts: far requests interrupt 1000, which is outside of {first}..={last}")
    );
}

#[test]
fn what_is_in_the_way_of_a_window_is_named() {
    let fixed = |base| Requires::new().registers(RegistersRequest::memory("registers", 0x1000).fixed(base));
    let host = Requires::new().window(WindowRequest::memory32("low", 1 << 28));
    let errors =
        places(&[("pci", host), ("mine", fixed(0xe800_0000)), ("other", fixed(0xd000_0000))]).unwrap_err();
    assert_eq!(
        errors[0].to_string(),
        "memory addresses to hand on: 0x10000000 there are for devices, in 0xe0000000..=0xefffffff, and 0x10001000 are \
         asked for by mine, pci; in the way there: mine at 0xe8000000+0x1000"
    );
}

#[test]
fn a_space_without_anything_is_told_without_ranges() {
    let error = BuildError::Exhausted {
        kind: "memory addresses above 4 GiB to hand on",
        available: 0,
        asked: 16,
        takers: vec!["pci".to_owned()],
        room: Vec::new(),
        in_the_way: Vec::new(),
    };
    let text =
        "memory addresses above 4 GiB to hand on: 0x0 there are for devices, and 0x10 are asked for by pci";
    assert_eq!(error.to_string(), text);
}

#[test]
fn windows_of_odd_sizes_are_told_as_such_and_once() {
    let odd = Requires::new().window(WindowRequest::memory32("memory32", 3 << 20));
    let odd = odd.window(WindowRequest::memory64("memory64", 5)).window(WindowRequest::memory64("none", 0));
    let told: Vec<_> = places(&[("pci", odd)]).unwrap_err().iter().map(ToString::to_string).collect();
    let expected = ["memory32 of 0x300000", "memory64 of 0x5", "none of 0x0"].map(|what| {
        format!(
            "device \"pci\" asks for a window {what} bytes, which is not a power of two, as the sizes of windows are"
        )
    });
    assert_eq!(told, expected);
}

/// What a PCI root bus asks for.
fn root_bus() -> Requires {
    Requires::new()
        .registers(RegistersRequest::memory("ecam", 1 << 20))
        .window(WindowRequest::memory32("low", 1 << 27))
        .window(WindowRequest::memory64("high", 1 << 36))
}

#[test]
fn windows_lie_beside_devices_and_above_ram() {
    let fixed = Requires::new().registers(RegistersRequest::memory("registers", 0x1000).fixed(0xe000_0000));
    let (bus, function) =
        (root_bus(), Requires::new().registers(RegistersRequest::memory("bar", 64).unplaced()));
    let new = |id, requires| Asked { id, requires, place: None, windows: None };
    let asked = [new("bus", &bus), new("fixed", &fixed), new("function", &function)];
    let places = plan(&asked, Above { ram_end: 300 << 30, ..ABOVE }).unwrap();
    assert_eq!(places[0].registers, [Some(0xd000_0000)]);
    assert_eq!(places[0].windows, [0xe800_0000..=0xefff_ffff, 512 << 30..=(576 << 30) - 1]);
    assert_eq!(places[1].registers, [Some(0xe000_0000)]);
    assert_eq!(places[2].registers, [None]);
}

#[test]
fn nothing_new_is_put_into_a_window_and_what_moved_there_stays() {
    let (bus, function, new) = (root_bus(), Requires::new(), virtio());
    let function = function.registers(RegistersRequest::memory("bar", 64).unplaced());
    let placed =
        plan(&[Asked { id: "bus", requires: &bus, place: None, windows: None }], ABOVE).unwrap().remove(0);
    assert_eq!(placed.windows, [0xe000_0000..=0xe7ff_ffff, 256 << 30..=(320 << 30) - 1]);
    let moved = Place { registers: vec![Some(0xe000_0040)], ..Place::default() };
    let asked = [
        Asked { id: "bus", requires: &bus, place: Some(&placed), windows: Some(&placed.windows) },
        Asked { id: "function", requires: &function, place: Some(&moved), windows: Some(&moved.windows) },
        Asked { id: "new", requires: &new, place: None, windows: None },
    ];
    let places = plan(&asked, ABOVE).unwrap();
    assert_eq!(places[..2], [placed.clone(), moved.clone()]);
    let fixed = Requires::new().registers(RegistersRequest::memory("registers", 0x1000).fixed(0xe000_1000));
    let [bus, function, _] = asked;
    let into = Asked { id: "new", requires: &fixed, place: None, windows: None };
    assert!(plan(&[bus, function, into], ABOVE).is_err());
}

#[test]
fn a_window_is_kept_where_none_would_be_put() {
    let (bus, second) = (root_bus(), Requires::new().window(WindowRequest::memory64("high", 1 << 36)));
    let windows = [0xe000_0000..=0xe7ff_ffff, 8 << 30..=(16 << 30) - 1];
    let asked = [
        Asked { id: "bus", requires: &bus, place: None, windows: Some(&windows) },
        Asked { id: "second", requires: &second, place: None, windows: None },
    ];
    let places = plan(&asked, ABOVE).unwrap();
    assert_eq!(places[0].windows, windows);
    assert_eq!(places[1].windows, [256 << 30..=(320 << 30) - 1]);
    // Not at any address, and not twice at one.
    let both =
        [asked[0], Asked { id: "other", requires: &second, place: None, windows: Some(&windows[1..]) }];
    let odd = [0xe000_0000..=0xe7ff_ffff, 9 << 30..=(17 << 30) - 1];
    for asked in [&both[..], &[Asked { windows: Some(&odd), ..asked[0] }]] {
        assert!(plan(asked, ABOVE).is_err());
    }
}

#[test]
fn a_window_that_fits_nowhere_is_told_by_its_owner() {
    let large = Requires::new().window(WindowRequest::memory32("low", 1 << 29));
    let errors = places(&[("bus", large)]).unwrap_err();
    assert!(
        matches!(&errors[..], [BuildError::Exhausted { takers, .. }] if takers == &["bus"]),
        "{errors:?}"
    );
}

#[test]
fn a_window_that_may_be_smaller_is_as_large_as_there_is_room_for() {
    let large = Requires::new().window(WindowRequest::memory32("low", 1 << 31).at_least(1 << 27));
    let [low] = &places(&[("bus", large.clone())]).unwrap()[0].windows[..] else { panic!("one window") };
    assert_eq!(*low, 0xe000_0000..=0xefff_ffff);
    // What is in the way halves it once more.
    let fixed = Requires::new().registers(RegistersRequest::memory("registers", 0x1000).fixed(0xe000_0000));
    let small = &places(&[("bus", large.clone()), ("fixed", fixed)]).unwrap()[0];
    assert_eq!(small.windows, [0xe800_0000..=0xefff_ffff]);
    // Its place is its own from then on, and its size.
    let asked = [Asked { id: "bus", requires: &large, place: Some(small), windows: Some(&small.windows) }];
    assert_eq!(plan(&asked, ABOVE).unwrap()[0], *small);
    let too_large = Requires::new().window(WindowRequest::memory32("low", 1 << 31).at_least(1 << 29));
    let errors = places(&[("bus", too_large)]).unwrap_err();
    assert!(matches!(&errors[..], [BuildError::Exhausted { asked, .. }] if *asked == 1 << 29), "{errors:?}");
}
