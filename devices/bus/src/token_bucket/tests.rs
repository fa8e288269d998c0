use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[test]
fn tokens_come_back_evenly_and_no_more_than_fit() {
    let t0 = Instant::now();
    let mut bucket = TokenBucket::new(RateLimit::new(1000, SECOND), t0);
    assert_eq!(bucket.take(1000, t0), Ok(()));
    assert_eq!(bucket.take(1, t0), Err(millis(1)));
    assert_eq!(bucket.take(100, t0 + millis(99)), Err(millis(1)));
    assert_eq!(bucket.take(100, t0 + millis(100)), Ok(()));
    // An hour later it is full, not fuller.
    let later = t0 + 3600 * SECOND;
    assert_eq!(bucket.take(1000, later), Ok(()));
    assert_eq!(bucket.take(1, later), Err(millis(1)));
}

#[test]
fn a_request_that_is_too_large_waits_for_a_full_bucket_and_is_paid_off() {
    let t0 = Instant::now();
    let mut bucket = TokenBucket::new(RateLimit::new(1000, SECOND), t0);
    assert_eq!(bucket.take(1, t0), Ok(()));
    assert_eq!(bucket.take(5000, t0), Err(millis(1)));
    let t1 = t0 + millis(1);
    assert_eq!(bucket.take(5000, t1), Ok(()));
    // 4000 are owed.
    assert_eq!(bucket.check(0, t1), Err(4 * SECOND));
    assert_eq!(bucket.take(1, t1), Err(4 * SECOND + millis(1)));
    assert_eq!(bucket.take(5000, t1), Err(5 * SECOND));
    assert_eq!(bucket.take(5000, t1 + 5 * SECOND), Ok(()));
}

#[test]
fn a_burst_is_used_first_and_once() {
    let t0 = Instant::now();
    let mut bucket = TokenBucket::new(RateLimit::new(10, SECOND).with_burst(100), t0);
    assert_eq!(bucket.take(90, t0), Ok(()));
    // 10 of the burst, 10 of the bucket.
    assert_eq!(bucket.take(20, t0), Ok(()));
    assert_eq!(bucket.take(1, t0), Err(millis(100)));
    assert_eq!(bucket.take(10, t0 + 3600 * SECOND), Ok(()));
    assert_eq!(bucket.take(1, t0 + 3600 * SECOND), Err(millis(100)));
}

#[test]
fn b5_the_largest_sizes_times_and_debts_do_not_overflow() {
    let t0 = Instant::now();
    let years = 100 * 365 * 24 * 3600 * SECOND;
    for (size, refill) in [(u64::MAX, Duration::MAX), (u64::MAX, Duration::ZERO), (0, Duration::MAX)] {
        let limit = RateLimit::new(size, refill).with_burst(u64::MAX);
        let mut bucket = TokenBucket::new(limit, t0);
        for round in 0..8 {
            let now = t0 + round / 2 * years;
            let _ = bucket.take(u64::MAX, now);
            let _ = bucket.check(u64::MAX, now);
            bucket.charge(u64::MAX, now);
            let _ = bucket.state(now);
            bucket.set(limit, now);
            bucket.set(RateLimit::new(1, Duration::MAX), now);
            bucket.charge(u64::MAX, now);
            assert!(bucket.take(1, now).is_err());
            bucket.set(RateLimit::new(u64::MAX, SECOND).with_burst(u64::MAX), now);
        }
    }
    let mut bucket = TokenBucket::new(RateLimit::new(1, Duration::MAX), t0);
    for _ in 0..4 {
        bucket.charge(u64::MAX, t0);
    }
    // What is owed takes longer than any time that can be said.
    assert!(bucket.take(1, t0).unwrap_err() > years);
    bucket.restore(BucketState { tokens: i64::MIN, burst: u64::MAX }, t0);
    assert!(bucket.take(1, t0).unwrap_err() > years);
    bucket.restore(BucketState { tokens: i64::MAX, burst: u64::MAX }, t0);
    assert_eq!(bucket.take(1, t0), Ok(()));
    assert!(bucket.take(1, t0).is_err());
}

#[test]
fn the_time_of_a_pause_does_not_count() {
    let t0 = Instant::now();
    let mut bucket = TokenBucket::new(RateLimit::new(10, SECOND), t0);
    assert_eq!(bucket.take(10, t0), Ok(()));
    bucket.pause(t0 + millis(100));
    bucket.pause(t0 + 5 * SECOND);
    assert_eq!(bucket.check(2, t0 + 9 * SECOND), Err(millis(100)));
    bucket.resume(t0 + 10 * SECOND);
    bucket.resume(t0 + 10 * SECOND + millis(50));
    assert_eq!(bucket.take(2, t0 + 10 * SECOND), Err(millis(100)));
    assert_eq!(bucket.take(2, t0 + 10 * SECOND + millis(100)), Ok(()));
}

