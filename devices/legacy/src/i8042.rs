//! An i8042 keyboard controller with a keyboard that knows one combination of keys.

mod controller;
mod keyboard;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_bus::state::{SavedState, StateError};
use ossature_bus::{
    Access, Assigned, AttachError, Attached, BusFault, Device, DeviceError, DeviceEvent, Effect, Event,
    EventSink, MetricVisitor, Mmio, NodeHint, Placement, Requires, State, Syscall, VmRequest,
};

use crate::register;
use controller::{Asks, Controller};
use state::ControllerState;

/// A PC's keyboard controller (Intel 8042; IBM PS/2 Technical Reference, "Keyboard and Auxiliary Device
/// Controller") at I/O ports 0x60 and 0x64, interrupt 1, with an AT keyboard and no mouse.
///
/// Guests reset the machine through it, and the VMM presses Ctrl-Alt-Del by [`Keyboard`]. Ports 0x61 to 0x63 are
/// not its.
#[derive(Debug)]
pub struct I8042 {
    id: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    controller: Controller,
    irq: Option<Arc<Event>>,
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
            events: EventSink::discard(),
            reported: false,
            resets: 0,
            presses: 0,
            lost_presses: 0,
        };
        Self { id: id.into(), shared: Arc::new(Shared { inner: Mutex::new(inner) }) }
    }

    /// The keyboard, for the VMM.
    pub fn keyboard(&self) -> Keyboard {
        Keyboard(self.shared.clone())
    }
}

/// The keyboard of an [`I8042`]: a clonable handle.
#[derive(Clone, Debug)]
pub struct Keyboard(Arc<Shared>);

impl Keyboard {
    /// Presses and releases Ctrl, Alt and Del. `false` if the guest has switched the keyboard off or has not
    /// read what was typed before: the keys are lost then, as on a real one.
    pub fn press_ctrl_alt_del(&self) -> bool {
        let mut inner = self.0.lock();
        let typed = inner.controller.press_ctrl_alt_del();
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

impl Shared {
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
struct DataPort(Arc<Shared>);

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
struct CommandPort(Arc<Shared>);

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
        Requires {
            ranges: vec![register::ports(0x60, 1), register::ports(0x64, 1)],
            interrupts: vec![register::interrupt(Placement::Fixed(1))],
            ..Requires::default()
        }
    }

    fn attach(&mut self, assigned: Assigned) -> Result<Attached, AttachError> {
        let mut inner = self.shared.lock();
        inner.irq = assigned.interrupts.into_iter().next();
        inner.events = assigned.events;
        drop(inner);
        let data = Arc::new(DataPort(self.shared.clone()));
        let command = Arc::new(CommandPort(self.shared.clone()));
        Ok(Attached { ports: vec![data, command], node: NodeHint::I8042 })
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        let mut inner = self.shared.lock();
        inner.controller = Controller::new();
        inner.reported = false;
        Ok(())
    }

    fn state(&self) -> State {
        State::Saved(self.shared.lock().controller.state().save())
    }

    fn restore(&mut self, state: &SavedState<'_>) -> Result<(), StateError> {
        let controller = Controller::restored(ControllerState::load(state)?)?;
        self.shared.lock().controller = controller;
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        // The lock, and the interrupt's eventfd.
        &[Syscall("futex"), Syscall("write")]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        let inner = self.shared.lock();
        visitor.counter("reset_requests", inner.resets);
        visitor.counter("ctrl_alt_del_presses", inner.presses);
        visitor.counter("lost_ctrl_alt_del_presses", inner.lost_presses);
    }
}

#[cfg(test)]
mod tests;
