use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ossature_bus::DeviceState;
use ossature_memory::Segment;
use ossature_memory::vm_memory::ByteValued;
use proptest::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use virtio_vsock::packet::PacketHeader;

use super::credit::Credit;
use super::deadlines::Wait;
use super::packet::{END_OF_MESSAGE, HEADER_LEN, Header, SHUT_RECEIVE, SHUT_SEND, op};
use super::*;
use crate::rig::{Rig, config, counter};
use crate::{QueueBroken, Turn};

const HOST: u16 = 3;
const CID_OF_GUEST: u64 = 42;
const STREAM: u16 = 1;
const PACKETS: u16 = 2;
/// What the guest says it keeps.
const ROOM: u32 = 256 << 10;
/// How long a test waits for what has to happen.
const PATIENCE: Duration = Duration::from_secs(60);

fn cid() -> Cid {
    CID_OF_GUEST.try_into().unwrap()
}

/// The guest's driver, a device, and a folder with its sockets.
struct Guest {
    rig: Rig,
    device: Vsock,
    folder: tempfile::TempDir,
    posted: HashMap<u16, Segment>,
    /// Buffers that are posted again as soon as they come back.
    size: u32,
    room: u32,
}

impl Guest {
    fn new() -> Self {
        Self::with(|device, _| device)
    }

    fn with(more: impl FnOnce(Vsock, &Path) -> Vsock) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = HostSocket::bind(folder.path().join("vm")).unwrap();
        let device = more(Vsock::new(cid()).unwrap().with_socket(socket).unwrap(), folder.path());
        Self::of(device, folder)
    }

    fn of(mut device: Vsock, folder: tempfile::TempDir) -> Self {
        let features = device.info().features;
        let rig = Rig::new(&mut device, features);
        let mut guest = Self { rig, device, folder, posted: HashMap::new(), size: 4096, room: ROOM };
        guest.post(32);
        guest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Posts receive buffers.
    fn post(&mut self, count: usize) {
        for _ in 0..count {
            let segment = self.rig.alloc(self.size);
            let head = self.rig.offer(0, &[], &[segment]);
            self.posted.insert(head, segment);
        }
    }

    fn header(&self, guest: u32, host: u32, op: u16) -> Header {
        Header {
            src_cid: CID_OF_GUEST,
            dst_cid: 2,
            src_port: guest,
            dst_port: host,
            kind: STREAM,
            op,
            buf_alloc: self.room,
            ..Header::default()
        }
    }

    fn send(&mut self, header: Header, data: &[u8]) {
        let mut bytes = header.raw().as_slice().to_vec();
        bytes.extend_from_slice(data);
        self.send_raw(&bytes);
    }

    fn send_raw(&mut self, bytes: &[u8]) {
        let segment = self.rig.put(bytes);
        self.rig.offer(1, &[segment], &[]);
        self.run();
        let used = self.rig.used(1).expect("the packet was taken");
        assert_eq!(used.len, 0);
    }

    fn say(&mut self, guest: u32, host: u32, op: u16) {
        self.send(self.header(guest, host, op), &[]);
    }

    fn write(&mut self, guest: u32, host: u32, data: &[u8]) {
        self.send(Header { len: data.len() as u32, ..self.header(guest, host, op::RW) }, data);
    }

    /// Turns until all sleep.
    fn run(&mut self) {
        for _ in 0..1000 {
            let turns = [HOST, TX, RX, EVENT].map(|token| self.rig.turn(token).unwrap());
            if turns.iter().all(|turn| *turn == Turn::Sleep) && !self.is_ready() {
                return;
            }
        }
        panic!("the worker never sleeps");
    }

    /// The host's kernel has something for the device.
    fn is_ready(&self) -> bool {
        let hub = lock(&self.device.hub);
        ready(hub.descriptor(), PollFlags::IN)
    }

    /// Packets that the guest got, whose buffers are posted again.
    fn packets(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut packets = Vec::new();
        self.run();
        while let Some(used) = self.rig.used(0) {
            let segment = self.posted.remove(&(used.head as u16)).expect("a buffer that was posted");
            let bytes = self.rig.get(segment);
            let mut raw = PacketHeader::default();
            raw.as_mut_slice().copy_from_slice(&bytes[..HEADER_LEN]);
            let header = Header::parse(&raw);
            assert_eq!((header.src_cid, header.dst_cid), (2, CID_OF_GUEST));
            assert_eq!(used.len, HEADER_LEN as u32 + header.len);
            packets.push((header, bytes[HEADER_LEN..used.len as usize].to_vec()));
            let head = self.rig.offer(0, &[], &[segment]);
            self.posted.insert(head, segment);
            self.run();
        }
        packets
    }

    /// What the guest was told without data.
    fn ops(&mut self) -> Vec<u16> {
        self.packets().iter().map(|(header, _)| header.op).collect()
    }

    /// The bytes that the guest got on a connection.
    fn data(&mut self, guest: u32, host: u32) -> Vec<u8> {
        let mine = |header: &Header| (header.dst_port, header.src_port, header.op) == (guest, host, op::RW);
        self.packets().into_iter().filter(|(header, _)| mine(header)).flat_map(|(_, data)| data).collect()
    }

    fn listen(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.path(&format!("vm_{port}"))).unwrap()
    }

    /// A connection from the guest's port 1000 to the host's `port`.
    fn connect(&mut self, guest: u32, port: u32, listener: &UnixListener) -> UnixStream {
        self.say(guest, port, op::REQUEST);
        let packets = self.packets();
        assert_eq!(packets.len(), 1, "{packets:?}");
        assert_eq!((packets[0].0.op, packets[0].0.dst_port), (op::RESPONSE, guest));
        let stream = listener.accept().unwrap().0;
        stream.set_nonblocking(true).unwrap();
        stream
    }

    /// A connection from a program to the guest's `port`, and the program's port.
    fn called(&mut self, port: u32) -> (UnixStream, u32) {
        let mut stream = UnixStream::connect(self.path("vm")).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream.write_all(format!("CONNECT {port}\n").as_bytes()).unwrap();
        let packets = self.packets();
        assert_eq!((packets.len(), packets[0].0.op, packets[0].0.dst_port), (1, op::REQUEST, port));
        let host = packets[0].0.src_port;
        self.say(port, host, op::RESPONSE);
        assert_eq!(read(&mut stream), format!("OK {host}\n").as_bytes());
        (stream, host)
    }
}

