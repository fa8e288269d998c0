//! The MMIO transport (virtio 1.2, 4.2), register layout version 2.

mod page;
mod registers;

use std::sync::{Arc, Mutex};

use ossature_bus::state::{Decoder, Encoder, StateError};
use ossature_bus::{
    Assigned, Device, DeviceError, DeviceState, DoorbellRequest, Handover, Identity, InterruptRequest,
    MetricVisitor, NodeKind, RegistersRequest, Requires, Size, Syscall,
};
use ossature_memory::{REGISTER_PAGE_SIZE, host_page_size};
use virtio_bindings::bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_QUEUE_NOTIFY,
};

pub use self::page::MmioInterrupt;
use self::page::{Page, USED_BUFFER};
use self::registers::RegisterPort;
use super::core::{Shared, Wires, lock};
use super::state::Own;
use super::{Transport, check_queues, show_counts};
use crate::{DeviceInfo, Local, LocalDevice, Runtime, VirtioDevice};

/// The names of what the transport asks for.
const REGISTERS: &str = "registers";
const INTERRUPT: &str = "irq";
const KICK: &str = "kick";
const ACKNOWLEDGE: &str = "acknowledge";

/// A virtio device behind an MMIO transport.
///
/// It asks for a page of registers with a doorbell for each queue, and for an interrupt line. What the guest reads is
/// kept in a [`RegisterPage`](ossature_memory::RegisterPage), so that where the machine maps it, reads cost no exit.
/// What acknowledging an interrupt costs is chosen with [`with_interrupt`](Self::with_interrupt).
///
/// All register writes that the specification lets a driver make are honoured, in any order that makes sense. Others
/// are ignored and counted, and the first is a [`DeviceEvent::Ignored`](ossature_bus::DeviceEvent::Ignored).
///
/// When the device's code panics, the device needs a reset, as after a broken ring. The reset makes new workers, with
/// which it works again.
pub struct VirtioMmio {
    id: String,
    device: Shared,
    interrupt: MmioInterrupt,
    attached: Option<Arc<Transport<Arc<Page>>>>,
    /// Interrupt causes that were pending when the state was saved that the device was restored from: raised again
    /// when it goes on.
    restored: Option<u32>,
}

impl VirtioMmio {
    /// `device`, named `id` in its machine; its workers run on `runtime`.
    pub fn new(id: impl Into<String>, device: Box<dyn LocalDevice>, runtime: Arc<dyn Runtime>) -> Self {
        let id = id.into();
        let device = Local::new(id.clone(), device, runtime);
        Self::from_device(id, Box::new(device))
    }

    /// `device`, named `id` in its machine, wherever its queues are served.
    pub fn from_device(id: impl Into<String>, device: Box<dyn VirtioDevice>) -> Self {
        let device = Arc::new(Mutex::new(device));
        Self { id: id.into(), device, interrupt: MmioInterrupt::Exact, attached: None, restored: None }
    }

    /// The same with another kind of interrupt.
    #[must_use]
    pub fn with_interrupt(mut self, interrupt: MmioInterrupt) -> Self {
        self.interrupt = interrupt;
        self
    }

    fn transport(&self) -> Result<&Transport<Arc<Page>>, DeviceError> {
        let loose = || DeviceError::new(format!("{} is not attached to a machine", self.id));
        self.attached.as_deref().ok_or_else(loose)
    }
}

impl std::fmt::Debug for VirtioMmio {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtioMmio").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Device for VirtioMmio {
    fn id(&self) -> &str {
        &self.id
    }

