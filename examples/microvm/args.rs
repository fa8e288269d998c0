//! The command line of `microvm`: flags, keys and sizes, each refused by name where it is wrong.

use std::collections::HashMap;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{CommandFactory, Parser, error::ErrorKind};
use ossature::boot::x86_64::BootProtocol;
use ossature::memory::Backing;
use ossature::virtio::net::Mac;
use ossature::vmm::machine::OnReset;

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
    #[arg(long, default_value = "console=ttyS0 8250.nr_uarts=1 panic=-1 pci=off")]
    pub cmdline: String,
    /// Boot protocol; auto takes PVH where the kernel has it
    #[arg(long, default_value = "auto", value_name = "auto|pvh|linux")]
    pub boot: BootProtocol,
    /// Map kernel and initial RAM disk copy-on-write; the files must not change while the guest runs
    #[arg(long, conflicts_with_all = ["hugepages", "shared_memory"])]
    pub map_kernel: bool,
    /// Number of vCPUs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub cpus: u32,
    /// Guest memory: bytes, or a number with K, M or G
    #[arg(long, default_value = "256M", value_parser = size)]
    pub memory: u64,
    /// Back guest memory with huge pages of this size
    #[arg(long, num_args = 0..=1, default_missing_value = "2M", value_name = "SIZE", value_parser = PossibleValuesParser::new(["2M", "1G"]).map(|size| if size == "1G" { Backing::Huge1G } else { Backing::Huge2M }))]
    pub hugepages: Option<Backing>,
    /// Back guest memory with a memfd that other processes can share
    #[arg(long, conflicts_with = "hugepages")]
    pub shared_memory: bool,
    /// A raw disk image; repeatable, the first is vda
    #[arg(long, value_name = "path=FILE[,readonly][,id=NAME]", value_parser = disk)]
    pub disk: Vec<Disk>,
    /// A network card on an existing tap; repeatable
    #[arg(long, value_name = "tap=NAME[,mac=MAC]", value_parser = nic)]
    pub net: Vec<Nic>,
    /// Where the serial port goes: stdio, none, file=FILE or socket=PATH [default: stdio, or none with --console]
    #[arg(long, value_name = "WHERE", value_parser = serial)]
    serial: Option<String>,
    /// What a reset by the guest does: end microvm, or start the guest again in the same virtual machine
    #[arg(long, default_value = "exit", value_name = "restart|exit", value_parser = PossibleValuesParser::new(["restart", "exit"]).map(|what| if what == "restart" { OnReset::Restart } else { OnReset::Stop }))]
    pub on_reset: OnReset,
    /// A virtio console (hvc0) on standard input and output
    #[arg(long)]
    pub console: bool,
    /// At the end, print when the machine was built and started, and the stamps that the guest wrote to port 0x3f0
    #[arg(long)]
    pub boot_timer: bool,
    /// Log level: off, error, warn, info, debug or trace
    #[arg(long, default_value = "warn")]
    pub log: log::LevelFilter,
}

#[derive(Clone, Debug)]
pub struct Disk {
    pub path: PathBuf,
    pub readonly: bool,
    pub id: Option<String>,
}

#[derive(Clone, Debug)]
pub struct Nic {
    pub tap: String,
    pub mac: Mac,
}

impl Args {
    /// The command line, or the exit code 2 and a word on what is wrong with it.
    pub fn from_command_line() -> Self {
        let args = Self::parse();
        if args.console && args.serial() == "stdio" {
            let text = "--console and --serial stdio both want standard input and output";
            Self::command().error(ErrorKind::ArgumentConflict, text).exit();
        }
        args
    }

    /// Returns true if the guest's serial port or console is on standard input and output.
    pub fn reads_keyboard(&self) -> bool {
        self.console || self.serial() == "stdio"
    }

    /// Where the serial port goes.
    pub fn serial(&self) -> &str {
        self.serial.as_deref().unwrap_or(if self.console { "none" } else { "stdio" })
    }
}

fn size(text: &str) -> Result<u64, String> {
    let units = [('K', 1 << 10), ('M', 1 << 20), ('G', 1 << 30)];
    let unit = units.into_iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)));
    let (digits, unit) = unit.unwrap_or((text, 1_u64));
    match digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)) {
        Some(bytes) if bytes >= 1 << 20 && bytes % 4096 == 0 => Ok(bytes),
        Some(_) => Err("guest memory is at least 1M, in whole pages of 4K".to_owned()),
        None => Err("give a number of bytes, or a number with K, M or G, such as 512M".to_owned()),
    }
}

/// Splits `key=value,flag`: all keys have to be among `known`, of which the first one has to be there.
fn keys<'a>(text: &'a str, known: &[&str]) -> Result<HashMap<&'a str, &'a str>, String> {
    let name = |key: &&str| key.split('=').next().unwrap_or_default().to_owned();
    let pairs = text.split(',').map(|part| part.split_once('=').unwrap_or((part, "")));
    let pairs: HashMap<_, _> = pairs.collect();
    if let Some(key) = pairs.keys().find(|key| !known.iter().any(|known| name(known) == **key)) {
        return Err(format!("unknown key {key:?}; known: {}", known.join(", ")));
    }
    match known.iter().find(|key| key.contains('=') && pairs.get(&*name(key)) == Some(&"")) {
        Some(key) => Err(format!("{key} is missing its value")),
        None if !pairs.contains_key(&*name(&known[0])) => Err(format!("{} is missing", known[0])),
        None => Ok(pairs),
    }
}

fn disk(text: &str) -> Result<Disk, String> {
    let keys = keys(text, &["path=FILE", "readonly", "id=NAME"])?;
    let id = keys.get("id").map(|&id| id.to_owned());
    Ok(Disk { path: keys["path"].into(), readonly: keys.contains_key("readonly"), id })
}

fn nic(text: &str) -> Result<Nic, String> {
    let keys = keys(text, &["tap=NAME", "mac=MAC"])?;
    let mac = keys.get("mac").map(|mac| mac.parse().map_err(|e| format!("mac: {e}"))).transpose()?;
    Ok(Nic { tap: keys["tap"].to_owned(), mac: mac.unwrap_or_else(|| Mac::derived(keys["tap"])) })
}

fn serial(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        None if text == "stdio" || text == "none" => Ok(text.to_owned()),
        Some(("file" | "socket", path)) if !path.is_empty() => Ok(text.to_owned()),
        _ => Err("give stdio, none, file=FILE or socket=PATH".to_owned()),
    }
}
