//! The machine around a device under test.

pub(crate) mod state;

use std::sync::{Arc, Mutex};

use ossature_bus::{
    Access, Assigned, BusFault, Device, DeviceEvent, Effect, Event, EventSink, MetricVisitor, Mmio, Size,
};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, GuestMmap};
use proptest::prelude::*;

/// What an attached device got and gave.
pub(crate) struct Attachment {
    pub(crate) ports: Vec<Arc<dyn Mmio>>,
    pub(crate) irqs: Vec<Arc<Event>>,
    pub(crate) events: Arc<Mutex<Vec<DeviceEvent>>>,
}

pub(crate) fn attach(device: &mut dyn Device) -> Attachment {
    let requires = device.requires();
    let irqs: Vec<_> = requires.interrupts.iter().map(|_| Arc::new(Event::new().unwrap())).collect();
    let events = Arc::<Mutex<Vec<DeviceEvent>>>::default();
    let seen = events.clone();
    let assigned = Assigned {
        dma: Dma::new(Arc::new(GuestMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap())),
        interrupts: irqs.clone(),
        doorbells: Vec::new(),
        pages: Vec::new(),
        events: EventSink::new(move |event| seen.lock().unwrap().push(event)),
    };
    let ports = device.attach(assigned).unwrap().ports;
    assert_eq!(ports.len(), requires.ranges.len());
    Attachment { ports, irqs, events }
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
}

/// The metric `name`.
pub(crate) fn metric(device: &dyn Device, name: &str) -> u64 {
    struct Find<'a>(&'a str, Option<u64>);
    impl MetricVisitor for Find<'_> {
        fn counter(&mut self, name: &'static str, value: u64) {
            if name == self.0 {
                assert_eq!(self.1.replace(value), None, "{name} is shown twice");
            }
        }
        fn gauge(&mut self, name: &'static str, value: u64) {
            self.counter(name, value);
        }
    }
    let mut find = Find(name, None);
    device.metrics(&mut find);
    find.1.unwrap_or_else(|| panic!("no metric {name}"))
}

/// Every offset and width in and around a device's ranges is answered, only single bytes inside reach a
/// register, and no sequence of accesses breaks the device or makes it report more than once. `check` looks
/// at it after each sequence.
pub(crate) fn hostile<D: Device>(make: impl Fn() -> D, check: impl Fn(&mut D, &Attachment)) {
    let sizes = [Size::B1, Size::B2, Size::B4, Size::B8];
    let access = (any::<prop::sample::Index>(), 0u64..10, 0usize..12, any::<bool>(), any::<u64>());
    let accesses = prop::collection::vec(access, 1..300);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&accesses, |accesses| {
        let mut device = make();
        let ranges = device.requires().ranges;
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
        prop_assert!(machine.events.lock().unwrap().len() <= 1);
        device.quiesce().unwrap();
        device.quiesce().unwrap();
        device.resume().unwrap();
        device.reset().unwrap();
        Ok(())
    });
    outcome.unwrap();
}
