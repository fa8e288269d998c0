//! A stream through a socket device, beside a pair of Unix sockets alone: [`BYTES`] in a batch, in two calls.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Mutex;

use ossature::memory::Segment;
use ossature::memory::vm_memory::GuestAddress;
use ossature::virtio::Turn;
use ossature::virtio::testing::Desc;
use ossature::virtio::vsock::{HostSocket, Vsock};

use super::rings::{DeviceRig, Driver, Layout, ram};

/// Of a packet from the guest: the most are 64 KiB.
const PACKET: u32 = 60 << 10;
/// Of a batch: what a socket has room for.
pub const BYTES: usize = 2 * PACKET as usize;
const HEADER: u32 = 44;
/// Where a header says how many bytes its sender has used.
const FWD_CNT: u64 = 40;
/// Of the guest's receive buffers: Linux's.
const BUFFER: u32 = 4096;

const REQUEST: u16 = 1;
const WRITE: u16 = 5;
const CREDIT: u16 = 6;
/// The token of the host's descriptors.
const HOST: u16 = 3;

/// One connection, and the host's end of it.
pub struct Sockets {
    rig: DeviceRig,
    host: UnixStream,
    buffer: Vec<u8>,
    given: u32,
    headers: [Segment; 2],
}

fn header(op: u16, len: u32, used: u32) -> Vec<u8> {
    let mut bytes = [3u64, 2].map(u64::to_le_bytes).concat();
    bytes.extend([1000, 80, len].into_iter().flat_map(u32::to_le_bytes));
    bytes.extend([1, op].into_iter().flat_map(u16::to_le_bytes));
    bytes.extend([0, 256 << 10, used].into_iter().flat_map(u32::to_le_bytes));
    bytes
}

impl Sockets {
    /// A guest that sends, or one that receives.
    pub fn new(sends: bool) -> Self {
        let dma = ram().dma();
        let headers =
            [0, 1].map(|chain| Segment { addr: GuestAddress(0x70_0000 + chain * 0x100), len: HEADER });
        let buffers = if sends { 1 } else { 32 };
        let receive =
            Driver::new(&dma, 0, buffers, Layout::Direct, |_, place| vec![Desc::writable(place(0, BUFFER))]);
        let send = Driver::new(&dma, 1, 2, Layout::Direct, |chain, place| {
            let data = Desc::readable(Segment { len: PACKET, ..place(1, 0) });
            vec![Desc::readable(headers[chain as usize]), data]
        });
        let (host, theirs) = UnixStream::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        let theirs = Mutex::new(Some(theirs));
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("listener")).unwrap();
        let connect = move |_: u32| {
            let socket = theirs.lock().unwrap().take().ok_or(ErrorKind::ConnectionRefused)?;
            Ok(socket.into())
        };
        let socket = HostSocket::new(listener, connect).unwrap();
        let mut device = Vsock::new(3.try_into().unwrap()).unwrap().with_socket(socket).unwrap();
        for (place, op) in headers.iter().zip([REQUEST, CREDIT]) {
            dma.write(place.addr, &header(op, 0, 0)).unwrap();
        }
        let rig = DeviceRig::new(&mut device, dma, vec![receive, send]);
        let mut sockets = Self { rig, host, buffer: vec![0; PACKET as usize], given: 0, headers };
        sockets.rig.drivers[0].offer();
        sockets.turn(HOST);
        sockets.rig.drivers[1].offer();
        sockets.turn(1);
        let (op, len) = if sends { (WRITE, PACKET) } else { (CREDIT, 0) };
        for place in headers {
            sockets.rig.dma.write(place.addr, &header(op, len, 0)).unwrap();
        }
        sockets
    }

    fn turn(&mut self, token: u16) {
        while self.rig.turn(token) == Turn::Again {}
    }

    /// The guest sends a batch, and the host reads it.
    pub fn send(&mut self) {
        // For news of credit.
        self.rig.drivers[0].refill();
        self.rig.drivers[1].offer();
        self.turn(1);
        self.rig.drivers[1].check();
        for _ in 0..2 {
            self.host.read_exact(&mut self.buffer).unwrap();
        }
    }

    /// The host sends a batch, and the guest takes it and says so.
    pub fn receive(&mut self) {
        for _ in 0..2 {
            self.host.write_all(&self.buffer).unwrap();
        }
        self.rig.drivers[0].refill();
        self.turn(HOST);
        self.given = self.given.wrapping_add(BYTES as u32);
        // The rest of the headers says CREDIT since the connection was made.
        for place in self.headers {
            self.rig.dma.write_obj(GuestAddress(place.addr.0 + FWD_CNT), self.given.to_le()).unwrap();
        }
        self.rig.drivers[1].offer();
        self.turn(1);
    }
}

/// The same bytes through a pair of sockets, from and to memory of this process.
pub struct Pair {
    ends: [File; 2],
    buffer: Vec<u8>,
}

impl Pair {
    pub fn new() -> Self {
        let (one, other) = UnixStream::pair().unwrap();
        let file = |socket: UnixStream| File::from(std::os::fd::OwnedFd::from(socket));
        Self { ends: [file(one), file(other)], buffer: vec![0; PACKET as usize] }
    }

    pub fn batch(&mut self) {
        for _ in 0..2 {
            self.ends[0].write_all(&self.buffer).unwrap();
        }
        for _ in 0..2 {
            self.ends[1].read_exact(&mut self.buffer).unwrap();
        }
    }
}
