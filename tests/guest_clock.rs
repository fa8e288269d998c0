//! The real-time clock's interrupts as a guest uses them.

mod support;

use support::Guest;

#[test]
fn g11_updates_alarms_and_periods_interrupt_the_guest() {
    let answers = Guest::new()
        .example("rtc")
        .run("hwclock", "hwclock -r -u")
        .run("driver", "grep -E 'alrm|update_IRQ' /proc/driver/rtc")
        .run("update", "timeout 120 /rtc update")
        .run("alarm", "timeout 120 /rtc alarm")
        .run("periodic", "timeout 120 /rtc periodic")
        .run("line", "grep rtc0 /proc/interrupts")
        .boot();
    assert_eq!(&answers["update"], "updates");
    assert_eq!(&answers["alarm"], "alarm");
    assert_eq!(&answers["periodic"], "periods");
    let line = &answers["line"];
    assert!(line.contains("IO-APIC") && line.contains("8-edge"), "{line}");
}
