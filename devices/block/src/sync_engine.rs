//! The engine that completes a request inside of `submit`, on the caller's thread.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ossature_memory::{Dma, DmaIoError, Segments};

use crate::{Completion, DiskIo, Engine, Finished, Operation, Submitted};

/// Requests one after another, each finished when [`submit`](Engine::submit) returns: the thread that serves the queue
/// waits for the disk. It allocates nothing and makes no system call but the disk's own.
#[derive(Debug)]
pub struct SyncEngine<D> {
    disk: Arc<D>,
}

impl<D> SyncEngine<D> {
    /// An engine on `disk`.
    pub fn new(disk: Arc<D>) -> Self {
        Self { disk }
    }
}

impl<D: DiskIo> Engine for SyncEngine<D> {
    #[inline]
    fn submit(&mut self, mem: &Dma, _token: u64, operation: Operation<'_>) -> Submitted {
        Submitted::Finished(carry_out(&*self.disk, mem, operation))
    }

    #[inline]
    fn start(&mut self) {}

    #[inline]
    fn reap(&mut self) -> Option<Completion> {
        None
    }

    #[inline]
    fn in_flight(&self) -> usize {
        0
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Carries out one request, to its end.
#[inline]
pub(crate) fn carry_out<D: DiskIo>(disk: &D, mem: &Dma, operation: Operation<'_>) -> Finished {
    match operation {
        Operation::Read { to, offset } => transfer(to, offset, |to, at| disk.read(mem, to, at)),
        Operation::Write { from, offset, durable } => write(disk, mem, from, offset, durable),
        other => rare(disk, other),
    }
}

#[inline(never)] // so that reading has the registers
fn write<D: DiskIo>(disk: &D, mem: &Dma, from: Segments<'_>, offset: u64, durable: bool) -> Finished {
    let mut finished = transfer(from, offset, |from, at| disk.write(mem, from, at));
    if durable && finished.result.is_ok() {
        finished.result = disk.flush().map_err(Into::into);
    }
    finished
}

#[inline(never)]
fn rare<D: DiskIo>(disk: &D, operation: Operation<'_>) -> Finished {
    let result = match operation {
        Operation::Read { .. } | Operation::Write { .. } => Ok(()),
        Operation::Flush => disk.flush(),
        Operation::Discard { offset, len } => disk.discard(offset, len),
        Operation::WriteZeroes { offset, len, unmap, durable } => {
            let done = disk.write_zeroes(offset, len, unmap);
            if durable { done.and_then(|()| disk.flush()) } else { done }
        }
    };
    Finished::new(0, result.map_err(Into::into))
}

/// Moves all of `data`, going on after short transfers from where they ended: each byte once, whatever the end.
#[inline]
fn transfer(
    data: Segments<'_>,
    start: u64,
    step: impl Fn(Segments<'_>, u64) -> Result<usize, DmaIoError>,
) -> Finished {
    let mut moved = 0;
    while moved < data.len() {
        match step(data.skip(moved), start + moved) {
            Ok(0) => return Finished::new(moved, Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())),
            Ok(n) => moved = data.len().min(moved + n as u64),
            Err(e) => return Finished::new(moved, Err(e)),
        }
    }
    Finished::new(moved, Ok(()))
}
