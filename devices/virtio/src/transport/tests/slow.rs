//! A device whose requests end later, on another thread's word: how its queues stop.

use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, Sender, channel};

use ossature_bus::Event;

use super::*;
use crate::{Chain, Interest};

const DONE: u16 = 2;

/// What the worker tells the test.
#[derive(Debug, PartialEq)]
enum Told {
    /// A chain was taken from this queue.
    Taken(u16),
    /// A chain was given back, on the thread of this name.
    Done(u16, Option<String>),
    /// A queue is to leave, of which something is in flight.
    Draining(u16),
}

/// What the test has in its hand.
struct Remote {
    /// Whether the worker takes chains.
    takes: Arc<Mutex<bool>>,
    /// How many chains may end, and what says so.
    allowed: Arc<AtomicU32>,
    event: Arc<Event>,
    told: Mutex<Receiver<Told>>,
    explodes: Arc<AtomicBool>,
}

impl Remote {
    fn allow(&self, chains: u32) {
        self.allowed.fetch_add(chains, Ordering::Relaxed);
        self.event.signal().unwrap();
    }

    fn recv(&self) -> Told {
        self.told.lock().unwrap().recv().unwrap()
    }

    fn taken(&self, queue: u16) {
        assert_eq!(self.recv(), Told::Taken(queue));
    }
}

struct Slow {
    takes: Arc<Mutex<bool>>,
    allowed: Arc<AtomicU32>,
    event: Arc<Event>,
    tell: Sender<Told>,
    explodes: Arc<AtomicBool>,
}

/// Two queues and one worker.
fn slow() -> (Box<dyn LocalDevice>, Remote) {
    let (allowed, event, explodes) = (Arc::default(), Arc::new(Event::new().unwrap()), Arc::default());
    let (tell, told) = channel();
    let takes = Arc::new(Mutex::new(true));
    let remote = Remote {
        takes: Arc::clone(&takes),
        allowed: Arc::clone(&allowed),
        event: event.clone(),
        told: Mutex::new(told),
        explodes: Arc::clone(&explodes),
    };
    (Box::new(Slow { takes, allowed, event, tell, explodes }), remote)
}

impl LocalDevice for Slow {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new(DeviceType::CONSOLE, &[16, 16])
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        vec![vec![0, 1]]
    }

    fn read_config(&self, _: u32, _: &mut [u8]) {}

    fn write_config(&mut self, _: u32, _: &[u8]) {}

    fn worker(&mut self, _: usize, _: &Activation) -> Result<Box<dyn Worker>, DeviceError> {
        Ok(Box::new(SlowWorker {
            queues: Vec::new(),
            leaving: Vec::new(),
            in_flight: Vec::new(),
            takes: self.takes.clone(),
            allowed: self.allowed.clone(),
            event: self.event.clone(),
            tell: self.tell.clone(),
            explodes: self.explodes.clone(),
        }))
    }

    fn forget_queue(&mut self, _: u16) {}

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) {}

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::Stateless)
    }

    fn restore(&mut self, _: Handover) -> Result<(), StateError> {
        Err(StateError::Unsupported { reason: "there is none" })
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }

    fn metrics(&self, _: &mut dyn MetricVisitor) {}
}

struct SlowWorker {
    queues: Vec<VirtQueue>,
    leaving: Vec<u16>,
    in_flight: Vec<(u16, Chain)>,
    takes: Arc<Mutex<bool>>,
    allowed: Arc<AtomicU32>,
    event: Arc<Event>,
    tell: Sender<Told>,
    explodes: Arc<AtomicBool>,
}

impl Worker for SlowWorker {
    fn sources(&self) -> Vec<Source> {
        vec![Source { token: DONE, fd: self.event.as_raw_fd(), interest: Interest::Readable }]
    }

    fn add_queue(&mut self, queue: VirtQueue) {
        self.queues.push(queue);
    }

    fn remove_queue(&mut self, index: u16) -> Removed {
        if self.in_flight.iter().any(|(queue, _)| *queue == index) {
            if !self.leaving.contains(&index) {
                self.leaving.push(index);
                let _ = self.tell.send(Told::Draining(index));
            }
            return Removed::Draining;
        }
        self.leaving.retain(|other| *other != index);
        let at = self.queues.iter().position(|queue| queue.index() == index);
        at.map(|at| self.queues.swap_remove(at)).into()
    }

