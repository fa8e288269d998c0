//! The machine around a device under test.

pub(crate) mod state;

use std::sync::Arc;

use ossature_bus::testing::TestBoard;
use ossature_bus::{
    Access, Assigned, BusFault, Device, DeviceEvent, DeviceState, Effect, Event, EventSink, Metric,
    MetricVisitor, Mmio, Size,
};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

/// A device's board, and what the device got and gave.
pub(crate) struct Attachment {
    pub(crate) board: TestBoard,
    pub(crate) ports: Vec<Arc<dyn Mmio>>,
    pub(crate) irqs: Vec<Arc<Event>>,
}

/// A machine that has started.
pub(crate) fn attach(device: &mut dyn Device) -> Attachment {
    let machine = attach_quiet(device);
    device.resume().unwrap();
    machine
}

/// A machine that has been built and not yet started.
pub(crate) fn attach_quiet(device: &mut dyn Device) -> Attachment {
    let mut board = TestBoard::default();
    board.attach(device).unwrap();
    let ports = board.registers().iter().map(|registers| registers.port().unwrap()).collect();
    let requires = device.requires();
    let irqs = requires.interrupts.iter().map(|request| board.edges(request.name).unwrap()).collect();
    Attachment { board, ports, irqs }
}

impl Attachment {
    pub(crate) fn read(&self, port: usize, offset: u64) -> u8 {
        u8::try_from(self.ports[port].read(Access { offset, size: Size::B1 }).unwrap()).unwrap()
    }

    pub(crate) fn write(&self, port: usize, offset: u64, value: u8) -> Effect {
        self.ports[port].write(Access { offset, size: Size::B1 }, value.into()).unwrap()
    }

    /// How often the first interrupt was raised since the last time.
    pub(crate) fn interrupts(&self) -> u64 {
        self.irqs[0].take().unwrap()
    }

    /// The device's reports so far.
    pub(crate) fn reports(&self) -> Vec<DeviceEvent> {
        self.board.reports()
    }
}

/// The metric `name`.
pub(crate) fn metric(device: &dyn Device, name: &str) -> u64 {
    struct OneMetric<'a>(&'a str, Option<u64>);
    impl MetricVisitor for OneMetric<'_> {
        fn metric(&mut self, metric: &Metric<'_>, value: u64) {
            if metric.name == self.0 {
                assert_eq!(self.1.replace(value), None, "{} is shown twice", self.0);
            }
        }
    }
    let mut metric = OneMetric(name, None);
    device.metrics(&mut metric);
    metric.1.unwrap_or_else(|| panic!("no metric {name}"))
}

fn runner() -> TestRunner {
    let defaults = ProptestConfig::default();
    TestRunner::new(ProptestConfig { cases: 64, failure_persistence: None, ..defaults })
}

/// Every offset and width in and around a device's ranges is answered, only single bytes inside reach a
/// register, and no sequence of accesses breaks the device or makes it report more than once. `check` looks
/// at it after each sequence.
pub(crate) fn hostile<D: Device>(make: impl Fn() -> D, check: impl Fn(&mut D, &Attachment)) {
    let sizes = [Size::B1, Size::B2, Size::B4, Size::B8];
    let access = (any::<prop::sample::Index>(), 0u64..10, 0usize..12, any::<bool>(), any::<u64>());
    let outcome = runner().run(&prop::collection::vec(access, 1..300), |accesses| {
        let mut device = make();
        let ranges = device.requires().registers;
        let machine = attach(&mut device);
        for (port, offset, size, write, value) in accesses {
            let port = port.index(machine.ports.len());
            // Mostly single bytes: the others go no further than the width.
            let at = Access { offset, size: sizes[size.saturating_sub(8)] };
            let fault = if write {
                machine.ports[port].write(at, value & at.size.mask()).err()
            } else {
                match machine.ports[port].read(at) {
                    Ok(value) => {
                        prop_assert!(value <= at.size.mask());
                        None
                    }
                    Err(fault) => Some(fault),
                }
            };
            if at.size != Size::B1 {
                prop_assert_eq!(fault, Some(BusFault::Width));
            } else if offset >= ranges[port].size {
                prop_assert_eq!(fault, Some(BusFault::Unmapped));
            }
        }
        check(&mut device, &machine);
        prop_assert!(machine.reports().len() <= 1);
        device.quiesce().unwrap();
        device.quiesce().unwrap();
        device.resume().unwrap();
        device.quiesce().unwrap();
        device.reset().unwrap();
        device.detach().unwrap();
        Ok(())
    });
    outcome.unwrap();
}

