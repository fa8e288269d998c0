//! What the guest reads of the MMIO transport, interrupt status included, and the line that tells it to look.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_bus::{Event, Interrupt, InterruptTarget};
use ossature_memory::RegisterPage;
use virtio_bindings::bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_DEVICE_ID,
    VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_NUM_MAX,
    VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_SHM_BASE_HIGH, VIRTIO_MMIO_SHM_BASE_LOW, VIRTIO_MMIO_SHM_LEN_HIGH,
    VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};

use super::super::View;
use super::super::core::Core;
use super::super::status::DRIVER_OK;
use crate::DeviceType;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// The layout without the legacy interface.
const VERSION: u32 = 2;
/// "OSSA", little-endian: the vendor of the device model.
const VENDOR: u32 = 0x4153_534f;

/// QueueReset (4.2.2), which has no name in Linux' headers.
pub(super) const QUEUE_RESET: u32 = 0xc0;
/// Bit of the interrupt registers: a queue has used buffers.
pub(super) const USED_BUFFER: u32 = 1;
/// Bit of the interrupt registers: the configuration has changed.
pub(super) const CONFIG_CHANGE: u32 = 2;

/// How a device on the MMIO transport interrupts its guest, and what its interrupt status reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MmioInterrupt {
    /// An edge of a line of its own. The interrupt status tells what happened, and nothing once the driver has
    /// acknowledged it, which costs an exit to user space for each interrupt. Right for every driver.
    #[default]
    Exact,
    /// An edge of a line of its own. The used-buffer bit of the interrupt status is set as long as the driver runs, so
    /// that the acknowledgement is a doorbell that no thread waits for: no exit. Right for drivers that look at their
    /// rings whenever they are interrupted, as Linux' do; one that waits until the status is clear waits for ever.
    AlwaysSet,
    /// A level-triggered line, asserted while the interrupt status is not 0, that other level-triggered devices may
    /// share. It costs an exit for each acknowledgement, and another for each interrupt that the line's other devices
    /// are asked about.
    SharedLine,
}

/// The page that the guest reads.
pub(super) struct Page {
    page: Arc<RegisterPage>,
    device_type: DeviceType,
    line: Interrupt,
    mode: MmioInterrupt,
    /// Held while interrupt status and a level-triggered line change together.
    level: Mutex<()>,
}

impl Page {
    pub(super) fn new(
        page: Arc<RegisterPage>,
        device_type: DeviceType,
        line: Interrupt,
        mode: MmioInterrupt,
    ) -> Arc<Self> {
        Arc::new(Self { page, device_type, line, mode, level: Mutex::new(()) })
    }

    /// What a guest reads at `register`.
    pub(super) fn read(&self, register: u32) -> u32 {
        self.page.load(register as usize)
    }

    /// The interrupt of all queues.
    pub(super) fn queue_interrupt(self: &Arc<Self>) -> Interrupt {
        match self.mode {
            MmioInterrupt::AlwaysSet => self.line.clone(),
            _ => Interrupt::new(Arc::new(Cause { page: self.clone(), bit: USED_BUFFER })),
        }
    }

    /// The interrupt of configuration changes.
    pub(super) fn config_interrupt(self: &Arc<Self>) -> Interrupt {
        Interrupt::new(Arc::new(Cause { page: self.clone(), bit: CONFIG_CHANGE }))
    }

