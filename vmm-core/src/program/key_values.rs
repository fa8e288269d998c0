//! `key=value,flag`: how a device is described in one argument of a command line.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::str::FromStr;

/// What is wrong with an argument.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyValueError {
    /// No such key.
    #[error("unknown key {key:?}; known: {}; a comma in a value is written twice", known.join(", "))]
    Unknown {
        /// As it was written.
        key: String,
        /// What could be there.
        known: Vec<&'static str>,
    },
    /// The key that has to be there is not.
    #[error("{key} is missing")]
    Missing {
        /// The key with the name of its value.
        key: &'static str,
    },
    /// A key without its value, or a flag with an empty one.
    #[error("{key} is missing its value")]
    NoValue {
        /// The key with the name of its value.
        key: &'static str,
    },
    /// A key that is there more than once.
    #[error("{key} is there twice")]
    Twice {
        /// The key.
        key: &'static str,
    },
    /// A value that is to be text is none.
    #[error("{key} is not UTF-8: {value:?}")]
    NotText {
        /// The key.
        key: String,
        /// Its value.
        value: OsString,
    },
    /// A value that is not what its key takes.
    #[error("{key}: {reason}")]
    Wrong {
        /// The key.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// The value of a flag is none.
    #[error("{key} is on, off, true or false, not {value:?}")]
    NotAFlag {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
}

/// An argument of a command line such as `path=disk.img,readonly`, taken apart into its keys. Any value can be written,
/// also one that is not UTF-8: a comma in a value is written twice.
///
/// ```
/// use ossature_core::program::KeyValues;
///
/// let keys = KeyValues::parse("path=a,,b.img,readonly".as_ref(), &["path=FILE", "readonly", "id=NAME"])?;
/// assert_eq!(keys.value("path"), Some("a,b.img".as_ref()));
/// assert!(keys.flag("readonly")?);
/// assert_eq!(keys.text("id")?, None);
///
/// let error = KeyValues::parse("readonly".as_ref(), &["path=FILE", "readonly"]).unwrap_err();
/// assert_eq!(error.to_string(), "path=FILE is missing");
/// # Ok::<(), ossature_core::program::KeyValueError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValues(Vec<(&'static str, OsString)>);

impl KeyValues {
    /// Takes an argument apart. Each key has to be among `known`, where one that takes a value is written `key=VALUE` and
    /// a flag `key`, and may be there once. The first one has to be there.
    pub fn parse(argument: &OsStr, known: &[&'static str]) -> Result<Self, KeyValueError> {
        let keys = Self::parse_optional(argument, known)?;
        match known.first() {
            Some(&key) if keys.value(name_of(key)).is_none() => Err(KeyValueError::Missing { key }),
            _ => Ok(keys),
        }
    }

    /// As [`parse`](Self::parse), where no key has to be there.
    pub fn parse_optional(argument: &OsStr, known: &[&'static str]) -> Result<Self, KeyValueError> {
        let mut keys = Self(Vec::new());
        for part in split(argument.as_bytes()) {
            let mut halves = part.splitn(2, |&byte| byte == b'=');
            let (name, value) = (halves.next().unwrap_or_default(), halves.next());
            let Some(&key) = known.iter().find(|key| name_of(key).as_bytes() == name) else {
                let key = String::from_utf8_lossy(name).into_owned();
                return Err(KeyValueError::Unknown { key, known: known.to_vec() });
            };
            let value = match value {
                Some(value) if !value.is_empty() => value,
                None if !key.contains('=') => b"on",
                _ => return Err(KeyValueError::NoValue { key }),
            };
            if keys.value(name_of(key)).is_some() {
                return Err(KeyValueError::Twice { key: name_of(key) });
            }
            keys.0.push((name_of(key), OsString::from_vec(value.to_vec())));
        }
        Ok(keys)
    }

    /// The value of a key, if it is there.
    pub fn value(&self, key: &str) -> Option<&OsStr> {
        self.0.iter().find(|(other, _)| *other == key).map(|(_, value)| value.as_os_str())
    }

    /// The same as text.
    pub fn text(&self, key: &str) -> Result<Option<&str>, KeyValueError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let not_text = || KeyValueError::NotText { key: key.to_owned(), value: value.to_owned() };
        value.to_str().map(Some).ok_or_else(not_text)
    }

    /// The same as what it says, such as a number.
    pub fn parsed<T: FromStr<Err: fmt::Display>>(&self, key: &str) -> Result<Option<T>, KeyValueError> {
        self.parsed_by(key, str::parse)
    }

    /// The same as what `parse` makes of it, such as [`parse_size`](super::parse_size).
    pub fn parsed_by<T, E: fmt::Display>(
        &self,
        key: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, KeyValueError> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let wrong = |e: E| KeyValueError::Wrong { key: key.to_owned(), reason: e.to_string() };
        parse(text).map(Some).map_err(wrong)
    }

    /// Returns true if a flag is on: `key`, `key=on` or `key=true`, in contrast to `key=off`, `key=false` and no key.
    pub fn flag(&self, key: &str) -> Result<bool, KeyValueError> {
        match self.text(key)? {
            None | Some("off" | "false") => Ok(false),
            Some("on" | "true") => Ok(true),
            Some(other) => Err(KeyValueError::NotAFlag { key: key.to_owned(), value: other.to_owned() }),
        }
    }
}

fn name_of(key: &'static str) -> &'static str {
    key.split_once('=').map_or(key, |(name, _)| name)
}

/// The parts between single commas; two commas are one that belongs to a part.
fn split(argument: &[u8]) -> Vec<Vec<u8>> {
    let (mut parts, mut part) = (Vec::new(), Vec::new());
    let mut bytes = argument.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte == b',' && bytes.next_if_eq(&b',').is_none() {
            parts.push(std::mem::take(&mut part));
        } else {
            part.push(byte);
        }
    }
    parts.push(part);
    parts
}

#[cfg(test)]
mod tests;
