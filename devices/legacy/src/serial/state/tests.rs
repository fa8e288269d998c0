use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use ossature_bus::{Device, Effect, Handover};
use proptest::prelude::*;

use super::super::model::Uart;
use super::super::tests::until;
use super::super::uart::Uart16550;
use super::*;
use crate::serial::{Serial, SerialPort};
use crate::testing::state::{d2_mutations, round_trip, saved};
use crate::testing::{Attachment, attach, attach_quiet};
use crate::{Backend, backend};

const DATA: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const FCR: u64 = 2;
const MCR: u64 = 4;
const LSR: u64 = 5;

fn port(backend: Backend) -> Serial {
    Serial::new("com1", SerialPort::COM1, backend)
}

fn silent() -> Serial {
    port(backend::none())
}

fn write(machine: &Attachment, offset: u64, value: u8) {
    assert_eq!(machine.write(0, offset, value), Effect::None);
}

/// What the guest finds in the receiver, which ends.
fn received(machine: &Attachment) -> Vec<u8> {
    let ready = |_: &i32| machine.read(0, LSR) & 1 != 0;
    (0..10_000).take_while(ready).map(|_| machine.read(0, DATA)).collect()
}

/// A state in which every field says something.
fn busy() -> SerialState {
    let uart = UartState {
        ier: 0x07,
        lcr: 0x1b,
        mcr: 0x0b,
        scratch: 0x5a,
        divisor: [1, 2],
        fifo: true,
        overrun: true,
        tx_ready: true,
        tx_stalled: false,
        raised: 0x07,
        rx: b"in".to_vec(),
        tx: b"out".to_vec(),
        looped: false,
    };
    SerialState { uart, typeahead: b"more".to_vec() }
}

/// What a driver does that has lost count: no register hangs, and what was received ends.
fn obeys(_: &mut Serial, machine: &Attachment) {
    write(machine, 3, 0x03);
    let received = received(machine).len();
    assert!(received <= RX_CAPACITY + TYPEAHEAD_CAPACITY, "{received}");
    for offset in 0..8 {
        write(machine, offset, 0xff);
        machine.read(0, offset);
    }
    write(machine, 3, 0x03);
    write(machine, MCR, 0x0b);
    // A transmitter that is ready, and a receiver that listens and interrupts.
    assert_eq!(machine.read(0, LSR) & 0x60, 0x60);
    write(machine, IER, 0);
    write(machine, FCR, 0x07);
    write(machine, IER, 0x02);
    assert_eq!(machine.read(0, IIR) & 0x0f, 0x02);
    machine.interrupts();
    write(machine, DATA, b'x');
    assert_eq!(machine.interrupts(), 1);
}

#[test]
fn a_guest_cannot_tell_the_restored_port_from_the_saved_one() {
    round_trip(silent, |serial, what| {
        serial.input().try_write(&vec![what; usize::from(what) / 3]);
    });
}

#[test]
fn d2_fields_are_refused_or_taken() {
    d2_mutations(silent, &busy().save(), obeys);
}

#[test]
fn d2_fields_that_contradict_each_other_are_refused() {
    let refused = |change: fn(&mut UartState)| {
        let mut state = busy();
        change(&mut state.uart);
        let mut serial = silent();
        let before = saved(&mut serial);
        let refused = serial.restore(Handover::new(state.save())).unwrap_err();
        assert_eq!(saved(&mut serial), before);
        refused
    };
    let field = |change| match refused(change) {
        StateError::Inconsistent { field, .. } => field,
        other => panic!("{other}"),
    };
    assert_eq!(field(|uart| uart.fifo = false), "rx");
    assert_eq!(field(|uart| uart.tx_stalled = true), "tx_stalled");
    assert_eq!(field(|uart| uart.tx = vec![0; TX_CAPACITY - 15]), "tx_stalled");
    assert_eq!(field(|uart| uart.rx.clear()), "raised");
    assert_eq!(field(|uart| uart.raised = 0x80), "raised");
    let value = |field, value| StateError::Value { field, value };
    assert_eq!(refused(|uart| uart.ier |= 0x10), value("ier", 0x17));
    assert_eq!(refused(|uart| uart.mcr |= 0x20), value("mcr", 0x2b));
    let too_long = |change, name| {
        let refused = refused(change);
        assert!(matches!(refused, StateError::TooLong { field, .. } if field == name), "{refused}");
    };
    too_long(|uart| uart.rx = vec![0; RX_CAPACITY + 1], "rx");
    too_long(|uart| uart.tx = vec![0; TX_CAPACITY + 1], "tx");
}

