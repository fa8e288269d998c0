//! The port as a machine, a guest's driver and a user at the other end of the line use it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Instant;

use ossature_bus::{Effect, Placement};
use proptest::prelude::*;
use rustix::event::PollFlags;
use rustix::fs::OFlags;
use rustix::pty::OpenptFlags;

use super::registers::{RX_CAPACITY, TX_CAPACITY, TYPEAHEAD_CAPACITY};
use super::*;
use crate::backend;
use crate::backend::line::{Line, Pollable, Pollables};
use crate::escape::Escape;
use crate::testing::state::saved;
use crate::testing::{Attachment, attach, attach_quiet, hostile, lives_twice, metric, reset_is_complete};

const DATA: u64 = 0;
const IER: u64 = 1;
const FCR: u64 = 2;
const MCR: u64 = 4;
const LSR: u64 = 5;

/// The guest's end of a port.
struct Guest {
    serial: Serial,
    machine: Attachment,
}

impl Guest {
    fn new(backend: Backend) -> Self {
        let mut serial = Serial::new("com1", SerialPort::COM1, backend);
        let machine = attach(&mut serial);
        Self { serial, machine }
    }

    /// Opened by a driver: FIFO and receive interrupt on, RTS set.
    fn open(backend: Backend) -> Self {
        let guest = Self::new(backend);
        guest.write(FCR, 0x07);
        guest.write(IER, 0x01);
        guest.write(MCR, 0x0b);
        guest
    }

    fn read(&self, offset: u64) -> u8 {
        self.machine.read(0, offset)
    }

    fn write(&self, offset: u64, value: u8) {
        assert_eq!(self.machine.write(0, offset, value), Effect::None);
    }

    fn print(&self, text: &[u8]) {
        text.iter().for_each(|byte| self.write(DATA, *byte));
    }

    /// Prints as a driver does that sleeps while the transmitter is busy; returns how much it could.
    fn print_while_ready(&self, text: &[u8]) -> usize {
        let ready = |_: &&[u8]| self.read(LSR) & 0x20 != 0;
        text.chunks(16)
            .take_while(ready)
            .map(|burst| {
                self.print(burst);
                burst.len()
            })
            .sum()
    }

    /// Waits for `len` bytes of input.
    fn input(&self, len: usize) -> Vec<u8> {
        let mut got = Vec::new();
        until(|| {
            while got.len() < len && self.read(LSR) & 1 != 0 {
                got.push(self.read(DATA));
            }
            got.len() == len
        });
        got
    }

    fn metric(&self, name: &str) -> u64 {
        metric(&self.serial, name)
    }
}

/// Waits until `done`; the other side is a thread of the port or of the kernel.
pub(super) fn until(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "nothing happens");
        std::thread::yield_now();
    }
}

fn pipe() -> (File, File) {
    let (read, write) = rustix::pipe::pipe().unwrap();
    (read.into(), write.into())
}

fn input_only(file: File) -> Backend {
    backend::fds(Some(file.into()), None).unwrap()
}

fn output_only(file: impl Into<OwnedFd>) -> Backend {
    backend::fds(None, Some(file.into())).unwrap()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

fn read_exact(from: &mut impl Read, len: usize) -> Vec<u8> {
    let mut buf = vec![0; len];
    from.read_exact(&mut buf).unwrap();
    buf
}

#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line whose input never ends, and which counts what was taken of it.
struct Endless {
    taken: Arc<AtomicU64>,
    ready: Arc<File>,
}

impl Line for Endless {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let start = self.taken.fetch_add(buf.len() as u64, Ordering::SeqCst);
        buf.iter_mut().zip(start..).for_each(|(byte, n)| *byte = n as u8);
        Ok(buf.len())
    }

    fn watch(&self, input: bool, _output: bool) -> Pollables {
        let ready: Pollable = self.ready.clone();
        if input { vec![(ready, PollFlags::IN)] } else { Pollables::new() }
    }

    fn needs_loop(&self) -> bool {
        true
    }
}

#[test]
fn output_is_at_the_writer_when_the_access_is_over() {
    let sink = Sink::default();
    let guest = Guest::new(backend::writer(sink.clone()));
    guest.print(b"hello\n");
    assert_eq!(*sink.0.lock().unwrap(), b"hello\n");
    assert_eq!(guest.metric("output_bytes"), 6);
}

