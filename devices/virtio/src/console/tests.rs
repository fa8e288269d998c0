mod ports;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};

use ossature_memory::Segment;

use super::*;
use crate::rig::{Rig, config, counter};
use crate::testing::{TestDriver, Transport, on_each_transport};
use crate::{SharedLoop, Turn};

const RXQ: usize = 0;
const TXQ: usize = 1;
const RX_KICK: u16 = 0;
const TX_KICK: u16 = 1;
const CONTROL_KICK: u16 = 3;
const INPUT: u16 = 4;
const ROOM: u16 = 5;
const WINDOW_CHANGED: u16 = 6;

const MULTIPORT: u128 = 1 << VIRTIO_CONSOLE_F_MULTIPORT;

/// An output that shows what came, and does as it is told: bytes to take of each write, or an error.
struct Screen {
    shown: Sender<Vec<u8>>,
    script: Receiver<io::Result<usize>>,
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.script.try_recv().unwrap_or(Ok(bytes.len()))?.min(bytes.len());
        self.shown.send(bytes[..n].to_vec()).unwrap();
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.shown.send(b"<flush>".to_vec()).unwrap();
        Ok(())
    }
}

/// A console with input from a socket, whose other end is given, and its screen.
fn console() -> (Console, UnixStream, Receiver<Vec<u8>>, Sender<io::Result<usize>>) {
    let (ours, keyboard) = UnixStream::pair().unwrap();
    let (shown, screen) = channel();
    let (tell, script) = channel();
    let input = ConsoleInput::new(ours).unwrap();
    (Console::new(Some(input), ConsoleOutput::writer(Screen { shown, script })), keyboard, screen, tell)
}