#[test]
fn d2_the_fullest_port_can_be_saved_and_restored() {
    let mut state = busy();
    state.uart.tx_stalled = true;
    state.uart.rx = vec![1; RX_CAPACITY];
    state.uart.tx = vec![2; TX_CAPACITY];
    state.typeahead = vec![3; TYPEAHEAD_CAPACITY - RX_CAPACITY];
    let mut serial = silent();
    serial.restore(Handover::new(state.save())).unwrap();
    assert_eq!(saved(&mut serial), state.save());
    // Also after the guest has thrown away what is in the receiver.
    let mut serial = silent();
    let machine = attach_quiet(&mut serial);
    serial.restore(Handover::new(state.save())).unwrap();
    write(&machine, FCR, 0x07);
    let fuller = saved(&mut serial);
    silent().restore(Handover::new(fuller)).unwrap();
    // With one byte more there would be no place for it.
    state.typeahead.push(3);
    let refused = silent().restore(Handover::new(state.save())).unwrap_err();
    assert!(matches!(refused, StateError::Inconsistent { field: "typeahead", .. }), "{refused}");
}

/// A line whose other end does not read: it has taken `taken` bytes and takes no more.
fn blocked() -> (Backend, UnixStream, usize) {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let taken = std::iter::from_fn(|| ours.write(b"#").ok()).sum();
    ours.set_nonblocking(false).unwrap();
    (backend::fds(None, Some(ours.into())).unwrap(), theirs, taken)
}

/// All that `end` got after the bytes that had blocked it.
fn rest(mut end: UnixStream, taken: usize) -> Vec<u8> {
    let mut got = Vec::new();
    end.read_to_end(&mut got).unwrap();
    got.split_off(taken)
}

/// A writer whose bytes the test takes.
struct Out(mpsc::Sender<u8>);

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        bytes.iter().for_each(|byte| self.0.send(*byte).unwrap());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn writer() -> (Backend, mpsc::Receiver<u8>) {
    let (sender, out) = mpsc::channel();
    (backend::writer(Out(sender)), out)
}

/// A guest whose driver sleeps until the transmitter is ready, which a line that is blocked keeps it from being.
fn stalled() -> (Serial, Attachment, UnixStream, usize, Vec<u8>) {
    let (line, end, taken) = blocked();
    let mut serial = port(line);
    let machine = attach(&mut serial);
    write(&machine, IER, 0x02);
    let mut text = Vec::new();
    while machine.read(0, LSR) & 0x20 != 0 {
        machine.read(0, IIR);
        for _ in 0..16 {
            text.push(text.len() as u8);
            write(&machine, DATA, text[text.len() - 1]);
        }
    }
    machine.interrupts();
    serial.quiesce().unwrap();
    (serial, machine, end, taken, text)
}

