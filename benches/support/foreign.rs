//! Adapters to rust-vmm: a device on virtio-queue's queue behind ours, the same on the driver's own ring, and kernels
//! that either side loads.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use ossature::boot::Platform;
use ossature::boot::x86_64::{self, BootSpec};
use ossature::memory::GuestMmap;
use ossature::memory::vm_memory::GuestAddress;
use ossature::virtio::{Activation, QueueSetup, QueueState, Turn, Worker};
use ossature::vmm::Registers;
use ossature::vmm::machine::Payload;
use ossature_rust_vmm::linux_loader::FromKernelLoader;
use ossature_rust_vmm::linux_loader::loader::Elf;
use ossature_rust_vmm::virtio_queue::{HandlerError, Queue, QueueT, QueueWorker, queue_of};

use super::rings::{Layout, QueueRig};
use super::tables;

/// What a device does that answers at once: walks each chain, and gives it back.
#[inline]
fn answer(queue: &mut Queue, memory: &GuestMmap) -> Result<u64, HandlerError> {
    let mut bytes = 0;
    while let Some(chain) = queue.pop_descriptor_chain(memory) {
        let head = chain.head_index();
        bytes += chain.map(|desc| u64::from(desc.len())).sum::<u64>();
        queue.add_used(memory, head, 64)?;
    }
    Ok(bytes)
}

type Handler = fn(u16, &mut Queue, &Arc<GuestMmap>) -> Result<(), HandlerError>;

fn handle(_: u16, queue: &mut Queue, memory: &Arc<GuestMmap>) -> Result<(), HandlerError> {
    answer(queue, memory).map(drop)
}

/// Their queue behind ours.
pub struct Behind {
    rig: QueueRig,
    worker: QueueWorker<Handler>,
}

impl Behind {
    pub fn new(descriptors: u64, layout: Layout) -> Self {
        let mut rig = QueueRig::new(descriptors, layout);
        let mut worker = QueueWorker::new(handle as Handler, &Activation::new(0, rig.dma.clone()));
        let event = || Arc::new(ossature::bus::Event::new().unwrap());
        let other = rig.driver.queue(0, &rig.dma, &event(), &event());
        worker.add_queue(std::mem::replace(&mut rig.queue, other));
        Self { rig, worker }
    }

    #[inline]
    pub fn batch(&mut self) {
        self.rig.driver.offer();
        assert!(matches!(self.worker.turn(0), Ok(Turn::Sleep)));
    }
}

/// Their queue alone.
pub struct Alone {
    rig: QueueRig,
    queue: Queue,
}

impl Alone {
    pub fn new(descriptors: u64, layout: Layout) -> Self {
        let rig = QueueRig::new(descriptors, layout);
        let ring = &rig.driver.ring;
        let state = QueueState::new(ring.size).at(ring.desc, ring.avail, ring.used);
        let event = || Arc::new(ossature::bus::Event::new().unwrap());
        let setup = QueueSetup::new(0, state, rig.dma.clone(), event(), event().into());
        let queue = queue_of(&setup).unwrap();
        Self { rig, queue }
    }

    #[inline]
    pub fn batch(&mut self) {
        self.rig.driver.offer();
        let memory = self.rig.dma.memory();
        answer(&mut self.queue, memory).unwrap();
        self.queue.needs_notification(memory).unwrap();
        assert!(!self.queue.enable_notification(memory).unwrap());
    }
}

/// A kernel of 4 KiB, loaded by either side.
pub struct Loading {
    kernel: File,
    theirs: FromKernelLoader<Elf>,
    memory: GuestMmap,
    platform: Platform,
}

impl Loading {
    pub fn new() -> Self {
        let mut kernel = tempfile::tempfile().unwrap();
        kernel.write_all(&tables::kernel(4096)).unwrap();
        let theirs = FromKernelLoader::new(kernel.try_clone().unwrap());
        let memory = GuestMmap::from_ranges(&[(GuestAddress(0), 512 << 20)]).unwrap();
        Self { kernel, theirs, memory, platform: tables::platform() }
    }

    pub fn ours(&mut self) -> Registers {
        let spec = BootSpec::new(&self.kernel, "");
        x86_64::prepare(&self.memory, &self.platform, &spec).unwrap().cpu.into()
    }

    pub fn theirs(&mut self) -> Registers {
        self.theirs.load(&self.memory, &self.platform).unwrap()
    }
}
