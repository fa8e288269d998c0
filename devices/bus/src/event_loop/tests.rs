//! Handlers that tell their turns, on loops with a thread and without.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::thread;

use super::*;
use crate::{Event, LoopThread};

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

const PART_OF_THE_TEST: &str = "this panic is part of the test";

/// Panics in its turn, and once more when it is dropped; tells both.
struct Bomb {
    event: Arc<Event>,
    told: Sender<&'static str>,
    drop_panics: bool,
}

impl Handler for Bomb {
    fn sources(&self) -> Vec<Source> {
        vec![source(0, &self.event)]
    }

    fn turn(&mut self, _: u16) -> Turn {
        self.told.send("turn").unwrap();
        panic!("{PART_OF_THE_TEST}");
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        self.told.send("drop").unwrap();
        if self.drop_panics {
            panic!("this one too");
        }
    }
}

#[test]
fn e1_a_handler_that_panics_is_dropped_and_all_others_go_on() {
    let thread = LoopThread::start("loop").unwrap();
    let events = [event()];
    let (other, turns) = teller(&events, |_| Turn::Sleep);
    let _other = thread.event_loop().host(other).unwrap();
    turns.recv().unwrap();
    for drop_panics in [false, true] {
        let (tell, told) = channel();
        let fuse = event();
        let bomb = Bomb { event: fuse.clone(), told: tell, drop_panics };
        let bomb = thread.event_loop().host(bomb).unwrap();
        let handle = bomb.handle().clone();
        assert_eq!([told.recv(), told.recv()], [Ok("turn"), Ok("drop")]);
        fuse.signal().unwrap();
        handle.wake(0);
        for _ in 0..10 {
            events[0].signal().unwrap();
            assert_eq!(turns.recv(), Ok(10));
        }
        assert!(bomb.take_back().is_none());
        assert!(told.recv().is_err(), "it had another turn");
    }
}

#[test]
fn e1_a_handler_that_panicked_is_gone_when_it_is_asked_back() {
    let thread = LoopThread::start("loop").unwrap();
    for _ in 0..100 {
        let (tell, told) = channel();
        let bomb = Bomb { event: event(), told: tell, drop_panics: false };
        let bomb = thread.event_loop().host(bomb).unwrap();
        assert_eq!(told.recv(), Ok("turn"));
        assert!(bomb.take_back().is_none());
        assert_eq!(told.try_recv(), Ok("drop"));
    }
}

#[test]
fn e1_each_hook_is_told_of_its_own_handlers() {
    let event_loop = EventLoop::new().unwrap();
    let hooked = || {
        let (tell, told) = channel();
        let inner = event_loop.clone();
        let mine = event_loop.on_panic(move |panic| {
            // No lock is held, and it is the loop's thread.
            assert!(inner.is_running_here());
            inner.stop();
            tell.send(panic.message).unwrap();
        });
        (mine, told)
    };
    let ((first, first_told), (second, second_told)) = (hooked(), hooked());
    let bomb = |event_loop: &EventLoop, text: &'static str| {
        event_loop.on_readable(event(), move |_| panic!("{PART_OF_THE_TEST}: {text}")).unwrap()
    };
    let _bombs = [bomb(&first, "a"), bomb(&second.clone(), "b"), bomb(&event_loop, "c"), bomb(&first, "d")];
    pump(&event_loop);
    let text = |text| format!("{PART_OF_THE_TEST}: {text}");
    assert_eq!(first_told.try_iter().collect::<Vec<_>>(), [text("a"), text("d")]);
    assert_eq!(second_told.try_iter().collect::<Vec<_>>(), [text("b")]);
}

#[test]
fn e1_a_hook_that_panics_ends_nothing() {
    let event_loop = EventLoop::new().unwrap();
    let mine = event_loop.on_panic(|_| panic!("{PART_OF_THE_TEST}"));
    let _bomb = mine.on_readable(event(), |_| panic!("{PART_OF_THE_TEST}")).unwrap();
    let (other, turns) = teller(&[event()], |_| Turn::Sleep);
    let _other = event_loop.host(other).unwrap();
    pump(&event_loop);
    assert_eq!(turns.try_iter().collect::<Vec<_>>(), [10]);
}

#[test]
fn e1_a_timer_that_panics_is_told_and_ends_nothing() {
    let event_loop = EventLoop::new().unwrap();
    let here = event_loop.clone();
    let mine = event_loop.on_panic(move |panic| {
        assert_eq!(panic.message, PART_OF_THE_TEST);
        here.stop();
    });
    let _timer = mine.after(Duration::ZERO, || panic!("{PART_OF_THE_TEST}")).unwrap();
    event_loop.run().unwrap();
}