/// Counts the calls.
#[derive(Clone, Default)]
struct Calls(Sink, Arc<AtomicU64>);

impl Write for Calls {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_burst_between_interrupts_is_one_write() {
    let calls = Calls::default();
    let guest = Guest::open(backend::writer(calls.clone()));
    let seen = || (calls.0.0.lock().unwrap().len(), calls.1.load(Ordering::SeqCst));
    // Without the interrupt nobody says that the guest will be back: byte by byte.
    guest.print(b"abc");
    assert_eq!(seen(), (3, 3));
    guest.write(IER, 0x02);
    guest.machine.interrupts();
    assert_eq!(guest.read(FCR) & 0x0f, 0x02);
    guest.print(&[b'x'; 15]);
    assert_eq!(guest.machine.interrupts(), 1);
    assert_eq!(seen(), (3, 3));
    guest.print(b"y");
    assert_eq!(seen(), (19, 4), "a full FIFO does not wait");
    // The interrupt's handler looks at the port.
    guest.print(b"ok\n");
    assert_eq!(guest.read(FCR) & 0x0f, 0x02);
    assert_eq!(seen(), (22, 5));
    guest.print(b"end");
    drop(guest);
    assert_eq!(seen().0, 25, "nothing is lost at the end");
}

#[test]
fn it_asks_for_what_guests_expect() {
    for (port, base, irq) in [
        (SerialPort::COM1, 0x3f8, 4),
        (SerialPort::COM2, 0x2f8, 3),
        (SerialPort::COM3, 0x3e8, 4),
        (SerialPort::COM4, 0x2e8, 3),
    ] {
        let requires = Serial::new("com", port, backend::none()).requires();
        assert_eq!(
            (requires.registers[0].placement, requires.registers[0].size),
            (Placement::Fixed(base), 8)
        );
        assert_eq!(requires.interrupts[0].placement, Placement::Fixed(irq));
    }
}

#[test]
fn a_handle_feeds_the_guest() {
    let guest = Guest::open(backend::none());
    let input = guest.serial.input();
    assert_eq!(guest.machine.interrupts(), 0);
    assert_eq!(input.clone().try_write(b"ls\r"), 3);
    assert_eq!(guest.machine.interrupts(), 1);
    assert_eq!(guest.input(3), b"ls\r");
    // Longer than the FIFO: waits for the guest.
    let text = pattern(1000);
    let sent = text.clone();
    let writer = std::thread::spawn(move || input.write_all(&sent));
    assert_eq!(guest.input(1000), text);
    writer.join().unwrap().unwrap();
}

#[test]
fn a_handle_that_waits_is_told_when_the_port_is_gone() {
    let guest = Guest::open(backend::none());
    let input = guest.serial.input();
    let writer = std::thread::spawn(move || input.write_all(&[0; 1000]));
    until(|| guest.metric("input_bytes") == RX_CAPACITY as u64);
    drop(guest);
    assert_eq!(writer.join().unwrap().unwrap_err().kind(), io::ErrorKind::NotConnected);
}

#[test]
fn b3_a_gibibyte_for_a_guest_that_never_reads() {
    let guest = Guest::open(backend::none());
    let input = guest.serial.input();
    let chunk = vec![b'x'; 1 << 20];
    let taken: usize = (0..1024).map(|_| input.try_write(&chunk)).sum();
    assert_eq!(taken, RX_CAPACITY);
    guest.input(RX_CAPACITY);
    assert_eq!(input.try_write(&chunk), RX_CAPACITY);
}

#[test]
fn b3_a_source_that_never_ends_is_read_as_the_guest_reads() {
    let taken = Arc::new(AtomicU64::new(0));
    let ready = Arc::new(File::open("/dev/zero").unwrap());
    let line = Endless { taken: taken.clone(), ready };
    let mut guest = Guest::open(Backend { line: Box::new(line), on_key: None });
    until(|| taken.load(Ordering::SeqCst) == RX_CAPACITY as u64);
    // The source is ready all the time: a thread that looked at it would turn far more often than it is
    // woken here.
    for _ in 0..1000 {
        assert_eq!(guest.read(LSR) & 1, 1);
        guest.serial.quiesce().unwrap();
        guest.serial.resume().unwrap();
        std::thread::yield_now();
    }
    assert_eq!(taken.load(Ordering::SeqCst), RX_CAPACITY as u64);
    assert!(guest.metric("wakeups") <= 1010, "{}", guest.metric("wakeups"));
    let got = guest.input(1 << 16);
    assert!(got.iter().zip(0u64..).all(|(byte, n)| *byte == n as u8));
    assert!(taken.load(Ordering::SeqCst) <= (1 << 16) + RX_CAPACITY as u64);
}

#[test]
fn input_waits_for_the_guest_to_listen() {
    let (read, mut write) = pipe();
    let guest = Guest::new(input_only(read));
    write.write_all(b"root\n").unwrap();
    // A driver that opens the port throws away what is in the FIFO.
    guest.write(FCR, 0x07);
    guest.read(DATA);
    guest.write(IER, 0x05);
    assert_eq!(guest.input(5), b"root\n");
}

#[test]
fn the_end_of_the_input_ends_nothing_else() {
    let (read, mut write) = pipe();
    let (mut out, to) = pipe();
    let mut guest = Guest::open(backend::fds(Some(read.into()), Some(to.into())).unwrap());
    write.write_all(b"bye").unwrap();
    drop(write);
    assert_eq!(guest.input(3), b"bye");
    for _ in 0..1000 {
        guest.serial.quiesce().unwrap();
        guest.serial.resume().unwrap();
        std::thread::yield_now();
    }
    assert!(guest.metric("wakeups") <= 1010, "{}", guest.metric("wakeups"));
    guest.print(b"still here");
    assert_eq!(read_exact(&mut out, 10), b"still here");
    assert_eq!(guest.serial.input().try_write(b"x"), 1);
}

#[test]
fn a_full_pipe_stops_neither_a_vcpu_nor_a_pause() {
    let (mut read, write) = pipe();
    let mut guest = Guest::open(output_only(write));
    let text = pattern(1 << 20);
    let sent = guest.print_while_ready(&text);
    assert!((TX_CAPACITY..1 << 20).contains(&sent), "{sent}");
    guest.serial.quiesce().unwrap();
    let waiting = guest.metric("output_waiting_bytes");
    assert!(waiting > 0);
    // Nothing moves while the machine is paused, whatever the reader does.
    let mut got = read_exact(&mut read, sent - waiting as usize);
    assert_eq!(guest.metric("output_waiting_bytes"), waiting);
    guest.serial.resume().unwrap();
    got.extend(read_exact(&mut read, waiting as usize));
    assert_eq!(got, text[..sent]);
    assert_eq!(guest.metric("output_lost_bytes"), 0);
    assert_eq!(guest.metric("output_stalls"), 1);
}

#[test]
fn a_transmitter_that_was_busy_interrupts_when_the_reader_has_read() {
    let (mut read, write) = pipe();
    let guest = Guest::open(output_only(write));
    guest.write(IER, 0x02);
    let sent = guest.print_while_ready(&pattern(1 << 20));
    assert_eq!(guest.read(FCR) & 0x0f, 0x01, "no interrupt while the transmitter is busy");
    guest.machine.interrupts();
    read_exact(&mut read, sent);
    until(|| guest.machine.interrupts() > 0);
    assert_eq!(guest.read(FCR) & 0x0f, 0x02);
    assert_ne!(guest.read(LSR) & 0x20, 0);
}

#[test]
fn what_a_driver_forces_into_a_full_queue_is_lost_and_counted() {
    let (_read, write) = pipe();
    let guest = Guest::open(output_only(write));
    let sent = guest.print_while_ready(&pattern(1 << 20));
    guest.print(&[0; 1000]);
    let lost = guest.metric("output_lost_bytes");
    assert!(lost >= 1000 - 16 && guest.metric("output_waiting_bytes") <= TX_CAPACITY as u64, "{sent} {lost}");
}

#[test]
fn the_last_output_is_handed_over_before_the_port_is_gone() {
    let (mut read, write) = pipe();
    let guest = Guest::open(output_only(write));
    let text = pattern(1 << 20);
    let sent = guest.print_while_ready(&text);
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        read.read_to_end(&mut got).unwrap();
        got
    });
    drop(guest);
    assert_eq!(reader.join().unwrap(), text[..sent]);
}

