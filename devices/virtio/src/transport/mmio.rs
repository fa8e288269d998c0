//! The MMIO transport (virtio 1.2, 4.2), register layout version 2.

use std::sync::Arc;

use ossature_bus::state::{SavedState, StateError};
use ossature_bus::{
    Access, AddressSpace, Assigned, AttachError, Attached, BusFault, Device, DeviceError, DoorbellRequest,
    Effect, Event, InterruptRequest, MetricVisitor, Mmio, NodeHint, Placement, RangeRequest, Requires, Size,
    State, Syscall, Trigger,
};
use ossature_memory::{PAGE_SIZE, RegisterPage};
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

use super::core::{Core, Ring, Wires};
use super::status::DRIVER_OK;
use super::{Transport, View};
use crate::{DeviceType, Runtime, VirtioDevice};

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// The layout without the legacy interface.
const VERSION: u32 = 2;
/// "OSSA", little-endian: the vendor of the device model.
const VENDOR: u32 = 0x4153_534f;

/// The largest queue there is (2.7).
const MAX_QUEUE_SIZE: u16 = 32768;
/// Bit of the interrupt registers: a queue has used buffers.
const USED_BUFFER: u32 = 1;
/// Bit of the interrupt registers: the configuration has changed.
const CONFIG_CHANGE: u32 = 2;

/// Why a transport cannot be saved even if its device can.
const NO_STATE: &str = "the transport's registers and queues have no saved form";

/// A virtio device behind an MMIO transport.
///
/// It asks for a page of registers, an edge interrupt, and a doorbell for each queue. What the guest reads is
/// kept in a [`RegisterPage`], so that where the machine maps it, reads cost no exit. The used-buffer bit of
/// the interrupt status reads as set as long as the driver runs: with edges, and a driver that looks at its
/// rings anyway, a bit that nobody has to set and clear costs nothing. Acknowledging it is a doorbell that
/// nobody waits for.
pub struct VirtioMmio {
    id: String,
    stage: Stage,
}

enum Stage {
    Detached(Option<(Box<dyn VirtioDevice>, Arc<dyn Runtime>)>),
    Attached(Arc<Transport<Page>>),
}

impl VirtioMmio {
    /// `device`, named `id` in its machine; its workers run on `runtime`.
    pub fn new(id: impl Into<String>, device: Box<dyn VirtioDevice>, runtime: Arc<dyn Runtime>) -> Self {
        Self { id: id.into(), stage: Stage::Detached(Some((device, runtime))) }
    }

    fn transport(&self) -> Result<&Transport<Page>, DeviceError> {
        match &self.stage {
            Stage::Attached(transport) => Ok(transport),
            Stage::Detached(_) => {
                Err(DeviceError { reason: format!("{} is not attached to a machine", self.id), source: None })
            }
        }
    }

    fn device<R>(&self, f: impl FnOnce(&dyn VirtioDevice) -> R) -> Option<R> {
        match &self.stage {
            Stage::Attached(transport) => Some(transport.with(|core| f(core.device()))),
            Stage::Detached(Some((device, _))) => Some(f(&**device)),
            Stage::Detached(None) => None,
        }
    }
}

impl Device for VirtioMmio {
    fn id(&self) -> &str {
        &self.id
    }

    fn requires(&self) -> Requires {
        let queues = self.device(|device| device.queues().len()).unwrap_or_default();
        let doorbell =
            |offset, value| DoorbellRequest { range: 0, offset, size: Size::B4, value: Some(value) };
        let kicks = (0..queues as u64).map(|queue| doorbell(VIRTIO_MMIO_QUEUE_NOTIFY.into(), queue));
        let acknowledge = doorbell(VIRTIO_MMIO_INTERRUPT_ACK.into(), USED_BUFFER.into());
        Requires {
            ranges: vec![RangeRequest {
                space: AddressSpace::Mmio,
                size: PAGE_SIZE as u64,
                align: PAGE_SIZE as u64,
                placement: Placement::Any,
            }],
            interrupts: vec![InterruptRequest { placement: Placement::Any, trigger: Trigger::Edge }],
            doorbells: kicks.chain([acknowledge]).collect(),
            pages: vec![0],
        }
    }

    fn attach(&mut self, assigned: Assigned) -> Result<Attached, AttachError> {
        let refused = |reason: &str| AttachError { reason: format!("{}: {reason}", self.id), source: None };
        let Stage::Detached(parts) = &mut self.stage else { return Err(refused("attached before")) };
        let Assigned { dma, interrupts, mut doorbells, pages, events } = assigned;
        let [interrupt] = &interrupts[..] else { return Err(refused("needs one interrupt")) };
        let [page] = &pages[..] else { return Err(refused("needs one register page")) };
        let Some((device, runtime)) = parts.take() else { return Err(refused("attached before")) };
        let checked = check(&*device, doorbells.len());
        checked.map_err(|reason| refused(&reason))?;
        doorbells.truncate(device.queues().len());

        let view = Page { page: page.clone(), device_type: device.device_type() };
        let config_len = device.config_len().into();
        let wires = Wires {
            dma,
            doorbells: doorbells.clone(),
            interrupt: interrupt.clone(),
            config_interrupt: interrupt.clone(),
            events: events.clone(),
        };
        let transport = Transport::new(&self.id, Core::new(device, wires), view, runtime, events);
        let port = Registers { transport: transport.clone(), doorbells, config_len };
        self.stage = Stage::Attached(transport);
        Ok(Attached { ports: vec![Arc::new(port)], node: NodeHint::VirtioMmio })
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.transport()?.quiesce()
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.transport()?.resume()
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.transport()?.reset()
    }

