//! Interrupts as devices raise them: edges, levels and messages, whatever carries them to the guest.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::Event;

/// What stands behind an [`Interrupt`]: a line of an interrupt controller, a message, a transport that notes a cause
/// first. Its methods are called from any thread and do not wait.
pub trait InterruptTarget: Send + Sync {
    /// Raises one edge; on a level line, asserts it.
    fn signal(&self) -> io::Result<()>;
    /// Asserts or deasserts a level line. On an edge line, asserting raises one edge and deasserting does nothing.
    fn set_level(&self, asserted: bool) -> io::Result<()>;
    /// A descriptor that stands for [`signal`](Self::signal) and can be handed to the kernel or to another process;
    /// `None` where each signal has to go through this target.
    fn event(&self) -> Option<&Arc<Event>>;
    /// Readable each time the guest has acknowledged a level interrupt, where the device asked for that.
    fn resample(&self) -> Option<&Arc<Event>>;
}

/// One interrupt of a device. Clones raise the same one.
///
/// ```
/// use std::sync::Arc;
/// use ossature_bus::{Event, Interrupt};
///
/// let event = Arc::new(Event::new()?);
/// let interrupt = Interrupt::from(event.clone());
/// interrupt.signal()?;
/// interrupt.signal()?;
/// assert_eq!(event.take()?, 2);
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone)]
pub struct Interrupt(Arc<dyn InterruptTarget>);

impl Interrupt {
    /// An interrupt that `target` carries on.
    pub fn new(target: Arc<dyn InterruptTarget>) -> Self {
        Self(target)
    }

    /// Raises one edge. A level line is asserted and stays so until [`deassert`](Self::deassert).
    pub fn signal(&self) -> io::Result<()> {
        self.0.signal()
    }

    /// Asserts a level line: the guest is interrupted until it is deasserted. Asserting it again changes nothing. On
    /// an edge line, raises one edge.
    pub fn assert(&self) -> io::Result<()> {
        self.0.set_level(true)
    }

    /// Deasserts a level line. One that several devices share stays asserted until each has done so. On an edge line,
    /// does nothing.
    pub fn deassert(&self) -> io::Result<()> {
        self.0.set_level(false)
    }

    /// An event whose signals raise this interrupt, for the kernel (irqfd, vhost) or another process; `None` where
    /// there is no such descriptor.
    pub fn event(&self) -> Option<&Arc<Event>> {
        self.0.event()
    }

    /// An event that is signalled each time the guest has acknowledged this level interrupt: a device whose condition
    /// persists then asserts it again. `None` unless the request asked for it.
    pub fn resample(&self) -> Option<&Arc<Event>> {
        self.0.resample()
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Interrupt")
    }
}

/// An edge interrupt: each signal of the event is one edge.
impl From<Arc<Event>> for Interrupt {
    fn from(event: Arc<Event>) -> Self {
        Self(Arc::new(EdgeEvent(event)))
    }
}

struct EdgeEvent(Arc<Event>);

impl InterruptTarget for EdgeEvent {
    fn signal(&self) -> io::Result<()> {
        self.0.signal()
    }

    fn set_level(&self, asserted: bool) -> io::Result<()> {
        if asserted { self.0.signal() } else { Ok(()) }
    }

    fn event(&self) -> Option<&Arc<Event>> {
        Some(&self.0)
    }

    fn resample(&self) -> Option<&Arc<Event>> {
        None
    }
}

/// A message-signalled interrupt: what is written where (PCI Local Bus 3.0, section 6.8), and by whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct MsiMessage {
    /// Address.
    pub address: u64,
    /// Data.
    pub data: u32,
    /// Who sends it: of a PCI function, its bus, device and function number. Arm's interrupt controllers have a table of
    /// interrupts for each sender (ITS); others do not care.
    pub requester: u32,
}

impl MsiMessage {
    /// A write of `data` to `address`, by requester 0.
    pub const fn new(address: u64, data: u32) -> Self {
        Self { address, data, requester: 0 }
    }

    /// The same from this sender.
    #[must_use]
    pub const fn from_requester(mut self, requester: u32) -> Self {
        self.requester = requester;
        self
    }
}

/// What stands behind a [`MessageInterrupt`].
pub trait MessageTarget: InterruptTarget {
    /// Sets what is sent. A masked message is sent from when it is unmasked.
    fn set_message(&self, message: MsiMessage) -> io::Result<()>;
    /// Masks or unmasks the message. What is signalled while it is masked becomes pending, and is sent once when it is
    /// unmasked.
    fn set_masked(&self, masked: bool) -> io::Result<()>;
    /// Returns true if the message was signalled while it was masked.
    fn is_pending(&self) -> bool;
    /// Forgets that the message was signalled while it was masked: it is as if it had not been.
    fn forget_pending(&self);
}

/// One message-signalled interrupt of a device, as an MSI-X table programs it (PCI Local Bus 3.0, section 6.8.2). It
/// begins masked.
#[derive(Clone)]
pub struct MessageInterrupt {
    target: Arc<dyn MessageTarget>,
    interrupt: Interrupt,
}

impl MessageInterrupt {
    /// A message that `target` sends.
    pub fn new<T: MessageTarget + 'static>(target: Arc<T>) -> Self {
        Self { interrupt: Interrupt::new(target.clone()), target }
    }

    /// The interrupt itself, to raise it.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Sets what is sent.
    pub fn set_message(&self, message: MsiMessage) -> io::Result<()> {
        self.target.set_message(message)
    }

    /// Keeps signals back from now on.
    pub fn mask(&self) -> io::Result<()> {
        self.target.set_masked(true)
    }

    /// Sends signals again, and what is pending once.
    pub fn unmask(&self) -> io::Result<()> {
        self.target.set_masked(false)
    }

    /// Returns true if it was signalled while it was masked.
    pub fn is_pending(&self) -> bool {
        self.target.is_pending()
    }

    /// Forgets that it was signalled while it was masked, as a reset does. It has to be masked still.
    pub fn forget_pending(&self) {
        self.target.forget_pending();
    }
}

impl fmt::Debug for MessageInterrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MessageInterrupt")
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests;
