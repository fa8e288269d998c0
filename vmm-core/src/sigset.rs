//! The system calls about the signals of this process.

use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use libc::{c_int, sigset_t};

/// Returns true if this process ignores `signal`: it was started so, as by nohup(1) or in the background of a shell
/// script, or has decided so. A VMM that heeds signals leaves such a one alone; it arrives all the same in a signalfd.
/// [`Signals`](crate::program::Signals) does so.
pub fn is_ignored(signal: i32) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: nothing is changed, and the kernel fills `action` when the call succeeds.
    unsafe {
        libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

pub(crate) fn set_of(signals: &[c_int]) -> io::Result<sigset_t> {
    let mut set = MaybeUninit::<sigset_t>::uninit();
    // SAFETY: sigemptyset initializes the set, and sigaddset checks each number.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for &signal in signals {
            if libc::sigaddset(set.as_mut_ptr(), signal) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(set.assume_init())
    }
}

/// Blocks the signals in this thread and in those that it starts, and returns what was blocked before.
pub(crate) fn block(set: &sigset_t) -> io::Result<sigset_t> {
    let mut before = MaybeUninit::<sigset_t>::uninit();
    // SAFETY: both sets are valid for the call, which fills `before` when it succeeds.
    unsafe {
        match libc::pthread_sigmask(libc::SIG_BLOCK, set, before.as_mut_ptr()) {
            0 => Ok(before.assume_init()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

pub(crate) fn unblock(set: &sigset_t) {
    // SAFETY: the set is valid for the call, which cannot fail.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, set, ptr::null_mut()) };
}

/// Sends a signal to this thread.
pub(crate) fn raise(signal: c_int) {
    // SAFETY: the kernel refuses what is no signal.
    unsafe { libc::raise(signal) };
}

/// Blocked signals, to be read from a descriptor (signalfd(2)).
#[derive(Debug)]
pub(crate) struct SignalFd(File);

impl SignalFd {
    pub(crate) fn new(set: &sigset_t) -> io::Result<Self> {
        // SAFETY: the set is valid for the call; the descriptor that is returned belongs to nobody else.
        let fd = unsafe {
            match libc::signalfd(-1, set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) {
                -1 => return Err(io::Error::last_os_error()),
                fd => OwnedFd::from_raw_fd(fd),
            }
        };
        Ok(Self(fd.into()))
    }

    /// The next signal that waits.
    pub(crate) fn take(&mut self) -> Option<c_int> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        // The kernel gives whole records. The first field is the signal's number.
        self.0.read_exact(&mut info).ok()?;
        info.first_chunk().map(|&number| c_int::from_ne_bytes(number))
    }
}

impl AsRawFd for SignalFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
