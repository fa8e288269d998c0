mod chains;
mod long;
mod vsock;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ::virtio_queue::{Queue, QueueOwnedT, QueueT};
use ossature_bus::DeviceEvent;
use ossature_bus::Event;
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{GuestMmap, Segment};
use ossature_virtio::testing::{Desc, TestDriver};
use ossature_virtio::{DeviceInfo, DeviceType, Source};
use ossature_virtio::{QueueSetup, QueueState};

use super::{HandlerError, QueueDevice, QueueHandler, QueueWorker, Queues};

const NEEDS_RESET: u8 = 64;

fn driver<H: QueueHandler + 'static>(handler: impl Fn() -> H + Send + 'static) -> TestDriver {
    let info = DeviceInfo::new(DeviceType(63), &[64]);
    let mut driver = TestDriver::new(QueueDevice::new(info, move |_| Ok(handler())));
    driver.start(u128::MAX);
    driver
}

fn echo(_: u16, queue: &mut Queue, memory: &Arc<GuestMmap>) -> Result<(), HandlerError> {
    // As virtio-queue's documentation has it.
    loop {
        queue.disable_notification(&**memory)?;
        while let Some(chain) = queue.iter(&**memory)?.next() {
            queue.add_used(&**memory, chain.head_index(), u32::MAX)?;
            queue.needs_notification(&**memory)?;
        }
        if !queue.enable_notification(&**memory)? {
            return Ok(());
        }
    }
}

#[test]
fn chains_of_any_length_get_through_and_used_lengths_are_bounded() {
    let lengths = Arc::new(Mutex::new(Vec::new()));
    let seen = lengths.clone();
    let mut driver = driver(move || {
        let seen = seen.clone();
        move |index: u16, queue: &mut Queue, memory: &Arc<GuestMmap>| {
            let chains: Vec<_> = queue.iter(&**memory)?.collect();
            for chain in chains {
                seen.lock().unwrap().push(chain.clone().count());
                queue.add_used(&**memory, chain.head_index(), u32::MAX)?;
            }
            echo(index, queue, memory)
        }
    });
    for count in [1, 2, 8, 9, 63, 64] {
        let used = driver.transact(0, &[], &vec![3; count]).0;
        assert_eq!(used.len as usize, 3 * count);
    }
    assert_eq!(*lengths.lock().unwrap(), [1, 2, 8, 9, 63, 64]);
}

#[test]
fn a_full_ring_of_indirect_chains_is_in_flight_at_once() {
    let mut driver = driver(|| echo as fn(u16, &mut Queue, &Arc<GuestMmap>) -> Result<(), HandlerError>);
    for _ in 0..64 {
        driver.request_indirect(0, &[&[1; 16][..]; 9], &[5; 55]);
    }
    driver.kick(0);
    let used: Vec<_> = std::iter::from_fn(|| driver.used(0)).collect();
    assert_eq!((used.len(), used.iter().all(|used| used.len == 5 * 55)), (64, true));
}

/// Takes all chains, and finishes one in each call.
#[derive(Default)]
struct Slow {
    taken: Vec<u16>,
    stopping: bool,
    event: Option<Arc<Event>>,
}

impl QueueHandler for Slow {
    fn sources(&self) -> Vec<Source> {
        let event = self.event.as_ref().unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&**event);
        vec![Source { token: 9, fd, interest: ossature_virtio::Interest::Readable }]
    }

    fn process(
        &mut self,
        token: u16,
        queues: &mut Queues,
        memory: &Arc<GuestMmap>,
    ) -> Result<(), HandlerError> {
        let Some(queue) = queues.get(0) else { return Ok(()) };
        let event = self.event.as_ref().unwrap();
        while let Some(chain) = queue.iter(&**memory)?.next() {
            self.taken.push(chain.head_index());
        }
        if token == 9 && event.take()? != 0 {
            if let Some(head) = self.taken.pop() {
                queue.add_used(&**memory, head, 0)?;
            }
            if self.stopping && !self.taken.is_empty() {
                event.signal()?;
            }
        }
        Ok(())
    }

    fn stop_queue(&mut self, _: u16, _: &mut Queue, _: &Arc<GuestMmap>) -> Result<(), HandlerError> {
        self.stopping = true;
        if !self.taken.is_empty() {
            self.event.as_ref().unwrap().signal()?;
        }
        Ok(())
    }
}

