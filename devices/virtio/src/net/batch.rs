//! Many packets of a descriptor with one system call, by io_uring: copies of those to send, and those that were read
//! ahead. Only operations that never wait are submitted, and each call returns when all are complete: between two calls
//! the kernel has none of the buffers.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::{IoUring, opcode, squeue, types};

use super::header::{HEADER_LEN, MAX_PACKET};

/// Packets that one call moves at most.
pub(super) const BATCH: usize = 32;
/// Bytes of a packet that is copied to be sent with others. What is longer costs more to copy than a call does.
pub(super) const SMALL: usize = 4096;
/// Room for a packet that is read ahead, and for a byte more: one that is too long shows.
const ROOM: usize = MAX_PACKET as usize + 1;

/// A descriptor's packets.
#[derive(Debug, Default)]
pub(super) struct Batch {
    engine: Engine,
    /// System calls that moved packets, or found none.
    pub(super) calls: u64,
    sent: Sent,
    ahead: Ahead,
}

/// io_uring, made when it is first of use.
#[derive(Default)]
enum Engine {
    #[default]
    Untried,
    Ready(Box<IoUring>),
    /// The host does not have it, or forbids it, or this kind of descriptor cannot be used with it.
    Forbidden,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Untried => "Untried",
            Self::Ready(_) => "Ready",
            Self::Forbidden => "Forbidden",
        })
    }
}

/// Copies that wait to be sent.
#[derive(Debug, Default)]
struct Sent {
    bytes: Vec<u8>,
    lens: Vec<usize>,
}

/// Packets that were read and not yet taken.
#[derive(Debug, Default)]
struct Ahead {
    room: Vec<u8>,
    /// Where they are, and their lengths.
    packets: VecDeque<(usize, usize)>,
    /// How many the next call reads.
    size: usize,
}

/// What a packet that was put off came to: its length, and the kernel's answer.
pub(super) type Sending = (usize, io::Result<()>);

impl Batch {
    /// How many copies wait.
    pub(super) fn waiting(&self) -> usize {
        self.sent.lens.len()
    }

    /// A place for the copy of a packet of `len` bytes, at most [`SMALL`]; there are less than [`BATCH`] before it. It
    /// counts once it is [pushed](Self::push).
    pub(super) fn place(&mut self, len: usize) -> &mut [u8] {
        let start = self.waiting() * SMALL;
        if self.sent.bytes.is_empty() {
            self.sent.bytes = vec![0; BATCH * SMALL];
        }
        self.sent.bytes.get_mut(start..start + len.min(SMALL)).unwrap_or_default()
    }

    /// The packet in the place waits to be sent.
    pub(super) fn push(&mut self, len: usize) {
        self.sent.lens.push(len);
    }

    /// Sends what waits; `each` hears what became of each.
    pub(super) fn send(&mut self, fd: BorrowedFd<'_>, mut each: impl FnMut(Sending)) {
        let lens = mem::take(&mut self.sent.lens);
        let packets =
            || lens.iter().zip(self.sent.bytes.chunks(SMALL)).map(|(len, at)| at.get(..*len).unwrap_or(at));
        if lens.len() > 1 {
            let number = types::Fd(fd.as_raw_fd());
            let entries = packets().map(|packet| {
                let write = opcode::Write::new(number, packet.as_ptr(), packet.len() as u32);
                write.offset(u64::MAX).rw_flags(libc::RWF_NOWAIT).build()
            });
            // SAFETY: the packets lie in buffers of ours that nobody touches during the call; the kernel reads them.
            if let Some(results) = unsafe { self.engine.run(entries) } {
                self.calls += 1;
                for (len, result) in lens.iter().zip(results) {
                    each((*len, answer(result).map(drop)));
                }
                self.sent.lens = clear(lens);
                return;
            }
        }
        self.calls += lens.len() as u64;
        for packet in packets() {
            let result = write(fd, packet);
            each((packet.len(), result));
        }
        self.sent.lens = clear(lens);
    }

