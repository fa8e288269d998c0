//! Writeback and writethrough.

use super::*;

fn flushes(blk: &Blk<MemDisk>) -> u64 {
    blk.disk().flushes.load(Ordering::Relaxed)
}

fn write(rig: &mut Rig) {
    let data = rig.put(&[1; 512]);
    assert_eq!(request(rig, &header(OUT, 0), &[data], &[]).0, OK);
}

#[test]
fn a_driver_chooses_when_its_writes_last() {
    for first in [CacheMode::Writeback, CacheMode::Writethrough] {
        let mut blk = blk(MemDisk::new(16)).with_cache(first);
        let through = first == CacheMode::Writethrough;
        let mut rig = Rig::new(&mut blk, FLUSH_BIT | 1 << 11);
        assert_eq!(config(&blk)[32], u8::from(!through));
        write(&mut rig);
        assert_eq!(flushes(&blk), u64::from(through));
        blk.write_config(32, &[u8::from(through)]);
        assert_eq!(config(&blk)[32], u8::from(through));
        write(&mut rig);
        assert_eq!(flushes(&blk), 1, "the worker goes by the new mode");
        // Not a mode, not that field.
        blk.write_config(32, &[2]);
        blk.write_config(0, &[0; 32]);
        blk.write_config(33, &[u8::from(!through)]);
        assert_eq!(config(&blk)[32], u8::from(through));
        // Together with its neighbours.
        blk.write_config(30, &[0xff, 0xff, u8::from(!through), 0xff]);
        assert_eq!(config(&blk)[32], u8::from(!through));
        blk.write_config(32, &[u8::from(through)]);
        blk.reset();
        assert_eq!(config(&blk)[32], u8::from(!through), "as after the start");
    }
}

#[test]
fn zeros_last_as_writes_do() {
    const WRITE_ZEROES: u32 = 13;
    let range: Vec<u8> = [&2u64.to_le_bytes()[..], &3u32.to_le_bytes(), &0u32.to_le_bytes()].concat();
    // A driver without FLUSH, one of a disk that writes through, and one that flushes.
    let drivers = [
        (0, CacheMode::Writeback, 1),
        (FLUSH_BIT, CacheMode::Writethrough, 1),
        (FLUSH_BIT, CacheMode::Writeback, 0),
    ];
    for (features, mode, flushed) in drivers {
        let mut blk = blk(MemDisk::new(16)).with_cache(mode);
        let mut rig = Rig::new(&mut blk, features | 1 << 14);
        let data = rig.put(&range);
        assert_eq!(request(&mut rig, &header(WRITE_ZEROES, 0), &[data], &[]).0, OK);
        assert_eq!(flushes(&blk), flushed, "{mode:?}");
    }
}

#[test]
fn the_mode_is_saved() {
    for mode in [0, 1] {
        let mut one = blk(MemDisk::new(16));
        one.write_config(32, &[mode]);
        let DeviceState::Saved(handover) = one.save().unwrap() else { panic!("no state") };
        let mut two = blk(MemDisk::new(16)).with_cache(CacheMode::Writethrough);
        two.restore(handover).unwrap();
        assert_eq!(config(&two)[32], mode);
    }
}

#[test]
fn a_request_over_the_limit_waits_and_is_served_once() {
    let rate = RateLimit::new(1024, std::time::Duration::from_secs(1 << 20));
    let limiter = RateLimiter::new(RateLimits::new(Some(rate), None));
    let mut blk = blk(MemDisk::new(16)).with_limiter(limiter.clone());
    let mut rig = Rig::new(&mut blk, FLUSH_BIT);
    let to: Vec<_> = (0..4).map(|_| rig.alloc(512)).collect();
    let (head, status) = (rig.put(&header(IN, 1)), rig.alloc(1));
    for to in &to {
        rig.offer(0, &[head], &[*to, status]);
    }
    assert_eq!(rig.turn(0), Ok(Turn::Sleep));
    let served = |rig: &mut Rig| std::iter::from_fn(|| rig.used(0)).count();
    assert_eq!(served(&mut rig), 2);
    // Neither a kick nor a stop changes that.
    assert_eq!(rig.turn(0), Ok(Turn::Sleep));
    let queues = rig.stop();
    rig.start_with(&mut blk, queues);
    assert_eq!(rig.turn(0), Ok(Turn::Sleep));
    assert_eq!(served(&mut rig), 0);
    limiter.set(RateLimits::default());
    assert_eq!(rig.turn(2), Ok(Turn::Sleep));
    assert_eq!(served(&mut rig), 2);
    assert_eq!(counter(&blk, "read_requests"), 4);
}
