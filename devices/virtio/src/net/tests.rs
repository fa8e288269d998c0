mod control;
mod limits;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use ossature_bus::DeviceEvent;
use ossature_memory::{Dma, DmaIoError, Segment, Segments};
use proptest::prelude::*;

use super::header::MAX_PACKET;
use super::*;
use crate::rig::{Rig, config, counter};
use crate::testing::{TestDriver, guest_ram, on_each_transport};
use crate::{SharedLoop, Turn};

const RXQ: usize = 0;
const TXQ: usize = 1;
const RX_KICK: u16 = 0;
const TX_KICK: u16 = 1;
const CONTROL: u16 = 2;
const HOST: u16 = 3;

const CSUM: u128 = 1 << 0;
const GUEST_CSUM: u128 = 1 << 1;
const GUEST_TSO4: u128 = 1 << 7;
const GUEST_TSO6: u128 = 1 << 8;
const GUEST_ECN: u128 = 1 << 9;
const HOST_TSO4: u128 = 1 << 11;
const MRG_RXBUF: u128 = 1 << 15;

/// A cable to the test: a datagram socket cuts and keeps packets as a tap does.
#[derive(Debug)]
struct Cable {
    socket: UnixDatagram,
    offloads: Mutex<Vec<Offloads>>,
    active: Mutex<Vec<bool>>,
    connected: AtomicBool,
    /// Packets that a flush says it has lost.
    unsent: Mutex<u64>,
    /// What the next calls fail with.
    failures: Mutex<VecDeque<i32>>,
    /// Keeps the other end open.
    _other: UnixDatagram,
}

impl Cable {
    fn failure(&self) -> io::Result<()> {
        self.failures.lock().unwrap().pop_front().map_or(Ok(()), |e| Err(io::Error::from_raw_os_error(e)))
    }
}

impl NetIo for Cable {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn offloads(&self) -> Offloads {
        Offloads::all()
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.failure()?;
        self.offloads.lock().unwrap().push(offloads);
        Ok(())
    }

    fn set_active(&self, active: bool) -> io::Result<()> {
        if self.active.lock().unwrap().last() != Some(&active) {
            self.failure()?;
            self.active.lock().unwrap().push(active);
        }
        Ok(())
    }

    fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    fn flush(&self) -> Result<(), Unsent> {
        match std::mem::take(&mut *self.unsent.lock().unwrap()) {
            0 => Ok(()),
            lost => Err(Unsent::new(lost, 50 * lost, io::ErrorKind::NetworkDown.into())),
        }
    }

    fn receive(&self, mem: &Dma, to: Segments<'_>) -> Result<usize, DmaIoError> {
        self.failure()?;
        mem.readv_spilling(&self.socket, to, &mut [0])
    }

    fn send(&self, mem: &Dma, header: &[u8; HEADER_LEN], from: Segments<'_>) -> Result<(), DmaIoError> {
        self.failure()?;
        mem.writev_headed(&self.socket, header, from).map(drop)
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }
}

fn mac() -> Mac {
    "52:54:00:12:34:56".parse().unwrap()
}

/// A card, and the other end of its cable.
fn card() -> (Net<Cable>, UnixDatagram) {
    let (cable, other) = cable();
    (Net::new(cable, mac()), other)
}

fn cable() -> (Cable, UnixDatagram) {
    let (socket, other) = UnixDatagram::pair().unwrap();
    socket.set_nonblocking(true).unwrap();
    other.set_nonblocking(true).unwrap();
    let kept = other.try_clone().unwrap();
    let cable = Cable {
        socket,
        offloads: Mutex::default(),
        active: Mutex::new(vec![true]),
        connected: AtomicBool::new(true),
        unsent: Mutex::default(),
        failures: Mutex::default(),
        _other: kept,
    };
    (cable, other)
}

impl Net<Cable> {
    fn fail_next(&self, errors: &[i32]) {
        self.pairs[0].io.failures.lock().unwrap().extend(errors);
    }
}

