//! Lines, edges and levels, and what the interrupt status reads meanwhile.

use std::io;

use ossature_bus::{Event, Interrupt, InterruptTarget, Mmio};
use ossature_memory::Dma;
use ossature_memory::vm_memory::GuestAddress;

use super::*;
use crate::testing::{GuestRing, guest_ram};

/// A level-triggered line that several devices assert.
#[derive(Default)]
struct Line(Mutex<[bool; 2]>);

impl Line {
    fn is_asserted(&self) -> bool {
        self.0.lock().unwrap().contains(&true)
    }
}

struct Input(Arc<Line>, usize);

impl InterruptTarget for Input {
    fn signal(&self) -> io::Result<()> {
        self.set_level(true)
    }

    fn set_level(&self, asserted: bool) -> io::Result<()> {
        self.0.0.lock().unwrap()[self.1] = asserted;
        Ok(())
    }

    fn event(&self) -> Option<&Arc<Event>> {
        None
    }

    fn resample(&self) -> Option<&Arc<Event>> {
        None
    }
}

/// A device on the line, and the driver's side of its queue 0.
struct Node {
    device: VirtioMmio,
    port: Arc<dyn Mmio>,
    ring: GuestRing,
    seen: u16,
}

const BUFFER: u64 = 0x8000;

impl Node {
    fn new(number: usize, line: &Arc<Line>, dma: &Dma, runtime: Arc<dyn Runtime>) -> Self {
        let sample = Sample::new(&Arc::default());
        let mut device =
            VirtioMmio::new("node", Box::new(sample), runtime).with_interrupt(MmioInterrupt::SharedLine);
        let mut board = TestBoard::with_ram(dma.clone());
        let mut requires = device.requires();
        assert_eq!(requires.interrupts.len(), 1);
        requires.interrupts.clear();
        let mut assigned = board.assign(&requires);
        assigned.add_interrupt("irq", Interrupt::new(Arc::new(Input(line.clone(), number))));
        device.attach(assigned).unwrap();
        device.resume().unwrap();
        let ring = GuestRing::new(dma.clone(), 0x1_0000 * (number as u64 + 1), 16, 0);
        let node = Self { device, port: board.port("registers").unwrap(), ring, seen: 0 };
        for (register, value) in [(0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x30, 0), (0x38, 16)] {
            node.write(register, value);
        }
        for (register, addr) in [(0x80, node.ring.desc), (0x90, node.ring.avail), (0xa0, node.ring.used)] {
            node.write(register, addr);
        }
        node.write(0x44, 1);
        node.write(0x70, 15);
        assert_eq!((node.read(0x44), node.read(0x70)), (1, 15));
        node
    }

    fn read(&self, offset: u64) -> u64 {
        self.port.read(Access { offset, size: Size::B4 }).unwrap()
    }

    fn write(&self, offset: u64, value: u64) {
        let _ = self.port.write(Access { offset, size: Size::B4 }, value).unwrap();
    }

    fn offer(&mut self) {
        let segment = ossature_memory::Segment { addr: GuestAddress(BUFFER), len: 16 };
        let head = self.ring.avail_index() % 16;
        self.ring.offer(head, &[Desc::writable(segment)]);
        self.write(0x50, 0);
    }

    /// What an interrupt handler does for one device of a line.
    fn handle(&mut self) {
        let status = self.read(0x60);
        self.write(0x64, status);
        while self.ring.take_used().is_some() {
            self.seen += 1;
        }
    }
}

#[test]
fn two_devices_share_a_level_line() {
    let inline = Inline::new().unwrap();
    let (line, dma) = (Arc::new(Line::default()), guest_ram(&[(0, 0x10_0000)]));
    let mut nodes = [0, 1].map(|n| Node::new(n, &line, &dma, Arc::new(inline.clone())));
    inline.pump().unwrap();
    assert!(!line.is_asserted());
    nodes.iter_mut().for_each(Node::offer);
    inline.pump().unwrap();
    assert!(line.is_asserted());
    // The line stays asserted for the one that nobody has asked yet.
    nodes[0].handle();
    assert!(line.is_asserted());
    nodes[0].handle();
    assert!(line.is_asserted());
    nodes[1].handle();
    assert!(!line.is_asserted());
    assert_eq!((nodes[0].seen, nodes[1].seen), (1, 1));
    nodes[1].offer();
    inline.pump().unwrap();
    assert!(line.is_asserted());
    // A reset forgets what was pending.
    nodes[1].write(0x70, 0);
    assert!(!line.is_asserted());
    assert_eq!(nodes[1].read(0x60), 0);
}

#[test]
fn no_interrupt_of_a_shared_line_is_lost_across_threads() {
    let runtime = Arc::new(SharedLoop::new("virtio").unwrap());
    let (line, dma) = (Arc::new(Line::default()), guest_ram(&[(0, 0x10_0000)]));
    let mut nodes = [0, 1].map(|n| Node::new(n, &line, &dma, runtime.clone()));
    let mut offered = [0u16; 2];
    while offered != [2000, 2000] {
        for (node, offered) in nodes.iter_mut().zip(&mut offered) {
            if *offered < 2000 && *offered - node.seen < 8 {
                node.offer();
                *offered += 1;
            }
        }
        // An interrupt comes only while the line is asserted.
        if line.is_asserted() {
            nodes.iter_mut().for_each(Node::handle);
        }
    }
    while nodes.iter().any(|node| node.seen < 2000) {
        if line.is_asserted() {
            nodes.iter_mut().for_each(Node::handle);
        }
        thread::yield_now();
    }
    // The last chains are seen before their interrupt is raised.
    for node in &mut nodes {
        node.device.quiesce().unwrap();
        node.handle();
    }
    assert!(!line.is_asserted());
}

#[test]
fn g3_the_status_is_set_before_the_interrupt_is_raised() {
    let runtime = Arc::new(SharedLoop::new("virtio").unwrap());
    let mut driver = TestDriver::with_runtime(Box::new(Sample::new(&Arc::default())), runtime);
    driver.start(0);
    for _ in 0..500 {
        driver.request(0, &[], &[4]);
        driver.kick(0);
        // Nothing else is asked than what the handler of an edge may rely on.
        while driver.interrupts() == 0 {
            thread::yield_now();
        }
        assert_eq!(driver.acknowledge(), 1);
        assert!(driver.used(0).is_some());
    }
}
