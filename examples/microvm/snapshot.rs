//! `--restore`, and snapshots on a signal or on request: a machine becomes a file, and goes on from one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;

use ossature::vmm::error_chain;
use ossature::vmm::machine::{
    LifecycleState, Machine, MachineHandle, Snapshot, SnapshotError, SnapshotKey, WorkingSet,
};
use ossature::vmm::program::Signals;

use crate::args::{Args, Transport};
use crate::report::{USER, Usage};
use crate::{Result, arch};

/// The id of the PCI bus.
pub const PCI: &str = "pci";

/// The snapshot that the machine goes on from, if there is to be one.
pub fn open(args: &Args, key: Option<&SnapshotKey>) -> Result<Option<Snapshot>> {
    let Some(path) = &args.restore else { return Ok(None) };
    let opened = match key {
        Some(key) => key.open(path),
        None => Snapshot::open(path),
    };
    let snapshot = opened.map_err(|error| format!("--restore {}", failed(path, &error)))?;
    if !args.on_demand {
        return Ok(Some(snapshot));
    }
    let snapshot = snapshot.on_demand();
    let mut beside = path.clone().into_os_string();
    beside.push(".ws");
    let beside = PathBuf::from(beside);
    if !beside.exists() {
        return Ok(Some(snapshot));
    }
    let snapshot = WorkingSet::open(&beside).and_then(|set| snapshot.prefetch(set));
    Ok(Some(snapshot.map_err(|error| failed(&beside, &error))?))
}

/// The key of `--snapshot-key`, if there is one.
pub fn key(args: &Args) -> Result<Option<SnapshotKey>> {
    let Some(path) = &args.snapshot_key else { return Ok(None) };
    let key = File::open(path).and_then(SnapshotKey::read);
    Ok(Some(key.map_err(|error| format!("--snapshot-key {}: {error}", path.display()))?))
}

/// The file, and what is wrong with it.
fn failed(path: &Path, error: &SnapshotError) -> String {
    match error {
        // It names the file itself.
        SnapshotError::File { .. } | SnapshotError::Opened { .. } | SnapshotError::Taken { .. } => {
            error_chain(error)
        }
        error => format!("{}: {}", path.display(), error_chain(error)),
    }
}

/// Where virtio devices are: a guest goes on where they were.
pub fn transport(args: &Args, snapshot: Option<&Snapshot>) -> Result<Transport> {
    let Some(snapshot) = snapshot else { return Ok(args.transport.unwrap_or(Transport::Mmio)) };
    let is_pci = snapshot.devices().any(|id| id == PCI);
    let (found, name) = if is_pci { (Transport::Pci, "pci") } else { (Transport::Mmio, "mmio") };
    if args.transport.is_some_and(|asked| asked != found) {
        let text = format!("--transport: the machine of the snapshot has {name}; leave the flag out");
        return Err(Usage(text).into());
    }
    Ok(found)
}

/// What of the command line does not fit the snapshot, in its own words.
pub fn usage(args: &Args, error: &SnapshotError) -> Option<String> {
    let path = args.restore.as_deref().unwrap_or(Path::new("")).display();
    match error {
        SnapshotError::OtherCpus { found, asked } => {
            Some(format!("--cpus {asked}: the machine of {path} has {found}; leave the flag out"))
        }
        SnapshotError::OtherMemory { found, asked } => {
            Some(format!("--memory {asked}: the machine of {path} has {found} bytes; leave the flag out"))
        }
        SnapshotError::OtherNuma => {
            Some(format!("--numa: the machine of {path} has other NUMA nodes; leave the flag out"))
        }
        SnapshotError::KeyNeeded { key } => {
            Some(format!("--restore {path}: it was saved with key {key}; give it with --snapshot-key"))
        }
        SnapshotError::OtherDevices { missing, extra } => {
            let list = |ids: &[String]| {
                let flags: Vec<_> = ids.iter().map(|id| format!("{id} ({})", flag(id))).collect();
                flags.join(", ")
            };
            let mut text = format!("--restore {path}: give the flags of the devices that its machine has");
            if !missing.is_empty() {
                text += &format!("; missing: {}", list(missing));
            }
            if !extra.is_empty() {
                text += &format!("; too much: {}", list(extra));
            }
            Some(text)
        }
        _ => None,
    }
}

