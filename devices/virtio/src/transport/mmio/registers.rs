//! The registers of the MMIO transport as vCPUs reach them (virtio 1.2, 4.2.2).

use std::sync::Arc;

use ossature_bus::{Access, BusFault, Effect, Event, Mmio, Size};
use ossature_memory::REGISTER_PAGE_SIZE;
use virtio_bindings::bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH,
    VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_SHM_BASE_HIGH, VIRTIO_MMIO_SHM_BASE_LOW,
    VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_SHM_SEL, VIRTIO_MMIO_STATUS,
    VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};

use super::super::Transport;
use super::super::core::Ring;
use super::page::{Page, QUEUE_RESET};

/// What the driver writes to [`QUEUE_RESET`].
const RESET: u32 = 1;

/// The registers as vCPUs reach them.
pub(super) struct RegisterPort {
    transport: Arc<Transport<Arc<Page>>>,
    doorbells: Vec<Arc<Event>>,
    config_len: u64,
}

impl RegisterPort {
    pub(super) fn new(
        transport: Arc<Transport<Arc<Page>>>,
        doorbells: Vec<Arc<Event>>,
        config_len: u32,
    ) -> Self {
        Self { transport, doorbells, config_len: config_len.into() }
    }

    /// The offset in configuration space of an access to it.
    fn config(&self, at: Access) -> Result<u64, BusFault> {
        let Some(offset) = at.offset.checked_sub(VIRTIO_MMIO_CONFIG.into()) else {
            return Err(BusFault::Unmapped);
        };
        match offset.checked_add(at.size.bytes()) {
            _ if offset >= self.config_len => Err(BusFault::Unmapped),
            _ if offset % at.size.bytes() != 0 => Err(BusFault::Alignment),
            Some(end) if end <= self.config_len => Ok(offset),
            _ => Err(BusFault::Crosses),
        }
    }

    fn page(&self, offset: u64) -> u32 {
        // The page is as large as the range, and the mask keeps a stray offset in it.
        self.transport.view().read((offset % REGISTER_PAGE_SIZE as u64) as u32)
    }
}

/// The register of an access that is not to configuration space: all have 32 bits.
fn register(at: Access) -> Result<u32, BusFault> {
    if at.size != Size::B4 {
        Err(BusFault::Width)
    } else if !at.offset.is_multiple_of(4) {
        Err(BusFault::Alignment)
    } else {
        u32::try_from(at.offset).map_err(|_| BusFault::Unmapped)
    }
}

