use super::*;
use crate::testing::{attach, hostile, metric};

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
