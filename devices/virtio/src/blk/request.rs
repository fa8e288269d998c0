//! One request: taken from its chain once, handed to the engine, answered (virtio 1.2, section 5.2.6).

use ossature_block::{Disk, Engine, Finished, Operation, Submitted};
use ossature_bus::EventSink;
use ossature_memory::{Dma, DmaIoError, Segments};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::DiskId;
use super::counters::Counters;
use super::held::OnHostError;
use super::limits::{MAX_DISCARD, MAX_REQUEST, MAX_WRITE_ZEROES, SECTOR};
use super::shared::Shared;
use crate::Chain;

/// Bytes of the header: type, a reserved word, sector.
const HEADER: u64 = 16;
/// Bytes of what a discard is about: sector, number of sectors, flags.
const RANGE: usize = 16;

/// What requests are judged and answered by.
#[derive(Debug)]
pub(super) struct Context<'a, D> {
    pub shared: &'a Shared<D>,
    pub id: &'a DiskId,
    pub counters: &'a Counters,
    pub events: &'a EventSink,
    pub negotiated: Negotiated,
    pub on_error: OnHostError,
}

/// What the driver can do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Negotiated {
    /// It knows how to flush: not each write must last.
    pub flush: bool,
    pub discard: bool,
    pub write_zeroes: bool,
}

/// What the engine was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