/// A packet of `len` bytes, header included, as a tap gives it: `num_buffers` is not set.
fn packet(len: usize) -> Vec<u8> {
    let mut packet: Vec<u8> = (0..len).map(|i| (i * 7 + len) as u8).collect();
    packet[..12].fill(0);
    packet[10..12].fill(0xee);
    packet
}

/// Takes one packet out of the receive queue: its bytes, and how many buffers it says it has.
fn taken(rig: &mut Rig, heads: &mut VecDeque<(u16, Vec<Segment>)>) -> Option<(Vec<u8>, u16)> {
    let mut bytes = Vec::new();
    let mut buffers = 0;
    let mut left = 1;
    while left > 0 {
        let used = rig.used(RXQ)?;
        let (head, segments) = heads.pop_front().unwrap();
        assert_eq!(used.head, u32::from(head), "buffers are used in their order");
        let all: Vec<u8> = segments.iter().flat_map(|s| rig.get(*s)).collect();
        assert!(used.len > 0 && used.len as usize <= all.len());
        if bytes.is_empty() {
            buffers = u16::from_le_bytes([all[10], all[11]]);
            left = buffers;
        }
        left -= 1;
        assert!(left == 0 || used.len as usize == all.len(), "all but the last buffer are full");
        bytes.extend_from_slice(&all[..used.len as usize]);
    }
    Some((bytes, buffers))
}

/// Posts a receive buffer of these pieces.
fn post(rig: &mut Rig, heads: &mut VecDeque<(u16, Vec<Segment>)>, pieces: &[u32]) {
    let segments: Vec<_> = pieces.iter().map(|len| rig.put(&vec![0xcc; *len as usize])).collect();
    heads.push_back((rig.offer(RXQ, &[], &segments), segments));
}

#[track_caller]
fn assert_packet(got: Option<(Vec<u8>, u16)>, sent: &[u8], buffers: u16) {
    let (mut bytes, count) = got.expect("a packet");
    assert_eq!(count, buffers);
    assert_eq!(bytes.len(), sent.len());
    bytes[10..12].fill(0xee);
    assert!(bytes == sent, "the packet arrived as it was sent");
}

#[test]
fn says_what_it_is() {
    let (net, _other) = card();
    let mut expected = vec![0x52, 0x54, 0, 0x12, 0x34, 0x56, 1, 0, 1, 0, 0, 0];
    expected.extend([0xff; 5]);
    assert_eq!(config(&net), expected);
    assert_eq!(net.info().features & 1 << 5, 1 << 5);
    assert_eq!((net.info().queues, net.groups()), (vec![256, 256, 64], vec![vec![0, 1], vec![2]]));
    assert_eq!(net.mac().to_string(), "52:54:00:12:34:56");
}

#[test]
fn a_packet_fills_as_many_buffers_as_it_needs() {
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, MRG_RXBUF | GUEST_CSUM);
    let mut heads = VecDeque::new();
    for _ in 0..8 {
        post(&mut rig, &mut heads, &[1000]);
    }
    for (len, buffers) in [(26, 1), (999, 1), (1000, 1), (1001, 2), (3000, 3)] {
        other.send(&packet(len)).unwrap();
        assert_eq!(rig.run(HOST), 1);
        assert_packet(taken(&mut rig, &mut heads), &packet(len), buffers);
    }
    assert_eq!(rig.used(RXQ), None);
    assert_eq!((counter(&net, "rx_packets"), counter(&net, "rx_bytes")), (5, 6026 - 60));
}

#[test]
fn buffers_are_used_in_their_order_for_as_long_as_the_card_runs() {
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, MRG_RXBUF);
    let mut heads = VecDeque::new();
    for i in 0..1500 {
        // Always some buffers ahead of the packets, of three segments each.
        while heads.len() < 5 {
            post(&mut rig, &mut heads, &[20, 30, 50]);
        }
        let sent = packet(60 + i % 100);
        other.send(&sent).unwrap();
        rig.run(HOST);
        assert_packet(taken(&mut rig, &mut heads), &sent, 1 + u16::from(sent.len() > 100));
    }
}

