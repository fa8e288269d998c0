//! What the guest finds: its platform's own devices, a serial port, and virtio devices.

use std::collections::BTreeMap;
use std::io::{self, stdin, stdout};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ossature::bus::{Device, EventLoop, Hosted, RateLimiter, RateLimits};
use ossature::legacy::{
    DebugPort, Escape, Generation, KeyFilter, PowerButton, Stamps, VmGenId, backend, window_size,
};
use ossature::pci::PciBus;
use ossature::virtio::blk::BlkHandle;
use ossature::virtio::console::{
    Console, ConsoleInput, ConsoleOutput, ConsolePort, ConsoleWindow, PortSocket,
};
use ossature::virtio::net::LinkHandle;
use ossature::virtio::vsock::{HostSocket, VhostVsock, Vsock};
use ossature::virtio::{
    Local, LocalDevice, MmioInterrupt, Rng, Runtime, VirtioDevice, VirtioMmio, VirtioPci,
};
use ossature::vmm::machine::{MachineBuilder, MachineHandle};
use ossature::vmm::program::raise_descriptor_limit;

use crate::Result;
use crate::args::{Args, Port, SerialLine, Sockets, Transport};
use crate::report::{USER, Usage};
use crate::{arch, disk, files, snapshot};

/// So many virtio devices have an interrupt line of their own. The others share what is left that a machine has.
const OWN_LINES: usize = 12;
/// The id of the socket device, of which there is one.
pub const VSOCK: &str = "vsock";

/// What is left to its VMM of the devices that a machine has.
pub struct Devices {
    /// The guest's power button, if it has one.
    pub button: Option<PowerButton>,
    /// The guest's generation, if it has one.
    pub generation: Option<Generation>,
    /// What the guest wrote to the boot timer's port.
    pub stamps: Stamps,
    /// The window of the console, if there is one.
    pub window: Option<ConsoleWindow>,
    /// Where virtio devices are put.
    pub virtio: Virtio,
    /// The disks, by id.
    pub disks: BTreeMap<String, BlkHandle>,
    /// The links of network cards, by id.
    pub links: BTreeMap<String, LinkHandle>,
    /// Feeds the console for as long as it lives.
    _keyboard: Option<Hosted<KeyFilter>>,
}

impl Devices {
    /// Adds all devices to the machine, virtio devices in the order in which the guest finds them. What they do when
    /// a descriptor is ready, they do on the loop `here`.
    pub fn add_to(
        builder: MachineBuilder,
        args: &Args,
        transport: Transport,
        here: &EventLoop,
        started: Instant,
    ) -> Result<(MachineBuilder, Self)> {
        let machine = builder.handle();
        let (builder, button) = args.arch.add_to(builder, here)?;
        let mut builder = builder.devices(serial(args, &machine, here)?);
        let generation = args.generation_id.map(|id| VmGenId::new("generation", id));
        let handle = generation.as_ref().map(VmGenId::generation);
        builder = builder.devices(generation.map(|device| Box::new(device) as Box<dyn Device>));
        let files = files::fw_cfg(&args.fw_cfg)?;
        builder = builder.devices(files.map(|device| Box::new(device) as Box<dyn Device>));
        let timer = DebugPort::new("boot-timer", started);
        let stamps = timer.stamps();
        if args.boot_timer && arch::HAS_PORTS {
            builder = builder.device(timer);
        }

        let mut virtio = Virtio::new(transport, here);
        builder =
            builder.devices(virtio.bus().map(|bus| Box::new(bus.host(snapshot::PCI)) as Box<dyn Device>));
        let limits = args.rng.map(|bytes| RateLimiter::new(RateLimits::new(Some(bytes), None)));
        let rng = limits.into_iter().fold(Rng::new(), Rng::with_limits);
        builder = builder.device(virtio.device("rng", Box::new(rng)));
        let mut disks = BTreeMap::new();
        disk::each_file_is_one_disk(&args.disk)?;
        for disk in &args.disk {
            let number = virtio.next("disk");
            let id = disk.id.map_or_else(|| number.parse(), Ok)?;
            let (device, handle) = disk.device(id)?;
            disks.insert(id.to_string(), handle);
            builder = builder.device(virtio.device(id.to_string(), device));
        }
        let mut links = BTreeMap::new();
        for nic in &args.net {
            let id = virtio.next("net");
            let (device, link) = nic.device(&id, virtio.runtime())?;
            links.insert(id.clone(), link);
            builder = builder.device(virtio.plug(id, device));
        }
        if let Some(sockets) = &args.vsock {
            let device = vsock(sockets, virtio.runtime())?;
            builder = builder.device(virtio.plug(VSOCK, device));
        }
        let (mut keyboard, mut window, mut ports) = (None, None, Vec::new());
        if args.console {
            let input = match KeyFilter::new(stdin(), on_key(&machine))? {
                Some((filter, input)) => {
                    keyboard = Some(filter.on(here)?);
                    ConsoleInput::new(input)?
                }
                None => ConsoleInput::new(stdin())?,
            };
            ports.push(ConsolePort::console(Some(input), ConsoleOutput::new(stdout())?));
        }
        for port in &args.port {
            ports.push(console_port(port)?);
        }
        if !ports.is_empty() {
            let console = Console::with_ports(ports).map_err(|e| Usage(format!("--port: {e}")))?;
            if args.console {
                fit(window.insert(console.window()));
            }
            builder = builder.device(virtio.device("console", Box::new(console)));
        }
        let generation = handle;
        Ok((builder, Self { button, generation, stamps, window, virtio, disks, links, _keyboard: keyboard }))
    }
}

