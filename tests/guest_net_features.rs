//! Network cards with several pairs of queues, with each of several sets of offloads, with long packets, and whose cable
//! is pulled out: data of TCP and UDP arrives unchanged in both directions.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::fd::BorrowedFd;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use ossature::bus::{Device, Syscall};
use ossature::memory::{Dma, DmaIoError, Segments};
use ossature::virtio::net::{self, HEADER_LEN, Mac, NetIo, Offloads, Unsent};
use ossature::virtio::{MmioInterrupt, Net, SharedLoop, VirtioMmio};
use ossature::vmm::Kvm;
use ossature::vmm::machine::Outcome;
use support::{Guest, LIMIT, Tap, accept};

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
    let mut data = vec![0; 1 << 20];
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

#[test]
fn data_arrives_unchanged_with_every_kind_of_offload() {
    let data = data();
    let sets = [offloads(false, false), offloads(true, false), offloads(true, true), Offloads::all()];
    let io = Arc::new(SharedLoop::new("io").unwrap());
    let (mut devices, mut servers) = (Vec::new(), Vec::new());
    let mut script = String::new();
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
        let device = VirtioMmio::new(format!("net{i}"), Box::new(card), io.clone());
        devices.push(Box::new(device.with_interrupt(MmioInterrupt::AlwaysSet)) as Box<dyn Device>);
        let (listener, socket) = (tap.listen(), UdpSocket::bind((tap.host.as_str(), 0)).unwrap());
        let (tcp, udp) = (listener.local_addr().unwrap().port(), socket.local_addr().unwrap().port());
        let (host, block) = (&tap.host, if long { 8000 } else { 1400 });
        script += &format!(
            "ip link set eth{i} up
            ip address add {}/28 dev eth{i}
            cat /sys/class/net/eth{i}/mtu
            nc {host} {tcp} </dev/null >/dev/shm/tcp
            sha256sum </dev/shm/tcp
            nc {host} {tcp} </dev/shm/tcp
            tftp -g -b {block} -r data -l /dev/shm/udp {host} {udp}
            sha256sum </dev/shm/udp
            tftp -p -b {block} -r data -l /dev/shm/udp {host} {udp}\n",
            tap.guest
        );
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
    let guest = Guest::new().run("data", &script);
    let (builder, terminal) = guest.machine("offloads", devices);
    let machine = builder.build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    let outcome = machine.wait().unwrap();
    assert!(matches!(outcome, Outcome::Shutdown), "{}", terminal.log.text());
    let said = terminal.answers(&guest)["data"].to_owned();
    assert_eq!(said.matches(&sha256(&data)).count(), 8, "{said}");
    let mtus: Vec<_> = said.lines().filter(|line| line.len() == 4).collect();
    assert_eq!(mtus, ["1500", "1500", "1500", "9000"], "{said}");
    for server in servers {
        drop(server.join().unwrap());
    }
}

#[test]
fn a_guest_uses_all_queues_and_sees_its_cable() {
    const FLOWS: usize = 24;
    let tap = Tap::numbered(1, &["multi_queue"]);
    let listener = tap.listen();
    let port = listener.local_addr().unwrap().port();
    let ios: Vec<_> = net::Tap::open_queues(&tap.name, 2).unwrap();
    let ios: Vec<_> = ios.into_iter().map(|tap| Counted::new(tap, Offloads::all())).collect();
    let packets: Vec<_> = ios.iter().map(|io| io.packets.clone()).collect();
    let card = Net::with_pairs(ios, Mac::derived(&tap.name)).unwrap();
    let handle = card.handle();
    let io = Arc::new(SharedLoop::new("io").unwrap());
    let device = VirtioMmio::new("net", Box::new(card), io).with_interrupt(MmioInterrupt::AlwaysSet);
    let wait =
        |carrier| format!("while [ $(cat /sys/class/net/eth0/carrier) != {carrier} ]; do sleep 0.1; done");
    let host = &tap.host;
    // Each flow once from each processor.
    let script = format!(
        "ls -d /sys/class/net/eth0/queues/*
        for i in $(seq {}); do
            taskset 1 nc {host} {port} </dev/null >/dev/shm/a
            taskset 2 nc {host} {port} </dev/null >/dev/shm/b
            cmp /dev/shm/a /dev/shm/b
        done
        sha256sum </dev/shm/a
        printf 'pull\n'
        {}
        printf 'plug\n'
        {}
        ping -c 1 -w 60 {host}",
        FLOWS / 2,
        wait(0),
        wait(1),
    );
    let guest = Guest::new().cmdline(&format!("ossature.ip={}/28", tap.guest)).run("script", &script);
    let (builder, terminal) = guest.machine("queues", [Box::new(device) as Box<dyn Device>]);
    let machine = builder.cpus(2).build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    let data = data()[..200_000].to_vec();
    let sent = data.clone();
    let server = thread::spawn(move || {
        for _ in 0..FLOWS {
            accept(&listener).0.write_all(&sent).unwrap();
        }
    });
    terminal.wait_for("pull\n");
    handle.set_link(false);
    terminal.wait_for("plug\n");
    handle.set_link(true);
    let outcome = machine.wait().unwrap();
    assert!(matches!(outcome, Outcome::Shutdown), "{}", terminal.log.text());
    server.join().unwrap();
    let said = terminal.answers(&guest)["script"].to_owned();
    assert_eq!(said.matches("/queues/").count(), 4, "{said}");
    assert!(said.contains(&sha256(&data)), "{said}");
    let counts: Vec<_> =
        packets.iter().map(|pair| [0, 1].map(|way| pair[way].load(Ordering::Relaxed))).collect();
    assert!(counts.iter().flatten().all(|count| *count > 20), "{counts:?}");
}
