//! Rows about registers: status, features, queues, configuration space.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ossature_bus::{Access, BusFault, DeviceEvent, Size};

use super::{Factory, eager, no_queues, probe, works};
use crate::features::VERSION_1;
use crate::testing::TestDriver;
use crate::transport::core::Ring;
use crate::transport::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET};
use crate::{MmioInterrupt, SharedLoop};

/// Configuration space ends where the device says, for every width and direction.
pub fn config_space_is_bounded(factory: Factory) {
    let len = u64::from(factory().info().config_len);
    let mut expected = vec![0; len as usize];
    factory().read_config(0, &mut expected);
    let driver = TestDriver::boxed(factory());
    driver.add_status(ACKNOWLEDGE);
    driver.add_status(DRIVER);
    let registers = driver.registers();
    let room = registers.config_room();
    for size in [Size::B1, Size::B2, Size::B4, Size::B8] {
        for offset in (0..room).chain([u64::MAX - 4095, u64::MAX - 4102]) {
            let at = Access { offset, size };
            let fault = if offset >= len {
                Some(BusFault::Unmapped)
            } else if offset % size.bytes() != 0 {
                Some(BusFault::Alignment)
            } else if offset + size.bytes() > len {
                Some(BusFault::Crosses)
            } else {
                None
            };
            let value = expected.iter().skip(offset as usize).take(size.bytes() as usize).rev();
            let value = value.fold(0, |value, byte| value << 8 | u64::from(*byte));
            assert_eq!(registers.config(at), fault.map_or(Ok(value), Err), "{at:?}");
        }
    }
    for size in [Size::B1, Size::B2, Size::B4, Size::B8] {
        for offset in 0..room {
            let inside = offset % size.bytes() == 0 && offset + size.bytes() <= len;
            let wrote = registers.set_config(Access { offset, size }, u64::MAX);
            assert_eq!(wrote.is_ok(), inside);
        }
    }
    driver.pump();
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER);
}

/// Writes sizes and addresses that make a ring impossible to the selected queue.
fn scribble_on_one(driver: &TestDriver) {
    for value in [u32::MAX, 3, 0x7fff_fff1] {
        driver.registers().set_queue_size(value);
        for ring in [Ring::Desc, Ring::Avail, Ring::Used] {
            driver.registers().set_queue_address(ring, u64::from(value) << 32 | u64::from(value));
        }
    }
}

/// The same on every queue, which is to be enabled then.
fn scribble(driver: &TestDriver, enable: bool) {
    for queue in 0..driver.queue_count() {
        driver.registers().select_queue(queue.into());
        scribble_on_one(driver);
        if enable {
            driver.registers().set_queue_ready(1);
        }
    }
}

/// Queue registers stay as they are before the features are settled.
pub fn a1_queue_registers_before_features_ok(factory: Factory) {
    let mut driver = TestDriver::boxed(factory());
    let queues = driver.queue_count();
    for bits in [0, ACKNOWLEDGE, DRIVER] {
        driver.add_status(bits);
        scribble(&driver, true);
        for queue in 0..queues {
            assert_ne!(driver.queue_max(queue), 0);
            assert!(!driver.is_ready(queue));
        }
    }
    assert!(driver.accept(VERSION_1));
    // With the values after a reset (the largest size, addresses of 0) a queue is possible.
    for queue in 0..queues {
        assert!(driver.enable_queue(queue));
    }
    // With the scribbled ones it is not.
    driver.negotiate(0);
    scribble(&driver, true);
    for queue in 0..queues {
        assert!(!driver.is_ready(queue));
    }
}

/// Queue registers stay as they are once a queue is enabled.
pub fn a1_queue_registers_after_ready(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    driver.negotiate(0);
    for queue in 0..driver.queue_count() {
        assert!(driver.set_up_queue(queue, 4));
    }
    scribble(&driver, false);
    driver.add_status(DRIVER_OK);
    works(&mut driver, &eager);
}

/// Queue registers stay as they are while the driver runs.
pub fn a1_queue_registers_after_driver_ok(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    driver.start(0);
    scribble(&driver, true);
    for queue in 0..driver.queue_count() {
        assert!(driver.is_ready(queue));
    }
    works(&mut driver, &eager);
    driver.device().quiesce().unwrap();
    driver.device().resume().unwrap();
    works(&mut driver, &eager);
}

