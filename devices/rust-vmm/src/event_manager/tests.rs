//! Subscribers on our loop and our loop on managers, each against the real package and under several threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use ossature_bus::{Event, EventLoop, Hosted, LoopThread};
use ossature_virtio::testing::{GuestRing, TestDriver, guest_ram};
use ossature_virtio::{
    QueueBroken, QueueSetup, QueueState, Removed, Rng, Runtime, Source, Turn, VirtQueue, Worker, WorkerHandle,
};

use super::*;

type AnySubscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

fn event() -> Arc<Event> {
    Arc::new(Event::new().unwrap())
}

/// Tells what it is called with, and watches one event for each number in `watched`.
struct Teller {
    events: Vec<(Arc<Event>, EventSet)>,
    told: Sender<(u32, u64)>,
    /// Watched from its first event on.
    later: Option<Arc<Event>>,
}

impl MutEventSubscriber for Teller {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for (data, (event, set)) in self.events.iter().enumerate() {
            ops.add(Events::with_data(&**event, data as u32, *set)).unwrap();
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if let Some(event) = self.later.take() {
            ops.add(Events::with_data(&*event, self.events.len() as u32, EventSet::IN)).unwrap();
            self.events.push((event, EventSet::IN));
        }
        let data = events.data();
        let count = self.events[data as usize].0.take().unwrap_or(0);
        let _ = self.told.send((data, count));
    }
}

fn teller(events: &[Arc<Event>]) -> (Teller, Receiver<(u32, u64)>) {
    let (told, tellings) = channel();
    let events = events.iter().map(|event| (event.clone(), EventSet::IN)).collect();
    (Teller { events, told, later: None }, tellings)
}

fn pump(event_loop: &EventLoop) {
    while event_loop.pass().unwrap() {}
}

#[test]
fn a_subscriber_on_our_loop_gets_each_event_with_its_data() {
    let event_loop = EventLoop::new().unwrap();
    let events = [event(), event(), event()];
    events[1].signal().unwrap();
    let (subscriber, told) = teller(&events);
    let hosted = event_loop.host(SubscriberHandler::new(subscriber).unwrap()).unwrap();
    pump(&event_loop);
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [(1, 1)], "signalled before it was hosted");
    events[2].signal().unwrap();
    events[0].signal().unwrap();
    events[0].signal().unwrap();
    pump(&event_loop);
    let mut all: Vec<_> = told.try_iter().collect();
    all.sort_unstable();
    assert_eq!(all, [(0, 2), (2, 1)]);
    // Off the loop it hears nothing, and keeps what it had.
    let handler = hosted.take_back().unwrap();
    events[0].signal().unwrap();
    pump(&event_loop);
    assert!(told.try_recv().is_err());
    assert_eq!(handler.into_subscriber().unwrap().events.len(), 3);
}

#[test]
fn a_subscriber_on_our_loop_watches_more_from_its_calls() {
    let event_loop = EventLoop::new().unwrap();
    let (first, later) = (event(), event());
    let (mut subscriber, told) = teller(std::slice::from_ref(&first));
    subscriber.later = Some(later.clone());
    let _hosted = event_loop.host(SubscriberHandler::new(subscriber).unwrap()).unwrap();
    pump(&event_loop);
    first.signal().unwrap();
    pump(&event_loop);
    later.signal().unwrap();
    pump(&event_loop);
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [(0, 1), (1, 1)]);
}

/// Leaves its descriptor readable until it was called often enough.
struct Unhurried(Arc<Event>, u32, Sender<u32>);

impl MutEventSubscriber for Unhurried {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        ops.add(Events::new(&*self.0, EventSet::IN)).unwrap();
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        self.1 -= 1;
        if self.1 == 0 {
            self.0.take().unwrap();
        }
        self.2.send(self.1).unwrap();
    }
}