fn shown(screen: &Receiver<Vec<u8>>) -> String {
    let bytes: Vec<u8> = screen.try_iter().flatten().collect();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn shows_what_the_guest_writes() {
    let (mut console, _keyboard, screen, _tell) = console();
    let mut rig = Rig::new(&mut console, 0);
    let pieces = ["hello", ", ", "world", "\n"].map(|text| rig.put(text.as_bytes()));
    rig.offer(TXQ, &pieces[..3], &[]);
    rig.offer(TXQ, &pieces[3..], &[]);
    assert_eq!(rig.run(TX_KICK), 1);
    assert_eq!(shown(&screen), "hello, world\n<flush>");
    assert_eq!(rig.used(TXQ).unwrap().len, 0);
    assert_eq!(rig.used(TXQ).unwrap().len, 0);
    assert_eq!(rig.irqs[TXQ].take().unwrap(), 1);
    assert_eq!(counter(&console, "tx_bytes"), 13);
    // Nothing written, nothing flushed.
    rig.run(TX_KICK);
    assert_eq!(shown(&screen), "");
}

#[test]
fn an_output_that_takes_little_is_asked_again() {
    let (mut console, _keyboard, screen, tell) = console();
    let mut rig = Rig::new(&mut console, 0);
    tell.send(Ok(1)).unwrap();
    tell.send(Err(io::ErrorKind::Interrupted.into())).unwrap();
    tell.send(Ok(2)).unwrap();
    let text = rig.put(b"abcdef");
    rig.offer(TXQ, &[text], &[]);
    rig.run(TX_KICK);
    assert_eq!(shown(&screen), "abcdef<flush>");
}

#[test]
fn what_a_writer_refuses_is_dropped_and_counted() {
    for kind in [io::ErrorKind::WouldBlock, io::ErrorKind::BrokenPipe] {
        let (mut console, _keyboard, screen, tell) = console();
        let mut rig = Rig::new(&mut console, 0);
        tell.send(Ok(4)).unwrap();
        tell.send(Err(kind.into())).unwrap();
        let long = rig.put(&[b'a'; 10_000]);
        let next = rig.put(b"next");
        rig.offer(TXQ, &[long], &[]);
        rig.offer(TXQ, &[next], &[]);
        rig.run(TX_KICK);
        assert_eq!(shown(&screen), "aaaanext<flush>");
        assert_eq!((counter(&console, "tx_bytes"), counter(&console, "tx_dropped_bytes")), (8, 9996));
        assert_eq!(counter(&console, "host_errors"), 1);
        assert_eq!(rig.reports.lock().unwrap().len(), 1);
    }
}

#[test]
fn b5_a_turn_writes_a_bounded_amount() {
    let (mut console, _keyboard, screen, _tell) = console();
    let mut rig = Rig::new(&mut console, 0);
    let text = rig.put(b"x");
    for _ in 0..40 {
        rig.offer(TXQ, &[text], &[]);
    }
    assert_eq!(rig.turn(TX_KICK), Ok(Turn::Again));
    assert_eq!(rig.rings[TXQ].used_index(), 32);
    assert_eq!(rig.turn(TX_KICK), Ok(Turn::Sleep));

    // One buffer of more than 64 KiB is several turns.
    let _ = shown(&screen);
    let long = rig.put(&[b'y'; 100 << 10]);
    rig.offer(TXQ, &[long], &[]);
    rig.offer(TXQ, &[text], &[]);
    assert_eq!(rig.turn(TX_KICK), Ok(Turn::Again));
    assert_eq!(shown(&screen).trim_end_matches("<flush>").len(), 64 << 10);
    assert_eq!(rig.turn(TX_KICK), Ok(Turn::Sleep));
    assert_eq!(shown(&screen).trim_end_matches("x<flush>").len(), 36 << 10);
    assert_eq!(counter(&console, "tx_dropped_bytes"), 0);
}

#[test]
fn gives_the_guest_what_is_typed() {
    let (mut console, mut keyboard, _screen, _tell) = console();
    let mut rig = Rig::new(&mut console, 0);
    let buffers = [rig.alloc(4), rig.alloc(2), rig.alloc(100)];
    rig.offer(RXQ, &[], &buffers[..2]);
    rig.offer(RXQ, &[], &buffers[2..]);
    keyboard.write_all(b"uptime\nls").unwrap();
    assert_eq!(rig.run(INPUT), 1);
    assert_eq!(rig.used(RXQ).unwrap().len, 6);
    assert_eq!([rig.get(buffers[0]), rig.get(buffers[1])].concat(), b"uptime");
    assert_eq!(rig.used(RXQ).unwrap().len, 3);
    assert_eq!(rig.get(buffers[2])[..3], *b"\nls");
    assert_eq!(counter(&console, "rx_bytes"), 9);
}

#[test]
fn a17_input_goes_on_when_buffers_come() {
    for event_idx in [false, true] {
        let (mut console, mut keyboard, _screen, _tell) = console();
        let mut rig = Rig::with_rings(&mut console, 0, 16, event_idx);
        for round in 0..100u8 {
            let old = rig.rings[RXQ].avail_index();
            keyboard.write_all(&[round]).unwrap();
            assert_eq!(rig.run(INPUT), 1);
            assert_eq!(rig.used(RXQ), None);
            let buffer = rig.alloc(8);
            rig.offer(RXQ, &[], &[buffer]);
            assert!(rig.rings[RXQ].wants_kick(old, event_idx), "round {round}");
            rig.run(RX_KICK);
            assert_eq!(rig.used(RXQ).unwrap().len, 1);
            assert_eq!(rig.get(buffer)[0], round);
        }
    }
}

#[test]
fn b3_input_that_nobody_reads_stays_in_the_kernel() {
    let (mut console, mut keyboard, _screen, _tell) = console();
    let mut rig = Rig::new(&mut console, 0);
    keyboard.set_nonblocking(true).unwrap();
    let mut written = 0;
    let full = loop {
        match keyboard.write(&[7; 4096]) {
            Ok(n) => written += n,
            Err(e) => break e,
        }
        assert_eq!(rig.turn(INPUT), Ok(Turn::Sleep));
        assert!(written < 16 << 20, "somebody takes input in without end");
    };
    assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    // None of it is lost.
    let buffer = rig.alloc(4096);
    let mut read = 0;
    while read < written {
        rig.offer(RXQ, &[], &[buffer]);
        rig.run(RX_KICK);
        read += rig.used(RXQ).unwrap().len as usize;
    }
    assert_eq!(read, written);
}

#[test]
fn c6_a_turn_fills_a_bounded_number_of_buffers() {
    let zeros = ConsoleInput::new(File::open("/dev/zero").unwrap()).unwrap();
    let mut console = Console::new(Some(zeros), ConsoleOutput::writer(io::sink()));
    let mut rig = Rig::new(&mut console, 0);
    let buffer = rig.alloc(16);
    for _ in 0..50 {
        rig.offer(RXQ, &[], &[buffer]);
    }
    assert_eq!(rig.turn(RX_KICK), Ok(Turn::Again));
    assert_eq!(rig.rings[RXQ].used_index(), 32);
    assert_eq!(rig.irqs[RXQ].take().unwrap(), 1);
    assert_eq!(rig.turn(RX_KICK), Ok(Turn::Sleep));
    assert_eq!(rig.rings[RXQ].used_index(), 50);
}

#[test]
fn buffers_that_cannot_be_written_go_back_empty() {
    let (mut console, mut keyboard, _screen, _tell) = console();
    let mut rig = Rig::new(&mut console, 0);
    let buffer = rig.put(b"readable");
    rig.offer(RXQ, &[buffer], &[]);
    rig.offer(RXQ, &[], &[buffer]);
    keyboard.write_all(b"x").unwrap();
    rig.run(INPUT);
    assert_eq!(rig.used(RXQ).unwrap().len, 0);
    assert_eq!(rig.used(RXQ).unwrap().len, 1);
    // And the other way round.
    rig.offer(TXQ, &[], &[buffer]);
    rig.run(TX_KICK);
    assert_eq!(rig.used(TXQ).unwrap().len, 0);
}

#[test]
fn a_file_is_input_that_ends() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"script\n").unwrap();
    io::Seek::rewind(&mut file).unwrap();
    let input = ConsoleInput::new(file).unwrap();
    let mut console = Console::new(Some(input), ConsoleOutput::writer(io::sink()));
    let mut rig = Rig::new(&mut console, 0);
    // A file cannot be waited for.
    assert!(rig.worker().sources().iter().all(|source| source.token == WINDOW_CHANGED));
    let buffers = [rig.alloc(64), rig.alloc(64)];
    for buffer in buffers {
        rig.offer(RXQ, &[], &[buffer]);
    }
    assert_eq!(rig.run(RX_KICK), 1);
    assert_eq!(rig.used(RXQ).unwrap().len, 7);
    assert_eq!(rig.get(buffers[0])[..7], *b"script\n");
    assert_eq!(rig.used(RXQ), None);
    // The rest of the console goes on, and a stop gives the other buffer back.
    let text = rig.put(b"x");
    rig.offer(TXQ, &[text], &[]);
    rig.run(TX_KICK);
    assert!(rig.used(TXQ).is_some());
    let queues = rig.stop();
    rig.start_with(&mut console, queues);
    assert_eq!((rig.run(RX_KICK), rig.used(RXQ)), (1, None));
}