#[test]
fn a_handler_that_is_given_up_in_its_own_turn_is_dropped_after_it() {
    type Slot = Mutex<Option<Hosted<Teller>>>;
    let (told, panics) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let event_loop = EventLoop::new().unwrap();
    let counter = panics.clone();
    let mine = event_loop.on_panic(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let slot = Arc::new(Slot::default());
    let (inside, count) = (slot.clone(), told.clone());
    let (handler, turns) = teller(&[event()], move |_| {
        let hosted: Option<Hosted<Teller>> = inside.lock().unwrap().take();
        assert!(hosted.unwrap().take_back().is_none());
        count.fetch_add(1, Ordering::Relaxed);
        Turn::Again
    });
    *slot.lock().unwrap() = Some(mine.host(handler).unwrap());
    pump(&event_loop);
    assert_eq!(turns.recv(), Ok(10));
    assert!(turns.recv().is_err(), "not dropped");
    assert_eq!((told.load(Ordering::Relaxed), panics.load(Ordering::Relaxed)), (1, 0));
}

#[test]
fn a_timer_fires_once_and_not_before_its_time() {
    let event_loop = EventLoop::new().unwrap();
    let (tell, fired) = channel();
    let start = std::time::Instant::now();
    let alarm = |millis| {
        let (tell, here) = (tell.clone(), event_loop.clone());
        let delay = Duration::from_millis(millis);
        let f = move || {
            tell.send((millis, start.elapsed() >= delay)).unwrap();
            here.stop();
        };
        event_loop.after(delay, f).unwrap()
    };
    let timers = [alarm(20), alarm(0), alarm(1)];
    let never = event_loop.after(Duration::MAX, || panic!("fired")).unwrap();
    drop(alarm(5));
    let mut got: Vec<(u64, bool)> = Vec::new();
    while got.len() < 3 {
        event_loop.run().unwrap();
        got.extend(fired.try_iter());
    }
    got.sort_unstable();
    assert_eq!(got, [(0, true), (1, true), (20, true)]);
    drop((timers, never));
    pump(&event_loop);
    assert!(fired.try_recv().is_err());
}

#[test]
fn a_timer_may_be_dropped_by_its_own_call() {
    let event_loop = EventLoop::new().unwrap();
    let slot = Arc::new(Mutex::new(None));
    let (inside, here) = (slot.clone(), event_loop.clone());
    let f = move || {
        drop::<Option<Timer>>(inside.lock().unwrap().take());
        here.stop();
    };
    *slot.lock().unwrap() = Some(event_loop.after(Duration::ZERO, f).unwrap());
    event_loop.run().unwrap();
    assert!(slot.lock().unwrap().is_none());
}

#[test]
fn the_loop_knows_the_thread_that_runs_it_and_cannot_be_run_by_its_own_turn() {
    let thread = LoopThread::start("loop").unwrap();
    let event_loop = thread.event_loop();
    let (tell, told) = channel();
    let here = event_loop.clone();
    let _hosted = event_loop.on_readable(event(), move |_| {
        let refused = [here.run().map(|()| true), here.pass()].map(|result| result.unwrap_err().kind());
        tell.send((here.is_running_here(), here.is_running(), refused)).unwrap();
    });
    assert_eq!(told.recv(), Ok((true, true, [io::ErrorKind::Deadlock; 2])));
    assert!(!event_loop.is_running_here());
    let idle = EventLoop::new().unwrap();
    idle.pass().unwrap();
    assert!(!idle.is_running_here() && !idle.is_running());
}

#[test]
fn whether_the_loop_is_running_is_seen_from_elsewhere() {
    let event_loop = EventLoop::new().unwrap();
    let (enter, entered) = channel();
    let _hosted = event_loop.on_readable(event(), move |_| enter.send(()).unwrap()).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| event_loop.run().unwrap());
        // In its turn or in its wait.
        entered.recv().unwrap();
        assert!(event_loop.is_running());
        event_loop.stop();
    });
    assert!(!event_loop.is_running());
}

/// Returns true if a loop of another kind would see that `event_loop` has something to do.
fn is_readable(event_loop: &EventLoop) -> bool {
    let epoll = vmm_sys_util::epoll::Epoll::new().unwrap();
    let event = vmm_sys_util::epoll::EpollEvent::new(vmm_sys_util::epoll::EventSet::IN, 0);
    epoll.ctl(vmm_sys_util::epoll::ControlOperation::Add, event_loop.as_fd().as_raw_fd(), event).unwrap();
    epoll.wait(0, &mut [event]).unwrap() == 1
}

