//! The entropy device (virtio 1.2, 5.4).

#[cfg(test)]
mod tests;

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ossature_bus::{MetricVisitor, State, Syscall};

use crate::{
    Chain, DeviceType, Interest, QueueBroken, Source, Start, StartError, Turn, VirtQueue, VirtioDevice,
    Worker,
};

/// The most that one request is given, in bytes: a driver that wants more asks again.
const MAX_REQUEST: u32 = 64 << 10;
/// Bytes that are drawn at once.
const PIECE: usize = 4096;
/// Requests in one turn.
const BUDGET: usize = 64;

/// An entropy source that is fed by the host's getrandom(2).
#[derive(Debug, Default)]
pub struct Rng {
    bytes: Arc<AtomicU64>,
}

impl Rng {
    /// A new one.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> DeviceType {
        DeviceType::ENTROPY
    }

    fn features(&self) -> u64 {
        0
    }

    fn queues(&self) -> &[u16] {
        &[256]
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        vec![vec![0]]
    }

    fn config_len(&self) -> u32 {
        0
    }

    fn read_config(&self, _: u32, _: &mut [u8]) {}

    fn write_config(&mut self, _: u32, _: &[u8]) {}

    fn start(&mut self, _: usize, start: Start) -> Result<Box<dyn Worker>, StartError> {
        let missing = || StartError { reason: "the request queue is missing".to_owned(), source: None };
        let queue = start.queues.into_iter().next().ok_or_else(missing)?;
        Ok(Box::new(RngWorker { queue, bytes: self.bytes.clone(), piece: Box::new([0; PIECE]) }))
    }

    fn reset(&mut self) {}

    fn state(&self) -> State {
        State::Stateless
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[Syscall("getrandom"), Syscall("write")]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        visitor.counter("entropy_bytes", self.bytes.load(Ordering::Relaxed));
    }
}

struct RngWorker {
    queue: VirtQueue,
    bytes: Arc<AtomicU64>,
    piece: Box<[u8; PIECE]>,
}

impl RngWorker {
    /// Fills the writable part of `chain`; how many bytes of it.
    fn fill(&mut self, chain: &Chain) -> u32 {
        let mut written = 0;
        for segment in chain.writable() {
            let mut at = segment.addr;
            let mut left = segment.len.min(MAX_REQUEST - written);
            while left > 0 {
                let Some(piece) = self.piece.get_mut(..(left as usize).min(PIECE)) else { return written };
                // A driver that gets nothing asks again.
                if getrandom::fill(piece).is_err() || self.queue.dma().write(at, piece).is_err() {
                    return written;
                }
                let done = piece.len() as u32;
                at.0 += u64::from(done);
                left -= done;
                written += done;
            }
        }
        written
    }
}

impl Worker for RngWorker {
    fn sources(&self) -> Vec<Source> {
        vec![Source { token: 0, fd: self.queue.doorbell().as_raw_fd(), interest: Interest::Readable }]
    }

    fn turn(&mut self, _: u16) -> Result<Turn, QueueBroken> {
        for _ in 0..BUDGET {
            let Some(chain) = self.queue.pop()? else {
                self.queue.flush()?;
                return Ok(if self.queue.park()? { Turn::Again } else { Turn::Sleep });
            };
            let written = self.fill(&chain);
            self.queue.complete(chain, written)?;
            self.bytes.fetch_add(written.into(), Ordering::Relaxed);
        }
        self.queue.flush()?;
        Ok(Turn::Again)
    }

    fn finish(self: Box<Self>) -> Vec<VirtQueue> {
        vec![self.queue]
    }
}