#[test]
fn without_merging_a_packet_gets_one_buffer() {
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, GUEST_CSUM);
    let mut heads = VecDeque::new();
    for _ in 0..3 {
        post(&mut rig, &mut heads, &[12, 1518]);
    }
    for len in [1530, 1531, 100] {
        other.send(&packet(len)).unwrap();
    }
    rig.run(HOST);
    assert_packet(taken(&mut rig, &mut heads), &packet(1530), 1);
    assert_packet(taken(&mut rig, &mut heads), &packet(100), 1);
    assert_eq!(rig.used(RXQ), None);
    assert_eq!(counter(&net, "rx_dropped_packets"), 1);
}

#[test]
fn a_packet_for_which_there_are_too_few_buffers_is_dropped_alone() {
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, MRG_RXBUF | GUEST_CSUM);
    let mut heads = VecDeque::new();
    for _ in 0..4 {
        post(&mut rig, &mut heads, &[500]);
    }
    for len in [2001, 65000, 2000, 100] {
        other.send(&packet(len)).unwrap();
    }
    rig.run(HOST);
    assert_packet(taken(&mut rig, &mut heads), &packet(2000), 4);
    assert_eq!(rig.used(RXQ), None, "no buffer is left for the last one");
    post(&mut rig, &mut heads, &[500]);
    rig.run(RX_KICK);
    assert_packet(taken(&mut rig, &mut heads), &packet(100), 1);
    assert_eq!(counter(&net, "rx_dropped_packets"), 2);
}

#[test]
fn the_longest_packet_fits_where_there_is_room() {
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, MRG_RXBUF | GUEST_CSUM);
    let mut heads = VecDeque::new();
    for _ in 0..64 {
        post(&mut rig, &mut heads, &[1536]);
    }
    let longest = packet(MAX_PACKET as usize);
    other.send(&longest).unwrap();
    rig.run(HOST);
    assert_packet(taken(&mut rig, &mut heads), &longest, 43);
}

#[test]
fn header_flags_are_for_drivers_that_know_them() {
    for (features, flags) in [(MRG_RXBUF | GUEST_CSUM, 2), (MRG_RXBUF, 0)] {
        let (mut net, other) = card();
        let mut rig = Rig::new(&mut net, features);
        let mut heads = VecDeque::new();
        post(&mut rig, &mut heads, &[1000]);
        let mut sent = packet(100);
        sent[0] = 2;
        other.send(&sent).unwrap();
        rig.run(HOST);
        sent[0] = flags;
        assert_packet(taken(&mut rig, &mut heads), &sent, 1);
    }
}

#[test]
fn a9_the_header_may_share_a_descriptor_or_fill_several() {
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, MRG_RXBUF | GUEST_CSUM);
    let mut heads = VecDeque::new();
    post(&mut rig, &mut heads, &[100]);
    post(&mut rig, &mut heads, &[1; 12]);
    post(&mut rig, &mut heads, &[11, 1, 1, 50]);
    post(&mut rig, &mut heads, &[12]);
    post(&mut rig, &mut heads, &[13]);
    for len in [100, 50, 50] {
        other.send(&packet(len)).unwrap();
    }
    rig.run(HOST);
    assert_packet(taken(&mut rig, &mut heads), &packet(100), 1);
    assert_packet(taken(&mut rig, &mut heads), &packet(50), 2);
    assert_eq!(rig.used(RXQ), None);
    assert_eq!(counter(&net, "rx_dropped_packets"), 1);
    other.send(&packet(24)).unwrap();
    rig.run(HOST);
    assert_packet(taken(&mut rig, &mut heads), &packet(24), 2);
}

#[test]
fn a9_buffers_without_room_for_a_header_go_back_empty() {
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, MRG_RXBUF | GUEST_CSUM);
    let mut heads = VecDeque::new();
    let small = rig.alloc(11);
    let readable = rig.alloc(100);
    rig.offer(RXQ, &[], &[small]);
    rig.offer(RXQ, &[readable], &[]);
    post(&mut rig, &mut heads, &[100]);
    other.send(&packet(64)).unwrap();
    rig.run(HOST);
    assert_eq!(rig.used(RXQ).map(|u| u.len), Some(0));
    assert_eq!(rig.used(RXQ).map(|u| u.len), Some(0));
    assert_packet(taken(&mut rig, &mut heads), &packet(64), 1);
}

