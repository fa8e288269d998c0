//! Limits on packets, captures, and networks that put packets off.

use std::fs::{self, File};
use std::process::Command;
use std::time::Duration;

use ossature_bus::{RateLimit, RateLimits};

use super::*;

const RX_LIMIT: u16 = HOST + 2;
const TX_LIMIT: u16 = HOST + 3;

/// So many at once, and no more for as long as any test takes.
fn limit(size: u64) -> Option<RateLimit> {
    Some(RateLimit::new(size, Duration::from_secs(1 << 30)))
}

#[test]
fn packets_wait_for_their_limit_in_both_directions() {
    for limits in [RateLimits::new(None, limit(3)), RateLimits::new(limit(130), None)] {
        let (net, other) = card();
        let mut net = net.with_limits(limits, limits);
        let mut rig = Rig::new(&mut net, MRG_RXBUF);
        let mut heads = VecDeque::new();
        for _ in 0..6 {
            post(&mut rig, &mut heads, &[100]);
            other.send(&packet(62)).unwrap();
            let packet = rig.put(&frame(0, 0, 62));
            rig.offer(TXQ, &[packet], &[]);
        }
        rig.run(HOST);
        rig.run(TX_KICK);
        assert_eq!([RXQ, TXQ].map(|queue| rig.rings[queue].used_index()), [3, 3]);
        // Neither a kick nor a packet changes that, nor a pause.
        let queues = rig.stop();
        net.quiesce().unwrap();
        net.resume().unwrap();
        rig.start_with(&mut net, queues);
        for token in [RX_KICK, TX_KICK, HOST, RX_LIMIT, TX_LIMIT] {
            rig.run(token);
        }
        assert_eq!([RXQ, TXQ].map(|queue| rig.rings[queue].used_index()), [3, 3]);
        net.handle().set_limits(RateLimits::default(), RateLimits::default());
        rig.run(RX_LIMIT);
        rig.run(TX_LIMIT);
        assert_eq!([RXQ, TXQ].map(|queue| rig.rings[queue].used_index()), [6, 6]);
        assert_eq!((counter(&net, "rx_dropped_packets"), counter(&net, "tx_dropped_packets")), (0, 0));
    }
}

#[test]
fn what_is_used_up_is_saved() {
    let limits = RateLimits::new(None, limit(3));
    let (net, _other) = card();
    let mut net = net.with_limits(RateLimits::default(), limits);
    let mut rig = Rig::new(&mut net, 0);
    let packet = rig.put(&frame(0, 0, 62));
    (0..2).for_each(|_| _ = rig.offer(TXQ, &[packet], &[]));
    rig.run(TX_KICK);
    let DeviceState::Saved(state) = net.save().unwrap() else { panic!("no state") };
    let (other_net, other) = card();
    let mut net = other_net.with_limits(RateLimits::default(), limits);
    net.restore(state).unwrap();
    let mut rig = Rig::new(&mut net, 0);
    let packet = rig.put(&frame(0, 0, 62));
    (0..2).for_each(|_| _ = rig.offer(TXQ, &[packet], &[]));
    rig.run(TX_KICK);
    assert_eq!(rig.rings[TXQ].used_index(), 1, "two of three are used up");
    assert!(received(&other).is_some() && received(&other).is_none());
}

#[test]
fn packets_that_were_put_off_and_lost_are_counted() {
    let (mut net, _other) = card();
    let mut rig = Rig::new(&mut net, 0);
    *net.pairs[0].io.unsent.lock().unwrap() = 2;
    let packet = rig.put(&frame(0, 0, 62));
    (0..3).for_each(|_| _ = rig.offer(TXQ, &[packet], &[]));
    rig.run(TX_KICK);
    assert_eq!((counter(&net, "tx_dropped_packets"), counter(&net, "host_errors")), (2, 1));
    assert_eq!((counter(&net, "tx_packets"), counter(&net, "tx_bytes")), (1, 50));
}

/// The frames of a capture with what says how long they were, read as libpcap writes it.
fn frames(capture: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let word = |at: usize| u32::from_ne_bytes(capture[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(4), word(20)), (0xa1b2_3c4d, 0x0004_0002, 1));
    let (mut at, mut frames) = (24, Vec::new());
    while at < capture.len() {
        let kept = word(at + 8) as usize;
        frames.push((word(at + 12), capture[at + 16..at + 16 + kept].to_vec()));
        at += 16 + kept;
    }
    frames
}

#[test]
fn a_capture_has_each_packet_up_to_its_length() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net.pcap");
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, MRG_RXBUF);
    let handle = net.handle();
    assert!(!handle.stop_capture().unwrap());
    let exchange = |rig: &mut Rig| {
        let mut heads = VecDeque::new();
        post(rig, &mut heads, &[50]);
        post(rig, &mut heads, &[1000]);
        other.send(&packet(200)).unwrap();
        rig.run(HOST);
        assert!(rig.used(RXQ).is_some() && rig.used(RXQ).is_some());
        let sent = rig.put(&frame(0, 0, 72));
        rig.offer(TXQ, &[sent], &[]);
        rig.run(TX_KICK);
    };
    exchange(&mut rig);
    for snap in [63, (256 << 10) + 1] {
        assert!(handle.start_capture(File::create(&path).unwrap(), snap).is_err());
    }
    handle.start_capture(File::create(&path).unwrap(), 64).unwrap();
    exchange(&mut rig);
    let expected = vec![(188, packet(200)[12..76].to_vec()), (60, frame(0, 0, 72)[12..].to_vec())];
    assert!(frames(&fs::read(&path).unwrap()) == expected, "after each turn all is in the file");
    assert!(handle.stop_capture().unwrap() && !handle.stop_capture().unwrap());
    exchange(&mut rig);
    assert_eq!(frames(&fs::read(&path).unwrap()).len(), 2);
    // What others make of it.
    let mut tshark = Command::new("tshark");
    tshark.args(["-n", "-T", "fields", "-e", "frame.len", "-e", "frame.cap_len", "-r"]).arg(&path);
    let read = tshark.output().expect("tshark");
    assert!(read.status.success(), "{read:?}");
    assert_eq!(String::from_utf8_lossy(&read.stdout), "188\t64\n60\t60\n");
}

#[test]
fn a_capture_that_fails_ends_and_the_card_goes_on() {
    let (mut net, other) = card();
    let mut rig = Rig::new(&mut net, 0);
    let full = || File::options().write(true).open("/dev/full").unwrap();
    assert!(net.handle().start_capture(full(), 100).is_err(), "it begins with a header");
    // One that fails later.
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    net.handle().start_capture(writer.into(), 100).unwrap();
    drop(reader);
    for _ in 0..2 {
        let sent = rig.put(&frame(0, 0, 72));
        rig.offer(TXQ, &[sent], &[]);
        rig.run(TX_KICK);
        assert!(received(&other).is_some());
    }
    assert_eq!((counter(&net, "tx_packets"), counter(&net, "host_errors")), (2, 1));
    assert!(!net.handle().stop_capture().unwrap());
    let told = rig.reports.lock().unwrap().clone();
    assert!(
        matches!(&told[..], [DeviceEvent::HostError { reason }] if reason.contains("capture")),
        "{told:?}"
    );
}