#[test]
fn a_port_whose_reader_never_comes_back_ends_all_the_same() {
    let (_read, write) = pipe();
    let guest = Guest::open(output_only(write));
    guest.print_while_ready(&pattern(1 << 20));
    assert!(guest.metric("output_waiting_bytes") > 0);
    drop(guest);
}

#[test]
fn b13_a_reader_that_has_gone_is_reported_once() {
    let (read, write) = pipe();
    let guest = Guest::open(output_only(write));
    drop(read);
    guest.print(&[b'x'; 10_000]);
    assert_eq!(guest.metric("output_lost_bytes"), 10_000);
    let events = guest.machine.reports();
    assert!(
        matches!(&events[..], [DeviceEvent::HostError { reason }] if reason.contains("output")),
        "{events:?}"
    );
}

#[test]
fn a_socket_as_standard_output_cannot_be_opened_anew_and_still_never_blocks() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let guest = Guest::open(output_only(theirs));
    let text = pattern(1 << 22);
    let sent = guest.print_while_ready(&text);
    assert!(sent < text.len());
    assert_eq!(read_exact(&mut ours, sent), text[..sent]);
}

#[test]
fn a_file_is_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    std::fs::write(&path, "before\n").unwrap();
    let guest = Guest::open(backend::file(&path).unwrap());
    guest.print(b"after\n");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "before\nafter\n");
    drop(guest);
    assert!(backend::file(dir.path()).is_err());
}

