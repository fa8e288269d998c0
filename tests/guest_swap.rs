//! Devices are replaced under a guest that uses them, a hundred times: by others of the same kind, on other engines, image
//! formats and descriptors. It notices nothing.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ossature::block::{EngineKind, ImageFormat, OpenMode, Qcow2, Qcow2Options, RawFile, RawOptions};
use ossature::pci::PciBus;
use ossature::virtio::blk::DiskId;
use ossature::virtio::net::{Mac, Tap};
use ossature::virtio::{Blk, LocalDevice, MmioInterrupt, Net, SharedLoop};
use ossature::vmm::Kvm;
use ossature::vmm::machine::Machine;
use support::{LIMIT, Traffic, Transport, Virtio, hash_in_ext4, qemu};

const SWAPS: usize = 100;

#[test]
fn devices_are_swapped_a_hundred_times_under_traffic() {
    swap(Transport::Mmio);
}

#[test]
fn devices_on_pci_are_swapped_a_hundred_times_under_traffic() {
    swap(Transport::Pci);
}

/// The disk's files: a raw one, and images that come to lie over it.
struct Disks {
    raw: PathBuf,
    first: PathBuf,
    second: PathBuf,
}

impl Disks {
    fn new(raw: &Path) -> Self {
        Self { raw: raw.to_owned(), first: raw.with_extension("first"), second: raw.with_extension("second") }
    }

    /// What the guest's disk is in round `round`: the raw file on each engine, then an overlay of it, then one of that.
    fn device(&self, round: usize) -> Box<dyn LocalDevice> {
        let id: DiskId = "disk".parse().unwrap();
        let options = Qcow2Options::new(OpenMode::ReadWrite).with_backing_folder(self.raw.parent().unwrap());
        let overlay = |path, base, format| Qcow2::overlay(path, base, format, &options).unwrap();
        if round < SWAPS / 2 {
            let engine = [EngineKind::Sync, EngineKind::Uring, EngineKind::Thread][round % 3];
            let options = RawOptions::new(OpenMode::ReadWrite).engine(engine);
            Box::new(Blk::new(RawFile::open(&self.raw, options).unwrap(), id))
        } else if round < SWAPS * 3 / 4 {
            Box::new(Blk::new(overlay(&self.first, &self.raw, ImageFormat::Raw), id))
        } else {
            Box::new(Blk::new(overlay(&self.second, &self.first, ImageFormat::Qcow2), id))
        }
    }
}

fn swap(transport: Transport) {
    let traffic = Traffic::new();
    let disks = Disks::new(&traffic.image);
    let tap = Tap::open(&traffic.tap.name).unwrap();
    // What the guest has from round `round` on.
    let device = |id: &'static str, round| -> Virtio<'static> {
        let device: Box<dyn LocalDevice> = match id {
            "disk" => disks.device(round),
            "net" => Box::new(Net::new(tap.try_clone().unwrap(), Mac::derived(&traffic.tap.name))),
            _ => Box::new(traffic.console()),
        };
        (id, device, MmioInterrupt::Exact)
    };
    let (io, bus) = (Arc::new(SharedLoop::new("io").unwrap()), PciBus::new());
    let devices = transport.plug_into(&bus, ["disk", "net", "console"].map(|id| device(id, 0)), &io);
    let (builder, terminal) = traffic.guest.machine("swap", devices);
    let machine = builder.build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    let underway = traffic.begin(&terminal);
    for round in 1..=SWAPS {
        // Each is used before another one takes its place.
        let since = Instant::now();
        while written(&machine) == 0 {
            assert!(since.elapsed() < LIMIT, "round {round}: {}", terminal.log.text());
            thread::sleep(Duration::from_millis(5));
        }
        // An image that is written to is not all there: one over it is made in a pause.
        let paused = (round == SWAPS * 3 / 4).then(|| machine.pause().unwrap());
        for id in ["disk", if round % 2 == 0 { "net" } else { "console" }] {
            let old = machine.replace_device(transport.plug_one(&bus, device(id, round), &io));
            assert!(old.is_ok(), "round {round}, {id}: {:?}: {}", old.err(), terminal.log.text());
        }
        if let Some(paused) = paused {
            paused.resume().unwrap();
        }
    }
    let answers = underway.end(machine, &terminal, &traffic.guest);
    // Disks that were in use by then have all that the guest wrote, and none that came later has changed them.
    let raw = traffic.folder.path().join("all");
    qemu::to_raw(&disks.second, &raw);
    assert_eq!(hash_in_ext4(&raw, "/last"), answers["hash"], "the guest and the host read the same");
}

/// What the guest has written to the disk that it has now.
fn written(machine: &Machine) -> u64 {
    let mut bytes = 0;
    machine.metrics(&mut |scope, metric, value| {
        if (scope, metric.name) == ("disk", "written_bytes") {
            bytes = value;
        }
    });
    bytes
}
