//! The host's side of `microvm`: signals, the terminal and its escape keys, messages.

use std::error::Error;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use log::{LevelFilter, Log, Metadata, Record};
use ossature::core::machine::MachineHandle;
use ossature::legacy::{Escape, EscapeFilter, PowerButton, RawTerminal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

/// How long a guest may take to power off once SIGTERM has pressed its power button.
const GRACE: Duration = Duration::from_secs(10);

/// Takes over the signals that end a process.
pub fn signals() -> io::Result<Signals> {
    Signals::new([SIGTERM, SIGINT, SIGHUP, SIGQUIT])
}

/// Obeys signals on a thread of its own: SIGTERM presses the power button, and stops the machine after a grace
/// period or when it comes again; the others stop the machine at once.
pub fn obey(mut signals: Signals, machine: MachineHandle, button: PowerButton) {
    thread::spawn(move || {
        let mut pressed = false;
        for signal in signals.forever() {
            if signal != SIGTERM || pressed || button.press().is_err() {
                machine.stop();
            } else {
                pressed = true;
                let machine = machine.clone();
                thread::spawn(move || {
                    thread::sleep(GRACE);
                    machine.stop();
                });
            }
        }
    });
}

/// The terminal's escape keys, connected to the machine once there is one.
#[derive(Clone, Default)]
pub struct Keys(Arc<OnceLock<MachineHandle>>);

impl Keys {
    pub fn connect(&self, machine: MachineHandle) {
        let _ = self.0.set(machine);
    }

    pub fn pressed(&self, key: Escape) {
        match (key, self.0.get()) {
            (Escape::Quit, Some(machine)) => machine.stop(),
            // A raw terminal wants its own carriage returns.
            _ => eprint!("\r\nCtrl-A X quits, Ctrl-A Ctrl-A sends Ctrl-A, Ctrl-A H is this help\r\n"),
        }
    }
}

/// Standard input without the escape keys, for the console: they work even when the guest reads nothing.
pub fn keyboard(keys: Keys) -> io::Result<OwnedFd> {
    let (mut guest, here) = UnixStream::pair()?;
    guest.set_nonblocking(true)?;
    thread::spawn(move || {
        let mut filter = EscapeFilter::new();
        for byte in io::stdin().lock().bytes().map_while(Result::ok) {
            let (byte, key) = filter.push(byte);
            // What a guest that does not read leaves no room for is dropped, as a terminal does.
            let _ = byte.map(|byte| guest.write(&[byte]));
            if let Some(key) = key {
                keys.pressed(key);
            }
        }
    });
    Ok(here.into())
}

/// Puts the terminal into raw mode until the guard is dropped, if there is one and the guest gets its keys.
pub fn raw_terminal(wanted: bool) -> io::Result<Option<RawTerminal>> {
    if wanted { RawTerminal::new(io::stdin()) } else { Ok(None) }
}

/// An error with everything behind it that it does not say itself.
pub fn with_sources(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

struct Stderr;

impl Log for Stderr {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        eprintln!("microvm: {}: {}", record.level().as_str().to_lowercase(), record.args());
    }

    fn flush(&self) {}
}

pub fn log_to_stderr(level: LevelFilter) {
    log::set_max_level(level);
    // Nobody else has set a logger in this process.
    let _ = log::set_logger(&Stderr);
}
