//! Rings and descriptor chains, as a worker of a device sees them.

use ossature_bus::state::StateError;
use ossature_bus::{DeviceError, DeviceState, Handover, MetricVisitor, Syscall};
use ossature_virtio::{
    Activation, Chain, DeviceInfo, DeviceType, LocalDevice, QueueBroken, Removed, Source, Turn, VirtQueue,
    Worker,
};

use crate::guest::Kind;
use crate::{Input, guest};

/// Entries of its queue.
const SIZE: u16 = 16;

/// Rings with anything in them.
pub fn run(bytes: &[u8]) {
    guest::run(Probe, bytes);
}

/// A device that looks at each chain, keeps some of them for a while, and gives them back in another order.
struct Probe;

impl Kind for Probe {
    fn device(&mut self, _: &mut Input) -> Box<dyn LocalDevice> {
        Box::new(Probe)
    }
    fn request(&mut self, _: u16, input: &mut Input) -> Vec<u8> {
        let len = 1 + usize::from(input.u8()) % 64;
        input.bytes(len).to_vec()
    }
    fn is_prompt(&self, _: u16) -> bool {
        false
    }
}

impl LocalDevice for Probe {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new(DeviceType(63), &[SIZE])
    }
    fn groups(&self) -> Vec<Vec<u16>> {
        vec![vec![0]]
    }
    fn read_config(&self, _: u32, _: &mut [u8]) {}
    fn write_config(&mut self, _: u32, _: &[u8]) {}
    fn worker(&mut self, _: usize, _: &Activation) -> Result<Box<dyn Worker>, DeviceError> {
        Ok(Box::new(ProbeWorker { queue: None, kept: Vec::new() }))
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
        Err(StateError::Unsupported { reason: "there is none" })
    }
    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }
    fn metrics(&self, _: &mut dyn MetricVisitor) {}
}

struct ProbeWorker {
    queue: Option<VirtQueue>,
    kept: Vec<Chain>,
}

/// All that a chain promises.
fn check(queue: &VirtQueue, chain: &Chain) {
    let segments = || chain.readable().iter().chain(chain.writable());
    assert!(chain.head() < queue.size());
    assert!((1..=usize::from(queue.size())).contains(&segments().count()), "{chain:?}");
    let total: u64 = segments().map(|segment| u64::from(segment.len)).sum();
    assert!(total <= u64::from(u32::MAX), "{chain:?}");
    let writable: u64 = chain.writable().iter().map(|segment| u64::from(segment.len)).sum();
    assert_eq!(u64::from(chain.writable_len()), writable);
    for segment in segments() {
        assert!(segment.len > 0, "{chain:?}");
        queue.dma().check(segment.addr, segment.len.into()).expect("a chain is RAM");
    }
}

impl ProbeWorker {
    /// Gives back the chains that were kept, and says that all of it was written.
    fn give_back(queue: &mut VirtQueue, kept: &mut Vec<Chain>) -> Result<(), QueueBroken> {
        while let Some(chain) = kept.pop() {
            let writable = chain.writable_len();
            queue.complete(chain, writable)?;
        }
        queue.flush()
    }
}

impl Worker for ProbeWorker {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }
    fn add_queue(&mut self, queue: VirtQueue) {
        assert_eq!(queue.in_flight(), 0);
        self.queue = Some(queue);
    }
    fn remove_queue(&mut self, _: u16) -> Removed {
        let Self { queue, kept } = self;
        if let Some(queue) = queue
            && queue.broken().is_none()
        {
            // What was popped after those may be complete: they cannot go back as if they were never taken.
            let _ = Self::give_back(queue, kept);
        }
        kept.clear();
        queue.take().into()
    }
    fn turn(&mut self, _: u16) -> Result<Turn, QueueBroken> {
        let Self { queue, kept } = self;
        let Some(queue) = queue else { return Ok(Turn::Sleep) };
        loop {
            let before = queue.in_flight();
            let Some(chain) = queue.pop()? else {
                return Ok(if queue.enable_kicks()? { Turn::Again } else { Turn::Sleep });
            };
            assert!(queue.in_flight() <= queue.size(), "{} chains in flight", queue.in_flight());
            assert!(queue.in_flight() == before + 1);
            check(queue, &chain);
            match chain.readable_len() % 4 {
                // Once more.
                0 => {
                    let head = chain.head();
                    queue.unpop(chain);
                    let again = queue.pop()?.expect("what was given back");
                    assert_eq!(again.head(), head);
                    kept.push(again);
                }
                1 => {
                    let writable = chain.writable_len();
                    // More than there is room for.
                    queue.complete(chain, writable.saturating_add(1))?;
                    queue.flush()?;
                }
                2 => {
                    kept.push(chain);
                    Self::give_back(queue, kept)?;
                }
                _ => kept.push(chain),
            }
        }
    }
}
