//! A guest whose machine is saved, reset and restored again and again in the middle of what it reads, writes, sends,
//! receives and prints: nothing is lost, doubled or wrong, on either side.

mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ossature::boot::Platform;
use ossature::memory::{Backing, FileBacking, GuestMmap, RamConfig};
use ossature::virtio::blk::{DiskId, OpenMode, RawFile};
use ossature::virtio::console::{Console, ConsoleInput, ConsoleOutput};
use ossature::virtio::net::{self, Mac};
use ossature::virtio::{Blk, MmioInterrupt, Net, Rng, SharedLoop};
use ossature::vmm::machine::{Linux, Machine, Outcome, Payload, PayloadError};
use ossature::vmm::{Kvm, Registers};
use support::{Guest, LIMIT, Tap, Transport, Virtio, echo, hash_in_ext4};
use xtask::tree::Tree;

const ROUNDS: u32 = 50;
/// What is written, read, sent and received, again and again.
const DATA: usize = 128 << 10;
/// Between two round trips: long enough for the guest to get something done, most times.
const LONGEST: u64 = 500;

#[test]
fn a_guest_goes_on_after_each_of_50_round_trips() {
    go_on(Transport::Mmio);
}

#[test]
fn a_guest_on_pci_goes_on_after_each_of_50_round_trips() {
    go_on(Transport::Pci);
}

fn go_on(transport: Transport) {
    let mut random = Random::new();
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    Tree::new().write_ext4(&image, 64).unwrap();
    let tap = Tap::new();
    let listener = tap.listen();
    let mut data = vec![0; DATA];
    File::open("/dev/urandom").unwrap().read_exact(&mut data).unwrap();
    let guest = guest(&tap, &listener, &data);

    let (to_console, input) = UnixStream::pair().unwrap();
    let (from_console, output) = UnixStream::pair().unwrap();
    let blk =
        Blk::new(RawFile::open(&image, OpenMode::ReadWrite).unwrap(), "disk".parse::<DiskId>().unwrap());
    let net = Net::new(net::Tap::open(&tap.name).unwrap(), Mac::derived(&tap.name));
    let console = Console::new(Some(ConsoleInput::new(input).unwrap()), ConsoleOutput::new(output).unwrap());
    let virtio: [Virtio; 4] = [
        ("rng", Box::new(Rng::new()), MmioInterrupt::SharedLine),
        ("disk", Box::new(blk), MmioInterrupt::AlwaysSet),
        ("net", Box::new(net), MmioInterrupt::Exact),
        ("console", Box::new(console), MmioInterrupt::SharedLine),
    ];
    let io = Arc::new(SharedLoop::new("io").unwrap());
    let devices = transport.plug(virtio, &io);
    let mut memory = Memory::new();
    let (builder, terminal) = guest.machine("state", devices);
    let payload = Once { linux: guest.payload(), start: None };
    let machine = builder.memory(memory.config()).payload(payload).build(&Kvm::open().unwrap()).unwrap();

    let done = Arc::new(AtomicBool::new(false));
    let echo = thread::spawn(move || echo(&listener, &data));
    machine.start().unwrap();
    terminal.wait_for("traffic\n");
    // A guest has lost what comes before it listens.
    let talk = thread::spawn({
        let done = done.clone();
        move || talk(to_console, from_console, &done)
    });
    for round in 1..=ROUNDS {
        thread::sleep(Duration::from_millis(random.below(LONGEST)));
        let result = round_trip(&machine, &mut memory);
        assert!(result.is_ok(), "round {round}: {result:?}: {}", terminal.log.text());
    }
    done.store(true, Ordering::Relaxed);
    let outcome = machine.wait_timeout(LIMIT).unwrap();
    assert!(matches!(outcome, Some(Outcome::Shutdown)), "{outcome:?}: {}", terminal.log.text());
    drop(machine);

    let answers = terminal.answers(&guest);
    let lines = talk.join().unwrap();
    let connections = echo.join().unwrap();
    println!("{lines} lines, {connections} connections; {}", &answers["traffic"]);
    let rounds = |name: &str| -> u64 {
        let text = &answers["traffic"];
        let count = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        count.unwrap_or_else(|| panic!("no count of {name}: {text}"))
    };
    assert_eq!(rounds("net:"), connections, "every connection is seen by both");
    assert!(rounds("disk:") > 0 && connections > 0 && lines > 0, "{}", &answers["traffic"]);
    assert!(
        !answers["log"].contains("lockup") && !answers["log"].contains("I/O error"),
        "{}",
        &answers["log"]
    );

    assert_eq!(hash_in_ext4(&image, "/last"), answers["hash"], "the guest and the host read the same");
}

