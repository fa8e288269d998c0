use std::sync::Mutex;

use super::*;

#[test]
fn events_arrive_in_order_from_all_clones() {
    let got = Arc::new(Mutex::new(Vec::new()));
    let sink = {
        let got = got.clone();
        EventSink::new(move |event| got.lock().unwrap().push(event))
    };
    let clone = sink.clone();
    let first = DeviceEvent::NeedsReset { reason: "the ring is broken".into() };
    let second = DeviceEvent::HostError { reason: "disk full".into() };
    sink.report(first.clone());
    std::thread::scope(|scope| {
        scope.spawn(|| clone.report(second.clone()));
    });
    assert_eq!(*got.lock().unwrap(), [first, second]);
    assert_eq!(format!("{sink:?}"), "EventSink");
}

#[test]
fn a_discarding_sink_takes_events() {
    EventSink::discard().report(DeviceEvent::HostError { reason: String::new() });
}
