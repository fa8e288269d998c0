//! The mailbox between a machine's control and one vCPU thread: orders, and work that the thread does between two
//! entries to the guest.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use crate::Vcpu;

/// What the machine wants of a vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Run,
    Pause,
    Stop,
}

/// What the vCPU's thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    Running,
    Paused,
    Exited,
}

/// Something to be done with the vCPU on its own thread.
pub(super) type Work = Box<dyn FnOnce(&mut Vcpu) + Send>;

struct Letters {
    order: Order,
    doing: Doing,
    work: VecDeque<Work>,
}

/// The thread reads its mailbox only after an interrupted KVM_RUN, when its pending I/O is complete; it never waits
/// while it holds the lock.
pub(super) struct Mailbox {
    letters: Mutex<Letters>,
    changed: Condvar,
    first_run: OnceLock<Instant>,
}

impl Mailbox {
    pub(super) fn new() -> Self {
        let letters = Letters { order: Order::Run, doing: Doing::Running, work: VecDeque::new() };
        Self { letters: Mutex::new(letters), changed: Condvar::new(), first_run: OnceLock::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Letters> {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the thread first entered the guest, if it has.
    pub(super) fn first_run(&self) -> Option<Instant> {
        self.first_run.get().copied()
    }

    /// The thread is about to enter the guest.
    pub(super) fn enters(&self) {
        self.first_run.get_or_init(Instant::now);
    }

    /// Leaves an order; [`Order::Stop`] is final. The caller then kicks the vCPU.
    pub(super) fn order(&self, order: Order) {
        let mut letters = self.lock();
        if letters.order != Order::Stop {
            letters.order = order;
        }
        drop(letters);
        self.changed.notify_all();
    }

    /// Leaves work, which is done before the next entry to the guest, or given back if the thread has exited. The
    /// caller then kicks the vCPU.
    pub(super) fn work(&self, work: Work) -> Result<(), Work> {
        let mut letters = self.lock();
        if letters.doing == Doing::Exited {
            return Err(work);
        }
        letters.work.push_back(work);
        drop(letters);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until the thread is paused or has exited.
    pub(super) fn wait_paused(&self) {
        let mut letters = self.lock();
        while letters.doing == Doing::Running {
            letters = self.changed.wait(letters).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The thread's side: does the work that was left, and waits while the order is to pause. Returns false when it is
    /// time to stop. `resumed` is called before the vCPU runs again after a pause.
    pub(super) fn wait_while_paused(&self, vcpu: &mut Vcpu, resumed: impl FnOnce(&mut Vcpu)) -> bool {
        let mut letters = self.lock();
        let mut paused = false;
        loop {
            while let Some(work) = letters.work.pop_front() {
                drop(letters);
                work(vcpu);
                letters = self.lock();
            }
            if letters.order != Order::Pause {
                break;
            }
            paused = true;
            if letters.doing != Doing::Paused {
                letters.doing = Doing::Paused;
                self.changed.notify_all();
            }
            letters = self.changed.wait(letters).unwrap_or_else(PoisonError::into_inner);
        }
        let runs = letters.order == Order::Run;
        if runs {
            letters.doing = Doing::Running;
        }
        drop(letters);
        if runs && paused {
            resumed(vcpu);
        }
        runs
    }

    /// The thread is about to end: work that is left, or that comes, is not done.
    pub(super) fn exited(&self) {
        let mut letters = self.lock();
        letters.doing = Doing::Exited;
        let left = std::mem::take(&mut letters.work);
        drop(letters);
        drop(left);
        self.changed.notify_all();
    }
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = self.lock();
        f.debug_struct("Mailbox")
            .field("order", &letters.order)
            .field("doing", &letters.doing)
            .finish_non_exhaustive()
    }
}
