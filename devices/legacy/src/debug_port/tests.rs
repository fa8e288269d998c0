use super::*;
use crate::testing::{attach, hostile, lives_twice, metric, reset_is_complete};

#[test]
fn stamps_are_in_order_of_value_and_time() {
    let start = Instant::now();
    let mut port = DebugPort::new("debug", start);
    let machine = attach(&mut port);
    let stamps = port.stamps();
    for value in [1, 2, 123] {
        assert_eq!(machine.write(0, 0, value), Effect::None);
    }
    let elapsed = start.elapsed();
    let taken = stamps.take();
    assert_eq!(taken.iter().map(|s| s.value).collect::<Vec<_>>(), [1, 2, 123]);
    assert!(taken.is_sorted_by_key(|s| s.at));
    assert!(taken.iter().all(|s| s.at <= elapsed));
    assert_eq!(stamps.take(), []);
    assert_eq!(metric(&port, "stamps"), 3);
}

#[test]
fn b13_a_flood_of_stamps_is_counted_and_neither_kept_nor_passed_on() {
    let calls = Arc::new(Mutex::new(0));
    let counter = calls.clone();
    let on_stamp = move |_| *counter.lock().unwrap() += 1;
    let mut port = DebugPort::with_callback("debug", Instant::now(), 0x80, on_stamp);
    let machine = attach(&mut port);
    for _ in 0..DebugPort::CAPACITY + 1000 {
        assert_eq!(machine.write(0, 0, 7), Effect::None);
    }
    assert_eq!(*calls.lock().unwrap(), DebugPort::CAPACITY);
    assert_eq!((metric(&port, "stamps"), metric(&port, "dropped_stamps")), (256, 1000));
    assert_eq!(port.stamps().take().len(), DebugPort::CAPACITY);
    assert_eq!(machine.write(0, 0, 8), Effect::None);
    assert_eq!(port.stamps().take()[0].value, 8);
}

#[test]
fn a_callback_may_take_the_stamps() {
    let handle = Arc::new(Mutex::new(None::<Stamps>));
    let inside = handle.clone();
    let on_stamp = move |stamp| {
        assert_eq!(inside.lock().unwrap().as_ref().unwrap().take(), [stamp]);
    };
    let mut port = DebugPort::with_callback("debug", Instant::now(), 0x80, on_stamp);
    *handle.lock().unwrap() = Some(port.stamps());
    let machine = attach(&mut port);
    assert_eq!(machine.write(0, 0, 1), Effect::None);
    assert_eq!(metric(&port, "stamps"), 1);
}

#[test]
fn any_access_is_answered() {
    hostile(
        || DebugPort::new("debug", Instant::now()),
        |port, _| assert!(port.stamps().take().len() <= DebugPort::CAPACITY),
    );
}

#[test]
fn a_reset_port_is_as_new_and_keeps_the_stamps() {
    reset_is_complete(|| DebugPort::new("debug", Instant::now()));
    let mut port = DebugPort::new("debug", Instant::now());
    let machine = attach(&mut port);
    assert_eq!(machine.write(0, 0, 1), Effect::None);
    port.reset().unwrap();
    assert_eq!(port.stamps().take().len(), 1);
}

#[test]
fn a_detached_port_lets_go_of_its_machine_and_works_in_another() {
    let mut port = DebugPort::new("debug", Instant::now());
    let stamps = port.stamps();
    assert_eq!(stamps.take(), []);
    lives_twice(&mut port, |_, machine| {
        assert_eq!(machine.write(0, 0, 123), Effect::None);
        assert_eq!(stamps.take().last().unwrap().value, 123);
        assert_eq!(machine.write(0, 0, 7), Effect::None);
    });
    assert_eq!(stamps.take().len(), 1, "the last stamps are kept");
}

#[test]
fn e1_a_callback_that_panics_loses_no_stamp_and_leaves_the_port_usable() {
    let mut port =
        DebugPort::with_callback("debug", Instant::now(), 0x80, |stamp| assert_ne!(stamp.value, 13));
    let machine = attach(&mut port);
    let write = |value| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| machine.write(0, 0, value)));
    assert!(write(13).is_err());
    assert!(write(14).is_ok());
    assert_eq!(port.stamps().take().iter().map(|stamp| stamp.value).collect::<Vec<_>>(), [13, 14]);
}