#[test]
fn a_pseudo_terminal_is_raw_and_outlives_its_users() {
    let (backend, path) = backend::pty().unwrap();
    let guest = Guest::open(backend);
    guest.print(b"nobody hears this");
    until(|| guest.metric("output_lost_bytes") == 17);
    for round in 0..2 {
        let mut user = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        guest.print(b"login:\n");
        assert_eq!(read_exact(&mut user, 7), b"login:\n", "round {round}");
        user.write_all(b"root\r\x03").unwrap();
        assert_eq!(guest.input(6), b"root\r\x03");
    }
}

#[test]
fn a_socket_has_one_client_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("serial");
    let guest = Guest::open(backend::socket(&path).unwrap());
    guest.print(b"nobody");
    assert_eq!(guest.metric("output_lost_bytes"), 6);
    for round in 0..3 {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"in").unwrap();
        assert_eq!(guest.input(2), b"in", "round {round}");
        guest.print(b"out");
        assert_eq!(read_exact(&mut client, 3), b"out");
    }
    assert_eq!(backend::socket(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    assert_eq!(guest.machine.reports().len(), 0);
    let input = guest.serial.input();
    drop(guest);
    assert!(!path.exists(), "a handle keeps the line open");
    assert_eq!(input.try_write(b"x"), 0);
}

#[test]
fn a_socket_that_listens_already_serves_as_one_with_a_path_and_keeps_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("serial");
    let guest = Guest::open(backend::listener(UnixListener::bind(&path).unwrap()).unwrap());
    for round in 0..2 {
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"in").unwrap();
        assert_eq!(guest.input(2), b"in", "round {round}");
        guest.print(b"out");
        assert_eq!(read_exact(&mut client, 3), b"out");
    }
    drop(guest);
    assert!(path.exists());
}

#[test]
fn a_connected_stream_is_a_line_until_its_peer_goes() {
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let guest = Guest::open(backend::stream(theirs).unwrap());
    ours.write_all(b"in").unwrap();
    assert_eq!(guest.input(2), b"in");
    // The end of the input leaves the output as it is.
    ours.shutdown(Shutdown::Write).unwrap();
    guest.print(b"out");
    assert_eq!(read_exact(&mut ours, 3), b"out");
    drop(ours);
    guest.print(b"nobody");
    until(|| guest.metric("output_lost_bytes") == 6);
    assert_eq!(guest.machine.reports().len(), 0);
}

