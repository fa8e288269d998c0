//! The command line of `microvm`: flags, keys and sizes, each refused by name where it is wrong.

use std::path::PathBuf;
use std::str::FromStr;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};
use ossature::virtio::net::Mac;

/// Boots a Linux kernel in a virtual machine on KVM.
#[derive(Debug, Parser)]
#[command(name = "microvm", version)]
pub struct Args {
    /// Kernel: an ELF vmlinux or a bzImage
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, default_value = "console=ttyS0 8250.nr_uarts=1 panic=-1")]
    pub cmdline: String,
    /// Boot protocol; auto takes PVH where the kernel has it
    #[arg(long, value_enum, default_value_t = Boot::Auto)]
    pub boot: Boot,
    /// Number of vCPUs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub cpus: u32,
    /// Guest memory: bytes, or a number with K, M or G
    #[arg(long, default_value = "256M", value_parser = size)]
    pub memory: u64,
    /// Back guest memory with huge pages of this size
    #[arg(long, value_enum, num_args = 0..=1, default_missing_value = "2M", value_name = "SIZE")]
    pub hugepages: Option<HugePages>,
    /// Back guest memory with a memfd that other processes can share
    #[arg(long, conflicts_with = "hugepages")]
    pub shared_memory: bool,
    /// A raw disk image; repeatable, the first is vda
    #[arg(long, value_name = "path=FILE[,readonly][,id=NAME]")]
    pub disk: Vec<Disk>,
    /// A network card on an existing tap; repeatable
    #[arg(long, value_name = "tap=NAME[,mac=MAC]")]
    pub net: Vec<Nic>,
    /// Where the serial port goes: stdio, none, file=FILE or socket=PATH [default: stdio, or none with --console]
    #[arg(long, value_name = "WHERE")]
    serial: Option<SerialTo>,
    /// A virtio console (hvc0) on standard input and output
    #[arg(long)]
    pub console: bool,
    /// Print the stamps that the guest writes to port 0x3f0
    #[arg(long)]
    pub boot_timer: bool,
    /// Log level: off, error, warn, info, debug or trace
    #[arg(long, default_value = "warn")]
    pub log: log::LevelFilter,
}

impl Args {
    /// The command line, or the exit code 2 and a word on what is wrong with it.
    pub fn from_command_line() -> Self {
        let args = Self::parse();
        if args.console && matches!(args.serial, Some(SerialTo::Stdio)) {
            let text = "--console and --serial stdio both want standard input and output; give the serial port \
                        none, file=FILE or socket=PATH";
            Self::command().error(ErrorKind::ArgumentConflict, text).exit();
        }
        args
    }

    pub fn serial(&self) -> SerialTo {
        let default = if self.console { SerialTo::None } else { SerialTo::Stdio };
        self.serial.clone().unwrap_or(default)
    }

    /// Whether the terminal's keys go to the guest.
    pub fn uses_stdin(&self) -> bool {
        self.console || matches!(self.serial(), SerialTo::Stdio)
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Boot {
    Auto,
    Pvh,
    Linux,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum HugePages {
    #[value(name = "2M")]
    Two,
    #[value(name = "1G")]
    One,
}

/// `path=FILE[,readonly][,id=NAME]`
#[derive(Clone, Debug)]
pub struct Disk {
    pub path: PathBuf,
    pub readonly: bool,
    pub id: Option<String>,
}

/// `tap=NAME[,mac=MAC]`
#[derive(Clone, Debug)]
pub struct Nic {
    pub tap: String,
    pub mac: Option<Mac>,
}

#[derive(Clone, Debug)]
pub enum SerialTo {
    Stdio,
    None,
    File(PathBuf),
    Socket(PathBuf),
}

fn size(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.char_indices().next_back() {
        Some((at, 'K' | 'k')) => (&text[..at], 1 << 10),
        Some((at, 'M' | 'm')) => (&text[..at], 1 << 20),
        Some((at, 'G' | 'g')) => (&text[..at], 1 << 30),
        _ => (text, 1_u64),
    };
    match digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)) {
        Some(bytes) if bytes >= 1 << 20 && bytes % 4096 == 0 => Ok(bytes),
        Some(_) => Err("guest memory is at least 1M, in whole pages of 4K".to_owned()),
        None => Err("give a number of bytes, or a number with K, M or G, such as 512M".to_owned()),
    }
}

/// Splits `key=value,flag` and hands each part to `set`, which answers whether it knows the key.
fn keys(
    text: &str,
    known: &str,
    mut set: impl FnMut(&str, &str) -> Result<bool, String>,
) -> Result<(), String> {
    for part in text.split(',') {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        if !set(key, value)? {
            return Err(format!("unknown key {key:?}; known: {known}"));
        }
    }
    Ok(())
}

impl FromStr for Disk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut disk = Self { path: PathBuf::new(), readonly: false, id: None };
        keys(text, "path=FILE, readonly, id=NAME", |key, value| {
            match key {
                "path" => disk.path = value.into(),
                "readonly" if value.is_empty() => disk.readonly = true,
                "id" if !value.is_empty() => disk.id = Some(value.to_owned()),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if disk.path.as_os_str().is_empty() { Err("path=FILE is missing".to_owned()) } else { Ok(disk) }
    }
}

impl FromStr for Nic {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut nic = Self { tap: String::new(), mac: None };
        keys(text, "tap=NAME, mac=MAC", |key, value| {
            match key {
                "tap" => nic.tap = value.to_owned(),
                "mac" => nic.mac = Some(value.parse().map_err(|e| format!("mac: {e}"))?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        if nic.tap.is_empty() { Err("tap=NAME is missing".to_owned()) } else { Ok(nic) }
    }
}

impl FromStr for SerialTo {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "none" => Ok(Self::None),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("socket", path)) if !path.is_empty() => Ok(Self::Socket(path.into())),
            _ => Err("give stdio, none, file=FILE or socket=PATH".to_owned()),
        }
    }
}
