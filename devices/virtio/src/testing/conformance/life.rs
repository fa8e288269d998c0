//! Rows about the life of a device: reset, pause, kicks, and a driver that gives up.

use std::sync::Arc;

use super::{Factory, eager, probe, serve, works};
use crate::SharedLoop;
use crate::features::EVENT_IDX;
use crate::testing::{Desc, TestDriver};
use crate::transport::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};

/// A reset while chains are with the device: afterwards it leaves guest memory alone, and starts afresh.
pub fn reset_in_mid_flight(factory: Factory) {
    let eager = eager(factory);
    let runtime = Arc::new(SharedLoop::new("conformance").unwrap());
    let mut driver = TestDriver::with_runtime(factory(), runtime);
    for round in 0..20 {
        let wanted = if round % 2 == 0 { u128::MAX } else { 0 };
        let features = driver.start(wanted);
        assert_eq!(features & !driver.offered(), 0);
        let queues = driver.queue_count();
        for queue in 0..queues {
            let chains = driver.ring(queue).size / 2;
            (0..chains).for_each(|_| probe(&mut driver, queue));
            driver.kick_register(queue.into());
        }
        let rings: Vec<_> = (0..queues).map(|queue| driver.ring(queue).clone()).collect();
        driver.reset();
        assert_eq!(driver.status(), 0);
        let used: Vec<_> = rings.iter().map(|ring| ring.used_index()).collect();
        for queue in 0..queues {
            driver.kick_register(queue.into());
            assert_eq!(driver.queue_max(queue).count_ones(), 1);
            assert!(!driver.is_ready(queue));
        }
        let again: Vec<_> = rings.iter().map(|ring| ring.used_index()).collect();
        assert_eq!(used, again);
    }
    driver.start(0);
    works(&mut driver, &eager);
    driver.reset_machine();
    assert_eq!(driver.status(), 0);
    driver.start(u128::MAX);
    works(&mut driver, &eager);
    assert_eq!(driver.reports(), []);
}

/// A quiet device touches nothing, and goes on as if it had never been quiet.
pub fn quiesce_and_resume(factory: Factory) {
    for wanted in [0, u128::MAX] {
        let mut plain = TestDriver::boxed(factory());
        let mut paused = TestDriver::boxed(factory());
        plain.device().quiesce().unwrap();
        plain.device().resume().unwrap();
        plain.start(wanted);
        paused.start(wanted);
        assert_eq!(serve(&mut plain), serve(&mut paused));
        paused.device().quiesce().unwrap();
        paused.device().quiesce().unwrap();
        for queue in 0..paused.queue_count() {
            probe(&mut plain, queue);
            plain.kick(queue);
            let before = paused.ring(queue).used_index();
            probe(&mut paused, queue);
            paused.kick(queue);
            assert_eq!(paused.ring(queue).used_index(), before);
        }
        paused.device().resume().unwrap();
        paused.device().resume().unwrap();
        paused.pump();
        plain.device().quiesce().unwrap();
        paused.device().quiesce().unwrap();
        for queue in 0..paused.queue_count() {
            assert_eq!(plain.ring(queue).used_index(), paused.ring(queue).used_index());
        }
        // A machine may be reset while it is quiet.
        paused.reset_machine();
        assert_eq!(paused.status(), 0);
        paused.start(wanted);
        plain.device().resume().unwrap();
        plain.start(wanted);
        assert_eq!(serve(&mut plain), serve(&mut paused));
        assert_eq!(paused.reports(), []);
    }
}

/// Kicks in every status do nothing but wake.
pub fn kicks_before_the_driver_is_ready(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    for bits in [0, ACKNOWLEDGE, DRIVER] {
        driver.add_status(bits);
        (0..4).for_each(|queue| driver.kick_register(queue));
    }
    let queues = driver.queue_count();
    driver.negotiate(0);
    for queue in 0..queues {
        assert!(driver.set_up_queue(queue, 4));
        probe(&mut driver, queue);
        driver.kick_register(queue.into());
        assert_eq!(driver.ring(queue).used_index(), 0);
    }
    driver.add_status(DRIVER_OK);
    driver.pump();
    // Those chains were kicked for too early, and are served all the same.
    for &queue in &eager {
        assert!(driver.used(queue).is_some());
    }
    works(&mut driver, &eager);
}

/// Thousands of kicks for nothing raise nothing and change nothing.
pub fn kick_storm(factory: Factory) {
    let eager = eager(factory);
    for wanted in [0, u128::MAX] {
        let mut driver = TestDriver::boxed(factory());
        driver.start(wanted);
        driver.pump();
        driver.interrupts();
        for _ in 0..2000 {
            for queue in 0..driver.queue_count() {
                driver.kick_register(queue.into());
            }
        }
        assert_eq!(driver.interrupts(), 0);
        for queue in 0..driver.queue_count() {
            assert_eq!(driver.ring(queue).used_index(), 0);
        }
        works(&mut driver, &eager);
    }
}

/// FAILED stays until the reset.
pub fn failed_driver_needs_a_reset(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    driver.negotiate(0);
    driver.add_status(FAILED);
    driver.add_status(DRIVER_OK);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | FAILED);
    driver.write_status(ACKNOWLEDGE);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | FAILED);
    driver.start(0);
    works(&mut driver, &eager);
}

/// Chains that are offered around a pause are served, and their interrupt comes, with and without EVENT_IDX.
pub fn a18_no_kick_or_interrupt_is_lost(factory: Factory) {
    let eager = eager(factory);
    for wanted in [0, EVENT_IDX] {
        for &queue in &eager {
            let mut driver = TestDriver::boxed(factory());
            driver.start(wanted);
            works(&mut driver, &eager);
            for _ in 0..3 {
                // Kicked, and paused before anybody took the turn.
                let segment = driver.buffer(64);
                let next = driver.ring(queue).next_used();
                driver.ring(queue).set_used_event(next);
                driver.interrupts();
                let head = driver.offer(queue, &[Desc::writable(segment)]);
                driver.doorbell(queue).signal().unwrap();
                driver.device().quiesce().unwrap();
                driver.device().resume().unwrap();
                driver.pump();
                assert_eq!(driver.used(queue).map(|used| used.head), Some(head.into()));
                assert!(driver.interrupts() > 0);
                // Offered and kicked while it was quiet, where the doorbell is taken by nobody.
                driver.device().quiesce().unwrap();
                let next = driver.ring(queue).next_used();
                driver.ring(queue).set_used_event(next);
                let head = driver.offer(queue, &[Desc::writable(segment)]);
                driver.kick(queue);
                driver.doorbell(queue).take().unwrap();
                driver.device().resume().unwrap();
                driver.pump();
                assert_eq!(driver.used(queue).map(|used| used.head), Some(head.into()));
                assert!(driver.interrupts() > 0);
                works(&mut driver, &eager);
            }
        }
    }
}