fn ready(fd: impl AsFd, flags: PollFlags) -> bool {
    poll(&mut [PollFd::from_borrowed_fd(fd.as_fd(), flags)], Some(&Timespec::default())).unwrap() > 0
}

/// What a non-blocking stream has.
fn read(stream: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
        end => _ = end.unwrap(),
    }
    all
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

#[test]
fn the_guest_reads_its_address() {
    assert_eq!(config(&Guest::new().device), CID_OF_GUEST.to_le_bytes());
}

#[test]
fn the_guest_connects_to_a_socket_of_the_host() {
    let mut guest = Guest::new();
    let listener = guest.listen(52);
    let mut stream = guest.connect(1000, 52, &listener);
    guest.write(1000, 52, b"from the guest");
    assert_eq!(read(&mut stream), b"from the guest");
    stream.write_all(b"from the host").unwrap();
    assert_eq!(guest.data(1000, 52), b"from the host");
    assert_eq!(counter(&guest.device, "connections"), 1);
    assert_eq!(counter(&guest.device, "tx_bytes"), 14);
    assert_eq!(counter(&guest.device, "rx_bytes"), 13);
}

#[test]
fn a_program_connects_to_the_guest() {
    let mut guest = Guest::new();
    let (mut first, a) = guest.called(80);
    let (mut second, b) = guest.called(80);
    assert_ne!(a, b);
    first.write_all(b"one").unwrap();
    second.write_all(b"two").unwrap();
    assert_eq!(guest.data(80, a), b"one");
    second.write_all(b"more").unwrap();
    assert_eq!(guest.data(80, b), b"more");
    guest.write(80, a, b"answer");
    assert_eq!((read(&mut first), read(&mut second)), (b"answer".to_vec(), vec![]));
}

#[test]
fn what_follows_the_text_is_not_lost() {
    let mut guest = Guest::new();
    let mut stream = UnixStream::connect(guest.path("vm")).unwrap();
    for piece in ["CON", "NECT ", "7", "\nat once"] {
        stream.write_all(piece.as_bytes()).unwrap();
        guest.run();
    }
    drop(stream);
    let (header, _) = guest.packets().remove(0);
    guest.say(7, header.src_port, op::RESPONSE);
    // The program has left, and never reads the answer.
    let packets = guest.packets();
    let data: Vec<u8> = packets.iter().flat_map(|(_, data)| data.clone()).collect();
    assert!(data == b"at once" || packets.iter().any(|(header, _)| header.op == op::RST), "{packets:?}");
}

#[test]
fn refused_where_nobody_listens() {
    let mut guest = Guest::new();
    guest.say(1000, 53, op::REQUEST);
    assert_eq!(guest.ops(), [op::RST]);
    // Left behind by a program that has gone.
    drop(guest.listen(54));
    guest.say(1000, 54, op::REQUEST);
    assert_eq!(guest.ops(), [op::RST]);
    assert_eq!(counter(&guest.device, "refused_connections"), 2);
    // The other way round the guest refuses.
    let mut stream = UnixStream::connect(guest.path("vm")).unwrap();
    stream.write_all(b"CONNECT 9\n").unwrap();
    let (header, _) = guest.packets().remove(0);
    guest.say(9, header.src_port, op::RST);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(guest.ops(), [0u16; 0]);
}

#[test]
fn each_direction_ends_by_itself() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    // The host ends first.
    let mut stream = guest.connect(1000, 1, &listener);
    stream.write_all(b"last words").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let packets = guest.packets();
    assert_eq!(packets[0].1, b"last words");
    assert_eq!((packets[1].0.op, packets[1].0.flags), (op::SHUTDOWN, SHUT_SEND));
    guest.write(1000, 1, b"still");
    assert_eq!(read(&mut stream), b"still");
    guest.send(Header { flags: SHUT_SEND, ..guest.header(1000, 1, op::SHUTDOWN) }, &[]);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0, "the host reads the end");
    guest.send(Header { flags: SHUT_RECEIVE | SHUT_SEND, ..guest.header(1000, 1, op::SHUTDOWN) }, &[]);
    // Both directions have ended, which the guest is told, too.
    assert_eq!(guest.ops(), [op::SHUTDOWN, op::RST]);
    // The guest ends first.
    let mut stream = guest.connect(1001, 1, &listener);
    guest.send(Header { flags: SHUT_SEND, ..guest.header(1001, 1, op::SHUTDOWN) }, &[]);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    stream.write_all(b"answer").unwrap();
    assert_eq!(guest.data(1001, 1), b"answer");
    guest.send(Header { flags: SHUT_RECEIVE, ..guest.header(1001, 1, op::SHUTDOWN) }, &[]);
    assert_eq!(guest.ops(), [op::RST]);
    assert_eq!(stream.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    assert!(!lock(&guest.device.hub).has_connections());
}

#[test]
fn a_program_that_leaves_is_told_of_and_its_data_arrive() {
    let mut guest = Guest::new();
    lock(&guest.device.hub).set_wait(Wait::Close, Duration::from_millis(1));
    let listener = guest.listen(1);
    let mut stream = guest.connect(1000, 1, &listener);
    // It leaves something unread, so that its end is a reset for us.
    guest.write(1000, 1, b"unread");
    stream.write_all(&pattern(9000)).unwrap();
    drop(stream);
    let packets = guest.packets();
    let data: Vec<u8> = packets.iter().flat_map(|(_, data)| data.clone()).collect();
    assert_eq!(data, pattern(9000));
    let (last, _) = packets.iter().rfind(|(header, _)| header.op == op::SHUTDOWN).unwrap();
    assert_eq!(last.flags, SHUT_RECEIVE | SHUT_SEND);
    // A guest that says nothing is not waited for.
    let since = Instant::now();
    let mut ops: Vec<u16> = packets.iter().map(|(header, _)| header.op).collect();
    while !ops.contains(&op::RST) {
        assert!(since.elapsed() < PATIENCE);
        ops.extend(guest.ops());
    }
    assert!(!lock(&guest.device.hub).has_connections());
}

#[test]
fn what_the_guest_sent_before_it_left_arrives() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut stream = guest.connect(1000, 1, &listener);
    let sent = fill(&mut guest, 1000, 1);
    guest.send(Header { flags: SHUT_RECEIVE | SHUT_SEND, ..guest.header(1000, 1, op::SHUTDOWN) }, &[]);
    assert!(!guest.ops().contains(&op::RST), "it waits until the host has all");
    // The guest does not.
    guest.say(1000, 1, op::RST);
    // Its port may be used again.
    let mut other = guest.connect(1000, 1, &listener);
    let mut got = Vec::new();
    while got.len() < sent.len() {
        got.extend(read(&mut stream));
        guest.run();
    }
    assert!(got == sent);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    guest.write(1000, 1, b"new");
    assert_eq!(read(&mut other), b"new");
    assert_eq!(lock(&guest.device.hub).table.len(), 1);
}

