//! The rings of one vhost device: two, whatever it does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ossature_bus::DeviceError;
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, UnloggedWrites};
use std::os::fd::AsFd;

use super::VhostError;
use super::kernel::{Backend, RingEvent};
use super::relay::{Relay, Wire};
use crate::features::{EVENT_IDX, INDIRECT_DESC, VERSION_1};
use crate::{Activation, QueueSetup, QueueState, Runtime, WorkerHandle};

/// Rings of a vhost device of any kind that this crate knows.
pub(crate) const RINGS: usize = 2;
/// What transports offer for each device, and concerns rings.
const RING_FEATURES: u64 = (VERSION_1 | EVENT_IDX | INDIRECT_DESC) as u64;
/// Where the index is in a used ring.
const USED_INDEX: u64 = 2;

/// A vhost device, and what it has of its driver.
pub(crate) struct Vhost {
    backend: Arc<dyn Backend>,
    offered: u64,
    active: Option<Active>,
}

/// From the moment in which a driver is ready until the reset.
struct Active {
    rings: [Option<QueueSetup>; RINGS],
    /// What the kernel was told is RAM.
    memory: Option<Dma>,
    wires: Arc<[Wire]>,
    _relay: Box<dyn WorkerHandle>,
    _writes: UnloggedWrites,
}

impl Vhost {
    /// Takes a device that nobody has set up. The process that calls this is the one whose memory it works in.
    pub(crate) fn new(backend: impl Backend + 'static) -> Result<Self, VhostError> {
        let offered = backend.features()?;
        let missing = RING_FEATURES & !offered;
        if missing != 0 {
            return Err(VhostError::Features { missing });
        }
        backend.set_owner()?;
        Ok(Self { backend: Arc::new(backend), offered, active: None })
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// Which of these features it has.
    pub(crate) fn offered(&self, features: u128) -> u128 {
        features & u128::from(self.offered)
    }

    /// A driver is ready, which has negotiated features of which these are the device's to know beside those of rings.
    /// The worker that listens to the kernel has tokens from `first` on.
    pub(crate) fn activate(
        &mut self,
        activation: &Activation,
        own: u128,
        (name, first, runtime): (&str, u16, &dyn Runtime),
    ) -> Result<(), DeviceError> {
        self.deactivate();
        let failed = |what: &'static str| move |e| DeviceError::new(what).with_source(e);
        let writes =
            UnloggedWrites::begin(&activation.dma).map_err(|e| DeviceError::new(format!("vhost: {e}")))?;
        let known = own as u64 | RING_FEATURES;
        self.backend.set_features(activation.features as u64 & self.offered & known)?;
        let wires: Result<Arc<[Wire]>, _> = (0..RINGS).map(|_| Wire::new()).collect();
        let wires = wires.map_err(failed("vhost: cannot make the events of its rings"))?;
        let relay = Relay { wires: wires.clone(), first, failure: activation.failure.clone() };
        let sink = activation.failure.clone();
        let relay = runtime.spawn(name, Box::new(relay), Box::new(move |why| sink.report(why)))?;
        let (rings, memory) = ([const { None }; RINGS], None);
        self.active = Some(Active { rings, memory, wires, _relay: relay, _writes: writes });
        Ok(())
    }

    /// The driver is gone. Nothing runs.
    pub(crate) fn deactivate(&mut self) {
        self.active = None;
    }

    /// Returns true if a ring is set up.
    pub(crate) fn is_set_up(&self, ring: usize) -> bool {
        self.active.as_ref().is_some_and(|active| matches!(active.rings.get(ring), Some(Some(_))))
    }

    /// Sets a ring up, which does not run yet.
    pub(crate) fn set_up(&mut self, ring: usize, setup: QueueSetup) -> Result<(), DeviceError> {
        setup.check().map_err(|e| DeviceError::new(e.to_string()))?;
        let Some(active) = &mut self.active else {
            return Err(DeviceError::new("a queue was started before the device was activated"));
        };
        let (Some(wire), Some(place)) = (active.wires.get(ring), active.rings.get_mut(ring)) else {
            return Err(DeviceError::new(format!("vhost has no ring {ring}")));
        };
        let (backend, QueueSetup { state, dma, interrupt, doorbell, .. }) = (&*self.backend, &setup);
        if !active.memory.as_ref().is_some_and(|known| known.shows_same_as(dma)) {
            backend.set_memory(dma)?;
            active.memory = Some(dma.clone());
        }
        // The kernel goes on from the index that is in the ring.
        let index = GuestAddress(state.used + USED_INDEX);
        dma.store(index, state.next_used.to_le(), Ordering::Release)
            .map_err(|e| DeviceError::new(e.to_string()))?;
        let ring = ring as u32;
        backend.set_ring(ring, state, dma)?;
        let direct = interrupt.event();
        wire.connect(direct.is_none().then(|| interrupt.clone()));
        backend.set_event(ring, RingEvent::Error, Some(wire.error.as_fd()))?;
        backend.set_event(
            ring,
            RingEvent::Call,
            Some(direct.map_or(wire.call.as_fd(), |event| event.as_fd())),
        )?;
        backend.set_event(ring, RingEvent::Kick, Some(doorbell.as_fd()))?;
        *place = Some(setup);
        Ok(())
    }

    /// Has the kernel look at a ring that has begun to run: what was offered before is served without a kick.
    pub(crate) fn kick(&self, ring: usize) {
        let setup = self.active.as_ref().and_then(|active| active.rings.get(ring)?.as_ref());
        if let Some(QueueSetup { doorbell, .. }) = setup {
            // An event whose count is full wakes as well.
            let _ = doorbell.signal();
        }
    }

    /// Takes a ring back that does not run any more.
    pub(crate) fn take_down(&mut self, ring: usize) -> Result<QueueState, DeviceError> {
        let active = self.active.as_mut();
        let found =
            active.and_then(|active| Some((active.wires.get(ring)?, active.rings.get_mut(ring)?.take()?)));
        let Some((wire, QueueSetup { state, dma, .. })) = found else {
            return Err(DeviceError::new(format!("ring {ring} does not run")));
        };
        let (backend, ring) = (&*self.backend, ring as u32);
        let next_avail = backend.stop_ring(ring)?;
        for event in [RingEvent::Kick, RingEvent::Call, RingEvent::Error] {
            backend.set_event(ring, event, None)?;
        }
        wire.connect(None);
        let used = dma.load::<u16>(GuestAddress(state.used + USED_INDEX), Ordering::Acquire);
        let next_used = u16::from_le(used.map_err(|e| DeviceError::new(e.to_string()))?);
        let stopped = QueueState { next_avail, next_used, ..state };
        // An index that the guest has written over says nothing.
        let sound = next_avail.wrapping_sub(next_used) <= state.size && !wire.has_failed();
        Ok(if sound { stopped } else { state.lost() })
    }
}
