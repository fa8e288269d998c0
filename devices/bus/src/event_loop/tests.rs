//! Handlers that tell their turns, on loops with a thread and without.

use std::collections::BTreeSet;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::*;

type Answer = Box<dyn FnMut(u16) -> Turn + Send>;

/// Tells its turns, and that it was dropped (by the end of the channel).
struct Teller {
    events: Vec<Arc<Event>>,
    turns: Sender<u16>,
    answer: Answer,
}

impl Handler for Teller {
    fn sources(&self) -> Vec<Source> {
        (10..).zip(&self.events).map(|(token, event)| source(token, event)).collect()
    }

    fn turn(&mut self, token: u16) -> Turn {
        let _ = self.turns.send(token);
        (self.answer)(token)
    }
}

fn source(token: u16, event: &Event) -> Source {
    Source { token, fd: event.as_raw_fd(), interest: Interest::Readable }
}

fn event() -> Arc<Event> {
    Arc::new(Event::new().unwrap())
}

fn teller(
    events: &[Arc<Event>],
    answer: impl FnMut(u16) -> Turn + Send + 'static,
) -> (Teller, Receiver<u16>) {
    let (turns, told) = channel();
    (Teller { events: events.to_vec(), turns, answer: Box::new(answer) }, told)
}

fn pump(event_loop: &EventLoop) {
    while event_loop.pass().unwrap() {}
}

#[test]
fn each_source_has_a_turn_at_first_and_one_for_each_signal() {
    let thread = LoopThread::start("loop").unwrap();
    let events = [event(), event(), event()];
    let (handler, told) = teller(&events, |_| Turn::Sleep);
    let hosted = thread.event_loop().host(handler).unwrap();
    let first: BTreeSet<_> = (0..3).map(|_| told.recv().unwrap()).collect();
    assert_eq!(first, BTreeSet::from([10, 11, 12]));
    // Nobody takes the count: each signal is a new edge.
    for _ in 0..100 {
        events[1].signal().unwrap();
        assert_eq!(told.recv().unwrap(), 11);
    }
    assert!(hosted.take_back().is_some());
}

#[test]
fn nothing_happens_unless_the_loop_runs() {
    let event_loop = EventLoop::new().unwrap();
    let events = [event(), event()];
    let (handler, told) = teller(&events, |_| Turn::Sleep);
    let hosted = event_loop.host(handler).unwrap();
    assert_eq!(told.try_iter().count(), 0);
    pump(&event_loop);
    assert_eq!(told.try_iter().collect::<BTreeSet<_>>(), BTreeSet::from([10, 11]));
    events[1].signal().unwrap();
    assert!(event_loop.pass().unwrap());
    assert!(!event_loop.pass().unwrap());
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [11]);
    events[0].signal().unwrap();
    drop(hosted);
    assert!(!event_loop.pass().unwrap());
    assert!(told.recv().is_err(), "dropped with its registration");
}

#[test]
fn a_busy_handler_lets_the_others_have_their_turns() {
    let thread = LoopThread::start("loop").unwrap();
    let events = [event()];
    let (busy, busy_told) = teller(&[event()], |_| Turn::Again);
    let (other, told) = teller(&events, |_| Turn::Sleep);
    let busy = thread.event_loop().host(busy).unwrap();
    let _other = thread.event_loop().host(other).unwrap();
    told.recv().unwrap();
    for _ in 0..100 {
        events[0].signal().unwrap();
        told.recv().unwrap();
    }
    (0..100).for_each(|_| assert_eq!(busy_told.recv().unwrap(), 10));
    assert!(busy.take_back().is_some());
}

