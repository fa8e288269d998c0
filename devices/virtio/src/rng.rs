//! The entropy device (virtio 1.2, 5.4).

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ossature_bus::state::StateError;
use ossature_bus::{DeviceError, DeviceState, Handover, MetricVisitor, Syscall};

use crate::{
    Activation, Chain, DeviceInfo, DeviceType, LocalDevice, QueueBroken, Removed, Source, Turn, VirtQueue,
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

impl LocalDevice for Rng {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new(DeviceType::ENTROPY, &[256])
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        vec![vec![0]]
    }

    fn read_config(&self, _: u32, _: &mut [u8]) {}

    fn write_config(&mut self, _: u32, _: &[u8]) {}

    fn worker(&mut self, _: usize, _: &Activation) -> Result<Box<dyn Worker>, DeviceError> {
        Ok(Box::new(RngWorker { queue: None, bytes: self.bytes.clone(), piece: Box::new([0; PIECE]) }))
    }

    fn forget_queue(&mut self, _: u16) {}

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) {}

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::Stateless)
    }

    fn restore(&mut self, _: Handover) -> Result<(), StateError> {
        Err(StateError::Unsupported { reason: "an entropy source has no state" })
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[Syscall("getrandom"), Syscall("write")]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        visitor.counter(
            "entropy_bytes",
            "Random bytes that the guest was given.",
            self.bytes.load(Ordering::Relaxed),
        );
    }
}

struct RngWorker {
    queue: Option<VirtQueue>,
    bytes: Arc<AtomicU64>,
    piece: Box<[u8; PIECE]>,
}

/// Fills the writable part of `chain`; returns how many bytes of it.
fn fill(queue: &VirtQueue, piece: &mut [u8; PIECE], chain: &Chain) -> u32 {
    let mut written = 0;
    for segment in chain.writable() {
        let mut at = segment.addr;
        let mut left = segment.len.min(MAX_REQUEST - written);
        while left > 0 {
            let Some(piece) = piece.get_mut(..(left as usize).min(PIECE)) else { return written };
            // A driver that gets nothing asks again.
            if getrandom::fill(piece).is_err() || queue.dma().write(at, piece).is_err() {
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

impl Worker for RngWorker {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn add_queue(&mut self, queue: VirtQueue) {
        self.queue = Some(queue);
    }

    fn remove_queue(&mut self, _: u16) -> Removed {
        self.queue.take().into()
    }

    fn turn(&mut self, _: u16) -> Result<Turn, QueueBroken> {
        let Some(queue) = &mut self.queue else { return Ok(Turn::Sleep) };
        for _ in 0..BUDGET {
            let Some(chain) = queue.pop()? else {
                queue.flush()?;
                return Ok(if queue.enable_kicks()? { Turn::Again } else { Turn::Sleep });
            };
            let written = fill(queue, &mut self.piece, &chain);
            queue.complete(chain, written)?;
            self.bytes.fetch_add(written.into(), Ordering::Relaxed);
        }
        queue.flush()?;
        Ok(Turn::Again)
    }
}