/// Puts virtio devices where the guest finds them.
pub struct Virtio {
    here: EventLoop,
    bus: Option<PciBus>,
    /// Lines of their own that are left.
    lines: usize,
    /// How many devices of a kind there are or were.
    numbers: BTreeMap<&'static str, u32>,
}

impl Virtio {
    fn new(transport: Transport, here: &EventLoop) -> Self {
        let bus = (transport == Transport::Pci).then(PciBus::new);
        Self { here: here.clone(), bus, lines: OWN_LINES, numbers: BTreeMap::new() }
    }

    /// The PCI bus, if they are there.
    pub fn bus(&self) -> Option<&PciBus> {
        self.bus.as_ref()
    }

    /// A name for the next device of a kind.
    pub fn next(&mut self, kind: &'static str) -> String {
        let number = self.numbers.entry(kind).or_default();
        let name = format!("{kind}{number}");
        *number += 1;
        name
    }

    /// What serves them.
    pub fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(self.here.clone())
    }

    /// The device, served here, behind its transport.
    pub fn device(&mut self, id: impl Into<String>, device: Box<dyn LocalDevice>) -> Box<dyn Device> {
        let id = id.into();
        let device = Local::new(id.clone(), device, self.runtime());
        self.plug(id, Box::new(device))
    }

    /// The device, wherever it is served, behind its transport.
    pub fn plug(&mut self, id: impl Into<String>, device: Box<dyn VirtioDevice>) -> Box<dyn Device> {
        if let Some(bus) = &self.bus {
            return Box::new(VirtioPci::from_device(id, device, bus));
        }
        // Linux needs no true interrupt status, and then no interrupt costs an exit.
        let interrupt = if self.lines > 0 { MmioInterrupt::AlwaysSet } else { MmioInterrupt::SharedLine };
        self.lines = self.lines.saturating_sub(1);
        Box::new(VirtioMmio::from_device(id, device).with_interrupt(interrupt))
    }
}

/// Gives the console the size of the window that it is shown in.
pub fn fit(window: &ConsoleWindow) {
    if let Some((columns, rows)) = window_size(stdout()).or_else(|| window_size(stdin())) {
        window.resize(columns, rows);
    }
}

/// The serial port, unless it goes nowhere.
fn serial(args: &Args, machine: &MachineHandle, here: &EventLoop) -> Result<Option<Box<dyn Device>>> {
    let failed = |how: &str, path: &Path, e: io::Error| format!("--serial {how}={}: {e}", path.display());
    let line = match args.serial() {
        SerialLine::None => return Ok(None),
        SerialLine::Stdio => backend::stdio()?.with_escape_keys(on_key(machine)),
        SerialLine::File(path) => backend::file(&path).map_err(|e| failed("file", &path, e))?,
        SerialLine::Socket(path) => backend::socket(&path).map_err(|e| failed("socket", &path, e))?,
    };
    Ok(Some(arch::serial(line, here)))
}

fn console_port(port: &Port) -> Result<ConsolePort> {
    let failed = |e: io::Error| format!("--port socket={}: {e}", port.socket.display());
    let socket = PortSocket::bind(&port.socket).map_err(failed)?;
    let made = ConsolePort::socket(port.name.clone(), socket);
    Ok(if port.hold { made.hold_output() } else { made })
}

/// The socket device, served on `runtime` or by the host's kernel.
pub fn vsock(sockets: &Sockets, runtime: Arc<dyn Runtime>) -> Result<Box<dyn VirtioDevice>> {
    let Some(path) = &sockets.socket else {
        let device = VhostVsock::new(sockets.cid).map_err(|e| format!("--vsock vhost: {e}"))?;
        return Ok(device.on(VSOCK, runtime)?);
    };
    // Each connection takes a descriptor.
    raise_descriptor_limit()?;
    let mut device = Vsock::new(sockets.cid)?;
    let socket = HostSocket::bind(path).map_err(|e| format!("--vsock socket: {e}"))?;
    device = device.with_socket(socket)?;
    if let Some(path) = &sockets.seqpacket {
        let socket = HostSocket::bind_seqpacket(path).map_err(|e| format!("--vsock seqpacket: {e}"))?;
        device = device.with_socket(socket)?;
    }
    Ok(Box::new(Local::new(VSOCK, Box::new(device), runtime)))
}

fn on_key(machine: &MachineHandle) -> impl Fn(Escape) + Send + 'static {
    let machine = machine.clone();
    move |key| match key {
        Escape::Quit => machine.stop(),
        _ => USER.say_or_drop("Ctrl-A X quits, Ctrl-A Ctrl-A sends Ctrl-A, Ctrl-A H is this help"),
    }
}
