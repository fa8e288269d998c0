//! The signal that interrupts `KVM_RUN`: whom to send it to, and how it does no harm elsewhere.

use std::cell::RefCell;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};
use std::thread;

use libc::{c_int, c_void, pthread_t, siginfo_t};
use vmm_sys_util::signal::register_signal_handler;

use crate::{KickSignal, sigset};

/// Signals of the kernel: 1 to 64.
const SIGNALS: c_int = 64;

/// Installs a handler for `signal` that does nothing, for the whole process, and returns the
/// [`KickSignal::Handled`] that needs it. Replaces the handler that was there.
pub fn install_kick_handler(signal: i32) -> io::Result<KickSignal> {
    extern "C" fn nothing(_: c_int, _: *mut siginfo_t, _: *mut c_void) {}
    register_signal_handler(signal, nothing)?;
    Ok(KickSignal::Handled(signal))
}

/// The thread that a vCPU last ran on, while that thread lives.
#[derive(Debug, Default)]
pub(super) struct Target {
    /// Its pthread handle, or 0. Changed with `lock` held.
    thread: AtomicUsize,
    lock: Mutex<()>,
}

/// Has a [`Target`], and lives as long as somebody may want to signal it.
pub(super) trait HasTarget: Send + Sync {
    fn target(&self) -> &Target;
}

thread_local! {
    /// The vCPUs whose target is this thread.
    static BOUND: RefCell<Bound> = const { RefCell::new(Bound(Vec::new())) };
}

/// Lets go of its vCPUs when its thread ends: nobody signals a thread that is gone.
struct Bound(Vec<Weak<dyn HasTarget>>);

impl Drop for Bound {
    fn drop(&mut self) {
        for vcpu in self.0.drain(..).filter_map(|vcpu| vcpu.upgrade()) {
            vcpu.target().release(this_thread());
        }
    }
}

impl Target {
    /// Returns true if the calling thread is the target.
    #[inline]
    pub(super) fn is_here(&self) -> bool {
        self.thread.load(Ordering::Relaxed) == this_thread()
    }

    /// Makes the calling thread the target of `vcpu`, which is this.
    pub(super) fn bind(&self, vcpu: Weak<dyn HasTarget>) -> io::Result<()> {
        let bound = BOUND.try_with(|bound| {
            let mut bound = bound.borrow_mut();
            bound.0.retain(|vcpu| vcpu.strong_count() > 0);
            bound.0.push(vcpu);
        });
        bound.map_err(|_| io::Error::other("the thread is about to end"))?;
        let _guard = self.lock();
        self.thread.store(this_thread(), Ordering::Relaxed);
        Ok(())
    }

    fn release(&self, thread: usize) {
        let _guard = self.lock();
        if self.thread.load(Ordering::Relaxed) == thread {
            self.thread.store(0, Ordering::Relaxed);
        }
    }

    /// Sends the signal, if there is a target.
    pub(super) fn signal(&self, signal: KickSignal) {
        let guard = self.lock();
        let thread = self.thread.load(Ordering::Relaxed);
        if thread == 0 {
            return;
        }
        // SAFETY: the thread has not ended: when it does, it first takes the lock to clear `thread`.
        while unsafe { libc::pthread_kill(thread as pthread_t, number(signal)) } == libc::EAGAIN {
            // The user's queue of real-time signals is full. Somebody takes one out soon.
            thread::yield_now();
        }
        drop(guard);
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Blocks the signal in this thread and returns the mask to have inside `KVM_RUN`: what was blocked before,
/// without the signal. Bit n stands for signal n + 1.
pub(super) fn block(signal: c_int) -> io::Result<u64> {
    let before = sigset::block(&sigset::set_of(&[signal])?)?;
    // SAFETY: the set is initialized.
    let blocked = |n: &c_int| *n != signal && unsafe { libc::sigismember(&before, *n) } == 1;
    Ok((1..=SIGNALS).filter(blocked).fold(0, |mask, n| mask | 1 << (n - 1)))
}

/// Lets the signal through to this thread.
pub(super) fn unblock(signal: c_int) -> io::Result<()> {
    sigset::unblock(&sigset::set_of(&[signal])?);
    Ok(())
}

/// Takes the signal out of this thread's queue, if it is there.
pub(super) fn take(signal: c_int) {
    let Ok(set) = sigset::set_of(&[signal]) else { return };
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the set and the time are valid for the call, and no information is asked for. It may be that
    // there is no signal: kicks also work without one.
    unsafe { libc::sigtimedwait(&set, ptr::null_mut(), &now) };
}

fn number(signal: KickSignal) -> c_int {
    match signal {
        KickSignal::Masked(n) | KickSignal::Handled(n) => n,
    }
}

#[inline]
fn this_thread() -> usize {
    // SAFETY: always succeeds.
    unsafe { libc::pthread_self() as usize }
}
