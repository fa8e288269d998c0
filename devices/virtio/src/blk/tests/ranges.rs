//! Discards and zeros.

use super::*;

const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const BOTH: u128 = FLUSH_BIT | 1 << 13 | 1 << 14;

fn range(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

fn ask(rig: &mut Rig, kind: u32, range: &[u8]) -> u8 {
    let data = rig.put(range);
    let (status, used) = request(rig, &header(kind, u64::MAX), &[data], &[]);
    assert_eq!(used.len, 1);
    status
}

#[test]
fn what_is_discarded_or_made_zeros_is_that_range_alone() {
    for (kind, flags) in [(DISCARD, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, 1)] {
        let mut blk = blk(MemDisk::new(16));
        let mut want = blk.disk().bytes();
        want[3 * 512..8 * 512].fill(0);
        let mut rig = Rig::new(&mut blk, BOTH);
        assert_eq!(ask(&mut rig, kind, &range(3, 5, flags)), OK);
        assert_eq!(blk.disk().bytes(), want);
        // Nothing, at the end.
        assert_eq!(ask(&mut rig, kind, &range(16, 0, flags)), OK);
        assert_eq!(blk.disk().bytes(), want);
        let count = |name| counter(&blk, name);
        assert_eq!(count("discard_requests") + count("write_zeroes_requests"), 2);
    }
}

#[test]
fn b8_ranges_that_are_none_of_the_disk_are_refused() {
    let mut blk = blk(MemDisk::new(16));
    let before = blk.disk().bytes();
    let mut rig = Rig::new(&mut blk, BOTH);
    for kind in [DISCARD, WRITE_ZEROES] {
        let wrong = [
            (15, 2),
            (16, 1),
            (17, 0),
            (u64::MAX, 1),
            (u64::MAX, 0),
            (u64::MAX - 1, u32::MAX),
            (0, 17),
            (0, u32::MAX),
            (1 << 55, 1),
        ];
        for (sector, sectors) in wrong {
            assert_eq!(ask(&mut rig, kind, &range(sector, sectors, 0)), IOERR, "{kind}: {sector}+{sectors}");
        }
        for len in [0, 1, 15, 17, 32, 4096] {
            let ranges = vec![0; len];
            let status = if len == 0 {
                request(&mut rig, &header(kind, 0), &[], &[]).0
            } else {
                ask(&mut rig, kind, &ranges)
            };
            assert_eq!(status, IOERR, "{kind}: {len} bytes");
        }
    }
    assert_eq!(blk.disk().bytes(), before);
}

#[test]
fn b8_more_sectors_than_the_driver_was_told_are_refused() {
    let mut blk = Blk::new(NullDisk::new(u32::MAX), DiskId::default());
    let mut rig = Rig::new(&mut blk, BOTH);
    for (kind, most) in [(DISCARD, 1 << 22), (WRITE_ZEROES, 1 << 17)] {
        assert_eq!(ask(&mut rig, kind, &range(5, most, 0)), OK);
        assert_eq!(ask(&mut rig, kind, &range(5, most + 1, 0)), IOERR);
    }
}

#[test]
fn b8_unknown_flags_are_unsupported() {
    let mut blk = blk(MemDisk::new(16));
    let before = blk.disk().bytes();
    let mut rig = Rig::new(&mut blk, BOTH);
    for bit in 0..32 {
        assert_eq!(ask(&mut rig, DISCARD, &range(0, 1, 1 << bit)), UNSUPP, "bit {bit}");
        if bit > 0 {
            assert_eq!(ask(&mut rig, WRITE_ZEROES, &range(0, 1, 1 << bit | 1)), UNSUPP, "bit {bit}");
        }
    }
    assert_eq!(blk.disk().bytes(), before);
}

#[test]
fn b8_a_read_only_disk_keeps_its_sectors() {
    let mut blk = blk(MemDisk { read_only: true, ..MemDisk::new(16) });
    let mut rig = Rig::new(&mut blk, BOTH);
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(ask(&mut rig, kind, &range(0, 1, 0)), IOERR);
    }
}

#[test]
fn a_host_that_fails_is_an_io_error_and_an_event() {
    for kind in [DISCARD, WRITE_ZEROES] {
        let mut blk = blk(MemDisk::scripted(16, &[None, None]));
        let mut rig = Rig::new(&mut blk, BOTH);
        assert_eq!(ask(&mut rig, kind, &range(0, 1, 0)), IOERR);
        assert_eq!(ask(&mut rig, kind, &range(0, 1, 0)), IOERR);
        assert_eq!(counter(&blk, "host_errors"), 2);
        assert_eq!(rig.reports.lock().unwrap().len(), 1);
        assert_eq!(ask(&mut rig, kind, &range(0, 1, 0)), OK);
    }
}
