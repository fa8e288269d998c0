//! Snapshots: a whole machine's file, read, checked and restored into a machine without a guest.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::{Duration, UNIX_EPOCH};

use ossature_core::machine::{Machine, MachineBuilder, Snapshot};
use ossature_core::scripted::{Script, Scripted};
use ossature_legacy::{I8042, Rtc};
use ossature_memory::RamConfig;
use ossature_memory::vm_memory::GuestAddress;
use ossature_pci::PciBus;
use ossature_virtio::{Rng, SharedLoop, VirtioMmio, VirtioPci};
use std::sync::Arc;

use crate::Input;
use crate::state::{crc32, mend};

/// Bytes of a snapshot's header, whose last four are its checksum.
const HEADER: usize = 44;
/// Where it has the length of the state.
const LENGTH: std::ops::Range<usize> = 16..24;

fn builder() -> MachineBuilder {
    let clock = || UNIX_EPOCH + Duration::from_secs(1 << 30);
    let bus = PciBus::new();
    let io = Arc::new(SharedLoop::new("io").expect("a loop"));
    Machine::builder("fuzz")
        .device(Rtc::with_clock("rtc", clock))
        .device(I8042::new("i8042"))
        .device(VirtioMmio::new("rng", Box::new(Rng::new()), io.clone()))
        .device(bus.host("pci"))
        .device(VirtioPci::new("function", Box::new(Rng::new()), io, &bus))
}

fn build(builder: MachineBuilder) -> Option<Machine> {
    builder.build(&Scripted::new([Script::new()])).ok()
}

/// The bytes of a snapshot that is as it should be.
fn sample() -> &'static [u8] {
    static SAMPLE: OnceLock<Vec<u8>> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let file = memfd();
        let machine = build(builder().memory(RamConfig::new(64 << 10))).expect("a machine");
        machine.ram().dma().write(GuestAddress(0x1234), b"memory").expect("RAM");
        machine.start().expect("it starts");
        machine.pause().expect("it pauses").snapshot_to(&file).expect("it is saved");
        content(&file)
    })
}

fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().expect("a length").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("what was written");
    bytes
}

/// The bytes of a snapshot, and of a diff of it.
fn chain() -> &'static [Vec<u8>; 2] {
    static CHAIN: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    CHAIN.get_or_init(|| {
        let folder = std::env::temp_dir().join(format!("snapshot-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let paths = ["base", "diff"].map(|name| folder.join(name));
        let machine = build(builder().memory(RamConfig::new(64 << 10))).expect("a machine");
        machine.start().expect("it starts");
        let mut checkpoint = machine.checkpoint_at(&paths[0]).expect("a base");
        machine.ram().dma().write(GuestAddress(0x5234), b"memory").expect("RAM");
        machine.snapshot_diff(&mut checkpoint, &paths[1]).expect("a diff");
        let files = paths.map(|path| std::fs::read(path).expect("a file"));
        std::fs::remove_dir_all(&folder).expect("the folder");
        files
    })
}

fn memfd() -> File {
    rustix::fs::memfd_create("snapshot", rustix::fs::MemfdFlags::CLOEXEC).expect("a memfd").into()
}

fn number(bytes: &[u8], at: std::ops::Range<usize>) -> Option<usize> {
    Some(u64::from_le_bytes(bytes.get(at)?.try_into().ok()?) as usize)
}

/// The first byte says what is done: 0x01 keeps wrong checksums, 0x02 takes the rest for the whole file, 0x04 for a new
/// state; otherwise the rest are changes of the sample: where (2 bytes), how many bytes go, how many come, and these. With
/// 0x08, the sample is a diff.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let form = input.u8();
    let [_, diff] = chain();
    let mut file = if form & 8 == 0 { sample().to_vec() } else { diff.clone() };
    let mut state = LENGTH.end..0;
    if form & 2 != 0 {
        file = input.rest().to_vec();
    } else {
        let old = HEADER..HEADER + number(&file, LENGTH).expect("a header");
        let mut new = file[old.clone()].to_vec();
        if form & 4 != 0 {
            new = input.rest().to_vec();
        }
        let mut changes = 0;
        while !input.is_empty() && changes < 16 {
            changes += 1;
            let at = usize::from(input.u16()) % new.len().max(1);
            let cut = usize::from(input.u8() & 15);
            let len = usize::from(input.u8() & 31);
            let patch = input.bytes(len).to_vec();
            let end = (at + cut).min(new.len());
            new.splice(at.min(end)..end, patch);
        }
        // Memory stays where it is, as long as there is room.
        new.truncate((64 << 10) - HEADER);
        file[HEADER..64 << 10].fill(0);
        file[HEADER..HEADER + new.len()].copy_from_slice(&new);
        file[LENGTH].copy_from_slice(&(new.len() as u64).to_le_bytes());
        state = HEADER..HEADER + new.len();
    }
    if form & 1 == 0 {
        if state.is_empty() {
            let len = number(&file, LENGTH).unwrap_or(0).min(file.len().saturating_sub(HEADER));
            state = HEADER..HEADER + len;
        }
        if let Some(state) = file.get_mut(state) {
            let _ = mend(state);
        }
        if let Some(header) = file.get_mut(..HEADER) {
            let crc = crc32(&[&header[..HEADER - 4]]);
            header[HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let mut memory = memfd();
    memory.write_all(&file).expect("a memfd takes it");
    restore(memory);
}

/// What can be read is listed; what can be restored runs and is saved again.
fn restore(file: File) {
    let Ok(mut snapshot) = Snapshot::from_file(file) else { return };
    if snapshot.base().is_some() {
        let mut base = memfd();
        base.write_all(&chain()[0]).expect("a memfd takes it");
        let Ok(chain) = snapshot.on(Snapshot::from_file(base).expect("a base")) else { return };
        snapshot = chain;
    }
    assert!(snapshot.cpus() > 0 && snapshot.devices().len() <= 1024);
    let sections: Vec<String> = snapshot.sections().map(|section| section.id.to_owned()).collect();
    assert!(sections.iter().any(|id| id == "machine"));
    // Whatever it says, no more than a guest of this host may have.
    if snapshot.memory_size() <= 16 << 20 {
        if snapshot.verify_memory().is_ok() {
            let merged = memfd();
            snapshot.merge_to(&merged).expect("what is intact can be merged");
            Snapshot::from_file(merged).expect("what was merged").verify_memory().expect("it is intact");
        }
    }
    let Some(machine) = build(builder().restore(snapshot)) else { return };
    machine.start().expect("a restored machine starts");
    let again = memfd();
    machine.pause().expect("it pauses").snapshot_to(&again).expect("it is saved");
    let again = Snapshot::from_file(again).expect("what was saved");
    let saved: Vec<String> = again.sections().map(|section| section.id.to_owned()).collect();
    // A file of version 1 has no identity.
    let devices =
        |ids: Vec<String>| ids.into_iter().filter(|id| id != "ossature.identity").collect::<Vec<_>>();
    assert_eq!(devices(saved), devices(sections));
    again.verify_memory().expect("it is intact");
    machine.stop().expect("it stops");
}