#[test]
fn a_level_triggered_descriptor_that_stays_readable_is_told_again_and_starves_nobody() {
    let event_loop = EventLoop::new().unwrap();
    let (slow, other) = (event(), event());
    slow.signal().unwrap();
    let (calls, called) = channel();
    let hosted = SubscriberHandler::new(Unhurried(slow, 5, calls)).unwrap();
    let _hosted = event_loop.host(hosted).unwrap();
    let (subscriber, told) = teller(std::slice::from_ref(&other));
    let _other = event_loop.host(SubscriberHandler::new(subscriber).unwrap()).unwrap();
    event_loop.pass().unwrap();
    other.signal().unwrap();
    event_loop.pass().unwrap();
    assert_eq!(told.try_recv(), Ok((0, 1)));
    assert!(called.try_iter().last().unwrap() > 0, "the slow one was not done by then");
    pump(&event_loop);
    assert_eq!(called.try_iter().last(), Some(0));
}

#[test]
fn subscribers_join_and_leave_before_and_while_the_handler_is_hosted() {
    let thread = LoopThread::start("loop").unwrap();
    let events = [event(), event(), event()];
    let (subscriber, told) = teller(&events[..1]);
    let mut handler = SubscriberHandler::new(subscriber).unwrap();
    let (second, told_second) = teller(&events[1..2]);
    let id = handler.subscribers().add_subscriber(second);
    let endpoint = handler.endpoint();
    let _hosted = thread.event_loop().host(handler).unwrap();
    events[1].signal().unwrap();
    assert_eq!(told_second.recv(), Ok((0, 1)));
    let (third, told_third) = teller(&events[2..]);
    let removed = endpoint
        .call_blocking(move |ops| {
            ops.add_subscriber(third);
            ops.remove_subscriber(id)
        })
        .unwrap();
    assert_eq!(removed.events.len(), 1);
    events.iter().for_each(|event| event.signal().unwrap());
    assert_eq!(told_third.recv(), Ok((0, 1)));
    assert_eq!(told.recv(), Ok((0, 1)));
    drop(removed);
    assert!(told_second.recv().is_err());
}

#[test]
fn no_event_of_a_subscriber_on_our_loop_is_lost_under_threads() {
    let thread = LoopThread::start("loop").unwrap();
    let events: Vec<_> = (0..4).map(|_| event()).collect();
    let (subscriber, told) = teller(&events);
    let _hosted = thread.event_loop().host(SubscriberHandler::new(subscriber).unwrap()).unwrap();
    thread::scope(|scope| {
        for event in &events {
            scope.spawn(move || (0..2000).for_each(|_| event.signal().unwrap()));
        }
        let mut counts = [0; 4];
        // Ends when all signals have been told.
        while counts != [2000; 4] {
            let (data, count) = told.recv().unwrap();
            counts[data as usize] += count;
        }
    });
}