/// Writes files to the disk and reads them back, sends data and receives it back, and answers each line of hvc0, until
/// that says "end".
fn guest(tap: &Tap, listener: &TcpListener, data: &[u8]) -> Guest {
    let (host, port) = (&tap.host, listener.local_addr().unwrap().port());
    let traffic = format!(
        r#"sum=$(sha256sum </data)
        right() {{ [ "$2" = "$sum" ] || echo "$1: wrong: $2" >>/run/wrong; }}
        disk() {{
            n=0
            until [ -e /run/stop ]; do
                n=$((n + 1))
                dd if=/data of=/mnt/$((n % 8)) bs=16k conv=fsync 2>/dev/null
                echo 3 >/proc/sys/vm/drop_caches
                right disk "$(sha256sum </mnt/$((n % 8)))"
            done
            echo "disk: $n"
        }}
        net() {{
            n=0
            until [ -e /run/stop ]; do
                right net "$(nc {host} {port} </data | sha256sum)"
                n=$((n + 1))
            done
            nc {host} {port} </dev/null
            echo "net: $n"
        }}
        mount -t ext4 /dev/vda /mnt
        exec 3<>/dev/hvc0
        stty raw -echo <&3
        disk & net &
        printf 'traffic\n'
        while read -r line; do
            echo "$line"
            [ "$line" != end ] || break
        done <&3 >&3
        touch /run/stop
        wait
        cp /data /mnt/last
        umount /mnt
        [ ! -e /run/wrong ] || {{ cat /run/wrong; false; }}"#
    );
    Guest::new()
        .program("/data", data.to_vec())
        .cmdline(&format!("ossature.ip={}/24", tap.guest))
        .run("traffic", &traffic)
        .run("hash", "sha256sum </data")
        .run("log", "dmesg")
}

/// Types lines that do not repeat, and checks that each comes back, until `done`; returns how many.
fn talk(mut to: UnixStream, mut from: UnixStream, done: &AtomicBool) -> u64 {
    let mut lines = 0;
    loop {
        let last = done.load(Ordering::Relaxed);
        let mut text: String = (lines..lines + 8).map(|line| format!("line {line}\n")).collect();
        lines += 8;
        if last {
            text += "end\n";
        }
        to.write_all(text.as_bytes()).unwrap();
        let mut back = vec![0; text.len()];
        from.read_exact(&mut back).unwrap();
        assert_eq!(String::from_utf8_lossy(&back), text);
        if last {
            return lines;
        }
    }
}

/// Pauses the machine, saves it, resets it, restores it, and lets it go on.
fn round_trip(machine: &Machine, memory: &mut Memory) -> Result<(), Box<dyn std::error::Error>> {
    let paused = machine.pause()?;
    let state = paused.save()?;
    memory.keep();
    let registers = paused.vcpus().registers(0)?;
    paused.reset()?;
    assert_ne!(paused.vcpus().registers(0)?, registers, "it is where a guest begins");
    memory.put_back();
    paused.restore(state)?;
    paused.resume()?;
    Ok(())
}

/// A machine's memory: a file that the machine shares. A reset clears it, and what was in it is put back.
struct Memory {
    file: File,
    kept: Vec<u8>,
}

impl Memory {
    const SIZE: u64 = 128 << 20;

    fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(Self::SIZE).unwrap();
        Self { file, kept: vec![0; Self::SIZE as usize] }
    }

    fn config(&self) -> RamConfig {
        let backing = FileBacking::shared(self.file.try_clone().unwrap(), 0);
        RamConfig::new(Self::SIZE).backing(Backing::File(backing))
    }

    fn keep(&mut self) {
        self.file.read_exact_at(&mut self.kept, 0).unwrap();
    }

    fn put_back(&self) {
        self.file.write_all_at(&self.kept, 0).unwrap();
    }
}

/// Loads the guest once: loading a kernel takes longer than all else here, and the memory that a reset has cleared is
/// put back anyway.
struct Once {
    linux: Linux,
    start: Option<Registers>,
}

impl Payload for Once {
    fn load(&mut self, memory: &GuestMmap, platform: &Platform) -> Result<Registers, PayloadError> {
        if let Some(start) = self.start {
            return Ok(start);
        }
        let start = self.linux.load(memory, platform)?;
        self.start = Some(start);
        Ok(start)
    }
}

/// Numbers that depend on a seed only, which is printed: xorshift.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("SEED").map_or_else(|_| now() | 1, |seed| seed.parse().unwrap());
        println!("seed: {seed} (set SEED to have these moments again)");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
