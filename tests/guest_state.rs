//! A guest whose machine is saved, reset and restored again and again in the middle of what it reads, writes, sends,
//! receives and prints: nothing is lost, doubled or wrong, on either side.

mod support;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ossature::boot::Platform;
use ossature::memory::{Backing, FileBacking, GuestMmap, RamConfig};
use ossature::virtio::blk::{DiskId, OpenMode, RawFile};
use ossature::virtio::net::{self, Mac};
use ossature::virtio::{Blk, MmioInterrupt, Net, Rng, SharedLoop};
use ossature::vmm::machine::{Linux, Machine, Payload, PayloadError};
use ossature::vmm::{Kvm, Registers};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use support::{Traffic, Transport, Virtio, hash_in_ext4};

const ROUNDS: u32 = 50;
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
    let traffic = Traffic::new();
    let file = RawFile::open(&traffic.image, OpenMode::ReadWrite).unwrap();
    let net = Net::new(net::Tap::open(&traffic.tap.name).unwrap(), Mac::derived(&traffic.tap.name));
    let virtio: [Virtio; 4] = [
        ("rng", Box::new(Rng::new()), MmioInterrupt::SharedLine),
        ("disk", Box::new(Blk::new(file, "disk".parse::<DiskId>().unwrap())), MmioInterrupt::AlwaysSet),
        ("net", Box::new(net), MmioInterrupt::Exact),
        ("console", Box::new(traffic.console()), MmioInterrupt::SharedLine),
    ];
    let io = Arc::new(SharedLoop::new("io").unwrap());
    let devices = transport.plug(virtio, &io);
    let mut memory = Memory::new();
    let (builder, terminal) = traffic.guest.machine("state", devices);
    let payload = Once { linux: traffic.guest.payload(), start: None };
    let machine = builder.memory(memory.config()).payload(payload).build(&Kvm::open().unwrap()).unwrap();

    machine.start().unwrap();
    let underway = traffic.begin(&terminal);
    for round in 1..=ROUNDS {
        thread::sleep(Duration::from_millis(random.below(LONGEST)));
        let result = round_trip(&machine, &mut memory);
        assert!(result.is_ok(), "round {round}: {result:?}: {}", terminal.log.text());
    }
    let answers = underway.end(machine, &terminal, &traffic.guest);
    let last = hash_in_ext4(&traffic.image, "/last");
    assert_eq!(last, answers["hash"], "the guest and the host read the same");
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
    /// Where there is something in the file. The rest are holes, which a reset makes of everything.
    parts: Vec<Range<usize>>,
    /// What there is, by its place.
    kept: Vec<u8>,
}

impl Memory {
    const SIZE: u64 = 128 << 20;

    fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(Self::SIZE).unwrap();
        Self { file, parts: Vec::new(), kept: vec![0; Self::SIZE as usize] }
    }

    fn config(&self) -> RamConfig {
        let backing = FileBacking::shared(self.file.try_clone().unwrap(), 0);
        RamConfig::new(Self::SIZE).backing(Backing::File(backing))
    }

    fn keep(&mut self) {
        self.parts.clear();
        let mut end = 0;
        while let Some(start) = self.seek(SeekFrom::Data(end)) {
            end = self.seek(SeekFrom::Hole(start)).unwrap();
            let part = start as usize..end as usize;
            self.file.read_exact_at(&mut self.kept[part.clone()], start).unwrap();
            self.parts.push(part);
        }
    }

    /// None: there is nothing from there on.
    fn seek(&self, to: SeekFrom) -> Option<u64> {
        match rustix::fs::seek(&self.file, to) {
            Err(Errno::NXIO) => None,
            place => Some(place.unwrap()),
        }
    }

    fn put_back(&self) {
        assert_eq!(self.seek(SeekFrom::Data(0)), None, "a reset clears the memory");
        for part in &self.parts {
            self.file.write_all_at(&self.kept[part.clone()], part.start as u64).unwrap();
        }
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
