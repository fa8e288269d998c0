//! A driver that is not Linux's: the `virtio-drivers` crate, unmodified, in a bare-metal guest
//! (`tests/guests/virtio-drivers`), drives a disk, a network card, a console and an entropy source. It also writes the
//! registers of a device itself, in orders that neither this driver nor Linux' takes.

mod support;

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use ossature::boot::x86_64::{self, BootSpec};
use ossature::boot::{NodeKind, NodeRange, Platform};
use ossature::bus::Device;
use ossature::legacy::AcpiPower;
use ossature::memory::{GuestMmap, RamConfig};
use ossature::virtio::blk::{DiskId, OpenMode, RawFile};
use ossature::virtio::console::{Console, ConsoleInput, ConsoleOutput};
use ossature::virtio::net::{self, Mac};
use ossature::virtio::{Blk, LocalDevice, Net, Rng, SharedLoop, VirtioMmio};
use ossature::vmm::machine::{Machine, Outcome};
use ossature::vmm::{Kvm, Registers};
use support::{LIMIT, Tap, Terminal};
use xtask::bare_metal;

const DISK: u64 = 1 << 20;

#[test]
fn g1_to_g4_a_foreign_driver_drives_every_device_and_a_second_one_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    File::create(&image).unwrap().set_len(DISK).unwrap();
    let tap = Tap::new();
    let (serial, com1) = Terminal::new();
    let (terminal, theirs) = UnixStream::pair().unwrap();
    let input = ConsoleInput::new(theirs.try_clone().unwrap()).unwrap();
    thread::spawn(move || echo(terminal));

    let disk =
        Blk::new(RawFile::open(&image, OpenMode::ReadWrite).unwrap(), "disk".parse::<DiskId>().unwrap());
    let net = Net::new(net::Tap::open(&tap.name).unwrap(), Mac::derived(&tap.name));
    let virtio: [(&str, Box<dyn LocalDevice>); 5] = [
        ("registers", Box::new(Rng::new())),
        ("rng", Box::new(Rng::new())),
        ("blk", Box::new(disk)),
        ("console", Box::new(Console::new(Some(input), ConsoleOutput::new(theirs).unwrap()))),
        ("net", Box::new(net)),
    ];
    let io = Arc::new(SharedLoop::new("io").unwrap());
    let mut devices: Vec<Box<dyn Device>> = vec![Box::new(AcpiPower::new("power")), Box::new(com1)];
    for (id, device) in virtio {
        devices.push(Box::new(VirtioMmio::new(id, device, io.clone())));
    }
    let addresses = format!("guest={} host={}", tap.guest, tap.host);
    let machine = Machine::builder("foreign")
        .memory(RamConfig::new(64 << 20))
        .payload(move |memory: &GuestMmap, platform: &Platform| load(memory, platform, &addresses))
        .devices(devices)
        .build(&Kvm::open().unwrap())
        .unwrap();
    machine.start().unwrap();
    let is_done = serial.log.wait_for("done\n", LIMIT);
    let outcome = if is_done { machine.wait() } else { machine.stop() };
    let said = serial.log.text().replace('\r', "");
    assert!(is_done, "it hangs after: {said}");
    assert!(matches!(outcome.unwrap(), Outcome::Shutdown), "{said}");
    for round in 1..=2 {
        for device in ["registers", "rng", "blk", "console", "net"] {
            let result = format!("{device} {round}: ok");
            assert!(said.lines().any(|line| line == result), "{result:?} is not in: {said}");
        }
    }
    assert!(said.contains("blk id: disk"), "{said}");
}

/// Loads the guest; its command line says where the devices are.
fn load(
    memory: &GuestMmap,
    platform: &Platform,
    addresses: &str,
) -> Result<Registers, Box<dyn Error + Send + Sync>> {
    let mut words = vec![addresses.to_owned()];
    for node in platform.nodes.iter().filter(|node| node.kind == NodeKind::VirtioMmio) {
        if let [NodeRange::Memory { base, len }] = *node.ranges {
            words.push(format!("{}={base:x},{len:x}", node.id));
        }
    }
    let kernel = File::open(bare_metal::virtio_drivers())?;
    let booted = x86_64::prepare(memory, platform, &BootSpec::new(&kernel, &words.join(" ")))?;
    Ok(Registers::from(booted.cpu))
}

/// Sends each line back.
fn echo(terminal: UnixStream) {
    let mut from = BufReader::new(terminal.try_clone().unwrap());
    let mut line = Vec::new();
    while from.read_until(b'\n', &mut line).is_ok_and(|len| len > 0) {
        // The machine may have ended.
        let _ = (&terminal).write_all(&line);
        line.clear();
    }
}