#[test]
fn b4_a_buffer_without_room_for_a_header_goes_back_once_in_its_turn() {
    let (net, other) = card();
    let mut driver = TestDriver::new(net);
    driver.start(MRG_RXBUF | GUEST_CSUM);
    // The first waits for a packet when the card is restored.
    let heads = [100, 11, 200].map(|len| u32::from(driver.request(0, &[], &[len]).head));
    driver.kick(0);
    for _ in 0..2 {
        driver.save_and_restore();
        driver.pump();
    }
    assert_eq!(driver.used(0), None, "those before it have not been used");
    for len in [100, 200] {
        other.send(&packet(len)).unwrap();
        driver.pump();
    }
    let used: Vec<_> = std::iter::from_fn(|| driver.used(0)).map(|used| (used.head, used.len)).collect();
    assert_eq!(used, [(heads[0], 100), (heads[1], 0), (heads[2], 200)]);
}

#[test]
fn a17_receiving_goes_on_when_buffers_come() {
    for event_idx in [false, true] {
        let (mut net, other) = card();
        let mut rig = Rig::with_rings(&mut net, MRG_RXBUF | GUEST_CSUM, 16, event_idx);
        let mut heads = VecDeque::new();
        for round in 0..100 {
            let old = rig.rings[RXQ].avail_index();
            other.send(&packet(100 + round)).unwrap();
            // No buffer: the card must ask for a kick before it sleeps.
            assert_eq!(rig.run(HOST), 1);
            assert_eq!(rig.used(RXQ), None);
            post(&mut rig, &mut heads, &[1000]);
            assert!(rig.rings[RXQ].wants_kick(old, event_idx), "round {round}");
            rig.run(RX_KICK);
            assert_packet(taken(&mut rig, &mut heads), &packet(100 + round), 1);
        }
        assert_eq!(counter(&net, "rx_dropped_packets"), 0);
    }
}

#[test]
fn kicks_are_off_while_buffers_are_at_hand() {
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, MRG_RXBUF | GUEST_CSUM);
    let mut heads = VecDeque::new();
    post(&mut rig, &mut heads, &[1000]);
    rig.run(HOST);
    assert!(rig.rings[RXQ].no_notify());
    other.send(&packet(100)).unwrap();
    rig.run(HOST);
    assert!(!rig.rings[RXQ].no_notify());
}

#[test]
fn a_stop_gives_unused_buffers_back() {
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, MRG_RXBUF | GUEST_CSUM);
    let mut heads = VecDeque::new();
    for _ in 0..10 {
        post(&mut rig, &mut heads, &[1000]);
    }
    for round in 0..5 {
        other.send(&packet(1500)).unwrap();
        rig.run(HOST);
        assert_packet(taken(&mut rig, &mut heads), &packet(1500), 2);
        let queues = rig.stop();
        assert_eq!(queues.iter().map(|q| q.index()).collect::<Vec<_>>(), [0, 1, 2], "round {round}");
        rig.start_with(&mut net, queues);
    }
    assert_eq!(rig.used(RXQ), None);
}

/// A network that never runs out of packets of 64 bytes.
struct Flood(UnixDatagram);

impl NetIo for Flood {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn offloads(&self) -> Offloads {
        Offloads::all()
    }

