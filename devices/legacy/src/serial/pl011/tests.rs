use std::sync::{Arc, Mutex};

use ossature_bus::testing::TestBoard;
use ossature_bus::{Device, Effect, Handover, Mmio, NodeKind};
use proptest::prelude::*;

use super::*;
use crate::serial::registers::TYPEAHEAD_CAPACITY;
use crate::testing::state::saved;
use crate::{Serial, backend};

/// A writer whose contents can be seen.
#[derive(Clone, Default)]
struct Shown(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Shown {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The guest's end of a port.
struct Guest {
    serial: Serial<Pl011>,
    board: TestBoard,
    registers: Arc<dyn Mmio>,
    shown: Shown,
}

impl Guest {
    fn quiet() -> Self {
        let shown = Shown::default();
        let mut serial = Serial::pl011("serial", backend::writer(shown.clone()));
        let mut board = TestBoard::default();
        assert_eq!(board.attach(&mut serial).unwrap(), NodeKind::Pl011);
        let registers = board.port("registers").unwrap();
        Self { serial, board, registers, shown }
    }

    fn new() -> Self {
        let mut guest = Self::quiet();
        guest.serial.resume().unwrap();
        guest
    }

    /// Opened as Linux does it: the receiver is on, emptied, and only then are its interrupts enabled.
    fn open() -> Self {
        let guest = Self::new();
        guest.write(LCR_H, 0x70);
        guest.write(CR, 0x301);
        guest.write(ICR, 0x7ff);
        guest.listen();
        guest
    }

    fn listen(&self) {
        while self.read(FR) & u64::from(FR_RX_EMPTY) == 0 {
            self.read(DR);
        }
        self.write(IMSC, u64::from(RX | RX_TIMEOUT));
    }

    fn read(&self, offset: u64) -> u64 {
        self.registers.read(Access { offset, size: Size::B4 }).unwrap()
    }

    fn write(&self, offset: u64, value: u64) {
        assert_eq!(self.registers.write(Access { offset, size: Size::B4 }, value), Ok(Effect::None));
    }

    fn is_asserted(&self) -> bool {
        self.board.is_asserted("irq")
    }

    fn received(&self) -> Vec<u8> {
        let ready = |_: &usize| self.read(FR) & u64::from(FR_RX_EMPTY) == 0;
        (0..10_000).take_while(ready).map(|_| self.read(DR) as u8).collect()
    }
}

#[test]
fn linux_finds_the_id_of_an_arm_pl011_r1p5() {
    let guest = Guest::new();
    let id = |at: u64| (0..4).rev().fold(0, |id, n| id << 8 | guest.read(at + 4 * n));
    assert_eq!((id(0xfe0), id(0xff0)), (0x0034_1011, 0xb105_f00d));
    // amba_id of the driver, with the mask that it uses.
    assert_eq!(id(0xfe0) & 0x000f_ffff, 0x0004_1011);
}

#[test]
fn what_the_guest_sends_is_shown_at_once() {
    let guest = Guest::open();
    for byte in b"login: " {
        assert_eq!(guest.read(FR) & u64::from(FR_TX_FULL), 0);
        guest.write(DR, u64::from(*byte));
    }
    assert_eq!(*guest.shown.0.lock().unwrap(), b"login: ");
}

#[test]
fn the_transmitters_interrupt_is_there_after_a_byte_until_it_is_cleared() {
    let guest = Guest::open();
    guest.write(IMSC, u64::from(TX));
    assert!(!guest.is_asserted(), "nothing has been sent");
    guest.write(DR, b'x'.into());
    assert!(guest.is_asserted());
    assert_eq!(guest.read(MIS), u64::from(TX));
    guest.write(IMSC, 0);
    assert!(!guest.is_asserted());
    assert_eq!((guest.read(MIS), guest.read(RIS)), (0, u64::from(TX)));
    guest.write(IMSC, u64::from(TX));
    assert!(guest.is_asserted());
    guest.write(ICR, u64::from(TX));
    assert!(!guest.is_asserted());
}

#[test]
fn input_interrupts_until_it_has_been_read() {
    let guest = Guest::open();
    assert_eq!(guest.serial.input().try_write(b"ls\n"), 3);
    assert!(guest.is_asserted());
    assert_eq!(guest.read(MIS), u64::from(RX_TIMEOUT), "three bytes are below the trigger of 16");
    // To clear it does not lose it.
    guest.write(ICR, 0x7ff);
    assert!(guest.is_asserted());
    assert_eq!(guest.received(), b"ls\n");
    assert!(!guest.is_asserted());
    assert_eq!(guest.serial.input().try_write(&[b'x'; 100]), FIFO);
    assert_eq!(guest.read(MIS), u64::from(RX | RX_TIMEOUT));
    assert_eq!(guest.read(FR) & u64::from(FR_RX_FULL), u64::from(FR_RX_FULL));
}

#[test]
fn nothing_is_given_to_a_driver_that_throws_it_away() {
    let guest = Guest::new();
    assert_eq!(guest.serial.input().try_write(b"typed early"), 0);
    guest.write(LCR_H, 0x70);
    guest.write(CR, 0x301);
    assert_eq!(guest.serial.input().try_write(b"typed early"), 0);
    guest.listen();
    assert_eq!(guest.serial.input().try_write(b"typed early"), 11);
    assert_eq!(guest.received(), b"typed early");
}

#[test]
fn without_fifos_there_is_room_for_one_byte() {
    let guest = Guest::open();
    guest.write(LCR_H, 0x60);
    assert_eq!(guest.serial.input().try_write(b"abc"), 1);
    assert_eq!(guest.read(MIS), u64::from(RX | RX_TIMEOUT));
}

#[test]
fn a_guest_may_send_to_itself_and_learns_what_it_lost() {
    let guest = Guest::open();
    guest.write(CR, 0x381);
    guest.write(IMSC, u64::from(OVERRUN));
    assert_eq!(guest.serial.input().try_write(b"x"), 0, "the line is cut off");
    for _ in 0..FIFO {
        guest.write(DR, b'l'.into());
    }
    assert!(!guest.is_asserted());
    guest.write(DR, b'l'.into());
    assert!(guest.is_asserted());
    assert_eq!((guest.read(RSR), guest.read(DR), guest.read(DR)), (8, 0x86c, 0x6c));
    guest.write(ICR, u64::from(OVERRUN));
    assert!(!guest.is_asserted());
    assert_eq!(*guest.shown.0.lock().unwrap(), b"");
}

#[test]
fn a_slow_line_is_a_transmitter_that_is_full() {
    let mut uart = Pl011::new();
    let at = |offset| Access { offset, size: Size::B2 };
    let mut sent = 0;
    while uart.read(at(FR)).unwrap() & u64::from(FR_TX_FULL) == 0 {
        // As Linux does that comes for the interrupt: half a FIFO without looking.
        for _ in 0..FIFO / 2 {
            assert_eq!(uart.write(at(DR), b'x'.into()), Ok(Written::Sent));
            sent += 1;
        }
    }
    assert!(sent < TX_CAPACITY, "there is room for a burst");
    assert_eq!(uart.read(at(RIS)).unwrap() & u64::from(TX), 0);
    uart.output_taken(sent - TX_CAPACITY / 2 - 1);
    assert_eq!(uart.read(at(RIS)).unwrap() & u64::from(TX), 0);
    uart.output_taken(100);
    assert_eq!(uart.read(at(RIS)).unwrap() & u64::from(TX), u64::from(TX));
    assert_eq!(uart.read(at(FR)).unwrap() & u64::from(FR_TX_FULL), 0);
}

#[test]
fn a_reset_leaves_what_was_sent_and_nothing_else() {
    let mut guest = Guest::quiet();
    guest.write(DR, b'x'.into());
    guest.write(CR, 0x301);
    guest.write(IMSC, u64::from(TX));
    assert!(guest.is_asserted());
    guest.serial.reset().unwrap();
    assert!(!guest.is_asserted());
    assert_eq!((guest.read(CR), guest.read(IMSC), guest.read(IFLS)), (0x301, 0, 0x12));
    guest.serial.resume().unwrap();
    assert_eq!(*guest.shown.0.lock().unwrap(), b"x");
}

#[test]
fn a_driver_for_the_generic_uart_takes_the_port_as_firmware_left_it() {
    let mut guest = Guest::new();
    // 8 bits and FIFOs; on, and both directions; 24 MHz / (16 * (13 + 1/64)).
    let found = [LCR_H, CR, IBRD, FBRD].map(|register| guest.read(register));
    assert_eq!(found, [0x70, 0x301, 13, 1]);
    // It knows none of these registers.
    guest.write(ICR, 0x7ff);
    guest.listen();
    assert_eq!(guest.serial.input().try_write(b"root\r"), 5);
    let line: Vec<_> = (0..5).map(|_| guest.read(DR) as u8).collect();
    assert_eq!(line, b"root\r");
    guest.write(DR, b'#'.into());
    guest.serial.quiesce().unwrap();
    assert_eq!(*guest.shown.0.lock().unwrap(), b"#");
}

/// A state in which every field says something.
fn busy() -> Guest {
    let mut guest = Guest::open();
    for (offset, value) in [(ILPR, 1), (IBRD, 13), (FBRD, 2), (IFLS, 0x24), (DMACR, 1)] {
        guest.write(offset, value);
    }
    guest.serial.quiesce().unwrap();
    guest.write(CR, 0x381);
    for _ in 0..=FIFO {
        guest.write(DR, b'l'.into());
    }
    guest.write(CR, 0x301);
    guest.write(IMSC, 0x70);
    guest.write(DR, b'o'.into());
    guest
}

#[test]
fn a_restored_port_goes_on_as_the_one_that_was_saved() {
    let mut first = busy();
    let state = saved(&mut first.serial);
    let mut second = Guest::quiet();
    second.serial.restore(Handover::new(state.clone())).unwrap();
    assert_eq!(saved(&mut second.serial), state);
    assert!(second.is_asserted());
    second.serial.resume().unwrap();
    assert_eq!(*second.shown.0.lock().unwrap(), b"o");
    for offset in (0..LEN).step_by(4) {
        let read = |guest: &Guest| guest.registers.read(Access { offset, size: Size::B4 });
        assert_eq!(read(&first), read(&second), "{offset:#x}");
    }
}

#[test]
fn d2_each_byte_of_a_state_that_is_changed_is_refused_or_becomes_what_it_says() {
    let state = saved(&mut busy().serial);
    let (mut refused, mut taken) = (0, 0);
    for at in 0..state.payload.len() {
        for value in [0, 1, 0x7f, 0xff, state.payload[at].wrapping_add(1)] {
            let mut payload = state.payload.to_vec();
            payload[at] = value;
            let changed = SavedState::new(state.kind.clone(), state.version, payload);
            let mut guest = Guest::quiet();
            let before = saved(&mut guest.serial);
            match guest.serial.restore(Handover::new(changed.clone())) {
                Ok(()) => {
                    assert_eq!(saved(&mut guest.serial), changed);
                    guest.serial.resume().unwrap();
                    taken += 1;
                }
                Err(_) => {
                    assert_eq!(saved(&mut guest.serial), before);
                    refused += 1;
                }
            }
        }
    }
    assert!(refused > 0 && taken > 0);
    for len in 0..state.payload.len() {
        let cut = SavedState::new(state.kind.clone(), state.version, state.payload[..len].to_vec());
        Guest::quiet().serial.restore(Handover::new(cut)).unwrap_err();
    }
    assert!(state.payload.len() < TYPEAHEAD_CAPACITY);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// No access breaks the port, and none beyond its registers reaches one.
    #[test]
    fn accesses_are_hostile(accesses in prop::collection::vec(
        (prop_oneof![0..0x60u64, 0xfd0..0x1010u64], 0usize..4, any::<Option<u64>>()), 1..200)) {
        let guest = Guest::open();
        for (offset, size, value) in accesses {
            let size = [Size::B1, Size::B2, Size::B4, Size::B8][size];
            let at = Access { offset, size };
            let fault = match value {
                Some(value) => guest.registers.write(at, value & size.mask()).err(),
                None => match guest.registers.read(at) {
                    Ok(value) => {
                        prop_assert!(value <= size.mask());
                        None
                    }
                    Err(fault) => Some(fault),
                },
            };
            if size == Size::B8 {
                prop_assert_eq!(fault, Some(BusFault::Width));
            } else if offset % 4 != 0 || offset >= LEN {
                prop_assert_eq!(fault, Some(BusFault::Unmapped));
            }
            guest.serial.input().try_write(b"input");
        }
        prop_assert!(guest.board.reports().is_empty());
    }
}