/// Sends until the guest's credit is used up, and the device says so; what was sent.
fn fill(guest: &mut Guest, port: u32, host: u32) -> Vec<u8> {
    let mut sent = Vec::new();
    let mut start = None;
    loop {
        guest.say(port, host, op::CREDIT_REQUEST);
        let (told, _) = guest.packets().into_iter().rfind(|(header, _)| header.dst_port == port).unwrap();
        assert_eq!(told.op, op::CREDIT_UPDATE);
        let start = *start.get_or_insert(told.fwd_cnt);
        let in_flight = (start + sent.len() as u32).wrapping_sub(told.fwd_cnt);
        let room = told.buf_alloc.saturating_sub(in_flight).min(32 << 10) as usize;
        if room == 0 {
            return sent;
        }
        let data: Vec<u8> = pattern(sent.len() + room)[sent.len()..].to_vec();
        guest.write(port, host, &data);
        sent.extend(data);
    }
}

#[test]
fn a_program_that_does_not_read_keeps_only_its_own_connection_waiting() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut slow = guest.connect(1000, 1, &listener);
    let mut fast = guest.connect(1001, 1, &listener);
    let sent = fill(&mut guest, 1000, 1);
    assert!(sent.len() > 64 << 10);
    guest.run(); // and sleeps, although the socket is full
    for _ in 0..100 {
        guest.write(1001, 1, &pattern(10_000));
        assert_eq!(read(&mut fast), pattern(10_000));
        fast.write_all(b"to the guest").unwrap();
        assert_eq!(guest.data(1001, 1), b"to the guest");
    }
    let mut got = Vec::new();
    while got.len() < sent.len() {
        got.extend(read(&mut slow));
        guest.run();
    }
    assert!(got == sent);
    // More than it may is the end of that connection, and of no other.
    fill(&mut guest, 1000, 1);
    guest.write(1000, 1, b"x");
    let packets = guest.packets();
    assert_eq!(
        packets.iter().map(|(header, _)| (header.op, header.dst_port)).collect::<Vec<_>>(),
        [(op::RST, 1000)]
    );
    guest.write(1001, 1, b"on");
    assert_eq!(read(&mut fast), b"on");
}

#[test]
fn a_guest_that_gives_no_credit_is_asked_once_and_keeps_nobody_waiting() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    guest.room = 100;
    let mut poor = guest.connect(1000, 1, &listener);
    guest.room = ROOM;
    let mut rich = guest.connect(1001, 1, &listener);
    poor.write_all(&pattern(1000)).unwrap();
    rich.write_all(&pattern(50_000)).unwrap();
    let packets = guest.packets();
    let of = |port: u32, op: u16| {
        packets.iter().filter(move |(header, _)| (header.dst_port, header.op) == (port, op))
    };
    assert_eq!(of(1000, op::RW).map(|(_, data)| data.len()).sum::<usize>(), 100);
    assert_eq!(of(1000, op::CREDIT_REQUEST).count(), 1);
    assert_eq!(of(1001, op::RW).flat_map(|(_, data)| data.clone()).collect::<Vec<_>>(), pattern(50_000));
    let update = Header { fwd_cnt: 100, buf_alloc: 5000, ..guest.header(1000, 1, op::CREDIT_UPDATE) };
    guest.send(update, &[]);
    assert_eq!(guest.data(1000, 1), pattern(1000)[100..]);
}

#[test]
fn b1_lengths_that_lie() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    for (said, has) in
        [(5u32, 4usize), (1, 0), ((64 << 10) + 1, (64 << 10) + 1), (u32::MAX, 100), (1 << 31, 0)]
    {
        let mut stream = guest.connect(1000, 1, &listener);
        guest.send(Header { len: said, ..guest.header(1000, 1, op::RW) }, &pattern(has));
        assert_eq!(guest.ops(), [op::RST], "{said} bytes of {has}");
        assert_eq!(read(&mut stream), b"");
    }
    let mut stream = guest.connect(1000, 1, &listener);
    // None, fewer than there are, and the most.
    guest.write(1000, 1, b"");
    guest.send(Header { len: 4, ..guest.header(1000, 1, op::RW) }, b"datadata");
    assert_eq!(read(&mut stream), b"data");
    guest.write(1000, 1, &pattern(64 << 10));
    assert_eq!(read(&mut stream), pattern(64 << 10));
    // Headers that are none.
    for len in [1, HEADER_LEN - 1] {
        guest.send_raw(&vec![0xff; len]);
    }
    assert_eq!(guest.ops(), [0u16; 0]);
    guest.write(1000, 1, b"on");
    assert_eq!(read(&mut stream), b"on");
}

#[test]
fn b1_buffers_that_are_too_small() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut stream = guest.connect(1000, 1, &listener);
    // Those that wait come first.
    stream.write_all(&pattern(32 * 4000)).unwrap();
    guest.packets();
    for size in [1, HEADER_LEN as u32 - 1, HEADER_LEN as u32, HEADER_LEN as u32 + 1] {
        guest.size = size;
        guest.post(1);
    }
    stream.write_all(&pattern(200_000)).unwrap();
    let mut used = Vec::new();
    for _ in 0..100 {
        guest.run();
        while let Some(chain) = guest.rig.used(0) {
            used.push(chain.len);
        }
    }
    let dropped = counter(&guest.device, "dropped_packets");
    assert!(dropped >= 3, "{dropped} of {used:?}");
    assert_eq!(used.iter().filter(|len| **len == 0).count(), 3, "{used:?}");
    assert_eq!(used.last(), Some(&(HEADER_LEN as u32 + 1)), "{used:?}");
}