#[test]
fn a_hang_up_ends_input_without_spinning() {
    let (mut console, keyboard, _screen, _tell) = console();
    let mut rig = Rig::new(&mut console, 0);
    let buffer = rig.alloc(8);
    rig.offer(RXQ, &[], &[buffer]);
    drop(keyboard);
    assert_eq!(rig.run(INPUT), 1);
    assert_eq!(rig.run(RX_KICK), 1);
    assert_eq!(rig.used(RXQ), None);
    assert_eq!(counter(&console, "host_errors"), 0);

    // The buffer is still there for whoever comes next.
    let (mut other, mut keyboard, _screen, _tell) = self::console();
    keyboard.write_all(b"back").unwrap();
    let queues = rig.stop();
    rig.start_with(&mut other, queues);
    rig.run(INPUT);
    assert_eq!((rig.used(RXQ).unwrap().len, rig.get(buffer)[..4].to_vec()), (4, b"back".to_vec()));
}

#[test]
fn an_input_that_fails_ends() {
    // A folder can be opened and polled, but not read.
    let input = ConsoleInput::new(File::open("/").unwrap()).unwrap();
    let mut console = Console::new(Some(input), ConsoleOutput::writer(io::sink()));
    let mut rig = Rig::new(&mut console, 0);
    let buffer = rig.alloc(8);
    rig.offer(RXQ, &[], &[buffer]);
    assert_eq!(rig.run(RX_KICK), 1);
    assert_eq!(rig.run(RX_KICK), 1);
    assert_eq!((rig.used(RXQ), counter(&console, "host_errors")), (None, 1));
}

