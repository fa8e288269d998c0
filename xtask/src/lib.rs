//! What the developer commands and the whole-machine tests share: Debian packages and kernels,
//! guest file systems, the nested machine that lends a full KVM to hosts without one, and the
//! test runner.
//!
//! ```
//! let mut tree = xtask::tree::Tree::new();
//! tree.file("/etc/motd", 0o644, "hello\n");
//! assert!(tree.to_cpio().starts_with(b"070701"));
//! ```

pub mod arch;
pub mod bare_metal;
pub mod cpio;
pub mod cross;
pub mod demo;
pub mod follow;
pub mod foreign;
pub mod frame;
pub mod fuzz;
pub mod guest;
pub mod host;
pub mod kernels;
pub mod measure;
pub mod nested;
pub mod packages;
pub mod paths;
pub mod port;
pub mod process;
pub mod report;
pub mod stamp;
pub mod suite;
pub mod tree;
pub mod vmm;

/// Why a developer command stops: what to tell the developer, and the exit code.
#[derive(Debug)]
pub struct Error {
    /// One or more lines for the developer.
    pub message: String,
    /// What the command exits with: 2 where the developer has to do something first, otherwise 1.
    pub code: u8,
}

/// The result of a step of a developer command.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failed step; the command exits with 1.
    pub fn new(message: impl Into<String>) -> Error {
        Error { message: message.into(), code: 1 }
    }

    /// Something that the developer has to do first; the command exits with 2.
    pub fn needs_developer(message: impl Into<String>) -> Error {
        Error { message: message.into(), code: 2 }
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// Names the file or the step in an input/output error.
pub trait Context<T> {
    /// Turns the error into one that starts with `what`.
    ///
    /// # Errors
    /// The same failure, named.
    fn context(self, what: impl std::fmt::Display) -> Result<T>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, what: impl std::fmt::Display) -> Result<T> {
        self.map_err(|error| Error::new(format!("{what}: {error}")))
    }
}
