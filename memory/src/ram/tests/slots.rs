//! Slots that come and go, and the listeners that follow them.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::*;
use crate::DmaError;

/// Writes down what it is told, and refuses slots at one address.
#[derive(Debug, Default)]
struct Follower {
    told: Mutex<Vec<String>>,
    refuses: Option<u64>,
}

impl Follower {
    fn told(&self) -> Vec<String> {
        std::mem::take(&mut self.told.lock().unwrap())
    }
}

impl MemoryListener for Follower {
    fn slot_added(&self, slot: &RamSlot) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if self.refuses == Some(slot.guest_addr) {
            return Err("no more slots".into());
        }
        self.told.lock().unwrap().push(format!("+{:#x}", slot.guest_addr));
        Ok(())
    }

    fn slot_removed(&self, slot: &RamSlot) {
        self.told.lock().unwrap().push(format!("-{:#x}", slot.guest_addr));
    }
}

fn small() -> Ram {
    Ram::new(&RamConfig::new(2 * MIB).gap(MIB..8 * MIB)).unwrap()
}

#[test]
fn views_reach_a_slot_once_they_are_refreshed() {
    let ram = small();
    let mut dma = ram.dma();
    let mut clone = dma.clone();
    let at = GuestAddress(16 * MIB);
    let id = ram.add_slot(at.0, MIB, &Backing::Memfd).unwrap();
    assert_eq!(ranges(&ram), [(0, MIB), (8 * MIB, MIB), (16 * MIB, MIB)]);
    assert_eq!(ram.size(), 3 * MIB);
    assert!(dma.write(at, b"x").is_err());
    assert!(dma.refresh());
    assert!(!dma.refresh());
    dma.write(at, b"x").unwrap();
    assert_eq!(ram.dma().read_obj::<u8>(at).unwrap(), b'x');
    assert!(clone.read_obj::<u8>(at).is_err());
    assert!(clone.refresh());
    assert_eq!(clone.read_obj::<u8>(at).unwrap(), b'x');

    ram.remove_slot(id).unwrap();
    assert_eq!(ranges(&ram), [(0, MIB), (8 * MIB, MIB)]);
    assert_eq!(dma.read_obj::<u8>(at).unwrap(), b'x');
    assert!(dma.refresh());
    assert_eq!(dma.check(at, 1), Err(DmaError::NotRam { addr: at.0, len: 1 }));
    assert_eq!(clone.read_obj::<u8>(at).unwrap(), b'x');
}

#[test]
fn slots_that_touch_are_one_run() {
    let ram = small();
    ram.add_slot(7 * MIB, MIB, &Backing::Anonymous).unwrap();
    ram.add_slot(9 * MIB, MIB, &Backing::Anonymous).unwrap();
    assert_eq!(ranges(&ram), [(0, MIB), (7 * MIB, MIB), (8 * MIB, MIB), (9 * MIB, MIB)]);
    let dma = ram.dma();
    dma.check(GuestAddress(7 * MIB), 3 * MIB).unwrap();
    dma.write(GuestAddress(8 * MIB - 4), b"over two").unwrap();
    let mut text = [0; 8];
    dma.read(GuestAddress(8 * MIB - 4), &mut text).unwrap();
    assert_eq!(&text, b"over two");
}

#[test]
fn removed_memory_is_unmapped_when_the_last_view_is_gone_or_refreshed() {
    use std::os::unix::fs::MetadataExt;
    let ram = small();
    let id = ram.add_slot(16 * MIB, MIB, &Backing::Memfd).unwrap();
    let slot = ram.slots().last().unwrap();
    let inode = slot.file().unwrap().file().metadata().unwrap().ino().to_string();
    drop(slot);
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().any(|line| line.split_whitespace().nth(4) == Some(&inode))
    };
    let mut dma = ram.dma();
    let window = dma.window(GuestAddress(16 * MIB), 16).unwrap();
    ram.remove_slot(id).unwrap();
    assert!(mapped());
    dma.refresh();
    assert!(mapped());
    window.write(0, b"still there").unwrap();
    drop(window);
    assert!(!mapped());
}