#[test]
fn works_without_input() {
    let mut console = Console::new(None, ConsoleOutput::writer(io::sink()));
    let mut rig = Rig::new(&mut console, 0);
    let buffer = rig.alloc(8);
    rig.offer(RXQ, &[], &[buffer]);
    assert!(rig.worker().sources().iter().all(|source| source.token == WINDOW_CHANGED));
    assert_eq!((rig.run(RX_KICK), rig.used(RXQ)), (1, None));
    assert!(rig.rings[RXQ].no_notify(), "buffers are of no use");
}

#[test]
fn blocking_descriptors_do_not_block_the_worker() {
    // Exactly as much as the buffers hold: the next read would wait for ever.
    let (mut console, mut keyboard, _screen, _tell) = console();
    let mut rig = Rig::new(&mut console, 0);
    let buffers = [rig.alloc(4), rig.alloc(4), rig.alloc(4)];
    for buffer in buffers {
        rig.offer(RXQ, &[], &[buffer]);
    }
    keyboard.write_all(b"12345678").unwrap();
    assert_eq!(rig.run(INPUT), 1);
    assert_eq!((rig.used(RXQ).unwrap().len, rig.used(RXQ).unwrap().len), (4, 4));
    assert_eq!(rig.used(RXQ), None);
}

#[test]
fn the_window_has_a_size_that_changes() {
    let (mut console, _keyboard, _screen, _tell) = console();
    let window = console.window();
    assert_eq!((console.info().features, config(&console)), (3, vec![0, 0, 0, 0, 1, 0, 0, 0]));
    window.resize(80, 25);
    assert_eq!(config(&console), [80, 0, 25, 0, 1, 0, 0, 0]);
    let rig = Rig::new(&mut console, 1);
    let raised = || rig.config_irqs.load(Ordering::Relaxed);
    assert_eq!(raised(), 0);
    window.resize(400, 1000);
    assert_eq!((raised(), config(&console)), (1, vec![0x90, 1, 0xe8, 3, 1, 0, 0, 0]));
    drop(rig);
    console.reset();
    window.resize(80, 25);
    let mut byte = [0];
    console.read_config(2, &mut byte);
    assert_eq!(byte, [25]);
}

#[test]
fn no_wake_up_is_lost_on_a_loop_of_its_own() {
    on_each_transport(|| {
        for wanted in [0, u128::MAX] {
            let (ours, mut keyboard) = UnixStream::pair().unwrap();
            let output = ours.try_clone().unwrap();
            let console =
                Console::new(Some(ConsoleInput::new(ours).unwrap()), ConsoleOutput::new(output).unwrap());
            let runtime = Arc::new(SharedLoop::new("console").unwrap());
            let mut driver = TestDriver::with_runtime(Box::new(console), runtime);
            driver.start(wanted);
            if wanted & MULTIPORT != 0 {
                driver.transact(3, &[&message(0, 6, 1)], &[]);
            }
            // A terminal that types a line, waits for its echo, and types the next.
            let typist = std::thread::spawn(move || {
                for i in 0..500u32 {
                    keyboard.write_all(&i.to_le_bytes()).unwrap();
                    let mut echo = [0; 4];
                    keyboard.read_exact(&mut echo).unwrap();
                    assert_eq!(echo, i.to_le_bytes());
                }
            });
            for _ in 0..500 * 2 {
                let (used, bytes) = driver.transact(0, &[], &[2]);
                assert_eq!(used.len, 2);
                driver.transact(1, &[&bytes], &[]);
            }
            typist.join().unwrap();
            assert_eq!(driver.reports(), []);
        }
    });
}

