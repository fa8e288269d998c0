//! An i8042 keyboard controller with a keyboard that knows one combination of keys.

mod controller;
mod keyboard;
mod registers;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_bus::state::StateError;
use ossature_bus::{
    Access, Assigned, BusFault, Device, DeviceError, DeviceEvent, DeviceState, Effect, EventSink, Handover,
    Interrupt, InterruptRequest, MetricVisitor, Mmio, NodeKind, RegistersRequest, Requires, Syscall,
    VmRequest,
};

use crate::register::{self, IRQ};
use controller::{Asks, Controller};
use state::ControllerState;

/// Port 0x60.
const DATA: &str = "data";
/// Port 0x64.
const COMMAND: &str = "command";

/// A PC's keyboard controller (Intel 8042; IBM PS/2 Technical Reference, "Keyboard and Auxiliary Device
/// Controller") at I/O ports 0x60 and 0x64, interrupt 1, with an AT keyboard and no mouse.
///
/// Guests reset the machine through it, and the VMM presses Ctrl-Alt-Del through [`Keyboard`]. It does not answer ports
/// 0x61 to 0x63.
#[derive(Debug)]
pub struct I8042 {
    id: String,
    shared: Arc<SharedController>,
}

#[derive(Debug)]
struct SharedController {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    controller: Controller,
    /// While the device is attached.
    irq: Option<Interrupt>,
    /// The device has been resumed and not quiesced since.
    running: bool,
    events: EventSink,
    reported: bool,
    resets: u64,
    presses: u64,
    lost_presses: u64,
}

impl I8042 {
    /// A controller named `id`.
    pub fn new(id: impl Into<String>) -> Self {
        let inner = Inner {
            controller: Controller::new(),
            irq: None,
            running: false,
            events: EventSink::discard(),
            reported: false,
            resets: 0,
            presses: 0,
            lost_presses: 0,
        };
        Self { id: id.into(), shared: Arc::new(SharedController { inner: Mutex::new(inner) }) }
    }

    /// The keyboard, for the VMM.
    pub fn keyboard(&self) -> Keyboard {
        Keyboard(self.shared.clone())
    }
}

/// The keyboard of an [`I8042`]: a clonable handle.
#[derive(Clone, Debug)]
pub struct Keyboard(Arc<SharedController>);

impl Keyboard {
    /// Presses and releases Ctrl, Alt and Del. Returns false if the guest has switched the keyboard off or has not
    /// read what was typed before: the keys are lost then, as on a real one. They are also lost while the machine is
    /// paused and while the device is not attached.
    pub fn press_ctrl_alt_del(&self) -> bool {
        let mut inner = self.0.lock();
        let typed = inner.running && inner.controller.press_ctrl_alt_del();
        if typed {
            inner.presses += 1;
        } else {
            inner.lost_presses += 1;
        }
        inner.raise();
        typed
    }
}

impl Inner {
    fn reset(&mut self) {
        self.controller = Controller::new();
        self.reported = false;
    }

    fn raise(&mut self) {
        if !self.controller.take_edge() {
            return;
        }
        let Some(Err(e)) = self.irq.as_ref().map(|irq| irq.signal()) else { return };
        if !std::mem::replace(&mut self.reported, true) {
            self.events.report(DeviceEvent::HostError { reason: format!("keyboard interrupt: {e}") });
        }
    }
}

impl SharedController {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn access<T>(&self, f: impl FnOnce(&mut Controller) -> T) -> T {
        let mut inner = self.lock();
        let result = f(&mut inner.controller);
        inner.raise();
        result
    }

    fn effect(&self, asks: Asks) -> Effect {
        match asks {
            Asks::Nothing => Effect::None,
            Asks::Reset => {
                self.lock().resets += 1;
                Effect::Vm(VmRequest::Reset)
            }
        }
    }
}

/// Port 0x60.
struct DataPort(Arc<SharedController>);

impl Mmio for DataPort {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        register::byte(at, 1)?;
        Ok(self.0.access(Controller::read_data).into())
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        register::byte(at, 1)?;
        let asks = self.0.access(|controller| controller.write_data(value as u8));
        Ok(self.0.effect(asks))
    }
}

/// Port 0x64: status when read, commands when written.
struct CommandPort(Arc<SharedController>);

impl Mmio for CommandPort {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        register::byte(at, 1)?;
        Ok(self.0.access(|controller| controller.status()).into())
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        register::byte(at, 1)?;
        let asks = self.0.access(|controller| controller.command(value as u8));
        Ok(self.0.effect(asks))
    }
}

impl Device for I8042 {
    fn id(&self) -> &str {
        &self.id
    }

    fn requires(&self) -> Requires {
        Requires::new()
            .registers(RegistersRequest::ports(DATA, 1).fixed(0x60))
            .registers(RegistersRequest::ports(COMMAND, 1).fixed(0x64))
            .interrupt(InterruptRequest::edge(IRQ).fixed(1).rare())
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        let (data, command) = (assigned.registers(DATA)?, assigned.registers(COMMAND)?);
        let irq = assigned.interrupt(IRQ)?.clone();
        data.answer(Arc::new(DataPort(self.shared.clone())));
        command.answer(Arc::new(CommandPort(self.shared.clone())));
        let mut inner = self.shared.lock();
        inner.reset();
        inner.irq = Some(irq);
        inner.events = assigned.events().clone();
        Ok(NodeKind::I8042)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.shared.lock().running = false;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.shared.lock().running = true;
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.shared.lock().reset();
        Ok(())
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::Saved(Handover::new(self.shared.lock().controller.state().save())))
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        let controller = Controller::restored(ControllerState::load(&handover.state)?)?;
        self.shared.lock().controller = controller;
        Ok(())
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        let mut inner = self.shared.lock();
        inner.running = false;
        inner.irq = None;
        inner.events = EventSink::discard();
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        // The lock, and the interrupt.
        &[Syscall("futex"), Syscall("ioctl")]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        let inner = self.shared.lock();
        visitor.counter("reset_requests", "Resets that the guest asked for.", inner.resets);
        visitor.counter(
            "ctrl_alt_del_presses",
            "Ctrl-Alt-Del presses that the guest was sent.",
            inner.presses,
        );
        visitor.counter(
            "lost_ctrl_alt_del_presses",
            "Ctrl-Alt-Del presses that the guest had no room for.",
            inner.lost_presses,
        );
    }
}

#[cfg(test)]
mod tests;