#[test]
fn a_queue_stops_when_the_device_has_finished_what_it_took() {
    let event = Arc::new(Event::new().unwrap());
    let host = event.clone();
    let mut driver = driver(move || Slow { event: Some(event.clone()), ..Slow::default() });
    for _ in 0..10 {
        driver.request(0, &[&[0; 8]], &[]);
    }
    driver.kick(0);
    assert_eq!(driver.used(0), None);
    host.signal().unwrap();
    driver.pump();
    assert!(driver.used(0).is_some() && driver.used(0).is_none());
    driver.device().quiesce().unwrap();
    assert_eq!(std::iter::from_fn(|| driver.used(0)).count(), 9);
    driver.device().resume().unwrap();
    assert_eq!(driver.reports(), []);
}

#[test]
fn what_the_device_has_not_taken_goes_to_the_next_one() {
    static CALLS: AtomicUsize = AtomicUsize::new(0);
    // Takes two chains, finishes one and puts the other back; takes nothing in its first life after that.
    let mut driver = driver(|| {
        let mut first = CALLS.fetch_add(1, Ordering::Relaxed) == 0;
        move |index: u16, queue: &mut Queue, memory: &Arc<GuestMmap>| {
            if CALLS.load(Ordering::Relaxed) > 1 {
                return echo(index, queue, memory);
            }
            if std::mem::take(&mut first) && queue.iter(&**memory)?.next().is_some() {
                queue.go_to_previous_position();
                let chain = queue.iter(&**memory)?.next().unwrap();
                queue.add_used(&**memory, chain.head_index(), 0)?;
                assert!(queue.iter(&**memory)?.next().is_some());
                queue.go_to_previous_position();
            }
            Ok(())
        }
    });
    // The first call came with the start, before there were chains.
    CALLS.store(0, Ordering::Relaxed);
    driver.start(u128::MAX);
    let heads: Vec<_> = (0..5).map(|_| driver.request(0, &[&[0; 8]], &[]).head).collect();
    driver.kick(0);
    driver.device().quiesce().unwrap();
    driver.device().resume().unwrap();
    driver.pump();
    let used: Vec<_> = std::iter::from_fn(|| driver.used(0)).map(|used| used.head as u16).collect();
    assert_eq!(used, heads);
    assert_eq!(driver.reports(), []);
}

#[test]
fn a_device_that_takes_some_of_the_chains_goes_on_with_the_rest() {
    let mut driver = driver(|| {
        |_: u16, queue: &mut Queue, memory: &Arc<GuestMmap>| {
            if let Some(chain) = queue.pop_descriptor_chain(&**memory) {
                queue.add_used(&**memory, chain.head_index(), 0)?;
            }
            Ok(())
        }
    });
    for _ in 0..64 {
        driver.request(0, &[&[0; 8]], &[]);
    }
    driver.kick(0);
    assert_eq!(std::iter::from_fn(|| driver.used(0)).count(), 64);
}

fn needs_reset(driver: &TestDriver, why: &str) {
    assert_ne!(driver.status() & NEEDS_RESET, 0);
    let reports = driver.reports();
    let [DeviceEvent::NeedsReset { reason, .. }] = &reports[..] else { panic!("{reports:?}") };
    assert!(reason.contains(why), "{reason}");
}

#[test]
fn a_device_that_fails_needs_a_reset() {
    let mut driver = driver(|| {
        |_: u16, queue: &mut Queue, memory: &Arc<GuestMmap>| match queue.pop_descriptor_chain(&**memory) {
            Some(_) => Err(HandlerError::from("out of luck")),
            None => Ok(()),
        }
    });
    driver.request(0, &[&[0; 8]], &[]);
    driver.kick(0);
    needs_reset(&driver, "out of luck");
    driver.device().quiesce().unwrap();
    driver.device().resume().unwrap();
    driver.request(0, &[&[0; 8]], &[]);
    driver.kick_register(0);
    // It does not go on, and says so once.
    needs_reset(&driver, "out of luck");
    driver.start(0);
    assert_eq!(driver.status() & NEEDS_RESET, 0);
}

/// Fails when it is to stop.
struct Stubborn;

impl QueueHandler for Stubborn {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn process(&mut self, _: u16, _: &mut Queues, _: &Arc<GuestMmap>) -> Result<(), HandlerError> {
        Ok(())
    }