#[test]
fn a_loops_descriptor_is_readable_while_turns_are_due() {
    let event_loop = EventLoop::new().unwrap();
    assert!(!is_readable(&event_loop));
    let again = Arc::new(AtomicBool::new(true));
    let asks = again.clone();
    let (handler, turns) =
        teller(&[event()], move |_| if asks.load(Ordering::Relaxed) { Turn::Again } else { Turn::Sleep });
    let hosted = event_loop.host(handler).unwrap();
    assert!(is_readable(&event_loop), "hosted before the first pass");
    for _ in 0..3 {
        event_loop.pass().unwrap();
        assert!(is_readable(&event_loop), "asked for another turn");
    }
    again.store(false, Ordering::Relaxed);
    event_loop.pass().unwrap();
    assert_eq!(turns.try_iter().count(), 4);
    for _ in 0..3 {
        assert!(!is_readable(&event_loop));
        hosted.handle().wake(7);
        assert!(is_readable(&event_loop), "woken after a pass");
        event_loop.pass().unwrap();
        assert_eq!(turns.try_recv(), Ok(7));
        event_loop.pass().unwrap();
    }
    // Also after it was run.
    event_loop.stop();
    event_loop.run().unwrap();
    event_loop.pass().unwrap();
    assert!(!is_readable(&event_loop), "readable after a pass that left nothing");
    hosted.handle().wake(8);
    assert!(is_readable(&event_loop));
    drop(hosted);
    event_loop.pass().unwrap();
    assert!(!is_readable(&event_loop));
}

#[test]
fn a_loop_on_a_loop_has_all_of_more_turns_than_one_pass_takes() {
    let (outer, inner) = (EventLoop::new().unwrap(), EventLoop::new().unwrap());
    let end = outer.clone();
    let nested = inner.clone();
    let _nested = outer
        .on_readable(nested, |inner| {
            inner.pass().unwrap();
        })
        .unwrap();
    pump(&outer);
    let events: Vec<_> = (0..100).map(|_| event()).collect();
    let left = Arc::new(OnceLock::new());
    let hosted: Vec<_> = events
        .iter()
        .map(|event| {
            let (left, end) = (left.clone(), end.clone());
            let f = move |_: &mut Arc<Event>| {
                let left: Option<&AtomicUsize> = left.get();
                if left.is_some_and(|left| left.fetch_sub(1, Ordering::Relaxed) == 1) {
                    end.stop();
                }
            };
            inner.on_readable(event.clone(), f).unwrap()
        })
        .collect();
    pump(&outer);
    left.set(AtomicUsize::new(events.len())).unwrap();
    events.iter().for_each(|event| event.signal().unwrap());
    // Ends when each has had its turn, though the outer loop sees edges only.
    outer.run().unwrap();
    drop(hosted);
}

#[test]
fn no_wake_of_a_loop_on_a_loop_is_lost() {
    let thread = LoopThread::start("outer").unwrap();
    let inner = EventLoop::new().unwrap();
    let _nested = thread
        .event_loop()
        .on_readable(inner.clone(), |inner| {
            inner.pass().unwrap();
        })
        .unwrap();
    thread::scope(|scope| {
        for waker in 0..3 {
            let inner = &inner;
            scope.spawn(move || {
                let (handler, turns) =
                    teller(&[], move |token| if token % 3 == waker { Turn::Again } else { Turn::Sleep });
                let hosted = inner.host(handler).unwrap();
                for round in 0..2000 {
                    // A token that its handler is content with.
                    let token = 3 * round + (waker + 1) % 3;
                    hosted.handle().wake(token);
                    assert_eq!(turns.recv(), Ok(token));
                    if round % 16 == 0 {
                        inner.pass().unwrap();
                    }
                }
                assert!(hosted.take_back().is_some());
            });
        }
    });
}

#[test]
fn e1_the_descriptors_of_a_handler_that_panicked_are_watched_no_more() {
    let event_loop = EventLoop::new().unwrap();
    let kept = event();
    let bomb = event_loop.on_readable(kept.clone(), |_| panic!("{PART_OF_THE_TEST}")).unwrap();
    pump(&event_loop);
    kept.signal().unwrap();
    bomb.handle().wake(0);
    assert!(!event_loop.pass().unwrap());
    // They may be watched for somebody else, and the end of the old handler is no matter to that one.
    let (other, turns) = teller(std::slice::from_ref(&kept), |_| Turn::Sleep);
    let _other = event_loop.host(other).unwrap();
    drop(bomb);
    pump(&event_loop);
    kept.signal().unwrap();
    pump(&event_loop);
    assert!(turns.try_iter().count() >= 2);
}

#[test]
fn t4_a_thread_of_a_loop_takes_no_signals_to_the_process() {
    let blocked = || {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap()
    };
    let here = blocked();
    let thread = LoopThread::start("masked").unwrap();
    let (tell, told) = channel();
    let _timer = thread.event_loop().after(Duration::ZERO, move || tell.send(blocked()).unwrap()).unwrap();
    let there = told.recv_timeout(Duration::from_secs(60)).unwrap();
    let bit = |signal: i32| 1_u64 << (signal - 1);
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1, libc::SIGTSTP, libc::SIGWINCH] {
        assert_ne!(there & bit(signal), 0, "{signal}");
    }
    for signal in [libc::SIGSEGV, libc::SIGPROF, libc::SIGTTIN, libc::SIGRTMIN()] {
        assert_eq!(there & bit(signal), here & bit(signal), "{signal}");
    }
    assert_eq!(blocked(), here, "the one that has started it is as it was");
}
