//! What a VMM that is a process of its own does about signals.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use libc::c_int;
use ossature_bus::{EventLoop, Handler, Hosted, Interest, Source, Timer, Turn};

use crate::machine::MachineHandle;
use crate::sigset::{self, SignalFd};

/// They are a request of the user's that the machine ends.
const REQUESTS: [c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];

/// They end a process that does not heed them, and they do end this one, once its machine has stopped and it has put
/// things in order.
const DEADLY: [c_int; 10] = [
    libc::SIGABRT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    libc::SIGXCPU,
];

/// Makes errors of the signals by which the kernel refuses I/O: SIGXFSZ for a file that would exceed the limit on file
/// sizes, SIGPIPE for a pipe that nobody reads. For this thread and for all that it starts from now on: call it at the
/// beginning of `main`.
pub fn block_io_signals() -> io::Result<()> {
    sigset::block(&sigset::set_of(&[libc::SIGXFSZ, libc::SIGPIPE])?).map(drop)
}

type Callback = Box<dyn FnMut() + Send>;
type Press = Box<dyn FnMut() -> io::Result<()> + Send>;

/// What a VMM that is a process of its own does about the signals to it.
///
/// - SIGTERM presses the [power button](Self::power_button), and stops the machine after a grace period, or when it comes
///   again. Without a button it stops the machine.
/// - SIGINT, SIGHUP and SIGQUIT stop the machine.
/// - The other signals that end a process stop the machine, too, and then
///   [end the process](HeededSignals::raise_deadly) as they would have ended it: its files are removed and its terminal
///   is as it was.
/// - SIGTSTP and SIGCONT stop and continue the process: see [`job_control`](Self::job_control). SIGWINCH tells of the
///   [window's](Self::window_change) size.
/// - What the process ignored when it started, as under nohup(1), stays ignored.
///
/// For the signals that the kernel sends for I/O, see [`block_io_signals`].
///
/// ```
/// use std::time::Duration;
///
/// use ossature_bus::EventLoop;
/// use ossature_core::machine::{Machine, Outcome};
/// use ossature_core::program::Signals;
/// use ossature_core::scripted::{Script, Scripted};
/// use ossature_legacy::AcpiPower;
///
/// let here = EventLoop::new()?;
/// let power = AcpiPower::new("power");
/// let button = power.button();
/// let guest = Script::new().pio_write(0x600, ossature_bus::Size::B1, 0x34);
/// let builder = Machine::builder("example").device(power);
///
/// let signals = Signals::new(builder.handle())
///     .power_button(Duration::from_secs(10), move || button.press())
///     .heed_on(&here)?;
/// let machine = builder.build(&Scripted::new([guest]))?;
/// machine.start()?;
/// let outcome = machine.wait_on(&here)?;
/// drop(machine);
/// signals.raise_deadly();
/// assert_eq!(outcome, Outcome::Shutdown);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub struct Signals {
    machine: MachineHandle,
    button: Option<(Duration, Press)>,
    job_control: Option<(Callback, Callback)>,
    window_change: Option<Callback>,
    others: Vec<(c_int, Callback)>,
}

impl Signals {
    /// Signals that stop this machine.
    pub fn new(machine: MachineHandle) -> Self {
        Self { machine, button: None, job_control: None, window_change: None, others: Vec::new() }
    }

    /// SIGTERM calls `press`, and the guest has the time of `grace` to power off. If `press` fails, the machine is
    /// stopped at once.
    pub fn power_button(
        mut self,
        grace: Duration,
        press: impl FnMut() -> io::Result<()> + Send + 'static,
    ) -> Self {
        self.button = Some((grace, Box::new(press)));
        self
    }

    /// Calls `on_stop` before the process is stopped (SIGTSTP), and `on_continue` when it goes on (SIGCONT): for a
    /// terminal that is not to be left in raw mode meanwhile.
    pub fn job_control(
        mut self,
        on_stop: impl FnMut() + Send + 'static,
        on_continue: impl FnMut() + Send + 'static,
    ) -> Self {
        self.job_control = Some((Box::new(on_stop), Box::new(on_continue)));
        self
    }

    /// Calls `on_change` when the size of the terminal's window has changed (SIGWINCH).
    pub fn window_change(mut self, on_change: impl FnMut() + Send + 'static) -> Self {
        self.window_change = Some(Box::new(on_change));
        self
    }

    /// Calls `on_signal` when `signal` comes, such as SIGUSR1, instead of what else is done about it. It runs on the event
    /// loop: what waits for the machine goes to a thread of its own.
    pub fn on_signal(mut self, signal: c_int, on_signal: impl FnMut() + Send + 'static) -> Self {
        self.others.push((signal, Box::new(on_signal)));
        self
    }