#[test]
fn bursts_arrive_in_buffers_of_all_shapes() {
    const SHAPES: [&[u32]; 7] =
        [&[4096], &[44, 4096], &[100], &[44], &[30, 1014], &[45], &[20, 20, 4, 7, 900]];
    let mut guest = Guest::new();
    let listener = guest.listen(80);
    let mut stream = guest.connect(1000, 80, &listener);
    let mut posted: HashMap<u16, Vec<Segment>> =
        guest.posted.drain().map(|(head, segment)| (head, vec![segment])).collect();
    let sent = pattern(200 << 10);
    let (mut arrived, mut left, mut shapes) = (Vec::new(), &sent[..], SHAPES.iter().cycle());
    for round in 1.. {
        let burst = left.len().min(round * 2741 % 20_000);
        stream.write_all(&left[..burst]).unwrap();
        left = &left[burst..];
        guest.run();
        while let Some(used) = guest.rig.used(0) {
            let segments = posted.remove(&(used.head as u16)).expect("a buffer that was posted");
            let bytes: Vec<u8> = segments.iter().flat_map(|segment| guest.rig.get(*segment)).collect();
            if used.len == 0 {
                assert_eq!(bytes.len(), HEADER_LEN, "a buffer with room was not used");
                continue;
            }
            let mut raw = PacketHeader::default();
            raw.as_mut_slice().copy_from_slice(&bytes[..HEADER_LEN]);
            let header = Header::parse(&raw);
            assert_eq!((header.op, used.len), (op::RW, HEADER_LEN as u32 + header.len));
            arrived.extend_from_slice(&bytes[HEADER_LEN..used.len as usize]);
        }
        if arrived.len() == sent.len() {
            break;
        }
        while posted.len() < 24 {
            let segments: Vec<_> = shapes.next().unwrap().iter().map(|len| guest.rig.alloc(*len)).collect();
            posted.insert(guest.rig.offer(0, &[], &segments), segments);
        }
    }
    assert_eq!(arrived, sent);
}

#[test]
fn b1_counters_that_lie() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut honest = guest.connect(999, 1, &listener);
    for (alloc, used) in
        [(0, 0), (u32::MAX, u32::MAX), (100, 1 << 31), (u32::MAX, 1 << 31), (0, u32::MAX), (1, 1)]
    {
        let mut stream = guest.connect(1000, 1, &listener);
        let lie = Header { buf_alloc: alloc, fwd_cnt: used, ..guest.header(1000, 1, op::CREDIT_UPDATE) };
        guest.send(lie, &[]);
        stream.write_all(&pattern(10_000)).unwrap();
        let got = guest.data(1000, 1);
        assert!(got == pattern(10_000)[..got.len()]);
        honest.write_all(b"honest").unwrap();
        assert_eq!(guest.data(999, 1), b"honest");
        guest.say(1000, 1, op::RST);
        assert_eq!(guest.ops(), [0u16; 0]);
    }
}

#[test]
fn b2_texts_that_are_none() {
    let mut guest = Guest::new();
    let long = [b"CONNECT ".as_slice(), &[b'1'; 100]].concat();
    for text in [
        b"\n".as_slice(),
        b"CONNECT\n",
        b"CONNECT x\n",
        b"CONNECT 4294967296\n",
        b"GET / HTTP/1.1\r\n\r\n",
        &long,
    ] {
        let mut stream = UnixStream::connect(guest.path("vm")).unwrap();
        stream.write_all(text).unwrap();
        guest.run();
        let end = stream.read(&mut [0; 8]);
        assert!(matches!(end, Ok(0)) || end.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset));
    }
    // One that leaves in the middle.
    let mut stream = UnixStream::connect(guest.path("vm")).unwrap();
    stream.write_all(b"CONNECT 1").unwrap();
    guest.run();
    drop(stream);
    assert_eq!(guest.ops(), [0u16; 0]);
    assert_eq!(lock(&guest.device.hub).table.len(), 0);
    assert_eq!(counter(&guest.device, "refused_connections"), 7);
    guest.called(80);
}

#[test]
fn b2_a_text_that_never_comes_is_not_waited_for() {
    let mut guest = Guest::new();
    lock(&guest.device.hub).set_wait(Wait::Answer, Duration::from_millis(1));
    let mut silent = UnixStream::connect(guest.path("vm")).unwrap();
    let mut partial = UnixStream::connect(guest.path("vm")).unwrap();
    partial.write_all(b"CONNECT ").unwrap();
    let mut unanswered = UnixStream::connect(guest.path("vm")).unwrap();
    unanswered.write_all(b"CONNECT 5\n").unwrap();
    let (mut ops, since) = (Vec::new(), Instant::now());
    while lock(&guest.device.hub).table.len() > 0 || ops.is_empty() {
        assert!(since.elapsed() < PATIENCE);
        ops.extend(guest.ops());
    }
    assert_eq!(silent.read(&mut [0; 8]).unwrap(), 0);
    assert_eq!(unanswered.read(&mut [0; 8]).unwrap(), 0);
    assert!(partial.read(&mut [0; 8]).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset));
    // The guest, if it was asked before the end, is told.
    assert!(ops.ends_with(&[op::RST]), "{ops:?}");
}

/// Sends a packet of each header as fast as the ring takes them, without taking an answer.
fn flood(guest: &mut Guest, headers: impl Iterator<Item = Header>) {
    for header in headers {
        let segment = Segment { len: HEADER_LEN as u32, ..guest.rig.put(header.raw().as_slice()) };
        guest.rig.offer(1, &[segment], &[]);
        guest.run();
        if guest.rig.used(1).is_none() {
            return;
        }
    }
    panic!("the device takes packets without bound");
}

#[test]
fn b2_floods_of_requests_and_of_nonsense_are_bounded() {
    for op in [op::REQUEST, op::RW, op::SHUTDOWN, 99] {
        let mut guest = Guest::new();
        let listener = guest.listen(1);
        let mut stream = guest.connect(1000, 1, &listener);
        let headers: Vec<Header> = (0..2000).map(|port| guest.header(port + 2000, 7, op)).collect();
        flood(&mut guest, headers.into_iter());
        // Once the guest takes the answers, all goes on.
        let answers = guest.packets();
        assert!(answers.len() >= 256 && answers.iter().all(|(header, _)| header.op == op::RST));
        assert!(guest.rig.used(1).is_some());
        guest.write(1000, 1, b"on");
        assert_eq!(read(&mut stream), b"on");
    }
}

#[test]
fn b2_a_flood_of_resets_is_not_answered() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    for round in 0..200 {
        guest.say(round, 99, op::RST);
        let mut stream = guest.connect(1000, 1, &listener);
        guest.say(1000, 1, op::RST);
        guest.say(1000, 1, op::RST);
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    }
    assert_eq!(guest.ops(), [0u16; 0]);
    assert_eq!(lock(&guest.device.hub).table.len(), 0);
}