    fn set_offloads(&self, _: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_active(&self, _: bool) -> std::io::Result<()> {
        Ok(())
    }

    fn is_connected(&self) -> bool {
        true
    }

    fn flush(&self) -> Result<(), Unsent> {
        Ok(())
    }

    fn receive(&self, mem: &Dma, to: Segments<'_>) -> Result<usize, DmaIoError> {
        Ok(mem.scatter(to, &packet(64))?)
    }

    fn send(&self, _: &Dma, _: &[u8; HEADER_LEN], _: Segments<'_>) -> Result<(), DmaIoError> {
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }
}

#[test]
fn c6_a_turn_takes_a_bounded_number_of_packets() {
    let mut net = Net::new(Flood(UnixDatagram::unbound().unwrap()), Mac::derived("flood"));
    let mut rig = Rig::with_rings(&mut net, MRG_RXBUF | GUEST_CSUM, 256, false);
    for _ in 0..200 {
        let buffer = rig.alloc(100);
        rig.offer(RXQ, &[], &[buffer]);
    }
    assert_eq!(rig.turn(HOST), Ok(Turn::Again));
    assert_eq!(rig.rings[RXQ].used_index(), 128);
    assert_eq!(rig.irqs[RXQ].take().unwrap(), 1, "one interrupt for a batch");
    assert_eq!(rig.turn(HOST), Ok(Turn::Sleep));
    assert_eq!(rig.rings[RXQ].used_index(), 200);
}

#[test]
fn c6_buffers_that_are_too_short_count_against_the_turn() {
    let (mut net, _other) = card();
    let mut rig = Rig::with_rings(&mut net, MRG_RXBUF | GUEST_CSUM, 256, false);
    let tiny = rig.alloc(1);
    for _ in 0..200 {
        rig.offer(RXQ, &[], &[tiny]);
    }
    assert_eq!(rig.turn(RX_KICK), Ok(Turn::Again));
    assert_eq!(rig.rings[RXQ].used_index(), 128);
    assert_eq!(rig.turn(RX_KICK), Ok(Turn::Sleep));
    assert_eq!(rig.rings[RXQ].used_index(), 200);
}

#[test]
fn a_host_that_fails_does_not_make_it_spin() {
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, MRG_RXBUF | GUEST_CSUM);
    let mut heads = VecDeque::new();
    post(&mut rig, &mut heads, &[1000]);
    other.send(&packet(100)).unwrap();
    net.fail_next(&[libc::EBADFD]);
    assert_eq!(rig.turn(HOST), Ok(Turn::Sleep));
    assert_eq!(rig.used(RXQ), None);
    assert_eq!(counter(&net, "host_errors"), 1);
    rig.run(HOST);
    assert_packet(taken(&mut rig, &mut heads), &packet(100), 1);
}

#[test]
fn offloads_follow_the_negotiated_features() {
    let all = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN;
    for (features, expect) in [
        (0, Offloads::default()),
        (all, Offloads { uso: false, ..Offloads::all() }),
        (GUEST_CSUM, Offloads { checksum: true, ..Offloads::default() }),
        (GUEST_CSUM | GUEST_ECN, Offloads { checksum: true, ..Offloads::default() }),
        (GUEST_CSUM | GUEST_TSO6, Offloads { checksum: true, tso6: true, ..Offloads::default() }),
        // Segmentation without checksums makes no sense.
        (all & !GUEST_CSUM, Offloads::default()),
    ] {
        let (mut net, _other) = card();
        let _rig = Rig::new(&mut net, features);
        assert_eq!(*net.pairs[0].io.offloads.lock().unwrap(), [expect]);
    }
}

#[test]
fn an_interface_that_takes_no_offloads_does_not_start() {
    let (mut net, _other) = card();
    net.fail_next(&[libc::EINVAL]);
    let activation = Activation::new(0, guest_ram(&[(0, 0x1000)]));
    let error = net.worker(0, &activation).err().unwrap();
    assert!(error.to_string().contains("offloads"), "{error}");
    assert!(std::error::Error::source(&error).is_some());
}

/// A frame behind a header of zeros but for these fields.
fn frame(flags: u8, gso: u8, len: usize) -> Vec<u8> {
    let mut packet = packet(len);
    packet[0] = flags;
    packet[1] = gso;
    if flags & 1 != 0 {
        // Behind Ethernet and IPv4, where TCP has it; segments of a byte.
        packet[4] = u8::from(gso != 0);
        packet[6] = 34;
        packet[8] = if gso & 0x7f == 5 { 6 } else { 16 };
    }
    packet
}

