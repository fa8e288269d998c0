//! For tests of a device's data plane: its worker, run turn by turn, against rings in memory; no transport.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use ossature_bus::{DeviceEvent, Event, EventSink, Interrupt, Metric, MetricKind, MetricVisitor};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, Segment};

use crate::testing::{Desc, GuestRing, Used, guest_ram};
use crate::{
    Activation, ConfigInterrupt, LocalDevice, QueueBroken, QueueSetup, QueueState, Removed, Turn, VirtQueue,
    Worker, features,
};

const RAM: usize = 8 << 20;
const RINGS: u64 = 0x1_0000;
const HEAP: u64 = 0x10_0000;

pub(crate) struct Rig {
    pub dma: Dma,
    pub rings: Vec<GuestRing>,
    pub irqs: Vec<Arc<Event>>,
    pub config_irqs: Arc<AtomicU32>,
    pub reports: Arc<Mutex<Vec<DeviceEvent>>>,
    features: u128,
    next_desc: Vec<u16>,
    heap: u64,
    worker: Option<Box<dyn Worker>>,
}

impl Rig {
    /// Starts all of the device's queues with these negotiated features, 64 entries each.
    pub fn new(device: &mut dyn LocalDevice, features: u128) -> Self {
        Self::with_rings(device, features, 64, false)
    }

    pub fn with_rings(device: &mut dyn LocalDevice, features: u128, size: u16, event_idx: bool) -> Self {
        let dma = guest_ram(&[(0, RAM)]);
        let queues = device.info().queues.len();
        let ring = |i| GuestRing::new(dma.clone(), RINGS + 0x8000 * i as u64, size, 0);
        let mut rig = Self {
            rings: (0..queues).map(ring).collect(),
            irqs: (0..queues).map(|_| Arc::new(Event::new().unwrap())).collect(),
            config_irqs: Arc::default(),
            reports: Arc::default(),
            features: features | features::INDIRECT_DESC | if event_idx { features::EVENT_IDX } else { 0 },
            next_desc: vec![0; queues],
            heap: HEAP,
            worker: None,
            dma,
        };
        rig.start(device);
        rig
    }

    fn start(&mut self, device: &mut dyn LocalDevice) {
        let queues = (0..self.rings.len()).map(|i| {
            let ring = &self.rings[i];
            let state = QueueState::new(ring.size).at(ring.desc, ring.avail, ring.used);
            let (doorbell, irq) = (Arc::new(Event::new().unwrap()), Interrupt::from(self.irqs[i].clone()));
            let setup = QueueSetup::new(i as u16, state, self.dma.clone(), doorbell, irq);
            setup.with_features(self.features).build().unwrap()
        });
        let queues = queues.collect();
        self.start_with(device, queues);
    }

    /// Starts the device with queues that [`stop`](Self::stop) gave back.
    pub fn start_with(&mut self, device: &mut dyn LocalDevice, queues: Vec<VirtQueue>) {
        let raised = self.config_irqs.clone();
        let reports = self.reports.clone();
        let mut activation = Activation::new(self.features, self.dma.clone());
        activation.config = ConfigInterrupt::new(move || _ = raised.fetch_add(1, Ordering::Relaxed));
        activation.events = EventSink::new(move |event| reports.lock().unwrap().push(event));
        let mut worker = device.worker(0, &activation).unwrap();
        queues.into_iter().for_each(|queue| worker.add_queue(queue));
        self.worker = Some(worker);
    }

    pub fn stop(&mut self) -> Vec<VirtQueue> {
        let mut worker = self.worker.take().unwrap();
        let mut queues = Vec::new();
        for index in 0..self.rings.len() as u16 {
            match worker.remove_queue(index) {
                Removed::Queue(queue) => queues.push(queue),
                Removed::Draining => panic!("queue {index} drains"),
                Removed::Unknown => {}
            }
        }
        queues
    }

