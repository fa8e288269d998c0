//! `key=value,flag`: how a device is described in one argument. A comma in a value is written twice.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// The keys of an argument, each with its value.
pub struct Keys(Vec<(&'static str, OsString)>);

impl Keys {
    /// Takes an argument apart. Each key has to be among `known`, where one that takes a value is written `key=VALUE`,
    /// and may be there once. The first one has to be there.
    pub fn parse(text: &OsStr, known: &[&'static str]) -> Result<Self, String> {
        let mut keys = Self(Vec::new());
        for part in split(text.as_bytes()) {
            let mut halves = part.splitn(2, |&byte| byte == b'=');
            let (name, value) = (halves.next().unwrap_or_default(), halves.next());
            let Some(&key) = known.iter().find(|key| name_of(key).as_bytes() == name) else {
                let name = String::from_utf8_lossy(name);
                return Err(format!(
                    "unknown key {name:?}; known: {}; a comma in a value is written twice",
                    known.join(", ")
                ));
            };
            let value = match value {
                Some(value) if !value.is_empty() => value,
                None if !key.contains('=') => b"on",
                _ => return Err(format!("{key} is missing its value")),
            };
            if keys.value(name_of(key)).is_some() {
                return Err(format!("{} is there twice", name_of(key)));
            }
            keys.0.push((name_of(key), OsString::from_vec(value.to_vec())));
        }
        match known.first() {
            Some(first) if keys.value(name_of(first)).is_none() => Err(format!("{first} is missing")),
            _ => Ok(keys),
        }
    }

    /// The value of a key, if it is there.
    pub fn value(&self, name: &str) -> Option<&OsStr> {
        self.0.iter().find(|(other, _)| *other == name).map(|(_, value)| value.as_os_str())
    }

    /// The same as text.
    pub fn text(&self, name: &str) -> Result<Option<&str>, String> {
        let Some(value) = self.value(name) else { return Ok(None) };
        value.to_str().map(Some).ok_or_else(|| format!("{name} is not UTF-8: {value:?}"))
    }

    /// Returns true if a flag is on.
    pub fn flag(&self, name: &str) -> Result<bool, String> {
        match self.text(name)? {
            None | Some("off" | "false") => Ok(false),
            Some("on" | "true") => Ok(true),
            Some(other) => Err(format!("{name} is on, off, true or false, not {other:?}")),
        }
    }
}

fn name_of(key: &'static str) -> &'static str {
    key.split_once('=').map_or(key, |(name, _)| name)
}

/// The parts between single commas; two commas are one that belongs to a part.
fn split(text: &[u8]) -> Vec<Vec<u8>> {
    let (mut parts, mut part) = (Vec::new(), Vec::new());
    let mut bytes = text.iter().copied().peekable();
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