#[test]
fn a_handler_is_woken_and_watches_more_and_less_from_anywhere() {
    let event_loop = EventLoop::new().unwrap();
    let (handler, told) = teller(&[], |_| Turn::Sleep);
    let hosted = event_loop.host(handler).unwrap();
    let handle = hosted.handle().clone();
    pump(&event_loop);
    let turns = || {
        pump(&event_loop);
        told.try_iter().collect::<Vec<_>>()
    };
    assert!(turns().is_empty());
    handle.wake(7);
    handle.wake(7);
    assert_eq!(turns(), [7], "due once, however often it was woken");
    // What happened before it was watched wakes too.
    let more = event();
    more.signal().unwrap();
    handle.watch(source(3, &more)).unwrap();
    assert_eq!(turns(), [3]);
    handle.watch(source(4, &more)).unwrap();
    assert_eq!(turns(), [4], "still readable, and looked at anew");
    handle.forget(more.as_raw_fd());
    more.signal().unwrap();
    assert!(turns().is_empty());
    handle.watch(source(5, &more)).unwrap();
    assert_eq!(turns(), [5]);
    drop(hosted);
    more.signal().unwrap();
    handle.wake(7);
    handle.watch(source(5, &more)).unwrap();
    handle.forget(more.as_raw_fd());
    assert!(!event_loop.pass().unwrap());
}

#[test]
fn a_loop_that_waits_sees_what_is_woken_and_hosted() {
    let thread = LoopThread::start("loop").unwrap();
    for _ in 0..1000 {
        let (handler, told) = teller(&[], |_| Turn::Sleep);
        let hosted = thread.event_loop().host(handler).unwrap();
        hosted.handle().wake(1);
        assert_eq!(told.recv(), Ok(1));
    }
}

#[test]
fn taking_back_waits_for_the_turn_that_runs_and_for_nothing_else() {
    let thread = LoopThread::start("loop").unwrap();
    let (enter, entered) = channel();
    let (leave, left) = channel::<()>();
    let (handler, _told) = teller(&[event()], move |_| {
        enter.send(()).unwrap();
        let _ = left.recv();
        Turn::Sleep
    });
    let slow = thread.event_loop().host(handler).unwrap();
    entered.recv().unwrap();
    // Another one comes and goes while that turn runs.
    let (other, _told) = teller(&[event()], |_| Turn::Sleep);
    assert!(thread.event_loop().host(other).unwrap().take_back().is_some());
    drop(leave);
    assert!(slow.take_back().is_some());
}

#[test]
fn a_stop_ends_the_run_that_is_under_way_or_the_next_one() {
    let event_loop = EventLoop::new().unwrap();
    event_loop.stop();
    event_loop.run().unwrap();
    let here = event_loop.clone();
    let (handler, told) = teller(&[event()], move |_| {
        here.stop();
        Turn::Again
    });
    let _hosted = event_loop.host(handler).unwrap();
    event_loop.run().unwrap();
    assert!(told.try_iter().count() > 0);
    // From another thread, whether or not the loop waits by then.
    drop(_hosted);
    for _ in 0..100 {
        let here = event_loop.clone();
        let stopper = thread::spawn(move || here.stop());
        event_loop.run().unwrap();
        stopper.join().unwrap();
    }
}

#[test]
fn descriptors_that_cannot_be_watched_are_an_error_and_leave_nothing_behind() {
    let event_loop = EventLoop::new().unwrap();
    let same = event();
    let (twice, told) = teller(&[same.clone(), same.clone()], |_| Turn::Sleep);
    assert_eq!(event_loop.host(twice).unwrap_err().fd, same.as_raw_fd());
    assert!(told.recv().is_err());
    let (once, _told) = teller(&[same], |_| Turn::Sleep);
    let hosted = event_loop.host(once).unwrap();
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let source = Source { token: 0, fd: file.as_raw_fd(), interest: Interest::Both };
    let error = hosted.handle().watch(source).unwrap_err();
    assert_eq!(error.source.kind(), io::ErrorKind::PermissionDenied);
}

#[test]
fn a_handler_that_panics_is_lost_and_nobody_waits_for_it() {
    let thread = LoopThread::start("loop").unwrap();
    let (handler, told) = teller(&[event()], |_| panic!("this panic is part of the test"));
    let hosted = thread.event_loop().host(handler).unwrap();
    told.recv().unwrap();
    assert!(hosted.take_back().is_none());
}

#[test]
fn threads_come_and_go_with_handlers_of_one_loop() {
    let thread = LoopThread::start("loop").unwrap();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let (handler, told) = teller(&[event()], |_| Turn::Again);
                    let hosted = thread.event_loop().host(handler).unwrap();
                    told.recv().unwrap();
                    assert!(hosted.take_back().is_some());
                }
            });
        }
    });
}
