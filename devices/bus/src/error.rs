//! What the host's side of a device could not do.

use std::error::Error;
use std::fmt;

type Cause = Box<dyn Error + Send + Sync>;

/// A step that a device, its worker or its runtime could not do: why, and the failure behind it.
///
/// ```
/// use std::error::Error;
/// use std::io;
/// use ossature_bus::DeviceError;
///
/// let error = DeviceError::new("cannot flush the disk").with_source(io::Error::from(io::ErrorKind::StorageFull));
/// assert_eq!(error.to_string(), "cannot flush the disk: no storage space");
/// assert!(error.source().is_some());
/// let error = error.context("disk0");
/// assert_eq!(error.reason(), "disk0: cannot flush the disk");
/// assert_eq!(error.without_context("disk0").reason(), "cannot flush the disk");
/// ```
#[derive(Debug)]
pub struct DeviceError {
    reason: String,
    source: Option<Cause>,
}

impl DeviceError {
    /// An error for this reason.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), source: None }
    }

    /// The same with the failure that caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Cause>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The same error with `what` before its reason, such as the name of the part that failed.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.reason = format!("{what}: {}", self.reason);
        self
    }

    /// The same error without `what` before its reason, if it is there: for those who say it themselves.
    #[must_use]
    pub fn without_context(mut self, what: impl fmt::Display) -> Self {
        if let Some(rest) = self.reason.strip_prefix(&format!("{what}: ")) {
            self.reason = rest.to_owned();
        }
        self
    }

    /// The reason.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)?;
        match &self.source {
            // The reason may have been made of it.
            Some(source) if !self.reason.contains(&source.to_string()) => write!(f, ": {source}"),
            _ => Ok(()),
        }
    }
}

impl Error for DeviceError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
