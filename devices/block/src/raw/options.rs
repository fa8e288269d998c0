//! How a raw file is used.

/// What a disk file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// The guest reads and writes; no other program may use the file meanwhile.
    ReadWrite,
    /// The guest only reads; others may read too.
    ReadOnly,
}

/// What carries the requests of a raw file out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum EngineKind {
    /// [`SyncEngine`](crate::SyncEngine): the thread that serves the queue waits for the disk.
    #[default]
    Sync,
    /// [`ThreadEngine`](crate::ThreadEngine): a thread for each queue waits for the disk.
    Thread,
    /// [`UringEngine`](crate::UringEngine): the host's kernel works on many requests at once (io_uring(7)). If it does not
    /// allow that, requests are served as with [`Sync`](Self::Sync), and an event tells the VMM.
    Uring,
}

/// How a [`RawFile`](crate::RawFile) is used. An [`OpenMode`] alone stands for the options of [`new`](Self::new).
///
/// ```
/// use ossature_block::{EngineKind, OpenMode, RawOptions};
///
/// let options = RawOptions::new(OpenMode::ReadWrite).direct(true).engine(EngineKind::Uring);
/// # let _ = options;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RawOptions {
    /// What the file is opened for.
    pub mode: OpenMode,
    /// Transfers bypass the host's page cache (`O_DIRECT`), as far as they are aligned as its disk wants them; others go
    /// through it.
    pub direct: bool,
    /// What carries the requests out.
    pub engine: EngineKind,
}

impl RawOptions {
    /// Through the page cache, with the synchronous engine.
    pub fn new(mode: OpenMode) -> Self {
        Self { mode, direct: false, engine: EngineKind::Sync }
    }

    /// The same, past the page cache if `direct`.
    #[must_use]
    pub fn direct(mut self, direct: bool) -> Self {
        self.direct = direct;
        self
    }

    /// The same with this engine.
    #[must_use]
    pub fn engine(mut self, engine: EngineKind) -> Self {
        self.engine = engine;
        self
    }
}

impl From<OpenMode> for RawOptions {
    fn from(mode: OpenMode) -> Self {
        Self::new(mode)
    }
}
