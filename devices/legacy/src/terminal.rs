//! Raw mode of a terminal, and the way back.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::getpgrp;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcsetattr};

/// A terminal in raw mode: every key reaches the reader at once, none is echoed or means a signal. Dropping it restores
/// the terminal's former modes.
///
/// A program can end without dropping it. So that the terminal is itself again on those ways out too, keep
/// the guard where they find it, such as a `static OnceLock<RawTerminal>`, and call
/// [`restore`](Self::restore) there: in the panic hook, before `std::process::exit`, and in the handler of
/// each signal that ends the process. The library installs none.
///
/// ```no_run
/// use std::sync::OnceLock;
/// use ossature_legacy::RawTerminal;
///
/// static TERMINAL: OnceLock<Option<RawTerminal>> = OnceLock::new();
///
/// fn restore() {
///     if let Some(Some(terminal)) = TERMINAL.get() {
///         terminal.restore();
///     }
/// }
///
/// let raw = RawTerminal::new(std::io::stdin())?;
/// TERMINAL.set(raw).ok();
/// // ... run the machine ...
/// restore();
/// # std::io::Result::Ok(())
/// ```
#[derive(Debug)]
pub struct RawTerminal {
    fd: OwnedFd,
    former: Termios,
}

impl RawTerminal {
    /// Puts the terminal behind `fd` into raw mode. `None` if it is not a terminal.
    pub fn new(fd: impl AsFd) -> io::Result<Option<Self>> {
        if !isatty(&fd) {
            return Ok(None);
        }
        let fd = fd.as_fd().try_clone_to_owned()?;
        let former = tcgetattr(&fd)?;
        let terminal = Self { fd, former };
        terminal.raw()?;
        Ok(Some(terminal))
    }

    /// Raw mode (again), such as after a stop and continue of the process (SIGCONT). Does nothing while the process is
    /// in the terminal's background, where the terminal is not its own and the kernel would stop it (SIGTTOU): call it
    /// once it is continued in the foreground.
    pub fn raw(&self) -> io::Result<()> {
        // A terminal that does not control the process has no background.
        if tcgetpgrp(&self.fd).is_ok_and(|foreground| foreground != getpgrp()) {
            return Ok(());
        }
        let mut raw = self.former.clone();
        raw.make_raw();
        Ok(tcsetattr(&self.fd, OptionalActions::Now, &raw)?)
    }

    /// Gives the terminal its former modes back. May be called any number of times, and in a signal handler:
    /// it is one system call (ioctl), takes no lock and allocates nothing. Nothing can be done about a
    /// failure (the terminal has gone), so there is none to see.
    pub fn restore(&self) {
        let _ = tcsetattr(&self.fd, OptionalActions::Now, &self.former);
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        self.restore();
    }
}

#[cfg(test)]
mod tests;
