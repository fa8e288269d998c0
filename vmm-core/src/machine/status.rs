//! Where a machine stands, for everybody who holds a part of it: how it ended, what is asked of its control, its vCPUs'
//! mailboxes. Nothing here waits for a vCPU or a device.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use ossature_bus::{DeviceEvent, EventLoop, EventSink, RangeId, VmRequest};

use super::LifecycleState;
use super::events::{EventLog, MachineEvent};
use super::mailbox::{Mailbox, Order};
use super::outcome::Outcome;
use crate::{CrashReason, Kicker, VcpuError};

/// What a machine does when its guest asks for a reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnReset {
    /// It ends with [`Outcome::Reset`].
    #[default]
    Stop,
    /// It is reset in place, as by [`MachineHandle::reset`](super::MachineHandle::reset), by the thread that waits for
    /// its end.
    Restart,
}

/// What a triple fault of a guest is: a fault that the processor cannot deliver, which guests also cause on purpose, to
/// reset a machine that has no other way (Linux with `reboot=t`). The machine cannot tell one from the other.
///
/// Either way the processor's registers are kept: in [`Outcome::Crashed`], or in [`MachineEvent::TripleFault`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum OnTripleFault {
    /// The machine ends with [`Outcome::Crashed`].
    #[default]
    Crash,
    /// The guest has asked for a reset: [`MachineEvent::TripleFault`] says that it was in this way, and [`OnReset`] what
    /// comes of it.
    Reset,
}

/// One vCPU as the others reach it: to leave an order and to wake it.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) kicker: Kicker,
}

impl Peer {
    pub(super) fn order(&self, order: Order) {
        self.mailbox.order(order);
        if order != Order::Run {
            self.kicker.kick();
        }
    }
}

/// What vCPUs, devices and handles ask of the machine's control.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Requests {
    pub(super) pause: bool,
    pub(super) reset: bool,
    /// The devices that these ranges belong to are to be removed, while the vCPUs run.
    pub(super) removals: BTreeSet<RangeId>,
}

impl Requests {
    /// Returns true if the vCPUs stay paused until this has been served.
    fn pauses(&self) -> bool {
        self.pause || self.reset
    }
}

#[derive(Debug, Default)]
struct State {
    outcome: Option<Outcome>,
    requests: Requests,
    /// As control has left it last.
    lifecycle: Option<LifecycleState>,
}

/// Why a thread that waits for a machine was woken.
#[derive(Debug)]
pub(super) enum Woken {
    /// The machine has ended.
    Ended(Outcome),
    /// Something is asked of its control.
    Asked,
    /// Time is up.
    TimedOut,
}

#[derive(Debug, Default)]
pub(super) struct Status {
    pub(super) events: EventLog,
    state: Mutex<State>,
    changed: Condvar,
    /// The loops that run until the end.
    running: Mutex<Vec<EventLoop>>,
    guest_panicked: AtomicBool,
    peers: OnceLock<Vec<Peer>>,
    on_reset: OnceLock<OnReset>,
    on_triple_fault: OnceLock<OnTripleFault>,
}

