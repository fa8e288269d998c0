//! Rows about what only the PCI transport has: BARs, vectors, the window into the BARs, the ISR status, hotplug.

use std::sync::Arc;

use ossature_bus::{Access, Size};

use super::{Factory, eager, no_queues, probe, works};
use crate::testing::TestDriver;
use crate::testing::port::pci::guest::{MSIX_ENABLE, MSIX_MASK};
use crate::testing::port::pci::{NO_VECTOR, Vectors, common};
use crate::transport::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use crate::{Inline, SharedLoop};

const SIZES: [Size; 4] = [Size::B1, Size::B2, Size::B4, Size::B8];

/// The device works with a vector for each queue, with one for all, and with none.
pub fn every_choice_of_vectors(factory: Factory) {
    let eager = eager(factory);
    for vectors in [Vectors::PerQueue, Vectors::Shared, Vectors::None] {
        let runtime = Arc::new(SharedLoop::new("conformance").unwrap());
        let mut driver = TestDriver::with_vectors(factory(), runtime, vectors);
        for wanted in [0, u128::MAX] {
            driver.start(wanted);
            for _ in 0..30 {
                works(&mut driver, &eager);
                driver.device().quiesce().unwrap();
                driver.device().resume().unwrap();
            }
        }
        assert_eq!(driver.reports(), []);
    }
}

/// The ISR status says what happened to a driver without vectors, once.
pub fn g3_isr_status_is_true(factory: Factory) {
    for queue in eager(factory) {
        let inline = Inline::new().unwrap();
        let mut driver = TestDriver::with_vectors(factory(), Arc::new(inline.clone()), Vectors::None);
        let isr = driver.pci().isr.clone();
        let status = || isr.read(0, Size::B1);
        driver.start(0);
        inline.pump().unwrap();
        assert_eq!(status(), 0);
        for _ in 0..3 {
            probe(&mut driver, queue);
            driver.kick(queue);
            inline.pump().unwrap();
            assert_eq!([status(), status()], [1, 0]);
            assert!(driver.used(queue).is_some());
        }
        probe(&mut driver, queue);
        driver.kick(queue);
        inline.pump().unwrap();
        driver.reset();
        assert_eq!(status(), 0);
    }
}

/// Vectors of queues that do not exist, and vectors that do not exist, are not taken.
pub fn a5_vectors_out_of_range(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    driver.start(0);
    driver.interrupts();
    let vectors = driver.pci().msix.events.len() as u64;
    let read = |driver: &TestDriver, register| driver.pci().common.read(register, Size::B2);
    let write = |driver: &TestDriver, register, value| driver.pci().common.write(register, Size::B2, value);
    for select in no_queues(&driver) {
        driver.registers().select_queue(select);
        for vector in [0, 1, vectors - 1, vectors, 0x7ff, 0x800, NO_VECTOR] {
            write(&driver, common::QUEUE_MSIX_VECTOR, vector);
            assert_eq!(read(&driver, common::QUEUE_MSIX_VECTOR), NO_VECTOR, "queue {select}");
        }
    }
    for vector in [vectors, 0x7ff, 0x800, 0xfffe] {
        write(&driver, common::CONFIG_MSIX_VECTOR, vector);
        assert_eq!(read(&driver, common::CONFIG_MSIX_VECTOR), NO_VECTOR);
        for queue in 0..driver.queue_count() {
            driver.registers().select_queue(queue.into());
            write(&driver, common::QUEUE_MSIX_VECTOR, vector);
            assert_eq!(read(&driver, common::QUEUE_MSIX_VECTOR), NO_VECTOR);
        }
    }
    for &queue in &eager {
        probe(&mut driver, queue);
        driver.kick(queue);
        assert!(driver.used(queue).is_some());
    }
    assert_eq!(driver.interrupts(), 0, "an interrupt without a vector");
    driver.start(0);
    works(&mut driver, &eager);
}

