//! The VM generation ID: how a guest learns that it is a copy.

mod state;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_bus::state::StateError;
use ossature_bus::{
    Access, Assigned, BusFault, Device, DeviceError, DeviceState, Effect, Handover, Identity, Interrupt,
    InterruptRequest, MetricVisitor, Mmio, NodeKind, RegistersRequest, Requires, Syscall,
};
use ossature_memory::{RegisterPage, host_page_size};

use crate::register::{IRQ, REGISTERS};
use state::GenerationState;

/// Names one line of a machine's life: a UUID, by its bytes in the order in which it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GenerationId(pub [u8; 16]);

/// As UUIDs are written.
impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl GenerationId {
    /// One that nobody else has: random bytes of the host's, as a UUID of version 4.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Ok(Self(bytes))
    }

    /// As guests find it: a GUID, whose first three groups are little-endian numbers.
    fn in_memory(self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h, rest @ ..] = self.0;
        let [i, j, k, l, m, n, o, p] = rest;
        [d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p]
    }
}

/// A VM generation ID (Microsoft's "Virtual Machine Generation ID", 2012; Linux's driver `vmgenid`): 16 bytes that a
/// guest reads, and that are others whenever its machine goes on from a saved state, once more or somewhere else. An
/// interrupt tells the guest, which then draws new random numbers instead of those that each copy would draw.
///
/// The ID begins a page of its own, which the guest reads without an exit and cannot write. It is not part of guest
/// RAM: two machines that share their RAM have each their own.
///
/// [`restore`](Device::restore) changes the ID. It becomes the one that the device was given since the machine last
/// ran, if there is one and the saved state has another; a random one otherwise. The guest is told when the machine goes
/// on. With [`keep_when_restored`](Self::keep_when_restored) it is the saved one instead, unless the machine is a
/// [clone](Handover::to_clone). A machine that refuses a state
/// because of another device may have restored this one before: putting it back is a restore, too, and the ID another
/// one. Pauses, resets and reboots change nothing.
#[derive(Debug)]
pub struct VmGenId {
    id: String,
    keeps: bool,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    inner: Mutex<Inner>,
    changes: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    id: GenerationId,
    /// A guest may have seen the ID.
    used: bool,
    /// The guest has not been told of the ID yet.
    untold: bool,
    running: bool,
    attached: Option<(Arc<RegisterPage>, Interrupt)>,
}

impl VmGenId {
    /// A generation ID in the device `id`.
    ///
    /// ```
    /// use ossature_legacy::{GenerationId, VmGenId};
    ///
    /// let device = VmGenId::new("generation", GenerationId::random()?);
    /// let generation = device.generation();
    /// // Whenever it pleases the VMM, while the machine runs or is paused:
    /// generation.set(GenerationId::random()?)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn new(id: impl Into<String>, generation: GenerationId) -> Self {
        let inner = Inner { id: generation, used: false, untold: false, running: false, attached: None };
        let shared = Shared { inner: Mutex::new(inner), changes: AtomicU64::new(0) };
        Self { id: id.into(), keeps: false, shared: Arc::new(shared) }
    }

    /// Takes the ID of a saved state over with it, and tells the guest nothing. This is right only where the machine that
    /// was saved never runs again, and the state is never restored twice: when a machine has moved. Two machines that go
    /// on from one state with one ID draw the same random numbers.
    #[must_use]
    pub fn keep_when_restored(mut self) -> Self {
        self.keeps = true;
        self
    }

    /// The ID, for the VMM.
    pub fn generation(&self) -> Generation {
        Generation(self.shared.clone())
    }
}

/// The ID of a [`VmGenId`]: a clonable handle.
#[derive(Clone, Debug)]
pub struct Generation(Arc<Shared>);

impl Generation {
    /// The ID at present.
    pub fn get(&self) -> GenerationId {
        self.0.inner().id
    }

    /// Gives the guest another ID and tells it so. A machine that is paused is told when it goes on. On an error the ID
    /// has changed, and the guest is told when the machine next goes on.
    pub fn set(&self, id: GenerationId) -> io::Result<()> {
        self.0.changes.fetch_add(1, Ordering::Relaxed);
        self.0.inner().change(id)
    }
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn change(&mut self, id: GenerationId) -> io::Result<()> {
        // A guest that finds half of it reads it again, because it is told afterwards.
        (self.id, self.used, self.untold) = (id, self.running, true);
        self.show();
        if self.running { self.tell() } else { Ok(()) }
    }