    /// Heeds the signals on `event_loop` from now on, for as long as the result lives. They are blocked for this thread
    /// and for all that it starts from now on, also after that.
    ///
    /// A thread that does not block them takes them as ever, and most end the process: call this before there are other
    /// threads of the program's. Those of this SDK's event loops never take any, and vCPUs get their threads in
    /// [`start`](crate::machine::Machine::start).
    pub fn heed_on(self, event_loop: &EventLoop) -> io::Result<HeededSignals> {
        let job_control: &[c_int] =
            if self.job_control.is_some() { &[libc::SIGTSTP, libc::SIGCONT] } else { &[] };
        let window: &[c_int] = if self.window_change.is_some() { &[libc::SIGWINCH] } else { &[] };
        let others: Vec<c_int> = self.others.iter().map(|(signal, _)| *signal).collect();
        let set = sigset::set_of(&[&REQUESTS, &DEADLY[..], job_control, window, &others].concat())?;
        sigset::block(&set)?;
        let deadly = Arc::new(AtomicI32::new(0));
        let handler = SignalHandler {
            descriptor: SignalFd::new(&set)?,
            signals: self,
            timers: event_loop.clone(),
            pressed: None,
            deadly: deadly.clone(),
        };
        let fd = handler.descriptor.as_raw_fd();
        let hosted = event_loop.host(handler).map_err(|error| error.source)?;
        // Signals that wait already wake it, too: it needs no turn to look for them.
        let source = Source { token: 0, fd, interest: Interest::Readable };
        hosted.handle().watch(source).map_err(|error| error.source)?;
        Ok(HeededSignals { hosted, deadly })
    }
}

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signals").field("machine", &self.machine).finish_non_exhaustive()
    }
}

/// [`Signals`] on their loop, until this is dropped. From then on, those that come wait, as they are still blocked.
#[derive(Debug)]
#[must_use]
pub struct HeededSignals {
    hosted: Hosted<SignalHandler>,
    deadly: Arc<AtomicI32>,
}

impl HeededSignals {
    /// Ends the process by the deadly signal that has come, as it would have ended without us. Returns if there was none.
    /// Drop the machine first, so that its files are removed, and restore the terminal.
    pub fn raise_deadly(self) {
        drop(self.hosted);
        match self.deadly.load(Ordering::Relaxed) {
            0 => {}
            signal => {
                sigset::set_of(&[signal]).iter().for_each(sigset::unblock);
                sigset::raise(signal);
            }
        }
    }
}

struct SignalHandler {
    descriptor: SignalFd,
    signals: Signals,
    timers: EventLoop,
    /// The end of the grace period, once the power button has been pressed.
    pressed: Option<Option<Timer>>,
    /// The deadly signal that has come, or 0.
    deadly: Arc<AtomicI32>,
}

impl SignalHandler {
    fn heed(&mut self, signal: c_int) {
        // What is ignored arrives all the same while it is blocked.
        if sigset::is_ignored(signal) {
            return;
        }
        if let Some((_, on_signal)) = self.signals.others.iter_mut().find(|(other, _)| *other == signal) {
            return on_signal();
        }
        match signal {
            libc::SIGTERM if self.press() => {}
            libc::SIGTSTP => {
                self.signals.job_control.iter_mut().for_each(|(on_stop, _)| on_stop());
                sigset::raise(libc::SIGSTOP);
            }
            libc::SIGCONT => self.signals.job_control.iter_mut().for_each(|(_, on_continue)| on_continue()),
            libc::SIGWINCH => self.signals.window_change.iter_mut().for_each(|on_change| on_change()),
            _ => {
                if DEADLY.contains(&signal) {
                    self.deadly.store(signal, Ordering::Relaxed);
                }
                self.signals.machine.stop();
            }
        }
    }

    /// Presses the power button, once. Returns false if it has been pressed before, or cannot be.
    fn press(&mut self) -> bool {
        let Some((grace, press)) = self.signals.button.as_mut().filter(|_| self.pressed.is_none()) else {
            return false;
        };
        if press().is_err() {
            return false;
        }
        let machine = self.signals.machine.clone();
        // Without a timer, a second SIGTERM is needed.
        self.pressed = Some(self.timers.after(*grace, move || machine.stop()).ok());
        true
    }
}

impl Handler for SignalHandler {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn turn(&mut self, _: u16) -> Turn {
        match self.descriptor.take() {
            Some(signal) => {
                self.heed(signal);
                Turn::Again
            }
            None => Turn::Sleep,
        }
    }
}

#[cfg(test)]
mod tests;
