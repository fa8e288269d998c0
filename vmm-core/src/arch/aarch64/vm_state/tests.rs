use super::*;

#[test]
fn a_state_says_how_old_it_is() {
    let parts = VmParts { gic: None, saved_at: wall_clock().map(|now| now - 1_000_000_000) };
    let decoded = VmParts::from_saved(&parts.to_saved()).unwrap();
    assert!(decoded.age().unwrap() >= 1_000_000_000);
    assert_eq!(VmParts { gic: None, saved_at: None }.age(), None);
    // A host whose clock was set back.
    assert_eq!(VmParts { gic: None, saved_at: Some(u64::MAX) }.age(), Some(0));
}

#[test]
fn a_state_of_another_architecture_is_refused_by_name() {
    let saved = VmParts { gic: None, saved_at: None }.to_saved();
    let foreign = SavedState::new("org.ossature.vm.x86_64", VERSION, saved.payload.clone());
    let error = VmParts::from_saved(&foreign).unwrap_err().to_string();
    assert!(error.contains("org.ossature.vm.x86_64") && error.contains(KIND), "{error}");
}

#[test]
fn a_gic_comes_with_its_its_and_a_gic_v2_with_none() {
    let decoded = |fields: &[(Field, &[u8])]| {
        let mut state = Encoder::new(KIND, VERSION);
        fields.iter().for_each(|(field, bytes)| _ = state.bytes(*field, bytes));
        VmParts::from_saved(&state.finish())
    };
    assert!(decoded(&[]).is_ok_and(|parts| parts.gic.is_none()));
    for field in [GIC, ITS, GIC_V2] {
        assert!(decoded(&[(field, &[])]).is_err(), "{field:?} of nothing");
    }
}