/// A manager that runs on a thread of its own, and ends with this.
struct Manager {
    endpoint: RemoteEndpoint<AnySubscriber>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Manager {
    fn start() -> Self {
        let mut manager = EventManager::<AnySubscriber>::new().unwrap();
        let endpoint = manager.remote_endpoint();
        let end = Arc::new(AtomicBool::new(false));
        let ended = end.clone();
        let thread = thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                manager.run().unwrap();
            }
        });
        Self { endpoint, end, thread: Some(thread) }
    }

    fn id(&self) -> ThreadId {
        self.thread.as_ref().unwrap().thread().id()
    }

    fn runtime(&self) -> EndpointRuntime {
        let wrap = |subscriber| -> AnySubscriber { Arc::new(Mutex::new(subscriber)) };
        EndpointRuntime::new(&self.endpoint, wrap, |error| panic!("{error}")).unwrap()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        self.endpoint.kick().unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// Hosts a handler that sends on the tokens and threads of its turns.
fn host_turns(event_loop: &EventLoop) -> (Hosted<impl ossature_bus::Handler>, Receiver<(u16, ThreadId)>) {
    struct Turns(Sender<(u16, ThreadId)>);
    impl ossature_bus::Handler for Turns {
        fn sources(&self) -> Vec<Source> {
            Vec::new()
        }
        fn turn(&mut self, token: u16) -> Turn {
            let _ = self.0.send((token, thread::current().id()));
            Turn::Sleep
        }
    }
    let (sender, turns) = channel();
    (event_loop.host(Turns(sender)).unwrap(), turns)
}

#[test]
fn our_loop_has_its_turns_on_the_managers_thread_and_leaves_with_the_last_clone() {
    let manager = Manager::start();
    let runtime = manager.runtime();
    let event_loop = runtime.event_loop().clone();
    let (hosted, turns) = host_turns(&event_loop);
    for token in 0..100 {
        hosted.handle().wake(token);
        assert_eq!(turns.recv(), Ok((token, manager.id())));
    }
    let clone = runtime.clone();
    drop(runtime);
    hosted.handle().wake(1);
    assert_eq!(turns.recv(), Ok((1, manager.id())));
    drop(clone);
    // A round trip, after which the loop has left.
    manager.endpoint.call_blocking(|_| Ok::<_, Error>(())).unwrap();
    hosted.handle().wake(2);
    assert!(event_loop.pass().unwrap(), "nobody else has taken it");
    assert_eq!(turns.recv(), Ok((2, thread::current().id())));
}

#[test]
fn no_wake_of_our_loop_on_a_manager_is_lost_under_threads() {
    let manager = Manager::start();
    let runtime = manager.runtime();
    thread::scope(|scope| {
        for _ in 0..3 {
            let event_loop = runtime.event_loop();
            scope.spawn(move || {
                let (hosted, turns) = host_turns(event_loop);
                // A wake that is lost is a wait without end.
                for token in 0..2000 {
                    hosted.handle().wake(token);
                    assert_eq!(turns.recv().unwrap().0, token);
                }
                assert!(hosted.take_back().is_some());
            });
        }
        for _ in 0..2 {
            let event_loop = runtime.event_loop();
            scope.spawn(move || {
                let (event, counted) = (event(), Arc::new(AtomicU64::new(0)));
                let (count, (tell, told)) = (counted.clone(), channel());
                let add = move |event: &mut Arc<Event>| {
                    count.fetch_add(event.take().unwrap_or(0), Ordering::Relaxed);
                    let _ = tell.send(());
                };
                let _hosted = event_loop.on_readable(event.clone(), add).unwrap();
                for signals in 1..=1000 {
                    event.signal().unwrap();
                    while counted.load(Ordering::Relaxed) < signals {
                        told.recv().unwrap();
                    }
                }
            });
        }
    });
}

#[test]
fn a_loop_that_cannot_be_watched_is_told() {
    let mut manager = EventManager::<LoopSubscriber>::new().unwrap();
    let event_loop = EventLoop::new().unwrap();
    let (errors, told) = channel();
    for _ in 0..2 {
        let errors = errors.clone();
        manager.add_subscriber(LoopSubscriber::new(&event_loop, move |error| errors.send(error).unwrap()));
    }
    assert_eq!(told.try_iter().collect::<Vec<_>>(), [Error::FdAlreadyRegistered]);
}

#[test]
fn a_runtime_whose_manager_is_gone_is_an_error() {
    let endpoint = EventManager::<AnySubscriber>::new().unwrap().remote_endpoint();
    let wrap = |subscriber| -> AnySubscriber { Arc::new(Mutex::new(subscriber)) };
    let error = EndpointRuntime::new(&endpoint, wrap, |_| ()).unwrap_err();
    assert!(error.to_string().contains("endpoint"), "{error}");
}

/// Keeps its queue as in flight until it is told to let go.
struct Slow {
    queues: Vec<VirtQueue>,
    done: Arc<Event>,
    turns: Sender<(u16, ThreadId)>,
}

const DONE: u16 = 20;

impl Worker for Slow {
    fn sources(&self) -> Vec<Source> {
        vec![Source {
            token: DONE,
            fd: std::os::fd::AsRawFd::as_raw_fd(&*self.done),
            interest: ossature_bus::Interest::Readable,
        }]
    }

    fn add_queue(&mut self, queue: VirtQueue) {
        self.queues.push(queue);
    }

    fn remove_queue(&mut self, _: u16) -> Removed {
        match self.done.take() {
            Ok(0) | Err(_) => Removed::Draining,
            Ok(_) => self.queues.pop().into(),
        }
    }

    fn turn(&mut self, token: u16) -> std::result::Result<Turn, QueueBroken> {
        let _ = self.turns.send((token, thread::current().id()));
        Ok(Turn::Sleep)
    }
}

fn queue(index: u16) -> VirtQueue {
    let dma = guest_ram(&[(0, 0x1_0000)]);
    let ring = GuestRing::new(dma.clone(), 0x1000, 16, 0);
    let state = QueueState::new(16).at(ring.desc, ring.avail, ring.used);
    QueueSetup::new(index, state, dma, event(), event().into()).build().unwrap()
}

/// The tokens of turns, and the threads on which they were.
type Turns = Receiver<(u16, ThreadId)>;

/// A slow worker on the manager, whose queue has had a turn; what ends its request, and what tells of its turns.
fn slow(manager: &Manager) -> (impl Runtime, Box<dyn WorkerHandle>, Arc<Event>, Turns) {
    let runtime = manager.runtime();
    let (done, (turns, told)) = (event(), channel());
    let worker = Slow { queues: Vec::new(), done: done.clone(), turns };
    let handle = runtime.spawn("slow", Box::new(worker), Box::new(|_| ())).unwrap();
    handle.add_queue(queue(0)).unwrap();
    while told.recv().unwrap().0 != 0 {}
    (runtime, handle, done, told)
}

/// The manager's thread gets turns while another one waits for the queue.
#[test]
fn a_queue_drains_on_the_managers_thread() {
    let manager = Manager::start();
    let (_runtime, handle, done, told) = slow(&manager);
    thread::scope(|scope| {
        let waits = scope.spawn(move || handle.remove_queue(0));
        // Turns that ask the worker again. If the manager's thread is late, its first ones are not on it.
        while told.recv().unwrap() != (0, manager.id()) {}
        done.signal().unwrap();
        assert!(waits.join().unwrap().is_some());
    });
}

/// A guest times its reset so that it comes while the manager's thread stops the machine and waits for the vCPU.
#[test]
fn a_queue_drains_on_a_vcpus_thread_for_which_the_managers_waits() {
    let manager = Manager::start();
    let (_runtime, handle, done, told) = slow(&manager);
    let (resets, reset) = channel();
    let vcpu = thread::spawn(move || {
        reset.recv().unwrap();
        handle.remove_queue(0).is_some()
    });
    let stop = move |_: &mut dyn SubscriberOps<Subscriber = AnySubscriber>| {
        resets.send(()).unwrap();
        loop {
            // Without turns this would be for ever.
            let (_, thread) =
                told.recv_timeout(Duration::from_secs(60)).expect("a turn on the vCPU's thread");
            if thread == vcpu.thread().id() {
                break;
            }
        }
        done.signal().unwrap();
        Ok::<_, Error>(vcpu.join().unwrap())
    };
    assert!(manager.endpoint.call_blocking(stop).unwrap());
}

/// A control thread may be the manager's own: it then takes the turns itself.
#[test]
fn a_queue_that_the_managers_thread_stops_drains_there() {
    let manager = Manager::start();
    let (_runtime, handle, done, told) = slow(&manager);
    let stop = move |_: &mut dyn SubscriberOps<Subscriber = AnySubscriber>| {
        Ok::<_, Error>(handle.remove_queue(0).is_some())
    };
    done.signal().unwrap();
    assert!(manager.endpoint.call_blocking(stop).unwrap());
    assert!(told.try_iter().all(|(_, thread)| thread == manager.id()));
}

#[test]
fn a_device_works_on_a_managers_thread() {
    let manager = Manager::start();
    let mut driver = TestDriver::with_runtime(Box::new(Rng::new()), Arc::new(manager.runtime()));
    for _ in 0..20 {
        driver.start(0);
        for _ in 0..20 {
            let (used, bytes) = driver.transact(0, &[], &[64]);
            assert_eq!((used.len, bytes.len()), (64, 64));
        }
        driver.reset();
    }
}
