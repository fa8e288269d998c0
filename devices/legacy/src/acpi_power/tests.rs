use super::*;
use crate::testing::{attach, hostile, lives_twice, metric, reset_is_complete};

#[test]
fn sleep_type_5_with_enable_is_power_off() {
    let mut power = AcpiPower::new("power");
    let machine = attach(&mut power);
    // SLP_TYP alone is preparation.
    assert_eq!(machine.write(0, 0, 5 << 2), Effect::None);
    assert_eq!(machine.write(0, 0, 5 << 2 | 1 << 5), Effect::Vm(VmRequest::Shutdown));
}

#[test]
fn no_other_sleep_type_does_anything() {
    let mut power = AcpiPower::new("power");
    let machine = attach(&mut power);
    for slp_typ in (0..8).filter(|t| *t != AcpiPower::S5_SLEEP_TYPE) {
        assert_eq!(machine.write(0, 0, slp_typ << 2 | 1 << 5), Effect::None);
    }
    assert_eq!(metric(&power, "ignored_sleep_requests"), 7);
}

#[test]
fn only_the_reset_value_resets() {
    let mut power = AcpiPower::new("power");
    let machine = attach(&mut power);
    for value in 0..=255 {
        let reset = machine.write(0, 2, value) == Effect::Vm(VmRequest::Reset);
        assert_eq!(reset, value == AcpiPower::RESET_VALUE);
    }
    assert_eq!(
        machine.ports[0].read(Access { offset: 2, size: ossature_bus::Size::B1 }),
        Err(BusFault::WriteOnly)
    );
}

#[test]
fn the_machine_has_never_slept() {
    let mut power = AcpiPower::new("power");
    let machine = attach(&mut power);
    assert_eq!(machine.write(0, 1, 0x80), Effect::None);
    assert_eq!([machine.read(0, 0), machine.read(0, 1)], [0, 0]);
}

#[test]
fn the_button_interrupts_once_per_press() {
    let mut power = AcpiPower::new("power");
    let button = power.button();
    assert_eq!(button.press().unwrap_err().kind(), io::ErrorKind::NotConnected);
    let machine = attach(&mut power);
    assert_eq!(machine.interrupts(), 0);
    button.press().unwrap();
    button.clone().press().unwrap();
    assert_eq!(machine.interrupts(), 2);
    assert_eq!(metric(&power, "button_presses"), 2);
}

#[test]
fn any_access_is_answered() {
    hostile(|| AcpiPower::new("power"), |_, machine| assert_eq!(machine.interrupts(), 0));
}

#[test]
fn reset_registers_are_as_new() {
    reset_is_complete(|| AcpiPower::new("power"));
}

#[test]
fn a_detached_device_lets_go_of_its_machine_and_works_in_another() {
    let mut power = AcpiPower::new("power");
    let button = power.button();
    let not_attached = || button.press().unwrap_err().kind() == io::ErrorKind::NotConnected;
    assert!(not_attached());
    lives_twice(&mut power, |_, machine| {
        button.press().unwrap();
        assert_eq!(machine.interrupts(), 1);
        assert_eq!(machine.write(0, 2, AcpiPower::RESET_VALUE), Effect::Vm(VmRequest::Reset));
    });
    assert!(not_attached());
    assert_eq!(metric(&power, "button_presses"), 2);
}

#[test]
fn a_button_alone_interrupts_and_has_no_registers() {
    let mut power = AcpiPower::button_only("power");
    let button = power.button();
    let mut board = ossature_bus::testing::TestBoard::default();
    assert_eq!(board.attach(&mut power).unwrap(), NodeKind::PowerButton);
    assert_eq!(board.registers().len(), 0);
    power.resume().unwrap();
    button.press().unwrap();
    assert_eq!(board.edges("irq").unwrap().take().unwrap(), 1);
    power.detach().unwrap();
    assert_eq!(button.press().unwrap_err().kind(), io::ErrorKind::NotConnected);
}
