//! The port as a machine, a guest's driver and a user at the other end of the line use it.

use std::io::Write;
use std::sync::{Arc, Mutex};

use ossature_bus::{Access, Assigned, Device, Effect, Event, EventSink, Mmio, Size};
use ossature_memory::Dma;

use super::*;
use crate::backend;

/// The guest's end of a port.
pub(super) struct Guest {
    pub(super) serial: Serial,
    ports: Arc<dyn Mmio>,
    pub(super) irq: Arc<Event>,
}

pub(super) fn dma() -> Dma {
    let ranges = [(ossature_memory::vm_memory::GuestAddress(0), 0x1000)];
    Dma::new(Arc::new(ossature_memory::GuestMmap::from_ranges(&ranges).unwrap()))
}

impl Guest {
    pub(super) fn new(backend: Backend) -> Self {
        let mut serial = Serial::new("com1", SerialPort::COM1, backend).unwrap();
        let irq = Arc::new(Event::new().unwrap());
        let assigned = Assigned {
            dma: dma(),
            interrupts: vec![irq.clone()],
            doorbells: Vec::new(),
            pages: Vec::new(),
            events: EventSink::discard(),
        };
        let ports = serial.attach(assigned).unwrap().ports.remove(0);
        Self { serial, ports, irq }
    }

    pub(super) fn read(&self, offset: u64) -> u8 {
        u8::try_from(self.ports.read(Access { offset, size: Size::B1 }).unwrap()).unwrap()
    }

    pub(super) fn write(&self, offset: u64, value: u8) {
        assert_eq!(self.ports.write(Access { offset, size: Size::B1 }, value.into()), Ok(Effect::None));
    }

    pub(super) fn print(&self, text: &str) {
        text.bytes().for_each(|byte| self.write(0, byte));
    }
}

#[derive(Clone, Default)]
pub(super) struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn output_is_at_the_writer_when_the_access_is_over() {
    let sink = Sink::default();
    let guest = Guest::new(backend::writer(sink.clone()));
    guest.print("hello\n");
    assert_eq!(*sink.0.lock().unwrap(), b"hello\n");
}
