//! Faults that are served by the test's thread.

use std::thread;

use super::*;
use crate::{Backing, FileBacking, Ram, RamConfig};

const SIZE: u64 = 1 << 20;

/// Userfaults of all of the RAM.
fn faults(ram: &Ram, mode: UserfaultMode) -> Userfault {
    let mut faults = Userfault::open(mode).unwrap();
    for slot in ram.slots() {
        faults.register(&slot, 0, slot.size).unwrap();
    }
    faults
}

fn wait(faults: &Userfault) -> UserfaultEvent {
    loop {
        match faults.next_event().unwrap() {
            Some(event) => return event,
            None => faults.wait(None).unwrap(),
        }
    }
}

#[test]
fn a_missing_page_comes_when_it_is_touched() {
    let page = host_page_size() as u64;
    let ram = Ram::new(&RamConfig::new(SIZE)).unwrap();
    let faults = faults(&ram, UserfaultMode::Missing);
    assert_eq!(faults.next_event().unwrap(), None);
    let dma = ram.dma();
    let reader = thread::spawn(move || dma.read_obj::<u8>(GuestAddress(3 * page + 5)).unwrap());
    assert_eq!(wait(&faults), UserfaultEvent::Fault { addr: GuestAddress(3 * page) });
    let bytes = vec![7; 2 * page as usize];
    assert_eq!(faults.copy(GuestAddress(3 * page), &bytes).unwrap(), Filled::All);
    assert_eq!(reader.join().unwrap(), 7);
    // What is there stays.
    assert_eq!(faults.copy(GuestAddress(2 * page), &vec![8; 3 * page as usize]).unwrap(), Filled::Part(page));
    let rest = vec![8; 2 * page as usize];
    assert_eq!(faults.copy(GuestAddress(3 * page), &rest).unwrap(), Filled::Present);
    assert_eq!(faults.copy(GuestAddress(4 * page), &rest).unwrap(), Filled::Present);
    assert_eq!(faults.zero(GuestAddress(3 * page), page).unwrap(), Filled::Present);
    assert_eq!(faults.zero(GuestAddress(5 * page), page).unwrap(), Filled::All);
    let seen = [1, 2, 3, 4, 5]
        .map(|n| if n == 1 { 0 } else { ram.dma().read_obj::<u8>(GuestAddress(n * page)).unwrap() });
    assert_eq!(seen, [0, 8, 7, 7, 0]);
    // What is not registered, or not whole pages.
    assert!(faults.copy(GuestAddress(SIZE), &bytes).is_err());
    assert!(faults.copy(GuestAddress(8 * page), &bytes[1..]).is_err());
    assert!(faults.zero(GuestAddress(8 * page), 0).is_err());
    // Nothing waits for a handler that is gone.
    drop(faults);
    assert_eq!(ram.dma().read_obj::<u8>(GuestAddress(9 * page)).unwrap(), 0);
}

#[test]
fn discarded_pages_are_told_before_they_are_gone() {
    let page = host_page_size() as u64;
    let ram = Ram::new(&RamConfig::new(SIZE)).unwrap();
    let faults = faults(&ram, UserfaultMode::Missing);
    let dma = ram.dma();
    let discarder = thread::spawn(move || dma.discard(GuestAddress(4 * page), 2 * page).unwrap());
    faults.wait(None).unwrap();
    assert_eq!(faults.zero(GuestAddress(0), page).unwrap(), Filled::Changing);
    assert_eq!(wait(&faults), UserfaultEvent::Removed { addr: GuestAddress(4 * page), len: 2 * page });
    discarder.join().unwrap();
    // Memory that is cleared is another mapping, which is zero.
    ram.clear().unwrap();
    assert_eq!(faults.zero(GuestAddress(0), page).unwrap(), Filled::Gone);
    assert_eq!(ram.dma().read_obj::<u8>(GuestAddress(0)).unwrap(), 0);
}

#[test]
fn a_write_to_a_protected_page_waits() {
    let page = host_page_size() as u64;
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let ram = Ram::new(&RamConfig::new(SIZE).backing(backing)).unwrap();
        let faults = faults(&ram, UserfaultMode::WriteProtected);
        ram.dma().write(GuestAddress(2 * page), &[1]).unwrap();
        faults.populate(GuestAddress(0), SIZE).unwrap();
        assert_eq!(faults.protect(GuestAddress(0), SIZE, true).unwrap(), Filled::All);
        // One that was written before, and one that never was.
        for n in [2, 5] {
            let addr = GuestAddress(n * page);
            let before = ram.dma().read_obj::<u8>(addr).unwrap();
            let dma = ram.dma();
            let writer = thread::spawn(move || dma.write(addr, &[9]).unwrap());
            assert_eq!(wait(&faults), UserfaultEvent::Fault { addr });
            assert_eq!(ram.dma().read_obj::<u8>(addr).unwrap(), before);
            assert_eq!(faults.protect(addr, page, false).unwrap(), Filled::All);
            writer.join().unwrap();
            assert_eq!(ram.dma().read_obj::<u8>(addr).unwrap(), 9);
        }
        drop(faults);
        ram.dma().write(GuestAddress(7 * page), &[1]).unwrap();
    }
}

#[test]
fn memory_whose_faults_cannot_be_served_is_refused_by_name() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(SIZE).unwrap();
    let private = Backing::File(FileBacking::private(file.try_clone().unwrap(), 0));
    let shared = Backing::File(FileBacking::shared(file, 0));
    let cases = [
        (RamConfig::new(SIZE).backing(Backing::Memfd), UserfaultMode::Missing, "shared"),
        (RamConfig::new(SIZE).prefault(true), UserfaultMode::Missing, "prefaulted"),
        (RamConfig::new(SIZE).backing(private), UserfaultMode::WriteProtected, "a private copy of a file"),
        (RamConfig::new(SIZE).backing(shared), UserfaultMode::WriteProtected, "a file of somebody else's"),
    ];
    for (config, mode, expected) in cases {
        let ram = Ram::new(&config).unwrap();
        let mut faults = Userfault::open(mode).unwrap();
        let slot = ram.slots().next().unwrap();
        let error = faults.register(&slot, 0, SIZE).unwrap_err();
        assert!(matches!(error, UserfaultError::Backing { is } if is == expected), "{error}");
        assert!(matches!(faults.register(&slot, 1, SIZE), Err(UserfaultError::Range { .. })));
    }
}

#[test]
fn held_pages_are_written_before_they_are_gone() {
    let page = host_page_size() as u64;
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let ram = Ram::new(&RamConfig::new(SIZE).backing(backing)).unwrap();
        let addr = GuestAddress(3 * page);
        for discard in [true, false] {
            ram.dma().write(addr, &[5]).unwrap();
            let faults = faults(&ram, UserfaultMode::WriteProtected);
            let held = HeldPages::of(&ram.slots().collect::<Vec<_>>());
            faults.protect(addr, page, true).unwrap();
            thread::scope(|scope| {
                let ram = &ram;
                scope.spawn(move || {
                    if discard { ram.dma().discard(addr, page).unwrap() } else { ram.clear().unwrap() }
                });
                assert_eq!(wait(&faults), UserfaultEvent::Fault { addr });
                assert_eq!(ram.dma().read_obj::<u8>(addr).unwrap(), 5);
                drop(faults);
            });
            drop(held);
            assert_eq!(ram.dma().read_obj::<u8>(addr).unwrap(), 0);
        }
    }
}
