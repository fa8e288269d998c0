//! The port as a machine, a guest's driver and a user at the other end of the line use it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Instant;

use ossature_bus::{DeviceEvent, Effect};
use rustix::event::PollFlags;

use super::line::{Line, Pollable, Watch};
use super::port::TYPEAHEAD_CAPACITY;
use super::uart::{RX_CAPACITY, TX_CAPACITY};
use super::*;
use crate::backend;
use crate::testing::{Attachment, attach, hostile, metric};

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

    fn watch(&self, input: bool, _output: bool) -> Watch {
        let ready: Pollable = self.ready.clone();
        if input { vec![(ready, PollFlags::IN)] } else { Watch::new() }
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
        assert_eq!((requires.ranges[0].placement, requires.ranges[0].size), (Placement::Fixed(base), 8));
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
    assert_eq!(writer.join().unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
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
    let events = guest.machine.events.lock().unwrap();
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
    assert_eq!(guest.machine.events.lock().unwrap().len(), 0);
    let input = guest.serial.input();
    drop(guest);
    assert!(!path.exists(), "a handle keeps the line open");
    assert_eq!(input.try_write(b"x"), 0);
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