#[test]
fn b2_packets_out_of_turn() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    for op in [op::REQUEST, op::RESPONSE, 0, 8, u16::MAX] {
        let mut stream = guest.connect(1000, 1, &listener);
        guest.say(1000, 1, op);
        assert_eq!(guest.ops(), [op::RST], "{op}");
        assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
    }
    // Data after the end.
    let _stream = guest.connect(1000, 1, &listener);
    guest.send(Header { flags: SHUT_SEND, ..guest.header(1000, 1, op::SHUTDOWN) }, &[]);
    guest.write(1000, 1, b"more");
    assert_eq!(guest.ops(), [op::RST]);
    // Another guest's, another host's, another type's.
    for header in [
        Header { src_cid: 43, ..guest.header(1, 1, op::REQUEST) },
        Header { dst_cid: 1, ..guest.header(1, 1, op::REQUEST) },
        Header { src_cid: CID_OF_GUEST | 1 << 32, ..guest.header(1, 1, op::REQUEST) },
    ] {
        guest.send(header, &[]);
        assert_eq!(guest.ops(), [0u16; 0]);
    }
    for kind in [0, 2, 3, u16::MAX] {
        guest.send(Header { kind, ..guest.header(1, 1, op::REQUEST) }, &[]);
        let packets = guest.packets();
        assert_eq!((packets.len(), packets[0].0.op, packets[0].0.kind), (1, op::RST, kind));
        guest.send(Header { kind, ..guest.header(1, 1, op::RST) }, &[]);
        assert_eq!(guest.ops(), [0u16; 0]);
    }
    // Before the guest has accepted.
    let mut stream = UnixStream::connect(guest.path("vm")).unwrap();
    stream.write_all(b"CONNECT 6\n").unwrap();
    let (header, _) = guest.packets().remove(0);
    guest.write(6, header.src_port, b"early");
    assert_eq!(guest.ops(), [op::RST]);
}

#[test]
fn a_busy_socket_is_tried_for_a_while() {
    let folder = tempfile::tempdir().unwrap();
    let busy = Arc::new(Mutex::new(3));
    let (ours, theirs) = UnixStream::pair().unwrap();
    let sockets = Mutex::new(Some(theirs));
    let left = Arc::clone(&busy);
    let connect = move |_: u32| {
        let mut left = left.lock().unwrap();
        if *left > 0 {
            *left -= 1;
            return Err(io::ErrorKind::WouldBlock.into());
        }
        sockets.lock().unwrap().take().map(OwnedFd::from).ok_or_else(|| io::ErrorKind::WouldBlock.into())
    };
    let listener = UnixListener::bind(folder.path().join("vm")).unwrap();
    let socket = HostSocket::new(listener, connect).unwrap();
    let mut guest = Guest::of(Vsock::new(cid()).unwrap().with_socket(socket).unwrap(), folder);
    guest.say(1000, 1, op::REQUEST);
    let (since, mut ops) = (Instant::now(), Vec::new());
    while ops.is_empty() {
        assert!(since.elapsed() < PATIENCE);
        ops = guest.ops();
    }
    assert_eq!((ops, *busy.lock().unwrap()), (vec![op::RESPONSE], 0));
    let mut ours = ours;
    guest.write(1000, 1, b"late");
    ours.set_nonblocking(true).unwrap();
    assert_eq!(read(&mut ours), b"late");
    // It is never free again.
    guest.say(1001, 1, op::REQUEST);
    let mut ops = Vec::new();
    while ops.is_empty() {
        assert!(since.elapsed() < PATIENCE);
        ops = guest.ops();
    }
    assert_eq!(ops, [op::RST]);
}

#[test]
fn b2_many_busy_sockets_are_tried_in_turns() {
    let folder = tempfile::tempdir().unwrap();
    let tried = Arc::new(Mutex::new(0));
    let count = Arc::clone(&tried);
    let connect = move |_: u32| {
        *count.lock().unwrap() += 1;
        Err(io::ErrorKind::WouldBlock.into())
    };
    let listener = UnixListener::bind(folder.path().join("vm")).unwrap();
    let socket = HostSocket::new(listener, connect).unwrap();
    let mut guest = Guest::of(Vsock::new(cid()).unwrap().with_socket(socket).unwrap(), folder);
    for port in 0..200 {
        guest.say(1000 + port, 1, op::REQUEST);
    }
    // Long enough for all to be due.
    std::thread::sleep(Duration::from_millis(20));
    let before = *tried.lock().unwrap();
    let _ = guest.rig.turn(HOST).unwrap();
    let one_turn = *tried.lock().unwrap() - before;
    assert!(one_turn <= 64, "{one_turn}");
}

#[test]
fn b2_programs_that_come_and_go_leave_nothing_to_a_guest_that_takes_nothing() {
    let mut guest = Guest::new();
    lock(&guest.device.hub).set_wait(Wait::Answer, Duration::from_millis(1));
    for _ in 0..100 {
        let mut program = UnixStream::connect(guest.path("vm")).unwrap();
        program.write_all(b"CONNECT 5\n").unwrap();
        guest.run();
    }
    let since = Instant::now();
    while lock(&guest.device.hub).table.len() > 0 {
        assert!(since.elapsed() < PATIENCE);
        guest.run();
    }
    // It was asked as often as it has buffers.
    assert!(lock(&guest.device.hub).replies.len() <= 32);
}

#[test]
fn no_more_connections_than_there_may_be() {
    let mut guest = Guest::with(|device, _| device.with_max_connections(2));
    let listener = guest.listen(1);
    let _first = guest.connect(1000, 1, &listener);
    let second = guest.connect(1001, 1, &listener);
    guest.say(1002, 1, op::REQUEST);
    assert_eq!(guest.ops(), [op::RST]);
    let mut program = UnixStream::connect(guest.path("vm")).unwrap();
    guest.run();
    assert_eq!(program.read(&mut [0; 8]).unwrap(), 0);
    guest.say(1001, 1, op::RST);
    drop(second);
    guest.connect(1002, 1, &listener);
}

