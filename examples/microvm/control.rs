//! `--control`: what the user asks of the machine while it runs. Each line is a request, and is answered by a line that
//! begins with `ok` or `error`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use ossature::boot::x86_64::smbios::Uuid;
use ossature::legacy::{Generation, GenerationId, PowerButton};
use ossature::virtio::blk::BlkHandle;
use ossature::virtio::net::LinkHandle;
use ossature::vmm::error_chain;
use ossature::vmm::machine::{MachineEvent, MachineHandle};
use ossature::vmm::program::parse_size;

use crate::devices::{self, VSOCK, Virtio};
use crate::disk::Disk;
use crate::nic::Nic;
use crate::snapshot::Snapshots;
use crate::{Result, args};

pub const HELP: &str = "\
A Unix socket for requests while the guest runs, one a line, such as: echo remove disk1 | socat - UNIX-CONNECT:PATH
  add disk KEYS, add net KEYS, add vsock KEYS
                  a device as --disk, --net and --vsock describe it; needs --transport pci
  remove ID       ask the guest to give a device up, and wait until it has
  resize ID SIZE  make a disk larger or smaller
  link ID up|down plug a network card's cable in, or pull it out
  snapshot PATH   write the machine to a file, for --restore; one that is not paused goes on
  snapshot-live PATH
                  the same of a machine that runs, and is hardly paused: writes to memory wait until it is copied
  working-set PATH
                  with --on-demand: which memory the guest has touched, for FILE.ws beside the snapshot
  new-generation  give the guest another generation ID, and tell it so; needs --generation-id
  pause, resume, power-button, quit";

/// The longest request in bytes.
const LINE: u64 = 8192;
/// How long to wait before a connection is accepted that could not be.
const RETRY: Duration = Duration::from_millis(100);
/// How long a guest may take to give a device up.
const PATIENCE: Duration = Duration::from_secs(60);

/// What requests work with.
pub struct Control {
    machine: MachineHandle,
    button: Option<PowerButton>,
    generation: Option<Generation>,
    virtio: Mutex<Virtio>,
    disks: Mutex<BTreeMap<String, BlkHandle>>,
    links: Mutex<BTreeMap<String, LinkHandle>>,
    snapshots: Snapshots,
}

impl Control {
    pub fn new(
        machine: MachineHandle,
        button: Option<PowerButton>,
        generation: Option<Generation>,
        virtio: Virtio,
        disks: BTreeMap<String, BlkHandle>,
        links: BTreeMap<String, LinkHandle>,
        snapshots: Snapshots,
    ) -> Self {
        let (virtio, disks, links) = (Mutex::new(virtio), Mutex::new(disks), Mutex::new(links));
        Self { machine, button, generation, virtio, disks, links, snapshots }
    }

