//! vm-superio's devices in our machines, beside the same devices by themselves.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ossature_bus::state::{SavedState, StateError};
use ossature_bus::testing::TestBoard;
use ossature_bus::{Access, BusFault, Device, DeviceState, Effect, Handover, Mmio, Size};
use ossature_legacy::{Backend, SerialPort, Uart, Written, backend};
use proptest::prelude::*;

use super::serial::{NoEvents, SerialEvents};
use super::uart::{IER_TX, TX_BURST, TX_CAPACITY};
use super::uart_state::PortState;
use super::*;

const DATA: u8 = 0;
const IER: u8 = 1;
const IIR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const LSR_TX: u8 = 0x60;

type Port = ossature_legacy::Serial<SuperioUart>;

/// A machine around a port.
struct Guest {
    serial: Port,
    board: TestBoard,
    registers: Arc<dyn Mmio>,
}

impl Guest {
    fn quiet(backend: Backend) -> Self {
        let mut serial = Port::with_uart("com1", SerialPort::COM1, backend, SuperioUart::new());
        let mut board = TestBoard::default();
        board.attach(&mut serial).unwrap();
        let registers = board.port("registers").unwrap();
        Self { serial, board, registers }
    }

    fn new(backend: Backend) -> Self {
        let mut guest = Self::quiet(backend);
        guest.serial.resume().unwrap();
        guest
    }

    fn read(&self, register: u8) -> u8 {
        self.registers.read(at(register)).unwrap() as u8
    }

    fn write(&self, register: u8, value: u8) {
        assert_eq!(self.registers.write(at(register), value.into()), Ok(Effect::None));
    }

    fn edges(&self) -> u64 {
        self.board.edges("irq").unwrap().take().unwrap()
    }

    /// Prints as a driver does that looks whether the transmitter is ready; returns how much it could.
    fn print(&self, text: &[u8]) -> usize {
        let ready = |_: &&[u8]| self.read(LSR) & LSR_TX == LSR_TX;
        let sent = |burst: &[u8]| {
            burst.iter().for_each(|byte| self.write(DATA, *byte));
            burst.len()
        };
        text.chunks(TX_BURST).take_while(ready).map(sent).sum()
    }

    fn save(&mut self) -> SavedState<'static> {
        match self.serial.save().unwrap() {
            DeviceState::Saved(handover) => handover.state,
            other => panic!("{other:?}"),
        }
    }
}

