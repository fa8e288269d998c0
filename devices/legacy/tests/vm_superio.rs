//! Our UART beside vm-superio's: what a driver writes and reads in ordinary use gives the same on both.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)] // helpers of tests, too, may panic

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use ossature_bus::testing::TestBoard;
use ossature_bus::{Access, Device, Effect, Size};
use ossature_legacy::{Serial, SerialPort, backend};
use proptest::prelude::*;
use vm_superio::Trigger;

#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct NoInterrupt;

impl Trigger for NoInterrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

const DATA: u8 = 0;
const INTERRUPTS: u8 = 1;
const LINE_CONTROL: u8 = 3;
const SCRATCH: u8 = 7;
const DIVISOR_ACCESS: u8 = 0x80;

/// A register, and the bits of it that a driver sets in ordinary use: the divisor's two bytes, the interrupts that
/// it wants, line control (with or without the divisor behind the first two registers), and the scratch register.
fn write() -> impl Strategy<Value = (u8, u8)> {
    prop_oneof![
        (Just(DATA), any::<u8>()),
        (Just(INTERRUPTS), 0_u8..4),
        (Just(LINE_CONTROL), any::<bool>().prop_map(|divisor| if divisor { DIVISOR_ACCESS | 3 } else { 3 })),
        (Just(SCRATCH), any::<u8>()),
    ]
}

proptest! {
    #[test]
    fn a_driver_sees_the_same_registers_and_sends_the_same_bytes(writes in prop::collection::vec(write(), 0..64)) {
        let (ours, theirs) = (Output::default(), Output::default());
        let mut serial = Serial::new("com1", SerialPort::COM1, backend::writer(ours.clone()));
        let mut board = TestBoard::default();
        board.attach(&mut serial).unwrap();
        serial.resume().unwrap();
        let port = board.port("registers").unwrap();
        let mut reference = vm_superio::Serial::new(NoInterrupt, theirs.clone());
        let at = |register: u8| Access { offset: register.into(), size: Size::B1 };

        for (register, value) in writes {
            prop_assert_eq!(port.write(at(register), value.into()), Ok(Effect::None));
            reference.write(register, value).unwrap();
            let divisor = port.read(at(LINE_CONTROL)).unwrap() & u64::from(DIVISOR_ACCESS) != 0;
            let read = [LINE_CONTROL, SCRATCH, INTERRUPTS].into_iter().chain(divisor.then_some(DATA));
            for register in read {
                prop_assert_eq!(port.read(at(register)), Ok(reference.read(register).into()), "register {}", register);
            }
        }
        prop_assert_eq!(&*ours.0.lock().unwrap(), &*theirs.0.lock().unwrap());
    }
}
