//! A vCPU on its own thread: runs until told otherwise, and is told only between two exits.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use super::outcome::{Outcome, Shared};
use crate::{Step, Vcpu};

/// What the machine wants of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Run,
    Pause,
    Stop,
}

/// What the vCPU's thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    Paused,
    Exited,
}

/// The mailbox between the machine and one vCPU thread. The thread reads it only after an interrupted
/// KVM_RUN, when its pending I/O is complete; it never waits while it holds the lock.
#[derive(Debug)]
pub(crate) struct Mailbox {
    state: Mutex<(Order, Phase)>,
    changed: Condvar,
    first_run: OnceLock<Instant>,
}

impl Mailbox {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new((Order::Run, Phase::Running)),
            changed: Condvar::new(),
            first_run: OnceLock::new(),
        }
    }

    /// When the thread first entered the guest, if it has.
    pub(crate) fn first_run(&self) -> Option<Instant> {
        self.first_run.get().copied()
    }

    fn lock(&self) -> MutexGuard<'_, (Order, Phase)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves an order; [`Order::Stop`] is final. The caller then kicks the vCPU.
    pub(crate) fn order(&self, order: Order) {
        let mut state = self.lock();
        if state.0 != Order::Stop {
            state.0 = order;
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until the thread stands still (paused or gone).
    pub(crate) fn wait_still(&self) {
        let mut state = self.lock();
        while state.1 == Phase::Running {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The thread's side: stands still while the order is to pause. False: time to stop.
    fn obey(&self) -> bool {
        let mut state = self.lock();
        while state.0 == Order::Pause {
            if state.1 != Phase::Paused {
                state.1 = Phase::Paused;
                self.changed.notify_all();
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.0 == Order::Run {
            state.1 = Phase::Running;
        }
        state.0 == Order::Run
    }

    fn exited(&self) {
        self.lock().1 = Phase::Exited;
        self.changed.notify_all();
    }
}

/// Starts the thread of vCPU `index`.
pub(crate) fn spawn(
    machine: &str,
    index: u32,
    vcpu: Vcpu,
    mailbox: Arc<Mailbox>,
    shared: Arc<Shared>,
) -> io::Result<JoinHandle<Vcpu>> {
    // The kernel keeps 15 bytes of a thread's name: the vCPU comes first, it tells the threads apart.
    let name = format!("vcpu{index}:{machine}");
    std::thread::Builder::new().name(name).spawn(move || {
        let exit = ExitGuard { mailbox, shared };
        run(vcpu, &exit.mailbox, &exit.shared)
    })
}

fn run(mut vcpu: Vcpu, mailbox: &Mailbox, shared: &Shared) -> Vcpu {
    while mailbox.obey() {
        mailbox.first_run.get_or_init(Instant::now);
        loop {
            match vcpu.run_once() {
                Ok(Step::Handled) => {}
                Ok(Step::Interrupted) => break,
                Ok(Step::Effect(effect)) => {
                    if shared.carry_out(effect) {
                        break;
                    }
                }
                Ok(Step::Halted) => {
                    shared.end(Outcome::Halted);
                    break;
                }
                Err(error) => {
                    shared.crashed(error);
                    break;
                }
            }
        }
    }
    vcpu
}

/// Tells the machine that the thread is gone, also when a device's code panicked on it.
struct ExitGuard {
    mailbox: Arc<Mailbox>,
    shared: Arc<Shared>,
}

impl Drop for ExitGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.thread_panicked();
        }
        self.mailbox.exited();
    }
}
