use super::*;

#[test]
fn the_tsc_comes_first_and_its_deadline_last() {
    let msrs = candidates(&[0x174, TSC_DEADLINE, 0xc000_0080, TSC, 0x3b]);
    assert_eq!((msrs.first(), msrs.last()), (Some(&TSC), Some(&TSC_DEADLINE)));
}

#[test]
fn each_register_is_there_once() {
    // The host lists some of those that are added.
    let msrs = candidates(&[0x277, 0x2ff, 0x400, TSC, TSC]);
    let mut sorted = msrs.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(sorted.len(), msrs.len());
    assert!([0x200, 0x26f, 0x277, 0x2ff, 0x403].iter().all(|msr| msrs.contains(msr)));
}

#[test]
fn hyper_v_is_not_woken() {
    assert!(!candidates(&[0x4000_0000, 0x4000_0118, 0x4b56_4d00]).iter().any(|msr| (*msr >> 8) == 0x40_0000));
    assert!(candidates(&[0x4b56_4d00]).contains(&0x4b56_4d00), "KVM's own are kept");
}
