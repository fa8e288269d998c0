//! Functions that come and go, and the registers that tell of it (row B6).

use super::*;
use crate::PciError;

fn plug(host: &Host, id: &str, slot: Option<u8>) -> Plugged {
    Plugged::try_new(id, host, slot, sample(1)).unwrap()
}

fn is_there(host: &Host, slot: u8) -> bool {
    host.read(slot, 0, Size::B4) == 0x5678_1234
}

#[test]
fn what_is_there_from_the_start_is_no_news() {
    let mut host = Host::new();
    let (mut before, mut after) = (plug(&host, "a", None), plug(&host, "b", None));
    before.function.resume().unwrap();
    host.device.resume().unwrap();
    after.function.resume().unwrap();
    assert_eq!((host.hotplug(0), host.hotplug(4), host.hotplug(12), host.interrupts()), (0, 0, 0b110, 0));
    assert!(is_there(&host, 1) && is_there(&host, 2));
}

#[test]
fn a_function_that_comes_is_seen_and_told_when_its_device_goes_on() {
    let host = Host::started();
    let mut late = plug(&host, "late", Some(7));
    assert_eq!((is_there(&host, 7), host.hotplug(12), host.interrupts()), (false, 0, 0));
    late.function.resume().unwrap();
    assert_eq!((is_there(&host, 7), host.hotplug(12), host.interrupts()), (true, 1 << 7, 1));
    assert_eq!((host.hotplug(0), host.hotplug(0)), (1 << 7, 0), "reading clears it");
    // A pause is no news.
    late.function.resume().unwrap();
    assert_eq!((host.hotplug(0), host.interrupts()), (0, 0));
    assert_eq!(host.bus.slot_of("late"), Some(7));
}

#[test]
fn a_guest_that_is_asked_ejects_and_the_machine_removes() {
    let host = Host::started();
    let mut sample = Plugged::new(&host, sample(1));
    let range = sample.board.registers()[0].id();
    sample.write(&host, BAR0 + 12, Size::B4, LOW);
    sample.write(&host, COMMAND, Size::B2, 2);
    let _ = (host.hotplug(0), host.interrupts());
    host.bus.request_removal("sample").unwrap();
    assert_eq!((host.interrupts(), host.hotplug(4), host.hotplug(4)), (1, 2, 0));
    assert!(is_there(&host, 1), "until it is ejected");
    assert_eq!(host.eject(2), Effect::Remove(range));
    assert_eq!((host.read(1, 0, Size::B4), host.hotplug(12)), (0xffff_ffff, 0));
    assert!(sample.board.registers().iter().all(|range| range.wanted().is_none()));
    // Until the machine has removed it, nobody else gets the slot, and it does not come back.
    sample.function.resume().unwrap();
    sample.function.reset().unwrap();
    assert!(!is_there(&host, 1));
    assert_eq!(plug(&host, "other", None).slot(), 2);
    sample.function.detach().unwrap();
    assert_eq!((host.hotplug(4), host.interrupts()), (0, 0), "the guest knows");
    assert_eq!(plug(&host, "other", None).slot(), 1);
}

#[test]
fn a_function_without_a_bar_is_ejected_as_any_other() {
    let host = Host::started();
    let mut plain = Plugged::new(&host, info());
    assert_eq!(plain.read(&host, BAR0, Size::B4), 0, "no BAR");
    let range = plain.board.registers()[0].clone();
    assert_eq!((range.base(), host.eject(2)), (None, Effect::Remove(range.id())));
    plain.function.detach().unwrap();
    assert_eq!(plug(&host, "next", None).slot(), 1);
}

#[test]
fn a_function_that_is_gone_without_asking_is_told_and_its_slot_waits() {
    let mut host = Host::started();
    let mut sample = Plugged::new(&host, sample(1));
    let _ = (host.hotplug(0), host.interrupts());
    sample.function.detach().unwrap();
    assert!(!is_there(&host, 1));
    assert_eq!((host.hotplug(0), host.hotplug(4), host.interrupts()), (0, 2, 1));
    // A guest that ejects what is gone must not eject what came after it.
    let refused = Plugged::try_new("next", &host, Some(1), info()).err().unwrap();
    assert!(refused.to_string().contains("ejected"), "{refused}");
    assert_eq!(plug(&host, "next", None).slot(), 2);
    assert_eq!(host.eject(2), Effect::None);
    assert_eq!(plug(&host, "next", None).slot(), 1);
    // A reset has the same effect.
    let mut sample = Plugged::try_new("sample", &host, Some(3), info()).unwrap();
    sample.function.resume().unwrap();
    sample.function.detach().unwrap();
    assert!(Plugged::try_new("next", &host, Some(3), info()).is_err());
    host.device.reset().unwrap();
    assert_eq!(host.hotplug(4), 0);
    Plugged::try_new("next", &host, Some(3), info()).unwrap();
}

#[test]
fn what_came_and_went_before_the_guest_looked_leaves_no_news_of_coming() {
    let host = Host::started();
    drop(Plugged::new(&host, sample(1)));
    assert_eq!((host.hotplug(0), host.hotplug(4)), (0, 2));
    // One that was never seen leaves none at all.
    drop(plug(&host, "unseen", Some(9)));
    assert_eq!((host.hotplug(0), host.hotplug(4), host.hotplug(12)), (0, 0, 0));
    plug(&host, "next", Some(9));
}

#[test]
fn slots_are_given_once() {
    let host = Host::started();
    let all: Vec<Plugged> = (1..32).map(|slot| plug(&host, &format!("f{slot}"), None)).collect();
    assert!(all.iter().zip(1..).all(|(function, slot)| function.slot() == slot));
    let refused = |slot| Plugged::try_new("more", &host, slot, info()).err().unwrap().to_string();
    assert!(refused(None).contains("31 functions"));
    assert!(refused(Some(5)).contains("taken by f5"));
    assert!(refused(Some(0)).contains("1 to 31") && refused(Some(32)).contains("1 to 31"));
    assert!(refused(Some(255)).contains("1 to 31"));
}

