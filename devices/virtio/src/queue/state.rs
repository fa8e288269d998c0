//! A queue that does not run, described once for pauses, saved states, resets and moves.

/// A stopped queue: what its driver has set up, and how far its device has come.
///
/// It is the same for a queue that never ran, that was paused, that is in a saved state, or that changes hands between
/// two devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueState {
    /// Entries: a power of two, at most the queue's maximum.
    pub size: u16,
    /// The driver has enabled it, and it can run. A queue that its driver broke, or whose worker panicked, is not ready
    /// when it has stopped.
    pub ready: bool,
    /// Guest address of the descriptor table, 16-byte aligned.
    pub desc: u64,
    /// Guest address of the available ring, 2-byte aligned.
    pub avail: u64,
    /// Guest address of the used ring, 4-byte aligned.
    pub used: u64,
    /// Index of the next available entry that the device takes.
    pub next_avail: u16,
    /// Index of the next used element that the device writes. All before it are visible to the driver.
    pub next_used: u16,
}

impl QueueState {
    /// A queue of `size` entries that no driver has set up.
    pub fn new(size: u16) -> Self {
        Self { size, ..Self::default() }
    }

    /// The same, enabled, with its rings at these addresses.
    #[must_use]
    pub fn at(mut self, desc: u64, avail: u64, used: u64) -> Self {
        (self.ready, self.desc, self.avail, self.used) = (true, desc, avail, used);
        self
    }

    /// The same, with both rings at `index`.
    #[must_use]
    pub fn from_index(mut self, index: u16) -> Self {
        (self.next_avail, self.next_used) = (index, index);
        self
    }

    /// The same, unable to run until a driver sets it up again.
    #[must_use]
    pub(crate) fn lost(mut self) -> Self {
        (self.ready, self.next_avail, self.next_used) = (false, 0, 0);
        self
    }
}