/// A message on the control queues.
fn message(id: u32, event: u16, value: u16) -> Vec<u8> {
    [&id.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat()
}

/// The driver says something.
fn say(rig: &mut Rig, id: u32, event: u16, value: u16) {
    let text = rig.put(&message(id, event, value));
    rig.offer(3, &[text], &[]);
    rig.run(CONTROL_KICK);
    assert!(rig.used(3).is_some());
}

/// The buffers that the driver has given for messages to it.
#[derive(Default)]
struct Inbox(HashMap<u16, Segment>);

impl Inbox {
    /// What the driver is told, until there is nothing more.
    fn told(&mut self, rig: &mut Rig) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        loop {
            if self.0.is_empty() {
                let buffer = rig.alloc(32);
                self.0.insert(rig.offer(2, &[], &[buffer]), buffer);
            }
            rig.run(2);
            let Some(used) = rig.used(2) else { return messages };
            let buffer = self.0.remove(&(used.head as u16)).unwrap();
            messages.push(rig.get(buffer)[..used.len as usize].to_vec());
        }
    }

    /// Linux's part of the handshake, up to a port that is there.
    fn add_port(&mut self, rig: &mut Rig) {
        say(rig, u32::MAX, 0, 1);
        assert_eq!(self.told(rig), [message(0, 1, 1)]);
        say(rig, 0, 3, 1);
    }
}

#[test]
fn t3_input_waits_until_the_driver_opens_the_port() {
    let mut inbox = Inbox::default();
    let (mut console, mut keyboard, ..) = console();
    let mut rig = Rig::new(&mut console, MULTIPORT);
    let buffer = rig.alloc(64);
    rig.offer(RXQ, &[], &[buffer]);
    keyboard.write_all(b"early").unwrap();
    rig.run(INPUT);
    rig.run(RX_KICK);
    inbox.add_port(&mut rig);
    let messages = inbox.told(&mut rig);
    assert_eq!(messages[..2], [message(0, 4, 1), message(0, 6, 1)]);
    rig.run(INPUT);
    assert_eq!(rig.used(RXQ), None, "the port is not open at the driver's end");
    say(&mut rig, 0, 6, 1);
    assert_eq!(rig.used(RXQ).unwrap().len, 5);
    assert_eq!(rig.get(buffer)[..5], *b"early");
    // Closed again, the rest waits.
    say(&mut rig, 0, 6, 0);
    keyboard.write_all(b"late").unwrap();
    rig.offer(RXQ, &[], &[buffer]);
    rig.run(INPUT);
    rig.run(RX_KICK);
    assert_eq!(rig.used(RXQ), None);
    say(&mut rig, 0, 6, 1);
    assert_eq!(rig.used(RXQ).unwrap().len, 4);
    assert_eq!(counter(&console, "control_ignored"), 0);
}

#[test]
fn t3_a_driver_without_control_queues_gets_input_as_soon_as_it_has_a_buffer() {
    let (mut console, mut keyboard, ..) = console();
    let mut rig = Rig::new(&mut console, 0);
    keyboard.write_all(b"x").unwrap();
    let buffer = rig.alloc(8);
    rig.offer(RXQ, &[], &[buffer]);
    rig.run(RX_KICK);
    assert_eq!(rig.used(RXQ).unwrap().len, 1);
}

