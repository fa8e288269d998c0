//! How the driver is interrupted: which vector each queue has, and the ISR status where there is none.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};

use ossature_bus::state::StateError;
use ossature_bus::{Event, Interrupt, InterruptTarget};
use ossature_pci::Vectors;

use super::super::state::inconsistent;

/// No vector at all.
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Bits of the ISR status.
const USED_BUFFER: u32 = 1;
const CONFIG_CHANGE: u32 = 2;

/// The interrupts of a device. The paths of queues take no lock.
pub(super) struct Signals {
    config: Arc<Source>,
    queues: Vec<Arc<Source>>,
}

/// What may interrupt, through a vector that the driver chooses.
struct Source {
    /// Its bit of the ISR status.
    bit: u32,
    vector: AtomicU16,
    /// The vector's event was handed out.
    taken: AtomicBool,
    shared: Arc<Shared>,
}

struct Shared {
    isr: AtomicU32,
    vectors: Vectors,
}

impl Source {
    fn new(bit: u32, shared: &Arc<Shared>) -> Arc<Self> {
        let (vector, taken) = (AtomicU16::new(NO_VECTOR), AtomicBool::new(false));
        Arc::new(Self { bit, vector, taken, shared: Arc::clone(shared) })
    }

    fn vector(&self) -> u16 {
        self.vector.load(Ordering::Acquire)
    }

    /// Takes a vector that exists, or none.
    fn set_vector(&self, vector: u16) {
        let exists = usize::from(vector) < self.shared.vectors.len();
        self.vector.store(if exists { vector } else { NO_VECTOR }, Ordering::Release);
    }

    /// The message that says so; `None` while there is none.
    fn message(&self) -> Option<&Interrupt> {
        let Shared { vectors, .. } = &*self.shared;
        if vectors.is_enabled() { vectors.interrupt(self.vector()) } else { None }
    }
}

impl InterruptTarget for Source {
    fn signal(&self) -> io::Result<()> {
        let message = self.message();
        // A change of the configuration is told in both ways (4.1.4.5.1).
        if message.is_none() || self.bit == CONFIG_CHANGE {
            self.shared.isr.fetch_or(self.bit, Ordering::AcqRel);
        }
        message.map_or(Ok(()), Interrupt::signal)
    }

    fn set_level(&self, asserted: bool) -> io::Result<()> {
        if asserted { self.signal() } else { Ok(()) }
    }

    /// That of the vector. A queue whose vector changes while it runs is started again, so that it asks again.
    fn event(&self) -> Option<&Arc<Event>> {
        if self.bit == CONFIG_CHANGE {
            return None;
        }
        let event = self.message()?.event()?;
        self.taken.store(true, Ordering::Relaxed);
        Some(event)
    }

    fn resample(&self) -> Option<&Arc<Event>> {
        None
    }
}

impl Signals {
    pub(super) fn new(vectors: &Vectors, queues: usize) -> Self {
        let shared = Arc::new(Shared { isr: AtomicU32::new(0), vectors: vectors.clone() });
        let queues = (0..queues).map(|_| Source::new(USED_BUFFER, &shared)).collect();
        Self { config: Source::new(CONFIG_CHANGE, &shared), queues }
    }

    pub(super) fn queue_interrupts(&self) -> Vec<Interrupt> {
        self.queues.iter().map(|source| Interrupt::new(source.clone())).collect()
    }

    pub(super) fn config_interrupt(&self) -> Interrupt {
        Interrupt::new(self.config.clone())
    }

    fn isr(&self) -> &AtomicU32 {
        &self.config.shared.isr
    }

    /// What the ISR status would read.
    pub(super) fn pending(&self) -> u32 {
        self.isr().load(Ordering::Acquire)
    }

    /// The driver reads the ISR status, which acknowledges what it says.
    pub(super) fn acknowledge(&self) -> u32 {
        self.isr().swap(0, Ordering::AcqRel)
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config.vector()
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config.set_vector(vector);
    }

    /// The vector of a queue; none of a queue that does not exist.
    pub(super) fn queue_vector(&self, queue: u32) -> u16 {
        self.queues.get(queue as usize).map_or(NO_VECTOR, |source| source.vector())
    }

    /// Sets it. Returns true if the queue, should it run, has to be started again to notice.
    pub(super) fn set_queue_vector(&self, queue: u32, vector: u16) -> bool {
        let Some(source) = self.queues.get(queue as usize) else { return false };
        let before = source.vector();
        source.set_vector(vector);
        before != source.vector() && source.taken.swap(false, Ordering::Relaxed)
    }

    /// Interrupts the driver for a queue whose last interrupt may have gone to another vector.
    pub(super) fn signal_queue(&self, queue: u32) {
        if let Some(source) = self.queues.get(queue as usize) {
            // Nobody is left to tell of a message that is gone.
            let _ = source.signal();
        }
    }

    /// The driver has been reset.
    pub(super) fn forget_vectors(&self) {
        for source in self.queues.iter().chain([&self.config]) {
            source.set_vector(NO_VECTOR);
            source.taken.store(false, Ordering::Relaxed);
        }
    }

    /// The vector of the configuration, and then those of the queues.
    pub(super) fn saved_vectors(&self) -> Vec<u16> {
        [&self.config].into_iter().chain(&self.queues).map(|source| source.vector()).collect()
    }

    /// Fails if a driver cannot have chosen these.
    pub(super) fn check_vectors(&self, vectors: &[u16]) -> Result<(), StateError> {
        if vectors.len() != self.queues.len() + 1 {
            return Err(inconsistent("vectors", "the device has another number of queues"));
        }
        let count = self.config.shared.vectors.len();
        match vectors.iter().find(|vector| **vector != NO_VECTOR && usize::from(**vector) >= count) {
            Some(vector) => Err(StateError::Value { field: "vectors", value: (*vector).into() }),
            None => Ok(()),
        }
    }

    /// Takes over vectors that were [checked](Self::check_vectors), and what was pending.
    pub(super) fn replace(&self, vectors: &[u16], pending: u32) {
        for (source, vector) in [&self.config].into_iter().chain(&self.queues).zip(vectors) {
            source.set_vector(*vector);
            source.taken.store(false, Ordering::Relaxed);
        }
        self.isr().store(pending, Ordering::Release);
    }

    /// Interrupts the guest again for what it may not have seen before it was saved: these queues, and causes.
    pub(super) fn interrupt_again(&self, pending: u32, queues: &[u16]) {
        self.isr().fetch_or(pending, Ordering::AcqRel);
        let config = (pending & CONFIG_CHANGE != 0).then_some(&self.config);
        let queues = queues.iter().filter_map(|queue| self.queues.get(usize::from(*queue)));
        for message in queues.chain(config).filter_map(|source| source.message()) {
            // As above.
            let _ = message.signal();
        }
    }
}
