//! A guest that does with a virtio device whatever its input says, and knows what has to come of it.

use std::collections::HashMap;

use ossature_bus::{Access, DeviceEvent, Size};
use ossature_virtio::LocalDevice;
use ossature_virtio::features::{INDIRECT_DESC, RING_RESET};
use ossature_virtio::testing::{Desc, TestDriver, Transport};

use crate::Input;

/// DEVICE_NEEDS_RESET.
const NEEDS_RESET: u8 = 0x40;
/// All bits of the device status.
const STATUS: u8 = 0xcf;
/// Steps of one input.
const STEPS: usize = 64;
/// The most segments of a chain.
const SEGMENTS: u64 = 5;

/// A kind of device, as the guest and its host use it.
pub trait Kind {
    /// The device, and whatever the host has on its other side.
    fn device(&mut self, input: &mut Input) -> Box<dyn LocalDevice>;
    /// The readable part of a request for `queue` that is likely to mean something.
    fn request(&mut self, queue: u16, input: &mut Input) -> Vec<u8>;
    /// Returns true if every chain of well-formed descriptors comes back once the queue was kicked, whatever is in it.
    fn is_prompt(&self, queue: u16) -> bool;
    /// The host does something.
    fn host(&mut self, _input: &mut Input) {}
    /// The queue that a request is for.
    fn queue(&self, input: &mut Input, count: u16) -> u16 {
        input.below(count.into()) as u16
    }
}

#[derive(Default)]
struct Queue {
    size: u16,
    free: Vec<u16>,
    /// By its head: the descriptors of a chain, and how much of it may be written.
    chains: HashMap<u16, (Vec<u16>, u64)>,
    /// The guest has written to it what no driver writes: anything may come of it.
    wild: bool,
}

struct Guest<'k, K> {
    kind: &'k mut K,
    driver: TestDriver,
    features: u128,
    queues: Vec<Queue>,
    /// Times that the device was started.
    starts: usize,
    /// The guest broke a queue, or the registers.
    wild: bool,
}

/// Has the guest do what `bytes` say.
pub fn run(mut kind: impl Kind, bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let transport = if input.flag() { Transport::Pci } else { Transport::Mmio };
    ossature_virtio::testing::with(transport, Default::default(), || {
        let device = kind.device(&mut input);
        let driver = TestDriver::boxed(device);
        let (features, queues) = (0, Vec::new());
        let mut guest = Guest { kind: &mut kind, driver, features, queues, starts: 0, wild: false };
        guest.start(&mut input);
        for _ in 0..STEPS {
            if input.is_empty() {
                break;
            }
            guest.step(&mut input);
            guest.check();
        }
        guest.end();
    });
}

