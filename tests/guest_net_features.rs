//! Network cards with several pairs of queues, with each of several sets of offloads, with long packets, and with a cable
//! that is pulled out: data of TCP and UDP arrives unchanged in both directions.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::UdpSocket;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use ossature::bus::Syscall;
use ossature::memory::{Dma, DmaIoError, Segments};
use ossature::virtio::net::{self, HEADER_LEN, Mac, NetIo, Offloads, Unsent};
use ossature::virtio::{MmioInterrupt, Net, SharedLoop};
use ossature::vmm::Kvm;
use ossature::vmm::machine::Outcome;
use support::{Answers, Guest, LIMIT, Tap, Transport, Virtio, accept};

/// A tap that has only some offloads, and counts packets.
struct Counted {
    tap: net::Tap,
    offloads: Offloads,
    packets: Arc<[AtomicU64; 2]>,
}

impl Counted {
    fn new(tap: net::Tap, offloads: Offloads) -> Self {
        Self { tap, offloads, packets: Arc::default() }
    }
}

impl NetIo for Counted {
    fn fd(&self) -> BorrowedFd<'_> {
        self.tap.fd()
    }

    fn offloads(&self) -> Offloads {
        let all = self.tap.offloads();
        assert!(all.checksum && all.tso4 && all.tso6 && all.ecn);
        self.offloads
    }

    fn set_offloads(&self, offloads: Offloads) -> std::io::Result<()> {
        self.tap.set_offloads(offloads)
    }

    fn set_active(&self, active: bool) -> std::io::Result<()> {
        self.tap.set_active(active)
    }

    fn is_connected(&self) -> bool {
        self.tap.is_connected()
    }

    fn receive(&self, mem: &Dma, to: Segments<'_>) -> Result<usize, DmaIoError> {
        self.tap.receive(mem, to).inspect(|_| _ = self.packets[0].fetch_add(1, Ordering::Relaxed))
    }

    fn send(&self, mem: &Dma, header: &[u8; HEADER_LEN], from: Segments<'_>) -> Result<(), DmaIoError> {
        self.packets[1].fetch_add(1, Ordering::Relaxed);
        self.tap.send(mem, header, from)
    }

    fn flush(&self) -> Result<(), Unsent> {
        self.tap.flush()
    }

    fn syscalls(&self) -> &'static [Syscall] {
        self.tap.syscalls()
    }
}

fn offloads(checksum: bool, tso: bool) -> Offloads {
    let mut offloads = Offloads::none();
    (offloads.checksum, offloads.tso4, offloads.tso6, offloads.ecn) = (checksum, tso, tso, tso);
    offloads
}

/// What is sent and received.
fn data() -> Vec<u8> {
    let mut data = vec![0; 128 << 10];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut data).unwrap();
    data
}