#[test]
fn b4_a_transmission_goes_on_where_it_was_saved() {
    let (mut serial, _, mut end, taken, text) = stalled();
    let state = saved(&mut serial);
    // Now the line has room.
    end.read_exact(&mut vec![0; taken]).unwrap();
    serial.quiesce().unwrap();
    drop(serial);
    assert_eq!(rest(end, 0), b"", "the output is the restored port's");

    let (line, out) = writer();
    let mut restored = port(line);
    let machine = attach_quiet(&mut restored);
    restored.restore(Handover::new(state)).unwrap();
    assert_eq!(machine.read(0, LSR) & 0x60, 0, "the driver still has to wait");
    assert_eq!(out.try_iter().count(), 0, "nothing goes out before the machine goes on");
    restored.resume().unwrap();
    assert_eq!(out.try_iter().collect::<Vec<_>>(), text);
    assert_eq!(machine.interrupts(), 1, "what the driver waits for");
    assert_eq!(machine.read(0, IIR) & 0x0f, 0x02);
    write(&machine, DATA, b'!');
    drop(restored);
    assert_eq!(out.try_iter().collect::<Vec<_>>(), b"!");
}

#[test]
fn b4_a_port_that_was_saved_and_goes_on_sends_its_output_itself() {
    let (mut serial, machine, end, taken, text) = stalled();
    saved(&mut serial);
    serial.resume().unwrap();
    let reader = std::thread::spawn(move || rest(end, taken));
    // The driver sleeps until its interrupt.
    until(|| machine.interrupts() == 1);
    write(&machine, DATA, b'!');
    drop(serial);
    assert_eq!(reader.join().unwrap(), [&text[..], b"!"].concat());
}

#[test]
fn b4_a_state_that_is_never_resumed_sends_nothing() {
    let (mut serial, ..) = stalled();
    let (line, out) = writer();
    let mut restored = port(line);
    attach_quiet(&mut restored);
    restored.restore(Handover::new(saved(&mut serial))).unwrap();
    drop(restored);
    assert_eq!(out.try_iter().count(), 0);
}

#[test]
fn what_was_typed_ahead_is_restored_behind_the_receiver() {
    let typed: Vec<u8> = (0..200).map(|n| b'a' + n % 26).collect();
    let mut state = busy();
    state.uart.rx = typed[..RX_CAPACITY].to_vec();
    state.typeahead = typed[RX_CAPACITY..].to_vec();
    // A line without escape keys: what was typed is the guest's all the same.
    let mut restored = port(backend::fds(Some(File::open("/dev/null").unwrap().into()), None).unwrap());
    let machine = attach_quiet(&mut restored);
    restored.restore(Handover::new(state.save())).unwrap();
    restored.resume().unwrap();
    assert_eq!(received(&machine), typed);
}

proptest! {
    /// The UART by itself, with a host that takes its output whenever it likes.
    #[test]
    fn a_uart_in_any_state_goes_on_the_same(
        before in prop::collection::vec((0u8..12, any::<u8>()), 0..200),
        burst in prop_oneof![Just(0), Just(TX_CAPACITY - 8), Just(TX_CAPACITY + 1)],
        after in prop::collection::vec((0u8..12, any::<u8>()), 0..100),
    ) {
        let step = |uart: &mut Uart16550, (what, value): (u8, u8)| {
            let answer = match what {
                0..=7 => format!("{:?}", uart.write(what, value)),
                8 => uart.read(value % 8).to_string(),
                9 => uart.receive(&vec![value; value.into()]).to_string(),
                10 => {
                    uart.output_taken(usize::from(value) * 256);
                    String::new()
                }
                _ => uart.read(2).to_string(),
            };
            (answer, uart.take_edge())
        };
        let mut uart = Uart16550::new();
        for _ in 0..burst {
            uart.write(0, 7);
        }
        for what in before {
            step(&mut uart, what);
        }
        let state = SerialState { uart: uart.state(), typeahead: Vec::new() };
        let loaded = SerialState::load(&state.save())?;
        prop_assert!(loaded == state);
        let mut restored = Uart16550::of(loaded.uart)?;
        for what in after {
            prop_assert_eq!(step(&mut uart, what), step(&mut restored, what));
        }
        prop_assert!(uart.state() == restored.state());
    }
}
