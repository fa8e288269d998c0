//! Messages to the user of a program, who may not read them.

use std::fmt::Display;
use std::io::{IsTerminal, Write, stderr};
use std::os::fd::AsFd;

use ossature_bus::HostStream;

/// Messages to the user on standard error, each with the program's name in front. Printing never fails and never
/// panics: there may be nobody who reads. (`eprintln!` panics then.)
///
/// ```
/// use ossature_core::program::Messages;
///
/// const USER: Messages = Messages::new("my-vmm");
/// USER.say("the guest's kernel panicked"); // my-vmm: the guest's kernel panicked
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Messages {
    program: &'static str,
}

impl Messages {
    /// Messages of the program of this name.
    pub const fn new(program: &'static str) -> Self {
        Self { program }
    }

    /// Says something to the user. Waits while there is no room for it: not for a program that has blocked the signals
    /// which would end the wait, as with [`Signals`](super::Signals), also at its end.
    pub fn say(self, text: impl Display) {
        let _ = stderr().write_all(self.line(text, stderr().is_terminal()).as_bytes());
    }

    /// The same without waiting: what there is no room for is dropped. For messages while a machine runs, such as in
    /// handlers on an [`EventLoop`](ossature_bus::EventLoop): signals and devices do not wait for whoever should read
    /// them.
    pub fn say_or_drop(self, text: impl Display) {
        write_or_drop(stderr(), self.line(text, stderr().is_terminal()).as_bytes());
    }

    fn line(self, text: impl Display, is_terminal: bool) -> String {
        let text = text.to_string();
        // A terminal that may be raw wants its own carriage returns.
        let text = if is_terminal { text.replace('\n', "\r\n") + "\r" } else { text };
        format!("{}: {text}\n", self.program)
    }
}

fn write_or_drop(to: impl AsFd, mut bytes: &[u8]) {
    let Ok(to) = HostStream::output(to) else { return };
    while let Ok(n @ 1..) = to.write(bytes) {
        bytes = bytes.get(n..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests;
