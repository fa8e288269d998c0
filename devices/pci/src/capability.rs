//! Capabilities: the linked list of records in configuration space.

use std::fmt;
use std::sync::Arc;

use ossature_bus::{Access, BusFault, DeviceError, Effect, Mmio};

use crate::space::{ConfigSpace, LEN, reg};

/// Capability ids (PCI Local Bus 3.0, appendix H).
const VENDOR_SPECIFIC: u8 = 0x09;
pub(crate) const MSIX: u8 = 0x11;

/// What answers accesses to a capability whose bytes are more than memory.
pub trait CapabilityPort: Send + Sync {
    /// What the guest reads at `at`, whose offset counts from the start of the capability; `None` for what is in its
    /// bytes.
    fn read(&self, bytes: &[u8], at: Access, bars: &Bars) -> Option<u64>;
    /// The guest has written `value`; what of it can be written is in the capability's bytes already.
    fn write(&self, bytes: &[u8], at: Access, value: u64, bars: &Bars) -> Effect;
}

/// One capability of a function.
#[derive(Clone)]
#[non_exhaustive]
pub struct Capability {
    /// Its id.
    pub id: u8,
    /// Its bytes behind id and pointer to the next one.
    pub body: Vec<u8>,
    /// The bits of these that the guest can write; those that are not there are read-only.
    pub writable: Vec<u8>,
    port: Option<Arc<dyn CapabilityPort>>,
}

impl Capability {
    /// Capability `id` with this body, read-only.
    pub fn new(id: u8, body: impl Into<Vec<u8>>) -> Self {
        Self { id, body: body.into(), writable: Vec::new(), port: None }
    }

    /// A vendor-specific one: `body` follows the byte of the length, which is put before it.
    pub fn vendor(body: &[u8]) -> Self {
        let len = u8::try_from(body.len().saturating_add(3)).unwrap_or(u8::MAX);
        Self::new(VENDOR_SPECIFIC, [&[len], body].concat())
    }

    /// The same, where the guest can write these bits of the body.
    #[must_use]
    pub fn writable(mut self, bits: impl Into<Vec<u8>>) -> Self {
        self.writable = bits.into();
        self
    }

    /// The same with `port` to answer accesses to it.
    #[must_use]
    pub fn with_port(mut self, port: Arc<dyn CapabilityPort>) -> Self {
        self.port = Some(port);
        self
    }
}

impl fmt::Debug for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, body, writable, port: _ } = self;
        let mut shown = f.debug_struct("Capability");
        shown.field("id", id).field("body", body).field("writable", writable).finish_non_exhaustive()
    }
}

/// A capability that is answered by a port, and where it is.
pub(crate) struct Answered {
    pub(crate) start: u8,
    pub(crate) len: usize,
    pub(crate) port: Arc<dyn CapabilityPort>,
}

/// Puts the list into `space`. Returns where each capability is, and those that a port answers.
pub(crate) fn define(
    list: &[Capability],
    space: &mut ConfigSpace,
) -> Result<(Vec<u8>, Vec<Answered>), DeviceError> {
    let (mut starts, mut answered) = (Vec::new(), Vec::new());
    // The pointer to the next one.
    let mut pointer = None;
    let mut at = usize::from(reg::FIRST_CAPABILITY);
    for Capability { id, body, writable, port } in list {
        let len = body.len().saturating_add(2);
        let start = u8::try_from(at).ok().filter(|_| at.saturating_add(len) <= LEN);
        let start = start
            .ok_or_else(|| DeviceError::new(format!("no room for capability {id:#x} of {len} bytes")))?;
        match pointer {
            None => space.set_first_capability(start),
            Some(pointer) => space.define(pointer, &[start]),
        }
        space.define(start, &[*id]);
        // They begin at multiples of 4 below 256.
        space.define(start + 2, body);
        space.allow(start + 2, writable.get(..body.len()).unwrap_or(writable));
        pointer = Some(start + 1);
        starts.push(start);
        answered.extend(port.iter().map(|port| Answered { start, len, port: Arc::clone(port) }));
        at = at.saturating_add(len).next_multiple_of(4);
    }
    Ok((starts, answered))
}

/// What answers a function's BARs, wherever they are.
pub struct Bars(pub(crate) Vec<(u8, u64, Arc<dyn Mmio>)>);

impl Bars {
    fn find(&self, bar: u8, at: Access) -> Result<&Arc<dyn Mmio>, BusFault> {
        let (_, size, port) = self.0.iter().find(|(index, ..)| *index == bar).ok_or(BusFault::Unmapped)?;
        match at.offset.checked_add(at.size.bytes()) {
            _ if !at.offset.is_multiple_of(at.size.bytes()) => Err(BusFault::Alignment),
            Some(end) if end <= *size => Ok(port),
            _ if at.offset < *size => Err(BusFault::Crosses),
            _ => Err(BusFault::Unmapped),
        }
    }

    /// Reads a register in BAR `bar`, whether or not the function decodes its addresses.
    pub fn read(&self, bar: u8, at: Access) -> Result<u64, BusFault> {
        self.find(bar, at)?.read(at)
    }

    /// Writes one.
    pub fn write(&self, bar: u8, at: Access, value: u64) -> Result<Effect, BusFault> {
        self.find(bar, at)?.write(at, value)
    }
}

impl fmt::Debug for Bars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(index, size, _)| (index, size))).finish()
    }
}