#[test]
fn t5_a_port_is_told_the_size_of_its_window_at_start_and_when_it_changes() {
    let mut inbox = Inbox::default();
    let resize = |rows: u16, columns: u16| {
        [message(0, 5, 1), columns.to_le_bytes().to_vec(), rows.to_le_bytes().to_vec()].concat()
    };
    let (mut console, ..) = console();
    let window = console.window();
    window.resize(132, 50);
    let mut rig = Rig::new(&mut console, MULTIPORT | 1);
    // A change before the port is there is no message.
    window.resize(100, 40);
    rig.run(WINDOW_CHANGED);
    assert_eq!(inbox.told(&mut rig), Vec::<Vec<u8>>::new());
    inbox.add_port(&mut rig);
    assert_eq!(inbox.told(&mut rig).last(), Some(&resize(40, 100)));
    let raised = rig.config_irqs.load(Ordering::Relaxed);
    // Several changes before the driver takes the message are one.
    for columns in 80..90 {
        window.resize(columns, 25);
        rig.run(WINDOW_CHANGED);
    }
    assert_eq!(rig.config_irqs.load(Ordering::Relaxed), raised + 10);
    let messages = inbox.told(&mut rig);
    assert_eq!(messages.last(), Some(&resize(25, 89)));
    assert!(messages.len() <= 2, "{messages:?}");
    // A change while the machine is paused.
    let queues = rig.stop();
    window.resize(70, 20);
    rig.start_with(&mut console, queues);
    assert_eq!(inbox.told(&mut rig), [resize(20, 70)]);
}

#[test]
fn messages_that_mean_nothing_are_counted_and_change_nothing() {
    let mut inbox = Inbox::default();
    let (mut console, ..) = console();
    let mut rig = Rig::new(&mut console, MULTIPORT);
    for (id, event) in [(0, 1), (0, 2), (0, 4), (0, 5), (0, 7), (0, u16::MAX), (1, 3), (1, 6), (u32::MAX, 6)]
    {
        say(&mut rig, id, event, 1);
    }
    let short = rig.put(&message(0, 6, 1)[..7]);
    rig.offer(3, &[short], &[]);
    rig.run(CONTROL_KICK);
    rig.offer(3, &[], &[short]);
    rig.run(CONTROL_KICK);
    assert_eq!(counter(&console, "control_ignored"), 11);
    assert_eq!(inbox.told(&mut rig), Vec::<Vec<u8>>::new());
    // Nor do a thousand announcements make a thousand messages.
    for _ in 0..1000 {
        say(&mut rig, 0, 0, 1);
    }
    let messages = inbox.told(&mut rig);
    assert!(messages.len() <= 2 && messages.iter().all(|m| *m == message(0, 1, 1)), "{messages:?}");
}

#[test]
fn t3_a_restored_port_is_as_open_as_it_was() {
    let mut inbox = Inbox::default();
    let (mut console, ..) = console();
    let mut rig = Rig::new(&mut console, MULTIPORT);
    say(&mut rig, 0, 0, 1);
    say(&mut rig, 0, 3, 1);
    say(&mut rig, 0, 6, 1);
    drop(rig);
    let DeviceState::Saved(handover) = console.save().unwrap() else { panic!("no state") };
    let (mut other, mut keyboard, ..) = self::console();
    other.restore(handover).unwrap();
    let mut rig = Rig::new(&mut other, MULTIPORT);
    let buffer = rig.alloc(8);
    rig.offer(RXQ, &[], &[buffer]);
    keyboard.write_all(b"x").unwrap();
    rig.run(INPUT);
    assert_eq!(rig.used(RXQ).unwrap().len, 1);
    // What it was not told, it is told now; this driver does not take the size of a window.
    assert_eq!(inbox.told(&mut rig).len(), 3);
    // A reset closes it.
    drop(rig);
    let mut inbox = Inbox::default();
    other.reset();
    let mut rig = Rig::new(&mut other, MULTIPORT);
    rig.offer(RXQ, &[], &[buffer]);
    keyboard.write_all(b"x").unwrap();
    rig.run(INPUT);
    assert_eq!((rig.used(RXQ), inbox.told(&mut rig).len()), (None, 0));
}