    fn turn(&mut self, token: u16) -> Result<Turn, QueueBroken> {
        if self.explodes.load(Ordering::Relaxed) {
            panic!("this panic is part of the test");
        }
        for queue in &mut self.queues {
            let index = queue.index();
            if token == index && !self.leaving.contains(&index) {
                // Held while chains are taken: what is offered once it is false stays in the ring.
                let takes = self.takes.lock().unwrap();
                let mut next = || if *takes { queue.pop() } else { Ok(None) };
                while let Some(chain) = next()? {
                    self.in_flight.push((index, chain));
                    let _ = self.tell.send(Told::Taken(index));
                }
                if queue.enable_kicks()? && *takes {
                    return Ok(Turn::Again);
                }
            }
        }
        while token == DONE && !self.in_flight.is_empty() && self.allowed.load(Ordering::Relaxed) > 0 {
            self.allowed.fetch_sub(1, Ordering::Relaxed);
            let (index, chain) = self.in_flight.remove(0);
            let Some(queue) = self.queues.iter_mut().find(|queue| queue.index() == index) else { continue };
            queue.complete(chain, 1)?;
            queue.flush()?;
            let _ = self.tell.send(Told::Done(index, thread::current().name().map(str::to_owned)));
        }
        Ok(Turn::Sleep)
    }
}

/// Three chains of queue 0 are in flight, and one more is offered that nobody has been told of.
fn begin(driver: &mut TestDriver, remote: &Remote) {
    driver.start(RING_RESET);
    for _ in 0..3 {
        driver.request(0, &[], &[4]);
        driver.kick(0);
        remote.taken(0);
    }
    *remote.takes.lock().unwrap() = false;
    driver.request(0, &[], &[4]);
}

/// A request that was offered to queue 0 is served.
fn goes_on(driver: &mut TestDriver, remote: &Remote) {
    remote.taken(0);
    remote.allow(1);
    driver.wait_used(0);
    assert_eq!(driver.reports(), []);
}

/// What was in flight came back, nothing else, and the device goes on with the rest.
fn end(driver: &mut TestDriver, remote: &Remote) {
    assert_eq!(std::iter::from_fn(|| driver.used(0)).count(), 3);
    *remote.takes.lock().unwrap() = true;
    driver.device().resume().unwrap();
    driver.pump();
    goes_on(driver, remote);
}

#[test]
fn a_queue_drains_in_turns_on_the_workers_own_thread() {
    on_each_transport(|| {
        let (device, remote) = slow();
        let runtime = Arc::new(SharedLoop::new("slow").unwrap());
        let mut driver = TestDriver::with_runtime(device, runtime);
        begin(&mut driver, &remote);
        thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(remote.recv(), Told::Draining(0));
                for _ in 0..3 {
                    remote.allow(1);
                    assert_eq!(remote.recv(), Told::Done(0, Some("slow".to_owned())));
                }
            });
            driver.device().quiesce().unwrap();
        });
        end(&mut driver, &remote);
    });
}

#[test]
fn a_queue_drains_here_where_nobody_runs_the_loop() {
    on_each_transport(|| {
        let (device, remote) = slow();
        let mut driver = TestDriver::boxed(device);
        begin(&mut driver, &remote);
        let here = thread::current().name().map(str::to_owned);
        thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(remote.recv(), Told::Draining(0));
                for _ in 0..3 {
                    remote.allow(1);
                    assert_eq!(remote.recv(), Told::Done(0, here.clone()));
                }
            });
            driver.device().quiesce().unwrap();
        });
        end(&mut driver, &remote);
    });
}

#[test]
fn a_queue_drains_here_once_its_loop_is_no_longer_run() {
    on_each_transport(|| {
        let (device, remote) = slow();
        let event_loop = ossature_bus::EventLoop::new().unwrap();
        let mut driver = TestDriver::with_runtime(device, Arc::new(event_loop.clone()));
        let runner = thread::spawn({
            let event_loop = event_loop.clone();
            move || event_loop.run().unwrap()
        });
        begin(&mut driver, &remote);
        let quiesced = thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(remote.recv(), Told::Draining(0));
                // The thread that runs the loop leaves it, and waits for the one that stops the queue.
                event_loop.stop();
                runner.join().unwrap();
                remote.allow(3);
            });
            driver.device().quiesce()
        });
        quiesced.unwrap();
        assert_eq!(std::iter::from_fn(|| driver.used(0)).count(), 3);
    });
}

