//! An eventfd: what interrupts, doorbells and wake-ups are made of.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::ioctl::ioctl_with_ref;

/// A counter in the host kernel (eventfd(2)), non-blocking and close-on-exec. One side signals, the
/// other waits for the descriptor to become readable and takes the count. The machine connects it to
/// KVM as an irqfd (signal = raise an edge interrupt) or as an ioeventfd (guest's write = signal).
#[derive(Debug)]
pub struct Event(EventFd);

impl Event {
    /// A new event with count 0.
    pub fn new() -> io::Result<Self> {
        EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map(Self)
    }

    /// One that somebody else has made (eventfd(2)). It becomes non-blocking, for all who have it.
    ///
    /// ```
    /// use std::os::fd::AsFd;
    /// use ossature_bus::Event;
    ///
    /// let event = Event::new()?;
    /// let same = Event::from_fd(event.as_fd().try_clone_to_owned()?)?;
    /// event.signal()?;
    /// assert_eq!(same.take()?, 1);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        const FIONBIO: u64 = 0x5421;
        // SAFETY: the kernel reads an int, which is there.
        if unsafe { ioctl_with_ref(&fd, FIONBIO as _, &1_i32) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is open, and nobody else has it any more.
        Ok(Self(unsafe { EventFd::from_raw_fd(fd.into_raw_fd()) }))
    }

    /// Adds one to the count. A count at its maximum stays there: the waiter is awake anyway.
    pub fn signal(&self) -> io::Result<()> {
        match self.0.write(1) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            other => other,
        }
    }

    /// Takes the count and sets it to 0. Returns 0 if it has not been signalled.
    pub fn take(&self) -> io::Result<u64> {
        match self.0.read() {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
            other => other,
        }
    }
}

impl AsRawFd for Event {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open for as long as the event lives, and so for the borrow.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests;
