//! What of a device belongs to one guest alone.

use std::borrow::Cow;
use std::fmt;
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

/// Something of a device that no two guests may have at once, such as the address of a network card: what keeps clones
/// of one machine apart. See [`Device::identities`](crate::Device::identities).
///
/// ```
/// use ossature_bus::Identity;
///
/// let (one, other) = (Identity::new("MAC", "52:54:00:00:00:01"), Identity::new("MAC", "52:54:00:00:00:02"));
/// assert_ne!(one, other);
/// assert_eq!(one.to_string(), "MAC 52:54:00:00:00:01");
/// // What messages must not show.
/// assert_eq!(Identity::secret("token", "hunter2").to_string(), "token");
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Identity {
    name: Cow<'static, str>,
    value: Vec<u8>,
    secret: bool,
}

impl Identity {
    /// The name of a generation ID: by a new one, a guest learns that it is a clone.
    pub const GENERATION: &'static str = "generation ID";

    /// The `value` of what is called `name`. Two are the same if both are.
    pub fn new(name: impl Into<Cow<'static, str>>, value: impl Into<String>) -> Self {
        Self { name: name.into(), value: value.into().into_bytes(), secret: false }
    }

    /// The same with a value that is not shown.
    pub fn secret(name: impl Into<Cow<'static, str>>, value: impl Into<Vec<u8>>) -> Self {
        Self { name: name.into(), value: value.into(), secret: true }
    }

    /// A file that one guest alone writes.
    pub fn writable_file(about: &Metadata) -> Self {
        let which = match about.file_type().is_block_device() {
            true => format!("(block device {:#x})", about.rdev()),
            false => format!("(inode {} of device {:#x})", about.ino(), about.dev()),
        };
        Self::new("writable file", which)
    }

    /// What it is.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.secret { Ok(()) } else { write!(f, " {}", String::from_utf8_lossy(&self.value)) }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({self})")
    }
}
