//! Every runtime, with workers that tell what happens to them.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use ossature_bus::Event;

use super::*;
use crate::testing::{GuestRing, guest_ram};
use crate::{Failure, Interest, QueueBroken, QueueSetup, QueueState, Removed, Source, Turn, VirtQueue};

const BROKEN: QueueBroken = QueueBroken::EmptyDescriptor;

type Answer = Box<dyn FnMut(u16) -> Result<Turn, QueueBroken> + Send>;

/// Tells its turns (token and thread), and that it was dropped (by the end of the channel).
struct Teller {
    events: Vec<Arc<Event>>,
    turns: Sender<(u16, Option<String>)>,
    answer: Answer,
    queues: Vec<VirtQueue>,
}

impl Worker for Teller {
    fn sources(&self) -> Vec<Source> {
        let source = |(i, event): (usize, &Arc<Event>)| Source {
            token: 10 + i as u16,
            fd: event.as_raw_fd(),
            interest: Interest::Readable,
        };
        self.events.iter().enumerate().map(source).collect()
    }

    fn turn(&mut self, token: u16) -> Result<Turn, QueueBroken> {
        let _ = self.turns.send((token, thread::current().name().map(str::to_owned)));
        (self.answer)(token)
    }

    fn add_queue(&mut self, queue: VirtQueue) {
        self.queues.push(queue);
    }

    fn remove_queue(&mut self, index: u16) -> Removed {
        let at = self.queues.iter().position(|queue| queue.index() == index);
        at.map(|at| self.queues.swap_remove(at)).into()
    }
}

struct Hosted {
    events: Vec<Arc<Event>>,
    turns: Receiver<(u16, Option<String>)>,
    failed: Receiver<Failure>,
    handle: Box<dyn WorkerHandle>,
}

fn event() -> Arc<Event> {
    Arc::new(Event::new().unwrap())
}

fn host(
    runtime: &dyn Runtime,
    sources: usize,
    answer: impl FnMut(u16) -> Result<Turn, QueueBroken> + Send + 'static,
) -> Hosted {
    let (sender, turns) = channel();
    let (tell, failed) = channel();
    let events: Vec<_> = (0..sources).map(|_| event()).collect();
    let worker =
        Teller { events: events.clone(), turns: sender, answer: Box::new(answer), queues: Vec::new() };
    let handle =
        runtime.spawn("teller", Box::new(worker), Box::new(move |why| tell.send(why).unwrap())).unwrap();
    Hosted { events, turns, failed, handle }
}

/// The runtimes with threads.
fn threaded() -> [Box<dyn Runtime>; 2] {
    [Box::new(SharedLoop::new("shared").unwrap()), Box::new(DedicatedThread)]
}

#[test]
fn each_source_has_a_turn_at_the_start_and_one_for_each_signal() {
    for runtime in threaded() {
        let hosted = host(&*runtime, 3, |_| Ok(Turn::Sleep));
        let mut first: Vec<_> = (0..3).map(|_| hosted.turns.recv().unwrap().0).collect();
        first.sort_unstable();
        assert_eq!(first, [10, 11, 12]);
        // Nobody takes the count: each signal is a new edge.
        for _ in 0..100 {
            hosted.events[1].signal().unwrap();
            assert_eq!(hosted.turns.recv().unwrap().0, 11);
        }
        drop(hosted.handle);
    }
}

#[test]
fn threads_are_named() {
    let names = threaded().map(|runtime| host(&*runtime, 1, |_| Ok(Turn::Sleep)).turns.recv().unwrap().1);
    assert_eq!(names, [Some("shared".to_owned()), Some("teller".to_owned())]);
}

#[test]
fn a_busy_worker_lets_the_others_have_their_turns() {
    let runtime = SharedLoop::new("shared").unwrap();
    let busy = host(&runtime, 1, |_| Ok(Turn::Again));
    let other = host(&runtime, 1, |_| Ok(Turn::Sleep));
    other.turns.recv().unwrap();
    for _ in 0..100 {
        other.events[0].signal().unwrap();
        other.turns.recv().unwrap();
    }
    // It was never asleep meanwhile.
    (0..100).for_each(|_| assert_eq!(busy.turns.recv().unwrap().0, 10));
    drop(busy.handle);
    drop(other.handle);
}