fn at(register: u8) -> Access {
    Access { offset: register.into(), size: Size::B1 }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

/// A line whose other end is the second value, in both directions.
fn socket() -> (Backend, UnixStream) {
    let (line, user) = UnixStream::pair().unwrap();
    (backend::fds(Some(line.try_clone().unwrap().into()), Some(line.into())).unwrap(), user)
}

#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Counts the edges of the reference.
#[derive(Clone, Default)]
struct Edges(Arc<AtomicU64>);

impl Trigger for Edges {
    type E = ();

    fn trigger(&self) -> std::result::Result<(), ()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Step {
    Read(u8),
    Write(u8, u8),
    Input(Vec<u8>),
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..8_u8).prop_map(Step::Read),
        8 => (0..8_u8, any::<u8>()).prop_map(|(register, value)| Step::Write(register, value)),
        // What a driver does most.
        8 => any::<u8>().prop_map(|value| Step::Write(DATA, value)),
        4 => (0..4_u8).prop_map(|value| Step::Write(IER, value)),
        2 => Just(Step::Write(LCR, 0x03)),
        2 => Just(Step::Write(MCR, 0x0b)),
        4 => prop::collection::vec(any::<u8>(), 0..80).prop_map(Step::Input),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Where the line takes everything, the port is vm-superio's serial port in each register, byte and interrupt.
    #[test]
    fn a_port_is_vm_superios_own_as_long_as_its_line_is_fast(steps in prop::collection::vec(step(), 0..200)) {
        let (ours, theirs, edges) = (Output::default(), Output::default(), Edges::default());
        let mut guest = Guest::new(backend::writer(ours.clone()));
        let mut reference = Serial::new(edges.clone(), theirs.clone());
        for step in steps {
            match &step {
                Step::Read(register) => prop_assert_eq!(guest.read(*register), reference.read(*register)),
                Step::Write(register, value) => {
                    guest.write(*register, *value);
                    reference.write(*register, *value).unwrap();
                }
                Step::Input(bytes) => {
                    let n = guest.serial.input().try_write(bytes);
                    let _ = reference.enqueue_raw_bytes(&bytes[..n]);
                }
                Step::Reset => {
                    guest.serial.reset().unwrap();
                    reference = Serial::new(edges.clone(), theirs.clone());
                }
            }
            let theirs = edges.0.swap(0, Ordering::Relaxed).min(1);
            prop_assert_eq!(guest.edges(), theirs, "edges of {:?}", step);
        }
        // The end of a burst goes out when the guest looks at the port again.
        guest.read(7);
        prop_assert_eq!(&*ours.0.lock().unwrap(), &*theirs.0.lock().unwrap());
        let state = guest.save();
        let saved = PortState::load(&state).unwrap().serial;
        prop_assert_eq!(saved, reference.state());
    }

    /// What is sent comes out once and in order, the guest sees when there is room, and no interrupt for it is lost.
    #[test]
    fn a_transmitter_with_a_slow_line_is_held_back(
        steps in prop::collection::vec((any::<bool>(), 0..40_000_usize, 0..8_u8, any::<u8>()), 0..16),
    ) {
        let mut uart = SuperioUart::new();
        uart.write(IER, IER_TX);
        uart.take_edge();
        let (mut sent, mut out) = (Vec::new(), Vec::new());
        for (sends, count, register, value) in steps {
            let was_ready = uart.read(LSR) & LSR_TX == LSR_TX;
            if sends {
                uart.write(LCR, 3);
                for byte in pattern(count) {
                    match uart.write(DATA, byte) {
                        Written::Sent => sent.push(byte),
                        Written::Overflow => prop_assert_eq!(uart.output_len(), TX_CAPACITY),
                        Written::Register | Written::Thrown => prop_assert!(false, "no loop"),
                    }
                }
                uart.read(IIR);
                uart.take_edge();
                let ready = was_ready && uart.output_len() <= TX_CAPACITY - TX_BURST;
                prop_assert_eq!(uart.read(LSR) & LSR_TX == LSR_TX, ready);
            } else {
                let n = count.min(uart.output().len());
                out.extend_from_slice(&uart.output()[..n]);
                uart.output_taken(n);
                let ready = uart.read(LSR) & LSR_TX == LSR_TX;
                prop_assert_eq!(ready, was_ready || uart.output_len() <= TX_CAPACITY / 2);
                prop_assert_eq!(uart.take_edge(), ready && !was_ready, "the interrupt for room");
                prop_assert!(uart.read(LCR) & 0x80 != 0 || uart.read(IER) == IER_TX);
            }
            // Other registers do not matter, and neither does their order with the divisor's.
            if !matches!(register, DATA | IER | MCR) {
                uart.write(register, value);
            }
        }
        while !uart.output().is_empty() {
            let n = uart.output().len();
            out.extend_from_slice(uart.output());
            uart.output_taken(n);
        }
        prop_assert_eq!(out, sent);
    }

    /// A state is refused, or the port that has it works.
    #[test]
    fn d2_a_changed_state_is_refused_or_works(
        iir in 0..8_u8, ier in 0..18_u8, lsr in any::<u8>(), msr in any::<u8>(), lcr in any::<u8>(), mcr in any::<u8>(),
        sound in prop::bool::weighted(0.9), stalled in any::<bool>(), rx in 0..80_usize,
        tx in prop_oneof![Just(0), Just(TX_CAPACITY / 2 + 1), TX_CAPACITY - 20..=TX_CAPACITY],
    ) {
        let mut serial = SerialState { in_buffer: pattern(rx), ..SerialState::default() };
        (serial.interrupt_identification, serial.interrupt_enable) = (iir, ier);
        (serial.line_control, serial.modem_control) = (lcr, mcr);
        (serial.line_status, serial.modem_status) =
            if sound { (LSR_TX | u8::from(rx > 0), serial.modem_status) } else { (lsr, msr) };
        let state = PortState { serial, tx: pattern(tx), stalled, typeahead: Vec::new() };
        let output = Output::default();
        let mut guest = Guest::quiet(backend::writer(output.clone()));
        let before = guest.save();
        match guest.serial.restore(Handover::new(state.save())) {
            Err(_) => prop_assert_eq!(guest.save(), before),
            Ok(()) => {
                prop_assert!(sound || (lsr, msr) == (LSR_TX | u8::from(rx > 0), 0xb0));
                prop_assert!(rx <= 64 && iir != 0 && ier < 16);
                prop_assert_eq!(guest.save(), state.save());
                guest.serial.resume().unwrap();
                guest.write(LCR, 3);
                guest.write(MCR, 0x0b);
                let got: Vec<_> = (0..rx).map(|_| guest.read(DATA)).collect();
                prop_assert_eq!(got, pattern(rx));
                prop_assert_eq!(guest.read(LSR), LSR_TX);
                guest.write(DATA, b'x');
                guest.read(7);
                let mut all = pattern(tx);
                all.push(b'x');
                prop_assert_eq!(&*output.0.lock().unwrap(), &all);
            }
        }
    }
}

#[test]
fn a_line_that_takes_nothing_blocks_no_vcpu_and_loses_nothing() {
    let (line, mut user) = socket();
    let guest = Guest::new(line);
    guest.write(IER, IER_TX);
    let text = pattern(2 * 1024 * 1024);
    // Ends because the guest sees that the transmitter is not ready.
    let mut sent = guest.print(&text);
    assert!(sent >= TX_CAPACITY - TX_BURST && sent < text.len(), "{sent}");
    assert_eq!(guest.read(LSR) & LSR_TX, 0);
    guest.edges();
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        user.read_to_end(&mut got).unwrap();
        got
    });
    while sent < text.len() {
        // Sleeps until the interrupt that tells of room.
        let event = guest.board.edges("irq").unwrap();
        while event.take().unwrap() == 0 {
            std::thread::yield_now();
        }
        guest.read(IIR);
        sent += guest.print(&text[sent..]);
    }
    drop(guest);
    assert!(reader.join().unwrap() == text);
}

