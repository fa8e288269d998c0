//! A VMM that has given up the right to open files, and builds and runs its machine from what it had opened before.

mod sandbox;

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use consumer::guest::{self, ANSWER, REQUEST};
use ossature::boot::Platform;
use ossature::legacy::{AcpiPower, Pvpanic, Rtc, Serial, SerialPort, backend};
use ossature::memory::{Backing, FileBacking, GuestMmap, Ram, RamConfig, RamError};
use ossature::virtio::blk::{OpenMode, RawFile};
use ossature::virtio::console::{Console, ConsoleInput, ConsoleOutput};
use ossature::virtio::{Blk, DedicatedThread, Rng, SharedLoop, VirtioMmio};
use ossature::vmm::Kvm;
use ossature::vmm::machine::{LifecycleState, Linux, Machine, OnReset, Outcome};
use rustix::pty::OpenptFlags;
use vm_memory::{Bytes, GuestAddress};

const TEXT: &[u8] = b"from the disk";
const DISK: &str = "disk";
const SECTOR: u32 = 512;

/// What a VMM opens, or is sent, before.
struct Opened {
    kvm: File,
    ram: File,
    disk: File,
    code: File,
    log: File,
    listener: UnixListener,
    stream: UnixStream,
    pty: (OwnedFd, OwnedFd),
    console: (OwnedFd, OwnedFd),
}

/// The other ends.
struct Ends {
    log: File,
    client: UnixStream,
    stream: UnixStream,
    terminal: OwnedFd,
    _console: (OwnedFd, OwnedFd),
}

fn read_write(path: &str) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

fn file(contents: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(contents).unwrap();
    file
}