#[test]
fn a_queue_drains_in_a_turn_of_another_handler_of_its_loop() {
    on_each_transport(|| {
        let (device, remote) = slow();
        let runtime = Arc::new(SharedLoop::new("slow").unwrap());
        let mut driver = TestDriver::with_runtime(device, runtime.clone());
        begin(&mut driver, &remote);
        let (event, done) = (Arc::new(Event::new().unwrap()), channel());
        let driver = Arc::new(Mutex::new(driver));
        let quiesced = driver.clone();
        let _handler = runtime
            .event_loop()
            .on_readable(event.clone(), move |event| {
                if event.take().unwrap() > 0 {
                    done.0.send(quiesced.lock().unwrap().device().quiesce()).unwrap();
                }
            })
            .unwrap();
        event.signal().unwrap();
        assert_eq!(remote.recv(), Told::Draining(0));
        for _ in 0..3 {
            remote.allow(1);
            assert_eq!(remote.recv(), Told::Done(0, Some("slow".to_owned())));
        }
        done.1.recv().unwrap().unwrap();
        end(&mut driver.lock().unwrap(), &remote);
    });
}

#[test]
fn one_queue_drains_while_its_sibling_runs() {
    on_each_transport(|| {
        let (device, remote) = slow();
        let runtime = Arc::new(SharedLoop::new("slow").unwrap());
        let mut driver = TestDriver::with_runtime(device, runtime);
        begin(&mut driver, &remote);
        let registers = driver.registers().clone();
        thread::scope(|scope| {
            scope.spawn(|| {
                registers.select_queue(0);
                registers.set_queue_reset(1);
            });
            assert_eq!(remote.recv(), Told::Draining(0));
            // A look at it shows that it goes on.
            assert_eq!(registers.queue_reset(), 1);
            *remote.takes.lock().unwrap() = true;
            driver.request(1, &[], &[4]);
            driver.kick(1);
            remote.taken(1);
            // The first three are queue 0's.
            remote.allow(2);
            for _ in 0..2 {
                assert_eq!(remote.recv(), Told::Done(0, Some("slow".to_owned())));
            }
            assert_eq!(registers.queue_reset(), 1);
            driver.request(1, &[], &[4]);
            driver.kick(1);
            remote.taken(1);
            remote.allow(3);
            assert_eq!(remote.recv(), Told::Done(0, Some("slow".to_owned())));
            for _ in 0..2 {
                driver.wait_used(1);
                assert_eq!(remote.recv(), Told::Done(1, Some("slow".to_owned())));
            }
        });
        assert_eq!((registers.queue_reset(), registers.queue_ready()), (0, 0));
        assert_eq!(driver.ring(0).used_index(), 3);
        assert!(driver.set_up_queue_at(16 << 20, 0, 16));
        driver.request(0, &[], &[4]);
        driver.kick(0);
        goes_on(&mut driver, &remote);
    });
}

#[test]
fn e1_a_worker_that_panics_while_a_queue_drains_ends_the_waiting() {
    on_each_transport(|| {
        let (device, remote) = slow();
        let runtime = Arc::new(SharedLoop::new("slow").unwrap());
        let mut driver = TestDriver::with_runtime(device, runtime);
        begin(&mut driver, &remote);
        thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(remote.recv(), Told::Draining(0));
                remote.explodes.store(true, Ordering::Relaxed);
                remote.allow(0);
            });
            driver.device().quiesce().unwrap();
        });
        assert!(matches!(driver.reports()[..], [DeviceEvent::Panicked { .. }]), "{:?}", driver.reports());
        assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET);
        remote.explodes.store(false, Ordering::Relaxed);
        *remote.takes.lock().unwrap() = true;
        driver.device().resume().unwrap();
        driver.start(0);
        driver.request(1, &[], &[4]);
        driver.kick(1);
        while remote.recv() != Told::Taken(1) {}
        remote.allow(1);
        driver.wait_used(1);
    });
}
