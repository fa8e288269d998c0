//! A device's state together with the descriptors that no file can keep.

use std::os::fd::OwnedFd;

use super::saved::SavedState;

/// What one device hands over to the next: its state, and open descriptors beside it where both are on the same host
/// (another process, or a device that replaces this one). From a file, there are no descriptors.
///
/// ```
/// use ossature_bus::state::{Encoder, Handover};
///
/// let (socket, _peer) = std::os::unix::net::UnixStream::pair()?;
/// let state = Encoder::new("org.example.line", 1).finish();
/// let mut handover = Handover::new(state).with_descriptor("line", socket.into());
/// assert!(handover.descriptor("line").is_some());
/// assert!(handover.descriptor("line").is_none());
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Handover<'a> {
    /// The device's state.
    pub state: SavedState<'a>,
    /// Descriptors, each with a name that the kind of the state gives it.
    pub descriptors: Vec<(String, OwnedFd)>,
    /// The guest that goes on is another one than that which was saved, which may go on, too: the device keeps the
    /// [identities](crate::Device::identities) that it was given instead of asking for those in the state, and tells the
    /// guest of them. A state with the same is refused.
    pub to_clone: bool,
}

impl<'a> Handover<'a> {
    /// A state without descriptors.
    pub fn new(state: SavedState<'a>) -> Self {
        Self { state, descriptors: Vec::new(), to_clone: false }
    }

    /// The same with one more descriptor.
    #[must_use]
    pub fn with_descriptor(mut self, name: impl Into<String>, descriptor: OwnedFd) -> Self {
        self.descriptors.push((name.into(), descriptor));
        self
    }

    /// The same for [another guest](Self::to_clone).
    #[must_use]
    pub fn for_clone(mut self) -> Self {
        self.to_clone = true;
        self
    }

    /// Takes the descriptor `name` out; `None` if there is none. What is left is closed with the rest.
    pub fn descriptor(&mut self, name: &str) -> Option<OwnedFd> {
        let at = self.descriptors.iter().position(|(other, _)| other == name)?;
        Some(self.descriptors.remove(at).1)
    }
}
