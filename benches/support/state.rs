//! A PC's legacy devices, to be saved and restored.

use ossature::bus::state::SavedState;
use ossature::bus::state_file::{self, Architecture, StateFile};
use ossature::bus::testing::TestBoard;
use ossature::bus::{Access, Device, DeviceState, Handover, Size};
use ossature::legacy::{I8042, Rtc, Serial, SerialPort, backend};

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
        let mut board = TestBoard::default();
        board.attach(&mut com1).unwrap();
        com1.resume().unwrap();
        let registers = board.registers()[0].port().unwrap();
        for (offset, value) in [(2, 0x07), (1, 0x01), (4, 0x0b)] {
            let _ = registers.write(Access { offset, size: Size::B1 }, value).unwrap();
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
        let states = self.devices.each_mut().map(|device| saved(&mut **device));
        let [com1, i8042, rtc] = &self.devices;
        let [a, b, c] = &states;
        self.out.clear();
        let sections = [(com1.id(), a), (i8042.id(), b), (rtc.id(), c)];
        state_file::write(&mut self.out, ARCHITECTURE, &sections).unwrap();
        self.out.len()
    }

    /// The file to each device's registers.
    pub fn decode(&mut self) {
        let file = StateFile::parse(&self.file, ARCHITECTURE).unwrap();
        for device in &mut self.devices {
            let state = file.get(device.id()).unwrap();
            device.restore(Handover::new(state.borrowed())).unwrap();
        }
    }

    /// The file as it is. How long it is.
    pub fn copy(&mut self) -> usize {
        self.out.clear();
        self.out.extend_from_slice(&self.file);
        self.out.len()
    }
}

fn saved(device: &mut dyn Device) -> SavedState<'static> {
    match device.save().unwrap() {
        DeviceState::Saved(handover) => handover.state,
        other => panic!("{other:?}"),
    }
}