/// The vector of a queue is changed while it runs: interrupts come on the new one, and those before it are not lost.
pub fn a5_vectors_change_while_queues_run(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    driver.start(0);
    let vectors = driver.pci().msix.events.len();
    for &queue in &eager {
        for vector in (0..vectors).rev() {
            driver.registers().select_queue(queue.into());
            driver.pci().common.write(common::QUEUE_MSIX_VECTOR, Size::B2, vector as u64);
            driver.interrupts();
            probe(&mut driver, queue);
            driver.kick(queue);
            assert!(driver.pci().msix.take(vector), "vector {vector}");
            assert!(driver.used(queue).is_some());
            assert_eq!(driver.interrupts(), 0, "another vector than {vector}");
        }
        // No vector, and one again: what came meanwhile may be seen in the ring.
        driver.pci().common.write(common::QUEUE_MSIX_VECTOR, Size::B2, NO_VECTOR);
        probe(&mut driver, queue);
        driver.kick(queue);
        assert_eq!(driver.interrupts(), 0);
        assert!(driver.used(queue).is_some());
    }
    driver.start(0);
    works(&mut driver, &eager);
}

/// MSI-X table and pending bits take aligned accesses of 4 and 8 bytes, and nothing else does any harm. What is signalled
/// while a vector or all are masked is pending, and comes once.
pub fn a6_table_and_pending_bits(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    driver.start(0);
    for region in [driver.pci().msix.table.clone(), driver.pci().msix.pending.clone()] {
        let words = |len: u64| (0..len / 4).map(|word| region.read(4 * word, Size::B4)).collect::<Vec<_>>();
        let before = words(region.len);
        for size in SIZES {
            for offset in (0..region.len + 16).chain([u64::MAX - 7, u64::MAX]) {
                let good = size.bytes() >= 4
                    && offset % size.bytes() == 0
                    && offset.checked_add(size.bytes()).is_some_and(|end| end <= region.len);
                let at = Access { offset, size };
                assert!(!good || region.try_read(at).is_ok(), "{at:?}");
                if !good && offset < region.len {
                    assert!(region.try_read(at).is_err(), "{at:?}");
                    assert!(region.try_write(at, u64::MAX).is_err(), "{at:?}");
                }
            }
        }
        assert_eq!(words(region.len), before);
    }
    // Pending bits are read-only.
    let at = Access { offset: 0, size: Size::B8 };
    let _ = driver.pci().msix.pending.try_write(at, u64::MAX);
    assert_eq!(driver.pci().msix.pending.read(0, Size::B8), 0);
    for &queue in &eager {
        let vector = queue + 1;
        for all in [false, true] {
            let port = driver.pci().clone();
            let set_masked = |masked| match all {
                true => port.msix.set_control(if masked { MSIX_ENABLE | MSIX_MASK } else { MSIX_ENABLE }),
                false => port.msix.set_masked(vector, masked),
            };
            driver.interrupts();
            set_masked(true);
            for _ in 0..3 {
                probe(&mut driver, queue);
                driver.kick(queue);
            }
            assert!(port.msix.is_pending(vector), "vector {vector}");
            assert_eq!(driver.interrupts(), 0);
            set_masked(false);
            assert_eq!(driver.interrupts(), 1, "vector {vector}");
            assert!(!port.msix.is_pending(vector));
            assert_eq!(std::iter::from_fn(|| driver.used(queue)).count(), 3);
            works(&mut driver, &eager);
        }
    }
}

/// BARs are sized, and moved, onto RAM too, while the device works and decodes them: it works wherever it is.
pub fn b7_bars_move_while_the_device_works(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    driver.start(0);
    let port = driver.pci().clone();
    let bars = port.slot.bars();
    for &(bar, wide, size) in &bars {
        let home = port.slot.bar(bar, wide);
        let at_home = |driver: &mut TestDriver| {
            assert_eq!(port.slot.bar(bar, wide), home);
            port.assert_enabled();
            assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
            works(driver, &eager);
        };
        // Sized while it decodes, one half after the other.
        port.slot.set_bar(bar, wide, u64::MAX);
        let flags = if wide { u64::MAX } else { u32::MAX.into() };
        assert_eq!(port.slot.bar(bar, wide), flags & !(size - 1));
        port.slot.set_bar(bar, wide, home);
        at_home(&mut driver);
        // Onto RAM, outside of the windows, to the end of the address space, onto configuration space.
        for hostile in [0, 33 << 20, 0xfee0_0000, 0xd000_0000, u64::MAX - (size - 1), 1 << 52] {
            let hostile = hostile & flags;
            let before: [u8; 16] = std::array::from_fn(|i| i as u8);
            let segment = driver.buffer_with(&before);
            port.slot.set_bar(bar, wide, hostile);
            assert_eq!(port.slot.bar(bar, wide), hostile & !(size - 1), "it reads what was written");
            assert_eq!(driver.bytes(&[segment]), before);
            port.slot.set_bar(bar, wide, home);
            at_home(&mut driver);
        }
        // To another place in the window, where it answers, and only there.
        let away = (home + (32 << 20)) & !(size - 1);
        port.slot.set_bar(bar, wide, away);
        let isr = &port.isr;
        assert!(isr.bar != home || isr.range().is_none(), "it answers where it was");
        let moved = port.common.at_bar(away);
        assert!(port.common.bar != home || moved.read(common::DEVICE_STATUS, Size::B1) == 15);
        port.slot.set_bar(bar, wide, home);
        at_home(&mut driver);
        // Moved while it does not decode.
        port.slot.set_decoding(false);
        assert!(port.common.range().is_none(), "it answers without decoding");
        port.slot.set_bar(bar, wide, away);
        port.slot.set_bar(bar, wide, home);
        port.slot.set_decoding(true);
        at_home(&mut driver);
    }
    assert_eq!(driver.reports(), []);
}