#[test]
fn slots_that_make_no_sense_are_refused() {
    let ram = small();
    let add = |at, size| ram.add_slot(at, size, &Backing::Anonymous).unwrap_err();
    for (at, size) in
        [(0, MIB), (MIB - 4096, 8192), (7 * MIB, 2 * MIB), (0, 64 * MIB), (8 * MIB + 4096, 4096)]
    {
        let error = add(at, size);
        assert!(matches!(error, RamError::Overlap { guest_addr, .. } if guest_addr == at), "{error}");
    }
    let text = add(7 * MIB, 2 * MIB).to_string();
    assert!(text.contains("0x700000+0x200000 overlaps the RAM at 0x800000+0x100000"), "{text}");
    assert!(matches!(add(16 * MIB + 1, MIB), RamError::SlotUnaligned { .. }));
    assert!(matches!(add(16 * MIB, MIB + 1), RamError::Unaligned { .. }));
    assert!(matches!(add(16 * MIB, 0), RamError::Zero));
    assert!(matches!(add(u64::MAX - 0xffff, 0x1_0000), RamError::AddressSpace { .. }));
    let all = host::total_memory() & !0xffff;
    assert!(matches!(add(16 * MIB, all), RamError::HostMemory { .. }));
    assert_eq!(ranges(&ram), [(0, MIB), (8 * MIB, MIB)]);
    assert!(!ram.dma().refresh());
}

#[test]
fn only_slots_that_were_added_can_be_removed_and_only_once() {
    let ram = small();
    let first = ram.slots().next().unwrap().id;
    assert!(matches!(ram.remove_slot(first), Err(RamError::Permanent { slot }) if slot == first));
    let id = ram.add_slot(16 * MIB, MIB, &Backing::Anonymous).unwrap();
    ram.remove_slot(id).unwrap();
    assert!(matches!(ram.remove_slot(id), Err(RamError::NoSlot { slot }) if slot == id));
    let again = ram.add_slot(16 * MIB, MIB, &Backing::Anonymous).unwrap();
    assert_ne!(id, again);
    assert!(matches!(ram.remove_slot(id), Err(RamError::NoSlot { .. })));
}

#[test]
fn listeners_hear_of_what_there_is_and_what_changes_until_they_leave() {
    let ram = small();
    let (first, second) = (Arc::new(Follower::default()), Arc::new(Follower::default()));
    let guard = ram.listen(first.clone()).unwrap();
    let id = ram.add_slot(16 * MIB, MIB, &Backing::Anonymous).unwrap();
    assert_eq!(first.told(), ["+0x0", "+0x800000", "+0x1000000"]);
    let other = ram.listen(second.clone()).unwrap();
    assert_eq!(second.told(), ["+0x0", "+0x800000", "+0x1000000"]);
    ram.remove_slot(id).unwrap();
    assert_eq!((first.told(), second.told()), (vec!["-0x1000000".into()], vec!["-0x1000000".into()]));
    drop(guard);
    assert_eq!(Arc::strong_count(&first), 1);
    ram.add_slot(20 * MIB, MIB, &Backing::Anonymous).unwrap();
    assert_eq!((first.told(), second.told()), (vec![], vec!["+0x1400000".into()]));
    drop(ram);
    drop(other);
    assert_eq!(second.told(), [""; 0]);
}