/// The flag that a device comes from.
fn flag(id: &str) -> String {
    let numbered = |kind| id.strip_prefix(kind).is_some_and(|n| n.bytes().all(|byte| byte.is_ascii_digit()));
    match id {
        arch::SERIAL => "--serial".to_owned(),
        "vsock" => "--vsock".to_owned(),
        "console" => "--console or --port".to_owned(),
        "boot-timer" => "--boot-timer".to_owned(),
        "fw-cfg" => "--fw-cfg".to_owned(),
        "generation" => "--generation-id".to_owned(),
        // Where it depends on them, as on aarch64.
        "rtc" => "--tables".to_owned(),
        _ if numbered("net") => "--net".to_owned(),
        _ if numbered("disk") => "--disk".to_owned(),
        _ => format!("--disk path=FILE,id={id}"),
    }
}

/// Writes snapshots of a machine, one at a time.
#[derive(Clone)]
pub struct Snapshots {
    machine: MachineHandle,
    /// The guest changes disks that no snapshot has.
    changes_disks: bool,
    busy: Arc<Mutex<()>>,
}

impl Snapshots {
    pub fn new(machine: &Machine, args: &Args) -> Self {
        let changes_disks = args.disk.iter().any(|disk| !disk.readonly);
        Self { machine: machine.handle(), changes_disks, busy: Arc::default() }
    }

    /// Writes one. A machine that runs is paused meanwhile. Returns what the user should know, if there is anything.
    pub fn write(&self, path: &Path) -> Result<Option<&'static str>> {
        let _busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        self.machine.snapshot(path).map_err(|error| failed(path, &error))?;
        Ok(self.warning())
    }

    /// Writes one of a machine that runs and goes on meanwhile, and tells what it has cost the guest.
    pub fn write_live(&self, path: &Path) -> Result<String> {
        let _busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let saved = self.machine.snapshot_live(path).map_err(|error| failed(path, &error))?;
        let warning = self.warning().map_or_else(String::new, |warning| format!(". {warning}"));
        Ok(format!("ok. The guest was paused for {:?}{warning}", saved.paused))
    }

    /// Writes the working set of a guest whose memory comes on demand, and tells how it comes.
    pub fn write_working_set(&self, path: &Path) -> Result<String> {
        let (set, progress) = (self.machine.working_set()?, self.machine.memory_progress()?);
        let (Some(set), Some(progress)) = (set, progress) else {
            return Err("its memory does not come on demand: use --on-demand".into());
        };
        set.save(path).map_err(|error| failed(path, &error))?;
        Ok(format!("ok. {} MiB; {} faults", set.bytes() >> 20, progress.faults))
    }

    /// After a snapshot: what will not fit it soon.
    fn warning(&self) -> Option<&'static str> {
        (self.changes_disks && self.machine.state() == LifecycleState::Running).then_some(
            "The guest goes on and changes its disks, which are no part of it: to keep both, pause, snapshot and resume \
             by --control, and copy the disks in between",
        )
    }

    /// Waits for the one that is being written. There are no more until the result is dropped.
    pub fn end(&self) -> MutexGuard<'_, ()> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes one when the signal comes that the command line names.
    pub fn on_signal(&self, args: &Args, signals: Signals) -> Signals {
        let (Some(path), Some(signal)) = (&args.snapshot_to, args.snapshot_on) else { return signals };
        let (snapshots, path) = (self.clone(), path.clone());
        signals.on_signal(signal, move || {
            let (snapshots, path) = (snapshots.clone(), path.clone());
            // The thread that runs the devices must not wait for vCPUs.
            let thread = thread::Builder::new().name("snapshot".to_owned());
            if let Err(e) = thread.spawn(move || snapshots.write_and_tell(path)) {
                USER.say_or_drop(format!("no thread for a snapshot: {e}"));
            }
        })
    }

    fn write_and_tell(&self, path: PathBuf) {
        let Ok(_busy) = self.busy.try_lock().or_else(|error| match error {
            TryLockError::Poisoned(poisoned) => Ok(poisoned.into_inner()),
            TryLockError::WouldBlock => Err(()),
        }) else {
            return USER.say_or_drop("a snapshot is being written already");
        };
        match self.machine.snapshot(&path) {
            Ok(()) => {
                let warning = self.warning().map_or_else(String::new, |warning| format!(". {warning}"));
                USER.say_or_drop(format!("snapshot {} written{warning}", path.display()));
            }
            Err(error) => USER.say_or_drop(format!("--snapshot-to {}", failed(&path, &error))),
        }
    }
}