fn sha256(data: &[u8]) -> String {
    let mut sum = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    sum.stdin.take().unwrap().write_all(data).unwrap();
    let output = sum.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

/// Serves `data` by TFTP (RFC 1350, 2347, 2348), and takes what the client sends: returns that once it is all there.
fn tftp(socket: &UdpSocket, data: &[u8]) -> Vec<u8> {
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let (mut block, mut came, mut next) = (512, Vec::new(), 0u16);
    let mut packet = [0; 10_000];
    loop {
        let (len, client) = socket.recv_from(&mut packet).unwrap();
        let (number, rest) = (u16::from_be_bytes([packet[2], packet[3]]), &packet[4.min(len)..len]);
        let send_block = |number: u16, block: usize| {
            let from = (usize::from(number) - 1) * block;
            if from <= data.len() {
                let bytes = &data[from..data.len().min(from + block)];
                socket.send_to(&[&[0, 3][..], &number.to_be_bytes(), bytes].concat(), client).unwrap();
            }
        };
        match packet[1] {
            // A request to read or to write.
            request @ (1 | 2) => {
                let words: Vec<_> =
                    packet[2..len].split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
                let option = words.iter().position(|word| word == "blksize").map(|at| words[at + 1].clone());
                block = option.as_ref().map_or(512, |size| size.parse().unwrap());
                (came, next) = (Vec::new(), 1);
                match option {
                    Some(size) => {
                        let answer = format!("\0\x06blksize\0{size}\0");
                        socket.send_to(answer.as_bytes(), client).unwrap();
                    }
                    None if request == 1 => send_block(1, block),
                    None => _ = socket.send_to(&[0, 4, 0, 0], client).unwrap(),
                }
            }
            3 => {
                if number == next {
                    came.extend_from_slice(rest);
                    next += 1;
                }
                let last = rest.len() < block;
                socket.send_to(&[[0, 4], number.to_be_bytes()].concat(), client).unwrap();
                if last && number + 1 == next {
                    return came;
                }
            }
            4 => send_block(number + 1, block),
            other => panic!("operation {other} of TFTP: {}", String::from_utf8_lossy(&packet[..len])),
        }
    }
}

/// Runs a guest with these cards until it has powered off.
fn run(guest: &Guest, transport: Transport, cpus: u32, cards: Vec<Virtio<'_>>) -> Answers {
    let io = Arc::new(SharedLoop::new("io").unwrap());
    let (builder, terminal) = guest.machine("net", transport.plug(cards, &io));
    let machine = builder.cpus(cpus).build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    let outcome = machine.wait_timeout(LIMIT).unwrap();
    assert!(matches!(outcome, Some(Outcome::Shutdown)), "{outcome:?}: {}", terminal.log.text());
    drop(machine);
    terminal.answers(guest)
}

#[test]
fn data_arrives_unchanged_with_every_kind_of_offload() {
    let data = data();
    let sets = [offloads(false, false), offloads(true, false), offloads(true, true), Offloads::all()];
    let ids = ["net0", "net1", "net2", "net3"];
    let (mut guest, mut cards, mut servers) = (Guest::new(), Vec::new(), Vec::new());
    for (i, set) in sets.into_iter().enumerate() {
        let tap = Tap::numbered(i as u8 + 1, &[]);
        // The last has long packets.
        let long = i == 3;
        let open = net::Tap::open(&tap.name).unwrap();
        // What the host's kernel does not have is not offered.
        let set = if set.uso { open.offloads() } else { set };
        let mut card = Net::new(Counted::new(open, set), Mac::derived(&tap.name));
        if long {
            tap.set(&["mtu", "9000"]);
            card = card.with_mtu("9000".parse().unwrap());
        }
        cards.push((ids[i], Box::new(card) as _, MmioInterrupt::AlwaysSet));
        let (listener, socket) = (tap.listen(), UdpSocket::bind((tap.host.as_str(), 0)).unwrap());
        let (tcp, udp) = (listener.local_addr().unwrap().port(), socket.local_addr().unwrap().port());
        let (host, block) = (&tap.host, if long { 8000 } else { 1400 });
        let script = format!(
            "ip link set eth{i} up
            ip address add {}/28 dev eth{i}
            cat /sys/class/net/eth{i}/mtu /sys/class/net/eth{i}/device/features
            nc {host} {tcp} </dev/null >/dev/shm/tcp
            sha256sum </dev/shm/tcp
            nc {host} {tcp} </dev/shm/tcp
            tftp -g -b {block} -r data -l /dev/shm/udp {host} {udp}
            sha256sum </dev/shm/udp
            tftp -p -b {block} -r data -l /dev/shm/udp {host} {udp}",
            tap.guest
        );
        guest = guest.run(ids[i], &script);
        let data = data.clone();
        servers.push(thread::spawn(move || {
            let (mut stream, _) = accept(&listener);
            stream.write_all(&data).unwrap();
            drop(stream);
            let mut back = Vec::new();
            accept(&listener).0.read_to_end(&mut back).unwrap();
            assert!(back == data, "TCP, card {i}: {} bytes", back.len());
            let back = tftp(&socket, &data);
            assert!(back == data, "UDP, card {i}: {} bytes", back.len());
            // It outlives the guest.
            tap
        }));
    }
    let answers = run(&guest, Transport::Mmio, 1, cards);
    for (i, (id, set)) in ids.into_iter().zip(sets).enumerate() {
        let said = &answers[id];
        assert_eq!(said.matches(&sha256(&data)).count(), 2, "card {i}: {said}");
        let [mtu, features] = [0, 1].map(|line| said.lines().nth(line).unwrap());
        assert_eq!(mtu, if i == 3 { "9000" } else { "1500" });
        // Of both sides: checksums, TCP segments of IPv4 and IPv6, ECN (virtio 1.2, section 5.1.3).
        let has = |bits: [usize; 2]| bits.map(|bit| features.as_bytes()[bit] == b'1');
        assert_eq!(has([0, 1]), [set.checksum; 2], "card {i}: {features}");
        for bits in [[7, 11], [8, 12], [9, 13]] {
            assert_eq!(has(bits), [set.tso4; 2], "card {i}: {features}");
        }
    }
    for server in servers {
        drop(server.join().unwrap());
    }
}

#[test]
fn a_guest_uses_all_queues() {
    all_queues(Transport::Mmio);
}

#[test]
fn a_guest_uses_all_queues_on_pci() {
    let interrupts = all_queues(Transport::Pci);
    // Each queue to the guest has a vector of its own.
    for name in ["-input.0", "-input.1"] {
        let line = interrupts.lines().find(|line| line.ends_with(name)).expect(&interrupts);
        let counts = line.split_whitespace().skip(1).map_while(|word| word.parse::<u64>().ok());
        assert!(counts.sum::<u64>() > 0, "{line}");
    }
}

/// Connections from each of two processors use both pairs of queues; returns the guest's interrupts.
fn all_queues(transport: Transport) -> String {
    const FLOWS: u64 = 4;
    let tap = Tap::numbered(1, &["multi_queue"]);
    let listener = tap.listen();
    let port = listener.local_addr().unwrap().port();
    let ios: Vec<_> = net::Tap::open_queues(&tap.name, 2).unwrap();
    let ios: Vec<_> = ios.into_iter().map(|tap| Counted::new(tap, Offloads::all())).collect();
    let packets: Vec<_> = ios.iter().map(|io| io.packets.clone()).collect();
    let card = Net::with_pairs(ios, Mac::derived(&tap.name)).unwrap();
    let host = &tap.host;
    let script = format!(
        "ls -d /sys/class/net/eth0/queues/*
        for i in $(seq {FLOWS}); do
            taskset 1 nc {host} {port} </dev/null >/dev/shm/a
            taskset 2 nc {host} {port} </dev/null >/dev/shm/b
            cmp /dev/shm/a /dev/shm/b
        done
        sha256sum </dev/shm/a",
    );
    let guest = Guest::new().cmdline(&format!("ossature.ip={}/28", tap.guest)).run("flows", &script);
    let guest = guest.run("interrupts", "cat /proc/interrupts");
    let data = data()[..64 << 10].to_vec();
    let sent = data.clone();
    let server = thread::spawn(move || {
        for _ in 0..2 * FLOWS {
            accept(&listener).0.write_all(&sent).unwrap();
        }
    });
    let answers = run(&guest, transport, 2, vec![("net", Box::new(card), MmioInterrupt::AlwaysSet)]);
    server.join().unwrap();
    let said = &answers["flows"];
    assert_eq!(said.matches("/queues/").count(), 4, "{said}");
    assert!(said.contains(&sha256(&data)), "{said}");
    // The guest begins each connection on the queue of its processor, and the host answers on the same.
    let counts = packets.iter().map(|pair| [0, 1].map(|way| pair[way].load(Ordering::Relaxed)));
    let counts: Vec<_> = counts.collect();
    println!("packets to the guest and from it, by pairs of queues: {counts:?}");
    assert!(counts.iter().flatten().all(|count| *count >= FLOWS), "{counts:?}");
    answers["interrupts"].to_owned()
}

/// Asks for something on the control socket of microvm.
fn ask(socket: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    writeln!(stream, "{request}").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer
}

#[test]
fn a_guest_sees_its_link_go_down_and_up() {
    link(Transport::Mmio);
}

#[test]
fn a_guest_sees_its_link_go_down_and_up_on_pci() {
    link(Transport::Pci);
}

fn link(transport: Transport) {
    let tap = Tap::new();
    let listener = tap.listen();
    let (host, port) = (&tap.host, listener.local_addr().unwrap().port());
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control");
    let wait = "until [ $(cat /sys/class/net/eth0/carrier)";
    let guest = Guest::new()
        .transport(transport)
        .args(["--net", &format!("tap={}", tap.name)])
        .args(["--control".as_ref(), control.as_os_str()])
        .cmdline(&format!("ossature.ip={}/24", tap.guest))
        .run(
            "link",
            &format!(
                "{wait} = 1 ]; do sleep 0.1; done; echo cable is in
                {wait} = 0 ]; do sleep 0.1; done; echo cable is out; cat /sys/class/net/eth0/operstate
                ! ping -c 1 -W 1 {host} >/dev/null
                echo nothing arrives
                {wait} = 1 ]; do sleep 0.1; done; echo cable is back
                nc {host} {port} </dev/null"
            ),
        )
        .start();
    guest.wait_for("cable is in");
    assert_eq!(ask(&control, "link net0 down"), "ok\n");
    guest.wait_for("nothing arrives");
    assert_eq!(ask(&control, "link net1 up"), "error: there is no network card \"net1\"\n");
    assert!(ask(&control, "link net0 sideways").contains("link ID up|down"));
    assert_eq!(ask(&control, "link net0 up"), "ok\n");
    accept(&listener).0.write_all(b"data over the link").unwrap();
    let ended = guest.wait();
    ended.expect(0);
    let answers = ended.answers();
    let lines: Vec<_> = answers["link"].lines().collect();
    let expected =
        ["cable is in", "cable is out", "down", "nothing arrives", "cable is back", "data over the link"];
    assert_eq!(lines, expected);
}