fn open() -> (Opened, Ends) {
    let ram = tempfile::tempfile().unwrap();
    ram.set_len(4 << 20).unwrap();
    let disk = file(TEXT);
    disk.set_len(1 << 20).unwrap();
    let code = file(&code());
    let folder = tempfile::tempdir().unwrap();
    let log_path = folder.path().join("log");
    let log = File::options().append(true).create(true).open(&log_path).unwrap();
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let client = UnixStream::connect(&socket).unwrap();
    let (ours, guests) = UnixStream::pair().unwrap();

    let main = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    rustix::pty::unlockpt(&main).unwrap();
    let terminal = rustix::pty::ioctl_tiocgptpeer(&main, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    let other = terminal.try_clone().unwrap();
    let ((in_read, in_write), (out_read, out_write)) =
        (rustix::pipe::pipe().unwrap(), rustix::pipe::pipe().unwrap());

    let opened = Opened {
        kvm: read_write("/dev/kvm"),
        ram,
        disk,
        code,
        log,
        listener,
        stream: guests,
        pty: (main, other),
        console: (in_read, out_write),
    };
    let log = File::open(log_path).unwrap();
    (opened, Ends { log, client, stream: ours, terminal, _console: (in_write, out_read) })
}

/// Reads a sector, and sends its beginning to every serial port; then counts.
fn code() -> Vec<u8> {
    let mut code = guest::driver();
    for port in [0x3f8, 0x2f8, 0x3e8, 0x2e8] {
        code.extend(guest::send_answer(port, TEXT.len() as u16));
    }
    code.extend([0xff, 0x06]); // inc word [COUNTER]; jmp to it
    code.extend((guest::COUNTER.0 as u16).to_le_bytes());
    code.extend([0xeb, 0xfa]);
    code
}

impl Opened {
    fn build(self) -> Machine {
        let io = Arc::new(SharedLoop::new("io").unwrap());
        let disk = RawFile::from_fd(self.disk, OpenMode::ReadWrite).unwrap();
        let disk = Blk::new(disk, "root".parse().unwrap());
        let console = Console::new(
            Some(ConsoleInput::new(self.console.0).unwrap()),
            ConsoleOutput::new(self.console.1).unwrap(),
        );
        let mut file = self.code;
        let load = move |memory: &GuestMmap, platform: &Platform| {
            let (base, _) = guest::place(platform, DISK).ok_or("no disk")?;
            let answer = (ANSWER, SECTOR, true);
            guest::put_request(memory, &[(REQUEST, 16, false), answer, (REQUEST + 16, 1, true)])?;
            // VIRTIO_BLK_T_IN, sector 0.
            memory.write_slice(&[0; 17], GuestAddress(REQUEST.into()))?;
            let mut code = Vec::new();
            file.rewind()?;
            file.read_to_end(&mut code)?;
            guest::put_code(memory, &code, base)
        };
        let port = |id, place, line: std::io::Result<_>| Serial::new(id, place, line.unwrap()).shared_line();
        Machine::builder("closed")
            .memory(RamConfig::new(4 << 20).backing(Backing::File(FileBacking::shared(self.ram, 0))))
            .payload(load)
            .device(port("stream", SerialPort::COM1, backend::stream(self.stream)))
            .device(port("socket", SerialPort::COM2, backend::listener(self.listener)))
            .device(port("pty", SerialPort::COM3, backend::pty_from(self.pty.0, self.pty.1)))
            .device(port("log", SerialPort::COM4, backend::fds(None, Some(self.log.into()))))
            .device(Rtc::new("rtc"))
            .device(AcpiPower::new("power"))
            .device(VirtioMmio::new(DISK, Box::new(disk), io.clone()))
            .device(VirtioMmio::new("console", Box::new(console), io))
            .device(VirtioMmio::new("rng", Box::new(Rng::new()), Arc::new(DedicatedThread)))
            .on_reset(OnReset::Restart)
            .statistics()
            .build(&Kvm::from_fd(self.kvm.into()).unwrap())
            .unwrap()
    }
}

#[test]
fn a_machine_is_built_and_runs_after_the_right_to_open_files_has_been_given_up() {
    let (opened, mut ends) = open();
    sandbox::enter();
    // What cannot be looked up is not guessed.
    let huge = Ram::new(&RamConfig::new(1 << 40).backing(Backing::Huge2M)).unwrap_err();
    assert!(matches!(huge, RamError::Host { .. }), "{huge}");
    let machine = opened.build();
    machine.start().unwrap();
    for round in 1..=2 {
        for (line, end) in [
            ("stream", &mut ends.stream as &mut dyn Read),
            ("socket", &mut ends.client),
            ("pty", &mut File::from(ends.terminal.try_clone().unwrap())),
        ] {
            let mut text = [0; TEXT.len()];
            end.read_exact(&mut text).unwrap();
            assert_eq!(text, TEXT, "{line}, round {round}");
        }
        let count = || machine.ram().dma().read_obj::<u16>(guest::COUNTER).unwrap();
        while count() == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        let mut log = Vec::new();
        ends.log.read_to_end(&mut log).unwrap();
        assert_eq!(log, TEXT, "round {round}");

        // Whatever else is done to a machine opens nothing.
        let metrics = consumer::watch::counters(&machine);
        assert!(metrics["vcpu0.exits"] > 0 && metrics["disk.read_requests"] > 0, "{metrics:?}");
        let paused = machine.pause().unwrap();
        let state = paused.save().unwrap();
        paused.restore(state).unwrap();
        paused.resume().unwrap();
        machine.add_device(Pvpanic::new("pvpanic")).unwrap();
        machine.remove_device("pvpanic").unwrap();
        if round == 1 {
            machine.reset().unwrap();
        }
    }
    assert_eq!(machine.state(), LifecycleState::Running);
    assert_eq!(machine.stop().unwrap(), Outcome::Stopped);
    sandbox::everything_is_refused();
}

const ENTRY: u64 = 0x10_0000;
/// jmp to itself
const SPIN: &[u8] = &[0xeb, 0xfe];

/// The smallest ELF file that is a kernel.
fn kernel() -> Vec<u8> {
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2_u16, 62].map(u16::to_le_bytes).concat()); // executable, x86_64
    image.extend(1_u32.to_le_bytes());
    image.extend([ENTRY, 64, 0].map(u64::to_le_bytes).concat()); // entry, program headers, sections
    image.extend(0_u32.to_le_bytes());
    image.extend([64_u16, 56, 1, 64, 0, 0].map(u16::to_le_bytes).concat());
    image.extend([1_u32, 5].map(u32::to_le_bytes).concat()); // load, read and execute
    let len = SPIN.len() as u64;
    image.extend([0x1000, ENTRY, ENTRY, len, len, 0x1000].map(u64::to_le_bytes).concat());
    image.resize(0x1000, 0);
    image.extend(SPIN);
    image
}

#[test]
fn a_kernel_and_its_initial_ram_disk_are_loaded_without_the_right_to_open_them() {
    let (kvm, kernel, initrd) = (read_write("/dev/kvm"), file(&kernel()), file(b"initial RAM disk"));
    sandbox::enter();
    let machine = Machine::builder("kernel")
        .memory(RamConfig::new(16 << 20))
        .payload(Linux::from_file(kernel).initrd_file(initrd).cmdline("quiet"))
        .build(&Kvm::from_fd(kvm.into()).unwrap())
        .unwrap();
    let loaded = || {
        let mut code = [0; SPIN.len()];
        machine.ram().dma().read(GuestAddress(ENTRY), &mut code).unwrap();
        code == SPIN
    };
    assert!(loaded());
    machine.start().unwrap();
    machine.pause().unwrap().keep();
    machine.ram().dma().write(GuestAddress(ENTRY), &[0; 2]).unwrap();
    machine.reset().unwrap();
    assert!(loaded(), "each reset loads it again");
    assert_eq!(machine.stop().unwrap(), Outcome::Stopped);
}
