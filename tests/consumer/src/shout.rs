//! A virtio device: answers each request with the same text in capital letters.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ossature::bus::state::{Decoder, Encoder, Field, StateError};
use ossature::bus::{DeviceError, DeviceState, Handover, MetricVisitor, Syscall};
use ossature::virtio::{
    Activation, DeviceInfo, DeviceType, LocalDevice, QueueBroken, Removed, Source, Turn, VirtQueue, Worker,
};

/// What the device is called in its machine.
pub const ID: &str = "shout";

const KIND: &str = "com.example.shout";
const REQUESTS: Field = Field::new(1, "requests");

/// Requests in one turn.
const BUDGET: usize = 32;
/// The longest text, in bytes.
const TEXT: usize = 64;

/// The control plane.
#[derive(Debug, Default)]
pub struct Shout {
    requests: Arc<AtomicU64>,
}

impl Shout {
    pub fn new() -> Self {
        Self::default()
    }
}

impl LocalDevice for Shout {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new(DeviceType(63), &[64])
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        vec![vec![0]]
    }

    fn read_config(&self, _: u32, _: &mut [u8]) {}

    fn write_config(&mut self, _: u32, _: &[u8]) {}

    fn worker(&mut self, _: usize, _: &Activation) -> Result<Box<dyn Worker>, DeviceError> {
        Ok(Box::new(Shouter { queue: None, requests: Arc::clone(&self.requests) }))
    }

    fn forget_queue(&mut self, _: u16) {}

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) {
        self.requests.store(0, Ordering::Relaxed);
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        let mut fields = Encoder::new(KIND, 1);
        fields.u64(REQUESTS, self.requests.load(Ordering::Relaxed));
        Ok(DeviceState::Saved(Handover::new(fields.finish())))
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        let mut fields = Decoder::new(&handover.state, KIND, 1..=1)?;
        let requests = fields.u64(REQUESTS)?;
        fields.finish()?;
        self.requests.store(requests, Ordering::Relaxed);
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[Syscall("write")] // the interrupt
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        visitor.counter("requests", "Requests that were answered.", self.requests.load(Ordering::Relaxed));
    }
}

/// The data plane.
struct Shouter {
    queue: Option<VirtQueue>,
    requests: Arc<AtomicU64>,
}

impl Worker for Shouter {
    fn sources(&self) -> Vec<Source> {
        Vec::new() // but for the queue's doorbell
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
            let mut text = [0; TEXT];
            let read = queue.dma().gather(chain.readable(), &mut text).unwrap_or(0);
            text.make_ascii_uppercase();
            let wrote = queue.dma().scatter(chain.writable(), &text[..read]).unwrap_or(0);
            queue.complete(chain, wrote as u32)?;
            self.requests.fetch_add(1, Ordering::Relaxed);
        }
        queue.flush()?;
        Ok(Turn::Again)
    }
}
