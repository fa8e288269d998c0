//! Snapshots: a whole machine's file, read, checked and restored into a machine without a guest.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::{Duration, UNIX_EPOCH};

use ossature_core::machine::{Machine, MachineBuilder, Snapshot, SnapshotError, SnapshotKey};
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
pub(crate) fn sample() -> &'static [u8] {
    static SAMPLE: OnceLock<Vec<u8>> = OnceLock::new();
    SAMPLE.get_or_init(|| content(&saved(64 << 10)))
}

/// A snapshot of a machine with so much memory.
pub(crate) fn saved(memory: u64) -> File {
    saved_by(builder().memory(RamConfig::new(memory)))
}

fn saved_by(builder: MachineBuilder) -> File {
    let file = memfd();
    let machine = build(builder).expect("a machine");
    machine.ram().dma().write(GuestAddress(0x1234), b"memory").expect("RAM");
    machine.start().expect("it starts");
    machine.pause().expect("it pauses").snapshot_to(&file).expect("it is saved");
    file
}

pub(crate) fn content(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().expect("a length").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("what was written");
    bytes
}

/// The bytes of a snapshot, and of a diff of it.
fn chain() -> &'static [Vec<u8>; 2] {
    static CHAIN: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    CHAIN.get_or_init(|| chain_of(builder().memory(RamConfig::new(64 << 10)), "plain"))
}

fn chain_of(builder: MachineBuilder, name: &str) -> [Vec<u8>; 2] {
    let folder = std::env::temp_dir().join(format!("snapshot-fuzz-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let paths = ["base", "diff"].map(|name| folder.join(name));
    let machine = build(builder).expect("a machine");
    machine.ram().dma().write(GuestAddress(0x1234), b"base").expect("RAM");
    machine.start().expect("it starts");
    let mut checkpoint = machine.checkpoint_at(&paths[0]).expect("a base");
    machine.ram().dma().write(GuestAddress(0x5234), b"memory").expect("RAM");
    machine.snapshot_diff(&mut checkpoint, &paths[1]).expect("a diff");
    let files = paths.map(|path| std::fs::read(path).expect("a file"));
    std::fs::remove_dir_all(&folder).expect("the folder");
    files
}

pub(crate) fn memfd() -> File {
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
    let mut state = 0..0;
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

/// What is in a file.
fn restore(file: File) {
    let Ok(snapshot) = Snapshot::from_file(file) else { return };
    // Without its key, it is only listed.
    if snapshot.key_id().is_some() {
        assert!(matches!(snapshot.verify_memory(), Err(SnapshotError::KeyNeeded { .. })));
        assert!(build(builder().restore(snapshot)).is_none());
        return;
    }
    check(snapshot);
}

/// What can be read is listed; what can be restored runs and is saved again.
pub(crate) fn check(mut snapshot: Snapshot) {
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
    let mut is_intact = None;
    if snapshot.memory_size() <= 16 << 20 {
        is_intact = Some(snapshot.verify_memory().is_ok());
        if is_intact == Some(true) {
            let merged = memfd();
            match snapshot.merge_to(&merged) {
                // What is no file is not merged.
                Err(SnapshotError::OnDemand { .. }) => return,
                merged => merged.expect("what is intact can be merged"),
            }
            Snapshot::from_file(merged).expect("what was merged").verify_memory().expect("it is intact");
        }
    }
    let Some(machine) = build(builder().restore(snapshot)) else { return };
    machine.start().expect("a restored machine starts");
    let again = memfd();
    match machine.pause().expect("it pauses").snapshot_to(&again) {
        // What comes on demand and cannot be had is not saved as zeros.
        Err(SnapshotError::OnDemand { .. }) if is_intact != Some(true) => return,
        saved => saved.expect("it is saved"),
    }
    let again = Snapshot::from_file(again).expect("what was saved");
    let saved: Vec<String> = again.sections().map(|section| section.id.to_owned()).collect();
    // A file of version 1 has no identity.
    let devices =
        |ids: Vec<String>| ids.into_iter().filter(|id| id != "ossature.identity").collect::<Vec<_>>();
    assert_eq!(devices(saved), devices(sections));
    again.verify_memory().expect("it is intact");
    machine.stop().expect("it stops");
}

/// A key, and a snapshot and a diff that were saved with it.
fn keyed() -> &'static (SnapshotKey, [Vec<u8>; 2]) {
    static KEYED: OnceLock<(SnapshotKey, [Vec<u8>; 2])> = OnceLock::new();
    KEYED.get_or_init(|| {
        let key = SnapshotKey::new([7; 32]);
        let builder = builder().memory(RamConfig::new(64 << 10)).snapshot_key(key.clone());
        let files = chain_of(builder, "keyed");
        (key, files)
    })
}

/// The first byte: 0x01 keeps wrong checksums, 0x02 takes the rest for the whole file, 0x08 changes a diff; the rest are
/// changes of header, root and state, or with 0x10 of memory. Whatever they are, nothing is taken but what was saved.
pub fn run_keyed(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let form = input.u8();
    let (key, [base, diff]) = keyed();
    let good = if form & 8 == 0 { base } else { diff };
    let memory = number(good, 24..32).expect("a header");
    let mut file = good.clone();
    if form & 2 != 0 {
        file = input.rest().to_vec();
    } else {
        let at = if form & 16 == 0 { 0 } else { memory };
        let mut changes = 0;
        while !input.is_empty() && changes < 16 {
            changes += 1;
            let at = at + usize::from(input.u16()) % (memory - 1);
            let (len, xor) = (1 + usize::from(input.u8() & 7), input.u8());
            for byte in file.iter_mut().skip(at).take(len) {
                *byte ^= xor ^ input.u8();
            }
        }
    }
    if form & 1 == 0 {
        let state = number(&file, LENGTH).unwrap_or(0).min(file.len());
        if let Some(state) = file.get_mut(HEADER + 48..HEADER + 48 + state) {
            let _ = mend(state);
        }
        if let Some(header) = file.get_mut(..HEADER) {
            let crc = crc32(&[&header[..HEADER - 4]]);
            header[HEADER - 4..].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let open = |bytes: &[u8]| {
        let mut file = memfd();
        file.write_all(bytes).expect("a memfd takes it");
        key.open_file(file)
    };
    let mut plain = memfd();
    plain.write_all(&file).expect("a memfd takes it");
    restore(plain);
    let Ok(snapshot) = open(&file) else { return };
    let checked = HEADER + 48 + number(good, LENGTH).expect("a header");
    assert!(file[..checked] == good[..checked], "a state that nobody has saved");
    let snapshot = match snapshot.base() {
        Some(_) => snapshot.on(open(base).expect("a base")).expect("as it was saved"),
        None => snapshot,
    };
    let intact = snapshot.verify_memory().is_ok();
    let restored = build(builder().restore(snapshot));
    // What is intact is restored; what is not may be, if what was changed is nowhere used.
    assert!(restored.is_some() || !intact);
    let Some(machine) = restored else { return };
    let mut bytes = vec![0; 64 << 10];
    machine.ram().dma().read(GuestAddress(0), &mut bytes).expect("RAM");
    let whole = open(base).expect("a base");
    let whole = if form & 8 != 0 { open(diff).expect("a diff").on(whole).expect("its base") } else { whole };
    let expected = build(builder().restore(whole)).expect("what was saved");
    let mut saved = vec![0; 64 << 10];
    expected.ram().dma().read(GuestAddress(0), &mut saved).expect("RAM");
    assert!(bytes == saved, "memory that nobody has saved");
}