    /// Writes the ID where the guest reads it.
    fn show(&self) {
        let Some((page, _)) = &self.attached else { return };
        let bytes = self.id.in_memory();
        let words = bytes.chunks_exact(4).filter_map(|word| word.first_chunk());
        for (offset, word) in (0..).step_by(4).zip(words) {
            page.store(offset, u32::from_le_bytes(*word));
        }
    }

    fn tell(&mut self) -> io::Result<()> {
        if let Some((_, interrupt)) = &self.attached {
            interrupt.signal()?;
        }
        self.untold = false;
        Ok(())
    }
}

/// For a machine that cannot have the guest read the page itself.
impl Mmio for Shared {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        let id = self.inner().id.in_memory();
        let byte = |index: u64| {
            let byte = usize::try_from(at.offset.saturating_add(index)).ok().and_then(|at| id.get(at));
            u64::from(byte.copied().unwrap_or(0)) << (8 * index)
        };
        Ok((0..at.size.bytes()).map(byte).sum())
    }

    fn write(&self, _: Access, _: u64) -> Result<Effect, BusFault> {
        Err(BusFault::ReadOnly)
    }
}

impl Device for VmGenId {
    fn id(&self) -> &str {
        &self.id
    }

    fn requires(&self) -> Requires {
        Requires::new()
            .registers(RegistersRequest::memory(REGISTERS, host_page_size() as u64).with_page())
            .interrupt(InterruptRequest::edge(IRQ).rare())
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        let interrupt = assigned.interrupt(IRQ)?.clone();
        let registers = assigned.registers(REGISTERS)?;
        let page = registers.page().ok_or_else(|| DeviceError::new("the machine gave no page"))?;
        registers.answer(self.shared.clone());
        let mut inner = self.shared.inner();
        inner.attached = Some((page.clone(), interrupt));
        // A guest that starts reads it.
        inner.untold = false;
        inner.show();
        Ok(NodeKind::VmGenId)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.shared.inner().running = false;
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        let mut inner = self.shared.inner();
        if inner.untold {
            let failed =
                |e| DeviceError::new("the guest cannot be told of its new generation").with_source(e);
            inner.tell().map_err(failed)?;
        }
        (inner.running, inner.used) = (true, true);
        Ok(())
    }

    /// The ID stays: a guest that starts anew reads it.
    fn reset(&mut self) -> Result<(), DeviceError> {
        self.shared.inner().untold = false;
        Ok(())
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        let inner = self.shared.inner();
        let state = GenerationState { id: inner.id, untold: inner.untold };
        Ok(DeviceState::Saved(Handover::new(state.save())))
    }

    fn restore(&mut self, handover: Handover<'_>) -> Result<(), StateError> {
        let saved = GenerationState::load(&handover.state)?;
        let mut inner = self.shared.inner();
        let (id, untold) = match self.keeps && !handover.to_clone {
            true => (saved.id, saved.untold),
            false if inner.used || inner.id == saved.id => (another()?, true),
            false => (inner.id, true),
        };
        (inner.id, inner.untold, inner.used) = (id, untold, false);
        inner.show();
        Ok(())
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        let mut inner = self.shared.inner();
        (inner.attached, inner.running) = (None, false);
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        // The lock, the interrupt, and a new ID for a restored state.
        &[Syscall("futex"), Syscall("ioctl"), Syscall("getrandom")]
    }

    fn identities(&self) -> Vec<Identity> {
        vec![Identity::new(Identity::GENERATION, self.shared.inner().id.to_string())]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        let changes = self.shared.changes.load(Ordering::Relaxed);
        visitor.counter("changes", "New generation IDs that the VMM has given.", changes);
    }
}

fn another() -> Result<GenerationId, StateError> {
    let reason = "the host has no random bytes for a new generation ID";
    GenerationId::random().map_err(|_| StateError::Unsupported { reason })
}

#[cfg(test)]
mod tests;
