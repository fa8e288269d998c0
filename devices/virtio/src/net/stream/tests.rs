//! A card on a socket whose other end is the test.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};

use ossature_memory::Segment;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::*;
use crate::net::Net;
use crate::rig::{Rig, config, counter};
use crate::{LocalDevice, Turn};

const RXQ: usize = 0;
const TXQ: usize = 1;
const TX_KICK: u16 = 1;
const HOST: u16 = 3;
const MRG_RXBUF: u128 = 1 << 15;

fn card(fd: UnixStream) -> Net<StreamSocket> {
    Net::new(StreamSocket::from_fd(fd).unwrap(), "52:54:00:12:34:56".parse().unwrap())
}

fn frame(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + len) as u8).collect()
}

/// As it is on the wire.
fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
}

fn post(rig: &mut Rig, count: usize) -> Vec<Segment> {
    let buffers: Vec<_> = (0..count).map(|_| rig.put(&[0xcc; 2048])).collect();
    buffers.iter().for_each(|buffer| _ = rig.offer(RXQ, &[], &[*buffer]));
    buffers
}

/// The packet in the next used buffer, which is checked to have an empty header.
fn taken(rig: &mut Rig, buffers: &mut Vec<Segment>) -> Option<Vec<u8>> {
    let used = rig.used(RXQ)?;
    let packet = rig.get(buffers.remove(0))[..used.len as usize].to_vec();
    assert_eq!(packet[..12], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    Some(packet[12..].to_vec())
}

fn send(rig: &mut Rig, frame: &[u8]) {
    let packet = rig.put(&[&[0; 12], frame].concat());
    rig.offer(TXQ, &[packet], &[]);
}

#[test]
fn no_offload_is_offered_without_a_header_to_say_so() {
    let (ours, _peer) = UnixStream::pair().unwrap();
    let net = card(ours);
    let offloads = 1 | 1 << 1 | 1 << 2 | 0b111 << 7 | 0b111 << 11 | 0b111 << 54;
    assert_eq!(net.info().features & offloads, 0);
    assert!(
        StreamSocket::from_fd(UnixStream::pair().unwrap().0).unwrap().set_offloads(Offloads::all()).is_err()
    );
}

#[test]
fn other_descriptors_are_refused() {
    let datagrams = std::os::unix::net::UnixDatagram::unbound().unwrap();
    for fd in [OwnedFd::from(datagrams), std::fs::File::open("/dev/null").unwrap().into()] {
        assert!(matches!(StreamSocket::from_fd(fd).unwrap_err(), StreamError::NotAStream));
    }
}

#[test]
fn frames_that_come_in_pieces_arrive_whole() {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let mut net = card(ours);
    let mut rig = Rig::new(&mut net, MRG_RXBUF);
    let mut buffers = post(&mut rig, 16);
    let frames = [60, 1514, 14, 61, 1000].map(frame);
    let bytes: Vec<u8> = frames.iter().flat_map(|frame| framed(frame)).collect();
    let mut got = Vec::new();
    // Each piece ends somewhere else: in a length, in a frame, between two.
    for piece in bytes.chunks(37) {
        peer.write_all(piece).unwrap();
        rig.run(HOST);
        got.extend(std::iter::from_fn(|| taken(&mut rig, &mut buffers)));
    }
    assert!(got == frames);
    assert_eq!((counter(&net, "rx_packets"), counter(&net, "rx_dropped_packets")), (5, 0));
}

#[test]
fn many_frames_take_one_call() {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let mut net = card(ours);
    let mut rig = Rig::new(&mut net, MRG_RXBUF);
    let mut buffers = post(&mut rig, 50);
    let frames: Vec<_> = (0..50).map(|i| frame(60 + i)).collect();
    peer.write_all(&frames.iter().flat_map(|frame| framed(frame)).collect::<Vec<_>>()).unwrap();
    rig.run(HOST);
    let got: Vec<_> = std::iter::from_fn(|| taken(&mut rig, &mut buffers)).collect();
    assert!(got == frames);

    for frame in &frames {
        send(&mut rig, frame);
    }
    rig.run(TX_KICK);
    let mut bytes = vec![0; 70_000];
    let read = peer.read(&mut bytes).unwrap();
    assert!(bytes[..read] == frames.iter().flat_map(|frame| framed(frame)).collect::<Vec<_>>());
}

#[test]
fn a_peer_that_does_not_read_makes_the_driver_wait_and_loses_nothing() {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let mut net = card(ours);
    let mut rig = Rig::with_rings(&mut net, 0, 256, false);
    let frames: Vec<_> = (0..200).map(|i| frame(5000 + i)).collect();
    let packets: Vec<_> = frames.iter().map(|frame| rig.put(&[&[0; 12], &frame[..]].concat())).collect();
    for packet in &packets {
        rig.offer(TXQ, &[*packet], &[]);
    }
    while rig.turn(TX_KICK).unwrap() == Turn::Again {}
    assert!(rig.rings[TXQ].used_index() < 200, "nobody has room for as much");
    peer.set_nonblocking(true).unwrap();
    let mut bytes = Vec::<u8>::new();
    let whole: usize = frames.iter().map(|frame| frame.len() + 4).sum();
    while bytes.len() < whole {
        let mut piece = vec![0; 30_000];
        match peer.read(&mut piece) {
            Ok(read) => bytes.extend(&piece[..read]),
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::WouldBlock),
        }
        rig.run(HOST);
    }
    assert!(bytes == frames.iter().flat_map(|frame| framed(frame)).collect::<Vec<_>>());
    assert_eq!((counter(&net, "tx_packets"), counter(&net, "tx_dropped_packets")), (200, 0));
}

