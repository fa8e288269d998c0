//! What asks the machine to end from outside: signals.

use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use ossature::bus::{EventLoop, Handler, Hosted};
use ossature::legacy::PowerButton;
use ossature::vmm::machine::MachineHandle;

use crate::Result;

/// How long a guest may take to power off once SIGTERM has pressed its power button.
const GRACE: Duration = Duration::from_secs(10);

/// SIGTERM presses the power button, and stops the machine after a grace period or when it comes again; the other
/// signals stop the machine at once. They are blocked for this thread and for all that it starts from now on.
pub fn heed(
    here: &EventLoop,
    machine: MachineHandle,
    button: PowerButton,
) -> Result<Hosted<impl Handler + use<>>> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT]);
    signals.thread_block()?;
    let mut pressed = false;
    Ok(here.on_readable(SignalFd::with_flags(&signals, SfdFlags::all())?, move |signals| {
        while let Ok(Some(signal)) = signals.read_signal() {
            let again = std::mem::replace(&mut pressed, true);
            if signal.ssi_signo != Signal::SIGTERM as u32 || again || button.press().is_err() {
                machine.stop();
                continue;
            }
            let machine = machine.clone();
            thread::spawn(move || {
                thread::sleep(GRACE);
                machine.stop();
            });
        }
    })?)
}
