use super::*;
use crate::testing::TestBoard;
use crate::{InterruptRequest, RegistersRequest, Requires};

#[test]
fn a_resource_is_found_by_its_name_and_a_missing_one_is_named() {
    let requires = Requires::new()
        .registers(RegistersRequest::ports("ports", 8))
        .interrupt(InterruptRequest::edge(("queue", 3)));
    let assigned = TestBoard::default().assign(&requires);
    assert!(assigned.registers("ports").is_ok() && assigned.interrupt(("queue", 3)).is_ok());
    let error = assigned.interrupt(("queue", 2)).unwrap_err();
    assert_eq!(error.to_string(), "the machine gave no interrupt \"queue2\"");
    assert!(assigned.doorbell("ports").is_err());
}

#[test]
fn a_move_is_an_effect_and_counts_when_the_machine_says_so() {
    let range = RegisterRange::new("bar0", RangeId(7), Some(0x1000), None);
    assert_eq!(range.move_to(Some(0x2000)), Effect::Remap(RangeId(7)));
    assert_eq!((range.base(), range.wanted()), (Some(0x1000), Some(0x2000)));
    range.moved(Some(0x1000));
    assert_eq!((range.base(), range.wanted()), (Some(0x1000), Some(0x1000)));
    let _ = range.move_to(None);
    assert_eq!(range.wanted(), None);
}

#[test]
fn what_is_wanted_while_the_machine_moves_a_range_is_not_forgotten() {
    let range = RegisterRange::new("bar", RangeId(7), None, None);
    let _ = range.move_to(Some(0x1000));
    range.now_at(Some(0x1000));
    // Another vCPU has it taken out before the machine is done.
    let _ = range.move_to(None);
    range.served(Some(0x1000));
    assert_eq!((range.base(), range.wanted()), (Some(0x1000), None));
    range.now_at(None);
    range.served(None);
    assert_eq!((range.base(), range.wanted()), (None, None));
    // A refusal: it is wanted where it is.
    let _ = range.move_to(Some(0x2000));
    range.served(Some(0x2000));
    assert_eq!((range.base(), range.wanted()), (None, None));
}