/// A selected queue that does not exist reads as nothing and takes nothing.
pub fn a5_queue_select_out_of_range(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    driver.negotiate(0);
    for queue in 0..driver.queue_count() {
        assert!(driver.set_up_queue(queue, 4));
    }
    for select in no_queues(&driver) {
        driver.registers().select_queue(select);
        assert_eq!(driver.registers().queue_max(), 0);
        scribble_on_one(&driver);
        driver.registers().set_queue_ready(1);
        assert_eq!((driver.registers().queue_max(), driver.registers().queue_ready()), (0, 0));
    }
    driver.add_status(DRIVER_OK);
    works(&mut driver, &eager);
}

/// A kick for a queue that does not exist wakes nobody.
pub fn a7_notify_of_no_queue(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    driver.start(0);
    driver.interrupts();
    for queue in no_queues(&driver) {
        driver.kick_register(queue);
    }
    assert_eq!(driver.interrupts(), 0);
    works(&mut driver, &eager);
}

/// A driver that accepts what was not offered, or does not accept version 1, gets no FEATURES_OK.
pub fn a11_unoffered_features(factory: Factory) {
    let mut driver = TestDriver::boxed(factory());
    let offered = driver.offered();
    assert_ne!(offered & VERSION_1, 0);
    for window in [4, 5, u32::MAX] {
        assert_eq!(driver.registers().device_features(window), 0);
    }
    let begin = |driver: &mut TestDriver| {
        driver.reset();
        driver.add_status(ACKNOWLEDGE);
        driver.add_status(DRIVER);
    };
    for bit in (0..128).map(|bit| 1u128 << bit) {
        begin(&mut driver);
        assert_eq!(driver.accept(VERSION_1 | bit), offered & bit != 0, "{bit:#x}");
    }
    for window in [4, 5, 1 << 27, u32::MAX] {
        for bit in 0..32 {
            begin(&mut driver);
            driver.registers().set_driver_features(window, 1 << bit);
            assert!(!driver.accept(VERSION_1), "bit {bit} of window {window:#x}");
        }
    }
    begin(&mut driver);
    assert!(!driver.accept(offered & !VERSION_1));
    // A refusal can be mended, an agreement cannot be changed.
    assert!(driver.accept(offered));
    driver.accept(u128::MAX);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    driver.add_status(DRIVER_OK);
    assert_eq!(driver.status() & NEEDS_RESET, 0);
}

/// What the specification makes of a status write, in prose: steps of the order, or giving up, or a reset. `agreed` is
/// true if the features are right.
fn expected_status(from: u8, written: u8, agreed: bool) -> u8 {
    let order = [0, ACKNOWLEDGE, DRIVER | ACKNOWLEDGE, 0b1011, 0b1111];
    let position = |status| order.iter().position(|&other| other == status & !(NEEDS_RESET | FAILED));
    match (position(from), position(written)) {
        _ if written == 0 => 0,
        (Some(at), Some(to)) if from & FAILED == 0 && at <= to => {
            let reached = if agreed { to } else { to.min(2) };
            order[reached] | written & FAILED
        }
        _ => from,
    }
}

/// All pairs of status writes end where the specification says.
pub fn a13_all_status_pairs(factory: Factory) {
    let driver = TestDriver::boxed(factory());
    let write = |value: u8| driver.write_status(value);
    let order: [&[u8]; 5] = [&[], &[1], &[1, 3], &[1, 3, 11], &[1, 3, 11, 15]];
    for first in 0..=255 {
        for second in 0..=255 {
            write(0);
            write(first);
            write(second);
            let expected = expected_status(expected_status(0, first, false), second, false);
            assert_eq!(driver.status(), expected, "{first} {second}");
        }
    }
    for path in order {
        for written in 0..=255 {
            write(0);
            for &step in path {
                write(step);
                // Where it counts, the features are right.
                driver.write_features(VERSION_1);
            }
            let from = path.last().copied().unwrap_or(0);
            assert_eq!(driver.status(), from);
            write(written);
            assert_eq!(driver.status(), expected_status(from, written, from >= 3), "{from} {written}");
        }
    }
    driver.pump();
}

/// How many of the driver's mistakes were told.
fn told(driver: &TestDriver) -> usize {
    driver.reports().iter().filter(|event| matches!(event, DeviceEvent::Ignored { .. })).count()
}

