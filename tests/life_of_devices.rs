//! Every step of every device's life, taken by a machine's board: attached, started, paused, saved, reset, restored,
//! replaced, removed, and attached to another machine.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use ossature::bus::{Device, DeviceState, Syscall};
use ossature::legacy::{
    AcpiPower, DebugPort, FwCfg, GenerationId, I8042, Pvpanic, Rtc, Serial, SerialPort, VmGenId, backend,
};
use ossature::memory::{Dma, DmaIoError, RamConfig, Segments};
use ossature::virtio::blk::{NullDisk, OpenMode, RawFile};
use ossature::virtio::console::ConsoleOutput;
use ossature::virtio::net::{HEADER_LEN, NetIo, Offloads, Unsent};
use ossature::virtio::vsock::HostSocket;
use ossature::virtio::{Blk, Console, LocalDevice, Net, Rng, SharedLoop, VirtioMmio, Vsock};
use ossature::vmm::machine::{Machine, MachineHandle, Outcome};
use ossature::vmm::scripted::{Script, Scripted};

/// A network where nothing happens.
struct Silent(UnixStream);

impl NetIo for Silent {
    fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn offloads(&self) -> Offloads {
        Offloads::all()
    }

    fn set_offloads(&self, _: Offloads) -> std::io::Result<()> {
        Ok(())
    }

    fn set_active(&self, _: bool) -> std::io::Result<()> {
        Ok(())
    }

    fn is_connected(&self) -> bool {
        true
    }

    fn flush(&self) -> Result<(), Unsent> {
        Ok(())
    }

    fn receive(&self, _: &Dma, _: Segments<'_>) -> Result<usize, DmaIoError> {
        Err(std::io::Error::from(std::io::ErrorKind::WouldBlock).into())
    }

    fn send(&self, _: &Dma, _: &[u8; HEADER_LEN], _: Segments<'_>) -> Result<(), DmaIoError> {
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }
}

/// A socket device at the first path that no other one has.
fn vsock(folder: &std::path::Path) -> Vsock {
    let socket = (0..9).find_map(|number| HostSocket::bind(folder.join(format!("vsock{number}"))).ok());
    Vsock::new(3.try_into().unwrap()).unwrap().with_socket(socket.unwrap()).unwrap()
}

/// One of each kind, on the same host resources each time.
fn devices(io: &Arc<SharedLoop>, image: &std::path::Path) -> Vec<Box<dyn Device>> {
    let virtio: [(&str, Box<dyn LocalDevice>); 6] = [
        ("rng", Box::new(Rng::new())),
        (
            "disk",
            Box::new(Blk::new(RawFile::open(image, OpenMode::ReadWrite).unwrap(), "d".parse().unwrap())),
        ),
        ("null", Box::new(Blk::new(NullDisk::new(8), "n".parse().unwrap()))),
        (
            "net",
            Box::new(Net::new(Silent(UnixStream::pair().unwrap().0), "02:00:00:00:00:01".parse().unwrap())),
        ),
        ("console", Box::new(Console::new(None, ConsoleOutput::writer(std::io::sink())))),
        ("vsock", Box::new(vsock(image.parent().unwrap()))),
    ];
    let mut devices: Vec<Box<dyn Device>> = vec![
        Box::new(Serial::new("com1", SerialPort::COM1, backend::none())),
        Box::new(I8042::new("i8042")),
        Box::new(Rtc::new("rtc")),
        Box::new(AcpiPower::new("power")),
        Box::new(Pvpanic::new("pvpanic")),
        Box::new(VmGenId::new("generation", GenerationId([7; 16]))),
        Box::new(FwCfg::new("fw-cfg").file("opt/a", "a").unwrap()),
        Box::new(DebugPort::new("stamps", std::time::Instant::now())),
    ];
    for (id, device) in virtio {
        devices.push(Box::new(VirtioMmio::new(id, device, io.clone())));
    }
    devices
}

fn machine(devices: Vec<Box<dyn Device>>) -> Machine {
    Machine::builder("life")
        .memory(RamConfig::new(1 << 20))
        .devices(devices)
        .build(&Scripted::new([Script::new()]))
        .unwrap()
}

fn ids(machine: &MachineHandle) -> Vec<String> {
    let mut ids = Vec::new();
    machine.metrics(&mut |scope, metric, _| {
        assert!(metric.help.ends_with('.'), "{scope}.{} is explained", metric.name);
        ids.push(scope.to_owned());
    });
    ids.dedup();
    ids
}

#[test]
fn a_machine_takes_every_device_through_its_whole_life() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    std::fs::File::create(&image).unwrap().set_len(4096).unwrap();
    let io = Arc::new(SharedLoop::new("io").unwrap());
    let machine = machine(devices(&io, &image));
    assert!(machine.syscalls().contains(&Syscall("write")));
    machine.start().unwrap();
    let before = ids(&machine);
    for _ in 0..3 {
        let paused = machine.pause().unwrap();
        let state = paused.save().unwrap();
        let saved: Vec<_> = state.devices().map(|(id, _)| id.to_owned()).collect();
        assert!(saved.iter().any(|id| id == "com1") && saved.iter().any(|id| id == "net"), "{saved:?}");
        paused.reset().unwrap();
        paused.restore(state).unwrap();
        paused.resume().unwrap();
    }
    // Each takes the place of another one of its kind, on the same disk.
    let names: Vec<String> = devices(&io, &image).iter().map(|device| device.id().to_owned()).collect();
    for device in devices(&io, &image) {
        let id = device.id().to_owned();
        let old = machine.replace_device(device).unwrap();
        assert_eq!(old.id(), id);
    }
    assert_eq!(ids(&machine), before);
    // Each leaves, and works in another machine.
    let removed: Vec<_> = names.iter().map(|id| machine.remove_device(id).unwrap()).collect();
    assert_eq!(ids(&machine), ["machine"]);
    let other = self::machine(removed);
    other.start().unwrap();
    other.pause().unwrap().resume().unwrap();
    assert_eq!(ids(&other), before);
    assert_eq!(other.stop().unwrap(), Outcome::Stopped);
    assert_eq!(machine.stop().unwrap(), Outcome::Stopped);
}

#[test]
fn a_disk_is_locked_while_its_machine_uses_it_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    std::fs::File::create(&image).unwrap().set_len(4096).unwrap();
    let io = Arc::new(SharedLoop::new("io").unwrap());
    let disk = || -> Vec<Box<dyn Device>> {
        let disk = RawFile::open(&image, OpenMode::ReadWrite).unwrap();
        vec![Box::new(VirtioMmio::new("disk", Box::new(Blk::new(disk, "d".parse().unwrap())), io.clone()))]
    };
    let (first, second) = (machine(disk()), machine(disk()));
    first.start().unwrap();
    let error = second.start().unwrap_err();
    assert!(ossature::vmm::error_chain(&error).contains("in use"), "{error}");
    first.pause().unwrap().keep();
    second.start().unwrap();
    assert!(first.resume().is_err());
    second.stop().unwrap();
    first.resume().unwrap();
}

#[test]
fn a_device_says_of_its_state_what_it_does_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    std::fs::File::create(&image).unwrap().set_len(4096).unwrap();
    let io = Arc::new(SharedLoop::new("io").unwrap());
    for mut device in devices(&io, &image) {
        let mut board = ossature::bus::testing::TestBoard::default();
        board.attach(&mut *device).unwrap();
        match device.save().unwrap() {
            DeviceState::Saved(handover) => device.restore(handover).unwrap(),
            DeviceState::Stateless => {}
            other => panic!("{}: {other:?}", device.id()),
        }
    }
}
