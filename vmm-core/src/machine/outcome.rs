//! How a machine ends: the first end wins, is recorded once, and stops all vCPUs.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use ossature_bus::{Effect, EventLoop, VmRequest};

use super::events::{EventLog, MachineEvent};
use super::vcpu_thread::{Mailbox, Order};
use crate::{Kicker, VcpuError};

/// Why a machine stopped.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// The guest powered off.
    Shutdown,
    /// The guest asked for a reset: whoever wants it to go on builds the machine again.
    Reset,
    /// The VMM stopped it.
    Stopped,
    /// A vCPU executed HLT where nothing can wake it: the end of a guest of a few instructions on a machine
    /// without interrupt controllers.
    Halted,
    /// A vCPU could not go on.
    Crashed(Arc<VcpuError>),
    /// Code on a vCPU's thread panicked: a bug in a device.
    ThreadPanicked,
}

impl Outcome {
    fn event(&self) -> MachineEvent {
        match self {
            Self::Shutdown => MachineEvent::Shutdown,
            Self::Reset => MachineEvent::Reset,
            Self::Stopped | Self::Halted => MachineEvent::Stopped,
            Self::Crashed(error) => MachineEvent::Crashed { reason: error.to_string() },
            Self::ThreadPanicked => {
                MachineEvent::Crashed { reason: "a device panicked on a vCPU's thread".to_owned() }
            }
        }
    }
}

/// One vCPU as the others reach it: to leave an order and to wake it.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) kicker: Kicker,
}

impl Peer {
    pub(crate) fn order(&self, order: Order) {
        self.mailbox.order(order);
        if order != Order::Run {
            self.kicker.kick();
        }
    }
}

/// What the machine, its vCPU threads and its handles share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) events: EventLog,
    outcome: Mutex<Option<Outcome>>,
    ended: Condvar,
    /// The loop that the machine's owner runs until the end.
    running: Mutex<Option<EventLoop>>,
    guest_panicked: AtomicBool,
    peers: OnceLock<Vec<Peer>>,
}

impl Shared {
    pub(crate) fn new() -> Self {
        Self {
            events: EventLog::default(),
            outcome: Mutex::new(None),
            ended: Condvar::new(),
            running: Mutex::new(None),
            guest_panicked: AtomicBool::new(false),
            peers: OnceLock::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Outcome>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names the vCPUs, once, before any of them runs.
    pub(crate) fn set_peers(&self, peers: Vec<Peer>) {
        // A second call would be a second start, which the life cycle refuses.
        let _ = self.peers.set(peers);
        // Who ended the machine a moment ago did not know them.
        if self.outcome().is_some() {
            self.stop_peers();
        }
    }

    fn stop_peers(&self) {
        for peer in self.peers() {
            peer.order(Order::Stop);
        }
    }

    pub(crate) fn peers(&self) -> &[Peer] {
        self.peers.get().map(Vec::as_slice).unwrap_or_default()
    }

    /// Records the end, unless the machine has ended already, and tells all vCPUs to stop. Waits for nobody.
    pub(crate) fn end(&self, outcome: Outcome) {
        {
            let mut slot = self.lock();
            if slot.is_some() {
                return;
            }
            self.events.push(outcome.event());
            *slot = Some(outcome);
        }
        self.ended.notify_all();
        if let Some(event_loop) = self.running().take() {
            event_loop.stop();
        }
        self.stop_peers();
    }

    /// Carries out what a guest asked for. True: the vCPU should look at its mailbox.
    pub(crate) fn carry_out(&self, effect: Effect) -> bool {
        let Effect::Vm(request) = effect else { return false };
        match request {
            VmRequest::Shutdown => self.end(Outcome::Shutdown),
            VmRequest::Reset => self.end(Outcome::Reset),
            VmRequest::GuestPanic => {
                if !self.guest_panicked.swap(true, Ordering::Relaxed) {
                    self.events.push(MachineEvent::GuestPanic);
                }
                return false;
            }
            _ => return false,
        }
        true
    }

    pub(crate) fn crashed(&self, error: VcpuError) {
        self.end(Outcome::Crashed(Arc::new(error)));
    }

    pub(crate) fn thread_panicked(&self) {
        self.end(Outcome::ThreadPanicked);
    }

    pub(crate) fn guest_panicked(&self) -> bool {
        self.guest_panicked.load(Ordering::Relaxed)
    }

    pub(crate) fn outcome(&self) -> Option<Outcome> {
        self.lock().clone()
    }

    fn running(&self) -> MutexGuard<'_, Option<EventLoop>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `event_loop` on this thread until the machine ends.
    pub(crate) fn run(&self, event_loop: &EventLoop) -> io::Result<Outcome> {
        loop {
            *self.running() = Some(event_loop.clone());
            // Who ends the machine records that first, and then takes the loop to stop it.
            if let Some(outcome) = self.outcome() {
                if self.running().take().is_none() {
                    // Takes the stop that is under way.
                    event_loop.run()?;
                }
                return Ok(outcome);
            }
            event_loop.run()?;
        }
    }

    pub(crate) fn wait(&self) -> Outcome {
        let mut slot = self.lock();
        loop {
            match &*slot {
                Some(outcome) => return outcome.clone(),
                None => slot = self.ended.wait(slot).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// A handle that stops a machine from any thread, or from a place that does not own it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MachineHandle {
    pub(crate) shared: Arc<Shared>,
}

impl MachineHandle {
    /// Asks the machine to stop; returns at once. [`Machine::wait`](super::Machine::wait) tells when it has.
    pub fn stop(&self) {
        self.shared.end(Outcome::Stopped);
    }

    /// How the machine ended, if it has.
    pub fn outcome(&self) -> Option<Outcome> {
        self.shared.outcome()
    }
}
