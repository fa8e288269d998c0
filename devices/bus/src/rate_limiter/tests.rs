use std::sync::mpsc::{Sender, channel};

use super::*;
use crate::{Handler, LoopThread, Turn};

/// A rate at which nothing comes back while a test runs.
fn once(size: u64) -> RateLimit {
    RateLimit::new(size, Duration::from_secs(1 << 30))
}

/// A worker that wants to transfer pieces of 100 bytes, and tells of each.
struct Pump(Throttle, Sender<()>);

impl Handler for Pump {
    fn sources(&self) -> Vec<Source> {
        vec![self.0.source(0)]
    }

    fn turn(&mut self, _: u16) -> Turn {
        while self.0.admit(100) {
            if self.1.send(()).is_err() {
                break;
            }
        }
        Turn::Sleep
    }
}

#[test]
fn an_operation_needs_both_or_takes_nothing() {
    let limiter = RateLimiter::new(RateLimits::new(Some(once(1000)), Some(once(2))));
    let throttle = limiter.throttle().unwrap();
    assert!(throttle.admit(600));
    assert!(!throttle.admit(600), "too many bytes");
    assert!(throttle.is_open());
    assert!(throttle.admit(300), "the one that was refused has taken no operation");
    assert!(!throttle.admit(0), "too many operations");
    assert!(!throttle.is_open());
}

#[test]
fn what_was_charged_is_paid_off_by_those_that_follow() {
    let limiter = RateLimiter::new(RateLimits::new(Some(once(1000)), None));
    let throttle = limiter.throttle().unwrap();
    assert!(throttle.is_open());
    throttle.charge(u64::MAX);
    assert!(!throttle.is_open());
    assert!(!throttle.admit(0));
}

#[test]
fn without_limits_everything_goes_and_no_timer_is_set() {
    let limiter = RateLimiter::new(RateLimits::default());
    let throttle = limiter.throttle().unwrap();
    for _ in 0..1000 {
        assert!(throttle.admit(u64::MAX) && throttle.is_open());
        throttle.charge(u64::MAX);
    }
    assert!(!throttle.timer.is_set());
    limiter.set(RateLimits::new(None, Some(once(1))));
    assert!(throttle.admit(u64::MAX) && !throttle.admit(0));
}

#[test]
fn a_worker_is_woken_when_there_are_tokens_and_when_the_limits_change() {
    // A piece in each 10 ms.
    let limiter =
        RateLimiter::new(RateLimits::new(Some(RateLimit::new(100, Duration::from_millis(10))), None));
    let thread = LoopThread::start("pump").unwrap();
    let (tell, told) = channel();
    let began = Instant::now();
    let _pump = thread.event_loop().host(Pump(limiter.throttle().unwrap(), tell)).unwrap();
    let limit = Duration::from_secs(60);
    for _ in 0..20 {
        told.recv_timeout(limit).unwrap();
    }
    // One was there at first.
    assert!(began.elapsed() >= Duration::from_millis(190));
    limiter.set(RateLimits::new(Some(once(100)), None));
    // What it has sent by now, and at most a bucket more: then it sleeps for 34 years, unless somebody wakes it.
    while told.recv_timeout(Duration::from_millis(100)).is_ok() {}
    limiter.set(RateLimits::new(Some(RateLimit::new(100, Duration::from_millis(10)).with_burst(1000)), None));
    for _ in 0..15 {
        told.recv_timeout(limit).unwrap();
    }
}

#[test]
fn a_device_that_ends_does_not_stop_others_within_the_same_limits() {
    let limiter =
        RateLimiter::new(RateLimits::new(Some(RateLimit::new(100, Duration::from_millis(1))), None));
    let throttle = limiter.throttle().unwrap();
    for _ in 0..2 {
        limiter.resume();
    }
    limiter.pause();
    assert!(throttle.admit(100));
    let since = Instant::now();
    while !throttle.admit(100) {
        assert!(since.elapsed() < Duration::from_secs(60), "no tokens come back");
    }
    // The last one.
    limiter.pause();
    while throttle.admit(100) {}
    std::thread::sleep(Duration::from_millis(5));
    assert!(!throttle.admit(100), "tokens come back in a pause");
}

#[test]
fn a_pause_holds_for_limits_that_are_set_in_it() {
    let limiter = RateLimiter::new(RateLimits::default());
    limiter.pause();
    limiter.pause();
    limiter.set(RateLimits::new(Some(RateLimit::new(100, Duration::from_nanos(1))), None));
    let throttle = limiter.throttle().unwrap();
    assert!(throttle.admit(100));
    assert!(!throttle.admit(100), "tokens come back in a pause");
    limiter.resume();
    let until = Instant::now() + Duration::from_secs(60);
    while !throttle.admit(100) {
        assert!(Instant::now() < until);
    }
}

#[test]
fn what_is_used_up_is_saved_and_limits_are_not() {
    let limits = RateLimits::new(Some(once(1000).with_burst(50)), Some(once(3)));
    let limiter = RateLimiter::new(limits);
    let throttle = limiter.throttle().unwrap();
    assert!(throttle.admit(850));
    let mut fields = Encoder::new("test", 1);
    limiter.state().save(&mut fields);
    let saved = fields.finish();
    let mut fields = Decoder::new(&saved, "test", 1..=1).unwrap();
    let state = RateLimiterState::load(&mut fields).unwrap();
    fields.finish().unwrap();
    let other = RateLimiter::new(limits);
    other.restore(state);
    assert_eq!(other.limits(), limits);
    let throttle = other.throttle().unwrap();
    assert!(!throttle.admit(201) && throttle.admit(199) && throttle.admit(0) && !throttle.admit(0));
    // Those that have no bucket, on either side.
    other.restore(RateLimiterState::default());
    RateLimiter::new(RateLimits::default()).restore(state);
    assert!(!throttle.admit(0));
}

#[test]
fn timers_of_workers_that_are_gone_are_forgotten() {
    let limiter = RateLimiter::new(RateLimits::default());
    for _ in 0..100 {
        drop(limiter.throttle().unwrap());
    }
    let _last = limiter.throttle().unwrap();
    assert_eq!(limiter.0.inner().timers.len(), 1);
}