fn received(other: &UnixDatagram) -> Option<Vec<u8>> {
    let mut buf = vec![0; 70_000];
    let len = other.recv(&mut buf).ok()?;
    buf.truncate(len);
    Some(buf)
}

#[test]
fn sends_a_chain_as_one_packet() {
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, CSUM);
    let sent = frame(1, 0, 1514);
    for cuts in [&[][..], &[12], &[1, 2, 3, 11, 13, 14], &[700, 1000], &[5, 100]] {
        let mut at = 0;
        let segments: Vec<_> = cuts
            .iter()
            .chain([&1514])
            .map(|end| rig.put(&sent[std::mem::replace(&mut at, *end)..*end]))
            .collect();
        rig.offer(TXQ, &segments, &[]);
        rig.run(TX_KICK);
        assert_eq!(rig.used(TXQ).unwrap().len, 0);
        let got = received(&other).unwrap();
        assert_eq!(got[10..12], [0, 0], "num_buffers means nothing on the way out");
        assert!(got[..10] == sent[..10] && got[12..] == sent[12..]);
    }
    assert_eq!((counter(&net, "tx_packets"), counter(&net, "tx_bytes")), (5, 5 * 1502));
}

#[test]
fn a12_the_header_is_twelve_bytes_with_and_without_merging() {
    for features in [0, MRG_RXBUF] {
        let (mut net, other) = card();
        let mut rig = Rig::new(&mut net, features);
        let sent = rig.put(&frame(0, 0, 60));
        rig.offer(TXQ, &[sent], &[]);
        rig.run(TX_KICK);
        assert_eq!(received(&other).unwrap()[12..], frame(0, 0, 60)[12..]);
    }
}

#[test]
fn packets_of_impossible_length_are_dropped() {
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, CSUM);
    let longest = MAX_PACKET as u32;
    for len in [1, 11, 12, 13, 25, longest + 1, 1 << 20] {
        let packet = rig.alloc(len);
        rig.offer(TXQ, &[packet], &[]);
        rig.run(TX_KICK);
        assert_eq!(rig.used(TXQ).unwrap().len, 0);
        assert_eq!(received(&other), None, "{len} bytes");
    }
    let writable = rig.alloc(100);
    rig.offer(TXQ, &[], &[writable]);
    rig.run(TX_KICK);
    assert_eq!(rig.used(TXQ).unwrap().len, 0);
    assert_eq!(counter(&net, "tx_dropped_packets"), 8);
    for len in [26, longest] {
        let packet = rig.alloc(len);
        rig.offer(TXQ, &[packet], &[]);
        rig.run(TX_KICK);
        assert_eq!(received(&other).unwrap().len(), len as usize);
    }
}

#[test]
fn b12_what_was_not_negotiated_is_dropped() {
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, CSUM | HOST_TSO4);
    for (flags, gso, goes) in [
        (0, 0, true),
        (1, 0, true),
        (1, 1, true),
        (0, 1, false),
        (1, 4, false),
        (1, 0x81, false),
        (1, 3, false),
    ] {
        let packet = rig.put(&frame(flags, gso, 100));
        rig.offer(TXQ, &[packet], &[]);
        rig.run(TX_KICK);
        assert_eq!(received(&other).is_some(), goes, "flags {flags}, type {gso:#x}");
    }
}

#[test]
fn a_host_that_is_full_gets_the_packet_once_it_is_not() {
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, 0);
    let lens = [60, 61, 62];
    for len in lens {
        let packet = rig.put(&frame(0, 0, len));
        rig.offer(TXQ, &[packet], &[]);
    }
    net.fail_next(&[libc::EAGAIN]);
    assert_eq!(rig.turn(TX_KICK), Ok(Turn::Sleep));
    assert_eq!((received(&other), rig.used(TXQ)), (None, None));
    // The descriptor polls writable; receiving comes first, and takes the failure.
    assert_eq!(rig.turn(HOST), Ok(Turn::Sleep));
    for len in lens {
        assert_eq!(received(&other).unwrap().len(), len);
        assert!(rig.used(TXQ).is_some());
    }
    assert_eq!((received(&other), rig.used(TXQ)), (None, None));
    assert_eq!((counter(&net, "tx_packets"), counter(&net, "tx_dropped_packets")), (3, 0));
}

