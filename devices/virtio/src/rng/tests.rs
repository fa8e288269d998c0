//! The entropy device behind its real transport.

use super::*;
use crate::testing::TestDriver;

#[test]
fn it_fills_every_buffer() {
    let mut driver = TestDriver::new(Rng::new());
    driver.start(0);
    let (used, bytes) = driver.transact(0, &[], &[100, 4097, 1]);
    assert_eq!((used.len, bytes.len()), (4198, 4198));
    assert!(bytes.iter().any(|byte| *byte != 0));
    let (_, others) = driver.transact(0, &[], &[100, 4097, 1]);
    assert_ne!(bytes, others);
}

#[test]
fn it_ignores_what_it_is_told() {
    let mut driver = TestDriver::new(Rng::new());
    driver.start(0);
    assert_eq!(driver.transact(0, &[b"seed"], &[]).0.len, 0);
}

#[test]
fn b5_a_request_above_64_kib_is_cut() {
    let mut driver = TestDriver::new(Rng::new());
    driver.start(0);
    for writable in [&[(64 << 10) + 1][..], &[1 << 20], &[40 << 10, 40 << 10, 1]] {
        let (used, _) = driver.transact(0, &[], writable);
        assert_eq!(used.len, 64 << 10);
    }
}

#[test]
fn many_requests_take_several_turns() {
    let mut driver = TestDriver::new(Rng::new());
    driver.start(u128::MAX);
    for _ in 0..200 {
        driver.request(0, &[], &[8]);
    }
    driver.kick(0);
    assert_eq!(std::iter::from_fn(|| driver.used(0)).count(), 200);
}

crate::conformance_tests!(conformance, Rng::new);