#[test]
fn one_device_takes_the_place_of_another_and_the_guest_notices_nothing() {
    let host = Host::started();
    let mut old = Plugged::new(&host, sample(1));
    let _ = (host.hotplug(0), host.interrupts());
    let mut new = plug(&host, "sample", None);
    assert_eq!(new.slot(), 1);
    new.function.restore(new.function.check(&old.function.save().unwrap()).unwrap());
    new.function.resume().unwrap();
    old.function.detach().unwrap();
    assert_eq!((host.hotplug(0), host.hotplug(4), host.interrupts()), (0, 0, 0));
    new.write(&host, 0x3c, Size::B1, 9);
    assert_eq!(host.read(1, 0x3c, Size::B1), 9);
    // One that fails to take it leaves the old one.
    drop(plug(&host, "sample", None));
    assert_eq!((host.read(1, 0x3c, Size::B1), host.interrupts()), (9, 0));
    // And a pair of which the old one has gone before the new one goes on.
    let mut next = plug(&host, "sample", None);
    new.function.detach().unwrap();
    next.function.resume().unwrap();
    assert_eq!((is_there(&host, 1), host.hotplug(0), host.hotplug(4)), (true, 0, 0));
}

#[test]
fn b6_hotplug_registers_take_one_width_and_eject_only_what_is_there() {
    let host = Host::started();
    let sample = Plugged::new(&host, sample(1));
    let port = host.port("hotplug");
    for offset in (0..20).chain([u64::MAX]) {
        for size in [Size::B1, Size::B2, Size::B4, Size::B8] {
            let at = Access { offset, size };
            if size != Size::B4 || offset % 4 != 0 || offset > 12 {
                assert!(port.read(at).is_err() && port.write(at, u64::MAX).is_err(), "{at:?}");
            } else if offset == 8 {
                assert_eq!(port.read(at), Err(BusFault::WriteOnly));
            } else {
                assert_eq!(port.write(at, u64::MAX), Err(BusFault::ReadOnly));
            }
        }
    }
    // The host bridge, slots that are empty, several at once, none.
    for slots in [1, 1 << 2, 1 << 31, 0, 0b11, 0b110, u32::MAX] {
        assert_eq!(host.eject(slots), Effect::None, "{slots:#x}");
    }
    assert!(is_there(&host, 1) && host.read(0, 0, Size::B4) == 0x0008_1b36);
    assert!(matches!(host.eject(2), Effect::Remove(_)));
    assert_eq!(host.eject(2), Effect::None, "twice");
    drop(sample);
}

#[test]
fn a_removal_is_asked_of_a_guest_that_runs_and_a_function_that_is_there() {
    let mut host = Host::new();
    let mut sample = plug(&host, "sample", None);
    let unknown = Err(PciError::NoSuchFunction { id: "sample".to_owned() });
    assert_eq!(host.bus.request_removal("sample"), unknown);
    sample.function.resume().unwrap();
    assert_eq!(host.bus.request_removal("sample"), Err(PciError::NotStarted));
    host.device.resume().unwrap();
    assert_eq!(host.bus.request_removal("sample"), Ok(()));
    assert_eq!(host.bus.request_removal("sample"), Ok(()), "a guest may be asked again");
    assert_eq!(host.bus.request_removal("other"), Err(PciError::NoSuchFunction { id: "other".to_owned() }));
    let _ = host.eject(2);
    assert_eq!(host.bus.request_removal("sample"), unknown);
}

#[test]
fn a_bus_has_one_host_at_a_time() {
    let mut host = Host::started();
    let (mut board, mut second) = (TestBoard::default(), host.bus.host("second"));
    assert!(board.attach(&mut second).unwrap_err().to_string().contains("host bridge already"));
    assert!(second.detach().is_err());
    assert!(host.board.attach(&mut host.device).is_err(), "attached before");
    host.device.detach().unwrap();
    board.attach(&mut second).unwrap();
}

#[test]
fn without_ports_the_registers_are_in_memory_and_do_the_same() {
    let mut host = Host::with_ports(false);
    let requires = host.device.requires();
    assert!(requires.registers.iter().all(|request| request.space == ossature_bus::AddressSpace::Mmio));
    assert!(host.board.port("config").is_none());
    host.device.resume().unwrap();
    let mut late = plug(&host, "late", Some(3));
    late.function.resume().unwrap();
    assert_eq!((host.interrupts(), host.hotplug(0), host.hotplug(12)), (1, 1 << 3, 1 << 3));
    assert!(is_there(&host, 3));
    host.bus.request_removal("late").unwrap();
    assert_eq!((host.interrupts(), host.hotplug(4)), (1, 1 << 3));
    assert!(matches!(host.eject(1 << 3), Effect::Remove(_)));
    assert!(!is_there(&host, 3));
    late.function.detach().unwrap();
    // Its state has no address of ports that it does not have.
    let ossature_bus::DeviceState::Saved(state) = host.device.save().unwrap() else { panic!("no state") };
    host.device.restore(state).unwrap();
    let mut other = Host::new();
    let _ = other.port("config").write(Access { offset: 0, size: Size::B4 }, 0x8000_0804).unwrap();
    let ossature_bus::DeviceState::Saved(state) = other.device.save().unwrap() else { panic!("no state") };
    let refused = host.device.restore(state).unwrap_err().to_string();
    assert!(refused.contains("configuration address"), "{refused}");
}
