use super::*;

fn caches(cache: Cache) -> Caches {
    Caches::new(Cache::new(1 << 15), cache)
}

#[test]
fn sizes_are_whole_sets_of_lines() {
    for (size, lines) in [(1, None), (u32::MAX, None), (1 << 15, Some((64, 128))), (48 << 10, Some((64, 64)))]
    {
        assert_eq!(caches(Cache { size, lines }).check(), Ok(()));
    }
    for (size, lines) in [
        (0, None),
        (0, Some((64, 128))),
        (1 << 15, Some((0, 128))),
        (1 << 15, Some((64, 0))),
        (1 << 15, Some((48, 1))),
        (1 << 15, Some((2, 128))),
        (1 << 17, Some((1 << 16, 1))),
        (1 << 15, Some((64, 100))),
        (1 << 15, Some((64, 1024))),
        (1 << 15, Some((1 << 15, u32::MAX))),
    ] {
        let cache = Cache { size, lines };
        assert_eq!(caches(cache).check(), Err(CacheError::Size { level: 1, cache }));
        let caches = caches(Cache::new(64)).own(Cache::new(64)).shared(cache);
        assert_eq!(caches.check(), Err(CacheError::Size { level: 3, cache }));
    }
}

#[test]
fn there_are_seven_levels_at_most() {
    let mut caches = caches(Cache::new(1)).own(Cache::new(2)).own(Cache::new(3));
    for _ in 0..4 {
        caches = caches.shared(Cache::new(4));
    }
    assert_eq!(caches.check(), Ok(()));
    caches.own.push(Cache::new(5));
    assert_eq!(caches.check().unwrap_err().to_string(), "the caches have 8 levels; 7 are possible");
}

#[test]
fn ways_follow_from_the_sizes() {
    assert_eq!(Cache::new(48 << 10).lines(64, 64).ways(), Some(12));
    assert_eq!(Cache::new(48 << 10).ways(), None);
    assert_eq!(Cache::new(48 << 10).lines(64, 0).ways(), None);
    assert_eq!(Cache::new(48 << 10).lines(64, u32::MAX).ways(), None);
}