#[test]
fn a_listener_that_refuses_a_slot_undoes_it() {
    let ram = small();
    let followers =
        [None, Some(16 * MIB), None].map(|refuses| Arc::new(Follower { refuses, ..Follower::default() }));
    let _guards = followers.each_ref().map(|follower| ram.listen(follower.clone()).unwrap());
    followers.iter().for_each(|follower| drop(follower.told()));
    let mut dma = ram.dma();
    let error = ram.add_slot(16 * MIB, MIB, &Backing::Anonymous).unwrap_err();
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "no more slots");
    assert!(matches!(error, RamError::Listener { guest_addr, size: MIB, .. } if guest_addr == 16 * MIB));
    let told = followers.each_ref().map(|follower| follower.told());
    assert_eq!(told, [vec!["+0x1000000".to_owned(), "-0x1000000".into()], vec![], vec![]]);
    assert_eq!(ranges(&ram), [(0, MIB), (8 * MIB, MIB)]);
    assert!(!dma.refresh());
    ram.add_slot(20 * MIB, MIB, &Backing::Anonymous).unwrap();
    assert!(dma.refresh());
}

#[test]
fn a_listener_that_refuses_what_there_is_does_not_listen() {
    let ram = small();
    let follower = Arc::new(Follower { refuses: Some(8 * MIB), ..Follower::default() });
    let error = ram.listen(follower.clone()).unwrap_err();
    assert!(matches!(error, RamError::Listener { guest_addr, .. } if guest_addr == 8 * MIB), "{error}");
    assert_eq!(follower.told(), ["+0x0", "-0x0"]);
    ram.add_slot(16 * MIB, MIB, &Backing::Anonymous).unwrap();
    assert_eq!(follower.told(), [""; 0]);
    assert_eq!(Arc::strong_count(&follower), 1);
}

/// Looks at RAM when it is told of a change.
#[derive(Debug)]
struct Observer {
    dma: Mutex<Dma>,
    at: GuestAddress,
    saw: Mutex<Vec<bool>>,
}

impl Observer {
    fn look(&self) {
        let mut dma = self.dma.lock().unwrap();
        dma.refresh();
        self.saw.lock().unwrap().push(dma.check(self.at, 1).is_ok());
    }
}

impl MemoryListener for Observer {
    fn slot_added(&self, _: &RamSlot) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.look();
        Ok(())
    }

    fn slot_removed(&self, _: &RamSlot) {
        self.look();
    }
}

#[test]
fn a_slot_is_reached_only_while_all_listeners_know_it() {
    let ram = Ram::new(&RamConfig::new(MIB)).unwrap();
    let observer =
        Arc::new(Observer { dma: Mutex::new(ram.dma()), at: GuestAddress(16 * MIB), saw: Mutex::default() });
    let _guard = ram.listen(observer.clone()).unwrap();
    let id = ram.add_slot(16 * MIB, MIB, &Backing::Anonymous).unwrap();
    observer.look();
    ram.remove_slot(id).unwrap();
    assert_eq!(*observer.saw.lock().unwrap(), [false, false, true, false]);
}

#[test]
fn devices_access_slots_that_come_and_go() {
    let ram = small();
    let at = GuestAddress(16 * MIB);
    let stop = AtomicBool::new(false);
    let start = Barrier::new(3);
    thread::scope(|scope| {
        for _ in 0..2 {
            let mut dma = ram.dma();
            let (stop, start) = (&stop, &start);
            scope.spawn(move || {
                start.wait();
                while !stop.load(Ordering::Relaxed) {
                    dma.refresh();
                    let before = dma.write(at, &[1; 64]);
                    // Whatever happens in between, the view is the same until it is refreshed.
                    assert_eq!(dma.write(at, &[1; 64]), before);
                    dma.write(GuestAddress(0), &[1; 64]).unwrap();
                }
            });
        }
        start.wait();
        for _ in 0..500 {
            let id = ram.add_slot(at.0, MIB, &Backing::Anonymous).unwrap();
            assert_eq!(ram.dma().read_obj::<u8>(GuestAddress(at.0 + 64)).unwrap(), 0);
            ram.remove_slot(id).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(ranges(&ram), [(0, MIB), (8 * MIB, MIB)]);
}