/// Several steps of the status in one write are as good as one by one; what is refused is told once.
pub fn g1_status_steps_in_one_write(factory: Factory) {
    let eager = eager(factory);
    for steps in [&[3, 11, 15][..], &[3, 15], &[1, 3, 15], &[1, 3, 11, 15]] {
        let mut driver = TestDriver::boxed(factory());
        driver.write_status(0);
        for &step in steps {
            driver.write_status(step);
            assert_eq!(driver.status(), step);
            if step == 3 {
                driver.write_features(VERSION_1);
            }
        }
        // The queues come last, which is late, and does no harm.
        for queue in 0..driver.queue_count() {
            assert!(driver.set_up_queue(queue, 4));
        }
        works(&mut driver, &eager);
        assert_eq!(driver.reports(), []);
        driver.write_status(DRIVER_OK);
        assert_eq!(driver.status(), 15);
        for _ in 0..3 {
            driver.reset();
            driver.write_status(DRIVER);
            assert_eq!(driver.status(), 0);
        }
        assert_eq!(told(&driver), 1);
        driver.start(0);
        works(&mut driver, &eager);
    }
}

/// A queue that is disabled while the driver runs stops, reads as disabled, and can be set up anew.
pub fn g2_queue_ready_is_cleared(factory: Factory) {
    let eager = eager(factory);
    let runtime = Arc::new(SharedLoop::new("conformance").unwrap());
    for wanted in [0, u128::MAX] {
        let mut driver = TestDriver::with_runtime(factory(), runtime.clone());
        driver.start(wanted);
        for round in 0..10 {
            works(&mut driver, &eager);
            for queue in 0..driver.queue_count() {
                probe(&mut driver, queue);
                driver.kick_register(queue.into());
                driver.registers().select_queue(queue.into());
                driver.registers().set_queue_ready(0);
                assert!(!driver.is_ready(queue));
                let used = driver.ring(queue).used_index();
                probe(&mut driver, queue);
                driver.kick_register(queue.into());
                assert_eq!(driver.ring(queue).used_index(), used);
            }
            for queue in 0..driver.queue_count() {
                assert!(driver.set_up_queue_at((16 + 4 * (round % 3) + u64::from(queue)) << 20, queue, 8));
            }
        }
        works(&mut driver, &eager);
        assert_eq!(driver.reports(), []);
    }
}

/// The interrupt status says what happened, and nothing once it was acknowledged.
pub fn g3_interrupt_status_is_true(factory: Factory) {
    let eager = eager(factory);
    let status = |driver: &TestDriver| driver.registers().pending();
    for interrupt in [MmioInterrupt::Exact, MmioInterrupt::SharedLine] {
        for &queue in &eager {
            let mut driver = TestDriver::with_interrupt_boxed(factory(), interrupt);
            driver.start(0);
            driver.pump();
            for _ in 0..3 {
                assert_eq!((status(&driver), driver.interrupts(), driver.is_asserted()), (0, 0, false));
                probe(&mut driver, queue);
                driver.kick(queue);
                assert_eq!((status(&driver), driver.interrupts()), (1, 1));
                assert_eq!(driver.is_asserted(), interrupt == MmioInterrupt::SharedLine);
                // What did not happen cannot be acknowledged.
                driver.registers().acknowledge(2);
                assert_eq!(status(&driver), 1);
                driver.registers().acknowledge(1);
                assert!(driver.used(queue).is_some());
            }
            probe(&mut driver, queue);
            driver.kick(queue);
            driver.reset();
            driver.interrupts();
            assert_eq!((status(&driver), driver.is_asserted()), (0, false));
        }
    }
}

/// A vCPU writes and reads every register, status and queues included, while another starts the device, and a worker
/// works: nobody waits for ever, and the device works afterwards.
pub fn registers_under_load(factory: Factory) {
    let eager = eager(factory);
    let runtime = Arc::new(SharedLoop::new("conformance").unwrap());
    let mut driver = TestDriver::with_runtime(factory(), runtime);
    let (registers, stop) = (driver.registers().clone(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                (0..3).for_each(|value| registers.scribble(value));
            }
        });
        for _ in 0..100 {
            for status in [0, 1, 3, 11, 15] {
                driver.write_features(VERSION_1);
                driver.write_status(status);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    driver.start(0);
    works(&mut driver, &eager);
}