#[test]
fn a_worker_that_asks_for_more_gets_it_without_a_signal() {
    for runtime in threaded() {
        let mut left = 3;
        let hosted = host(&*runtime, 1, move |_| {
            left -= 1;
            Ok(if left > 0 { Turn::Again } else { Turn::Sleep })
        });
        (0..3).for_each(|_| assert_eq!(hosted.turns.recv().unwrap().0, 10));
        drop(hosted.handle);
        assert_eq!(hosted.turns.try_iter().count(), 0);
    }
}

/// A queue, and the doorbell that its driver rings.
fn queue(index: u16) -> (VirtQueue, Arc<Event>) {
    let dma = guest_ram(&[(0, 0x1_0000)]);
    let ring = GuestRing::new(dma.clone(), 0x1000, 16, 0);
    let state = QueueState::new(16).at(ring.desc, ring.avail, ring.used);
    let doorbell = event();
    (QueueSetup::new(index, state, dma, doorbell.clone(), event().into()).build().unwrap(), doorbell)
}

#[test]
fn a_queue_that_comes_has_a_turn_and_one_for_each_kick_until_it_leaves() {
    for runtime in threaded() {
        let hosted = host(&*runtime, 1, |_| Ok(Turn::Sleep));
        assert_eq!(hosted.turns.recv().unwrap().0, 10);
        let (mut queue, doorbell) = queue(3);
        for _ in 0..20 {
            hosted.handle.add_queue(queue).unwrap();
            assert_eq!(hosted.turns.recv().unwrap().0, 3);
            // Nobody takes the doorbell's count: what was rung before may show as one turn more.
            hosted.events[0].signal().unwrap();
            while hosted.turns.recv().unwrap().0 != 10 {}
            doorbell.signal().unwrap();
            assert_eq!(hosted.turns.recv().unwrap().0, 3);
            queue = hosted.handle.remove_queue(3).unwrap();
            assert!(hosted.handle.remove_queue(3).is_none());
            // A turn that was due by then may come, and does no harm.
            hosted.events[0].signal().unwrap();
            while hosted.turns.recv().unwrap().0 != 10 {}
            doorbell.signal().unwrap();
            hosted.events[0].signal().unwrap();
            assert_eq!(hosted.turns.recv().unwrap().0, 10, "a queue that left was kicked");
        }
    }
}

#[test]
fn a_dropped_handle_stops_and_drops_the_worker() {
    for runtime in threaded() {
        let Hosted { turns, handle, .. } = host(&*runtime, 1, |_| Ok(Turn::Sleep));
        turns.recv().unwrap();
        drop(handle);
        assert!(turns.try_recv().is_err());
        assert!(turns.recv().is_err());
    }
}

#[test]
fn a_broken_worker_has_no_more_turns_is_told_of_once_and_gives_its_queues_back() {
    for runtime in threaded() {
        let mut turns = 0;
        let hosted = host(&*runtime, 2, move |_| {
            turns += 1;
            if turns <= 3 { Ok(Turn::Sleep) } else { Err(BROKEN) }
        });
        (0..2).for_each(|_| drop(hosted.turns.recv().unwrap()));
        hosted.handle.add_queue(queue(0).0).unwrap();
        hosted.turns.recv().unwrap();
        hosted.events[0].signal().unwrap();
        assert_eq!(hosted.failed.recv(), Ok(Failure::NeedsReset { reason: BROKEN.to_string() }));
        assert_eq!(hosted.turns.recv().unwrap().0, 10);
        hosted.events[1].signal().unwrap();
        hosted.events[0].signal().unwrap();
        // A round trip through the thread, after which the signals have been seen.
        let other = host(&*runtime, 1, |_| Ok(Turn::Sleep));
        other.turns.recv().unwrap();
        hosted.handle.add_queue(queue(1).0).unwrap();
        assert!(hosted.handle.remove_queue(1).is_none());
        assert!(hosted.handle.remove_queue(0).is_some());
        drop(hosted.handle);
        assert_eq!(hosted.turns.try_iter().count(), 0);
        assert!(hosted.failed.try_recv().is_err());
    }
}