    fn state(&self) -> State {
        match self.device(|device| device.state()) {
            Some(unsupported @ State::Unsupported { .. }) => unsupported,
            _ => State::Unsupported { reason: NO_STATE },
        }
    }

    fn restore(&mut self, _: &SavedState<'_>) -> Result<(), StateError> {
        Err(StateError::Unsupported { reason: NO_STATE })
    }

    fn syscalls(&self) -> &'static [Syscall] {
        self.device(|device| device.syscalls()).unwrap_or_default()
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        if let Stage::Attached(transport) = &self.stage {
            transport.with(|core| {
                visitor.counter("needs_resets", core.needs_resets());
                core.device().metrics(visitor);
            });
        }
    }
}

impl Drop for VirtioMmio {
    fn drop(&mut self) {
        if let Stage::Attached(transport) = &self.stage {
            // Nobody is left to tell of a worker that is lost.
            let _ = transport.quiesce();
        }
    }
}

/// Whether `device` fits this transport, which has given it `doorbells`.
fn check(device: &dyn VirtioDevice, doorbells: usize) -> Result<(), String> {
    let queues = device.queues();
    if doorbells != queues.len() + 1 {
        return Err(format!("needs {} doorbells, was given {doorbells}", queues.len() + 1));
    }
    if let Some(size) = queues.iter().find(|size| !size.is_power_of_two() || **size > MAX_QUEUE_SIZE) {
        return Err(format!("a queue of {size}: sizes are powers of two up to {MAX_QUEUE_SIZE}"));
    }
    let room = PAGE_SIZE as u32 - VIRTIO_MMIO_CONFIG;
    if device.config_len() > room {
        return Err(format!(
            "{} bytes of configuration space, there is room for {room}",
            device.config_len()
        ));
    }
    let mut members: Vec<u16> = device.groups().concat();
    members.sort_unstable();
    if !members.iter().map(|&queue| usize::from(queue)).eq(0..queues.len()) {
        return Err(format!("each of {} queues has to be in one group, they are {members:?}", queues.len()));
    }
    Ok(())
}

/// What the guest reads.
struct Page {
    page: Arc<RegisterPage>,
    device_type: DeviceType,
}

impl View for Page {
    fn show(&self, core: &Core) {
        let queue = core.queue();
        let running = core.status & DRIVER_OK != 0;
        let used = if running { USED_BUFFER } else { 0 };
        let config = if core.config_changed { CONFIG_CHANGE } else { 0 };
        let store = |register: u32, value| self.page.store(register as usize, value);
        store(VIRTIO_MMIO_MAGIC_VALUE, MAGIC);
        store(VIRTIO_MMIO_VERSION, VERSION);
        store(VIRTIO_MMIO_DEVICE_ID, self.device_type.0);
        store(VIRTIO_MMIO_VENDOR_ID, VENDOR);
        store(VIRTIO_MMIO_DEVICE_FEATURES, core.features.window());
        store(VIRTIO_MMIO_QUEUE_NUM_MAX, queue.map_or(0, |queue| queue.max.into()));
        store(VIRTIO_MMIO_QUEUE_READY, queue.is_some_and(|queue| queue.ready).into());
        store(VIRTIO_MMIO_INTERRUPT_STATUS, used | config);
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

/// The registers as vCPUs reach them.
struct Registers {
    transport: Arc<Transport<Page>>,
    doorbells: Vec<Arc<Event>>,
    config_len: u64,
}

impl Registers {
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
        self.transport.view().page.load((offset % PAGE_SIZE as u64) as usize)
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

impl Mmio for Registers {
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
            // The two that a running driver writes come without the lock, and without an exit where the
            // machine has connected the doorbells.
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                if let Some(doorbell) = self.doorbells.get(value as usize) {
                    // Our event cannot fail: see `VirtQueue::flush`.
                    let _ = doorbell.signal();
                }
            }
            VIRTIO_MMIO_INTERRUPT_ACK if value & CONFIG_CHANGE == 0 => {}
            VIRTIO_MMIO_INTERRUPT_ACK => transport.with(Core::acknowledge_config),
            VIRTIO_MMIO_STATUS => transport.write_status(value.try_into().unwrap_or(u8::MAX)),
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => transport.with(|core| core.select_offered_features(value)),
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => transport.with(|core| core.select_accepted_features(value)),
            VIRTIO_MMIO_DRIVER_FEATURES => transport.with(|core| core.accept_features(value)),
            VIRTIO_MMIO_QUEUE_SEL => transport.with(|core| core.select_queue(value)),
            VIRTIO_MMIO_QUEUE_NUM => transport.with(|core| core.set_queue_size(value)),
            VIRTIO_MMIO_QUEUE_READY => transport.with(|core| core.set_queue_ready(value & 1 != 0)),
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