/// A console that writes into a pipe, and what reads it.
fn piped() -> (Console, io::PipeReader) {
    let (reader, writer) = io::pipe().unwrap();
    (Console::new(None, ConsoleOutput::new(writer).unwrap()), reader)
}

/// Offers `count` buffers of 4096 bytes, each different; returns all that is in them.
fn offer_output(rig: &mut Rig, count: u8) -> Vec<u8> {
    let mut all = Vec::new();
    for what in 0..count {
        let bytes: Vec<u8> = (0..4096).map(|n| (n % 251) as u8 ^ what).collect();
        let buffer = rig.put(&bytes);
        rig.offer(TXQ, &[buffer], &[]);
        all.extend(bytes);
    }
    all
}

#[test]
fn e2_output_waits_for_room_and_none_is_lost() {
    let (mut console, mut reader) = piped();
    let mut rig = Rig::new(&mut console, 0);
    let wanted = offer_output(&mut rig, 40);
    assert!(rig.run(TX_KICK) <= 3);
    let used = rig.rings[TXQ].used_index();
    assert!(used < 40, "a pipe has room for {used} pages");
    // Kicks change nothing, nor does a wake-up without room.
    rig.run(TX_KICK);
    rig.run(ROOM);
    assert_eq!(rig.rings[TXQ].used_index(), used);
    let mut got = vec![0; wanted.len()];
    let mut done = 0;
    while done < got.len() {
        done += reader.read(&mut got[done..]).unwrap();
        rig.run(ROOM);
    }
    assert!(got == wanted);
    assert_eq!(rig.rings[TXQ].used_index(), 40);
    assert_eq!((counter(&console, "tx_bytes"), counter(&console, "tx_dropped_bytes")), (done as u64, 0));
    assert!(counter(&console, "tx_stalls") > 0);
}

#[test]
fn e2_a_buffer_that_is_half_written_goes_on_there_after_a_pause_and_elsewhere() {
    for elsewhere in [false, true] {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut console = Console::new(None, ConsoleOutput::new(&ours).unwrap());
        let mut rig = Rig::new(&mut console, 0);
        // More than a socket has room for: it ends in the middle.
        let bytes: Vec<u8> = (0..4 << 20).map(|n| (n % 251) as u8).collect();
        let buffer = rig.put(&bytes);
        rig.offer(TXQ, &[buffer], &[]);
        rig.run(TX_KICK);
        assert_eq!(rig.rings[TXQ].used_index(), 0);
        let written = counter(&console, "tx_bytes");
        assert!(written > 0 && written < bytes.len() as u64);
        let queues = rig.stop();
        let mut other = Console::new(None, ConsoleOutput::new(&ours).unwrap());
        let console = if elsewhere {
            let DeviceState::Saved(handover) = console.save().unwrap() else { panic!("no state") };
            other.restore(handover).unwrap();
            &mut other
        } else {
            &mut console
        };
        rig.start_with(console, queues);
        let mut got = vec![0; bytes.len()];
        let mut done = 0;
        rig.run(TX_KICK);
        while done < got.len() {
            done += theirs.read(&mut got[done..]).unwrap();
            rig.run(ROOM);
        }
        assert!(got == bytes);
        assert_eq!(rig.rings[TXQ].used_index(), 1);
    }
}

