//! The PCI transport (virtio 1.2, 4.1), without the legacy interface.

mod layout;
mod registers;
mod signals;
mod state;
mod view;
mod window;

use std::sync::{Arc, Mutex};

use ossature_bus::state::StateError;
use ossature_bus::{
    Assigned, Device, DeviceError, DeviceState, Handover, Identity, MetricVisitor, NodeKind, Requires,
    Syscall,
};
use ossature_pci::{Function, PciBus, Vectors};

use self::registers::BarPort;
use self::signals::Signals;
use self::state::PciState;
use self::view::Registers;
use super::core::{Shared, Wires, lock};
use super::{Transport, check_queues, show_counts};
use crate::{DeviceInfo, Local, LocalDevice, Runtime, VirtioDevice};

type PciTransport = Transport<Arc<Registers>>;

/// The name of the doorbells.
const KICK: &str = "kick";

/// A virtio device as a function of a PCI bus.
///
/// It has one BAR of 64 bits with all registers, a doorbell for each queue, and the MSI-X table: one vector for each queue
/// and one for changes of the configuration, which the driver distributes as it likes. A kick and an interrupt leave the
/// kernel for user space where the machine has no ioeventfd and irqfd, and nowhere else.
///
/// There is no line interrupt. A driver without MSI-X polls its rings, or the ISR status.
///
/// What a driver may not write is treated as [`VirtioMmio`](crate::VirtioMmio) does.
pub struct VirtioPci {
    id: String,
    device: Shared,
    function: Function,
    attached: Option<Arc<PciTransport>>,
    /// Interrupt causes that were pending when the state was saved that the device was restored from: raised again
    /// when it goes on.
    restored: Option<u32>,
}

impl VirtioPci {
    /// `device`, named `id` in its machine, on `bus`; its workers run on `runtime`.
    pub fn new(
        id: impl Into<String>,
        device: Box<dyn LocalDevice>,
        runtime: Arc<dyn Runtime>,
        bus: &PciBus,
    ) -> Self {
        let id = id.into();
        let device = Local::new(id.clone(), device, runtime);
        Self::from_device(id, Box::new(device), bus)
    }

    /// `device`, named `id` in its machine, on `bus`, wherever its queues are served.
    pub fn from_device(id: impl Into<String>, device: Box<dyn VirtioDevice>, bus: &PciBus) -> Self {
        let id = id.into();
        let function = Function::new(id.clone(), bus, layout::function(&device.info()));
        let device = Arc::new(Mutex::new(device));
        Self { id, device, function, attached: None, restored: None }
    }

    /// In this slot of the bus, 1 to 31, instead of the lowest that is free when it is attached.
    #[must_use]
    pub fn at(mut self, slot: u8) -> Self {
        self.function.set_slot(slot);
        self
    }

    /// Its slot, while it is attached.
    pub fn slot(&self) -> Option<u8> {
        self.function.slot()
    }

    fn transport(&self) -> Result<&PciTransport, DeviceError> {
        let loose = || DeviceError::new(format!("{} is not attached to a machine", self.id));
        self.attached.as_deref().ok_or_else(loose)
    }
}

impl std::fmt::Debug for VirtioPci {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VirtioPci").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Makes the transport of `device`, and what answers its BAR.
fn connect(
    device: &Shared,
    info: &DeviceInfo,
    assigned: &Assigned,
    vectors: &Vectors,
) -> Result<(Arc<PciTransport>, BarPort), DeviceError> {
    let kicks = (0..info.queues.len() as u16).map(|queue| assigned.doorbell((KICK, queue)).cloned());
    let doorbells = kicks.collect::<Result<Vec<_>, _>>()?;
    let signals = Signals::new(vectors, info.queues.len());
    let wires = Wires {
        doorbells: doorbells.clone(),
        interrupts: signals.queue_interrupts(),
        config_interrupt: signals.config_interrupt(),
    };
    let registers = Arc::new(Registers::new(info, signals));
    let (dma, events) = (assigned.dma().clone(), assigned.events().clone());
    let transport = Transport::new(device.clone(), wires, registers, dma, events);
    let port = BarPort::new(transport.clone(), doorbells, info.config_len);
    Ok((transport, port))
}

impl Device for VirtioPci {
    fn id(&self) -> &str {
        &self.id
    }

    fn requires(&self) -> Requires {
        self.function.requires()
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        if self.attached.is_some() {
            return Err(DeviceError::new(format!("{}: attached before", self.id)));
        }
        let info = lock(&self.device).info();
        check(&info).map_err(|e| e.context(&self.id))?;
        let mut attached = None;
        let kind = self.function.attach(&assigned, |vectors| {
            let (transport, port) = connect(&self.device, &info, &assigned, vectors)?;
            attached = Some(transport);
            Ok(vec![Arc::new(port)])
        })?;
        self.attached = attached;
        Ok(kind)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.transport()?.quiesce()
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        let running = self.transport()?.resume()?;
        self.function.resume()?;
        if let Some(pending) = self.restored.take().filter(|_| running) {
            let transport = self.transport()?;
            let ready = transport.with(|core| core.ready_queues());
            transport.view().signals().interrupt_again(pending, &ready);
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.restored = None;
        let transport = self.transport()?;
        transport.view().signals().forget_vectors();
        let reset = transport.reset();
        self.function.reset().and(reset)
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        let transport = self.transport()?;
        let signals = transport.view().signals();
        // What is to be raised again is pending still.
        let pending = self.restored.unwrap_or_else(|| signals.pending());
        let own = PciState { vectors: signals.saved_vectors(), function: self.function.save()? };
        let state = transport.save(pending, &own)?;
        // Whoever goes on raises it: the one that the state is restored into, or this one.
        self.restored = Some(pending);
        Ok(state)
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        let Some(transport) = &self.attached else {
            return Err(StateError::Unsupported { reason: "it is not attached to a machine" });
        };
        let signals = transport.view().signals();
        let (pending, (vectors, function)) = transport.restore(handover, |own: PciState| {
            let PciState { vectors, function } = own;
            signals.check_vectors(&vectors)?;
            Ok((vectors, self.function.check(&function)?))
        })?;
        self.function.restore(function);
        signals.replace(&vectors, pending);
        // The registers show them.
        transport.with(|_| ());
        self.restored = Some(pending);
        Ok(())
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        self.restored = None;
        let transport = self.transport()?;
        let left = transport.leave();
        self.attached = None;
        self.function.detach().and(left)
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

impl Drop for VirtioPci {
    fn drop(&mut self) {
        if self.attached.is_some() {
            // Nobody is left to tell of a worker that is lost.
            let _ = self.detach();
        }
    }
}

/// Fails if a device does not fit this transport.
fn check(info: &DeviceInfo) -> Result<(), DeviceError> {
    check_queues(info)?;
    let wrong = |reason: String| Err(DeviceError::new(reason));
    if info.device_type.0 > layout::MAX_TYPE {
        return wrong(format!("device type {}: PCI has room up to {}", info.device_type.0, layout::MAX_TYPE));
    }
    if info.queues.len() > usize::from(layout::MAX_QUEUES) {
        return wrong(format!("{} queues, there is room for {}", info.queues.len(), layout::MAX_QUEUES));
    }
    if info.config_len > layout::CONFIG_ROOM {
        let (len, room) = (info.config_len, layout::CONFIG_ROOM);
        return wrong(format!("{len} bytes of configuration space, there is room for {room}"));
    }
    Ok(())
}
