//! The command line of `microvm`: flags and sizes, each refused by name where it is wrong.

use std::error::Error;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, PossibleValuesParser, TypedValueParser};
use clap::{CommandFactory, Parser, error::ErrorKind};
use ossature::bus::RateLimit;
use ossature::legacy::GenerationId;
use ossature::memory::{Backing, host_page_size};
use ossature::virtio::console::PortName;
use ossature::virtio::vsock::Cid;
use ossature::vmm::machine::{OnReset, OnTripleFault};
use ossature::vmm::program::{KeyValueError, KeyValues, parse_rate, parse_size};

use crate::arch::{self, ArchArgs};
use crate::control;
use crate::disk::{self, Disk};
use crate::files::{self, ConfigFile};
use crate::identity;
use crate::nic::{self, Nic};
use crate::numa;

const HELP: &str = "SIGTERM presses the power button, Ctrl-A X quits. Exit code: 0 powered off or told to end, \
1 crash, panic or a failure of the host, 2 wrong usage, 3 the guest asked for a reset";

/// Boots a Linux kernel in a virtual machine on KVM.
#[derive(Debug, Parser)]
#[command(name = "microvm", version, after_help = HELP)]
pub struct Args {
    #[arg(long, help = arch::KERNEL, value_name = "FILE", required_unless_present = "restore")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line; what the machine itself needs there, such as pci=off, is added
    #[arg(long, default_value = arch::CMDLINE)]
    pub cmdline: String,
    /// Map kernel and initial RAM disk copy-on-write; the files must not change while the guest runs
    #[arg(long, conflicts_with_all = ["hugepages", "shared_memory"])]
    pub map_kernel: bool,
    #[command(flatten)]
    pub arch: ArchArgs,
    /// Give the guest a VM generation ID, by which it learns that it is a copy of another: a UUID, or auto for a new one
    #[arg(long, value_name = "UUID|auto", value_parser = identity::generation)]
    pub generation_id: Option<GenerationId>,
    /// A file for the guest, which Linux shows as /sys/firmware/qemu_fw_cfg/by_name/opt/NAME/raw; repeatable
    #[arg(long, value_name = files::FILE, value_parser = OsStringValueParser::new().try_map(ConfigFile::parse))]
    pub fw_cfg: Vec<ConfigFile>,
    /// Number of vCPUs [default: 1, or the snapshot's, or those of --numa]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub cpus: Option<u32>,
    /// Guest memory: bytes, or a number with K, M or G [default: 256M, or the snapshot's, or that of --numa]
    #[arg(long, value_parser = memory)]
    pub memory: Option<u64>,
    #[arg(long, value_name = numa::SYNTAX, help = numa::HELP, value_parser = OsStringValueParser::new().try_map(numa::Node::parse))]
    pub numa: Vec<numa::Node>,
    /// Back guest memory with huge pages of this size
    #[arg(long, num_args = 0..=1, default_missing_value = "2M", value_name = "SIZE", value_parser = PossibleValuesParser::new(["2M", "1G"]).map(|size| if size == "1G" { Backing::Huge1G } else { Backing::Huge2M }))]
    pub hugepages: Option<Backing>,
    /// Back guest memory with a memfd that other processes can share
    #[arg(long, conflicts_with = "hugepages")]
    pub shared_memory: bool,
    /// How the guest reaches virtio devices: registers of their own, or functions of a PCI bus [default: mmio, or the
    /// snapshot's]
    #[arg(long, value_enum, value_name = "mmio|pci", hide_possible_values = true)]
    pub transport: Option<Transport>,
    /// A disk; repeatable, the first is vda. A comma in a value is written twice
    #[arg(long, value_name = disk::SYNTAX, long_help = disk::HELP, value_parser = OsStringValueParser::new().try_map(Disk::parse))]
    pub disk: Vec<Disk>,
    /// A network card on an existing tap or macvtap, on a socket where passt or QEMU listens, or on the open descriptor of
    /// one of them; repeatable. With vhost the host's kernel moves the packets (vhost-net)
    #[arg(long, value_name = nic::VALUE, value_parser = OsStringValueParser::new().try_map(Nic::parse))]
    pub net: Vec<Nic>,
    /// How many random bytes a second the guest may draw, such as 64K/s, and with +SIZE how many once at any speed
    #[arg(long, value_name = "limit=RATE", value_parser = OsStringValueParser::new().try_map(rng))]
    pub rng: Option<RateLimit>,
    /// A socket device: programs connect to the Unix socket at PATH, the guest to those at PATH_PORT; or with vhost both
    /// to the host's AF_VSOCK, which its kernel serves
    #[arg(long, value_name = "cid=N,socket=PATH[,seqpacket=PATH]|cid=N,vhost", value_parser = OsStringValueParser::new().try_map(vsock))]
    pub vsock: Option<Sockets>,
    /// Where the serial port goes: stdio, none, file=FILE or socket=PATH [default: stdio, or none with --console]
    #[arg(long, value_name = "WHERE", value_parser = OsStringValueParser::new().try_map(serial))]
    serial: Option<SerialLine>,
    /// What a reset by the guest does: start the guest again in the same virtual machine, or end microvm
    #[arg(long, default_value = "exit", value_name = "restart|exit", value_parser = PossibleValuesParser::new(["restart", "exit"]).map(|what| if what == "restart" { OnReset::Restart } else { OnReset::Stop }))]
    pub on_reset: OnReset,
    /// What a triple fault of the guest is: a crash, or its request for a reset (Linux with reboot=t)
    #[arg(long, default_value = "crash", value_name = "reset|crash", value_parser = PossibleValuesParser::new(["reset", "crash"]).map(|what| if what == "reset" { OnTripleFault::Reset } else { OnTripleFault::Crash }))]
    pub on_triple_fault: OnTripleFault,
    /// A virtio console (hvc0) on standard input and output
    #[arg(long)]
    pub console: bool,
    /// A port that the guest finds by its name (/dev/virtio-ports/NAME) and programs of the host at a Unix socket, one at a
    /// time; repeatable. While none is connected, what the guest writes is dropped, or with hold waits for the next
    #[arg(long, value_name = "name=NAME,socket=PATH[,hold[=on|off]]", value_parser = OsStringValueParser::new().try_map(port))]
    pub port: Vec<Port>,
    /// A Unix socket for requests while the guest runs, such as to add a disk: --help tells all
    #[arg(long, value_name = "PATH", long_help = control::HELP)]
    pub control: Option<PathBuf>,
    /// Go on from a snapshot, with the same devices on whatever these flags name. Processors, memory and transport are
    /// the snapshot's; the kernel is needed only for --on-reset restart
    #[arg(long, value_name = "FILE", conflicts_with = "map_kernel")]
    pub restore: Option<PathBuf>,
    /// With --restore: memory is read when the guest touches it, and compared with its checksums, instead of mapping the
    /// file; that of the working set FILE.ws, if it is there, before that
    #[arg(long, requires = "restore")]
    pub on_demand: bool,
    /// A file of 32 secret bytes: snapshots are saved with this key, and --restore takes no other one. Memory is checked
    /// before the guest starts, or with --on-demand when it is touched
    #[arg(long, value_name = "FILE")]
    pub snapshot_key: Option<PathBuf>,
    /// Where --snapshot-on writes the machine to. A snapshot that is there is replaced, any other file is not
    #[arg(long, value_name = "FILE", requires = "snapshot_on")]
    pub snapshot_to: Option<PathBuf>,
    /// Write a snapshot when this signal comes; the guest goes on. Disks are no part of it: see docs/snapshots.md
    #[arg(long, value_name = "USR1|USR2", requires = "snapshot_to", value_parser = PossibleValuesParser::new(["USR1", "USR2", "SIGUSR1", "SIGUSR2"]).map(|name| if name.ends_with('1') { libc::SIGUSR1 } else { libc::SIGUSR2 }), hide_possible_values = true)]
    pub snapshot_on: Option<i32>,
    /// At the end, print when the machine was built and started, and the stamps that the guest wrote to port 0x3f0
    #[arg(long)]
    pub boot_timer: bool,
    /// Which of the machine's events to tell: off; error (what fails on the host); warn (what the guest's drivers do
    /// wrong, too); info (and the rest); debug and trace add nothing
    #[arg(long, default_value = "warn")]
    pub log: log::LevelFilter,
}