#[test]
fn output_that_waits_for_a_client_that_goes_is_dropped_and_the_guest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("serial");
    let guest = Guest::open(backend::socket(&path).unwrap());
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"in").unwrap();
    assert_eq!(guest.input(2), b"in");
    let text = pattern(1 << 22);
    assert!(guest.print_while_ready(&text) < text.len());
    drop(client);
    until(|| guest.metric("output_waiting_bytes") == 0);
}

#[test]
fn a_pseudo_terminal_that_is_open_already_is_made_raw() {
    let (main, other) = open_pty();
    let path = rustix::pty::ptsname(&main, Vec::new()).unwrap().into_string().unwrap();
    let guest = Guest::open(backend::pty_from(main, other).unwrap());
    let mut user = OpenOptions::new().read(true).write(true).open(path).unwrap();
    guest.print(b"login:\n");
    assert_eq!(read_exact(&mut user, 7), b"login:\n");
    user.write_all(b"root\r\x03").unwrap();
    assert_eq!(guest.input(6), b"root\r\x03");
}

/// As openpty(3).
fn open_pty() -> (OwnedFd, OwnedFd) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
    let main = rustix::pty::openpt(flags).unwrap();
    rustix::pty::unlockpt(&main).unwrap();
    let other = rustix::pty::ioctl_tiocgptpeer(&main, flags).unwrap();
    (main, other)
}

#[test]
fn a_second_client_waits_until_the_first_has_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("serial");
    let guest = Guest::open(backend::socket(&path).unwrap());
    let mut first = UnixStream::connect(&path).unwrap();
    first.write_all(b"1").unwrap();
    assert_eq!(guest.input(1), b"1");
    let mut second = UnixStream::connect(&path).unwrap();
    second.write_all(b"2").unwrap();
    guest.print(b"for the first");
    assert_eq!(read_exact(&mut first, 13), b"for the first");
    drop(first);
    assert_eq!(guest.input(1), b"2");
    guest.print(b"for the second");
    assert_eq!(read_exact(&mut second, 14), b"for the second");
}

#[test]
fn the_escape_keys_work_when_the_guest_hangs() {
    let (read, mut write) = pipe();
    let (send, keys) = mpsc::channel();
    let guest = Guest::new(input_only(read).with_escape_keys(move |key| send.send(key).unwrap()));
    write.write_all(&[b'x'; 10_000]).unwrap();
    write.write_all(b"\x01h\x01x").unwrap();
    assert_eq!([keys.recv().unwrap(), keys.recv().unwrap()], [Escape::Help, Escape::Quit]);
    assert_eq!(guest.metric("input_lost_bytes"), 10_000 - TYPEAHEAD_CAPACITY as u64);
}

#[test]
fn what_was_typed_ahead_arrives_when_the_guest_listens() {
    let (read, mut write) = pipe();
    let (send, keys) = mpsc::channel();
    let guest = Guest::new(input_only(read).with_escape_keys(move |key| send.send(key).unwrap()));
    let text: Vec<u8> = pattern(1000).into_iter().map(|b| b.max(2)).collect();
    write.write_all(&text).unwrap();
    write.write_all(b"\x01\x01\x01h").unwrap();
    assert_eq!(keys.recv().unwrap(), Escape::Help);
    guest.write(FCR, 0x07);
    guest.write(IER, 0x01);
    assert_eq!(guest.machine.interrupts(), 1);
    assert_eq!(guest.input(1000), text);
    assert_eq!(guest.input(1), [1]);
}

#[test]
fn nothing_arrives_while_paused() {
    let (read, mut write) = pipe();
    let mut guest = Guest::open(input_only(read));
    guest.serial.quiesce().unwrap();
    write.write_all(b"x").unwrap();
    assert_eq!(guest.serial.input().try_write(b"y"), 0);
    assert_eq!(guest.metric("input_bytes"), 0);
    guest.serial.resume().unwrap();
    assert_eq!(guest.input(1), b"x");
}

