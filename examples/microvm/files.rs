//! Files that the VMM has for its guest, such as those that tell it which of several it is.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use ossature::legacy::FwCfg;
use ossature::vmm::program::{KeyValueError, KeyValues};

use crate::report::Usage;
use crate::{Result, arch};

pub const FILE: &str = "name=opt/NAME,string=VALUE|file=PATH";

/// More than any file may have.
const TOO_MUCH: u64 = (16 << 20) + 1;

/// A file as the command line has it.
#[derive(Clone, Debug)]
pub struct ConfigFile {
    name: String,
    contents: Contents,
}

#[derive(Clone, Debug)]
enum Contents {
    String(Vec<u8>),
    File(PathBuf),
}

impl ConfigFile {
    pub fn parse(text: OsString) -> std::result::Result<Self, KeyValueError> {
        let keys = KeyValues::parse(&text, &["name=opt/NAME", "string=VALUE", "file=PATH"])?;
        let name = keys.parsed_by("name", name)?.ok_or(KeyValueError::Missing { key: "name=opt/NAME" })?;
        let contents = match (keys.value("string"), keys.value("file")) {
            (Some(string), None) => Contents::String(string.as_bytes().to_vec()),
            (None, Some(path)) => Contents::File(path.into()),
            (None, None) => return Err(KeyValueError::Missing { key: "string=VALUE or file=PATH" }),
            _ => {
                let (key, reason) = ("string".to_owned(), "give only one of string and file".to_owned());
                return Err(KeyValueError::Wrong { key, reason });
            }
        };
        Ok(Self { name, contents })
    }

    fn read(&self) -> Result<Vec<u8>> {
        match &self.contents {
            Contents::String(bytes) => Ok(bytes.clone()),
            Contents::File(path) => {
                let mut bytes = Vec::new();
                let read = File::open(path).and_then(|file| file.take(TOO_MUCH).read_to_end(&mut bytes));
                read.map_err(|e| format!("--fw-cfg file={}: {e}", path.display()))?;
                Ok(bytes)
            }
        }
    }
}

fn name(text: &str) -> std::result::Result<String, String> {
    if !text.starts_with("opt/") {
        return Err(format!("begins with opt/, such as opt/org.example/token, not {text:?}"));
    }
    arch::fw_cfg().file(text, "").map_err(|e| e.to_string())?;
    Ok(text.to_owned())
}

/// The device that has these files, if there are any.
pub fn fw_cfg(files: &[ConfigFile]) -> Result<Option<FwCfg>> {
    let add = |device: FwCfg, file: &ConfigFile| -> Result<_> {
        Ok(device.file(&file.name, file.read()?).map_err(|e| Usage(format!("--fw-cfg: {e}")))?)
    };
    let device = files.iter().try_fold(arch::fw_cfg(), add)?;
    Ok((!files.is_empty()).then_some(device))
}
