//! One request: taken from its chain once, carried out, answered (virtio 1.2, section 5.2.6).

use std::io;

use ossature_block::{Disk, DiskIo};
use ossature_bus::EventSink;
use ossature_memory::{Dma, DmaIoError, Segments};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID,
    VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};

use super::DiskId;
use super::counters::Counters;
use super::limits::{SECTOR, SEG_MAX, SIZE_MAX};
use crate::Chain;

/// Bytes of the header: type, a reserved word, sector.
const HEADER: u64 = 16;
/// The longest transfer that a driver can ask for within SEG_MAX and SIZE_MAX. A longer one is refused: it would
/// hold up every device on the same thread.
const MAX_REQUEST: u64 = SEG_MAX as u64 * SIZE_MAX as u64;

/// What carries requests out.
#[derive(Debug)]
pub(super) struct Executor<'a, D> {
    pub disk: &'a D,
    pub id: &'a DiskId,
    pub counters: &'a Counters,
    pub events: &'a EventSink,
    /// The driver does not know how to flush: each write must last.
    pub write_through: bool,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Done {
    /// Bytes written from the start of the chain's writable part, without a gap: `used.len`.
    pub written: u32,
    /// Bytes that the disk moved.
    pub moved: u64,
}

/// How the part before the status byte ended: the status, and the bytes written to guest memory.
struct Outcome {
    status: u32,
    filled: u64,
    moved: u64,
}

impl Outcome {
    fn new(status: u32) -> Self {
        Self { status, filled: 0, moved: 0 }
    }
}

impl<D: Disk + DiskIo> Executor<'_, D> {
    /// Serves the request in `chain`. Whatever the driver put there, it gets an answer, as far as there is
    /// room for one.
    pub(super) fn serve(&self, mem: &Dma, chain: &Chain) -> Done {
        // The status is the last byte that we may write; what comes before is for data.
        let Some(at) = chain.last_byte() else {
            self.counters.refused.add(1);
            return Done { written: 0, moved: 0 };
        };
        let room = u64::from(chain.writable_len()) - 1;
        let Outcome { status, filled, moved } = self.outcome(mem, chain, room);
        if status != VIRTIO_BLK_S_OK {
            self.counters.refused.add(1);
        }
        let answered = mem.write_obj(at, status as u8).is_ok();
        // `used.len` promises a prefix: after data that fell short the status byte is not part of it.
        let written = filled + u64::from(answered && filled == room);
        // No more than the chain's writable bytes, of which there are less than 4 GiB.
        Done { written: written as u32, moved }
    }

    /// `room` is what the status byte leaves of the writable part.
    fn outcome(&self, mem: &Dma, chain: &Chain, room: u64) -> Outcome {
        // The header is copied once; what the driver makes of it afterwards no longer matters.
        let Some(header) = chain.header::<[u64; 2]>(mem) else { return Outcome::new(VIRTIO_BLK_S_IOERR) };
        let [kind, sector] = header.map(u64::from_le);
        match kind as u32 {
            VIRTIO_BLK_T_IN => self.read(mem, Segments::first_bytes(chain.writable(), room), sector),
            VIRTIO_BLK_T_OUT => {
                let readable = Segments::first_bytes(chain.readable(), chain.readable_len().into());
                self.write(mem, readable.skip(HEADER), sector)
            }
            kind => self.other(kind, mem, chain, room),
        }
    }

    #[inline(never)]
    fn other(&self, kind: u32, mem: &Dma, chain: &Chain, room: u64) -> Outcome {
        match kind {
            VIRTIO_BLK_T_FLUSH => self.flush(),
            VIRTIO_BLK_T_GET_ID => self.get_id(mem, Segments::first_bytes(chain.writable(), room)),
            _ => Outcome::new(VIRTIO_BLK_S_UNSUPP),
        }
    }

    /// The byte at which a transfer starts, if it is one that may be, and all of it lies on the disk.
    fn position(&self, sector: u64, len: u64) -> Option<u64> {
        // What is left of a whole sector turns up as the highest bits: far too many sectors.
        let sectors = len.rotate_right(SECTOR.trailing_zeros());
        let end = sector.checked_add(sectors)?;
        // A sector of the disk is below 2^55.
        (sectors <= MAX_REQUEST / SECTOR && end <= self.disk.capacity() / SECTOR).then(|| sector * SECTOR)
    }

    fn read(&self, mem: &Dma, to: Segments<'_>, sector: u64) -> Outcome {
        let Some(start) = self.position(sector, to.len()) else { return Outcome::new(VIRTIO_BLK_S_IOERR) };
        let (moved, result) = transfer(to, start, |to, at| self.disk.read(mem, to, at));
        self.counters.reads.add(1);
        self.counters.read_bytes.add(moved);
        Outcome { status: self.status_of("read from the disk", result), filled: moved, moved }
    }

    #[inline(never)] // so that reading has the registers
    fn write(&self, mem: &Dma, from: Segments<'_>, sector: u64) -> Outcome {
        let Some(start) = self.position(sector, from.len()).filter(|_| !self.disk.read_only()) else {
            return Outcome::new(VIRTIO_BLK_S_IOERR);
        };
        let (moved, mut result) = transfer(from, start, |from, at| self.disk.write(mem, from, at));
        if self.write_through && result.is_ok() {
            result = self.disk.flush().map_err(Into::into);
        }
        self.counters.writes.add(1);
        self.counters.written_bytes.add(moved);
        Outcome { status: self.status_of("write to the disk", result), filled: 0, moved }
    }

    fn flush(&self) -> Outcome {
        self.counters.flushes.add(1);
        Outcome::new(self.status_of("flush the disk", self.disk.flush().map_err(Into::into)))
    }

    fn get_id(&self, mem: &Dma, to: Segments<'_>) -> Outcome {
        let id = self.id.bytes();
        if to.len() < id.len() as u64 || mem.scatter(to, id).is_err() {
            return Outcome::new(VIRTIO_BLK_S_IOERR);
        }
        Outcome { status: VIRTIO_BLK_S_OK, filled: id.len() as u64, moved: 0 }
    }

    #[inline]
    fn status_of(&self, action: &str, result: Result<(), DmaIoError>) -> u32 {
        match result {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(error) => self.failed(action, &error),
        }
    }

    #[cold]
    fn failed(&self, action: &str, error: &DmaIoError) -> u32 {
        self.counters.host_errors.note(self.events, action, error);
        VIRTIO_BLK_S_IOERR
    }
}

/// Moves all of `data`, going on after short transfers from where they ended. Returns the bytes moved, each
/// once, whatever the end.
fn transfer(
    data: Segments<'_>,
    start: u64,
    step: impl Fn(Segments<'_>, u64) -> Result<usize, DmaIoError>,
) -> (u64, Result<(), DmaIoError>) {
    let mut moved = 0;
    while moved < data.len() {
        match step(data.skip(moved), start + moved) {
            Ok(0) => return (moved, Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())),
            Ok(n) => moved = data.len().min(moved + n as u64),
            Err(e) => return (moved, Err(e)),
        }
    }
    (moved, Ok(()))
}
