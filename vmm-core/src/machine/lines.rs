//! What stands behind devices' interrupts in a machine: lines, shared lines, messages.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ossature_bus::{Event, Interrupt, InterruptTarget, MessageTarget, MsiMessage};

use crate::{Irqfd, MsiRoute, Vm, VmError};

/// The machine is gone, or the hypervisor refused: to a device, the host's failure.
fn failed(error: VmError) -> io::Error {
    io::Error::other(error)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The level lines of a machine.
#[derive(Debug, Default)]
pub(super) struct Lines(Mutex<BTreeMap<u32, Weak<SharedLine>>>);

/// A level line: asserted as long as one of its devices asserts it.
#[derive(Debug)]
struct SharedLine {
    // Devices may be kept longer than their machine.
    vm: Weak<dyn Vm>,
    gsi: u32,
    asserted_by: Mutex<u32>,
}

impl SharedLine {
    fn change(&self, change: impl FnOnce(u32) -> u32) -> io::Result<()> {
        let mut count = lock(&self.asserted_by);
        let (before, after) = (*count, change(*count));
        if (before == 0) != (after == 0) {
            let Some(vm) = self.vm.upgrade() else { return Ok(()) };
            vm.set_irq_line(self.gsi, after != 0).map_err(failed)?;
        }
        *count = after;
        Ok(())
    }
}

/// One device's part in a shared line. Dropping it deasserts the line on behalf of the device.
#[derive(Debug)]
struct Share {
    line: Arc<SharedLine>,
    asserted: Mutex<bool>,
}

impl InterruptTarget for Share {
    fn signal(&self) -> io::Result<()> {
        self.set_level(true)
    }

    fn set_level(&self, asserted: bool) -> io::Result<()> {
        let mut mine = lock(&self.asserted);
        if *mine == asserted {
            return Ok(());
        }
        self.line.change(|count| if asserted { count.saturating_add(1) } else { count.saturating_sub(1) })?;
        *mine = asserted;
        Ok(())
    }

    fn event(&self) -> Option<&Arc<Event>> {
        None
    }

    fn resample(&self) -> Option<&Arc<Event>> {
        None
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        // Nobody is left to tell of a failure.
        let _ = self.set_level(false);
    }
}

/// An edge line without a descriptor: each edge is a call of the hypervisor.
#[derive(Debug)]
struct CalledLine {
    vm: Weak<dyn Vm>,
    gsi: u32,
}

impl InterruptTarget for CalledLine {
    fn signal(&self) -> io::Result<()> {
        let Some(vm) = self.vm.upgrade() else { return Ok(()) };
        vm.raise_edge(self.gsi).map_err(failed)
    }

    fn set_level(&self, asserted: bool) -> io::Result<()> {
        if asserted { self.signal() } else { Ok(()) }
    }

    fn event(&self) -> Option<&Arc<Event>> {
        None
    }

    fn resample(&self) -> Option<&Arc<Event>> {
        None
    }
}

impl Lines {
    /// Edge line `gsi`, of a device that raises it rarely.
    pub(super) fn called(&self, vm: &Arc<dyn Vm>, gsi: u32) -> Result<Interrupt, VmError> {
        vm.check_edge_line(gsi)?;
        Ok(Interrupt::new(Arc::new(CalledLine { vm: Arc::downgrade(vm), gsi })))
    }

    /// A device's part in level line `gsi`.
    pub(super) fn share(&self, vm: &Arc<dyn Vm>, gsi: u32) -> Result<Interrupt, VmError> {
        let mut lines = lock(&self.0);
        let line = match lines.get(&gsi).and_then(Weak::upgrade) {
            Some(line) => line,
            None => {
                vm.set_irq_line(gsi, false)?;
                let line = SharedLine { vm: Arc::downgrade(vm), gsi, asserted_by: Mutex::new(0) };
                let line = Arc::new(line);
                lines.insert(gsi, Arc::downgrade(&line));
                line
            }
        };
        Ok(Interrupt::new(Arc::new(Share { line, asserted: Mutex::new(false) })))
    }
}

/// A level line whose acknowledgements the device is told of: the kernel deasserts it with each.
#[derive(Debug)]
pub(super) struct Resampled {
    pub(super) event: Arc<Event>,
    pub(super) resample: Arc<Event>,
}

impl InterruptTarget for Resampled {
    fn signal(&self) -> io::Result<()> {
        self.event.signal()
    }

    fn set_level(&self, asserted: bool) -> io::Result<()> {
        if asserted { self.event.signal() } else { Ok(()) }
    }

    fn event(&self) -> Option<&Arc<Event>> {
        Some(&self.event)
    }

    fn resample(&self) -> Option<&Arc<Event>> {
        Some(&self.resample)
    }
}

/// A message-signalled interrupt. Its route exists from when it is first unmasked, and its event reaches the guest while
/// it is not masked: what is signalled meanwhile stays in the event.
#[derive(Debug)]
pub(super) struct Message {
    vm: Weak<dyn Vm>,
    event: Arc<Event>,
    state: Mutex<MessageState>,
}

#[derive(Debug, Default)]
struct MessageState {
    /// Its device has been disconnected.
    gone: bool,
    message: MsiMessage,
    pending: bool,
    // Disconnected before its route goes away: fields are dropped in this order.
    connected: Option<Irqfd>,
    route: Option<MsiRoute>,
}

impl Message {
    pub(super) fn new(vm: &Arc<dyn Vm>, event: Arc<Event>) -> Self {
        Self { vm: Arc::downgrade(vm), event, state: Mutex::default() }
    }

    /// Gives up its place in the hypervisor for good: handles to it may be kept by a device.
    pub(super) fn disconnect(&self) {
        *lock(&self.state) = MessageState { gone: true, ..MessageState::default() };
    }

    fn unmask(&self, state: &mut MessageState) -> io::Result<()> {
        if state.connected.is_some() || state.gone {
            return Ok(());
        }
        let Some(vm) = self.vm.upgrade() else { return Ok(()) };
        let route = match &state.route {
            Some(route) => route,
            None => state.route.insert(vm.add_msi_route(state.message).map_err(failed)?),
        };
        // An event that has been signalled raises its interrupt when it is connected.
        state.connected = Some(vm.irqfd(&self.event, route.gsi(), None).map_err(failed)?);
        if std::mem::take(&mut state.pending) {
            self.event.signal()?;
        }
        Ok(())
    }
}

impl InterruptTarget for Message {
    fn signal(&self) -> io::Result<()> {
        self.event.signal()
    }

    fn set_level(&self, asserted: bool) -> io::Result<()> {
        if asserted { self.event.signal() } else { Ok(()) }
    }

    fn event(&self) -> Option<&Arc<Event>> {
        Some(&self.event)
    }

    fn resample(&self) -> Option<&Arc<Event>> {
        None
    }
}

impl MessageTarget for Message {
    fn set_message(&self, message: MsiMessage) -> io::Result<()> {
        let mut state = lock(&self.state);
        if let Some(route) = state.route.as_ref().filter(|_| state.message != message) {
            route.set(message).map_err(failed)?;
        }
        state.message = message;
        Ok(())
    }

    fn set_masked(&self, masked: bool) -> io::Result<()> {
        let mut state = lock(&self.state);
        if masked {
            state.connected = None;
            return Ok(());
        }
        self.unmask(&mut state)
    }

    fn is_pending(&self) -> bool {
        let mut state = lock(&self.state);
        // While it is connected the kernel takes the signals.
        if state.connected.is_none() && self.event.take().is_ok_and(|signals| signals > 0) {
            state.pending = true;
        }
        state.pending
    }

    fn forget_pending(&self) {
        let mut state = lock(&self.state);
        // As above.
        if state.connected.is_none() {
            let _ = self.event.take();
            state.pending = false;
        }
    }
}

#[cfg(test)]
mod tests;
