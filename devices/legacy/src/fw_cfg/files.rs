//! The files of a firmware configuration device: their names, selectors and contents.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

/// The longest name: 56 bytes with the NUL after it.
const MAX_NAME: usize = 55;
/// The longest file, and the most that one transfer moves.
pub(super) const MAX_LEN: usize = 16 << 20;
/// The most files. Linux allocates 64 bytes for each at once.
pub(super) const MAX_FILES: usize = 512;

/// Selectors, as the specification names them.
const SIGNATURE: u16 = 0x00;
const ID: u16 = 0x01;
const FILE_DIR: u16 = 0x19;
const FILE_FIRST: u16 = 0x20;
/// Asks for an item that can be written; which ones can does not depend on it.
const WRITE_CHANNEL: u16 = 1 << 14;

/// There is the traditional interface (bit 0), and that for DMA (bit 1).
const FEATURES: u32 = 0b11;

/// Why a firmware configuration device cannot have a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FwCfgError {
    /// The name is none.
    #[error(
        "{name:?} is no name of a file: give 1 to {MAX_NAME} printable ASCII characters without spaces, such as \
         opt/org.example/token, with no empty part, . or .. between slashes"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// There are two files of this name.
    #[error("the file {name:?} is there twice")]
    Twice {
        /// The name.
        name: String,
    },
    /// A file has the name of a folder that another file is in.
    #[error("{file:?} is a file, and cannot be a folder for {inside:?}")]
    Folder {
        /// The file.
        file: String,
        /// The other one.
        inside: String,
    },
    /// The file is too long.
    #[error("the file {name:?} is longer than {MAX_LEN} bytes")]
    TooLong {
        /// Its name.
        name: String,
    },
    /// There are too many files.
    #[error("there is no room for {name:?}: {MAX_FILES} files are the most")]
    TooMany {
        /// The first that has no room.
        name: String,
    },
    /// There is no such file to give other contents to.
    #[error("there is no file {name:?}")]
    Unknown {
        /// The name that was given.
        name: String,
    },
}

/// Files by their names, in whose order they have selectors.
#[derive(Clone, Debug, Default)]
pub(super) struct Files(BTreeMap<String, Arc<[u8]>>);

impl Files {
    pub(super) fn add(&mut self, name: String, contents: Vec<u8>) -> Result<(), FwCfgError> {
        let part = |part: &str| !matches!(part, "" | "." | "..");
        if name.len() > MAX_NAME
            || !name.bytes().all(|byte| byte.is_ascii_graphic())
            || !name.split('/').all(part)
        {
            return Err(FwCfgError::Name { name });
        }
        let is_in =
            |inside: &str, file: &str| inside.strip_prefix(file).is_some_and(|rest| rest.starts_with('/'));
        for other in self.0.keys() {
            if *other == name {
                return Err(FwCfgError::Twice { name });
            }
            let other = other.clone();
            if is_in(&other, &name) {
                return Err(FwCfgError::Folder { file: name, inside: other });
            }
            if is_in(&name, &other) {
                return Err(FwCfgError::Folder { file: other, inside: name });
            }
        }
        if self.0.len() == MAX_FILES {
            return Err(FwCfgError::TooMany { name });
        }
        let contents = checked(&name, contents)?;
        self.0.insert(name, contents);
        Ok(())
    }

    pub(super) fn set(&mut self, name: &str, contents: Vec<u8>) -> Result<(), FwCfgError> {
        let file = self.0.get_mut(name).ok_or_else(|| FwCfgError::Unknown { name: name.to_owned() })?;
        *file = checked(name, contents)?;
        Ok(())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// A hash of all files, within this process; `None` if there is none.
    pub(super) fn digest(&self) -> Option<[u8; 16]> {
        let half = |seed: u8| {
            let mut hasher = DefaultHasher::new();
            (seed, &self.0).hash(&mut hasher);
            u128::from(hasher.finish())
        };
        (!self.0.is_empty()).then(|| (half(0) << 64 | half(1)).to_le_bytes())
    }

    /// The item that a selector stands for; one that there is not is empty.
    pub(super) fn item(&self, selector: u16) -> Arc<[u8]> {
        match selector & !WRITE_CHANNEL {
            SIGNATURE => (*b"QEMU").into(),
            ID => FEATURES.to_le_bytes().into(),
            FILE_DIR => self.directory().into(),
            file => {
                let index = file.checked_sub(FILE_FIRST).map(usize::from);
                index.and_then(|index| self.0.values().nth(index)).cloned().unwrap_or_default()
            }
        }
    }

    /// How many there are, and 64 bytes for each: length, selector and name.
    fn directory(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4 + 64 * self.0.len());
        out.extend_from_slice(&(self.0.len() as u32).to_be_bytes());
        for (selector, (name, contents)) in (FILE_FIRST..).zip(&self.0) {
            out.extend_from_slice(&(contents.len() as u32).to_be_bytes());
            out.extend_from_slice(&selector.to_be_bytes());
            let end = out.len() + 2 + MAX_NAME + 1;
            out.extend_from_slice(&[0; 2]);
            out.extend_from_slice(name.as_bytes());
            out.resize(end, 0);
        }
        out
    }
}

fn checked(name: &str, contents: Vec<u8>) -> Result<Arc<[u8]>, FwCfgError> {
    if contents.len() > MAX_LEN {
        return Err(FwCfgError::TooLong { name: name.to_owned() });
    }
    Ok(contents.into())
}
