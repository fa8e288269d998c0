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
    /// Somebody had the terminal open when we last looked. If nobody has, poll(2) answers at once.
    open: bool,
}

impl PtyLine {
    pub(crate) fn open() -> io::Result<(Self, PathBuf)> {
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        rustix::pty::grantpt(&master)?;
        rustix::pty::unlockpt(&master)?;
        let name = rustix::pty::ptsname(&master, Vec::new())?;
        let mut termios = tcgetattr(&master)?;
        termios.make_raw();
        tcsetattr(&master, OptionalActions::Now, &termios)?;
        let path = PathBuf::from(OsString::from_vec(name.into_bytes()));
        Ok((Self { master: Fd::own(master)?, open: true }, path))
    }

    fn note<T>(&mut self, result: io::Result<T>, closed: io::ErrorKind) -> io::Result<T> {
        self.open = !matches!(&result, Err(e) if e.raw_os_error() == Some(Errno::IO.raw_os_error()));
        if self.open { result } else { Err(closed.into()) }
    }
}

impl Line for PtyLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let result = self.master.write(bytes);
        self.note(result, io::ErrorKind::NotConnected)
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let result = self.master.read(buf);
        self.note(result, io::ErrorKind::WouldBlock)
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
