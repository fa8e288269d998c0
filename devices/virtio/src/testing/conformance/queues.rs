//! Rows about queues that stop and start again one by one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Factory, eager, no_queues, probe, works};
use crate::testing::TestDriver;
use crate::{MmioInterrupt, Runtime, SharedLoop, VirtioMmio};

/// One queue after the other is reset, with chains in it, while the others run, and is set up at another place.
pub fn ring_reset_while_others_run(factory: Factory) {
    let eager = eager(factory);
    let runtime = Arc::new(SharedLoop::new("conformance").unwrap());
    let mut driver = TestDriver::with_runtime(factory(), runtime);
    driver.start(u128::MAX);
    let queues = driver.queue_count();
    for round in 0..20u64 {
        for queue in 0..queues {
            for other in 0..queues {
                if driver.ring(other).avail_index() < 8 {
                    probe(&mut driver, other);
                }
                driver.kick_register(other.into());
            }
            let ring = driver.ring(queue).clone();
            driver.reset_queue(queue);
            let used = ring.used_index();
            driver.kick_register(queue.into());
            for &other in eager.iter().filter(|other| **other != queue) {
                while driver.used(other).is_some() {}
                works(&mut driver, &[other]);
            }
            assert_eq!(ring.used_index(), used, "a queue that was reset is used");
            let max = driver.queue_max(queue).min(256) as u16;
            assert!(driver.set_up_queue_at((16 + u64::from(queue) + round % 2 * 8) << 20, queue, max));
            if eager.contains(&queue) {
                works(&mut driver, &[queue]);
            }
        }
    }
    works(&mut driver, &eager);
    assert_eq!(driver.reports(), []);
}

/// A queue cannot be reset alone by a driver that has not negotiated it, nor one that does not exist.
pub fn ring_reset_needs_its_feature(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    driver.start(0);
    for queue in 0..driver.queue_count() {
        driver.registers().select_queue(queue.into());
        driver.registers().set_queue_reset(1);
        assert_eq!(driver.registers().queue_reset(), 0);
        assert!(driver.is_ready(queue));
    }
    works(&mut driver, &eager);
    driver.start(u128::MAX);
    for select in no_queues(&driver) {
        driver.registers().select_queue(select);
        for value in [1, 0, 2, u32::MAX] {
            driver.registers().set_queue_reset(value);
            assert_eq!(driver.registers().queue_reset(), 0);
        }
    }
    works(&mut driver, &eager);
}

/// Queues are reset and set up by one vCPU while another kicks all of them, and a third reads.
pub fn ring_reset_under_load(factory: Factory) {
    let eager = eager(factory);
    let runtime = Arc::new(SharedLoop::new("conformance").unwrap());
    let mut driver = TestDriver::with_runtime(factory(), runtime);
    driver.start(u128::MAX);
    let queues = driver.queue_count();
    let (registers, stop) = (driver.registers().clone(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                (0..queues).for_each(|queue| registers.notify(queue.into()));
                assert!(registers.queue_reset() <= 1);
            }
        });
        for round in 0..100u64 {
            for queue in 0..queues {
                driver.reset_queue(queue);
                assert!(driver.set_up_queue_at((16 + u64::from(queue) + round % 2 * 8) << 20, queue, 8));
                works(&mut driver, if eager.contains(&queue) { &eager } else { &[] });
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    works(&mut driver, &eager);
    assert_eq!(driver.reports(), []);
}

/// The device works with every kind of interrupt, its driver acknowledging each.
pub fn every_kind_of_interrupt(factory: Factory) {
    let eager = eager(factory);
    for interrupt in [MmioInterrupt::Exact, MmioInterrupt::AlwaysSet, MmioInterrupt::SharedLine] {
        let runtime: Arc<dyn Runtime> = Arc::new(SharedLoop::new("conformance").unwrap());
        let device = VirtioMmio::new("test", factory(), runtime).with_interrupt(interrupt);
        let mut driver = TestDriver::attach(Box::new(device));
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