#[test]
fn ten_thousand_connections() {
    const COUNT: u32 = 10_000;
    /// So many wait at one socket of the host's, whose programs' ends take no descriptor of this process.
    const EACH: u32 = 100;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, most).unwrap();
    assert!(limit.maximum.is_none_or(|limit| limit > 12_000), "too few descriptors: {limit:?}");
    let mut guest = Guest::with(|device, _| device.with_max_connections(COUNT as usize));
    let listeners: Vec<_> = (0..COUNT / EACH).map(|port| guest.listen(port)).collect();
    let small = guest.rig.put(&[guest.header(0, 0, 0).raw().as_slice(), &[0; 4]].concat());
    let send = |guest: &mut Guest, port: u32, op: u16, len: u32| {
        let header = Header { len, ..guest.header(port, port / EACH, op) };
        let bytes = [header.raw().as_slice(), &header.src_port.to_le_bytes()].concat();
        guest.rig.dma.write(small.addr, &bytes).unwrap();
        guest.rig.offer(1, &[small], &[]);
        let _ = guest.rig.turn(TX).unwrap();
        guest.rig.used(1).expect("the packet was taken");
    };
    let mut answered = HashSet::new();
    for port in 0..COUNT {
        send(&mut guest, port, op::REQUEST, 0);
        send(&mut guest, port, op::RW, 4);
        if port % 16 == 15 {
            answered.extend(guest.packets().iter().map(|(header, _)| (header.op, header.dst_port)));
        }
    }
    assert_eq!(answered, (0..COUNT).map(|port| (op::RESPONSE, port)).collect());
    assert_eq!(lock(&guest.device.hub).table.len(), COUNT as usize);
    // Hundreds at once have something for the guest.
    for (listeners, first) in listeners.chunks(5).zip((0..COUNT).step_by(5 * EACH as usize)) {
        let mut streams = Vec::new();
        for listener in listeners {
            for _ in 0..EACH {
                let mut stream = listener.accept().unwrap().0;
                let mut port = [0; 4];
                stream.read_exact(&mut port).unwrap();
                stream.write_all(&port).unwrap();
                streams.push(stream);
            }
        }
        let mut got = HashSet::new();
        for (header, data) in guest.packets() {
            assert_eq!((header.op, &*data), (op::RW, &header.dst_port.to_le_bytes()[..]));
            assert!(got.insert(header.dst_port));
        }
        assert_eq!(got, (first..first + 5 * EACH).collect());
        // Each ends.
        for port in got {
            send(&mut guest, port, op::RST, 0);
        }
        assert!(streams.iter_mut().all(|stream| stream.read(&mut [0; 8]).unwrap() == 0));
    }
    assert_eq!(guest.ops(), [0u16; 0]);
    assert_eq!(lock(&guest.device.hub).table.len(), 0);
}

#[test]
fn b2_transfers_in_flight_are_over_after_a_restore_and_go_on_after_a_pause() {
    let mut guest = Guest::new();
    let listener = guest.listen(1);
    let mut stream = guest.connect(1000, 1, &listener);
    stream.write_all(&pattern(3000)).unwrap();
    let queues = guest.rig.stop();
    guest.rig.start_with(&mut guest.device, queues);
    assert_eq!(guest.data(1000, 1), pattern(3000));
    guest.write(1000, 1, b"on");
    assert_eq!(read(&mut stream), b"on");
    let queues = guest.rig.stop();
    let DeviceState::Saved(state) = guest.device.save().unwrap() else { panic!("a state") };
    guest.device.reset();
    guest.device.restore(state).unwrap();
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0, "the connection is closed");
    guest.rig.start_with(&mut guest.device, queues);
    // It waits until the guest has given buffers: one that is too small first.
    guest.run();
    let (small, event) = (guest.rig.alloc(3), guest.rig.alloc(8));
    let (small, head) = (guest.rig.offer(2, &[], &[small]), guest.rig.offer(2, &[], &[event]));
    guest.run();
    assert_eq!(guest.rig.used(2).map(|used| (used.head, used.len)), Some((small.into(), 0)));
    assert_eq!(guest.rig.used(2).map(|used| (used.head, used.len)), Some((head.into(), 4)));
    assert_eq!(guest.rig.get(event)[..4], [0; 4]);
    // Once.
    let event = guest.rig.alloc(8);
    guest.rig.offer(2, &[], &[event]);
    guest.run();
    assert_eq!(guest.rig.used(2), None);
    guest.write(1000, 1, b"late");
    assert_eq!(guest.ops(), [op::RST]);
    guest.connect(1000, 1, &listener);
}

#[test]
fn a_state_of_another_address_is_refused() {
    let mut other = Vsock::new(43.try_into().unwrap()).unwrap();
    let DeviceState::Saved(state) = other.save().unwrap() else { panic!("a state") };
    let mut device = Vsock::new(cid()).unwrap();
    assert!(matches!(device.restore(state), Err(StateError::Inconsistent { .. })));
}

#[test]
fn a_clone_has_its_own_address_and_its_driver_is_told() {
    let mut other = Vsock::new(43.try_into().unwrap()).unwrap();
    assert_eq!(other.identities(), [Identity::new("CID", "43")]);
    let saved = |device: &mut Vsock| match device.save().unwrap() {
        DeviceState::Saved(state) => state.for_clone(),
        other => panic!("{other:?}"),
    };
    let mut guest = Guest::new();
    let queues = guest.rig.stop();
    guest.device.restore(saved(&mut other)).unwrap();
    guest.rig.start_with(&mut guest.device, queues);
    // No connection was lost, and the driver asks for its address when it hears of a transport reset.
    let event = guest.rig.alloc(8);
    let head = guest.rig.offer(2, &[], &[event]);
    guest.run();
    assert_eq!(guest.rig.used(2).map(|used| (used.head, used.len)), Some((head.into(), 4)));
    assert_eq!(guest.rig.get(event)[..4], [0; 4]);
    let mut own = [0; 8];
    guest.device.read_config(0, &mut own);
    assert_eq!(own, u64::from(cid().get()).to_le_bytes());
    let state = saved(&mut other);
    assert!(other.restore(state).unwrap_err().to_string().contains("a clone needs one of its own"));
}

/// A socket of sequential packets.
fn seqpacket() -> OwnedFd {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(rustix::net::AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
}

fn receive(socket: &OwnedFd) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 300 << 10];
    let len = rustix::net::recv(socket, &mut bytes[..], RecvFlags::empty()).ok()?.0;
    bytes.truncate(len);
    Some(bytes)
}

fn transmit(socket: &OwnedFd, bytes: &[u8]) {
    assert_eq!(rustix::net::send(socket, bytes, SendFlags::empty()).unwrap(), bytes.len());
}

