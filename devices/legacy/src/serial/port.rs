//! A serial port as its vCPUs, its turns on an event loop and its handles share it, under one lock. Nothing waits under
//! the lock.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ossature_bus::state::{SavedState, StateError};
use ossature_bus::{
    Access, BusFault, DeviceEvent, Effect, EventSink, Handler, LoopHandle, MetricVisitor, Mmio, Panic,
    Source, Turn,
};
use rustix::event::PollFd;

use super::interrupt_line::InterruptLine;
use super::model::{Uart, Written};
use super::registers::TYPEAHEAD_CAPACITY;
use super::transfer::{Activity, Transfer};
use crate::backend::line::{FdLine, Line, poll};
use crate::escape::Escape;

/// Called with the escape keys in the line's input.
type OnKey = Box<dyn FnMut(Escape) + Send>;

pub(super) struct Port<U> {
    transfer: Mutex<Transfer<U>>,
    room: Condvar,
    on_key: Mutex<Option<OnKey>>,
}

impl<U> std::fmt::Debug for Port<U> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Port")
    }
}

impl<U: Uart> Port<U> {
    pub(super) fn new(uart: U, line: Box<dyn Line>, on_key: Option<OnKey>) -> Self {
        let transfer = Mutex::new(Transfer::new(uart, line, on_key.is_some()));
        Self { transfer, room: Condvar::new(), on_key: Mutex::new(on_key) }
    }

    fn lock(&self) -> MutexGuard<'_, Transfer<U>> {
        // A backend's writer may have panicked: no step leaves the registers half changed.
        self.transfer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The port is part of a machine, as new, and quiet from now on; `on_loop` gives it turns, if its line needs them.
    pub(super) fn attach(&self, line: InterruptLine, events: EventSink, on_loop: Option<LoopHandle>) {
        let mut transfer = self.lock();
        // Late accesses may have come since it was detached.
        transfer.release();
        (transfer.activity, transfer.withheld) = (Activity::Quiet, true);
        transfer.interrupt = Some(line);
        transfer.events = events;
        transfer.on_loop = on_loop;
    }

    /// After this no turn touches the UART or the line.
    pub(super) fn pause(&self) {
        let mut transfer = self.lock();
        // A port that is quiet already may have its output in a saved state.
        if transfer.activity == Activity::Running {
            transfer.activity = Activity::Quiet;
            transfer.send();
            transfer.follow_level();
        }
    }

    pub(super) fn resume(&self) {
        let mut transfer = self.lock();
        transfer.resume();
        let awaited = transfer.waiting > 0;
        drop(transfer);
        if awaited {
            self.room.notify_all();
        }
    }

    /// The state of a port that is quiet.
    pub(super) fn save(&self) -> SavedState<'static> {
        let mut transfer = self.lock();
        transfer.withheld |= transfer.activity == Activity::Quiet;
        let transfer = &mut *transfer;
        transfer.uart.save(transfer.typeahead.make_contiguous())
    }

    /// Takes over a state. The output in it is sent when the port is resumed.
    pub(super) fn restore(&self, state: &SavedState<'_>) -> Result<(), StateError> {
        let mut transfer = self.lock();
        let (uart, typeahead) = transfer.uart.restored(state)?;
        if typeahead.len().saturating_add(uart.unread()) > TYPEAHEAD_CAPACITY {
            return Err(StateError::Inconsistent { field: "typeahead", reason: "more than a port keeps" });
        }
        transfer.uart = uart;
        transfer.typeahead = typeahead.into();
        transfer.withheld = true;
        transfer.follow_level();
        Ok(())
    }

    pub(super) fn reset(&self) {
        let mut transfer = self.lock();
        transfer.uart.reset();
        transfer.reported = false;
        transfer.follow_level();
    }

    /// Gives the line up to `grace` to take what the guest has sent, then ends the port's work: no turn touches
    /// anything, and handles that wait give up.
    pub(super) fn finish(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        let mut transfer = self.lock();
        if transfer.activity == Activity::Running {
            transfer.activity = Activity::Quiet;
        }
        while !transfer.withheld && transfer.activity == Activity::Quiet {
            if let Err(panic) = Panic::catch(|| transfer.send()) {
                transfer.events.report(DeviceEvent::Panicked { message: panic.message });
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let awaited = transfer.line.watch(false, true);
            if transfer.uart.output().is_empty() || left.is_zero() || awaited.is_empty() {
                break;
            }
            drop(transfer);
            let fds = awaited.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(fd.as_fd(), *flags));
            let _ = poll(&mut fds.collect::<Vec<_>>(), Some(left));
            transfer = self.lock();
        }
        transfer.activity = Activity::Detached;
        drop(transfer);
        self.room.notify_all();
    }

    /// Lets go of the machine. The port is off its loop.
    pub(super) fn release(&self) {
        self.lock().release();
    }

    /// Closes the line: handles and the bus may keep the port's registers for longer.
    pub(super) fn close(&self) {
        self.lock().line = Box::new(FdLine { input: None, output: None });
    }

    /// Ends the guest's access, which took the lock: wakes the handles that can go on.
    fn after_guest(&self, mut transfer: MutexGuard<'_, Transfer<U>>, written: Written) {
        if transfer.after_guest(written) {
            self.room.notify_all();
        }
    }

    pub(super) fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        self.lock().metrics(visitor);
    }
}

/// A port as the handles that feed it know it.
pub(super) trait Receive: Send + Sync + std::fmt::Debug {
    /// Puts the first bytes of `input` into the receiver and returns how many it took.
    fn receive(&self, input: &[u8]) -> usize;
    /// Waits until the receiver has taken all of `input`; `NotConnected` while the port is not attached.
    fn receive_all(&self, input: &[u8]) -> io::Result<()>;
}

impl<U: Uart> Receive for Port<U> {
    fn receive(&self, input: &[u8]) -> usize {
        self.lock().receive(input)
    }

    fn receive_all(&self, mut input: &[u8]) -> io::Result<()> {
        let mut transfer = self.lock();
        loop {
            let n = transfer.receive(input);
            input = input.get(n..).unwrap_or_default();
            if transfer.activity == Activity::Detached {
                return Err(io::ErrorKind::NotConnected.into());
            }
            if input.is_empty() {
                return Ok(());
            }
            transfer.waiting += 1;
            transfer = self.room.wait(transfer).unwrap_or_else(PoisonError::into_inner);
            transfer.waiting -= 1;
        }
    }
}

impl<U: Uart> Mmio for Port<U> {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        let mut transfer = self.lock();
        let value = transfer.uart.read(at)?;
        self.after_guest(transfer, Written::Register);
        Ok(value)
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        let mut transfer = self.lock();
        let written = transfer.uart.write(at, value)?;
        self.after_guest(transfer, written);
        Ok(Effect::None)
    }
}

/// The port on its event loop.
#[derive(Debug)]
pub(super) struct PortTurns<U>(pub(super) Arc<Port<U>>);

impl<U: Uart> Handler for PortTurns<U> {
    fn sources(&self) -> Vec<Source> {
        // They change: see `Transfer::rewatch`.
        Vec::new()
    }

    fn turn(&mut self, _: u16) -> Turn {
        let (keys, turn) = self.0.lock().turn();
        if !keys.is_empty() {
            // Without the port's lock: the keys may do anything. The callback may have panicked before.
            let mut on_key = self.0.on_key.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(on_key) = on_key.as_mut() {
                keys.into_iter().for_each(on_key);
            }
        }
        turn
    }
}
