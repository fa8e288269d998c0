//! What the kernel says of its rings: errors, and interrupts that no event of the machine stands for.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ossature_bus::{Event, Interrupt};

use crate::{Failure, FailureSink, Interest, QueueBroken, Removed, Source, Turn, VirtQueue, Worker};

/// The events of a ring, for as long as its device is active.
pub(super) struct Wire {
    pub(super) error: Event,
    pub(super) call: Event,
    /// What a call raises, while the ring runs and has no event of the machine.
    interrupt: Mutex<Option<Interrupt>>,
    failed: AtomicBool,
}

impl Wire {
    pub(super) fn new() -> io::Result<Self> {
        let (error, call) = (Event::new()?, Event::new()?);
        Ok(Self { error, call, interrupt: Mutex::default(), failed: AtomicBool::new(false) })
    }

    /// Says what calls raise from now on; raises what nobody has passed on before.
    pub(super) fn connect(&self, interrupt: Option<Interrupt>) {
        let mut now = self.interrupt.lock().unwrap_or_else(PoisonError::into_inner);
        self.pass_on(now.as_ref());
        *now = interrupt;
    }

    fn relay(&self) {
        // Locked until it is passed on: what is saved after `connect` has it.
        let interrupt = self.interrupt.lock().unwrap_or_else(PoisonError::into_inner);
        self.pass_on(interrupt.as_ref());
    }

    fn pass_on(&self, interrupt: Option<&Interrupt>) {
        let Some(interrupt) = interrupt else { return };
        if self.call.take().is_ok_and(|calls| calls > 0) {
            // As in `VirtQueue::flush`: nobody is left to tell.
            let _ = interrupt.signal();
        }
    }

    /// Returns true if the kernel could not make sense of the ring.
    pub(super) fn has_failed(&self) -> bool {
        if self.error.take().is_ok_and(|errors| errors > 0) {
            self.failed.store(true, Ordering::Relaxed);
        }
        self.failed.load(Ordering::Relaxed)
    }
}

/// Waits for them.
pub(super) struct Relay {
    pub(super) wires: Arc<[Wire]>,
    /// The tokens of its sources begin here: two for each ring.
    pub(super) first: u16,
    pub(super) failure: FailureSink,
}

impl Worker for Relay {
    fn sources(&self) -> Vec<Source> {
        let events = self.wires.iter().flat_map(|wire| [&wire.error, &wire.call]);
        let source = |(token, event): (u16, &Event)| Source {
            token,
            fd: event.as_raw_fd(),
            interest: Interest::Readable,
        };
        (self.first..).zip(events).map(source).collect()
    }

    fn add_queue(&mut self, _: VirtQueue) {
        // The kernel has them all.
    }

    fn remove_queue(&mut self, _: u16) -> Removed {
        Removed::Unknown
    }

    fn turn(&mut self, token: u16) -> Result<Turn, QueueBroken> {
        let at = token.wrapping_sub(self.first);
        if let Some(wire) = self.wires.get(usize::from(at / 2)) {
            if at % 2 == 1 {
                wire.relay();
            } else if wire.has_failed() {
                let reason = format!("the host's kernel (vhost) cannot make sense of ring {}", at / 2);
                self.failure.report(Failure::NeedsReset { reason });
            }
        }
        Ok(Turn::Sleep)
    }
}