impl Kind {
    /// What the host was asked to do.
    pub(super) fn action(self) -> &'static str {
        match self {
            Self::Read => "read from the disk",
            Self::Write => "write to the disk",
            Self::Flush => "flush the disk",
            Self::Discard => "discard sectors of the disk",
            Self::WriteZeroes => "write zeros to the disk",
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Done {
    /// Bytes written from the start of the chain's writable part, without a gap: `used.len`.
    pub written: u32,
    /// Bytes that the disk moved.
    pub moved: u64,
}

/// What became of a request.
#[derive(Debug)]
pub(super) enum Begun {
    /// It is answered.
    Done(Done),
    /// The engine has it, under the name of the chain's head.
    Pending(Kind),
    /// It failed on the host, and is to be tried again.
    Held,
}

impl From<Option<Done>> for Begun {
    #[inline(always)] // into the worker's own loop
    fn from(done: Option<Done>) -> Self {
        done.map_or(Self::Held, Self::Done)
    }
}

/// Two little-endian numbers.
fn words(bytes: [u8; RANGE]) -> [u64; 2] {
    let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
    let (first, second) = bytes.split_at(RANGE / 2);
    [word(first), word(second)]
}

/// Data bytes that a request moves at most, for limits.
#[inline]
pub(super) fn data_len(chain: &Chain) -> u64 {
    (u64::from(chain.readable_len()) + u64::from(chain.writable_len())).saturating_sub(HEADER + 1)
}

impl<D: Disk> Context<'_, D> {
    /// Begins with the request in `chain`. Whatever the driver put there, it gets an answer, as far as there is
    /// room for one.
    #[inline(always)] // into the worker's own loop
    pub(super) fn begin<E: Engine>(&self, engine: &mut E, mem: &Dma, chain: &Chain) -> Begun {
        // The status is the last byte that we may write; what comes before is for data.
        let Some(room) = chain.writable_len().checked_sub(1).map(u64::from) else {
            self.counters.refused.add(1);
            return Begun::Done(Done { written: 0, moved: 0 });
        };
        // The header is copied once; what the driver makes of it afterwards no longer matters.
        let Some(header) = chain.header::<[u64; 2]>(mem) else {
            return Begun::Done(self.refuse(mem, chain, VIRTIO_BLK_S_IOERR));
        };
        let [kind, sector] = header.map(u64::from_le);
        if kind as u32 != VIRTIO_BLK_T_IN {
            return self.begin_other(kind as u32, engine, mem, chain, room, sector);
        }
        let to = Segments::first_bytes(chain.writable(), room);
        let Some(offset) = self.position(sector, to.len()) else {
            return Begun::Done(self.refuse(mem, chain, VIRTIO_BLK_S_IOERR));
        };
        match engine.submit(mem, chain.head().into(), Operation::Read { to, offset }) {
            Submitted::Finished(finished) => self.finish_read(mem, chain, finished).into(),
            Submitted::Pending => Begun::Pending(Kind::Read),
        }
    }

    #[inline(never)] // so that reading has the registers
    fn begin_other<E: Engine>(
        &self,
        kind: u32,
        engine: &mut E,
        mem: &Dma,
        chain: &Chain,
        room: u64,
        sector: u64,
    ) -> Begun {
        let readable = Segments::first_bytes(chain.readable(), chain.readable_len().into()).skip(HEADER);
        let operation = match kind {
            VIRTIO_BLK_T_OUT => self.write(readable, sector),
            VIRTIO_BLK_T_FLUSH => Ok((Kind::Flush, Operation::Flush)),
            VIRTIO_BLK_T_DISCARD if self.negotiated.discard => self.discard(mem, readable),
            VIRTIO_BLK_T_WRITE_ZEROES if self.negotiated.write_zeroes => self.write_zeroes(mem, readable),
            VIRTIO_BLK_T_GET_ID => {
                let (status, filled) = self.get_id(mem, Segments::first_bytes(chain.writable(), room));
                return Begun::Done(self.answer_other(mem, chain, status, filled));
            }
            _ => Err(VIRTIO_BLK_S_UNSUPP),
        };
        match operation {
            Err(status) => Begun::Done(self.refuse(mem, chain, status)),
            Ok((kind, operation)) => match engine.submit(mem, chain.head().into(), operation) {
                Submitted::Finished(finished) => self.finish(mem, chain, kind, finished).into(),
                Submitted::Pending => Begun::Pending(kind),
            },
        }
    }

    /// Answers a request that the engine has carried out, unless it is to be tried again.
    #[inline(never)]
    pub(super) fn finish(&self, mem: &Dma, chain: &Chain, kind: Kind, finished: Finished) -> Option<Done> {
        if kind == Kind::Read {
            return self.finish_read(mem, chain, finished);
        }
        let Finished { moved, result, .. } = finished;
        let status = match result {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(error) => self.failed(kind, &error)?,
        };
        match kind {
            Kind::Read => {}
            Kind::Write => {
                self.counters.writes.add(1);
                self.counters.written_bytes.add(moved);
            }
            Kind::Flush => self.counters.flushes.add(1),
            Kind::Discard => self.counters.discards.add(1),
            Kind::WriteZeroes => self.counters.write_zeroes.add(1),
        }
        Some(Done { moved, ..self.answer_other(mem, chain, status, 0) })
    }

    #[inline(always)] // as what follows
    fn finish_read(&self, mem: &Dma, chain: &Chain, finished: Finished) -> Option<Done> {
        let Finished { moved, result, .. } = finished;
        if let Err(error) = result {
            return self.finish_failed_read(mem, chain, moved, &error);
        }
        self.counters.reads.add(1);
        self.counters.read_bytes.add(moved);
        Some(Done { moved, ..self.answer(mem, chain, VIRTIO_BLK_S_OK, moved) })
    }

    #[cold]
    #[inline(never)]
    fn finish_failed_read(&self, mem: &Dma, chain: &Chain, moved: u64, error: &DmaIoError) -> Option<Done> {
        let status = self.failed(Kind::Read, error)?;
        self.counters.reads.add(1);
        self.counters.read_bytes.add(moved);
        Some(Done { moved, ..self.answer_other(mem, chain, status, moved) })
    }

    #[cold]
    #[inline(never)]
    fn refuse(&self, mem: &Dma, chain: &Chain, status: u32) -> Done {
        self.answer(mem, chain, status, 0)
    }

    #[inline(never)]
    fn answer_other(&self, mem: &Dma, chain: &Chain, status: u32, filled: u64) -> Done {
        self.answer(mem, chain, status, filled)
    }

    /// Writes the status; `filled` bytes of the writable part were written before.
    #[inline(always)] // all that is in here is what every request needs
    fn answer(&self, mem: &Dma, chain: &Chain, status: u32, filled: u64) -> Done {
        if status != VIRTIO_BLK_S_OK {
            self.counters.refused.add(1);
        }
        // Not a closure, which the compiler would share and call.
        let answered = match chain.last_byte() {
            Some(at) => mem.write_obj(at, status as u8).is_ok(),
            None => false,
        };
        // `used.len` promises a prefix: after data that fell short the status byte is not part of it.
        let written = filled + u64::from(answered && filled + 1 == u64::from(chain.writable_len()));
        // No more than the chain's writable bytes, of which there are less than 4 GiB.
        Done { written: written as u32, moved: 0 }
    }

    /// The byte at which a transfer starts, if it is one that may be, and all of it lies on the disk.
    #[inline]
    fn position(&self, sector: u64, len: u64) -> Option<u64> {
        // What is left of a whole sector turns up as the highest bits: far too many sectors.
        let sectors = len.rotate_right(SECTOR.trailing_zeros());
        let end = sector.checked_add(sectors)?;
        // A sector of the disk is below 2^55.
        (sectors <= MAX_REQUEST / SECTOR && end <= self.shared.sectors()).then(|| sector * SECTOR)
    }

    fn write<'s>(&self, from: Segments<'s>, sector: u64) -> Result<(Kind, Operation<'s>), u32> {
        let offset = self.position(sector, from.len()).filter(|_| !self.shared.disk.read_only());
        let offset = offset.ok_or(VIRTIO_BLK_S_IOERR)?;
        Ok((Kind::Write, Operation::Write { from, offset, durable: self.writes_through() }))
    }

