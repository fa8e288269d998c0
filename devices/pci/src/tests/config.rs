//! Configuration space by both ways.

use super::*;

use crate::{Bars, Capability, CapabilityPort};

#[test]
fn the_host_bridge_is_in_slot_0_and_cannot_be_changed() {
    let host = Host::started();
    assert_eq!(host.read(0, 0, Size::B4), 0x0008_1b36);
    assert_eq!(host.read(0, 8, Size::B4), 0x0600_0000);
    for offset in (0..256).step_by(4) {
        let before = host.read(0, offset, Size::B4);
        assert_eq!(host.write(0, offset, Size::B4, 0xffff_ffff), Effect::None);
        assert_eq!(host.read(0, offset, Size::B4), before, "{offset:#x}");
    }
}

#[test]
fn a_function_says_what_it_is() {
    let host = Host::started();
    let sample = Plugged::new(&host, sample(3));
    assert_eq!(sample.slot(), 1);
    let read = |offset, size| sample.read(&host, offset, size);
    assert_eq!(read(0, Size::B4), 0x5678_1234);
    assert_eq!(read(8, Size::B4), 0x0180_0003);
    assert_eq!(read(0x2c, Size::B4), 0xdef0_9abc);
    assert_eq!(read(4, Size::B4), 0x0010_0000, "command is 0, and there are capabilities");
    assert_eq!(read(0x0e, Size::B1), 0, "a type-0 function, the only one of its slot");
    assert_eq!(read(0x3d, Size::B1), 0, "no interrupt pin");
    assert_eq!([read(0x10, Size::B4), read(0x14, Size::B4), read(0x1c, Size::B4)], [0xc, 0, 0]);
    assert_eq!((read(0x34, Size::B1), read(0x40, Size::B4)), (0x40, 0x0002_0011));
    assert_eq!((read(0x44, Size::B4), read(0x48, Size::B4)), (0x8000, 0x1000));
}

#[test]
fn both_ways_lead_to_the_same_registers() {
    let host = Host::started();
    let sample = Plugged::new(&host, sample(1));
    let ports = host.port("config");
    let address = |value: u64| ports.write(Access { offset: 0, size: Size::B4 }, value).unwrap();
    for offset in 0..256 {
        let _ = address(1 << 31 | 1 << 11 | offset & !3);
        for size in [Size::B1, Size::B2, Size::B4] {
            if offset % size.bytes() == 0 {
                let at = Access { offset: 4 + offset % 4, size };
                assert_eq!(ports.read(at), Ok(sample.read(&host, offset, size)), "{offset:#x}");
            }
        }
    }
    let _ = address(1 << 31 | 1 << 11 | 0x3c);
    let _ = ports.write(Access { offset: 4, size: Size::B1 }, 0x5a).unwrap();
    assert_eq!(sample.read(&host, 0x3c, Size::B4), 0x5a);
    // Disabled, another bus, another function, an empty slot: nothing is there.
    for value in [1 << 11, 1 << 31 | 1 << 16 | 1 << 11, 1 << 31 | 1 << 11 | 1 << 8, 1 << 31 | 2 << 11] {
        let _ = address(value);
        assert_eq!(ports.read(Access { offset: 4, size: Size::B4 }), Ok(0xffff_ffff), "{value:#x}");
        assert_eq!(ports.write(Access { offset: 4, size: Size::B4 }, 0), Ok(Effect::None));
    }
    // What Linux probes the mechanism with: bits that are none are not kept.
    let _ = address(0xffff_ffff);
    assert_eq!(ports.read(Access { offset: 0, size: Size::B4 }), Ok(0x80ff_fffc));
}

#[test]
fn accesses_that_are_none_are_refused() {
    let host = Host::started();
    let _sample = Plugged::new(&host, sample(1));
    let (ecam, ports) = (host.port("ecam"), host.port("config"));
    let refused = |port: &Arc<dyn Mmio>, offset, size| {
        let at = Access { offset, size };
        (port.read(at).unwrap_err(), port.write(at, 0).unwrap_err())
    };
    assert_eq!(refused(&ecam, 0x8000, Size::B8), (BusFault::Width, BusFault::Width));
    assert_eq!(refused(&ecam, 0x8002, Size::B4), (BusFault::Alignment, BusFault::Alignment));
    assert_eq!(refused(&ports, 0, Size::B1), (BusFault::Width, BusFault::Width));
    assert_eq!(refused(&ports, 1, Size::B1), (BusFault::Width, BusFault::Width));
    assert_eq!(refused(&ports, 2, Size::B2), (BusFault::Width, BusFault::Width));
    assert_eq!(refused(&ports, 5, Size::B2), (BusFault::Alignment, BusFault::Alignment));
    // Beyond the 256 bytes, in another function, in the last slot.
    for offset in [0x8100, 0x8ffc, 0x9000, 0xf_fffc] {
        assert_eq!(ecam.read(Access { offset, size: Size::B4 }), Ok(0xffff_ffff), "{offset:#x}");
        assert_eq!(ecam.write(Access { offset, size: Size::B4 }, 0), Ok(Effect::None));
    }
}