#[test]
fn e2_a_queue_that_is_set_up_anew_loses_nothing_of_its_first_buffer() {
    on_each_transport(|| {
        for (reset, pause) in [(true, false), (true, true), (false, false)] {
            let (console, mut reader) = piped();
            let runtime = Arc::new(SharedLoop::new("console").unwrap());
            let mut driver = TestDriver::with_runtime(Box::new(console), runtime);
            driver.start(1 << 40);
            let long = vec![b'x'; 1 << 20];
            driver.request(1, &[&long], &[]);
            driver.kick(1);
            let capacity = rustix::pipe::fcntl_getpipe_size(&reader).unwrap();
            // The pipe is full: the buffer is half written.
            while rustix::io::ioctl_fionread(&reader).unwrap() < capacity as u64 {
                std::thread::yield_now();
            }
            if reset {
                driver.reset_queue(1);
            } else if driver.transport() == Transport::Mmio {
                driver.write(0x30, 1);
                driver.write(0x44, 0);
            } else {
                // No driver of the PCI transport may do that.
                return;
            }
            if pause {
                driver.save_and_restore();
            }
            assert!(driver.set_up_queue(1, 16));
            driver.request(1, &[b"all of it"], &[]);
            driver.kick(1);
            reader.read_exact(&mut vec![0; capacity]).unwrap();
            driver.wait_used(1);
            drop(driver);
            let mut rest = Vec::new();
            reader.read_to_end(&mut rest).unwrap();
            assert_eq!(rest, b"all of it");
        }
    });
}

#[test]
fn e2_a_reader_that_goes_away_ends_the_wait() {
    let (mut console, reader) = piped();
    let mut rig = Rig::new(&mut console, 0);
    let wanted = offer_output(&mut rig, 40);
    rig.run(TX_KICK);
    drop(reader);
    rig.run(ROOM);
    assert_eq!(rig.rings[TXQ].used_index(), 40);
    let dropped = counter(&console, "tx_dropped_bytes");
    assert_eq!(counter(&console, "tx_bytes") + dropped, wanted.len() as u64);
    assert!(dropped > 0);
    assert_eq!(rig.reports.lock().unwrap().len(), 1);
}

#[test]
fn e2_an_output_without_room_leaves_the_loop_to_the_others() {
    on_each_transport(|| {
        let runtime = Arc::new(SharedLoop::new("both").unwrap());
        let (console, mut reader) = piped();
        let mut stuck = TestDriver::with_runtime(Box::new(console), runtime.clone());
        let (ours, mut keyboard) = UnixStream::pair().unwrap();
        let output = ConsoleOutput::new(ours.try_clone().unwrap()).unwrap();
        let console = Console::new(Some(ConsoleInput::new(ours).unwrap()), output);
        let mut other = TestDriver::with_runtime(Box::new(console), runtime);
        stuck.start(0);
        other.start(0);
        let text = vec![b'x'; 1 << 20];
        stuck.request(1, &[&text], &[]);
        stuck.kick(1);
        for _ in 0..10 {
            keyboard.write_all(b"key").unwrap();
            assert_eq!(other.transact(0, &[], &[3]).1, b"key");
            other.transact(1, &[b"echo"], &[]);
            keyboard.read_exact(&mut [0; 4]).unwrap();
        }
        assert!(stuck.used(1).is_none());
        let mut got = vec![0; text.len()];
        reader.read_exact(&mut got).unwrap();
        assert!(got == text);
        stuck.wait_used(1);
    });
}

crate::conformance_tests!(conformance, || {
    let (ours, keyboard) = UnixStream::pair().unwrap();
    // What was never sent to the console stays open as its input.
    let output = ConsoleOutput::writer(SinkThatHolds(keyboard));
    Console::new(Some(ConsoleInput::new(ours).unwrap()), output)
});

/// Shows nothing, and keeps the keyboard plugged in.
struct SinkThatHolds(#[allow(dead_code)] UnixStream); // held, not used

impl Write for SinkThatHolds {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_restored_console_has_the_size_that_the_guest_knows() {
    let mut console = Console::new(None, ConsoleOutput::writer(io::sink()));
    console.window().resize(132, 50);
    let DeviceState::Saved(handover) = console.save().unwrap() else { panic!("no state") };
    let mut other = Console::new(None, ConsoleOutput::writer(io::sink()));
    other.restore(handover).unwrap();
    assert_eq!(config(&other), [132, 0, 50, 0, 1, 0, 0, 0]);
}