/// Whatever the guest has done, each register of a device that was reset reads as a new one's, and so does its saved
/// state.
pub(crate) fn reset_is_complete<D: Device>(make: impl Fn() -> D) {
    let write = (any::<prop::sample::Index>(), 0u64..8, any::<u8>());
    let outcome = runner().run(&prop::collection::vec(write, 1..200), |writes| {
        let (mut old, mut new) = (make(), make());
        let machine = attach(&mut old);
        for (port, offset, value) in writes {
            // Beyond a range it is a fault.
            let _ = port.get(&machine.ports).write(Access { offset, size: Size::B1 }, value.into());
        }
        old.quiesce().unwrap();
        old.reset().unwrap();
        let fresh = attach_quiet(&mut new);
        prop_assert_eq!(payload(&mut old), payload(&mut new));
        for (port, range) in old.requires().registers.iter().enumerate() {
            for offset in 0..range.size {
                let read = |machine: &Attachment| machine.ports[port].read(Access { offset, size: Size::B1 });
                prop_assert_eq!(read(&machine), read(&fresh), "{} at {}", range.name, offset);
            }
        }
        Ok(())
    });
    outcome.unwrap();
}

/// The bytes of a device's state; `None` if it has none.
fn payload(device: &mut dyn Device) -> Option<Vec<u8>> {
    match device.save().unwrap() {
        DeviceState::Saved(handover) => Some(handover.state.payload.into_owned()),
        DeviceState::Stateless => None,
        other => panic!("{other:?}"),
    }
}

/// A device that was detached holds nothing of its machine, late accesses to its registers reach nobody, and it can be
/// attached to another machine, where it begins as a new one. `work` has guest and VMM use it.
pub(crate) fn lives_twice<D: Device>(device: &mut D, work: impl Fn(&mut D, &Attachment)) {
    let first = attach(device);
    work(device, &first);
    device.quiesce().unwrap();
    device.detach().unwrap();

    let reports = first.reports();
    first.irqs.iter().for_each(|irq| drop(irq.take()));
    for (port, offset) in first.ports.iter().flat_map(|port| (0..8).map(move |offset| (port, offset))) {
        let at = Access { offset, size: Size::B1 };
        let _ = (port.read(at), port.write(at, 0x0f));
    }
    assert!(first.irqs.iter().all(|irq| irq.take().unwrap() == 0));
    assert_eq!(first.reports(), reports);
    let irqs: Vec<_> = first.irqs.iter().map(Arc::downgrade).collect();
    drop(first);
    assert!(
        irqs.iter().all(|irq| irq.upgrade().is_none()),
        "the device holds the interrupt of its former machine"
    );

    let held = Arc::new(());
    device.attach(with_sink_that_holds(device, held.clone())).unwrap();
    device.resume().unwrap();
    device.detach().unwrap();
    assert_eq!(Arc::strong_count(&held), 1, "the device holds the event sink of its former machine");

    let second = attach(device);
    work(device, &second);
    device.detach().unwrap();
}

/// Everything that `device` requires, with an event sink that holds `held`.
fn with_sink_that_holds(device: &dyn Device, held: Arc<()>) -> Assigned {
    let requires = device.requires();
    let mut board = TestBoard::default();
    let made = board.assign(&requires);
    let sink = EventSink::new(move |_| {
        let _ = &held;
    });
    let mut assigned = Assigned::new(board.dma().clone(), sink);
    for request in &requires.registers {
        assigned.add_registers(made.registers(request.name).unwrap().clone());
    }
    for request in &requires.interrupts {
        assigned.add_interrupt(request.name, made.interrupt(request.name).unwrap().clone());
    }
    assigned
}