    /// Returns true if what is written has to last when the request is answered.
    fn writes_through(&self) -> bool {
        !(self.negotiated.flush && self.shared.writeback())
    }

    fn discard(&self, mem: &Dma, data: Segments<'_>) -> Result<(Kind, Operation<'static>), u32> {
        let (offset, len, flags) = self.range(mem, data, MAX_DISCARD)?;
        // The flag that there is is not for a discard (5.2.6.2).
        if flags != 0 {
            return Err(VIRTIO_BLK_S_UNSUPP);
        }
        Ok((Kind::Discard, Operation::Discard { offset, len }))
    }

    fn write_zeroes(&self, mem: &Dma, data: Segments<'_>) -> Result<(Kind, Operation<'static>), u32> {
        let (offset, len, flags) = self.range(mem, data, MAX_WRITE_ZEROES)?;
        if flags & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
            return Err(VIRTIO_BLK_S_UNSUPP);
        }
        let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
        Ok((Kind::WriteZeroes, Operation::WriteZeroes { offset, len, unmap, durable: self.writes_through() }))
    }

    /// The one range that a request may be about: its first byte, its length, and its flags.
    fn range(&self, mem: &Dma, data: Segments<'_>, max: u32) -> Result<(u64, u64, u32), u32> {
        if data.len() != RANGE as u64 || self.shared.disk.read_only() {
            return Err(VIRTIO_BLK_S_IOERR);
        }
        let mut range = [0; RANGE];
        mem.gather(data, &mut range).map_err(|_| VIRTIO_BLK_S_IOERR)?;
        let [sector, rest] = words(range);
        let (sectors, flags) = (rest as u32, (rest >> 32) as u32);
        let end = sector.checked_add(sectors.into()).filter(|end| *end <= self.shared.sectors());
        match end {
            Some(_) if sectors <= max => Ok((sector * SECTOR, u64::from(sectors) * SECTOR, flags)),
            _ => Err(VIRTIO_BLK_S_IOERR),
        }
    }

    fn get_id(&self, mem: &Dma, to: Segments<'_>) -> (u32, u64) {
        let id = self.id.bytes();
        if to.len() < id.len() as u64 || mem.scatter(to, id).is_err() {
            return (VIRTIO_BLK_S_IOERR, 0);
        }
        (VIRTIO_BLK_S_OK, id.len() as u64)
    }

    #[cold]
    fn failed(&self, kind: Kind, error: &DmaIoError) -> Option<u32> {
        if self.shared.held.takes(self.on_error, self.events, kind, error) {
            self.shared.host_errors.count();
            return None;
        }
        self.shared.host_errors.note(self.events, kind.action(), error);
        Some(VIRTIO_BLK_S_IOERR)
    }
}
