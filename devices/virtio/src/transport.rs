//! What all virtio transports share: status, negotiation, queue registers, and the life of the device.
//! A transport itself only decodes registers over it.

pub(crate) mod core;
mod life;
mod mail;
pub(crate) mod mmio;
mod negotiation;
pub(crate) mod pci;
mod state;
pub(crate) mod status;
#[cfg(test)]
mod tests;

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

use ossature_bus::{DeviceError, EventSink, MetricVisitor};
use ossature_memory::Dma;

use self::core::{Core, Shared, Wires};
use self::mail::{Letter, Mailbox};
use crate::{Activation, ConfigInterrupt, DeviceInfo, FailureSink};

/// The largest queue there is (2.7).
const MAX_QUEUE_SIZE: u16 = 32768;

/// What the guest reads: brought up to date under the core's lock after every change.
pub(crate) trait View: Send + Sync {
    /// Shows `core`.
    fn show(&self, core: &Core);
}

/// A virtio device behind some transport.
///
/// The core's lock belongs to the control plane. Whoever holds it, a vCPU or the VMM, may wait for the turns of a worker
/// whose queue is to stop. Workers never wait for it: they leave a letter, which whoever holds the lock reads before it
/// leaves.
pub(crate) struct Transport<V> {
    core: Mutex<Core>,
    mail: Arc<Mailbox>,
    view: V,
    events: EventSink,
}

impl<V: View + 'static> Transport<V> {
    pub(crate) fn new(device: Shared, wires: Wires, view: V, dma: Dma, events: EventSink) -> Arc<Self> {
        let transport = Arc::new_cyclic(|this| {
            let mail = Arc::new(Mailbox::default());
            let activation = Self::activation(this, dma, &events);
            let core = Mutex::new(Core::new(device, wires, activation, mail.clone()));
            Self { core, mail, view, events }
        });
        transport.with(|_| ());
        transport
    }

    /// What the device is told, by which it reaches `this`.
    fn activation(this: &Weak<Self>, dma: Dma, events: &EventSink) -> Activation {
        let post = {
            let this = this.clone();
            move |letter| {
                if let Some(transport) = this.upgrade() {
                    transport.post(letter);
                }
            }
        };
        let config = post.clone();
        Activation {
            config: ConfigInterrupt::new(move || config(Letter { config: true, ..Letter::default() })),
            failure: FailureSink::new(move |failure| post(failure.into())),
            events: events.clone(),
            ..Activation::new(0, dma)
        }
    }

    pub(crate) fn view(&self) -> &V {
        &self.view
    }

    /// Runs `f` on the core, reads the mail, and shows the guest what has become of it.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Core) -> R) -> R {
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        let result = f(&mut core);
        self.apply(core);
        result
    }

    /// Leaves a letter; never waits.
    fn post(&self, letter: Letter) {
        self.mail.post(letter);
        // Either we get the lock, or its holder sees the letter after it has let go: see `apply`.
        fence(Ordering::SeqCst);
        match self.core.try_lock() {
            Ok(core) => self.apply(core),
            Err(TryLockError::Poisoned(core)) => self.apply(core.into_inner()),
            Err(TryLockError::WouldBlock) => {}
        }
    }

    fn apply<'a>(&'a self, mut core: MutexGuard<'a, Core>) {
        loop {
            core.read_mail();
            // Where it was, another device may show its registers by now.
            if !core.is_gone() {
                self.view.show(&core);
            }
            // After the guest can read why.
            core.raise();
            let reports = std::mem::take(&mut core.reports.events);
            drop(core);
            reports.into_iter().for_each(|event| self.events.report(event));
            fence(Ordering::SeqCst);
            if self.mail.is_empty() {
                return;
            }
            core = match self.core.try_lock() {
                Ok(core) => core,
                Err(TryLockError::Poisoned(core)) => core.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
        }
    }

    /// Back to the state before any driver came, as a machine reset asks for.
    pub(crate) fn reset(&self) -> Result<(), DeviceError> {
        self.with(|core| {
            core.forget_reports();
            core.reset()
        })
    }

    /// Stops all queues; the device holds nothing.
    pub(crate) fn quiesce(&self) -> Result<(), DeviceError> {
        self.with(Core::quiesce)
    }

    /// Goes on. Returns true if queues run that did not.
    pub(crate) fn resume(&self) -> Result<bool, DeviceError> {
        self.with(Core::resume)
    }

    /// Leaves the device, as if no driver had ever come.
    pub(crate) fn leave(&self) -> Result<(), DeviceError> {
        self.with(|core| {
            let quiet = core.quiesce();
            let reset = core.reset();
            core.let_go();
            quiet.and(reset)
        })
    }
}

/// Fails if a device has queues that no transport has.
fn check_queues(info: &DeviceInfo) -> Result<(), DeviceError> {
    match info.queues.iter().find(|size| !size.is_power_of_two() || **size > MAX_QUEUE_SIZE) {
        Some(size) => {
            let reason = format!("a queue of {size}: sizes are powers of two up to {MAX_QUEUE_SIZE}");
            Err(DeviceError::new(reason))
        }
        None => Ok(()),
    }
}

/// Shows the counters of a transport.
fn show_counts<V: View + 'static>(transport: &Transport<V>, visitor: &mut dyn MetricVisitor) {
    let counts = transport.with(|core| core.counts);
    visitor.counter(
        "needs_resets",
        "Times that the driver broke a ring, or a worker panicked: the device needed a reset.",
        counts.needs_resets,
    );
    visitor.counter(
        "ignored_writes",
        "Writes of the driver to registers that the specification forbids.",
        counts.ignored_writes,
    );
}