    fn requires(&self) -> Requires {
        let doorbell = |name: (&'static str, u16), offset: u32, value: u32| {
            DoorbellRequest::new(name, offset.into(), Size::B4).value(value.into())
        };
        let mut registers = RegistersRequest::memory(REGISTERS, host_page_size() as u64).with_page();
        for queue in 0..lock(&self.device).info().queues.len() as u16 {
            registers = registers.doorbell(doorbell((KICK, queue), VIRTIO_MMIO_QUEUE_NOTIFY, queue.into()));
        }
        if self.interrupt == MmioInterrupt::AlwaysSet {
            let acknowledge = doorbell((ACKNOWLEDGE, 0), VIRTIO_MMIO_INTERRUPT_ACK, USED_BUFFER);
            registers = registers.doorbell(acknowledge.ignored());
        }
        let interrupt = match self.interrupt {
            MmioInterrupt::SharedLine => InterruptRequest::level(INTERRUPT),
            MmioInterrupt::Exact | MmioInterrupt::AlwaysSet => InterruptRequest::edge(INTERRUPT),
        };
        Requires::new().registers(registers).interrupt(interrupt)
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        if self.attached.is_some() {
            return Err(DeviceError::new(format!("{}: attached before", self.id)));
        }
        let info = lock(&self.device).info();
        let named = |e: DeviceError| e.context(&self.id);
        check(&info).map_err(named)?;
        let registers = assigned.registers(REGISTERS).map_err(named)?;
        let line = assigned.interrupt(INTERRUPT).map_err(named)?;
        let page = registers.page().ok_or_else(|| named(DeviceError::new("needs a register page")))?;
        let kicks = (0..info.queues.len() as u16).map(|queue| assigned.doorbell((KICK, queue)).cloned());
        let doorbells = kicks.collect::<Result<Vec<_>, _>>().map_err(named)?;

        let page = Page::new(page.clone(), info.device_type, line.clone(), self.interrupt);
        let wires = Wires {
            doorbells: doorbells.clone(),
            interrupts: info.queues.iter().map(|_| page.queue_interrupt()).collect(),
            config_interrupt: page.config_interrupt(),
        };
        let (dma, events) = (assigned.dma().clone(), assigned.events().clone());
        let transport = Transport::new(self.device.clone(), wires, page, dma, events);
        registers.answer(Arc::new(RegisterPort::new(transport.clone(), doorbells, info.config_len)));
        self.attached = Some(transport);
        Ok(NodeKind::VirtioMmio)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.transport()?.quiesce()
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        let transport = self.transport()?;
        let running = transport.resume()?;
        if let Some(pending) = self.restored.take().filter(|_| running) {
            self.transport()?.view().interrupt_again(pending);
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.restored = None;
        self.transport()?.reset()
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        // What is to be raised again is pending still.
        let transport = self.transport()?;
        let pending = self.restored.unwrap_or_else(|| transport.view().pending());
        let state = transport.save(pending, &Nothing)?;
        // Whoever goes on raises it: the one that the state is restored into, or this one.
        self.restored = Some(pending);
        Ok(state)
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        let Some(transport) = &self.attached else {
            return Err(StateError::Unsupported { reason: "it is not attached to a machine" });
        };
        let (pending, Nothing) = transport.restore(handover, Ok)?;
        transport.view().replace_pending(pending);
        self.restored = Some(pending);
        Ok(())
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        self.restored = None;
        let left = self.transport()?.leave();
        self.attached = None;
        left
    }

    fn syscalls(&self) -> &'static [Syscall] {
        lock(&self.device).syscalls()
    }

    fn identities(&self) -> Vec<Identity> {
        lock(&self.device).identities()
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        if let Some(transport) = &self.attached {
            show_counts(transport, visitor);
            lock(&self.device).metrics(visitor);
        }
    }
}

impl Drop for VirtioMmio {
    fn drop(&mut self) {
        if self.attached.is_some() {
            // Nobody is left to tell of a worker that is lost.
            let _ = self.detach();
        }
    }
}

/// What only this transport saves.
struct Nothing;

impl Own for Nothing {
    const KIND: &'static str = "ossature.virtio-mmio";

    fn save(&self, _: &mut Encoder) {}

    fn read(_: &mut Decoder<'_>) -> Result<Self, StateError> {
        Ok(Self)
    }
}

/// Fails if a device does not fit this transport.
fn check(info: &DeviceInfo) -> Result<(), DeviceError> {
    check_queues(info)?;
    let room = REGISTER_PAGE_SIZE as u32 - VIRTIO_MMIO_CONFIG;
    if info.config_len > room {
        let reason = format!("{} bytes of configuration space, there is room for {room}", info.config_len);
        return Err(DeviceError::new(reason));
    }
    Ok(())
}