/// Where the guest finds virtio devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    Mmio,
    Pci,
}

/// Where the serial port's bytes go and come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SerialLine {
    Stdio,
    None,
    File(PathBuf),
    Socket(PathBuf),
}

#[derive(Clone, Debug)]
pub struct Port {
    pub name: PortName,
    pub socket: PathBuf,
    pub hold: bool,
}

#[derive(Clone, Debug)]
pub struct Sockets {
    pub cid: Cid,
    /// For streams; without one the host's kernel serves the device.
    pub socket: Option<PathBuf>,
    /// For sequential packets.
    pub seqpacket: Option<PathBuf>,
}

impl Args {
    /// The command line, or the exit code 2 and a word on what is wrong with it.
    pub fn from_command_line() -> Self {
        let args = Self::parse();
        if args.console && args.serial() == SerialLine::Stdio {
            let text = "--console and --serial stdio both want standard input and output";
            Self::command().error(ErrorKind::ArgumentConflict, text).exit();
        }
        if args.control.is_none() && args.disk.iter().any(Disk::pauses) {
            let text = "--disk on-error=pause needs --control PATH, where the machine is resumed";
            Self::command().error(ErrorKind::MissingRequiredArgument, text).exit();
        }
        if args.kernel.is_none() && args.on_reset == OnReset::Restart {
            let text = "--on-reset restart loads the kernel again: give --kernel, too";
            Self::command().error(ErrorKind::MissingRequiredArgument, text).exit();
        }
        args
    }

