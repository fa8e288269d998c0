//! The devices, each behind both transports, with requests that mean something and requests that do not.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use ossature_block::{Disk, DiskError, DiskIo, EngineSetup, SyncEngine};
use ossature_bus::{DeviceError, Syscall};
use ossature_memory::{Dma, DmaIoError, Segments};
use ossature_virtio::console::{
    Console, ConsoleInput, ConsoleOutput, ConsolePort, ConsoleWindow, PortSocket,
};
use ossature_virtio::net::{HEADER_LEN, Mac, Net, NetHandle, NetIo, Offloads, StreamSocket, Unsent};
use ossature_virtio::vsock::HostSocket;
use ossature_virtio::{Blk, LocalDevice, Rng, Vsock};

use crate::Input;
use crate::guest::{self, Kind};

/// Sockets of the host's side that are kept.
const PEERS: usize = 8;

fn push(bytes: &mut Vec<u8>, len: usize, value: u64) {
    bytes.extend(&value.to_le_bytes()[..len]);
}

/// A listening socket that no file stands for.
fn listener() -> (UnixListener, SocketAddr) {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = format!("ossature-fuzz-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let addr = SocketAddr::from_abstract_name(name).expect("a name");
    (UnixListener::bind_addr(&addr).expect("a socket"), addr)
}

fn pair() -> (UnixStream, UnixStream) {
    let (one, other) = UnixStream::pair().expect("sockets");
    for end in [&one, &other] {
        end.set_nonblocking(true).expect("a socket");
    }
    (one, other)
}

/// Requests of disks.
pub fn blk(bytes: &[u8]) {
    guest::run(BlkKind, bytes);
}

/// A disk in memory whose transfers are short and fail.
pub(crate) struct Flaky {
    bytes: Mutex<Vec<u8>>,
    /// The most that one transfer moves.
    step: u64,
    /// Whatever touches bytes from here on fails.
    bad: u64,
    read_only: bool,
}

impl Flaky {
    pub(crate) fn new(input: &mut Input) -> Self {
        let step = [u64::MAX, 512, 100, 4096][input.below(4) as usize];
        let read_only = input.below(8) == 0;
        let bad = if input.flag() { 32 << 10 } else { u64::MAX };
        Self { bytes: Mutex::new(vec![0x5a; 64 << 10]), step, bad, read_only }
    }

    fn move_bytes(&self, len: u64, offset: u64) -> Result<(usize, usize), DmaIoError> {
        let len = len.min(self.step);
        if offset + len > self.bad {
            return Err(std::io::Error::other("a bad sector").into());
        }
        Ok((offset as usize, len as usize))
    }

    fn zero(&self, offset: u64, len: u64) -> std::io::Result<()> {
        if offset + len > self.bad {
            return Err(std::io::Error::other("a bad sector"));
        }
        self.bytes.lock().expect("bytes")[offset as usize..][..len as usize].fill(0);
        Ok(())
    }
}

impl DiskIo for Flaky {
    fn read(&self, mem: &Dma, to: Segments<'_>, offset: u64) -> Result<usize, DmaIoError> {
        let (at, len) = self.move_bytes(to.len(), offset)?;
        let bytes = self.bytes.lock().expect("bytes");
        Ok(mem.scatter(to, &bytes[at..at + len])?)
    }
    fn write(&self, mem: &Dma, from: Segments<'_>, offset: u64) -> Result<usize, DmaIoError> {
        let (at, len) = self.move_bytes(from.len(), offset)?;
        Ok(mem.gather(from, &mut self.bytes.lock().expect("bytes")[at..at + len])?)
    }
    fn flush(&self) -> std::io::Result<()> {
        if self.bad == u64::MAX { Ok(()) } else { Err(std::io::Error::other("a bad disk")) }
    }
    fn discard(&self, offset: u64, len: u64) -> std::io::Result<()> {
        self.zero(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, _: bool) -> std::io::Result<()> {
        self.zero(offset, len)
    }
}

impl Disk for Flaky {
    type Engine = SyncEngine<Self>;

    fn capacity(&self) -> u64 {
        self.bytes.lock().expect("bytes").len() as u64
    }
    fn read_only(&self) -> bool {
        self.read_only
    }
    fn logical_block(&self) -> u32 {
        512
    }
    fn physical_block(&self) -> u32 {
        4096
    }
    fn engine(self: &Arc<Self>, _: &EngineSetup) -> Result<Self::Engine, DeviceError> {
        Ok(SyncEngine::new(Arc::clone(self)))
    }
    fn resize(&self, capacity: u64) -> Result<(), DiskError> {
        self.bytes.lock().expect("bytes").resize(capacity as usize, 0);
        Ok(())
    }
    fn lock(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn unlock(&self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }
}

struct BlkKind;

impl Kind for BlkKind {
    fn device(&mut self, input: &mut Input) -> Box<dyn LocalDevice> {
        let queues = 1 + input.below(2) as u16;
        Box::new(Blk::new(Flaky::new(input), "fuzz".parse().expect("an id")).with_queues(queues))
    }
    fn request(&mut self, _: u16, input: &mut Input) -> Vec<u8> {
        let mut bytes = Vec::new();
        let kind = input.u8();
        push(&mut bytes, 4, [0, 1, 4, 8, 11, 13, 13, u64::from(kind)][usize::from(kind & 7)]);
        push(&mut bytes, 4, input.number());
        push(&mut bytes, 8, input.number());
        match kind & 7 {
            1 => bytes.resize(16 + 512 * usize::from(input.u8() % 9) + usize::from(input.u8() == 1), 0x77),
            4.. => {
                for _ in 0..=input.below(4) {
                    push(&mut bytes, 8, input.number());
                    push(&mut bytes, 4, input.number());
                    push(&mut bytes, 4, input.number());
                }
            }
            _ => {}
        }
        bytes
    }
    fn is_prompt(&self, _: u16) -> bool {
        true
    }
}

/// Requests for entropy.
pub fn rng(bytes: &[u8]) {
    guest::run(RngKind, bytes);
}

struct RngKind;

impl Kind for RngKind {
    fn device(&mut self, _: &mut Input) -> Box<dyn LocalDevice> {
        Box::new(Rng::new())
    }
    fn request(&mut self, _: u16, _: &mut Input) -> Vec<u8> {
        Vec::new()
    }
    fn is_prompt(&self, _: u16) -> bool {
        true
    }
}

/// Packets with virtio-net's headers, both ways, and commands.
pub fn net(bytes: &[u8]) {
    guest::run(NetKind { only: None, host: None, handle: None }, bytes);
}

/// Commands for a network card.
pub fn net_control(bytes: &[u8]) {
    guest::run(NetKind { only: Some(4), host: None, handle: None }, bytes);
}

/// A network that takes everything, and gives what the host has put into it.
struct Wire {
    socket: UnixDatagram,
    offloads: Mutex<Offloads>,
}

impl NetIo for Wire {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
    fn offloads(&self) -> Offloads {
        Offloads::all()
    }
    fn set_offloads(&self, offloads: Offloads) -> std::io::Result<()> {
        *self.offloads.lock().expect("offloads") = offloads;
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
        mem.readv_spilling(&self.socket, to, &mut [0])
    }
    /// What a card passes on is a packet that a host's kernel could send.
    fn send(&self, _: &Dma, header: &[u8; HEADER_LEN], from: Segments<'_>) -> Result<(), DmaIoError> {
        let field = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
        let [flags, gso, ..] = *header;
        assert!(from.len() >= 14, "a packet of {} bytes is sent", from.len());
        assert!(matches!(gso & 0x7f, 0 | 1 | 4 | 5), "segmentation {gso:#x}");
        if flags & 1 != 0 {
            assert!(field(6) + field(8) + 2 <= from.len(), "a checksum beyond the packet: {header:x?}");
        } else {
            assert_eq!(gso & 0x7f, 0, "segments without a checksum: {header:x?}");
        }
        Ok(())
    }
    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }
}

struct NetKind {
    only: Option<u16>,
    host: Option<UnixDatagram>,
    handle: Option<NetHandle>,
}

fn packet(input: &mut Input) -> Vec<u8> {
    let mut bytes = Vec::new();
    let form = input.u8();
    // Flags and segmentation, of which half are possible.
    bytes.push([0, 1, 2, input.u8()][usize::from(form & 3)]);
    bytes.push([0, 1, 3, 4, 5, 0x81, 0x84, input.u8()][usize::from(form >> 2 & 7)]);
    for _ in 0..4 {
        push(&mut bytes, 2, input.number());
    }
    push(&mut bytes, 2, u64::from(form >> 5 & 1));
    let len = usize::from(input.u16() % 2000);
    let body = input.bytes(len.min(60));
    let destination = [[0x52, 0x54, 0, 0x12, 0x34, 0x56], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]];
    bytes.extend(destination.get(usize::from(form >> 6)).into_iter().flatten());
    bytes.extend(body);
    bytes.resize(12 + len.max(body.len()), 0);
    bytes
}

fn command(input: &mut Input) -> Vec<u8> {
    let form = input.u8();
    let mut bytes = vec![form & 7, form >> 3 & 7];
    match input.u8() % 4 {
        0 => bytes.push(input.u8()),
        1 => push(&mut bytes, 2, input.number()),
        2 => {
            for _ in 0..2 {
                let count = input.number();
                push(&mut bytes, 4, count);
                for _ in 0..count.min(40) {
                    bytes.extend([0x52, input.u8(), 0, 0, 0, input.u8()]);
                }
            }
        }
        _ => bytes.extend(input.bytes(8)),
    }
    bytes
}

impl Kind for NetKind {
    fn device(&mut self, input: &mut Input) -> Box<dyn LocalDevice> {
        let wire = || {
            let (socket, host) = UnixDatagram::pair().expect("sockets");
            for end in [&socket, &host] {
                end.set_nonblocking(true).expect("a socket");
            }
            (Wire { socket, offloads: Mutex::default() }, host)
        };
        let ((one, host), (two, _)) = (wire(), wire());
        self.host = Some(host);
        let mac: Mac = "52:54:00:12:34:56".parse().expect("an address");
        // A card for commands always has two pairs, so that its control queue is the same one.
        let pairs = if self.only.is_some() || input.flag() { vec![one, two] } else { vec![one] };
        let net = Net::with_pairs(pairs, mac).expect("a card");
        self.handle = Some(net.handle());
        Box::new(net)
    }
    fn queue(&self, input: &mut Input, count: u16) -> u16 {
        let any = input.below(count.into()) as u16;
        self.only.filter(|only| *only < count).unwrap_or(any)
    }
    fn request(&mut self, queue: u16, input: &mut Input) -> Vec<u8> {
        match queue {
            1 | 3 => packet(input),
            2 | 4 => command(input),
            _ => Vec::new(),
        }
    }
    fn is_prompt(&self, queue: u16) -> bool {
        // Which queue is for commands depends on what was negotiated.
        queue == 1
    }
    fn host(&mut self, input: &mut Input) {
        match input.u8() % 8 {
            0 => self.handle.iter().for_each(|handle| handle.set_link(input.flag())),
            1 => self.handle.iter().for_each(NetHandle::announce),
            _ => {
                let packet = packet(input);
                self.host.iter().for_each(|host| drop(host.send(&packet)));
            }
        }
    }
}

/// What a program at the other end of a stream socket writes to a network card.
pub fn net_stream(bytes: &[u8]) {
    guest::run(StreamKind(None), bytes);
}

struct StreamKind(Option<UnixStream>);

impl Kind for StreamKind {
    fn device(&mut self, _: &mut Input) -> Box<dyn LocalDevice> {
        let (one, other) = pair();
        self.0 = Some(other);
        let io = StreamSocket::from_fd(one).expect("a socket");
        Box::new(Net::new(io, "52:54:00:12:34:56".parse().expect("an address")))
    }
    fn request(&mut self, queue: u16, input: &mut Input) -> Vec<u8> {
        match queue {
            0 => Vec::new(),
            1 => packet(input),
            _ => command(input),
        }
    }
    fn is_prompt(&self, _: u16) -> bool {
        false
    }
    fn host(&mut self, input: &mut Input) {
        let Some(stream) = &mut self.0 else { return };
        match input.u8() % 8 {
            0 => drop(stream.read(&mut [0; 4096])),
            1 => drop(stream.shutdown(std::net::Shutdown::Write)),
            2 => self.0 = None,
            3 => {
                let len = usize::from(input.u8());
                drop(stream.write(input.bytes(len)));
            }
            _ => {
                // A packet behind its length, which may be another one.
                let packet = &packet(input)[12..];
                let len = if input.u8() == 0xff { input.u32() } else { packet.len() as u32 };
                drop(stream.write(&len.to_be_bytes()));
                drop(stream.write(packet));
            }
        }
    }
}

/// Packets of sockets, and programs of the host at the other end.
pub fn vsock(bytes: &[u8]) {
    guest::run(VsockKind::default(), bytes);
}

#[derive(Default)]
struct VsockKind {
    /// Programs that the guest has connected to, and those that have connected.
    peers: Arc<Mutex<VecDeque<UnixStream>>>,
    address: Option<SocketAddr>,
}

impl Kind for VsockKind {
    fn device(&mut self, _: &mut Input) -> Box<dyn LocalDevice> {
        let (listener, address) = listener();
        self.address = Some(address);
        let peers = Arc::clone(&self.peers);
        let connect = move |port: u32| -> std::io::Result<OwnedFd> {
            match port {
                0 => return Err(ErrorKind::WouldBlock.into()),
                1 => return Err(ErrorKind::ConnectionRefused.into()),
                _ => {}
            }
            let (one, other) = pair();
            let mut peers = peers.lock().expect("peers");
            peers.push_back(other);
            if peers.len() > PEERS {
                peers.pop_front();
            }
            Ok(one.into())
        };
        let socket = HostSocket::new(listener, connect).expect("a socket");
        let vsock = Vsock::new(3.try_into().expect("a CID")).and_then(|vsock| vsock.with_socket(socket));
        Box::new(vsock.expect("a device").with_max_connections(16))
    }
    fn request(&mut self, queue: u16, input: &mut Input) -> Vec<u8> {
        if queue != 1 {
            return Vec::new();
        }
        let mut bytes = Vec::new();
        let form = input.u8();
        let odd = form == 0xff;
        push(&mut bytes, 8, if odd { input.number() } else { 3 });
        push(&mut bytes, 8, if odd { input.number() } else { 2 });
        // Guests' ports, and the host's: few, so that packets meet connections.
        push(&mut bytes, 4, u64::from(form & 3));
        push(&mut bytes, 4, if form & 4 != 0 { 1 << 30 } else { u64::from(form >> 3 & 3) });
        let data = input.u8();
        let len = if data < 0x80 { u64::from(data) } else { input.u64() % 3000 };
        push(&mut bytes, 4, if odd { input.number() } else { len });
        push(&mut bytes, 2, if form & 0x20 != 0 { input.number() } else { 1 });
        push(&mut bytes, 2, u64::from(input.u8() % 9));
        push(&mut bytes, 4, input.number());
        push(&mut bytes, 4, input.number());
        push(&mut bytes, 4, input.number());
        bytes.resize(44 + len as usize, 0x61);
        bytes
    }
    fn is_prompt(&self, _: u16) -> bool {
        false
    }
    fn host(&mut self, input: &mut Input) {
        let mut peers = self.peers.lock().expect("peers");
        let action = input.u8();
        if action & 7 == 0
            && let Some(address) = &self.address
            && let Ok(mut stream) = UnixStream::connect_addr(address)
        {
            stream.set_nonblocking(true).expect("a socket");
            match input.u8() {
                0 => drop(stream.write(input.bytes(20))),
                port => drop(stream.write(format!("CONNECT {port}\n").as_bytes())),
            }
            peers.push_back(stream);
            return;
        }
        let at = usize::from(action >> 3) % peers.len().max(1);
        let Some(peer) = peers.get_mut(at) else { return };
        match action & 7 {
            1 => drop(peer.read(&mut [0; 4096])),
            2 => drop(peer.shutdown(std::net::Shutdown::Read)),
            3 => drop(peer.shutdown(std::net::Shutdown::Write)),
            4 => drop(peers.remove(at)),
            _ => drop(peer.write(&vec![0x62; usize::from(input.u16() % 9000)])),
        }
    }
}

/// A console with ports, whose host types, connects and leaves.
pub fn console(bytes: &[u8]) {
    guest::run(ConsoleKind::default(), bytes);
}

/// Messages on the control queue of a console.
pub fn console_control(bytes: &[u8]) {
    guest::run(ConsoleKind { control: true, ..ConsoleKind::default() }, bytes);
}

#[derive(Default)]
struct ConsoleKind {
    control: bool,
    terminal: Option<UnixStream>,
    address: Option<SocketAddr>,
    client: Option<UnixStream>,
    window: Option<ConsoleWindow>,
}

impl Kind for ConsoleKind {
    fn device(&mut self, _: &mut Input) -> Box<dyn LocalDevice> {
        let (one, terminal) = pair();
        let (listener, address) = listener();
        (self.terminal, self.address) = (Some(terminal), Some(address));
        let (input, output) = (ConsoleInput::new(&one), ConsoleOutput::new(&one));
        let socket = PortSocket::new(listener).expect("a socket");
        let console = Console::with_ports([
            ConsolePort::console(Some(input.expect("input")), output.expect("output")),
            ConsolePort::streams(
                "log".parse().expect("a name"),
                None,
                ConsoleOutput::writer(std::io::sink()),
            ),
            ConsolePort::socket("agent".parse().expect("a name"), socket),
        ]);
        let console = console.expect("a console");
        self.window = Some(console.window());
        Box::new(console)
    }
    fn queue(&self, input: &mut Input, count: u16) -> u16 {
        let any = input.below(count.into()) as u16;
        if self.control && count > 3 { 2 + any % 2 } else { any }
    }
    fn request(&mut self, queue: u16, input: &mut Input) -> Vec<u8> {
        match queue {
            3 => {
                let mut bytes = Vec::new();
                let form = input.u8();
                push(&mut bytes, 4, if form == 0xff { input.number() } else { u64::from(form & 3) });
                push(&mut bytes, 2, u64::from(form >> 2 & 15));
                push(&mut bytes, 2, u64::from(form >> 6 & 1));
                bytes.extend(input.bytes(usize::from(form >> 7) * 3));
                bytes
            }
            _ if queue % 2 == 1 => vec![b'x'; usize::from(input.u16() % 3000)],
            _ => Vec::new(),
        }
    }
    fn is_prompt(&self, _: u16) -> bool {
        false
    }
    fn host(&mut self, input: &mut Input) {
        match input.u8() % 8 {
            0 => self.window.iter().for_each(|window| window.resize(input.u16(), input.u16())),
            1 => {
                self.client = self.address.as_ref().and_then(|address| UnixStream::connect_addr(address).ok())
            }
            2 => self.client = None,
            3 => self.terminal = None,
            4 => self.terminal.iter().for_each(|mut terminal| drop(terminal.read(&mut [0; 4096]))),
            end => {
                let peer = if end == 5 { &mut self.client } else { &mut self.terminal };
                let bytes = vec![b'y'; usize::from(input.u16() % 3000)];
                if let Some(peer) = peer {
                    peer.set_nonblocking(true).expect("a socket");
                    drop(peer.write(&bytes));
                }
            }
        }
    }
}