    fn level(&self) -> MutexGuard<'_, ()> {
        self.level.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, bits: u32) {
        self.page.fetch_or(VIRTIO_MMIO_INTERRUPT_STATUS as usize, bits);
    }

    /// Clears these bits; returns the others.
    fn clear(&self, bits: u32) -> u32 {
        self.page.fetch_and(VIRTIO_MMIO_INTERRUPT_STATUS as usize, !bits) & !bits
    }

    /// What the driver has not acknowledged.
    pub(super) fn pending(&self) -> u32 {
        self.read(VIRTIO_MMIO_INTERRUPT_STATUS)
    }

    /// Interrupts the guest for the cause `bit`, which it can read by then.
    fn interrupt(&self, bit: u32) -> io::Result<()> {
        if self.mode == MmioInterrupt::SharedLine {
            let _guard = self.level();
            self.set(bit);
            self.line.assert()
        } else {
            self.set(bit);
            self.line.signal()
        }
    }

    /// The driver acknowledges these causes.
    pub(super) fn acknowledge(&self, bits: u32) {
        match self.mode {
            MmioInterrupt::Exact => drop(self.clear(bits)),
            MmioInterrupt::AlwaysSet => drop(self.clear(bits & !USED_BUFFER)),
            MmioInterrupt::SharedLine => {
                let _guard = self.level();
                if self.clear(bits) == 0 {
                    // Nobody is left to tell of a line that is gone.
                    let _ = self.line.deassert();
                }
            }
        }
    }

    /// What the driver has not acknowledged is `bits`, as nobody interrupts it.
    pub(super) fn replace_pending(&self, bits: u32) {
        let always = if self.mode == MmioInterrupt::AlwaysSet { self.pending() & USED_BUFFER } else { 0 };
        self.acknowledge(u32::MAX);
        self.clear(u32::MAX);
        self.set(bits | always);
    }

    /// Interrupts the guest again for what it may not have seen before it was saved, `bits` of which were pending.
    pub(super) fn interrupt_again(&self, bits: u32) {
        self.set(bits);
        // As above.
        let _ = match self.mode {
            MmioInterrupt::Exact if bits == 0 => Ok(()),
            MmioInterrupt::Exact | MmioInterrupt::AlwaysSet => self.line.signal(),
            MmioInterrupt::SharedLine if bits == 0 => self.line.deassert(),
            MmioInterrupt::SharedLine => self.line.assert(),
        };
    }

    /// Another vCPU sees a queue on its way to being reset.
    pub(super) fn show_resetting(&self) {
        self.page.store(QUEUE_RESET as usize, 1);
    }
}

impl View for Arc<Page> {
    fn show(&self, core: &Core) {
        let queue = core.queue();
        let store = |register: u32, value| self.page.store(register as usize, value);
        store(VIRTIO_MMIO_MAGIC_VALUE, MAGIC);
        store(VIRTIO_MMIO_VERSION, VERSION);
        store(VIRTIO_MMIO_DEVICE_ID, self.device_type.0);
        store(VIRTIO_MMIO_VENDOR_ID, VENDOR);
        store(VIRTIO_MMIO_DEVICE_FEATURES, core.features.window());
        store(VIRTIO_MMIO_QUEUE_NUM_MAX, queue.map_or(0, |queue| queue.max.into()));
        store(VIRTIO_MMIO_QUEUE_READY, queue.is_some_and(|queue| queue.state.ready).into());
        store(QUEUE_RESET, 0);
        // No queue runs before the driver is ready, so that nobody sets what is cleared here.
        if core.status & DRIVER_OK != 0 {
            if self.mode == MmioInterrupt::AlwaysSet {
                self.set(USED_BUFFER);
            }
        } else if self.pending() != 0 {
            self.acknowledge(u32::MAX);
            self.clear(u32::MAX);
        }
        store(VIRTIO_MMIO_STATUS, core.status.into());
        // There are no shared memory regions, whichever is selected (4.2.2.1).
        for register in [
            VIRTIO_MMIO_SHM_LEN_LOW,
            VIRTIO_MMIO_SHM_LEN_HIGH,
            VIRTIO_MMIO_SHM_BASE_LOW,
            VIRTIO_MMIO_SHM_BASE_HIGH,
        ] {
            store(register, u32::MAX);
        }
        let mut register = VIRTIO_MMIO_CONFIG;
        for bytes in core.config.chunks(4) {
            let word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte));
            store(register, word);
            register += 4;
        }
        store(VIRTIO_MMIO_CONFIG_GENERATION, core.generation);
    }
}

/// One cause of the line's interrupts.
struct Cause {
    page: Arc<Page>,
    bit: u32,
}

impl InterruptTarget for Cause {
    fn signal(&self) -> io::Result<()> {
        self.page.interrupt(self.bit)
    }

    fn set_level(&self, asserted: bool) -> io::Result<()> {
        // The driver's acknowledgement is what deasserts the line.
        if asserted { self.signal() } else { Ok(()) }
    }

    /// The cause has to be noted before the line is raised.
    fn event(&self) -> Option<&Arc<Event>> {
        None
    }

    fn resample(&self) -> Option<&Arc<Event>> {
        None
    }
}