/// A guest with sequential packets, and a connection that a program has made to its port 5.
fn packets() -> (Guest, OwnedFd, u32) {
    let mut guest = Guest::with(|device, folder| {
        device.with_socket(HostSocket::bind_seqpacket(folder.join("packets")).unwrap()).unwrap()
    });
    let socket = seqpacket();
    rustix::net::connect(&socket, &SocketAddrUnix::new(guest.path("packets")).unwrap()).unwrap();
    transmit(&socket, b"CONNECT 5\n");
    let (header, _) = guest.packets().remove(0);
    assert_eq!((header.op, header.kind), (op::REQUEST, PACKETS));
    guest.send(Header { kind: PACKETS, ..guest.header(5, header.src_port, op::RESPONSE) }, &[]);
    assert_eq!(receive(&socket).unwrap(), format!("OK {}\n", header.src_port).as_bytes());
    (guest, socket, header.src_port)
}

/// Sends one packet of a message.
fn part(guest: &mut Guest, host: u32, data: &[u8], end: bool) {
    let flags = if end { END_OF_MESSAGE } else { 0 };
    let header = Header { kind: PACKETS, flags, len: data.len() as u32, ..guest.header(5, host, op::RW) };
    guest.send(header, data);
}

#[test]
fn messages_keep_their_bounds_both_ways() {
    let (mut guest, socket, host) = packets();
    assert_eq!(guest.device.info().features, 3);
    for message in [&b"one"[..], b"two", &pattern(20_000)] {
        transmit(&socket, message);
    }
    let mut messages = vec![Vec::new()];
    for (header, data) in guest.packets() {
        assert_eq!(header.op, op::RW);
        messages.last_mut().unwrap().extend(data);
        if header.flags & END_OF_MESSAGE != 0 {
            messages.push(Vec::new());
        }
    }
    assert_eq!(messages, [b"one".to_vec(), b"two".to_vec(), pattern(20_000), vec![]]);
    part(&mut guest, host, b"whole", true);
    part(&mut guest, host, &pattern(10_000)[..4000], false);
    part(&mut guest, host, &pattern(10_000)[4000..], false);
    part(&mut guest, host, b"", true);
    part(&mut guest, host, b"", true);
    part(&mut guest, host, b"last", true);
    for want in [b"whole".to_vec(), pattern(10_000), b"last".to_vec()] {
        assert_eq!(receive(&socket).unwrap(), want);
    }
    assert_eq!(receive(&socket), None);
    // A message that has no bytes is none, and does not end the connection.
    transmit(&socket, b"");
    transmit(&socket, b"behind it");
    assert_eq!(guest.packets().last().unwrap().1, b"behind it");
    drop(socket);
    let (header, _) = guest.packets().pop().unwrap();
    assert_eq!((header.op, header.flags), (op::SHUTDOWN, SHUT_RECEIVE | SHUT_SEND));
}

#[test]
fn a_guests_message_may_be_as_long_as_its_credit() {
    let (mut guest, socket, host) = packets();
    let message = pattern(256 << 10);
    for (number, data) in message.chunks(32 << 10).enumerate() {
        part(&mut guest, host, data, number == 7);
    }
    assert!(receive(&socket) == Some(message));
    // Many short ones wait for a program that takes its time.
    for _ in 0..5000 {
        part(&mut guest, host, b"short", true);
    }
    for _ in 0..5000 {
        assert_eq!(receive(&socket).as_deref(), Some(&b"short"[..]));
        guest.run();
    }
}

#[test]
fn a_part_of_a_message_does_not_come_on_another_connection() {
    let (mut guest, socket, host) = packets();
    // More than the guest has buffers for.
    transmit(&socket, &pattern(150 << 10));
    guest.run();
    assert!(lock(&guest.device.hub).message.is_some());
    // The program does not read, the guest has sent all, and leaves.
    for _ in 0..20 {
        part(&mut guest, host, &pattern(30_000), true);
    }
    let header = |guest: &Guest, op, flags| Header { kind: PACKETS, flags, ..guest.header(5, host, op) };
    guest.send(header(&guest, op::SHUTDOWN, SHUT_SEND), &[]);
    guest.send(header(&guest, op::RST, 0), &[]);
    let hub = lock(&guest.device.hub);
    assert_eq!((hub.table.len(), hub.message.is_some()), (1, false));
}

#[test]
fn a_message_waits_for_credit_and_for_buffers() {
    let (mut guest, socket, host) = packets();
    let update = |guest: &mut Guest, alloc: u32, used: u32| {
        let header = Header {
            kind: PACKETS,
            fwd_cnt: used,
            buf_alloc: alloc,
            ..guest.header(5, host, op::CREDIT_UPDATE)
        };
        guest.send(header, &[]);
    };
    update(&mut guest, 10_000, 0);
    transmit(&socket, &pattern(8000));
    transmit(&socket, &pattern(9000));
    let packets = guest.packets();
    assert_eq!(packets.iter().map(|(_, data)| data.len()).sum::<usize>(), 8000);
    assert_eq!(packets.last().unwrap().0.op, op::CREDIT_REQUEST);
    update(&mut guest, 10_000, 500);
    assert!(guest.packets().is_empty());
    update(&mut guest, 10_000, 8000);
    assert_eq!(guest.packets().iter().map(|(_, data)| data.len()).sum::<usize>(), 9000);
    // One for which there is never room.
    transmit(&socket, &pattern(10_001));
    assert_eq!(guest.ops(), [op::RST]);
}

#[test]
fn b2_messages_without_end_or_bytes_are_bounded() {
    let (mut guest, socket, host) = packets();
    let mut ops = Vec::new();
    for _ in 0..100 {
        part(&mut guest, host, &pattern(8000), false);
        ops.extend(guest.ops());
    }
    assert_eq!(ops.iter().filter(|op| **op == op::RST).count(), 100 - 32, "262144 bytes are kept");
    assert_eq!(receive(&socket), Some(vec![]), "the end");
    // Messages that nobody takes.
    let (mut guest, _socket, host) = packets();
    let mut ops = Vec::new();
    for _ in 0..10_000 {
        part(&mut guest, host, b"x", true);
        ops.extend(guest.ops());
        if ops.contains(&op::RST) {
            return;
        }
    }
    panic!("messages are kept without bound");
}

