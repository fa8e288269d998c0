use super::*;

fn parts(pit: Option<kvm_pit_state2>) -> VmParts {
    let chips = CHIPS.map(|chip_id| kvm_irqchip { chip_id, ..Default::default() });
    VmParts { chips: Some(Chips { chips, pit }), clock: 5, saved_at: Some(9) }
}

#[test]
fn a_state_survives_the_way_through_bytes() {
    for parts in [
        parts(None),
        parts(Some(kvm_pit_state2::default())),
        VmParts { chips: None, clock: 7, saved_at: None },
    ] {
        assert_eq!(VmParts::from_saved(&parts.to_saved()), Ok(parts));
    }
}

#[test]
fn d2_a_missing_or_a_wrong_chip_is_refused() {
    let mut missing = Encoder::new(KIND, VERSION);
    missing.u64(CLOCK, 0);
    missing.bytes(CHIP_FIELDS[1], kvm_irqchip { chip_id: CHIPS[1], ..Default::default() }.to_bytes());
    assert!(matches!(VmParts::from_saved(&missing.finish()), Err(StateError::Inconsistent { .. })));
    let mut wrong = parts(None);
    wrong.chips.as_mut().unwrap().chips[0].chip_id = 9;
    assert!(matches!(VmParts::from_saved(&wrong.to_saved()), Err(StateError::Value { value: 9, .. })));
}

#[test]
fn a_state_of_another_architecture_is_refused_by_name() {
    let foreign = SavedState::new("org.ossature.vm.aarch64", VERSION, Vec::new());
    let error = VmParts::from_saved(&foreign).unwrap_err().to_string();
    assert!(error.contains("org.ossature.vm.aarch64") && error.contains(KIND), "{error}");
}