#[test]
fn the_link_goes_down_with_the_peer() {
    let (ours, peer) = UnixStream::pair().unwrap();
    let mut net = card(ours);
    let mut rig = Rig::new(&mut net, 0);
    post(&mut rig, 2);
    assert_eq!(config(&net)[6], 1);
    drop(peer);
    rig.run(HOST);
    assert_eq!(config(&net)[6], 0);
    assert_eq!(rig.config_irqs.load(Ordering::Relaxed), 1);
    send(&mut rig, &frame(60));
    rig.run(TX_KICK);
    assert!(rig.used(TXQ).is_some(), "packets are lost as on a cable that is not plugged in");
    assert_eq!((counter(&net, "tx_dropped_packets"), counter(&net, "host_errors")), (1, 0));
}

#[test]
fn a_peer_that_lies_about_a_length_is_left() {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let mut net = card(ours);
    let mut rig = Rig::new(&mut net, 0);
    let mut buffers = post(&mut rig, 4);
    // Frames that are shorter than their header are dropped.
    for short in [0, 1, 13] {
        peer.write_all(&framed(&frame(short))).unwrap();
    }
    peer.write_all(&framed(&frame(60))).unwrap();
    rig.run(HOST);
    assert!(taken(&mut rig, &mut buffers) == Some(frame(60)));
    assert_eq!(counter(&net, "rx_dropped_packets"), 3);
    for length in [MAX_FRAME as u32 + 1, u32::MAX] {
        let (ours, mut peer) = UnixStream::pair().unwrap();
        let mut net = card(ours);
        let mut rig = Rig::new(&mut net, 0);
        post(&mut rig, 1);
        peer.write_all(&length.to_be_bytes()).unwrap();
        rig.run(HOST);
        assert_eq!((config(&net)[6], rig.used(RXQ)), (0, None));
        assert_eq!(peer.read(&mut [0; 10]).unwrap(), 0, "the socket is closed");
    }
}

#[test]
fn b12_a_peer_that_sends_nothing_but_empty_frames_does_not_keep_the_loop() {
    let (ours, mut peer) = UnixStream::pair().unwrap();
    let mut net = card(ours);
    let mut rig = Rig::new(&mut net, 0);
    post(&mut rig, 1);
    peer.write_all(&[0; 4 * 1000]).unwrap();
    assert_eq!(rig.turn(HOST), Ok(Turn::Again), "others come first");
    assert!((1..1000).contains(&counter(&net, "rx_dropped_packets")));
    rig.run(HOST);
    assert_eq!(counter(&net, "rx_dropped_packets"), 1000);
}

#[test]
fn a_socket_with_a_path_is_connected_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net");
    let error = StreamSocket::connect(&path).unwrap_err();
    assert!(
        error.to_string().starts_with(&format!("cannot connect to the socket {}", path.display())),
        "{error}"
    );

    let listener = UnixListener::bind(&path).unwrap();
    let mut net = Net::new(StreamSocket::connect(&path).unwrap(), "52:54:00:12:34:56".parse().unwrap());
    let mut rig = Rig::new(&mut net, 0);
    let mut buffers = post(&mut rig, 2);
    drop(listener.accept().unwrap());
    rig.run(HOST);
    assert_eq!(config(&net)[6], 0);
    // The descriptor tells when it is time, by a timer.
    let watch = Epoll::new().unwrap();
    let fd = net.pairs[0].io.fd().as_raw_fd();
    watch
        .ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0))
        .unwrap();
    while config(&net)[6] == 0 {
        assert_ne!(watch.wait(60_000, &mut [EpollEvent::default()]).unwrap(), 0, "no attempt");
        rig.run(HOST);
    }
    assert_eq!(rig.config_irqs.load(Ordering::Relaxed), 2);
    let (mut peer, _) = listener.accept().unwrap();
    peer.write_all(&framed(&frame(60))).unwrap();
    assert_ne!(watch.wait(60_000, &mut [EpollEvent::default()]).unwrap(), 0, "the new socket is watched");
    rig.run(HOST);
    assert!(taken(&mut rig, &mut buffers) == Some(frame(60)));
}

crate::conformance_tests!(conformance, || {
    let (ours, peer) = UnixStream::pair().unwrap();
    // Nobody reads; the peer stays.
    std::mem::forget(peer);
    card(ours)
});
