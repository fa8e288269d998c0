//! Several ports, and clients that come and go at their ends on the host.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// Ports of the consoles here: a console, then sockets called `a` and `b`.
const A: usize = 1;

/// The queues of a port.
fn queues(port: usize) -> (usize, usize) {
    if port == 0 { (0, 1) } else { (2 * port + 2, 2 * port + 3) }
}

/// The token of a port's host end.
fn host(port: usize) -> u16 {
    8 + 2 * port as u16
}

struct Sockets(TempDir);

impl Sockets {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn connect(&self, name: &str) -> UnixStream {
        let client = UnixStream::connect(self.path(name)).unwrap();
        client.set_nonblocking(true).unwrap();
        client
    }

    fn port(&self, name: &str) -> ConsolePort {
        let listener = UnixListener::bind(self.path(name)).unwrap();
        ConsolePort::socket(name.parse().unwrap(), PortSocket::new(listener).unwrap())
    }

    /// A console with three ports, of which `a` may hold output.
    fn console(&self, hold: bool) -> Console {
        let a = self.port("a");
        let a = if hold { a.hold_output() } else { a };
        let first = ConsolePort::console(None, ConsoleOutput::writer(io::sink()));
        Console::with_ports([first, a, self.port("b")]).unwrap()
    }
}

fn name_message(id: u32, name: &str) -> Vec<u8> {
    [&message(id, 7, 1)[..], name.as_bytes()].concat()
}

/// Linux's part of the handshake for all three ports; they are open at the driver's end then.
fn open_all(rig: &mut Rig, inbox: &mut Inbox) -> Vec<Vec<u8>> {
    say(rig, u32::MAX, 0, 1);
    assert_eq!(inbox.told(rig), [message(0, 1, 1), message(1, 1, 1), message(2, 1, 1)]);
    let mut told = Vec::new();
    for id in 0..3 {
        say(rig, id, 3, 1);
        told.extend(inbox.told(rig));
        say(rig, id, 6, 1);
    }
    told
}