    /// Serves whoever connects, each on a thread of its own, until the process ends: requests wait for vCPUs, which the
    /// thread that runs the devices must not.
    pub fn serve(self, listener: UnixListener) -> io::Result<()> {
        let control = Arc::new(self);
        listener.set_nonblocking(false)?;
        thread::Builder::new().name("control".to_owned()).spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else {
                    // Out of descriptors, at most for a while: the client waits.
                    thread::sleep(RETRY);
                    continue;
                };
                let control = Arc::clone(&control);
                // A client that cannot be served is hung up on.
                let _ =
                    thread::Builder::new().name("client".to_owned()).spawn(move || control.client(client));
            }
        })?;
        Ok(())
    }

    /// Answers a client's requests until it goes.
    fn client(&self, stream: UnixStream) {
        let Ok(mut answers) = stream.try_clone() else { return };
        let mut requests = BufReader::new(stream);
        loop {
            let mut line = Vec::new();
            match requests.by_ref().take(LINE).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let answer = match String::from_utf8(line) {
                Ok(line) if line.len() < LINE as usize => match self.request(line.trim()) {
                    Ok(answer) => answer,
                    // One line, whatever the error has.
                    Err(error) => format!("error: {}", error_chain(&*error).replace('\n', " ")),
                },
                _ => format!("error: a request is text of less than {LINE} bytes"),
            };
            if writeln!(answers, "{answer}").is_err() {
                return;
            }
        }
    }

    fn request(&self, line: &str) -> Result<String> {
        let words: Vec<_> = line.splitn(3, ' ').map(str::trim).collect();
        match *words.as_slice() {
            ["add", "disk", keys] => self.add_disk(keys),
            ["add", "net", keys] => self.add_net(keys),
            ["add", "vsock", keys] => self.add_vsock(keys),
            ["remove", id] => self.remove(id),
            ["resize", id, size] => self.resize(id, size),
            ["link", id, "up"] => self.link(id, true),
            ["link", id, "down"] => self.link(id, false),
            ["snapshot", _, ..] => {
                // Paths have spaces, too.
                let path = line.strip_prefix("snapshot").unwrap_or_default().trim();
                let warning = self.snapshots.write(Path::new(path))?;
                warning.map_or_else(ok, |warning| Ok(format!("ok. {warning}")))
            }
            ["snapshot-live", _, ..] => {
                self.snapshots.write_live(Path::new(line.strip_prefix("snapshot-live").unwrap_or_default().trim()))
            }
            ["working-set", _, ..] => {
                let path = line.strip_prefix("working-set").unwrap_or_default().trim();
                self.snapshots.write_working_set(Path::new(path))
            }
            ["new-generation"] => self.new_generation(),
            ["pause"] => {
                self.machine.pause()?.keep();
                ok()
            }
            ["resume"] => {
                self.machine.resume()?;
                ok()
            }
            ["power-button"] => {
                let button = self.button.as_ref().ok_or("this machine has no power button")?;
                button.press()?;
                ok()
            }
            ["quit"] => {
                self.machine.stop();
                ok()
            }
            _ => Err(format!(
                "{line:?} is no request; there are: add disk KEYS, add net KEYS, add vsock KEYS, remove ID, \
                              resize ID SIZE, link ID up|down, snapshot PATH, snapshot-live PATH, working-set PATH, \
                              new-generation, pause, resume, power-button, quit"
            )
            .into()),
        }
    }

    fn add_disk(&self, keys: &str) -> Result<String> {
        let disk = Disk::parse(OsString::from(keys))?;
        let mut virtio = self.virtio()?;
        let id = disk.id.map_or_else(|| virtio.next("disk").parse(), Ok)?;
        let (device, handle) = disk.device(id)?;
        self.machine.add_device(virtio.device(id.to_string(), device))?;
        self.disks().insert(id.to_string(), handle);
        Ok(format!("ok {id}"))
    }

    fn add_net(&self, keys: &str) -> Result<String> {
        let nic = Nic::parse(OsString::from(keys))?;
        let mut virtio = self.virtio()?;
        let id = virtio.next("net");
        let (device, link) = nic.device(&id, virtio.runtime())?;
        self.machine.add_device(virtio.plug(id.clone(), device))?;
        self.links().insert(id.clone(), link);
        Ok(format!("ok {id}"))
    }

    fn add_vsock(&self, keys: &str) -> Result<String> {
        let sockets = args::vsock(OsString::from(keys))?;
        let mut virtio = self.virtio()?;
        let device = devices::vsock(&sockets, virtio.runtime())?;
        self.machine.add_device(virtio.plug(VSOCK, device))?;
        Ok(format!("ok {VSOCK}"))
    }

    /// The way onto the PCI bus: nowhere else do guests notice what comes and goes.
    fn virtio(&self) -> Result<MutexGuard<'_, Virtio>> {
        let virtio = self.virtio.lock().unwrap_or_else(PoisonError::into_inner);
        if virtio.bus().is_none() {
            return Err("devices come and go on PCI only: start microvm with --transport pci".into());
        }
        Ok(virtio)
    }

    fn disks(&self) -> MutexGuard<'_, BTreeMap<String, BlkHandle>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<String, LinkHandle>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remove(&self, id: &str) -> Result<String> {
        let mut events = self.machine.events();
        // It follows from the machine's beginning: an earlier device may have had the same id.
        while let Some(event) = events.try_next() {
            if matches!(event, MachineEvent::Ended(_)) {
                return Err("the machine has ended".into());
            }
        }
        self.virtio()?.bus().map(|bus| bus.request_removal(id)).transpose()?;
        let deadline = Instant::now() + PATIENCE;
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            match events.next_timeout(left) {
                Some(MachineEvent::DeviceRemoved { id: gone }) if gone == id => {
                    self.forget_what_has_gone();
                    return ok();
                }
                Some(MachineEvent::Ended(_)) => return Err("the machine has ended".into()),
                _ => {}
            }
        }
        Err(format!("the guest has not given {id} up within {} seconds", PATIENCE.as_secs()).into())
    }

    /// A guest gives devices up without being asked, too: those have no metrics any more.
    fn forget_what_has_gone(&self) {
        let (mut disks, mut links) = (self.disks(), self.links());
        let mut there = BTreeSet::new();
        self.machine.metrics(&mut |scope, _, _| _ = there.insert(scope.to_owned()));
        disks.retain(|id, _| there.contains(id));
        links.retain(|id, _| there.contains(id));
    }

    fn resize(&self, id: &str, size: &str) -> Result<String> {
        let bytes = parse_size(size)?;
        self.forget_what_has_gone();
        let disk = self.disks().get(id).cloned();
        disk.ok_or_else(|| format!("there is no disk {id:?}"))?.resize(bytes)?;
        ok()
    }

    fn new_generation(&self) -> Result<String> {
        let generation = self.generation.as_ref();
        let generation =
            generation.ok_or("the guest has no generation ID: start microvm with --generation-id")?;
        let id = GenerationId::random()?;
        generation.set(id)?;
        Ok(format!("ok {}", Uuid(id.0)))
    }

    fn link(&self, id: &str, up: bool) -> Result<String> {
        self.forget_what_has_gone();
        let link = self.links().get(id).cloned();
        link.ok_or_else(|| format!("there is no network card {id:?}"))?.set_link(up);
        ok()
    }
}

fn ok() -> Result<String> {
    Ok("ok".to_owned())
}
