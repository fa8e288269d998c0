use super::*;

#[test]
fn a_scripted_state_survives_the_way_through_bytes() {
    let registers = arch::testing::registers_at(0x1234);
    let vcpu = VcpuState(VcpuStateOf::Scripted(Box::new(registers)));
    assert_eq!(VcpuState::from_saved(&vcpu.to_saved()), Ok(vcpu.clone()));
    let vm = VmState(VmStateOf::Scripted(vec![5, 10]));
    assert_eq!(VmState::from_saved(&vm.to_saved()), Ok(vm.clone()));
    assert!(VmState::from_saved(&vcpu.to_saved()).is_err());
    assert!(VcpuState::from_saved(&vm.to_saved()).is_err());
}

#[test]
fn d2_a_list_of_lines_without_end_is_refused() {
    let vm = VmState(VmStateOf::Scripted((0..=MAX_LINES as u32).collect()));
    assert!(VmState::from_saved(&vm.to_saved()).is_err());
}
