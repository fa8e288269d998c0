use super::*;

#[test]
fn banks_are_as_the_architecture_has_them() {
    let offsets = Version::V3.distributor();
    // 96 lines: 3 words of a bit each, 24 of priorities, 6 of two bits each, 192 of routes.
    assert_eq!(offsets.len(), 1 + 4 * 3 + 24 + 6 + 192);
    for offset in [0x0, 0x84, 0x104, 0x304, 0x420, 0x47c, 0xc08, 0xc1c, 0x6100, 0x63fc] {
        assert!(offsets.contains(&offset), "{offset:#x}");
    }
    let offsets = Version::V3.private();
    assert_eq!(offsets.len(), 4 + 8 + 2 + 4 + 1);
    assert_eq!(offsets.last(), Some(&GICR_CTLR));
    assert!([0x1_0080, 0x1_0100, 0x1_041c, 0x1_0c04].iter().all(|offset| offsets.contains(offset)));
    let counts = [5, 6, 7].map(|bits| Version::V3.interface((bits - 1) << 8).len());
    assert_eq!(counts, [9, 11, 15]);
    assert_eq!(Version::V3.interface(0)[ICC_CTLR_INDEX], ICC_CTLR);
    assert_eq!(Version::V3.lines(), [32, 64, 96]);
}

#[test]
fn a_gic_v2_has_targets_and_knows_who_has_sent_what() {
    let offsets = Version::V2.distributor();
    assert_eq!(offsets.len(), 1 + 24 + 4 * 3 + 24 + 6);
    assert_eq!(offsets[..2], [0, 0x820], "targets before what is pending");
    assert!([0x87c, 0x208, 0xc1c].iter().all(|offset| offsets.contains(offset)));
    let offsets = Version::V2.private();
    assert_eq!(offsets.len(), 4 + 8 + 2 + 4);
    assert_eq!(offsets[14..], [0xf20, 0xf24, 0xf28, 0xf2c]);
    assert_eq!(Version::V2.interface(u64::MAX).len(), 8);
    assert_eq!(Version::V2.lines(), [0; 0]);
}

#[test]
fn what_ones_set_is_taken_back_before() {
    assert_eq!(Version::V2.private_clears(), [0x180, 0x280, 0x380, 0xf10, 0xf14, 0xf18, 0xf1c]);
    let shared = [0x184, 0x188, 0x18c, 0x284, 0x288, 0x28c, 0x384, 0x388, 0x38c];
    assert_eq!(Version::V2.distributor_clears(), shared);
    // What is pending is as the host writes it.
    assert_eq!(Version::V3.private_clears(), [0x1_0180, 0x1_0380]);
    assert_eq!(Version::V3.distributor_clears(), [&shared[..3], &shared[6..]].concat());
}