    /// The next packet that was read ahead, or `None` if it is better to read one into its place, without a copy.
    pub(super) fn next(&mut self, fd: BorrowedFd<'_>) -> Option<io::Result<&[u8]>> {
        if self.ahead.packets.is_empty() {
            if self.ahead.size < 2 || matches!(self.engine, Engine::Forbidden) {
                return None;
            }
            if self.ahead.room.is_empty() {
                // Pages that no packet needs are never there.
                self.ahead.room = vec![0; BATCH * ROOM];
            }
            let number = types::Fd(fd.as_raw_fd());
            let room = self.ahead.room.chunks_mut(ROOM).take(self.ahead.size);
            let entries = room.map(|room| {
                let read = opcode::Read::new(number, room.as_mut_ptr(), room.len() as u32);
                read.offset(u64::MAX).rw_flags(libc::RWF_NOWAIT).build()
            });
            // SAFETY: the kernel writes to buffers of ours that nobody else has during the call.
            let results = unsafe { self.engine.run(entries) }?;
            self.calls += 1;
            let mut failed = None;
            let mut bytes = 0;
            for (at, result) in results.into_iter().take(self.ahead.size).enumerate() {
                match answer(result) {
                    Ok(len) => {
                        bytes += len;
                        self.ahead.packets.push_back((at, len));
                    }
                    Err(e) => failed = Some(e),
                }
            }
            let (got, asked) = (self.ahead.packets.len(), self.ahead.size);
            // A burst grows the next batch; where it ends, or packets are long, they are read into their places again.
            self.ahead.size = if got == asked && bytes < asked * SMALL { (2 * asked).min(BATCH) } else { 0 };
            if got == 0 {
                return failed.map(Err);
            }
        }
        let (at, len) = self.ahead.packets.pop_front()?;
        let start = at * ROOM;
        Some(Ok(self.ahead.room.get(start..start + len).unwrap_or_default()))
    }

    /// A packet of `len` bytes was read into its place: if it is small, others may follow.
    pub(super) fn was_read(&mut self, len: usize) {
        self.calls += 1;
        self.ahead.size = if len <= SMALL { (self.ahead.size + 1).min(2) } else { 0 };
    }

    /// No packet was there to read.
    pub(super) fn is_dry(&mut self) {
        self.calls += 1;
        self.ahead.size = 0;
    }
}

fn clear(mut lens: Vec<usize>) -> Vec<usize> {
    lens.clear();
    lens
}

fn answer(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
}

fn write(fd: BorrowedFd<'_>, packet: &[u8]) -> io::Result<()> {
    loop {
        match rustix::io::write(fd, packet) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

impl Engine {
    /// Has the kernel carry out up to [`BATCH`] operations in their order; returns what each came to. `None` if there is no
    /// io_uring, or the descriptor cannot be used with it: then nothing has happened.
    ///
    /// # Safety
    /// The buffers are there, and of nobody else, until this returns; the operations do not wait.
    unsafe fn run(&mut self, entries: impl Iterator<Item = squeue::Entry>) -> Option<[i32; BATCH]> {
        if let Self::Untried = self {
            // None of the operations waits, so nobody need run tasks of ours meanwhile.
            *self = IoUring::new(BATCH as u32).map_or(Self::Forbidden, |ring| Self::Ready(Box::new(ring)));
        }
        let Self::Ready(ring) = self else { return None };
        let mut count = 0;
        for entry in entries.take(BATCH) {
            // SAFETY: as the caller says, until all are complete, which is before this returns.
            if unsafe { ring.submission().push(&entry.user_data(count as u64)) }.is_err() {
                break;
            }
            count += 1;
        }
        let mut results = [-libc::EAGAIN; BATCH];
        let mut done = 0;
        while done < count {
            match ring.submit_and_wait(count - done) {
                Ok(_) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
                Err(_) => {
                    // A sandbox, for instance. Whatever was begun was complete at once; what was not, never will be.
                    let left = mem::replace(self, Self::Forbidden);
                    let Self::Ready(ring) = left else { return None };
                    // Its memory stays, in case the kernel has entries of it yet.
                    mem::forget(ring);
                    return (done > 0).then_some(results);
                }
            }
            for entry in ring.completion() {
                if let Some(result) = results.get_mut(entry.user_data() as usize) {
                    *result = entry.result();
                }
                done += 1;
            }
        }
        // Taps and macvtaps do not promise to never wait before Linux 6.4.
        let refused = |result: &i32| *result == -libc::EOPNOTSUPP;
        if results.iter().take(count).any(refused) {
            *self = Self::Forbidden;
            return None;
        }
        Some(results)
    }
}

/// Bytes of a packet with its header that are copied at most.
pub(super) const SMALL_FRAME: u64 = (SMALL - HEADER_LEN) as u64;

#[cfg(test)]
mod tests;