#[test]
fn a_link_that_is_down_loses_packets_and_nothing_else() {
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, 0);
    for len in [60, 61, 62] {
        let packet = rig.put(&frame(0, 0, len));
        rig.offer(TXQ, &[packet], &[]);
    }
    // Down, and a frame of which the kernel can make no sense.
    net.fail_next(&[libc::EIO, libc::EINVAL]);
    assert_eq!(rig.turn(TX_KICK), Ok(Turn::Sleep));
    assert_eq!(received(&other).unwrap().len(), 62);
    assert_eq!(rig.rings[TXQ].used_index(), 3);
    assert_eq!((counter(&net, "tx_dropped_packets"), counter(&net, "host_errors")), (2, 1));

    // The VMM hears of it once, however often it happens and the driver starts anew.
    let told = rig.reports.lock().unwrap().clone();
    assert!(
        matches!(&told[..], [DeviceEvent::HostError { reason }] if reason.starts_with("cannot send a packet: "))
    );
    for _ in 0..3 {
        net.reset();
        let packet = rig.put(&frame(0, 0, 60));
        rig.offer(TXQ, &[packet], &[]);
        net.fail_next(&[libc::EIO]);
        rig.run(TX_KICK);
        assert_eq!(rig.reports.lock().unwrap().len(), 1);
    }
    assert!(counter(&net, "host_errors") > 1);
}

#[test]
fn c6_a_turn_sends_a_bounded_number_of_packets() {
    let (mut net, _other) = card();
    let mut rig = Rig::with_rings(&mut net, 0, 256, false);
    let packet = rig.put(&frame(0, 0, 60));
    for _ in 0..200 {
        rig.offer(TXQ, &[packet], &[]);
    }
    // Packets that go nowhere cost a turn as much.
    net.fail_next(&[libc::EIO; 200]);
    assert_eq!(rig.turn(TX_KICK), Ok(Turn::Again));
    assert_eq!(rig.rings[TXQ].used_index(), 128);
    assert_eq!(rig.irqs[TXQ].take().unwrap(), 1);
    assert_eq!(rig.turn(TX_KICK), Ok(Turn::Sleep));
    assert_eq!(rig.rings[TXQ].used_index(), 200);
}

