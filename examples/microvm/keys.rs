//! `key=value,flag`: how a device is described in one argument. A comma in a value is written twice.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// A key that an argument may have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Has a value of any text; shown as the name and what stands for the value.
    Value(&'static str, &'static str),
    /// Is on or off.
    Flag(&'static str),
}

impl Key {
    fn name(self) -> &'static str {
        match self {
            Self::Value(name, _) | Self::Flag(name) => name,
        }
    }

    fn shown(self) -> String {
        match self {
            Self::Value(name, value) => format!("{name}={value}"),
            Self::Flag(name) => format!("{name}[=on|off]"),
        }
    }
}

/// The keys of an argument, each with its value.
pub struct Keys(Vec<(&'static str, OsString)>);

impl Keys {
    /// Takes an argument apart. Each key has to be among `known`, and is there at most once.
    pub fn parse(text: &OsStr, known: &[Key]) -> Result<Self, String> {
        let mut keys = Self(Vec::new());
        for part in split(text.as_bytes()) {
            let (name, value) = match part.iter().position(|&byte| byte == b'=') {
                Some(at) => (&part[..at], Some(&part[at + 1..])),
                None => (&part[..], None),
            };
            let Some(key) = known.iter().find(|key| key.name().as_bytes() == name) else {
                return Err(unknown(&String::from_utf8_lossy(name), known));
            };
            let value = match (key, value) {
                (_, Some(value)) if !value.is_empty() => value,
                (Key::Flag(_), None) => b"on",
                _ => return Err(format!("{} is missing its value", key.shown())),
            };
            if keys.value(key.name()).is_some() {
                return Err(format!("{} is given twice", key.name()));
            }
            keys.0.push((key.name(), OsString::from_vec(value.to_vec())));
        }
        Ok(keys)
    }

    /// The value of a key, if it is there.
    pub fn value(&self, name: &str) -> Option<&OsStr> {
        self.0.iter().find(|(other, _)| *other == name).map(|(_, value)| value.as_os_str())
    }

    /// The value of a key that has to be there.
    pub fn required(&self, key: Key) -> Result<&OsStr, String> {
        self.value(key.name()).ok_or_else(|| format!("{} is missing", key.shown()))
    }

    /// The value of a key, if it is there, as text.
    pub fn text<'a>(&'a self, name: &str) -> Result<Option<&'a str>, String> {
        let text = |value: &'a OsStr| value.to_str().ok_or_else(|| format!("{name} is not UTF-8: {value:?}"));
        self.value(name).map(text).transpose()
    }

    /// Returns true if a flag is on.
    pub fn flag(&self, name: &str) -> Result<bool, String> {
        match self.value(name).map(OsStr::as_bytes) {
            None | Some(b"off" | b"false") => Ok(false),
            Some(b"on" | b"true") => Ok(true),
            Some(other) => {
                let other = String::from_utf8_lossy(other);
                Err(format!("{name} is on, off, true or false, not {other:?}"))
            }
        }
    }
}

fn unknown(name: &str, known: &[Key]) -> String {
    let known: Vec<String> = known.iter().map(|key| key.shown()).collect();
    format!("unknown key {name:?}; known: {}; a comma in a value is written twice", known.join(", "))
}

/// The parts between single commas; two commas are one in a part.
fn split(text: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = vec![Vec::new()];
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match parts.last_mut() {
            _ if byte == b',' && bytes.next_if_eq(&b',').is_none() => parts.push(Vec::new()),
            Some(part) => part.push(byte),
            None => {}
        }
    }
    parts
}
