//! The escape keys of a terminal that is a serial line: Ctrl-A and a letter.

/// A request of the user to the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Escape {
    /// Ctrl-A X: end the machine.
    Quit,
    /// Ctrl-A H: show which keys there are.
    Help,
}

/// Ctrl-A.
const PREFIX: u8 = 0x01;

/// Finds the escape keys in a stream of input, across reads of any size.
///
/// Ctrl-A X quits, Ctrl-A H asks for help, Ctrl-A Ctrl-A (and Ctrl-A A) sends one Ctrl-A; any other key
/// after Ctrl-A is dropped with it.
///
/// ```
/// use ossature_legacy::{Escape, EscapeFilter};
///
/// let mut filter = EscapeFilter::new();
/// assert_eq!(filter.push(b'l'), (Some(b'l'), None));
/// assert_eq!(filter.push(0x01), (None, None));
/// assert_eq!(filter.push(b'x'), (None, Some(Escape::Quit)));
/// ```
#[derive(Debug, Default)]
pub struct EscapeFilter {
    prefixed: bool,
}

impl EscapeFilter {
    /// A filter at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes one byte of input. Returns the byte that goes on to the guest, if there is one, and the escape key that
    /// the byte completes, if it does.
    pub fn push(&mut self, byte: u8) -> (Option<u8>, Option<Escape>) {
        if !std::mem::take(&mut self.prefixed) {
            self.prefixed = byte == PREFIX;
            return ((byte != PREFIX).then_some(byte), None);
        }
        match byte {
            PREFIX | b'a' | b'A' => (Some(PREFIX), None),
            b'x' | b'X' => (None, Some(Escape::Quit)),
            b'h' | b'H' => (None, Some(Escape::Help)),
            _ => (None, None),
        }
    }
}

#[cfg(test)]
mod tests;