#[test]
fn e1_a_worker_that_panics_is_told_of_once_and_the_loop_goes_on() {
    for runtime in threaded() {
        let mut turns = 0;
        let hosted = host(&*runtime, 1, move |_| {
            turns += 1;
            if turns > 2 { panic!("this panic is part of the test") } else { Ok(Turn::Sleep) }
        });
        hosted.handle.add_queue(queue(0).0).unwrap();
        let message = "this panic is part of the test".to_owned();
        (0..2).for_each(|_| drop(hosted.turns.recv().unwrap()));
        hosted.events[0].signal().unwrap();
        assert_eq!(hosted.failed.recv(), Ok(Failure::Panicked { message }));
        assert!(hosted.handle.remove_queue(0).is_none());
        hosted.handle.add_queue(queue(0).0).unwrap();
        assert!(hosted.handle.remove_queue(0).is_none());
        let other = host(&*runtime, 1, |_| Ok(Turn::Sleep));
        other.turns.recv().unwrap();
        drop(hosted.handle);
        assert!(hosted.failed.recv().is_err());
    }
}

#[test]
fn descriptors_that_cannot_be_watched_are_an_error() {
    let mut runtimes = Vec::from(threaded());
    runtimes.push(Box::new(Inline::new().unwrap()));
    for runtime in runtimes {
        let spawn = |events: Vec<Arc<Event>>| {
            let answer: Answer = Box::new(|_| Ok(Turn::Sleep));
            let worker = Teller { events, turns: channel().0, answer, queues: Vec::new() };
            runtime.spawn("teller", Box::new(worker), Box::new(|_| ()))
        };
        let same = event();
        let twice = spawn(vec![same.clone(), same.clone()]).err().unwrap();
        assert!(twice.reason().contains("cannot watch descriptor"), "{twice}");
        // Nothing of the first attempt is left.
        assert!(spawn(vec![same]).is_ok());
    }
    let inline = Inline::new().unwrap();
    let file = tempfile::tempfile().unwrap();
    let error = inline.spawn("file", Box::new(FileWatcher(file)), Box::new(|_| ())).err().unwrap();
    let source = std::error::Error::source(&error).and_then(|e| e.downcast_ref::<io::Error>());
    assert_eq!(source.and_then(io::Error::raw_os_error), Some(libc::EPERM));
}

/// Watches what epoll cannot watch.
struct FileWatcher(std::fs::File);

impl Worker for FileWatcher {
    fn sources(&self) -> Vec<Source> {
        vec![Source { token: 0, fd: self.0.as_raw_fd(), interest: Interest::Both }]
    }

    fn turn(&mut self, _: u16) -> Result<Turn, QueueBroken> {
        Ok(Turn::Sleep)
    }

    fn add_queue(&mut self, _: VirtQueue) {}

    fn remove_queue(&mut self, _: u16) -> Removed {
        Removed::Unknown
    }
}

#[test]
fn inline_runs_only_when_pumped_and_only_what_is_ready() {
    let inline = Inline::new().unwrap();
    let hosted = host(&inline, 2, |_| Ok(Turn::Sleep));
    assert_eq!(hosted.turns.try_iter().count(), 0);
    inline.pump().unwrap();
    assert_eq!(hosted.turns.try_iter().count(), 2);
    assert!(!inline.pass().unwrap());
    hosted.events[1].signal().unwrap();
    inline.pump().unwrap();
    assert_eq!(hosted.turns.try_iter().map(|(token, _)| token).collect::<Vec<_>>(), [11]);
    drop(hosted.handle);
    hosted.events[1].signal().unwrap();
    assert!(!inline.pass().unwrap());
}

#[test]
fn many_threads_start_and_stop_workers_of_one_loop() {
    let runtime = Arc::new(SharedLoop::new("shared").unwrap());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let hosted = host(&*runtime, 1, |_| Ok(Turn::Again));
                    hosted.turns.recv().unwrap();
                    drop(hosted.handle);
                }
            });
        }
    });
}