impl Status {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self) -> MutexGuard<'_, Vec<EventLoop>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_on_reset(&self, on_reset: OnReset) {
        // Set once, when the machine is built.
        let _ = self.on_reset.set(on_reset);
    }

    pub(super) fn set_on_triple_fault(&self, on_triple_fault: OnTripleFault) {
        // Set once, when the machine is built.
        let _ = self.on_triple_fault.set(on_triple_fault);
    }

    /// Names the vCPUs, once, before any of them runs.
    pub(super) fn set_peers(&self, peers: Vec<Peer>) {
        // A second call would be a second start, which the life cycle refuses.
        let _ = self.peers.set(peers);
        // Who ended the machine a moment ago did not know them.
        if self.outcome().is_some() {
            self.order(Order::Stop);
        }
    }

    pub(super) fn peers(&self) -> &[Peer] {
        self.peers.get().map(Vec::as_slice).unwrap_or_default()
    }

    /// Leaves an order for all vCPUs; waits for none.
    pub(super) fn order(&self, order: Order) {
        for peer in self.peers() {
            peer.order(order);
        }
    }

    /// Where the machine is in its life. Waits for nobody.
    pub(super) fn lifecycle(&self) -> LifecycleState {
        let state = self.lock();
        match &state.outcome {
            Some(_) => LifecycleState::Stopped,
            None => state.lifecycle.unwrap_or(LifecycleState::Created),
        }
    }

    /// Where control has taken the machine last.
    pub(super) fn entered(&self) -> LifecycleState {
        self.lock().lifecycle.unwrap_or(LifecycleState::Created)
    }

    /// Control has taken the machine there.
    pub(super) fn enter(&self, lifecycle: LifecycleState) {
        self.lock().lifecycle = Some(lifecycle);
    }

    pub(super) fn outcome(&self) -> Option<Outcome> {
        self.lock().outcome.clone()
    }

    /// Records the end, unless the machine has ended already, and tells all vCPUs to stop. Does not wait.
    pub(super) fn end(&self, outcome: Outcome) {
        {
            let mut state = self.lock();
            if state.outcome.is_some() {
                return;
            }
            self.events.push(MachineEvent::Ended(outcome.clone()));
            state.outcome = Some(outcome);
        }
        self.wake();
        self.order(Order::Stop);
    }

    /// Asks the machine's control for something: the vCPUs pause at once, the rest is done by the thread that waits for
    /// the machine, or controls it next.
    pub(super) fn request(&self, ask: impl FnOnce(&mut Requests)) {
        {
            let mut state = self.lock();
            if state.outcome.is_some() {
                return;
            }
            ask(&mut state.requests);
            // With the lock: whoever takes the request may have served it and let the vCPUs run again by the time that a
            // later order came.
            self.order(Order::Pause);
        }
        self.wake();
    }

    /// Asks the machine's control to remove the device that `range` belongs to.
    pub(super) fn request_removal(&self, range: RangeId) {
        self.lock().requests.removals.insert(range);
        self.wake();
    }

    /// Lets the vCPUs run, unless control is asked for something: they stay paused then until it has been done.
    pub(super) fn go_on(&self) {
        let state = self.lock();
        if !state.requests.pauses() {
            self.order(Order::Run);
        }
    }

    /// Takes what is asked for.
    pub(super) fn take_requests(&self) -> Requests {
        std::mem::take(&mut self.lock().requests)
    }

    /// Wakes all threads that wait.
    fn wake(&self) {
        self.changed.notify_all();
        for event_loop in self.running().drain(..) {
            event_loop.stop();
        }
    }

    /// Waits until the machine has ended, its control is asked for something, or time is up.
    pub(super) fn wait(&self, deadline: Option<Instant>) -> Woken {
        let mut state = self.lock();
        loop {
            if let Some(woken) = Self::woken(&state) {
                return woken;
            }
            state = match deadline {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                        return Woken::TimedOut;
                    };
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    fn woken(state: &State) -> Option<Woken> {
        match &state.outcome {
            Some(outcome) => Some(Woken::Ended(outcome.clone())),
            None if state.requests != Requests::default() => Some(Woken::Asked),
            None => None,
        }
    }

    /// As [`wait`](Self::wait), and runs `event_loop` on this thread meanwhile.
    pub(super) fn run(&self, event_loop: &EventLoop) -> io::Result<Woken> {
        loop {
            self.running().push(event_loop.clone());
            // Who changes the state does so first, and then takes the loops to stop them.
            let woken = Self::woken(&self.lock());
            if let Some(woken) = woken {
                if !self.runs_no_more(event_loop) {
                    // Takes the stop that is under way.
                    event_loop.run()?;
                }
                return Ok(woken);
            }
            let ran = event_loop.run();
            self.runs_no_more(event_loop);
            ran?;
        }
    }

    /// Takes one entry of the loop out of those that are run; returns false if there is none.
    fn runs_no_more(&self, event_loop: &EventLoop) -> bool {
        let mut running = self.running();
        let at = running.iter().position(|other| other.is_same(event_loop));
        at.map(|at| running.swap_remove(at)).is_some()
    }

    /// Carries out what a guest asks of the machine. Returns true if the vCPU is to look at its mailbox.
    pub(super) fn carry_out(&self, request: VmRequest) -> bool {
        match request {
            VmRequest::Shutdown => self.end(Outcome::Shutdown),
            VmRequest::Reset => match self.on_reset.get().copied().unwrap_or_default() {
                OnReset::Stop => self.end(Outcome::Reset),
                OnReset::Restart => self.request(|requests| requests.reset = true),
            },
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

    /// A vCPU cannot go on. The machine ends, unless this is the guest's way to ask for a reset.
    pub(super) fn crashed(&self, error: VcpuError) {
        let on_triple_fault = self.on_triple_fault.get().copied().unwrap_or_default();
        match error {
            VcpuError::Crash(crash)
                if crash.reason == CrashReason::TripleFault && on_triple_fault == OnTripleFault::Reset =>
            {
                self.events.push(MachineEvent::TripleFault { crash: Arc::from(crash) });
                self.carry_out(VmRequest::Reset);
            }
            error => self.end(Outcome::Crashed(Arc::new(error))),
        }
    }

    pub(super) fn guest_panicked(&self) -> bool {
        self.guest_panicked.load(Ordering::Relaxed)
    }

    /// The guest starts again.
    pub(super) fn guest_restarts(&self) {
        self.guest_panicked.store(false, Ordering::Relaxed);
    }

    pub(super) fn panicked(&self, part: impl Into<String>, message: impl Into<String>) {
        self.end(Outcome::Panicked { part: part.into(), message: message.into() });
    }

    /// Where the device `id` reports. One that panicked ends the machine.
    pub(super) fn sink(self: &Arc<Self>, id: &str) -> EventSink {
        // Handles of devices may outlive the machine, and the status nothing holds that matters.
        let (status, id) = (Arc::clone(self), id.to_owned());
        EventSink::new(move |event| {
            let panicked = match &event {
                DeviceEvent::Panicked { message } => Some(message.clone()),
                _ => None,
            };
            status.events.push(MachineEvent::Device { id: id.clone(), event });
            if let Some(message) = panicked {
                status.panicked(id.clone(), message);
            }
        })
    }
}