/// A window into a BAR: its number, an offset, data.
struct Window;

impl CapabilityPort for Window {
    fn read(&self, bytes: &[u8], at: Access, bars: &Bars) -> Option<u64> {
        let offset = u64::from(u16::from_le_bytes([bytes[6], bytes[7]]));
        (at.offset == 8).then(|| bars.read(bytes[4], Access { offset, ..at }).unwrap_or(at.size.mask()))
    }

    fn write(&self, bytes: &[u8], at: Access, value: u64, bars: &Bars) -> Effect {
        let offset = u64::from(u16::from_le_bytes([bytes[6], bytes[7]]));
        if at.offset != 8 {
            return Effect::None;
        }
        bars.write(bytes[4], Access { offset, ..at }, value).unwrap_or(Effect::None)
    }
}

#[test]
fn capabilities_are_a_list_and_may_be_answered_by_a_port() {
    let host = Host::started();
    let plain = Capability::vendor(&[1, 2, 3]);
    let window =
        Capability::vendor(&[0; 9]).writable([0, 0, 0xff, 0, 0xff, 0xff]).with_port(Arc::new(Window));
    let sample = Plugged::new(&host, sample(1).capability(plain).capability(window));
    let read = |offset, size| sample.read(&host, offset, size);
    assert_eq!(read(0x40, Size::B2), 0x4c11);
    assert_eq!((read(0x4c, Size::B4), read(0x50, Size::B2)), (0x0106_5409, 0x0302));
    assert_eq!(read(0x54, Size::B4), 0x000c_0009);
    sample.write(&host, 0x54 + 4, Size::B1, 3);
    sample.write(&host, 0x54 + 6, Size::B2, 0x20);
    sample.write(&host, 0x54 + 8, Size::B4, 0x1122_3344);
    assert_eq!(read(0x54 + 8, Size::B4), 0x1122_3344);
    let bar3 = sample.board.registers()[1].port().unwrap();
    assert_eq!(bar3.read(Access { offset: 0x20, size: Size::B4 }), Ok(0x1122_3344));
    // A BAR that is none, places that are not aligned or outside: nothing.
    for (bar, offset) in [(1, 0), (6, 0), (255, 0), (3, 2), (3, 0x1000), (3, 0xfffe), (3, 0xffff)] {
        sample.write(&host, 0x54 + 4, Size::B1, bar);
        sample.write(&host, 0x54 + 6, Size::B2, offset);
        sample.write(&host, 0x54 + 8, Size::B4, 7);
        assert_eq!(read(0x54 + 8, Size::B4), 0xffff_ffff, "{bar} {offset:#x}");
    }
}

#[test]
fn a_function_that_cannot_be_is_refused_and_keeps_nothing() {
    let host = Host::started();
    let large = (0..20).fold(info(), |info, _| info.capability(Capability::new(5, vec![0; 14])));
    for (info, why) in [
        (info().bar(Bar::memory32(6, 0x1000)), "BAR 6"),
        (info().bar(Bar::memory64(5, 0x1000)), "BAR 5"),
        (info().bar(Bar::memory64(0, 0x1000)).bar(Bar::memory32(1, 0x1000)), "BAR 1"),
        (info().bar(Bar::memory32(0, 0x1800)), "0x1800"),
        (info().bar(Bar::memory32(0, 8)), "0x8"),
        (info().bar(Bar::memory32(0, 1 << 32)), "2 GiB"),
        (info().msix(MsixLayout::new(1, 0, 0, 0x800)), "MSI-X"),
        (sample(0), "1 to 2048"),
        (sample(2049), "1 to 2048"),
        (info().bar(Bar::memory32(0, 0x1000)).msix(MsixLayout::new(64, 0, 0xc04, 0)), "multiples of 8"),
        (info().bar(Bar::memory32(0, 0x1000)).msix(MsixLayout::new(65, 0, 0xc00, 0)), "do not fit"),
        (info().bar(Bar::memory32(0, 0x1000)).msix(MsixLayout::new(64, 0, 0x400, 0x7f8)), "overlap"),
        (large, "no room"),
    ] {
        let refused = Plugged::try_new("sample", &host, Some(4), info).err().map(|e| e.to_string());
        assert!(refused.as_ref().is_some_and(|reason| reason.contains(why)), "{why}: {refused:?}");
    }
    Plugged::try_new("sample", &host, Some(4), sample(2048)).unwrap();
}

#[test]
fn a_function_is_on_the_bus_that_the_host_of_it_brings_and_on_no_other() {
    let (one, other) = (PciBus::new(), PciBus::new());
    let brings = |bus: &PciBus| bus.host("pci").requires().brings.unwrap();
    let on = Function::new("sample", &one.clone(), info()).requires().on.unwrap();
    assert_eq!(on, brings(&one));
    assert_ne!(on, brings(&other));
}
