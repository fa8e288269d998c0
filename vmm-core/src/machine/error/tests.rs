use super::*;

#[test]
fn ports_that_no_guest_reaches_are_told_with_what_helps_for_any_device() {
    assert_eq!(
        BuildError::NoPorts { id: "power".to_owned() }.to_string(),
        "device \"power\" asks for ports, which guests on this processor cannot reach; use a device in memory in its place"
    );
}
