//! A pseudo-terminal as a serial line.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::line::{Fd, Line, Pollables};

/// How soon somebody who opens the terminal is noticed. The kernel has no event for it.
const LOOK_AGAIN: Timespec = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
const NEVER: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

pub(crate) struct PtyLine {
    master: Fd,
    /// Somebody had the terminal open at the last read: what is watched depends on it, so writes leave it alone.
    open: bool,
    /// Ticks while nobody has it open.
    timer: Arc<OwnedFd>,
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
        Ok((Self::new(master, slave)?, path))
    }

    /// Takes both ends, and closes `slave`.
    pub(crate) fn new(master: OwnedFd, slave: OwnedFd) -> io::Result<Self> {
        let mut termios = tcgetattr(&slave)?;
        termios.make_raw();
        tcsetattr(&slave, OptionalActions::Now, &termios)?;
        drop(slave);
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let mut line = Self { master: Fd::own(master)?, open: true, timer: Arc::new(timer) };
        line.is_open(false)?;
        Ok(line)
    }

    /// Takes note that somebody has the terminal open, or nobody.
    fn is_open(&mut self, open: bool) -> io::Result<()> {
        if open != std::mem::replace(&mut self.open, open) {
            let every = if open { NEVER } else { LOOK_AGAIN };
            let ticks = Itimerspec { it_interval: every, it_value: every };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &ticks)?;
        }
        Ok(())
    }
}

impl Line for PtyLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // The kernel would keep the bytes for the next one that opens the terminal.
        if self.master.hung_up()? {
            Err(io::ErrorKind::NotConnected.into())
        } else {
            self.master.write(bytes)
        }
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let result = self.master.read(buf);
        self.is_open(!matches!(&result, Err(e) if e.raw_os_error() == Some(Errno::IO.raw_os_error())))?;
        if self.open { result } else { Err(io::ErrorKind::WouldBlock.into()) }
    }

    fn watch(&self, input: bool, output: bool) -> Pollables {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, input);
        flags.set(PollFlags::OUT, output);
        if flags.is_empty() {
            Pollables::new()
        } else if self.open {
            vec![self.master.watch(flags)]
        } else {
            vec![(self.timer.clone(), PollFlags::IN)]
        }
    }

    fn needs_loop(&self) -> bool {
        true
    }
}
