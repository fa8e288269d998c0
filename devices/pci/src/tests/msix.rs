//! MSI-X: table, masks, pending bits, hostile accesses (row A6).

use ossature_bus::MsiMessage;

use super::*;

const ENABLE: u64 = 1 << 15;
const MASK_ALL: u64 = 1 << 14;

/// Programs a vector, and unmasks it.
fn program(sample: &Plugged, vector: u64, address: u64, data: u64) {
    let entry = 16 * vector;
    sample.set_table(entry, address & 0xffff_ffff);
    sample.set_table(entry + 4, address >> 32);
    sample.set_table(entry + 8, data);
    sample.set_table(entry + 12, 0);
}

fn signal(sample: &Plugged, vector: u16) {
    sample.vectors.as_ref().unwrap().interrupt(vector).unwrap().signal().unwrap();
}

fn sent(sample: &Plugged, vector: usize) -> Option<MsiMessage> {
    sample.board.take_message("msix", vector)
}

fn pending(sample: &Plugged, word: u64) -> u64 {
    sample.bar0().read(Access { offset: 0x1000 + 8 * word, size: Size::B8 }).unwrap()
}

#[test]
fn a_vector_sends_its_message_while_nothing_masks_it() {
    let host = Host::started();
    let sample = Plugged::new(&host, sample(3));
    let message = MsiMessage::new(0xfee0_1000, 0x41).from_requester(8);
    program(&sample, 1, message.address, message.data.into());
    signal(&sample, 1);
    assert_eq!((sent(&sample, 1), pending(&sample, 0)), (None, 2), "MSI-X is not enabled");
    sample.set_control(&host, ENABLE | MASK_ALL);
    assert!(sample.vectors.as_ref().unwrap().is_enabled());
    assert_eq!((sent(&sample, 1), pending(&sample, 0)), (None, 2), "the function is masked");
    sample.set_control(&host, ENABLE);
    assert_eq!((sent(&sample, 1), pending(&sample, 0)), (Some(message), 0));
    signal(&sample, 1);
    assert_eq!(sent(&sample, 1), Some(message));
    sample.set_table(16 + 12, 1);
    signal(&sample, 1);
    signal(&sample, 1);
    assert_eq!((sent(&sample, 1), pending(&sample, 0)), (None, 2), "the vector is masked");
    // Programmed anew while it is masked, as a guest moves it to another processor.
    sample.set_table(16 + 8, 0x42);
    sample.set_table(16 + 12, 0);
    assert_eq!(sent(&sample, 1), Some(MsiMessage::new(0xfee0_1000, 0x42).from_requester(8)));
    assert_eq!((sent(&sample, 1), sent(&sample, 0), sent(&sample, 2)), (None, None, None));
    // And while it is not.
    sample.set_table(16, 0xfee0_2000);
    signal(&sample, 1);
    assert_eq!(sent(&sample, 1), Some(MsiMessage::new(0xfee0_2000, 0x42).from_requester(8)));
}

#[test]
fn a_table_reads_what_was_written_but_for_reserved_bits() {
    let host = Host::started();
    let sample = Plugged::new(&host, sample(2048));
    for vector in [0, 1, 63, 64, 2047] {
        let entry = 16 * vector;
        assert_eq!(sample.table(entry + 12), 1, "masked at first");
        (0..4).for_each(|word| sample.set_table(entry + 4 * word, 0xffff_ffff));
        let words = [0, 4, 8, 12].map(|word| sample.table(entry + word));
        assert_eq!(words, [0xffff_fffc, 0xffff_ffff, 0xffff_ffff, 1]);
        let wide = |offset| sample.bar0().read(Access { offset: 0x8000 + entry + offset, size: Size::B8 });
        assert_eq!((wide(0), wide(8)), (Ok(0xffff_ffff_ffff_fffc), Ok(0x1_ffff_ffff)));
        let at = Access { offset: 0x8000 + entry + 8, size: Size::B8 };
        let _ = sample.bar0().write(at, 0x77).unwrap();
        assert_eq!((sample.table(entry + 8), sample.table(entry + 12)), (0x77, 0));
    }
    assert_eq!(sample.read(&host, 0x42, Size::B2), 2047);
}

#[test]
fn pending_bits_are_those_of_their_vectors() {
    let host = Host::started();
    let sample = Plugged::new(&host, sample(130));
    for vector in [0, 63, 64, 129] {
        signal(&sample, vector);
    }
    assert_eq!([0, 1, 2].map(|word| pending(&sample, word)), [1 << 63 | 1, 1, 2]);
    let high = sample.bar0().read(Access { offset: 0x1004, size: Size::B4 });
    assert_eq!(high, Ok(1 << 31));
}