#[test]
fn a_reset_port_is_as_new() {
    let mut guest = Guest::open(backend::none());
    guest.serial.input().try_write(b"x");
    guest.serial.reset().unwrap();
    assert_eq!([guest.read(LSR) & 1, guest.read(IER), guest.read(MCR)], [0; 3]);
    assert_eq!(guest.serial.input().try_write(b"x"), 0);
    guest.write(IER, 1);
    guest.machine.interrupts();
    assert_eq!(guest.serial.input().try_write(b"x"), 1);
    assert_eq!(guest.machine.interrupts(), 1);
}

#[test]
fn each_register_of_a_reset_port_is_as_new() {
    reset_is_complete(|| Serial::new("com1", SerialPort::COM1, backend::none()));
}

#[test]
fn a_reset_port_still_sends_what_the_guest_had_sent() {
    let (mut read, write) = pipe();
    let mut guest = Guest::open(output_only(write));
    let text = pattern(1 << 20);
    let sent = guest.print_while_ready(&text);
    guest.serial.quiesce().unwrap();
    guest.serial.reset().unwrap();
    guest.serial.resume().unwrap();
    assert_eq!(read_exact(&mut read, sent), text[..sent]);
    until(|| guest.read(LSR) == 0x60);
}

#[test]
fn a_port_is_quiet_until_it_is_first_resumed() {
    let (read, mut user) = pipe();
    let (mut out, to) = pipe();
    rustix::fs::fcntl_setfl(&out, OFlags::NONBLOCK).unwrap();
    let mut serial =
        Serial::new("com1", SerialPort::COM1, backend::fds(Some(read.into()), Some(to.into())).unwrap());
    let machine = attach_quiet(&mut serial);
    user.write_all(b"in").unwrap();
    for (offset, value) in [(FCR, 0x07), (IER, 0x01), (MCR, 0x0b), (DATA, b'o'), (DATA, b'u'), (DATA, b't')] {
        assert_eq!(machine.write(0, offset, value), Effect::None);
    }
    assert_eq!(serial.input().try_write(b"x"), 0);
    assert_eq!((machine.read(0, LSR), machine.read(0, IER)), (0x60, 0x01), "the registers are answered");
    assert_eq!(out.read(&mut [0; 8]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert_eq!((metric(&serial, "output_waiting_bytes"), metric(&serial, "input_bytes")), (3, 0));

    serial.resume().unwrap();
    let mut sent = [0; 8];
    assert_eq!((out.read(&mut sent).unwrap(), &sent[..3]), (3, &b"out"[..]));
    until(|| metric(&serial, "input_bytes") == 2);
    assert_eq!([machine.read(0, DATA), machine.read(0, DATA)], *b"in");
}

#[test]
fn a_port_that_was_never_resumed_sends_nothing_when_it_is_detached() {
    let out = Sink::default();
    let mut serial = Serial::new("com1", SerialPort::COM1, backend::writer(out.clone()));
    let machine = attach_quiet(&mut serial);
    assert_eq!(machine.write(0, DATA, b'x'), Effect::None);
    serial.detach().unwrap();
    assert_eq!(*out.0.lock().unwrap(), b"");
}

#[test]
fn a_detached_port_lets_go_of_its_machine_and_works_in_another_on_the_same_line() {
    let on_a_loop = LoopThread::start("given").unwrap();
    for event_loop in [None, Some(on_a_loop.event_loop())] {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let backend = backend::fds(Some(theirs.try_clone().unwrap().into()), Some(theirs.into())).unwrap();
        let mut serial = Serial::new("com1", SerialPort::COM1, backend);
        if let Some(event_loop) = event_loop {
            serial = serial.on(event_loop);
        }
        let rounds = Mutex::new(0);
        lives_twice(&mut serial, |serial, machine| {
            *rounds.lock().unwrap() += 1;
            assert_eq!([IER, MCR, LSR].map(|offset| machine.read(0, offset)), [0, 0, 0x60]);
            for (offset, value) in [(FCR, 0x07), (IER, 0x01), (MCR, 0x0b), (DATA, b'!')] {
                assert_eq!(machine.write(0, offset, value), Effect::None);
            }
            let mut user = &ours;
            assert_eq!(read_exact(&mut user, 1), b"!");
            user.write_all(b"?").unwrap();
            until(|| machine.read(0, LSR) & 1 != 0);
            assert_eq!((machine.read(0, DATA), machine.interrupts()), (b'?', 1));
            assert_eq!(serial.input().try_write(b"more than is read"), 17);
        });
        assert_eq!(*rounds.lock().unwrap(), 2);
        drop(serial);
        assert_eq!(ours.read(&mut [0; 8]).unwrap(), 0, "only dropping the device closes the line");
    }
}

#[test]
fn handles_of_a_port_that_is_not_attached_say_so() {
    let mut serial = Serial::new("com1", SerialPort::COM1, backend::none());
    let input = serial.input();
    let refused = || (input.try_write(b"x"), input.write_all(b"x").unwrap_err().kind());
    assert_eq!(refused(), (0, io::ErrorKind::NotConnected));
    attach(&mut serial);
    serial.detach().unwrap();
    assert_eq!(refused(), (0, io::ErrorKind::NotConnected));
}

#[test]
fn e1_a_key_callback_that_panics_is_reported_and_the_loop_goes_on() {
    let event_loop = LoopThread::start("shared").unwrap();
    let panics = Arc::new(AtomicBool::new(true));
    let (read, mut user) = pipe();
    let (send, keys) = mpsc::channel();
    let armed = panics.clone();
    let line = input_only(read).with_escape_keys(move |key| {
        assert!(!armed.load(Ordering::SeqCst), "the key's code is wrong");
        send.send(key).unwrap();
    });
    let mut serial = Serial::new("com1", SerialPort::COM1, line).on(event_loop.event_loop());
    let machine = attach(&mut serial);
    let (read, mut other_user) = pipe();
    let mut other = Serial::new("com2", SerialPort::COM2, input_only(read)).on(event_loop.event_loop());
    let other_machine = attach(&mut other);
    assert_eq!(other_machine.write(0, IER, 0x01), Effect::None);

    user.write_all(b"\x01h").unwrap();
    until(|| !machine.reports().is_empty());
    let reports = machine.reports();
    assert!(
        matches!(&reports[..], [DeviceEvent::Panicked { message }] if message.contains("the key's code is wrong")),
        "{reports:?}"
    );
    other_user.write_all(b"y").unwrap();
    until(|| other_machine.read(0, LSR) & 1 != 0);
    assert_eq!((other_machine.read(0, DATA), other_machine.reports()), (b'y', vec![]));

    // The port itself: registers, handles, the end, and a new machine.
    assert_eq!(machine.write(0, IER, 0x01), Effect::None);
    assert_eq!(serial.input().try_write(b"z"), 1);
    assert_eq!(machine.read(0, DATA), b'z');
    serial.quiesce().unwrap();
    serial.detach().unwrap();
    panics.store(false, Ordering::SeqCst);
    attach(&mut serial);
    user.write_all(b"\x01h").unwrap();
    assert_eq!(keys.recv().unwrap(), Escape::Help);
}

#[test]
fn e1_a_key_callback_may_detach_the_port() {
    let (read, mut user) = pipe();
    let serial = Arc::new(Mutex::new(None::<Serial>));
    let (send, done) = mpsc::channel();
    let inside = serial.clone();
    let line = input_only(read).with_escape_keys(move |_| {
        send.send(inside.lock().unwrap().as_mut().unwrap().detach().is_ok()).unwrap();
    });
    let mut port = Serial::new("com1", SerialPort::COM1, line);
    let machine = attach(&mut port);
    *serial.lock().unwrap() = Some(port);
    user.write_all(b"\x01h").unwrap();
    assert!(done.recv().unwrap());
    assert_eq!(machine.reports(), []);
    let port = serial.lock().unwrap().take();
    drop(port);
}

/// Panics until it is told not to.
struct Panicking(Arc<AtomicBool>, Sink);

impl Write for Panicking {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        assert!(!self.0.load(Ordering::SeqCst), "the writer's code is wrong");
        self.1.write(buf)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn e1_a_register_access_that_panics_leaves_the_port_usable() {
    let (panics, out) = (Arc::new(AtomicBool::new(false)), Sink::default());
    let guest = Guest::open(backend::writer(Panicking(panics.clone(), out.clone())));
    guest.print(b"a");
    panics.store(true, Ordering::SeqCst);
    assert!(catch_unwind(AssertUnwindSafe(|| guest.print(b"b"))).is_err());
    panics.store(false, Ordering::SeqCst);
    guest.print(b"c");
    assert_eq!(*out.0.lock().unwrap(), b"abc");
    assert_eq!(guest.serial.input().try_write(b"x"), 1);
    assert_eq!(guest.input(1), b"x");
}

#[test]
fn e1_a_writer_that_panics_to_the_end_is_reported_when_the_port_is_detached() {
    let (panics, out) = (Arc::new(AtomicBool::new(false)), Sink::default());
    let mut guest = Guest::open(backend::writer(Panicking(panics.clone(), out)));
    panics.store(true, Ordering::SeqCst);
    assert!(catch_unwind(AssertUnwindSafe(|| guest.print(b"b"))).is_err());
    guest.serial.detach().unwrap();
    let reports = guest.machine.reports();
    assert!(
        matches!(&reports[..], [DeviceEvent::Panicked { message }] if message.contains("writer's code")),
        "{reports:?}"
    );
    drop(guest);
}

/// A port on a line that others may share.
fn shared() -> (Serial, Attachment) {
    let mut serial = Serial::new("com3", SerialPort::COM3, backend::none()).shared_line();
    let machine = attach(&mut serial);
    (serial, machine)
}

#[test]
fn the_default_line_is_an_edge_and_a_shared_one_a_level() {
    let port = || Serial::new("com3", SerialPort::COM3, backend::none());
    assert_eq!(port().requires().interrupts, [InterruptRequest::edge("irq").fixed(4)]);
    assert_eq!(port().shared_line().requires().interrupts, [InterruptRequest::level("irq").fixed(4)]);
}

#[test]
fn a_shared_line_is_let_go_by_reset_and_detach_and_asserted_by_restore() {
    let (mut serial, machine) = shared();
    let asserted = |machine: &Attachment| machine.board.is_asserted("irq");
    assert_eq!(machine.write(0, IER, 0x02), Effect::None);
    assert!(asserted(&machine));
    serial.quiesce().unwrap();
    let state = saved(&mut serial);
    serial.reset().unwrap();
    assert!(!asserted(&machine));
    serial.restore(Handover::new(state.clone())).unwrap();
    assert!(asserted(&machine));
    serial.resume().unwrap();
    assert!(asserted(&machine));
    serial.detach().unwrap();
    assert!(!asserted(&machine), "the others could never interrupt");

    let (mut second, machine) = shared();
    second.quiesce().unwrap();
    second.restore(Handover::new(state)).unwrap();
    assert!(asserted(&machine));
}

proptest! {
    /// Whatever guest and host do.
    #[test]
    fn a_shared_line_is_asserted_exactly_while_iir_names_a_condition(
        steps in prop::collection::vec((0u64..11, any::<u8>()), 1..300),
    ) {
        let (mut serial, machine) = shared();
        let input = serial.input();
        for (what, value) in steps {
            match what {
                0..=7 => prop_assert_eq!(machine.write(0, what, value), Effect::None),
                8 => drop(machine.read(0, (value % 8).into())),
                9 => drop(input.try_write(&vec![value; value.into()])),
                _ => {
                    serial.quiesce().unwrap();
                    if value < 16 {
                        serial.reset().unwrap();
                    }
                    serial.resume().unwrap();
                }
            }
            // Reading IIR changes it.
            if value % 4 != 0 {
                continue;
            }
            let asserted = machine.board.is_asserted("irq");
            prop_assert_eq!(machine.read(0, FCR) & 1 == 0, asserted);
            let asserted = machine.board.is_asserted("irq");
            prop_assert_eq!(machine.read(0, FCR) & 1 == 0, asserted);
        }
    }
}

#[test]
fn any_access_is_answered() {
    struct Broken;
    impl Write for Broken {
        fn write(&mut self, _buf: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    hostile(
        || Serial::new("com1", SerialPort::COM1, backend::writer(Broken)),
        |serial, machine| {
            assert!(serial.input().try_write(&[0; 1000]) <= RX_CAPACITY);
            for offset in 0..8 {
                machine.read(0, offset);
            }
            assert_eq!(metric(serial, "output_waiting_bytes"), 0);
        },
    );
}