    fn stop_queue(&mut self, _: u16, _: &mut Queue, _: &Arc<GuestMmap>) -> Result<(), HandlerError> {
        Err("not now".into())
    }
}

#[test]
fn a_device_that_fails_while_a_queue_stops_needs_a_reset() {
    let mut driver = driver(|| Stubborn);
    driver.device().quiesce().unwrap();
    driver.device().resume().unwrap();
    needs_reset(&driver, "not now");
}

#[test]
fn a_completion_that_nobody_asked_for_needs_a_reset() {
    for twice in [true, false] {
        let mut driver = driver(move || {
            move |_: u16, queue: &mut Queue, memory: &Arc<GuestMmap>| {
                if let Some(chain) = queue.pop_descriptor_chain(&**memory) {
                    queue.add_used(&**memory, chain.head_index(), 0)?;
                    queue.add_used(&**memory, if twice { chain.head_index() } else { 63 }, 0)?;
                }
                Ok(())
            }
        });
        let head = driver.request(0, &[&[0; 8]], &[]).head;
        driver.kick(0);
        needs_reset(&driver, if twice { "is not in flight" } else { "head 63" });
        assert_ne!(head, 63);
    }
}

#[test]
fn a_device_that_moves_its_used_index_needs_a_reset() {
    for index in [1, 7, 65535] {
        let driver = driver(move || {
            move |_: u16, queue: &mut Queue, _: &Arc<GuestMmap>| {
                queue.set_next_used(index);
                Ok(())
            }
        });
        driver.pump();
        needs_reset(&driver, "is not in flight");
    }
}

#[test]
fn a_broken_ring_never_reaches_the_device() {
    let calls = Arc::new(AtomicUsize::new(0));
    let seen = calls.clone();
    let mut driver = driver(move || {
        let seen = seen.clone();
        move |_: u16, queue: &mut Queue, memory: &Arc<GuestMmap>| {
            seen.fetch_add(queue.iter(&**memory)?.count(), Ordering::Relaxed);
            Ok(())
        }
    });
    let loops = Desc { addr: 33 << 20, len: 16, flags: Desc::NEXT, next: 3 };
    driver.ring(0).set_desc(3, loops);
    driver.ring(0).publish(3);
    driver.kick_register(0);
    needs_reset(&driver, "longer than the queue");
    assert_eq!(calls.load(Ordering::Relaxed), 0);
}

#[test]
fn the_device_reaches_ram_that_was_added_while_it_runs() {
    use ossature_memory::{Backing, Ram, RamConfig};
    use ossature_virtio::{Activation, Worker};

    let ram = Ram::new(&RamConfig::new(1 << 20)).unwrap();
    let mut ring = ossature_virtio::testing::GuestRing::new(ram.dma(), 0x1000, 8, 0);
    let event = || Arc::new(Event::new().unwrap());
    let state = QueueState::new(8).at(ring.desc, ring.avail, ring.used);
    let queue = QueueSetup::new(0, state, ram.dma(), event(), event().into()).build().unwrap();
    let fill = |_: u16, queue: &mut Queue, memory: &Arc<GuestMmap>| {
        while let Some(chain) = queue.pop_descriptor_chain(memory.clone()) {
            let written = std::io::Write::write(&mut chain.clone().writer(memory)?, &[7; 16])?;
            queue.add_used(&**memory, chain.head_index(), written as u32)?;
        }
        Ok(())
    };
    let mut worker = QueueWorker::new(fill, &Activation::new(0, ram.dma()));
    worker.add_queue(queue);
    let _ = worker.turn(0).unwrap();
    let addr = GuestAddress(16 << 20);
    let slot = ram.add_slot(addr.0, 1 << 20, &Backing::Anonymous).unwrap();
    ring.offer(0, &[Desc::writable(Segment { addr, len: 16 })]);
    let _ = worker.turn(0).unwrap();
    assert_eq!(ring.take_used().unwrap().len, 16);
    let mut dma = ram.dma();
    dma.refresh();
    assert_eq!(dma.read_obj::<[u8; 16]>(addr).unwrap(), [7; 16]);
    // The device lets go of RAM that is removed.
    ram.remove_slot(slot).unwrap();
    let _ = worker.turn(0).unwrap();
    dma.refresh();
    ring.offer(1, &[Desc::writable(Segment { addr, len: 16 })]);
    assert!(worker.turn(0).is_err());
}