#[test]
fn a6_odd_accesses_to_table_and_pending_bits_do_no_harm() {
    let host = Host::started();
    let sample = Plugged::new(&host, sample(3));
    program(&sample, 2, 0xfee0_0000, 0x50);
    let port = sample.bar0();
    let before: Vec<u64> = (0..12).map(|word| sample.table(4 * word)).collect();
    // Every offset around table (0x8000..0x8030) and pending bits (0x1000..0x1008), every width.
    for offset in (0xff0..0x1020).chain(0x7ff0..0x8000).chain(0x8030..0x8040).chain(0x8000..0x8030) {
        for size in [Size::B1, Size::B2, Size::B4, Size::B8] {
            let at = Access { offset, size };
            let end = offset + size.bytes();
            let aligned = offset % size.bytes() == 0 && size >= Size::B4;
            let in_table = (0x8000..0x8030).contains(&offset);
            let in_pending = (0x1000..0x1008).contains(&offset);
            let reaches = offset < 0x8000 && end > 0x8000 || offset < 0x1000 && end > 0x1000;
            if in_pending {
                assert!(port.write(at, u64::MAX).is_err(), "{at:?}");
                assert_eq!(port.read(at).is_ok(), aligned, "{at:?}");
            } else if in_table && !aligned || reaches {
                assert!(port.read(at).is_err() && port.write(at, u64::MAX).is_err(), "{at:?}");
            } else {
                assert!(port.read(at).is_ok(), "{at:?}");
            }
        }
    }
    assert_eq!((0..12).map(|word| sample.table(4 * word)).collect::<Vec<_>>(), before);
    for offset in [u64::MAX, u64::MAX - 7, 1 << 40] {
        let _ = port.read(Access { offset, size: Size::B8 });
    }
}

#[test]
fn a_reset_masks_and_forgets_all_messages() {
    let host = Host::started();
    let mut sample = Plugged::new(&host, sample(2));
    program(&sample, 0, 0xfee0_0000, 0x50);
    signal(&sample, 1);
    sample.set_control(&host, ENABLE);
    assert_eq!(pending(&sample, 0), 2);
    sample.function.reset().unwrap();
    assert_eq!(pending(&sample, 0), 0);
    signal(&sample, 0);
    assert_eq!((sent(&sample, 0), sample.table(0), sample.table(12)), (None, 0, 1));
    assert_eq!(sample.read(&host, 0x42, Size::B2), 1);
    assert!(!sample.vectors.as_ref().unwrap().is_enabled());
}

/// A message that the hypervisor has no place for.
#[derive(Debug, Default)]
struct Refused(std::sync::atomic::AtomicU32);

impl ossature_bus::InterruptTarget for Refused {
    fn signal(&self) -> std::io::Result<()> {
        Ok(())
    }
    fn set_level(&self, _: bool) -> std::io::Result<()> {
        Ok(())
    }
    fn event(&self) -> Option<&Arc<ossature_bus::Event>> {
        None
    }
    fn resample(&self) -> Option<&Arc<ossature_bus::Event>> {
        None
    }
}

impl ossature_bus::MessageTarget for Refused {
    fn set_message(&self, _: MsiMessage) -> std::io::Result<()> {
        Ok(())
    }
    fn set_masked(&self, masked: bool) -> std::io::Result<()> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if masked { Ok(()) } else { Err(std::io::Error::other("no route is left")) }
    }
    fn is_pending(&self) -> bool {
        false
    }
    fn forget_pending(&self) {}
}

#[test]
fn a_vector_that_the_host_has_no_route_for_is_told_once_and_tried_again() {
    let reports = Arc::new(Mutex::new(Vec::new()));
    let told = reports.clone();
    let events = ossature_bus::EventSink::new(move |event| told.lock().unwrap().push(event));
    let target = Arc::new(Refused::default());
    let vectors = Vectors::new(&[ossature_bus::MessageInterrupt::new(target.clone())], 8, events);
    vectors.set_control(1 << 15);
    let port: Arc<dyn Mmio> = Arc::new(Mutex::new(Memory::default()));
    let bar = crate::msix::MsixBar { layout: MsixLayout::new(1, 0, 0, 0x10), vectors, port };
    for masked in [0, 1, 0, 1] {
        let _ = bar.write(Access { offset: 12, size: Size::B4 }, masked).unwrap();
    }
    assert_eq!(target.0.load(std::sync::atomic::Ordering::Relaxed), 2);
    let [ossature_bus::DeviceEvent::HostError { reason }] = &reports.lock().unwrap()[..] else { panic!() };
    assert!(reason.contains("no route is left"));
}

#[test]
fn messages_say_whose_they_are() {
    let host = Host::started();
    for slot in [1, 9, 31] {
        let mut sample = Plugged::try_new(&slot.to_string(), &host, Some(slot), sample(1)).unwrap();
        sample.function.resume().unwrap();
        program(&sample, 0, 0xf003_0040, 0);
        sample.set_control(&host, ENABLE);
        signal(&sample, 0);
        let message = MsiMessage::new(0xf003_0040, 0).from_requester(u32::from(slot) << 3);
        assert_eq!(sent(&sample, 0), Some(message));
        // Also after it has been saved, and is restored.
        let state = sample.function.save().unwrap();
        sample.function.reset().unwrap();
        sample.function.restore(sample.function.check(&state).unwrap());
        signal(&sample, 0);
        assert_eq!(sent(&sample, 0), Some(message));
    }
}