#[test]
fn a_file_is_removed_by_whoever_made_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vm");
    let first = HostSocket::bind(&path).unwrap();
    for other in [HostSocket::bind(&path), HostSocket::bind_seqpacket(&path)] {
        assert!(matches!(other, Err(HostSocketError::InUse { .. })), "{other:?}");
    }
    drop(first);
    assert!(!path.exists());
    // Left behind.
    drop(UnixListener::bind(&path).unwrap());
    let first = HostSocket::bind(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let second = HostSocket::bind(&path).unwrap();
    drop(first);
    assert!(path.exists(), "the second's");
    drop(second);
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(HostSocket::bind(&path), Err(HostSocketError::NotASocket { .. })));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let long = folder.path().join("x".repeat(97));
    assert!(matches!(HostSocket::bind(long), Err(HostSocketError::TooLong { .. })));
    let nowhere = HostSocket::bind(folder.path().join("no/vm")).unwrap_err();
    assert!(matches!(nowhere, HostSocketError::Io { .. }), "{nowhere}");
    assert!(
        HostSocket::new(std::net::UdpSocket::bind("127.0.0.1:0").unwrap(), |_| Err(
            io::ErrorKind::Other.into()
        ))
        .is_err()
    );
}

#[test]
fn headers_are_what_virtio_vsock_makes_of_them() {
    use virtio_queue::QueueT;
    use virtio_vsock::packet::VsockPacket;
    let dma = crate::testing::guest_ram(&[(0, 0x10_0000)]);
    let mut ring = crate::testing::GuestRing::new(dma.clone(), 0x1000, 8, 0);
    let mut theirs = virtio_queue::Queue::try_from(virtio_queue::QueueState {
        max_size: 8,
        size: 8,
        ready: true,
        desc_table: ring.desc,
        avail_ring: ring.avail,
        used_ring: ring.used,
        ..virtio_queue::QueueState::default()
    })
    .unwrap();
    for seed in 0..100u32 {
        let bytes: Vec<u8> = (0..HEADER_LEN as u32).map(|i| ((i + 1) * (seed + 7) * 13) as u8).collect();
        let mut raw = PacketHeader::default();
        raw.as_mut_slice().copy_from_slice(&bytes);
        // The length has to be that of the chain for theirs.
        let header = Header { len: 16, ..Header::parse(&raw) };
        let at = ossature_memory::vm_memory::GuestAddress(0x8000);
        dma.write(at, header.raw().as_slice()).unwrap();
        ring.offer(0, &[crate::testing::Desc::readable(Segment { addr: at, len: HEADER_LEN as u32 + 16 })]);
        let mut chain = theirs.pop_descriptor_chain(dma.memory()).unwrap();
        let packet = VsockPacket::from_tx_virtq_chain(dma.memory(), &mut chain, 64 << 10).unwrap();
        let found = Header {
            src_cid: packet.src_cid(),
            dst_cid: packet.dst_cid(),
            src_port: packet.src_port(),
            dst_port: packet.dst_port(),
            len: packet.len(),
            kind: packet.type_(),
            op: packet.op(),
            flags: packet.flags(),
            buf_alloc: packet.buf_alloc(),
            fwd_cnt: packet.fwd_cnt(),
        };
        assert_eq!(found, header);
        let _ = theirs.add_used(dma.memory(), 0, 0);
        ring.take_used();
    }
}

/// What both sides of a connection do.
#[derive(Clone, Copy, Debug)]
enum Step {
    GuestSends(u32),
    HostTakes(u32),
    GuestIsTold,
    DeviceSends(u32),
    GuestUses(u32),
    GuestSays,
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![0..100u32, 0..200_000u32];
    prop_oneof![
        len.clone().prop_map(Step::GuestSends),
        len.clone().prop_map(Step::HostTakes),
        Just(Step::GuestIsTold),
        len.clone().prop_map(Step::DeviceSends),
        len.prop_map(Step::GuestUses),
        Just(Step::GuestSays),
    ]
}

proptest! {
    /// The counters wrap soon; a model counts in 64 bits, with what each side knows of the other.
    #[test]
    fn credit_is_what_a_model_says(
        alloc in 0..300_000u32,
        room in 0..300_000u32,
        steps in prop::collection::vec(step(), 1..400),
    ) {
        let start = u64::from(u32::MAX - 100_000);
        let mut credit = Credit::starting_at(alloc, start as u32);
        let (mut sent, mut taken, mut told) = (start, start, start);
        let (mut given, mut used, mut known) = (start, start, start);
        let say = |credit: &mut Credit, used: u64| {
            credit.hear(&Header { buf_alloc: room, fwd_cnt: used as u32, ..Header::default() });
        };
        let mut header = Header::default();
        say(&mut credit, used);
        for step in steps {
            match step {
                Step::GuestSends(len) => {
                    let fits = sent - taken + u64::from(len) <= u64::from(alloc);
                    prop_assert_eq!(credit.receive(len), fits);
                    if fits { sent += u64::from(len); }
                }
                Step::HostTakes(len) => {
                    let len = u64::from(len).min(sent - taken);
                    credit.forward(len as u32);
                    taken += len;
                }
                Step::GuestIsTold => {
                    credit.tell(&mut header);
                    told = taken;
                    prop_assert_eq!((header.buf_alloc, header.fwd_cnt), (alloc, taken as u32));
                }
                Step::DeviceSends(len) => {
                    let len = len.min(credit.peer_room());
                    credit.sent(len);
                    given += u64::from(len);
                }
                Step::GuestUses(len) => used += u64::from(len).min(given - used),
                Step::GuestSays => {
                    say(&mut credit, used);
                    known = used;
                }
            }
            // Never more than the guest keeps, and never less than it could.
            prop_assert!(given - used <= u64::from(room));
            prop_assert_eq!(u64::from(credit.peer_room()), u64::from(room) - (given - known));
            prop_assert_eq!(u64::from(credit.untold()), taken - told);
            // A guest that has no credit left by what it knows will be told.
            if sent - told == u64::from(alloc) && sent == taken {
                prop_assert!(credit.is_update_due());
            }
        }
    }
}

crate::conformance_tests!(conformance, || {
    let (_, theirs) = UnixStream::pair().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("vm")).unwrap();
    let theirs = Mutex::new(Some(theirs));
    let connect = move |_: u32| match theirs.lock().unwrap().take() {
        Some(socket) => Ok(socket.into()),
        None => Err(io::ErrorKind::ConnectionRefused.into()),
    };
    Vsock::new(cid()).unwrap().with_socket(HostSocket::new(listener, connect).unwrap()).unwrap()
});

#[test]
fn a_broken_ring_is_told() {
    let mut guest = Guest::new();
    guest.rig.rings[1].set_avail_index(1000);
    assert!(matches!(guest.rig.turn(TX), Err(QueueBroken::AvailIndex { .. })));
}