impl Mmio for RegisterPort {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        if at.offset >= VIRTIO_MMIO_CONFIG.into() {
            self.config(at)?;
            let low = at.offset & !3;
            let words = u64::from(self.page(low)) | u64::from(self.page(low + 4)) << 32;
            return Ok(words >> (8 * (at.offset % 4)) & at.size.mask());
        }
        match register(at)? {
            VIRTIO_MMIO_MAGIC_VALUE
            | VIRTIO_MMIO_VERSION
            | VIRTIO_MMIO_DEVICE_ID
            | VIRTIO_MMIO_VENDOR_ID
            | VIRTIO_MMIO_DEVICE_FEATURES
            | VIRTIO_MMIO_QUEUE_NUM_MAX
            | VIRTIO_MMIO_QUEUE_READY
            | QUEUE_RESET
            | VIRTIO_MMIO_INTERRUPT_STATUS
            | VIRTIO_MMIO_STATUS
            | VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH
            | VIRTIO_MMIO_CONFIG_GENERATION => Ok(self.page(at.offset).into()),
            VIRTIO_MMIO_DEVICE_FEATURES_SEL
            | VIRTIO_MMIO_DRIVER_FEATURES
            | VIRTIO_MMIO_DRIVER_FEATURES_SEL
            | VIRTIO_MMIO_QUEUE_SEL
            | VIRTIO_MMIO_QUEUE_NUM
            | VIRTIO_MMIO_QUEUE_NOTIFY
            | VIRTIO_MMIO_INTERRUPT_ACK
            | VIRTIO_MMIO_QUEUE_DESC_LOW
            | VIRTIO_MMIO_QUEUE_DESC_HIGH
            | VIRTIO_MMIO_QUEUE_AVAIL_LOW
            | VIRTIO_MMIO_QUEUE_AVAIL_HIGH
            | VIRTIO_MMIO_QUEUE_USED_LOW
            | VIRTIO_MMIO_QUEUE_USED_HIGH
            | VIRTIO_MMIO_SHM_SEL => Err(BusFault::WriteOnly),
            _ => Err(BusFault::Unmapped),
        }
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        let transport = &*self.transport;
        if at.offset >= VIRTIO_MMIO_CONFIG.into() {
            let offset = self.config(at)? as u32;
            let bytes = value.to_le_bytes();
            let data = bytes.get(..at.size.bytes() as usize).unwrap_or_default();
            transport.with(|core| core.write_config(offset, data));
            return Ok(Effect::None);
        }
        let value = value as u32;
        match register(at)? {
            // The two that a running driver writes come without the lock, and the first without an exit where the
            // machine has connected the doorbells.
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(doorbell) = self.doorbells.get(value as usize) {
                    // Our event cannot fail.
                    let _ = doorbell.signal();
                }
            }
            VIRTIO_MMIO_INTERRUPT_ACK => transport.view().acknowledge(value),
            VIRTIO_MMIO_STATUS => {
                // No status has bits above these.
                let value = value.try_into().unwrap_or(u8::MAX);
                transport.with(|core| core.write_status(value));
            }
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => transport.with(|core| core.select_offered_features(value)),
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => transport.with(|core| core.select_accepted_features(value)),
            VIRTIO_MMIO_DRIVER_FEATURES => transport.with(|core| core.accept_features(value)),
            VIRTIO_MMIO_QUEUE_SEL => transport.with(|core| core.select_queue(value)),
            VIRTIO_MMIO_QUEUE_NUM => transport.with(|core| core.set_queue_size(value)),
            VIRTIO_MMIO_QUEUE_READY => transport.with(|core| core.set_queue_ready(value & 1 != 0)),
            QUEUE_RESET if value == RESET => transport.with(|core| {
                // For another vCPU that looks meanwhile.
                transport.view().show_resetting();
                core.reset_queue();
            }),
            QUEUE_RESET => {}
            VIRTIO_MMIO_QUEUE_DESC_LOW => {
                transport.with(|core| core.set_queue_address(Ring::Desc, false, value))
            }
            VIRTIO_MMIO_QUEUE_DESC_HIGH => {
                transport.with(|core| core.set_queue_address(Ring::Desc, true, value))
            }
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => {
                transport.with(|core| core.set_queue_address(Ring::Avail, false, value))
            }
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => {
                transport.with(|core| core.set_queue_address(Ring::Avail, true, value))
            }
            VIRTIO_MMIO_QUEUE_USED_LOW => {
                transport.with(|core| core.set_queue_address(Ring::Used, false, value))
            }
            VIRTIO_MMIO_QUEUE_USED_HIGH => {
                transport.with(|core| core.set_queue_address(Ring::Used, true, value))
            }
            VIRTIO_MMIO_SHM_SEL => {}
            VIRTIO_MMIO_MAGIC_VALUE
            | VIRTIO_MMIO_VERSION
            | VIRTIO_MMIO_DEVICE_ID
            | VIRTIO_MMIO_VENDOR_ID
            | VIRTIO_MMIO_DEVICE_FEATURES
            | VIRTIO_MMIO_QUEUE_NUM_MAX
            | VIRTIO_MMIO_INTERRUPT_STATUS
            | VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH
            | VIRTIO_MMIO_CONFIG_GENERATION => return Err(BusFault::ReadOnly),
            _ => return Err(BusFault::Unmapped),
        }
        Ok(Effect::None)
    }
}
