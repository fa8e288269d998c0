//! A PC's legacy devices, to be saved and restored.

use std::sync::Arc;

use ossature::bus::state::{self, Architecture, SavedState, StateFile};
use ossature::bus::{Access, Assigned, Device, Event, EventSink, Size, State};
use ossature::legacy::{I8042, Rtc, Serial, SerialPort, backend};
use ossature::memory::{Ram, RamConfig};

const ARCHITECTURE: Architecture = Architecture::X86_64;

/// The devices that have state, and a file with it.
pub struct Devices {
    devices: [Box<dyn Device>; 3],
    file: Vec<u8>,
    out: Vec<u8>,
}

impl Devices {
    /// With 16 bytes in the serial port's receiver, all quiet.
    pub fn new() -> Self {
        let mut com1 = Serial::new("com1", SerialPort::COM1, backend::none());
        let assigned = Assigned {
            dma: Ram::new(&RamConfig::new(4096)).unwrap().dma(),
            interrupts: vec![Arc::new(Event::new().unwrap())],
            doorbells: Vec::new(),
            pages: Vec::new(),
            events: EventSink::discard(),
        };
        let ports = com1.attach(assigned).unwrap().ports;
        for (offset, value) in [(2, 0x07), (1, 0x01), (4, 0x0b)] {
            let _ = ports[0].write(Access { offset, size: Size::B1 }, value).unwrap();
        }
        assert_eq!(com1.input().try_write(&[b'x'; 16]), 16);
        com1.quiesce().unwrap();

        let devices: [Box<dyn Device>; 3] =
            [Box::new(com1), Box::new(I8042::new("i8042")), Box::new(Rtc::new("rtc"))];
        let mut rig = Self { devices, file: Vec::new(), out: Vec::new() };
        rig.encode();
        rig.file.clone_from(&rig.out);
        rig
    }

    /// Each device's registers to a file. How long it is.
    pub fn encode(&mut self) -> usize {
        let states = self.devices.each_ref().map(|device| saved(&**device));
        let [com1, i8042, rtc] = &self.devices;
        let [a, b, c] = &states;
        self.out.clear();
        state::write(&mut self.out, ARCHITECTURE, &[(com1.id(), a), (i8042.id(), b), (rtc.id(), c)]).unwrap();
        self.out.len()
    }

    /// The file to each device's registers.
    pub fn decode(&mut self) {
        let file = StateFile::parse(&self.file, ARCHITECTURE).unwrap();
        for device in &mut self.devices {
            let state = file.get(device.id()).unwrap();
            device.restore(state).unwrap();
        }
    }

    /// The file as it is. How long it is.
    pub fn copy(&mut self) -> usize {
        self.out.clear();
        self.out.extend_from_slice(&self.file);
        self.out.len()
    }
}

fn saved(device: &dyn Device) -> SavedState<'static> {
    match device.state() {
        State::Saved(state) => state,
        other => panic!("{other:?}"),
    }
}