/// The window into the BARs takes accesses of 1, 2 and 4 bytes to a register, and nothing else does any harm.
pub fn pci_window_into_the_bars(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    driver.start(0);
    let port = driver.pci().clone();
    let (slot, window) = (&port.slot, port.window);
    let aim = |bar: u64, offset: u64, len: u64| {
        slot.write(window + 4, Size::B1, bar);
        slot.write(window + 8, Size::B4, offset);
        slot.write(window + 12, Size::B4, len);
    };
    let bar = port.bars.iter().find(|(_, addr)| *addr == port.common.bar).unwrap().0.into();
    let (status, select) =
        (port.common.offset + common::DEVICE_STATUS, port.common.offset + common::QUEUE_SELECT);
    aim(bar, status, 1);
    assert_eq!(slot.read(window + 16, Size::B4) & 0xff, 15);
    // A write reaches the register.
    aim(bar, select, 2);
    slot.write(window + 16, Size::B2, u64::from(u16::MAX));
    assert_eq!(driver.registers().queue_max(), 0);
    aim(bar, select, 2);
    slot.write(window + 16, Size::B2, 0);
    assert_ne!(driver.registers().queue_max(), 0);
    for hostile_bar in [bar, bar + 1, 5, 6, 7, 0xff] {
        for offset in [0, 1, 2, 3, port.common.offset + 60, 0x0fff, 0x7fff_ffff, 0xffff_fffc, 0xffff_ffff] {
            for len in [0, 1, 2, 3, 4, 5, 8, 0xffff_ffff] {
                aim(hostile_bar, offset, len);
                for size in [Size::B1, Size::B2, Size::B4] {
                    let _ = slot.read(window + 16, size);
                }
            }
        }
    }
    // Lengths and places that no register has are not written.
    for (offset, len) in [(status, 0), (status, 3), (status, 8), (status - 1, 4), (u64::from(u32::MAX), 1)] {
        aim(bar, offset, len);
        slot.write(window + 16, Size::B4, 0);
        assert_eq!(driver.status(), 15, "{len} bytes at {offset:#x}");
    }
    // The window does not depend on where the BAR is.
    slot.set_decoding(false);
    aim(bar, status, 1);
    assert_eq!(slot.read(window + 16, Size::B4) & 0xff, 15);
    slot.set_decoding(true);
    works(&mut driver, &eager);
}

/// A function that is removed without asking the guest is gone at once, and the guest is told; it comes back when the
/// guest has ejected what was there.
pub fn surprise_removal(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    driver.start(u128::MAX);
    for queue in 0..driver.queue_count() {
        probe(&mut driver, queue);
        driver.kick(queue);
    }
    let port = driver.pci().clone();
    driver.remove_by_surprise();
    // Whoever still looks finds nothing, and changes nothing.
    assert_eq!(port.slot.read(0, Size::B4), 0xffff_ffff);
    assert!(port.common.range().is_none());
    port.slot.set_bar(0, true, 0);
    port.slot.set_decoding(true);
    driver.plug_in_after_ejection();
    for wanted in [0, u128::MAX] {
        driver.start(wanted);
        works(&mut driver, &eager);
    }
}