impl<K: Kind> Guest<'_, K> {
    fn start(&mut self, input: &mut Input) {
        let wanted = match input.u8() {
            0x80.. => u128::from(input.u64()) | u128::from(input.u8()) << 64,
            0x40.. => 0,
            _ => u128::MAX,
        };
        self.starts += 1;
        self.wild = false;
        self.features = self.driver.start(wanted);
        self.queues.clear();
        for queue in 0..self.driver.queue_count() {
            // What is set up reads its largest size.
            let size = self.driver.ring(queue).size;
            self.queues.push(Queue { size, free: (0..size).collect(), ..Queue::default() });
        }
        self.driver.pump();
    }

    fn step(&mut self, input: &mut Input) {
        let op = input.u8();
        match op % 16 {
            0..=4 => self.offer(input, op & 0x10 != 0),
            5 => {
                let queue = self.queue(input);
                self.driver.kick_register(queue.into());
                self.served(queue);
            }
            6 => self.kind.host(input),
            7 => {
                let queue = self.queue(input);
                let index = input.u16();
                let desc = Desc {
                    addr: input.number(),
                    len: input.number() as u32,
                    flags: input.u16(),
                    next: input.u16(),
                };
                self.spoil(queue);
                let size = self.queues[usize::from(queue)].size;
                self.driver.ring(queue).set_desc(index % size, desc);
            }
            8 => {
                let (queue, head) = (self.queue(input), input.u16());
                self.spoil(queue);
                self.driver.ring(queue).publish(head);
            }
            9 => {
                let (queue, by) = (self.queue(input), input.u16());
                self.spoil(queue);
                let ring = self.driver.ring(queue);
                let index = ring.avail_index().wrapping_add(by);
                ring.set_avail_index(index);
            }
            10 => {
                let (queue, at) = (self.queue(input), input.u16());
                // Both are the driver's to write at any time: they suppress interrupts.
                self.driver.ring(queue).set_used_event(at);
                self.driver.ring(queue).set_no_interrupt(input.flag());
            }
            11 => self.configuration(input),
            12 => self.start(input),
            13 if self.features & RING_RESET != 0 && !self.wild => {
                let queue = self.queue(input);
                self.driver.reset_queue(queue);
                let size = self.queues[usize::from(queue)].size;
                assert!(self.driver.set_up_queue(queue, size), "queue {queue} is not ready after a reset");
                self.queues[usize::from(queue)] =
                    Queue { size, free: (0..size).collect(), ..Queue::default() };
            }
            14 => {
                self.driver.save_and_restore();
                self.driver.pump();
            }
            _ => self.notify(input),
        }
        self.driver.pump();
    }

    fn queue(&mut self, input: &mut Input) -> u16 {
        self.kind.queue(input, self.queues.len() as u16)
    }

    fn spoil(&mut self, queue: u16) {
        self.wild = true;
        self.queues[usize::from(queue)].wild = true;
    }

    /// Offers a chain, as drivers do, with anything in it.
    fn offer(&mut self, input: &mut Input, indirect: bool) {
        let queue = self.queue(input);
        let shape = input.u8();
        let bytes = if shape & 0x80 != 0 {
            let len = usize::from(input.u8());
            input.bytes(len).to_vec()
        } else {
            self.kind.request(queue, input)
        };
        let mut segments = Vec::new();
        // The readable part, cut into up to four.
        let mut rest = &bytes[..];
        while !rest.is_empty() && segments.len() < 4 {
            let len = match segments.len() {
                3 => rest.len(),
                _ if shape & 0x08 != 0 => 1 + input.below(rest.len() as u64) as usize,
                _ => rest.len(),
            };
            let (now, after) = rest.split_at(len);
            segments.push(Desc::readable(self.driver.buffer_with(now)));
            rest = after;
        }
        let mut writable = 0;
        for _ in 0..u64::from(shape & 7) % SEGMENTS {
            let len = 1 + u32::from(input.u16()) % 5000;
            writable += u64::from(len);
            segments.push(Desc::writable(self.driver.buffer(len)));
        }
        if segments.is_empty() {
            return;
        }
        let state = &mut self.queues[usize::from(queue)];
        let needs = if indirect && self.features & INDIRECT_DESC != 0 { 1 } else { segments.len() };
        if state.free.len() < needs || usize::from(state.size) < segments.len() {
            return;
        }
        let taken: Vec<u16> = state.free.drain(state.free.len() - needs..).collect();
        if needs != segments.len() || (indirect && self.features & INDIRECT_DESC != 0) {
            let table = self.driver.buffer(16 * segments.len() as u32);
            let ring = self.driver.ring(queue);
            for (i, desc) in Desc::link(&segments, 0).into_iter().enumerate() {
                ring.set_desc_at(table.addr.0 + 16 * i as u64, desc);
            }
            ring.set_desc(taken[0], Desc { flags: Desc::INDIRECT, ..Desc::readable(table) });
        } else {
            for (i, desc) in segments.iter().enumerate() {
                let link = taken.get(i + 1).map_or(*desc, |&next| Desc {
                    flags: desc.flags | Desc::NEXT,
                    next,
                    ..*desc
                });
                self.driver.ring(queue).set_desc(taken[i], link);
            }
        }
        let head = taken[0];
        self.driver.ring(queue).publish(head);
        state.chains.insert(head, (taken, writable));
        if shape & 0x40 == 0 {
            self.driver.kick(queue);
            self.served(queue);
        }
    }

    /// The queue was kicked and the device has slept.
    fn served(&mut self, queue: u16) {
        self.reap(queue);
        let state = &self.queues[usize::from(queue)];
        if !self.wild && self.kind.is_prompt(queue) {
            assert!(state.chains.is_empty(), "queue {queue} keeps {:?}", state.chains);
        }
    }

    /// Takes what the device has given back.
    fn reap(&mut self, queue: u16) {
        let state = &mut self.queues[usize::from(queue)];
        // However often the guest reads, no more can be used than the ring holds.
        for _ in 0..=state.size {
            let Some(used) = self.driver.used(queue) else { return };
            let chain = u16::try_from(used.head).ok().and_then(|head| state.chains.remove(&head));
            if self.wild || state.wild {
                continue;
            }
            let Some((taken, writable)) = chain else { panic!("queue {queue}: {used:?} was not offered") };
            assert!(u64::from(used.len) <= writable, "queue {queue}: {used:?} of {writable} bytes");
            state.free.extend(taken);
        }
        assert!(self.wild || state.wild, "queue {queue}: more was used than the ring holds");
    }

    /// Reads and writes configuration space.
    fn configuration(&mut self, input: &mut Input) {
        if self.driver.transport() != Transport::Mmio {
            return;
        }
        let size = [Size::B1, Size::B2, Size::B4, Size::B8][usize::from(input.u8() & 3)];
        let at = Access { offset: 0x100 + input.number() % 0x1000, size };
        let port = self.driver.port();
        if let Ok(value) = port.read(at) {
            assert!(value <= size.mask(), "{value:#x} at {at:?}");
        }
        if input.flag() {
            let _ = port.write(at, input.number());
        }
    }

    fn notify(&mut self, input: &mut Input) {
        if self.driver.transport() == Transport::Mmio {
            self.driver.kick_register(input.number() as u32);
        }
    }

    /// What is true at any time.
    fn check(&mut self) {
        let status = self.driver.status();
        assert_eq!(status & !STATUS, 0, "the device status is {status:#x}");
        if !self.wild {
            assert_eq!(
                status & NEEDS_RESET,
                0,
                "a driver that does nothing wrong: {:?}",
                self.driver.reports()
            );
            (0..self.queues.len() as u16).for_each(|queue| self.reap(queue));
        }
        let reports = self.driver.reports();
        assert!(reports.len() <= 8 * (1 + self.starts), "a flood of reports: {reports:?}");
        for report in reports {
            assert!(!matches!(report, DeviceEvent::Panicked { .. }), "{report}");
        }
    }

    /// Whatever was done to it, the device works after a reset.
    fn end(&mut self) {
        self.driver.start(u128::MAX);
        assert_eq!(self.driver.status() & NEEDS_RESET, 0, "after a reset");
        self.driver.pump();
    }
}