    /// Returns true if the guest's serial port or console is on standard input and output.
    pub fn reads_keyboard(&self) -> bool {
        self.console || self.serial() == SerialLine::Stdio
    }

    /// Where the serial port goes.
    pub fn serial(&self) -> SerialLine {
        let default = if self.console { SerialLine::None } else { SerialLine::Stdio };
        self.serial.clone().unwrap_or(default)
    }
}

pub fn memory(text: &str) -> Result<u64, Box<dyn Error + Send + Sync>> {
    let page = host_page_size() as u64;
    match parse_size(text)? {
        bytes if bytes >= 1 << 20 && bytes.is_multiple_of(page) => Ok(bytes),
        _ => Err(format!("guest memory is at least 1M, in whole pages of {}K", page >> 10).into()),
    }
}

fn port(text: OsString) -> Result<Port, KeyValueError> {
    let keys = KeyValues::parse(&text, &["name=NAME", "socket=PATH", "hold"])?;
    let name = keys.parsed("name")?.ok_or(KeyValueError::Missing { key: "name=NAME" })?;
    let socket = keys.value("socket").ok_or(KeyValueError::Missing { key: "socket=PATH" })?.into();
    Ok(Port { name, socket, hold: keys.flag("hold")? })
}

fn rng(text: OsString) -> Result<RateLimit, KeyValueError> {
    let keys = KeyValues::parse(&text, &["limit=RATE"])?;
    keys.parsed_by("limit", parse_rate)?.ok_or(KeyValueError::Missing { key: "limit=RATE" })
}

pub fn vsock(text: OsString) -> Result<Sockets, KeyValueError> {
    let keys = KeyValues::parse(&text, &["cid=N", "socket=PATH", "seqpacket=PATH", "vhost"])?;
    let missing = |key| KeyValueError::Missing { key };
    let path = |key| keys.value(key).map(PathBuf::from);
    let vhost = keys.flag("vhost")?;
    for key in ["socket", "seqpacket"] {
        if vhost && keys.value(key).is_some() {
            let reason = "with vhost programs use the host's AF_VSOCK, not Unix sockets".to_owned();
            return Err(KeyValueError::Wrong { key: key.to_owned(), reason });
        }
    }
    let socket = path("socket");
    if !vhost && socket.is_none() {
        return Err(missing("socket=PATH"));
    }
    Ok(Sockets { cid: keys.parsed("cid")?.ok_or(missing("cid=N"))?, socket, seqpacket: path("seqpacket") })
}

fn serial(text: OsString) -> Result<SerialLine, String> {
    let after = |prefix: &str| {
        let path = text.as_bytes().strip_prefix(prefix.as_bytes())?;
        (!path.is_empty()).then(|| PathBuf::from(OsStr::from_bytes(path)))
    };
    match (text.to_str(), after("file="), after("socket=")) {
        (Some("stdio"), ..) => Ok(SerialLine::Stdio),
        (Some("none"), ..) => Ok(SerialLine::None),
        (_, Some(path), _) => Ok(SerialLine::File(path)),
        (.., Some(path)) => Ok(SerialLine::Socket(path)),
        _ => Err("give stdio, none, file=FILE or socket=PATH".to_owned()),
    }
}
