use super::*;
use crate::testing::{attach, hostile, lives_twice, metric, reset_is_complete};

#[test]
fn a_driver_finds_both_events_and_reports_a_panic() {
    let mut pvpanic = Pvpanic::new("pvpanic");
    let machine = attach(&mut pvpanic);
    assert_eq!(machine.read(0, 0), 0b11);
    assert_eq!(machine.write(0, 0, 0b01), Effect::Vm(VmRequest::GuestPanic));
    assert_eq!(metric(&pvpanic, "panics"), 1);
}

#[test]
fn a_guest_with_a_crash_kernel_goes_on() {
    let mut pvpanic = Pvpanic::new("pvpanic");
    let machine = attach(&mut pvpanic);
    assert_eq!(machine.write(0, 0, 0b10), Effect::None);
    assert_eq!((metric(&pvpanic, "panics"), metric(&pvpanic, "crash_kernels")), (0, 1));
}

#[test]
fn unknown_events_are_nothing() {
    let mut pvpanic = Pvpanic::new("pvpanic");
    let machine = attach(&mut pvpanic);
    assert_eq!(machine.write(0, 0, 0xfc), Effect::None);
    assert_eq!((metric(&pvpanic, "panics"), metric(&pvpanic, "crash_kernels")), (0, 0));
}

#[test]
fn any_access_is_answered() {
    hostile(|| Pvpanic::new("pvpanic"), |_, machine| assert_eq!(machine.read(0, 0), 0b11));
}

#[test]
fn a_reset_port_is_as_new() {
    reset_is_complete(|| Pvpanic::new("pvpanic"));
}

#[test]
fn a_detached_port_lets_go_of_its_machine_and_works_in_another() {
    lives_twice(&mut Pvpanic::new("pvpanic"), |_, machine| {
        assert_eq!(machine.read(0, 0), 0b11);
        assert_eq!(machine.write(0, 0, 0b01), Effect::Vm(VmRequest::GuestPanic));
    });
}