#[test]
fn a_card_with_one_queue_works_with_that() {
    for index in [0, 1] {
        let (mut net, other) = card();
        let mut rig = Rig::new(&mut net, 0);
        let queues = rig.stop().into_iter().filter(|q| q.index() == index).collect();
        rig.start_with(&mut net, queues);
        for token in [RX_KICK, TX_KICK, HOST] {
            assert_eq!(rig.turn(token), Ok(Turn::Sleep));
        }
        drop(other);
        assert_eq!(rig.stop().len(), 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whatever buffers the driver posts, each packet arrives whole and once, or is dropped and counted.
    #[test]
    fn packets_arrive_whole_or_not_at_all(
        merge in any::<bool>(),
        sizes in prop::collection::vec(prop::collection::vec(1u32..600, 1..5), 1..12),
        packets in prop::collection::vec(26usize..2500, 1..12),
    ) {
        let (mut net, other) = card();
        let mut rig = Rig::new(&mut net, GUEST_CSUM | if merge { MRG_RXBUF } else { 0 });
        let mut heads = VecDeque::new();
        let mut fitting = 0;
        for sizes in sizes {
            if sizes.iter().sum::<u32>() >= 12 {
                fitting += 1;
                post(&mut rig, &mut heads, &sizes);
            }
        }
        prop_assume!(fitting > 0);
        let mut arrived = 0;
        let mut sent = VecDeque::new();
        for len in packets {
            sent.push_back(len);
            other.send(&packet(len)).unwrap();
            rig.run(HOST);
        }
        while let Some((bytes, _)) = taken(&mut rig, &mut heads) {
            // Some before it may have been dropped.
            while sent.pop_front().unwrap() != bytes.len() {}
            let expect = packet(bytes.len());
            prop_assert!(bytes[..10] == expect[..10] && bytes[12..] == expect[12..]);
            arrived += 1;
        }
        prop_assert_eq!(arrived, counter(&net, "rx_packets"));
    }
}

#[test]
fn no_wake_up_is_lost_on_a_loop_of_its_own() {
    on_each_transport(|| {
        for wanted in [MRG_RXBUF | GUEST_CSUM, u128::MAX] {
            let (net, other) = card();
            other.set_nonblocking(false).unwrap();
            let runtime = Arc::new(SharedLoop::new("net").unwrap());
            let mut driver = TestDriver::with_runtime(Box::new(net), runtime);
            driver.start(wanted);
            // Few buffers and many packets: the card runs out of either all the time.
            const PACKETS: usize = 2000;
            let echo = std::thread::spawn(move || {
                for i in 0..PACKETS {
                    other.send(&packet(64 + i % 100)).unwrap();
                    if i % 10 == 0 {
                        other.recv(&mut [0; 100]).unwrap();
                    }
                }
            });
            let mut posted = VecDeque::new();
            for i in 0..PACKETS {
                while posted.len() < 3 {
                    posted.push_back(driver.request(0, &[], &[200]));
                }
                driver.kick(0);
                if i % 10 == 0 {
                    driver.request(1, &[&frame(0, 0, 60)], &[]);
                    driver.kick(1);
                    driver.wait_used(1);
                }
                let used = driver.wait_used(0);
                let buffer = posted.pop_front().unwrap();
                assert_eq!((used.head, used.len), (buffer.head.into(), 64 + i as u32 % 100));
                assert!(driver.bytes(&buffer.writable)[12..][..52] == packet(64 + i % 100)[12..][..52]);
            }
            echo.join().unwrap();
            assert_eq!(driver.reports(), []);
        }
    });
}

crate::conformance_tests!(conformance, || card().0);

#[test]
fn another_card_refuses_the_state_by_name() {
    let (mut net, _other) = card();
    let state = |net: &mut Net<Cable>| match net.save().unwrap() {
        DeviceState::Saved(handover) => handover,
        other => panic!("{other:?}"),
    };
    let (saved, again) = (state(&mut net), state(&mut net));
    assert_eq!(net.restore(again), Ok(()));
    net.mac = "52:54:00:12:34:57".parse().unwrap();
    assert!(net.restore(saved).unwrap_err().to_string().contains("address of the card"));
}

#[test]
fn a_clone_has_its_own_address_and_its_driver_is_told() {
    let clone = || {
        let (mut clone, cable) = card();
        clone.mac = "52:54:00:12:34:57".parse().unwrap();
        (clone, cable)
    };
    let (mut net, _other) = card();
    let saved = |net: &mut Net<Cable>| match net.save().unwrap() {
        DeviceState::Saved(handover) => handover.for_clone(),
        other => panic!("{other:?}"),
    };
    // Its guest had set another one.
    net.card.change(|settings| settings.mac = [0x52, 0x54, 0, 0, 0, 1]);
    let (mut other, _cable) = clone();
    assert_eq!(other.identities(), [Identity::new("MAC", "52:54:00:12:34:57")]);
    other.restore(saved(&mut net)).unwrap();
    assert_eq!(other.card.settings().mac, other.mac.bytes());
    let state = saved(&mut net);
    let error = net.restore(state).unwrap_err().to_string();
    assert!(error.contains("a clone needs one of its own"), "{error}");

    on_each_transport(|| {
        let (mut driver, (other, _cable)) = (TestDriver::new(card().0), clone());
        driver.start(0);
        driver.acknowledge();
        assert!(driver.clone_to(Box::new(other)));
        assert_eq!(driver.device().identities(), [Identity::new("MAC", "52:54:00:12:34:57")]);
        assert!(driver.registers().take_config_interrupt(), "nobody tells the driver");
    });
}
