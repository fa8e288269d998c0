//! Interrupts of ours as triggers of theirs, and back.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use ossature_bus::{Event, Interrupt, InterruptTarget};

use super::Trigger;

/// An [`Interrupt`] as the trigger of a device of vm-superio's.
///
/// ```
/// use std::sync::Arc;
/// use ossature_bus::Event;
/// use ossature_rust_vmm::vm_superio::{InterruptTrigger, Serial};
///
/// let event = Arc::new(Event::new()?);
/// let mut serial = Serial::new(InterruptTrigger(event.clone().into()), std::io::sink());
/// serial.write(1, 0x02).unwrap(); // the transmitter's interrupt, which is due at once
/// assert_eq!(event.take()?, 1);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct InterruptTrigger(pub Interrupt);

impl Trigger for InterruptTrigger {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.signal()
    }
}

/// A trigger as an edge-triggered [`Interrupt`]. It has no descriptor: each edge is a call.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use ossature_rust_vmm::vm_superio::{Trigger, interrupt};
///
/// struct Counts(Arc<AtomicU64>);
///
/// impl Trigger for Counts {
///     type E = ();
///     fn trigger(&self) -> Result<(), ()> {
///         self.0.fetch_add(1, Ordering::Relaxed);
///         Ok(())
///     }
/// }
///
/// let count = Arc::new(AtomicU64::new(0));
/// let interrupt = interrupt(Counts(count.clone()));
/// interrupt.signal()?;
/// interrupt.assert()?;
/// interrupt.deassert()?;
/// assert_eq!(count.load(Ordering::Relaxed), 2);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn interrupt(trigger: impl Trigger + Send + Sync + 'static) -> Interrupt {
    Interrupt::new(Arc::new(TriggerTarget(trigger)))
}

struct TriggerTarget<T>(T);

impl<T: Trigger<E: Debug> + Send + Sync> InterruptTarget for TriggerTarget<T> {
    fn signal(&self) -> io::Result<()> {
        self.0.trigger().map_err(|error| io::Error::other(format!("{error:?}")))
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
