//! Taps of the real kernel, in a network namespace of their own.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::*;
use crate::Net;
use crate::net::Mac;
use crate::rig::{Rig, counter};

const HOST: u16 = 3;
const INSIDE: &str = "OSSATURE_TEST_STAGE";
const GUEST: &str = "52:54:00:12:34:56";
const CSUM: u128 = 1 << 0;
const HOST_TSO4: u128 = 1 << 11;
const MRG_RXBUF: u128 = 1 << 15;

/// Runs this test again, below `command`, with the stage in its environment.
fn again(command: &[&str], stage: &str) {
    let status = Command::new(command[0])
        .args(&command[1..])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "net::tap::tests::taps_of_the_kernel", "--nocapture"])
        .env(INSIDE, stage)
        .status()
        .unwrap_or_else(|e| panic!("{}: {e}", command[0]));
    assert!(status.success(), "stage {stage}");
}

fn root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

#[test]
fn a_tap_of_somebody_else_is_named() {
    let error = attach_error("tap7", io::Error::from_raw_os_error(libc::EPERM), false);
    assert!(error.to_string().starts_with(r#"tap "tap7": no permission"#), "{error}");
    assert!(std::error::Error::source(&error).is_some());
}

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().expect("ip, of iproute2");
    assert!(status.success(), "ip {args}");
}

#[test]
fn taps_of_the_kernel() {
    match std::env::var(INSIDE).as_deref() {
        // Others than root are root in a namespace of theirs, and know no second user there.
        // With a /sys that shows the namespace's interfaces.
        Err(_) if root() => again(&["unshare", "--net", "--mount"], "root"),
        Err(_) => again(&["unshare", "--map-root-user", "--net"], "user"),
        Ok(stage @ ("root" | "user")) => {
            names_and_kinds();
            descriptors();
            // One card throughout: while nobody has a tap open its cable is out, and the kernel takes a while
            // to notice that it is back.
            let mut net = Net::new(Tap::open("tap0").unwrap(), GUEST.parse().unwrap());
            packets_both_ways(&mut net);
            bad_headers(&mut net);
            long_packets(&mut net);
            drop(net);
            several_queues();
            offloads_given_up();
            bursts();
            segments_of_udp();
            if stage == "root" {
                macvtaps();
                ip("tuntap add mode tap name tap9 user 12345");
                again(&["setpriv", "--bounding-set=-net_admin"], "unprivileged");
            }
        }
        Ok("unprivileged") => {
            let error = Tap::open("tap9").unwrap_err();
            assert!(matches!(error, TapError::Permission { .. }), "{error:?}");
            assert!(error.to_string().starts_with(r#"tap "tap9": no permission"#), "{error}");
        }
        Ok(stage) => panic!("stage {stage}"),
    }
}

fn names_and_kinds() {
    for name in ["", "sixteen-letters-", "a\0b"] {
        let error = Tap::open(name).unwrap_err();
        assert!(
            matches!(error, TapError::Name { .. }) && error.to_string().contains("1 to 15 bytes"),
            "{error}"
        );
    }
    let error = Tap::open("tap0").unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"tap "tap0" does not exist; make it with: ip tuntap add mode tap name tap0"#
    );
    assert!(!Path::new("/proc/sys/net/ipv4/conf/tap0").exists(), "asking for a tap does not make one");

    ip("tuntap add mode tap name tap0");
    let tap = Tap::open("tap0").unwrap();
    let error = Tap::open("tap0").unwrap_err();
    assert_eq!(error.to_string(), r#"tap "tap0" is in use by another process"#);
    drop(tap);
    Tap::open("tap0").unwrap();

    ip("tuntap add mode tun name tun0");
    ip("tuntap add mode tap name many multi_queue");
    for name in ["lo", "tun0", "many"] {
        let error = Tap::open(name).unwrap_err();
        assert!(matches!(error, TapError::NotATap { .. }) && error.to_string().contains(name), "{error}");
    }
}

fn descriptors() {
    let tun = || OpenOptions::new().read(true).write(true).open(TUN).unwrap();
    for file in [tun(), File::open("/dev/null").unwrap()] {
        let error = Tap::from_fd(file).unwrap_err();
        assert!(matches!(error, TapError::NotConnected { .. }) && error.to_string().contains("TUNSETIFF"));
    }
    let connected = |flags| {
        let file = tun();
        sys::tap_attach(file.as_fd(), c"given0", flags).unwrap();
        file
    };
    for flags in [libc::IFF_TAP | libc::IFF_NO_PI, libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR] {
        let error = Tap::from_fd(connected(flags)).unwrap_err();
        assert!(matches!(&error, TapError::Flags { name } if name == "given0"), "{error:?}");
    }
    // One that nobody else could open: it goes with its descriptor, which used to wait for packets.
    let mut net = Net::new(Tap::from_fd(connected(FLAGS)).unwrap(), GUEST.parse().unwrap());
    ip("link set given0 up");
    let mut rig = Rig::new(&mut net, MRG_RXBUF);
    send(&mut rig, &arp_request());
    assert_eq!((counter(&net, "tx_packets"), counter(&net, "host_errors")), (1, 0));
    let nonblocking = sys::status_flags(net.pairs[0].io.fd()).unwrap() & libc::O_NONBLOCK;
    assert_ne!(nonblocking, 0);
}

/// An Ethernet frame behind a header of zeros.
fn frame(to: [u8; 6], kind: u16, body: &[u8]) -> Vec<u8> {
    let from = GUEST.parse::<Mac>().unwrap().bytes();
    [&[0; HEADER_LEN][..], &to, &from, &kind.to_be_bytes(), body].concat()
}

/// Who has 10.0.0.1? Tell 10.0.0.2.
fn arp_request() -> Vec<u8> {
    arp_request_in(0)
}

/// The same in 10.`net`.0.0.
fn arp_request_in(net: u8) -> Vec<u8> {
    let guest = GUEST.parse::<Mac>().unwrap().bytes();
    let body = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &guest, &[10, net, 0, 2], &[0; 6], &[10, net, 0, 1]].concat();
    frame([0xff; 6], 0x0806, &body)
}

fn send(rig: &mut Rig, packet: &[u8]) {
    let packet = rig.put(packet);
    rig.offer(1, &[packet], &[]);
    rig.run(1);
    assert_eq!(rig.used(1).unwrap().len, 0);
}

fn packets_both_ways(net: &mut Net<Tap>) {
    ip("addr add 10.0.0.1/24 dev tap0");
    let mut rig = Rig::new(net, MRG_RXBUF);

    // Down: what the guest sends is lost, and the card goes on.
    send(&mut rig, &arp_request());
    assert_eq!((counter(net, "tx_dropped_packets"), counter(net, "host_errors")), (1, 1));

    ip("link set tap0 up");
    is_answered(net, rig, 0);
}

/// The host has 10.`net`.0.1, and says so.
fn is_answered(card: &Net<Tap>, mut rig: Rig, net: u8) {
    let epoll = Epoll::new().unwrap();
    epoll
        .ctl(ControlOperation::Add, card.pairs[0].io.fd().as_raw_fd(), EpollEvent::new(EventSet::IN, 0))
        .unwrap();
    let buffers: Vec<_> = (0..32).map(|_| rig.put(&[0xcc; 2048])).collect();
    for buffer in &buffers {
        rig.offer(0, &[], &[*buffer]);
    }
    send(&mut rig, &arp_request_in(net));
    assert_eq!(counter(card, "tx_packets"), 1);
    // The kernel's answer comes among what it sends when a link comes up.
    for buffer in buffers {
        let used = loop {
            rig.run(HOST);
            if let Some(used) = rig.used(0) {
                break used;
            }
            assert_ne!(epoll.wait(60_000, &mut [EpollEvent::default()]).unwrap(), 0, "no answer");
        };
        let got = rig.get(buffer);
        let (header, frame) = got[..used.len as usize].split_at(HEADER_LEN);
        assert_eq!((header[0], header[1], &header[10..]), (0, 0, &[1, 0][..]));
        if frame[12..14] == [8, 6] {
            assert_eq!(frame[..6], GUEST.parse::<Mac>().unwrap().bytes());
            assert_eq!(frame[20..22], [0, 2], "an answer");
            assert_eq!(frame[28..32], [10, net, 0, 1]);
            return;
        }
    }
    panic!("no answer");
}

/// What the kernel would cut to the buffer's length is dropped, and what fits comes whole.
fn long_packets(net: &mut Net<Tap>) {
    let dropped = counter(net, "rx_dropped_packets");
    let mut rig = Rig::new(net, 0);
    ip("neigh replace 10.0.0.2 lladdr 52:54:00:12:34:56 dev tap0");
    let buffers: Vec<_> = (0..32).map(|_| rig.put(&[0xcc; 300])).collect();
    for buffer in &buffers {
        rig.offer(0, &[], &[*buffer]);
    }
    let socket = UdpSocket::bind("10.0.0.1:0").unwrap();
    // The headers of virtio-net, Ethernet, IPv4 and UDP, and what fills a buffer to the last byte.
    let fits = 300 - 12 - 14 - 20 - 8;
    for len in [1000, fits + 1, fits] {
        socket.send_to(&vec![7; len], "10.0.0.2:9").unwrap();
    }
    rig.run(HOST);
    for buffer in buffers {
        let used = rig.used(0).expect("the packet that fits");
        let got = rig.get(buffer);
        // Among others: IPv4, protocol UDP.
        if got[24..26] == [8, 0] && got[35] == 17 {
            assert_eq!(used.len, 300);
            assert!(got[54..].iter().all(|b| *b == 7));
            assert_eq!(counter(net, "rx_dropped_packets"), dropped + 2);
            return;
        }
    }
    panic!("no packet");
}

/// B12: what the kernel makes of headers that do not fit their packets.
fn bad_headers(net: &mut Net<Tap>) {
    let counters =
        |net: &Net<Tap>| ["tx_packets", "tx_dropped_packets", "host_errors"].map(|name| counter(net, name));
    let [sent, dropped, errors] = counters(net);
    let mut rig = Rig::new(net, CSUM | HOST_TSO4);
    let with = |flags: u8, gso: u8, fields: [u16; 4]| {
        let mut packet = arp_request();
        packet[..2].copy_from_slice(&[flags, gso]);
        for (to, field) in packet[2..10].chunks_mut(2).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        packet
    };
    // hdr_len, gso_size, csum_start, csum_offset
    let bad = [
        with(1, 0, [0, 0, 0xffff, 0]),
        with(1, 0, [0, 0, 42, 0xffff]),
        with(1, 0, [0, 0, 41, 0]),
        with(1, 1, [0, 0, 34, 16]),
        with(1, 1, [0xffff, 100, 34, 16]),
        with(1, 1, [54, 0, 0xffff, 0xffff]),
    ];
    for (i, packet) in bad.iter().enumerate() {
        send(&mut rig, packet);
        assert_eq!(counters(net), [sent, dropped + i as u64 + 1, errors], "{:?}", &packet[..12]);
    }
    send(&mut rig, &with(0, 0, [0xffff, 0xffff, 0xffff, 0xffff]));
    // Fields that no flag makes valid mean nothing.
    assert_eq!(counters(net), [sent + 1, dropped + bad.len() as u64, errors]);
}

/// A tap with several queues: the kernel gives packets to those that are in use.
fn several_queues() {
    let error = Tap::open_queues("tap0", 2).unwrap_err();
    assert!(
        matches!(error, TapError::NotMultiQueue { .. }) && error.to_string().contains("multi_queue"),
        "{error}"
    );
    assert!(matches!(Tap::open_queues("tap7", 2).unwrap_err(), TapError::Missing { .. }));
    assert!(matches!(Tap::open_macvtap("many", 1).unwrap_err(), TapError::NotAMacvtap { .. }));
    let taps = Tap::open_queues("many", 3).unwrap();
    ip("address add 10.1.0.1/24 dev many");
    ip("link set many up");
    ip("neigh replace 10.1.0.2 lladdr 52:54:00:12:34:56 dev many");
    let spread = || {
        let mut spread = [0; 3];
        for _ in 0..100 {
            // Each from another port, which is another flow.
            UdpSocket::bind("10.1.0.1:0").unwrap().send_to(b"x", "10.1.0.2:9").unwrap();
        }
        for (tap, count) in taps.iter().zip(&mut spread) {
            let mut buf = [0; 2000];
            while let Ok(read) = rustix::io::read(&tap.file, &mut buf) {
                *count += u32::from(buf[..read].ends_with(b"x"));
            }
        }
        spread
    };
    for used in [3, 2, 1, 2, 3] {
        for (i, tap) in taps.iter().enumerate() {
            tap.set_active(i < used).unwrap();
            tap.set_active(i < used).unwrap();
            tap.set_offloads(Offloads::all()).unwrap_or_else(|_| tap.set_offloads(Offloads::none()).unwrap());
        }
        let found = spread();
        assert_eq!(found.iter().sum::<u32>(), 100);
        let all = found.iter().take(used).all(|count| *count > 0);
        assert!(all && found.iter().skip(used).all(|count| *count == 0), "{used} in use: {found:?}");
    }
}

/// What waits when offloads are given up is dropped, because a driver without them could not take it.
fn offloads_given_up() {
    ip("tuntap add mode tap name tap2");
    let tap = Tap::open("tap2").unwrap();
    ip("address add 10.3.0.1/24 dev tap2");
    ip("link set tap2 up");
    ip("neigh replace 10.3.0.2 lladdr 52:54:00:12:34:56 dev tap2");
    let socket = UdpSocket::bind("10.3.0.1:0").unwrap();
    let received = || {
        let mut buf = [0; 2000];
        let packets = std::iter::from_fn(|| {
            let len = rustix::io::read(&tap.file, &mut buf).ok()?;
            Some((buf[..len].ends_with(b"hello"), buf[0]))
        });
        // What the kernel sends by itself is not asked for.
        packets.filter(|(is_ours, _)| *is_ours).map(|(_, flags)| flags).collect::<Vec<_>>()
    };
    tap.set_offloads(Offloads::all()).unwrap_or_else(|_| tap.set_offloads(tap.offloads()).unwrap());
    socket.send_to(b"hello", "10.3.0.2:9").unwrap();
    assert_eq!(received(), [1], "the checksum is left to the driver");
    socket.send_to(b"hello", "10.3.0.2:9").unwrap();
    tap.set_offloads(Offloads::none()).unwrap();
    assert_eq!(received(), []);
    socket.send_to(b"hello", "10.3.0.2:9").unwrap();
    tap.set_offloads(Offloads::none()).unwrap();
    assert_eq!(received(), [0], "nothing was given up");
}

/// Bursts of small packets cost few system calls in both directions, and arrive in their order.
fn bursts() {
    const PACKETS: usize = 256;
    ip("tuntap add mode tap name tap1");
    let mut net = Net::new(Tap::open("tap1").unwrap(), GUEST.parse().unwrap());
    ip("address add 10.2.0.1/24 dev tap1");
    ip("link set tap1 up txqueuelen 1000");
    ip("neigh replace 10.2.0.2 lladdr 52:54:00:12:34:56 dev tap1");
    let mut rig = Rig::with_rings(&mut net, MRG_RXBUF, 256, false);
    let calls = |net: &Net<Tap>| net.pairs[0].io.batch().calls;
    let packet = rig.put(&arp_request());
    (0..PACKETS).for_each(|_| _ = rig.offer(1, &[packet], &[]));
    let before = calls(&net);
    rig.run(1);
    let sent = calls(&net) - before;
    assert_eq!((counter(&net, "tx_packets"), rig.rings[1].used_index()), (PACKETS as u64, PACKETS as u16));

    // What the kernel sends by itself, and answers, is out of the way.
    let drain = |rig: &mut Rig| {
        while rig.turn(HOST).unwrap() == crate::Turn::Again {}
        std::iter::from_fn(|| rig.used(0)).count()
    };
    let mut buffers: Vec<_> = (0..PACKETS).map(|_| rig.put(&[0xcc; 1536])).collect();
    buffers.iter().for_each(|buffer| _ = rig.offer(0, &[], &[*buffer]));
    let others = drain(&mut rig);
    for buffer in buffers.drain(..others).collect::<Vec<_>>() {
        rig.offer(0, &[], &[buffer]);
        buffers.push(buffer);
    }
    let socket = UdpSocket::bind("10.2.0.1:0").unwrap();
    const BURST: u8 = 200;
    for i in 0..BURST {
        socket.send_to(&[i; 1000], "10.2.0.2:9").unwrap();
    }
    let before = calls(&net);
    drain(&mut rig);
    let received = calls(&net) - before;
    // Each datagram is there once, in its order.
    let found: Vec<u8> = buffers
        .iter()
        .map(|buffer| rig.get(*buffer))
        .filter(|got| got[24..26] == [8, 0] && got[35] == 17)
        .map(|got| got[100])
        .collect();
    assert_eq!(found, (0..BURST).collect::<Vec<_>>());
    println!("{PACKETS} packets sent by {sent} calls, {BURST} received by {received}");
    let forbidden =
        std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").is_ok_and(|text| text.trim() != "0");
    assert!(forbidden || sent <= PACKETS as u64 / 20, "{sent} calls for {PACKETS} packets");
    // One turn ends after 128 packets, and bursts begin with single ones.
    assert!(forbidden || received <= 20, "{received} calls for {BURST} packets");
}

/// A macvtap is one end of a veth pair, and the host has the other.
fn macvtaps() {
    let mounted = Command::new("mount").args(["-t", "sysfs", "sys", "/sys"]).status().unwrap();
    assert!(mounted.success());
    ip("link add veth0 type veth peer name veth1");
    ip(&format!("link add link veth0 name macvtap0 address {GUEST} type macvtap mode bridge"));
    for name in ["veth0", "veth1", "macvtap0"] {
        ip(&format!("link set {name} up"));
    }
    ip("address add 10.4.0.1/24 dev veth1");
    assert!(matches!(Tap::open_macvtap("veth0", 1).unwrap_err(), TapError::NotAMacvtap { .. }));
    let taps = Tap::open_macvtap("macvtap0", 2).unwrap();
    assert_eq!(taps.len(), 2);
    drop(taps);
    let mut taps = Tap::open_macvtap("macvtap0", 1).unwrap();
    let mut net = Net::new(taps.remove(0), GUEST.parse().unwrap());
    let rig = Rig::new(&mut net, MRG_RXBUF | CSUM | HOST_TSO4);
    is_answered(&net, rig, 4);
    assert_eq!(counter(&net, "host_errors"), 0);
}

/// The sum of big-endian words, as the checksums of IP have it.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let sum = words.sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum + (sum >> 16)) as u16
}

/// USO: a datagram that is to be cut goes as one packet, either way, and is cut by whoever gets it.
fn segments_of_udp() {
    const SIZE: usize = 1000;
    const COUNT: usize = 5;
    const GUEST_CSUM: u128 = 1 << 1;
    const GUEST_USO: u128 = 1 << 54 | 1 << 55;
    const HOST_USO: u128 = 1 << 56;
    const GSO_UDP_L4: u8 = 5;
    ip("tuntap add mode tap name tap5");
    ip("link set tap5 address 52:54:00:00:00:05 mtu 1500 up");
    ip("address add 10.5.0.1/24 dev tap5");
    ip("neigh replace 10.5.0.2 lladdr 52:54:00:12:34:56 dev tap5");
    let tap = Tap::open("tap5").unwrap();
    if !tap.offloads().uso {
        println!("this kernel is older than Linux 6.2: it has no segments of UDP");
        return;
    }
    let mut net = Net::new(tap, GUEST.parse().unwrap());
    let offered = crate::LocalDevice::info(&net).features;
    assert_eq!(offered & (HOST_USO | GUEST_USO), HOST_USO | GUEST_USO);
    let datagrams: Vec<Vec<u8>> = (0..COUNT).map(|i| vec![b'a' + i as u8; SIZE]).collect();
    let data = datagrams.concat();
    let socket = UdpSocket::bind("10.5.0.1:0").unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();

    // From the guest.
    let mut rig = Rig::new(&mut net, MRG_RXBUF | CSUM | HOST_USO | GUEST_CSUM | GUEST_USO);
    let udp_len = (8 + data.len() as u16).to_be_bytes();
    let addresses = [10, 5, 0, 2, 10, 5, 0, 1];
    let pseudo = [&addresses[..], &[0, 17], &udp_len].concat();
    let port = socket.local_addr().unwrap().port().to_be_bytes();
    let udp = [&[0x12, 0x34][..], &port, &udp_len, &sum(&pseudo).to_be_bytes(), &data].concat();
    let len = (20 + udp.len() as u16).to_be_bytes();
    let mut ip_header = [&[0x45, 0][..], &len, &[0, 0, 0, 0, 64, 17, 0, 0], &addresses].concat();
    let checksum = !sum(&ip_header);
    ip_header[10..12].copy_from_slice(&checksum.to_be_bytes());
    let mut packet = frame([0x52, 0x54, 0, 0, 0, 5], 0x0800, &[ip_header, udp].concat());
    let size = (SIZE as u16).to_le_bytes();
    packet[..10].copy_from_slice(&[1, GSO_UDP_L4, 42, 0, size[0], size[1], 34, 0, 6, 0]);
    send(&mut rig, &packet);
    assert_eq!(counter(&net, "tx_packets"), 1, "one packet");
    let mut buf = [0; 10_000];
    for datagram in &datagrams {
        let len = socket.recv(&mut buf).unwrap();
        assert_eq!(buf[..len], **datagram);
    }

    // To the guest: in one packet if it accepts that, or else in several. Among what the kernel sends by itself.
    segment(&socket, SIZE as libc::c_int);
    let received = |rig: &mut Rig| {
        let buffers: Vec<_> = (0..32).map(|_| rig.put(&[0xcc; 8000])).collect();
        buffers.iter().for_each(|buffer| _ = rig.offer(0, &[], &[*buffer]));
        let mut buffers = buffers.iter();
        let (mut packets, mut tries) = (Vec::<Vec<u8>>::new(), 0);
        while packets.iter().map(|packet| packet.len() - 54).sum::<usize>() < data.len() {
            // The kernel drops what is sent before it has noticed that the cable is plugged in.
            if packets.is_empty() && tries % 1000 == 0 {
                socket.send_to(&data, "10.5.0.2:9").unwrap();
            }
            tries += 1;
            assert!(tries < 60_000, "{packets:?}");
            std::thread::sleep(std::time::Duration::from_millis(1));
            while rig.turn(HOST).unwrap() == crate::Turn::Again {}
            for used in std::iter::from_fn(|| rig.used(0)).collect::<Vec<_>>() {
                let mut packet = rig.get(*buffers.next().unwrap());
                packet.truncate(used.len as usize);
                if packet[24..26] == [8, 0] && packet[35] == 17 {
                    packets.push(packet);
                }
            }
        }
        packets
    };
    let packets = received(&mut rig);
    let [packet] = &*packets else { panic!("{} packets", packets.len()) };
    assert_eq!((packet[1], &packet[4..6]), (GSO_UDP_L4, &size[..]));
    assert!(packet[54..] == data);
    drop(rig);
    let mut rig = Rig::new(&mut net, MRG_RXBUF | CSUM | GUEST_CSUM);
    let packets = received(&mut rig);
    assert_eq!(packets.iter().map(|packet| packet[54..].to_vec()).collect::<Vec<_>>(), datagrams);
    assert!(packets.iter().all(|packet| packet[1] == 0));
}

/// Has the kernel cut what is sent into datagrams of `size` bytes (`UDP_SEGMENT`, see udp(7)).
#[allow(unsafe_code)]
fn segment(socket: &UdpSocket, size: libc::c_int) {
    let len = size_of_val(&size) as libc::socklen_t;
    let size = (&raw const size).cast();
    // SAFETY: the kernel reads one int, which outlives the call.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_SEGMENT, size, len) };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}