    /// Stops the device's queues and starts them again, as a pause of the machine does.
    pub fn restart(&mut self, device: &mut dyn LocalDevice) {
        let queues = self.stop();
        device.quiesce().unwrap();
        device.resume().unwrap();
        self.start_anew(device, queues);
    }

    /// Starts the device with queues like those that [`stop`](Self::stop) gave back.
    pub fn start_anew(&mut self, device: &mut dyn LocalDevice, queues: Vec<VirtQueue>) {
        let anew = |queue: VirtQueue| {
            let index = queue.index();
            let irq = Interrupt::from(self.irqs[usize::from(index)].clone());
            let doorbell = Arc::new(Event::new().unwrap());
            let setup = QueueSetup::new(index, queue.into_state(), self.dma.clone(), doorbell, irq);
            setup.with_features(self.features).build().unwrap()
        };
        let queues = queues.into_iter().map(anew).collect();
        self.start_with(device, queues);
    }

    pub fn worker(&mut self) -> &mut dyn Worker {
        &mut **self.worker.as_mut().unwrap()
    }

    /// One turn.
    pub fn turn(&mut self, token: u16) -> Result<Turn, QueueBroken> {
        self.worker().turn(token)
    }

    /// Turns until the worker sleeps; returns how many.
    pub fn run(&mut self, token: u16) -> u32 {
        for turns in 1..1000 {
            if self.turn(token).unwrap() == Turn::Sleep {
                return turns;
            }
        }
        panic!("the worker never sleeps");
    }

    /// Fresh guest memory.
    pub fn alloc(&mut self, len: u32) -> Segment {
        let segment = Segment { addr: GuestAddress(self.heap), len };
        // An odd gap, so that nothing happens to be aligned or adjacent.
        self.heap += u64::from(len) + 3;
        assert!(self.heap <= RAM as u64);
        segment
    }

    /// Fresh guest memory with these bytes.
    pub fn put(&mut self, bytes: &[u8]) -> Segment {
        let segment = self.alloc(bytes.len() as u32);
        self.dma.write(segment.addr, bytes).unwrap();
        segment
    }

    /// What a segment holds.
    pub fn get(&self, segment: Segment) -> Vec<u8> {
        let mut bytes = vec![0; segment.len as usize];
        self.dma.read(segment.addr, &mut bytes).unwrap();
        bytes
    }

    /// Offers a chain on queue `q`; returns its head. Descriptors are taken in turn: offering more than a ring
    /// holds overwrites the oldest.
    pub fn offer(&mut self, q: usize, readable: &[Segment], writable: &[Segment]) -> u16 {
        let descs: Vec<_> = (readable.iter().copied().map(Desc::readable))
            .chain(writable.iter().copied().map(Desc::writable))
            .collect();
        let ring = &mut self.rings[q];
        if usize::from(self.next_desc[q]) + descs.len() > usize::from(ring.size) {
            self.next_desc[q] = 0;
        }
        let head = self.next_desc[q];
        self.next_desc[q] += descs.len() as u16;
        ring.offer(head, &descs);
        head
    }

    pub fn used(&mut self, q: usize) -> Option<Used> {
        self.rings[q].take_used()
    }
}

/// A device's counter of this name.
pub(crate) fn counter(device: &dyn LocalDevice, name: &str) -> u64 {
    struct Find<'a>(&'a str, Option<u64>);
    impl MetricVisitor for Find<'_> {
        fn metric(&mut self, metric: &Metric<'_>, value: u64) {
            if metric.kind == MetricKind::Counter && metric.name == self.0 {
                assert_eq!(self.1.replace(value), None, "{} twice", self.0);
            }
        }
    }
    let mut find = Find(name, None);
    device.metrics(&mut find);
    find.1.unwrap_or_else(|| panic!("no counter {name}"))
}

/// A device's whole configuration space.
pub(crate) fn config(device: &dyn LocalDevice) -> Vec<u8> {
    let mut bytes = vec![0xaa; device.info().config_len as usize];
    device.read_config(0, &mut bytes);
    bytes
}