#[test]
fn input_comes_when_the_guest_listens_and_as_far_as_there_is_room() {
    let (line, mut user) = socket();
    let guest = Guest::new(line);
    let text = pattern(1000);
    user.write_all(&text).unwrap();
    assert_eq!(guest.serial.input().try_write(b"x"), 0, "nobody listens");
    guest.write(IER, 0x01);
    let mut got = Vec::new();
    while got.len() < text.len() {
        if guest.read(LSR) & 1 != 0 {
            got.push(guest.read(DATA));
        } else {
            std::thread::yield_now();
        }
    }
    assert_eq!(got, text);
    assert!(guest.edges() > 0);
}

#[test]
fn a_port_that_is_saved_in_the_middle_sends_each_byte_once() {
    let (line, mut user) = socket();
    let mut guest = Guest::new(line);
    let text = pattern(2 * 1024 * 1024);
    let sent = guest.print(&text);
    guest.serial.quiesce().unwrap();
    let state = guest.save();
    drop(guest);
    let mut first = Vec::new();
    user.read_to_end(&mut first).unwrap();

    let (line, mut user) = socket();
    let mut guest = Guest::quiet(line);
    guest.serial.restore(Handover::new(state)).unwrap();
    assert_eq!(guest.read(LSR) & LSR_TX, 0, "still not ready");
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        user.read_to_end(&mut got).unwrap();
        got
    });
    guest.serial.resume().unwrap();
    drop(guest);
    first.extend(reader.join().unwrap());
    assert!(first == text[..sent]);
}

#[test]
fn a_shared_line_is_asserted_while_iir_names_a_condition() {
    let port = Port::with_uart("com1", SerialPort::COM1, backend::none(), SuperioUart::new());
    let mut serial = port.shared_line();
    let mut board = TestBoard::default();
    board.attach(&mut serial).unwrap();
    serial.resume().unwrap();
    let registers = board.port("registers").unwrap();
    assert_eq!(registers.write(at(IER), 0x03), Ok(Effect::None));
    assert!(board.is_asserted("irq"), "the transmitter is ready");
    assert_eq!(registers.read(at(IIR)), Ok(0xc2));
    assert!(!board.is_asserted("irq"));
    assert_eq!(serial.input().try_write(b"ab"), 2);
    assert!(board.is_asserted("irq"));
    assert_eq!(registers.write(at(IER), 0), Ok(Effect::None));
    assert!(!board.is_asserted("irq"), "not enabled");
}

