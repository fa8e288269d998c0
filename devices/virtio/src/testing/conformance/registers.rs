//! Rows about registers: status, features, queues, configuration space.

use ossature_bus::{Access, BusFault, Size};
use virtio_bindings::bindings::virtio_mmio as reg;

use super::{Factory, eager, works};
use crate::testing::TestDriver;
use crate::transport::features::VERSION_1;
use crate::transport::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET};

/// Configuration space ends where the device says, for every width and direction.
pub fn config_space_is_bounded(factory: Factory) {
    let len = u64::from(factory().config_len());
    let mut expected = vec![0; len as usize];
    factory().read_config(0, &mut expected);
    let driver = TestDriver::boxed(factory());
    driver.add_status(ACKNOWLEDGE);
    driver.add_status(DRIVER);
    let port = driver.port();
    let base = u64::from(reg::VIRTIO_MMIO_CONFIG);
    for size in [Size::B1, Size::B2, Size::B4, Size::B8] {
        for offset in (0..4096 - base).chain([u64::MAX - base, u64::MAX - base - 7]) {
            let at = Access { offset: base + offset, size };
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
            assert_eq!(port.read(at), fault.map_or(Ok(value), Err), "{at:?}");
        }
    }
    for size in [Size::B1, Size::B2, Size::B4, Size::B8] {
        for offset in 0..4096 - base {
            let inside = offset % size.bytes() == 0 && offset + size.bytes() <= len;
            let wrote = port.write(Access { offset: base + offset, size }, u64::MAX);
            assert_eq!(wrote.is_ok(), inside);
        }
    }
    driver.pump();
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER);
}

const QUEUE_REGISTERS: [u32; 7] = [
    reg::VIRTIO_MMIO_QUEUE_NUM,
    reg::VIRTIO_MMIO_QUEUE_DESC_LOW,
    reg::VIRTIO_MMIO_QUEUE_DESC_HIGH,
    reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
    reg::VIRTIO_MMIO_QUEUE_USED_LOW,
    reg::VIRTIO_MMIO_QUEUE_USED_HIGH,
];

/// Writes each register of every queue with what makes a ring impossible, and QueueReady with `ready`.
fn scribble(driver: &TestDriver, ready: &[u32]) {
    for queue in 0..driver.queue_count() {
        driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue.into());
        for value in [u32::MAX, 3, 0x7fff_fff1] {
            QUEUE_REGISTERS.iter().for_each(|&register| driver.write(register, value));
        }
        ready.iter().for_each(|&value| driver.write(reg::VIRTIO_MMIO_QUEUE_READY, value));
    }
}

/// Queue registers stay as they are before the features are settled.
pub fn a1_queue_registers_before_features_ok(factory: Factory) {
    let mut driver = TestDriver::boxed(factory());
    let queues = driver.queue_count();
    for bits in [0, ACKNOWLEDGE, DRIVER] {
        driver.add_status(bits);
        scribble(&driver, &[1]);
        for queue in 0..queues {
            assert_ne!(driver.queue_max(queue), 0);
            assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
        }
    }
    assert!(driver.accept(VERSION_1));
    // With the values after a reset (the largest size, addresses of 0) a queue is possible.
    for queue in 0..queues {
        driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue.into());
        driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 1);
    }
    // With the scribbled ones it is not.
    for queue in 0..queues {
        driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue.into());
        driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    }
    scribble(&driver, &[1]);
    for queue in 0..queues {
        driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue.into());
        assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
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
    scribble(&driver, &[]);
    driver.add_status(DRIVER_OK);
    works(&mut driver, &eager);
}

/// Queue registers stay as they are while the driver runs.
pub fn a1_queue_registers_after_driver_ok(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    driver.start(0);
    scribble(&driver, &[0, 1, 0]);
    for queue in 0..driver.queue_count() {
        driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue.into());
        assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 1);
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
    let queues = driver.queue_count();
    for queue in 0..queues {
        assert!(driver.set_up_queue(queue, 4));
    }
    for select in [u32::from(queues), 0xffff, 0x1_0000, u32::MAX] {
        driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, select);
        assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        QUEUE_REGISTERS.iter().for_each(|&register| driver.write(register, u32::MAX));
        driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    }
    driver.add_status(DRIVER_OK);
    works(&mut driver, &eager);
}

/// A kick for a queue that does not exist wakes nobody.
pub fn a7_notify_of_no_queue(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    driver.start(0);
    let queues = driver.queue_count();
    for queue in [u32::from(queues), u32::from(queues) + 1, 0xffff, 0x1_0000, u32::MAX] {
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
    driver.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_DEVICE_FEATURES), 0);
    let begin = |driver: &mut TestDriver| {
        driver.reset();
        driver.add_status(ACKNOWLEDGE);
        driver.add_status(DRIVER);
    };
    for bit in (0..64).map(|bit| 1u64 << bit) {
        begin(&mut driver);
        assert_eq!(driver.accept(VERSION_1 | bit), offered & bit != 0, "{bit:#x}");
    }
    for select in [2, 3, u32::MAX] {
        for bit in 0..32 {
            begin(&mut driver);
            driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, 1 << bit);
            assert!(!driver.accept(VERSION_1), "bit {bit} of window {select:#x}");
        }
    }
    begin(&mut driver);
    assert!(!driver.accept(offered & !VERSION_1));
    // A refusal can be mended, an agreement cannot be changed.
    assert!(driver.accept(offered));
    driver.accept(u64::MAX);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    driver.add_status(DRIVER_OK);
    assert_eq!(driver.status() & NEEDS_RESET, 0);
}

/// What the specification makes of a status write, in prose: one step of the order, or giving up, or a reset.
fn expected_status(from: u8, to: u8) -> u8 {
    let order = [0, ACKNOWLEDGE, DRIVER | ACKNOWLEDGE, 0b1011, 0b1111];
    let to = to & !NEEDS_RESET | if to == NEEDS_RESET { NEEDS_RESET } else { 0 };
    let position = order.iter().position(|&status| status == from);
    match position {
        _ if to == 0 => 0,
        Some(_) if to == from | FAILED => to,
        Some(at) if order.get(at + 1) == Some(&to) => to,
        _ => from,
    }
}

/// All pairs of status writes end where the specification says.
pub fn a13_all_status_pairs(factory: Factory) {
    let driver = TestDriver::boxed(factory());
    let write = |value: u8| driver.write(reg::VIRTIO_MMIO_STATUS, value.into());
    // The features are right, so that only the order matters.
    let accept = || {
        driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, (VERSION_1 >> 32) as u32);
    };
    let order: [&[u8]; 5] = [&[], &[1], &[1, 3], &[1, 3, 11], &[1, 3, 11, 15]];
    for first in 0..=255 {
        for second in 0..=255 {
            write(0);
            write(first);
            write(second);
            assert_eq!(
                driver.status(),
                expected_status(expected_status(0, first), second),
                "{first} {second}"
            );
        }
    }
    for path in order {
        for written in 0..=255 {
            write(0);
            for &step in path {
                write(step);
                accept();
            }
            let from = path.last().copied().unwrap_or(0);
            assert_eq!(driver.status(), from);
            write(written);
            assert_eq!(driver.status(), expected_status(from, written), "{from} {written}");
        }
    }
    driver.pump();
}
