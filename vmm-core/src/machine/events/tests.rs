use super::*;

fn device(n: usize) -> MachineEvent {
    MachineEvent::DeviceAdded { id: n.to_string() }
}

#[test]
fn every_follower_sees_every_event_from_the_first_on() {
    let log = EventLog::default();
    let mut early = log.stream();
    log.push(MachineEvent::Started);
    log.push(MachineEvent::Paused);
    let mut late = log.stream();
    for stream in [&mut early, &mut late] {
        assert_eq!(stream.try_next(), Some(MachineEvent::Started));
        assert_eq!(stream.try_next(), Some(MachineEvent::Paused));
        assert_eq!(stream.try_next(), None);
    }
    log.push(MachineEvent::Resumed);
    let mut clone = early.clone();
    assert_eq!(clone.try_next(), early.try_next());
    assert_eq!(late.try_next(), Some(MachineEvent::Resumed));
}

#[test]
fn nothing_comes_after_the_end() {
    let log = EventLog::default();
    let mut stream = log.stream();
    log.push(MachineEvent::Ended(Outcome::Stopped));
    log.push(MachineEvent::Paused);
    assert_eq!(stream.try_next(), Some(MachineEvent::Ended(Outcome::Stopped)));
    assert_eq!(stream.try_next(), None);
}

#[test]
fn a_slow_follower_learns_how_much_it_has_missed_and_others_miss_nothing() {
    let log = EventLog::default();
    let (mut slow, mut quick) = (log.stream(), log.stream());
    for n in 0..CAPACITY + 10 {
        log.push(device(n));
        assert_eq!(quick.try_next(), Some(device(n)));
    }
    assert_eq!(slow.try_next(), Some(device(10)));
    assert_eq!((slow.missed(), quick.missed()), (10, 0));
}

#[test]
fn a_descriptor_is_readable_while_events_wait() {
    let log = EventLog::default();
    log.push(MachineEvent::Started);
    let mut stream = log.stream().pollable().unwrap();
    let readable = |stream: &PollableEvents| stream.descriptor.take().unwrap() > 0;
    assert!(readable(&stream));
    assert_eq!(stream.try_next(), Some(MachineEvent::Started));
    log.push(MachineEvent::Paused);
    log.push(MachineEvent::Resumed);
    assert_eq!(stream.try_next(), Some(MachineEvent::Paused));
    assert!(readable(&stream));
    assert_eq!(stream.try_next(), Some(MachineEvent::Resumed));
    assert!(!readable(&stream));
    assert_eq!(stream.try_next(), None);
}

#[test]
fn a_follower_that_waits_is_woken() {
    let log = EventLog::default();
    let mut stream = log.stream();
    let reader = std::thread::spawn(move || stream.next_timeout(Duration::from_secs(60)));
    log.push(MachineEvent::Reset);
    assert_eq!(reader.join().unwrap(), Some(MachineEvent::Reset));
    assert_eq!(log.stream().next_timeout(Duration::MAX), Some(MachineEvent::Reset));
}

#[test]
fn a_function_on_a_loop_is_called_with_what_waited_and_with_what_comes_until_it_is_dropped() {
    let (log, event_loop) = (EventLog::default(), EventLoop::new().unwrap());
    log.push(MachineEvent::Started);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = seen.clone();
    let followed =
        log.stream().follow_on(&event_loop, move |event| told.lock().unwrap().push(event)).unwrap();
    let pump = || while event_loop.pass().unwrap() {};
    pump();
    assert_eq!(std::mem::take(&mut *seen.lock().unwrap()), [MachineEvent::Started]);
    log.push(MachineEvent::Paused);
    log.push(MachineEvent::Resumed);
    assert!(seen.lock().unwrap().is_empty(), "outside of a turn");
    pump();
    assert_eq!(std::mem::take(&mut *seen.lock().unwrap()), [MachineEvent::Paused, MachineEvent::Resumed]);
    drop(followed);
    log.push(MachineEvent::Reset);
    pump();
    assert!(seen.lock().unwrap().is_empty());
    assert!(log.lock().wakers.is_empty());
}