/// What a client has got by now.
fn got(client: &mut UnixStream) -> String {
    let mut bytes = Vec::new();
    match client.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(e) => {
            assert!(matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionReset), "{e}")
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// The guest writes to a port.
fn write(rig: &mut Rig, port: usize, text: &str) {
    let text = rig.put(text.as_bytes());
    rig.offer(queues(port).1, &[text], &[]);
    rig.run(queues(port).1 as u16);
}

/// What the guest can read from a port by now.
fn read(rig: &mut Rig, port: usize) -> String {
    let queue = queues(port).0;
    let mut all = Vec::new();
    loop {
        let buffer = rig.alloc(32);
        rig.offer(queue, &[], &[buffer]);
        rig.run(queue as u16);
        // The buffer of an earlier call may be there still.
        let Some(used) = rig.used(queue) else { break };
        assert_eq!(used.head, 0);
        all.extend(&rig.get(buffer)[..used.len as usize]);
    }
    String::from_utf8(all).unwrap()
}

#[test]
fn each_port_has_its_number_its_name_and_its_state() {
    let (sockets, mut inbox) = (Sockets::new(), Inbox::default());
    let mut console = sockets.console(false);
    assert_eq!(config(&console)[4..], 3u32.to_le_bytes());
    assert_eq!(console.info().queues, [64, 64, 16, 16, 64, 64, 64, 64]);
    // One client is there before the guest is.
    let _client = sockets.connect("b");
    let mut rig = Rig::new(&mut console, MULTIPORT);
    [A, 2].iter().for_each(|port| _ = rig.run(host(*port)));
    let told = open_all(&mut rig, &mut inbox);
    let wanted =
        [message(0, 4, 1), message(0, 6, 1), name_message(1, "a"), name_message(2, "b"), message(2, 6, 1)];
    assert_eq!(told, wanted);
    assert_eq!((counter(&console, "clients"), counter(&console, "control_ignored")), (1, 0));
}

#[test]
fn clients_come_and_go_and_the_guest_is_told() {
    let (sockets, mut inbox) = (Sockets::new(), Inbox::default());
    let mut console = sockets.console(false);
    let mut rig = Rig::new(&mut console, MULTIPORT);
    open_all(&mut rig, &mut inbox);
    for round in 0..3 {
        let mut client = sockets.connect("a");
        rig.run(host(A));
        assert_eq!(inbox.told(&mut rig), [message(1, 6, 1)]);
        write(&mut rig, A, &format!("to the host {round}"));
        assert_eq!(got(&mut client), format!("to the host {round}"));
        write!(client, "to the guest {round}").unwrap();
        rig.run(host(A));
        // It is given, and then the client is gone.
        drop(client);
        let buffer = rig.alloc(64);
        rig.offer(queues(A).0, &[], &[buffer]);
        rig.run(host(A));
        assert_eq!(inbox.told(&mut rig), [message(1, 6, 0)]);
        let used = rig.used(queues(A).0).unwrap();
        assert_eq!(rig.get(buffer)[..used.len as usize], *format!("to the guest {round}").as_bytes());
    }
    assert_eq!((counter(&console, "clients"), counter(&console, "host_errors")), (3, 0));
    assert_eq!((counter(&console, "tx_dropped_bytes"), counter(&console, "rx_dropped_bytes")), (0, 0));
}

#[test]
fn a_quick_return_is_told_as_both_and_a_thousand_are_no_more() {
    let (sockets, mut inbox) = (Sockets::new(), Inbox::default());
    let mut console = sockets.console(false);
    let mut rig = Rig::new(&mut console, MULTIPORT);
    open_all(&mut rig, &mut inbox);
    let mut client = sockets.connect("a");
    rig.run(host(A));
    assert_eq!(inbox.told(&mut rig), [message(1, 6, 1)]);
    for _ in 0..1000 {
        drop(client);
        client = sockets.connect("a");
        rig.run(host(A));
    }
    // A buffer for a message was left when the first of them went.
    let told = inbox.told(&mut rig);
    assert!(told.len() <= 3, "{told:?}");
    assert!(told.ends_with(&[message(1, 6, 0), message(1, 6, 1)]), "{told:?}");
    drop(client);
    rig.run(host(A));
    assert_eq!(inbox.told(&mut rig), [message(1, 6, 0)]);
}

#[test]
fn output_for_nobody_is_dropped_or_held_as_chosen() {
    for hold in [false, true] {
        let (sockets, mut inbox) = (Sockets::new(), Inbox::default());
        let mut console = sockets.console(hold);
        let mut rig = Rig::new(&mut console, MULTIPORT);
        open_all(&mut rig, &mut inbox);
        write(&mut rig, A, "early ");
        write(&mut rig, A, "too early");
        assert_eq!(rig.rings[queues(A).1].used_index(), if hold { 0 } else { 2 });
        let mut client = sockets.connect("a");
        rig.run(host(A));
        write(&mut rig, A, "!");
        assert_eq!(got(&mut client), if hold { "early too early!" } else { "!" });
        assert_eq!(rig.rings[queues(A).1].used_index(), 3);
        // The others are not concerned.
        write(&mut rig, 2, "nobody");
        assert_eq!(counter(&console, "tx_dropped_bytes"), if hold { 6 } else { 6 + 15 });
    }
}

#[test]
fn a_client_never_begins_in_the_middle_of_a_buffer() {
    for (hold, pause) in [(false, false), (true, false), (true, true)] {
        let (sockets, mut inbox) = (Sockets::new(), Inbox::default());
        let mut console = sockets.console(hold);
        let mut rig = Rig::new(&mut console, MULTIPORT);
        open_all(&mut rig, &mut inbox);
        let client = sockets.connect("a");
        rig.run(host(A));
        let long = rig.put(&vec![b'x'; 2 << 20]);
        rig.offer(queues(A).1, &[long], &[]);
        rig.run(queues(A).1 as u16);
        assert_eq!(rig.rings[queues(A).1].used_index(), 0, "the socket takes 2 MiB");
        let written = counter(&console, "tx_bytes");
        assert!(written > 0);
        drop(client);
        if pause {
            let queues = rig.stop();
            let DeviceState::Saved(handover) = console.save().unwrap() else { panic!("no state") };
            drop(console);
            ["a", "b"].iter().for_each(|name| std::fs::remove_file(sockets.path(name)).unwrap());
            console = sockets.console(hold);
            console.restore(handover).unwrap();
            rig.start_with(&mut console, queues);
        }
        let mut next = sockets.connect("a");
        rig.run(host(A));
        rig.run(queues(A).1 as u16);
        write(&mut rig, A, "whole");
        rig.run(host(A));
        assert_eq!(got(&mut next), "whole");
        assert_eq!(counter(&console, "tx_dropped_bytes"), (2 << 20) - written);
    }
}

#[test]
fn what_a_client_has_left_is_given_unless_another_comes_first() {
    for other_comes in [false, true] {
        let (sockets, mut inbox) = (Sockets::new(), Inbox::default());
        let mut console = sockets.console(false);
        let mut rig = Rig::new(&mut console, MULTIPORT);
        open_all(&mut rig, &mut inbox);
        let mut client = sockets.connect("a");
        client.write_all(b"left").unwrap();
        rig.run(host(A));
        assert_eq!(inbox.told(&mut rig), [message(1, 6, 1)]);
        drop(client);
        rig.run(host(A));
        assert_eq!(inbox.told(&mut rig), Vec::<Vec<u8>>::new(), "it has not been read");
        // Output finds that the client has gone, and is no failure of the host's.
        write(&mut rig, A, "too late");
        let mut next = other_comes.then(|| sockets.connect("a"));
        next.iter_mut().for_each(|next| next.write_all(b"new").unwrap());
        rig.run(host(A));
        let (told, input) =
            if other_comes { (vec![message(1, 6, 0), message(1, 6, 1)], "new") } else { (vec![], "left") };
        assert_eq!(inbox.told(&mut rig), told);
        assert_eq!(read(&mut rig, A), input);
        assert_eq!(counter(&console, "rx_dropped_bytes"), if other_comes { 4 } else { 0 });
        assert_eq!(counter(&console, "host_errors"), 0);
        if !other_comes {
            assert_eq!(inbox.told(&mut rig), [message(1, 6, 0)]);
        }
    }
}

#[test]
fn a_client_that_has_said_all_still_gets_output() {
    let (sockets, mut inbox) = (Sockets::new(), Inbox::default());
    let mut console = sockets.console(false);
    let mut rig = Rig::new(&mut console, MULTIPORT);
    open_all(&mut rig, &mut inbox);
    let mut client = sockets.connect("a");
    client.write_all(b"question").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    rig.run(host(A));
    assert_eq!(read(&mut rig, A), "question");
    assert_eq!(inbox.told(&mut rig), [message(1, 6, 1)]);
    write(&mut rig, A, "answer");
    assert_eq!(got(&mut client), "answer");
    drop(client);
    rig.run(host(A));
    assert_eq!(inbox.told(&mut rig), [message(1, 6, 0)]);
}

#[test]
fn a_second_client_waits_until_the_first_has_gone() {
    let (sockets, mut inbox) = (Sockets::new(), Inbox::default());
    let mut console = sockets.console(false);
    let mut rig = Rig::new(&mut console, MULTIPORT);
    open_all(&mut rig, &mut inbox);
    let (mut first, mut second) = (sockets.connect("a"), sockets.connect("a"));
    second.write_all(b"second").unwrap();
    rig.run(host(A));
    write(&mut rig, A, "one");
    assert_eq!((got(&mut first), got(&mut second)), ("one".to_owned(), String::new()));
    drop(first);
    rig.run(host(A));
    write(&mut rig, A, "two");
    assert_eq!((got(&mut second), read(&mut rig, A)), ("two".to_owned(), "second".to_owned()));
}

#[test]
fn b3_input_of_each_port_stays_in_the_kernel() {
    let (sockets, mut inbox) = (Sockets::new(), Inbox::default());
    let mut console = sockets.console(false);
    let mut rig = Rig::new(&mut console, MULTIPORT);
    open_all(&mut rig, &mut inbox);
    let mut client = sockets.connect("a");
    let mut written = 0;
    let full = loop {
        match client.write(&[7; 4096]) {
            Ok(n) => written += n,
            Err(e) => break e,
        }
        rig.run(host(A));
        assert!(written < 16 << 20, "somebody takes input in without end");
    };
    assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    // A port whose guest does not read does not hold up another.
    let mut other = sockets.connect("b");
    other.write_all(b"b").unwrap();
    rig.run(host(2));
    assert_eq!(read(&mut rig, 2), "b");
    assert_eq!(counter(&console, "rx_bytes"), 1);
}

#[test]
fn e2_a_client_that_does_not_read_holds_up_its_port_alone() {
    let (sockets, mut inbox) = (Sockets::new(), Inbox::default());
    let mut console = sockets.console(false);
    let mut rig = Rig::new(&mut console, MULTIPORT);
    open_all(&mut rig, &mut inbox);
    let (_stuck, mut other) = (sockets.connect("a"), sockets.connect("b"));
    [A, 2].iter().for_each(|port| _ = rig.run(host(*port)));
    let long = rig.put(&vec![b'x'; 2 << 20]);
    rig.offer(queues(A).1, &[long], &[]);
    rig.run(queues(A).1 as u16);
    write(&mut rig, 2, "goes on");
    assert_eq!(got(&mut other), "goes on");
    assert_eq!(rig.rings[queues(A).1].used_index(), 0);
}

#[test]
fn names_that_are_none_or_double_are_refused() {
    let port =
        |name: &str| ConsolePort::streams(name.parse().unwrap(), None, ConsoleOutput::writer(io::sink()));
    let refusal = |names: &[&str]| {
        Console::with_ports(names.iter().map(|name| port(name))).err().map(|e| e.to_string())
    };
    for name in ["", "a b", "a/b", ".", "..", ".hidden", "é", "a\0", &"x".repeat(65)] {
        let text = name.parse::<PortName>().unwrap_err().to_string();
        assert!(text.contains(&format!("{name:?}")) && text.contains("1 to 64"), "{text}");
    }
    assert!(
        refusal(&["x", "y", "x"]).is_some_and(|text| text.contains("two ports of a console are called x"))
    );
    assert!(refusal(&[]).is_some_and(|text| text.contains("1 to 31")));
    let many: Vec<_> = (0..32).map(|n| n.to_string()).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert!(refusal(&many).is_some_and(|text| text.contains("1 to 31 ports, not 32")));
    assert_eq!(refusal(&many[..31]), None);
    assert_eq!(refusal(&["org.qemu.guest_agent.0", "a,b=c"]), None);
}

#[test]
fn a_state_is_of_the_same_ports() {
    let save = |names: &[&str]| {
        let port = |name: &&str| {
            ConsolePort::streams(name.parse().unwrap(), None, ConsoleOutput::writer(io::sink()))
        };
        let mut console = Console::with_ports(names.iter().map(port)).unwrap();
        let DeviceState::Saved(handover) = console.save().unwrap() else { panic!("no state") };
        (console, handover)
    };
    let (mut console, mine) = save(&["a", "b"]);
    console.restore(mine).unwrap();
    for names in [&["a", "c"][..], &["a"], &["a", "b", "c"]] {
        assert!(console.restore(save(names).1).is_err(), "{names:?}");
    }
}

#[test]
fn a_restored_guest_is_told_that_the_client_is_gone_and_a_client_that_stayed_is_not() {
    let (sockets, mut inbox) = (Sockets::new(), Inbox::default());
    let mut console = sockets.console(false);
    let mut rig = Rig::new(&mut console, MULTIPORT);
    open_all(&mut rig, &mut inbox);
    let mut client = sockets.connect("a");
    rig.run(host(A));
    assert_eq!(inbox.told(&mut rig), [message(1, 6, 1)]);
    // A pause changes nothing.
    let queues = rig.stop();
    rig.start_with(&mut console, queues);
    assert_eq!(inbox.told(&mut rig), Vec::<Vec<u8>>::new());
    write(&mut rig, A, "still there");
    assert_eq!(got(&mut client), "still there");
    let queues = rig.stop();
    let DeviceState::Saved(handover) = console.save().unwrap() else { panic!("no state") };
    let elsewhere = Sockets::new();
    let mut other = elsewhere.console(false);
    other.restore(handover).unwrap();
    rig.start_with(&mut other, queues);
    assert_eq!(inbox.told(&mut rig), [message(1, 6, 0)]);
    let mut client = elsewhere.connect("a");
    rig.run(host(A));
    assert_eq!(inbox.told(&mut rig), [message(1, 6, 1)]);
    write(&mut rig, A, "here");
    assert_eq!(got(&mut client), "here");
    // A driver that starts anew is told anew.
    drop(rig);
    other.reset();
    let (mut rig, mut inbox) = (Rig::new(&mut other, MULTIPORT), Inbox::default());
    let told = open_all(&mut rig, &mut inbox);
    assert!(told.contains(&message(1, 6, 1)), "{told:?}");
}

#[test]
fn on_a_loop_of_its_own_clients_reconnect_and_every_byte_arrives() {
    let sockets = Sockets::new();
    let runtime = Arc::new(SharedLoop::new("ports").unwrap());
    let mut driver = TestDriver::with_runtime(Box::new(sockets.console(true)), runtime);
    driver.start(u128::MAX);
    driver.transact(3, &[&message(1, 3, 1)], &[]);
    driver.transact(3, &[&message(1, 6, 1)], &[]);
    let path = sockets.path("a");
    let clients = std::thread::spawn(move || {
        for round in 0..50u32 {
            let mut client = UnixStream::connect(&path).unwrap();
            for part in 0..4u32 {
                let text = [round, part].map(u32::to_le_bytes).concat();
                client.write_all(&text).unwrap();
                let mut echo = [0; 8];
                client.read_exact(&mut echo).unwrap();
                assert_eq!(echo, *text);
            }
        }
    });
    let (rx, tx) = queues(A);
    for _ in 0..50 * 4 {
        let (used, bytes) = driver.transact(rx as u16, &[], &[8]);
        assert_eq!(used.len, 8);
        driver.transact(tx as u16, &[&bytes], &[]);
    }
    clients.join().unwrap();
    assert_eq!(driver.reports(), []);
}

proptest! {
    /// Whatever a driver says, it is told a bounded number of things, and the ports go on.
    #[test]
    fn hostile_control_messages_do_no_harm(
        said in prop::collection::vec((prop_oneof![0..4u32, any::<u32>()], prop_oneof![0..9u16, any::<u16>()], 0..3u16, 0..12usize), 0..60),
    ) {
        let (sockets, mut inbox) = (Sockets::new(), Inbox::default());
        let mut console = sockets.console(false);
        let mut rig = Rig::new(&mut console, MULTIPORT | 1);
        let mut client = sockets.connect("a");
        rig.run(host(A));
        for (id, event, value, len) in said {
            let mut bytes = message(id, event, value);
            bytes.resize(len.max(1), 0xff);
            let text = rig.put(&bytes);
            rig.offer(3, &[text], &[]);
            rig.run(CONTROL_KICK);
            prop_assert!(rig.used(3).is_some());
        }
        let told = inbox.told(&mut rig);
        // Six kinds for each port, and what buffers were there for by then.
        prop_assert!(told.len() <= 3 * 6 + 1, "{told:?}");
        let told = open_all(&mut rig, &mut inbox);
        prop_assert!(told.contains(&message(1, 6, 1)));
        client.write_all(b"in").unwrap();
        rig.run(host(A));
        prop_assert_eq!(read(&mut rig, A), "in");
        write(&mut rig, A, "out");
        prop_assert_eq!(got(&mut client), "out");
    }
}

crate::conformance_tests!(conformance, || {
    let sockets = Sockets::new();
    let (ours, keyboard) = UnixStream::pair().unwrap();
    let first = ConsolePort::console(
        Some(ConsoleInput::new(ours).unwrap()),
        ConsoleOutput::writer(SinkThatHolds(keyboard)),
    );
    Console::with_ports([first, sockets.port("a"), sockets.port("b")]).unwrap()
});
