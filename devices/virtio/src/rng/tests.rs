//! The entropy device behind its real transport.

use std::time::{Duration, Instant};

use ossature_bus::{RateLimit, RateLimits};

use super::*;
use crate::SharedLoop;
use crate::rig::counter;
use crate::testing::{TestDriver, on_each_transport};

#[test]
fn it_fills_every_buffer() {
    on_each_transport(|| {
        let mut driver = TestDriver::new(Rng::new());
        driver.start(0);
        let (used, bytes) = driver.transact(0, &[], &[100, 4097, 1]);
        assert_eq!((used.len, bytes.len()), (4198, 4198));
        assert!(bytes.iter().any(|byte| *byte != 0));
        let (_, others) = driver.transact(0, &[], &[100, 4097, 1]);
        assert_ne!(bytes, others);
    });
}

#[test]
fn it_ignores_what_it_is_told() {
    on_each_transport(|| {
        let mut driver = TestDriver::new(Rng::new());
        driver.start(0);
        assert_eq!(driver.transact(0, &[b"seed"], &[]).0.len, 0);
    });
}

#[test]
fn b5_a_request_above_64_kib_is_cut() {
    on_each_transport(|| {
        let mut driver = TestDriver::new(Rng::new());
        driver.start(0);
        for writable in [&[(64 << 10) + 1][..], &[1 << 20], &[40 << 10, 40 << 10, 1]] {
            let (used, _) = driver.transact(0, &[], writable);
            assert_eq!(used.len, 64 << 10);
        }
    });
}

#[test]
fn many_requests_take_several_turns() {
    on_each_transport(|| {
        let mut driver = TestDriver::new(Rng::new());
        driver.start(u128::MAX);
        for _ in 0..200 {
            driver.request(0, &[], &[8]);
        }
        driver.kick(0);
        assert_eq!(std::iter::from_fn(|| driver.used(0)).count(), 200);
    });
}

fn limiter(bytes: Option<RateLimit>, requests: Option<RateLimit>) -> RateLimiter {
    RateLimiter::new(RateLimits::new(bytes, requests))
}

/// A limit that gives nothing more while a test runs.
fn once(size: u64) -> RateLimit {
    RateLimit::new(size, Duration::from_secs(1 << 30))
}

#[test]
fn b5_requests_beyond_the_limit_wait_in_the_queue() {
    for limits in [limiter(Some(once(100)), None), limiter(None, Some(once(10)))] {
        let mut driver = TestDriver::new(Rng::new().with_limits(limits.clone()));
        driver.start(u128::MAX);
        for _ in 0..20 {
            driver.request(0, &[], &[10]);
        }
        driver.kick(0);
        assert_eq!(std::iter::from_fn(|| driver.used(0)).count(), 10);
        driver.kick_register(0);
        assert!(driver.used(0).is_none());
        // A pause changes nothing, nor do other limits before there are some.
        driver.save_and_restore();
        limits.set(RateLimits::default());
        driver.pump();
        assert_eq!(std::iter::from_fn(|| driver.used(0)).count(), 10);
    }
}

#[test]
fn b5_a_request_that_is_larger_than_the_limits_bucket_goes_through() {
    let mut driver = TestDriver::new(Rng::new().with_limits(limiter(Some(once(1)), None)));
    driver.start(0);
    assert_eq!(driver.transact(0, &[], &[1 << 20]).0.len, 64 << 10);
    // A request for nothing is no exception: the bucket owes.
    driver.request(0, &[b"seed"], &[]);
    driver.kick(0);
    assert!(driver.used(0).is_none());
}

#[test]
fn a_limited_source_gives_what_the_limit_says_and_goes_on_by_itself() {
    // 40 requests of 1000 bytes, of which 10 are there at first: 30 times 10 ms.
    let limits = limiter(Some(RateLimit::new(10_000, Duration::from_millis(100))), None);
    let runtime = Arc::new(SharedLoop::new("rng").unwrap());
    let mut driver = TestDriver::with_runtime(Box::new(Rng::new().with_limits(limits)), runtime);
    let began = Instant::now();
    driver.start(u128::MAX);
    for _ in 0..40 {
        driver.request(0, &[], &[1000]);
    }
    driver.kick(0);
    for _ in 0..40 {
        assert_eq!(driver.wait_used(0).len, 1000);
    }
    assert!(began.elapsed() >= Duration::from_millis(290));
}

#[test]
fn what_waits_for_the_limit_is_counted() {
    let mut rng = Rng::new().with_limits(limiter(None, Some(once(1))));
    let mut rig = crate::rig::Rig::new(&mut rng, 0);
    for _ in 0..2 {
        let buffer = rig.alloc(8);
        rig.offer(0, &[], &[buffer]);
    }
    assert_eq!(rig.run(0), 1);
    assert_eq!((counter(&rng, "entropy_bytes"), counter(&rng, "limit_stalls")), (8, 1));
    assert_eq!(rig.rings[0].used_index(), 1);
    rig.stop();
}

crate::conformance_tests!(conformance, Rng::new);

crate::conformance_tests!(limited, || {
    // Enough for each row, so that none waits for the clock.
    Rng::new()
        .with_limits(limiter(Some(RateLimit::per_second(u64::MAX)), Some(RateLimit::per_second(u64::MAX))))
});