#[test]
fn another_limit_keeps_what_is_there_and_what_is_owed() {
    let t0 = Instant::now();
    let mut bucket = TokenBucket::new(RateLimit::new(10, SECOND), t0);
    bucket.set(RateLimit::new(100, 7 * SECOND), t0);
    assert_eq!(bucket.check(10, t0), Ok(()));
    assert!(bucket.check(11, t0).is_err());
    bucket.charge(30, t0);
    bucket.set(RateLimit::new(1, SECOND).with_burst(3), t0);
    assert_eq!(bucket.take(3, t0), Ok(()));
    assert_eq!(bucket.check(0, t0), Err(20 * SECOND));
    // Less room: what is above it is gone.
    let mut bucket = TokenBucket::new(RateLimit::new(1000, SECOND), t0);
    bucket.set(RateLimit::new(10, SECOND), t0);
    assert_eq!((bucket.take(10, t0), bucket.take(1, t0)), (Ok(()), Err(millis(100))));
}

#[test]
fn a_saved_bucket_goes_on_within_the_limit_of_the_new_one() {
    let t0 = Instant::now();
    let limit = RateLimit::new(10, SECOND).with_burst(5);
    let mut bucket = TokenBucket::new(limit, t0);
    bucket.charge(3, t0);
    bucket.charge(30, t0);
    let mut fields = Encoder::new("test", 1);
    bucket.state(t0).save(&mut fields);
    let saved = fields.finish();
    let mut fields = Decoder::new(&saved, "test", 1..=1).unwrap();
    let state = BucketState::load(&mut fields).unwrap();
    fields.finish().unwrap();
    let later = t0 + 3600 * SECOND;
    let mut other = TokenBucket::new(limit, later);
    other.restore(state, later);
    assert_eq!((other.check(0, later), other.burst), (Err(millis(1800)), 0));
    // A state that promises more than the limit does not lift it.
    other.restore(BucketState { tokens: 1000, burst: 1000 }, later);
    assert_eq!((other.take(15, later), other.take(1, later)), (Ok(()), Err(millis(100))));
}

#[test]
fn a_clock_that_goes_back_stands_still() {
    let t0 = Instant::now() + SECOND;
    let mut bucket = TokenBucket::new(RateLimit::new(10, SECOND), t0);
    assert_eq!(bucket.take(10, t0), Ok(()));
    assert_eq!(bucket.take(1, t0 - millis(500)), Err(millis(100)));
    assert_eq!(bucket.take(1, t0 + millis(100)), Ok(()));
}

#[test]
fn a_rate_per_second_is_a_bucket_of_a_tenth() {
    let cases = [(1, 1, 1_000_000_000), (3, 1, 333_333_334), (2000, 200, 100_000_000), (15, 1, 66_666_667)];
    for (rate, size, nanos) in cases {
        let limit = RateLimit::per_second(rate);
        assert_eq!((limit.size(), limit.refill()), (size, Duration::from_nanos(nanos)), "{rate}");
    }
    assert_eq!(RateLimit::per_second(0), RateLimit::per_second(1));
    assert_eq!(RateLimit::per_second(u64::MAX).size(), u64::MAX / 10);
}

proptest! {
    /// Whoever takes what it can, as soon as it can, gets what the rate says within 0.1 %, and never more in any time
    /// than the rate, a bucket and the largest request.
    #[test]
    fn over_a_long_run_the_rate_is_exact(
        rate in 1_u64..1 << 40,
        requests in prop::collection::vec(1_u64..1 << 24, 1..20),
    ) {
        let t0 = Instant::now();
        let limit = RateLimit::per_second(rate);
        let mut bucket = TokenBucket::new(limit, t0);
        let (mut now, mut taken) = (t0, 0_u128);
        // Long enough that the first bucket and the last request do not matter.
        let largest = u128::from(*requests.iter().max().unwrap());
        let enough = (u128::from(limit.size()) + largest) * 2000;
        let mut next = requests.iter().cycle();
        let mut scaled = |bucket: &mut TokenBucket| {
            // Large rates are asked for large pieces, so that the run is short.
            let tokens = (*next.next().unwrap()).max(rate / 50);
            while let Err(delay) = bucket.take(tokens, now) {
                now += delay;
            }
            taken += u128::from(tokens);
            taken
        };
        let mut rounds = 0;
        while scaled(&mut bucket) < enough && rounds < 200_000 {
            rounds += 1;
        }
        let nanos = (now - t0).as_nanos();
        let allowed = u128::from(rate) * nanos / 1_000_000_000;
        let slack = u128::from(limit.size()) + largest.max(u128::from(rate / 50)) + 1;
        prop_assert!(taken <= allowed + allowed / 1000 + slack, "{taken} of {allowed}");
        prop_assert!(taken + slack >= allowed - allowed / 1000, "{taken} of {allowed}");
    }
}
