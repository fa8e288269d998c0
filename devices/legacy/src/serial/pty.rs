//! A pseudo-terminal as a serial line.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use super::line::{Fd, Line, Watch};

/// How soon somebody who opens the terminal is noticed. The kernel has no event for it.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

pub(crate) struct PtyLine {
    master: Fd,
    /// Somebody had the terminal open when we last looked. While nobody has, poll(2) answers at once.
    open: bool,
}

impl PtyLine {
    pub(crate) fn open() -> io::Result<(Self, PathBuf)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = rustix::pty::openpt(flags)?;
        rustix::pty::grantpt(&master)?;
        rustix::pty::unlockpt(&master)?;
        let path = PathBuf::from(OsString::from_vec(rustix::pty::ptsname(&master, Vec::new())?.into_bytes()));
        // Only a terminal that has been open before is known to be closed.
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        let mut termios = tcgetattr(&slave)?;
        termios.make_raw();
        tcsetattr(&slave, OptionalActions::Now, &termios)?;
        drop(slave);
        Ok((Self { master: Fd::own(master)?, open: false }, path))
    }
}

impl Line for PtyLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The kernel would keep the bytes for whoever opens the terminal next.
        self.open = !self.master.hung_up()?;
        if self.open { self.master.write(bytes) } else { Err(io::ErrorKind::NotConnected.into()) }
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let result = self.master.read(buf);
        self.open = !matches!(&result, Err(e) if e.raw_os_error() == Some(Errno::IO.raw_os_error()));
        if self.open { result } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    fn watch(&self, input: bool, output: bool) -> Watch {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, input);
        flags.set(PollFlags::OUT, output);
        if flags.is_empty() {
            Watch::default()
        } else if self.open {
            Watch { fds: vec![self.master.watch(flags)], retry: None }
        } else {
            Watch { fds: Vec::new(), retry: Some(LOOK_AGAIN) }
        }
    }

    fn needs_thread(&self) -> bool {
        true
    }
}
