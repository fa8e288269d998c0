//! What reaches microvm from outside: signals. What was ignored when it started stays ignored.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use ossature::bus::{EventLoop, Handler, Hosted, Timer};
use ossature::legacy::{PowerButton, RawTerminal};
use ossature::vmm::machine::MachineHandle;
use ossature::vmm::signal_is_ignored;

use crate::Result;

/// How long a guest may take to power off once SIGTERM has pressed its power button.
const GRACE: Duration = Duration::from_secs(10);

/// They end microvm as a user's request does: the machine is stopped, and that is not a failure.
const REQUESTS: [Signal; 4] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT];

/// They end a process that does not heed them, and they do end microvm, once the machine has stopped and the terminal
/// is itself again.
const DEADLY: [Signal; 10] = [
    Signal::SIGABRT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGVTALRM,
    Signal::SIGPROF,
    Signal::SIGIO,
    Signal::SIGPWR,
    Signal::SIGSTKFLT,
    Signal::SIGXCPU,
];

/// They stop and continue a process: the terminal is not left raw meanwhile.
const JOB_CONTROL: [Signal; 2] = [Signal::SIGTSTP, Signal::SIGCONT];

/// Makes errors of the signals by which the kernel refuses I/O: a file that would exceed the limit on file sizes, a pipe
/// that nobody reads. For this thread and for all that it starts from now on.
pub fn refused_io_is_an_error() -> Result<()> {
    Ok(SigSet::from_iter([Signal::SIGXFSZ, Signal::SIGPIPE]).thread_block()?)
}

/// What microvm does about signals, for as long as this lives.
pub struct Signals<H: Handler> {
    _heeded: Hosted<H>,
    deadly: Arc<AtomicI32>,
}

/// SIGTERM presses the power button, and stops the machine after a grace period or when it comes again; the other
/// signals that end a process stop the machine at once. They are blocked for this thread and for all that it starts from
/// now on.
pub fn heed(
    here: &EventLoop,
    machine: MachineHandle,
    button: PowerButton,
    terminal: Option<Arc<RawTerminal>>,
) -> Result<Signals<impl Handler + use<>>> {
    let job_control: &[Signal] = if terminal.is_some() { &JOB_CONTROL } else { &[] };
    let all = REQUESTS.iter().chain(&DEADLY).chain(job_control);
    let signals: SigSet = all.copied().collect();
    signals.thread_block()?;
    let deadly = Arc::new(AtomicI32::new(0));
    let (last, timers) = (deadly.clone(), here.clone());
    let mut pressed: Option<Option<Timer>> = None;
    let heeded = here.on_readable(SignalFd::with_flags(&signals, SfdFlags::all())?, move |signals| {
        while let Ok(Some(signal)) = signals.read_signal() {
            match Signal::try_from(signal.ssi_signo as i32) {
                // What is ignored arrives all the same while it is blocked.
                Ok(signal) if signal_is_ignored(signal as i32) => {}
                Ok(Signal::SIGTERM) if pressed.is_none() && button.press().is_ok() => {
                    let machine = machine.clone();
                    // Without a timer, a second SIGTERM is needed.
                    pressed = Some(timers.after(GRACE, move || machine.stop()).ok());
                }
                Ok(Signal::SIGTSTP) => {
                    terminal.iter().for_each(|terminal| terminal.restore());
                    let _ = raise(Signal::SIGSTOP);
                }
                Ok(Signal::SIGCONT) => {
                    // A terminal that has gone needs no mode.
                    terminal.iter().for_each(|terminal| _ = terminal.raw());
                }
                Ok(signal) if DEADLY.contains(&signal) => {
                    last.store(signal as i32, Ordering::Relaxed);
                    machine.stop();
                }
                _ => machine.stop(),
            }
        }
    })?;
    Ok(Signals { _heeded: heeded, deadly })
}

impl<H: Handler> Signals<H> {
    /// Ends the process by the deadly signal that has come, as it would have ended without us; otherwise with `code`.
    pub fn end(self, code: ExitCode) -> ExitCode {
        if let Ok(signal) = Signal::try_from(self.deadly.load(Ordering::Relaxed)) {
            let _ = SigSet::from(signal).thread_unblock();
            let _ = raise(signal);
        }
        code
    }
}
