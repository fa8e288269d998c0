//! What each device has to do, with the driver of `virtio-drivers` as it is.

use core::fmt::{self, Debug};
use core::net::Ipv4Addr;

use virtio_drivers::Error;
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::device::console::VirtIOConsole;
use virtio_drivers::device::net::VirtIONet;
use virtio_drivers::device::rng::VirtIORng;
use virtio_drivers::transport::mmio::MmioTransport;

use crate::memory::Identity;
use crate::serial::println;

/// What went wrong.
pub struct Failure(&'static str, Option<Error>);

impl Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.1 {
            Some(error) => write!(f, "{}: {error}", self.0),
            None => f.write_str(self.0),
        }
    }
}

type Result = core::result::Result<(), Failure>;

fn at(what: &'static str) -> impl FnOnce(Error) -> Failure {
    move |error| Failure(what, Some(error))
}

fn check(what: &'static str, holds: bool) -> Result {
    if holds { Ok(()) } else { Err(Failure(what, None)) }
}

type Transport = MmioTransport<'static>;

/// Writes sectors, reads them back, one and several at a time.
pub fn blk(transport: Transport, round: u8) -> Result {
    let mut disk = VirtIOBlk::<Identity, _>::new(transport).map_err(at("new"))?;
    check("capacity", disk.capacity() > 64)?;
    check("writable", !disk.readonly())?;
    let mut id = [0; 20];
    let len = disk.device_id(&mut id).map_err(at("device id"))?;
    println!("blk id: {}", core::str::from_utf8(&id[..len]).unwrap_or("not text"));
    let mut pattern = [0; 8 * SECTOR_SIZE];
    for (index, byte) in pattern.iter_mut().enumerate() {
        *byte = (index / SECTOR_SIZE) as u8 ^ index as u8 ^ round;
    }
    disk.write_blocks(16, &pattern).map_err(at("write"))?;
    disk.flush().map_err(at("flush"))?;
    let mut found = [0; 8 * SECTOR_SIZE];
    disk.read_blocks(16, &mut found).map_err(at("read"))?;
    check("what was written is read", found == pattern)?;
    for sector in 0..8 {
        let range = sector * SECTOR_SIZE..(sector + 1) * SECTOR_SIZE;
        let mut one = [0; SECTOR_SIZE];
        disk.read_blocks(16 + sector, &mut one).map_err(at("read of a sector"))?;
        check("a sector is what was written", one == pattern[range])?;
    }
    let end = disk.capacity() as usize;
    check("a sector after the end is refused", disk.read_blocks(end, &mut found[..SECTOR_SIZE]).is_err())
}

const FRAME: usize = 60;
const ARP: [u8; 2] = [8, 6];
const REPLY: u8 = 2;

/// Asks who has the host's address, and waits for the answer.
pub fn net(transport: Transport, guest: Ipv4Addr, host: Ipv4Addr) -> Result {
    const QUEUE: usize = 16;
    let mut card = VirtIONet::<Identity, _, QUEUE>::new(transport, 2048).map_err(at("new"))?;
    let mac = card.mac_address();
    // More questions than a queue has entries.
    for _ in 0..2 * QUEUE {
        let mut question = card.new_tx_buffer(FRAME);
        let frame = question.packet_mut();
        frame[..6].fill(0xff);
        frame[6..12].copy_from_slice(&mac);
        frame[12..14].copy_from_slice(&ARP);
        frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
        frame[22..28].copy_from_slice(&mac);
        frame[28..32].copy_from_slice(&guest.octets());
        frame[38..42].copy_from_slice(&host.octets());
        card.send(question).map_err(at("send"))?;
        loop {
            let answer = match card.receive() {
                Err(Error::NotReady) => continue,
                other => other.map_err(at("receive"))?,
            };
            let frame = answer.packet();
            let is_ours = frame.get(12..14) == Some(&ARP[..])
                && frame.get(21) == Some(&REPLY)
                && frame.get(28..32) == Some(&host.octets()[..])
                && frame.get(..6) == Some(&mac[..]);
            card.recycle_rx_buffer(answer).map_err(at("recycle"))?;
            if is_ours {
                break;
            }
        }
    }
    Ok(())
}

/// Writes a line and waits for one that says the same.
pub fn console(transport: Transport) -> Result {
    const LINE: &[u8] = b"echo this\n";
    let mut console = VirtIOConsole::<Identity, _>::new(transport).map_err(at("new"))?;
    console.size().map_err(at("size"))?;
    let (end, start) = LINE.split_last().ok_or(Failure("a line", None))?;
    console.send_bytes(start).map_err(at("send"))?;
    console.send(*end).map_err(at("send of a character"))?;
    for &expected in LINE {
        let found = loop {
            if let Some(found) = console.recv(true).map_err(at("receive"))? {
                break found;
            }
        };
        check("what comes is what was sent", found == expected)?;
    }
    Ok(())
}

/// Takes random bytes, twice.
pub fn rng(transport: Transport) -> Result {
    let mut source = VirtIORng::<Identity, _>::new(transport).map_err(at("new"))?;
    let mut bytes = [[0; 64]; 2];
    for bytes in &mut bytes {
        let len = source.request_entropy(bytes).map_err(at("request"))?;
        check("as many bytes as were asked for", len == bytes.len())?;
    }
    check("they are random", bytes[0] != bytes[1] && bytes[0] != [0; 64])
}
