//! The signals that a thread of the library does not take.

use std::mem::MaybeUninit;
use std::ptr;

use libc::{c_int, sigset_t};

/// Those that others send to a process, and that its program may heed. Not among them: what the kernel sends to a thread for
/// what it does (faults, I/O, reads and writes of a terminal in the background), and a profiler's.
const SIGNALS: [c_int; 16] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGABRT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    libc::SIGXCPU,
    libc::SIGTSTP,
    libc::SIGCONT,
    libc::SIGWINCH,
];

/// Blocks them on this thread, and so on those that it starts, until this is dropped.
pub(crate) struct BlockedSignals {
    before: Option<sigset_t>,
}

impl BlockedSignals {
    pub(crate) fn new() -> Self {
        let (mut set, mut before) = (MaybeUninit::<sigset_t>::uninit(), MaybeUninit::<sigset_t>::uninit());
        // SAFETY: sigemptyset initializes the set, sigaddset takes any number, and the mask that was there before is
        // written if the call succeeds.
        let before = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in SIGNALS {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            let result = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr());
            (result == 0).then(|| before.assume_init())
        };
        Self { before }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // SAFETY: the set is valid for the call.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before, ptr::null_mut()) };
        }
    }
}