#[test]
fn events_are_told() {
    #[derive(Clone, Default)]
    struct Lost(Arc<AtomicU64>);
    impl SerialEvents for Lost {
        fn buffer_read(&self) {}
        fn out_byte(&self) {}
        fn tx_lost_byte(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn in_buffer_empty(&self) {}
    }
    let lost = Lost::default();
    let mut uart = SuperioUart::with_events(lost.clone());
    for _ in 0..TX_CAPACITY + 3 {
        uart.write(DATA, b'x');
    }
    uart.reset();
    uart.write(DATA, b'x');
    assert_eq!(lost.0.load(Ordering::Relaxed), 4);
    assert_eq!(uart.output_len(), TX_CAPACITY);
}

#[test]
fn a_state_of_vm_superios_is_taken_in_and_given_out() {
    let mut serial = Serial::new(Edges::default(), std::io::sink());
    serial.write(IER, 3).unwrap();
    serial.write(7, 9).unwrap();
    serial.enqueue_raw_bytes(b"input").unwrap();
    let state = serial.state();
    let mut uart = SuperioUart::from_state(&state, NoEvents).unwrap();
    assert_eq!(uart.state(), state);
    assert!(uart.take_edge(), "IIR names conditions");
    let too_long = SerialState { in_buffer: vec![0; 65], line_status: 0x61, ..SerialState::default() };
    let refused = SuperioUart::from_state(&too_long, NoEvents).unwrap_err();
    assert!(matches!(refused, StateError::Inconsistent { field: "rx", .. }), "{refused}");
}

#[test]
fn the_clock_is_vm_superios_in_each_register() {
    let mut rtc = SuperioRtc::new("rtc").at(0x901_0000);
    assert_eq!(rtc.requires().registers[0].placement, ossature_bus::Placement::Fixed(0x901_0000));
    let mut board = TestBoard::default();
    board.attach(&mut rtc).unwrap();
    let clock = board.port("registers").unwrap();
    let word = |offset| Access { offset, size: Size::B4 };
    let mut reference = Rtc::new();
    for (offset, value) in [(0x4, 7), (0x10, 3), (0x1c, 1), (0x8, 5_000), (0x500, 1)] {
        assert_eq!(clock.write(word(offset), value), Ok(Effect::None));
        reference.write(offset as u16, &(value as u32).to_le_bytes());
    }
    // All but the time itself.
    for offset in (4..0x1000).step_by(4) {
        let mut data = [0; 4];
        reference.read(offset as u16, &mut data);
        assert_eq!(clock.read(word(offset)), Ok(u32::from_le_bytes(data).into()), "{offset:#x}");
    }
    let now = clock.read(word(0)).unwrap();
    let mut data = [0; 4];
    reference.read(0, &mut data);
    assert!(5_000 <= now && now <= u32::from_le_bytes(data).into());
    assert_eq!(clock.read(Access { offset: 0, size: Size::B1 }), Err(BusFault::Width));
    assert_eq!(clock.write(word(0x1000), 0), Err(BusFault::Unmapped));

    // Saved, reset, restored.
    let DeviceState::Saved(saved) = rtc.save().unwrap() else { panic!("no state") };
    rtc.reset().unwrap();
    assert_eq!(clock.read(word(8)), Ok(0));
    rtc.restore(saved).unwrap();
    assert_eq!(clock.read(word(8)), Ok(5_000));
    assert!(clock.read(word(0)).unwrap() >= now);
    let foreign = SavedState::new("another", 1, &b""[..]);
    assert!(rtc.restore(Handover::new(foreign)).is_err());
}

#[test]
fn the_keyboard_controller_resets_the_machine_and_does_nothing_else() {
    let mut i8042 = SuperioI8042::new("i8042");
    let mut board = TestBoard::default();
    board.attach(&mut i8042).unwrap();
    for (port, offset) in [("data", 0), ("command", 4)] {
        let port = board.port(port).unwrap();
        let asked = Arc::new(AtomicU64::new(0));
        let mut reference = I8042Device::new(Edges(asked.clone()));
        assert_eq!(port.read(at(0)), Ok(reference.read(offset).into()));
        for value in 0..=0xff {
            let effect = port.write(at(0), value.into()).unwrap();
            reference.write(offset, value).unwrap();
            assert_eq!(effect != Effect::None, asked.swap(0, Ordering::Relaxed) > 0, "{value:#x}");
        }
        assert_eq!(port.read(at(1)), Err(BusFault::Unmapped));
        assert_eq!(port.read(Access { offset: 0, size: Size::B2 }), Err(BusFault::Width));
    }
    assert!(matches!(i8042.save().unwrap(), DeviceState::Stateless));
}
