//! Snapshots of scripted machines: what is in one, what is refused, and what is left behind.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::time::{Duration, UNIX_EPOCH};

use ossature_bus::state::StateError;
use ossature_bus::state_file;
use ossature_bus::{
    Assigned, Device, DeviceError, DeviceState, Handover, MetricVisitor, NodeKind, Requires, Size, Syscall,
};
use ossature_legacy::{I8042, Rtc};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Backing, Dma, FileBacking, RamConfig};
use tempfile::TempDir;

use super::*;
use crate::arch::testing::registers_at;
use crate::machine::{BuildError, BuildErrors, Machine, MachineBuilder};
use crate::scripted::{Script, Scripted};

const RAM: u64 = 64 << 10;

pub(super) fn builder() -> MachineBuilder {
    let clock = || UNIX_EPOCH + Duration::from_secs(1 << 30);
    Machine::builder("snapshot").device(Rtc::with_clock("rtc", clock)).device(I8042::new("i8042"))
}

/// A machine of two vCPUs with something in its memory and in its devices.
fn machine() -> Machine {
    machine_of(builder())
}

pub(super) fn machine_of(builder: MachineBuilder) -> Machine {
    let guest = Script::new().pio_write(0x70, Size::B1, 0x31).ram_write(GuestAddress(0x3000), b"written");
    let machine = builder
        .cpus(2)
        .memory(RamConfig::new(RAM))
        .payload(|memory: &ossature_memory::GuestMmap, _: &ossature_boot::Platform| {
            use ossature_memory::vm_memory::Bytes;
            memory.write_slice(b"loaded", GuestAddress(0xfff0))?;
            Ok(registers_at(0x1234))
        })
        .build(&Scripted::new([guest, Script::new()]))
        .unwrap();
    machine.start().unwrap();
    let dma = machine.ram().dma();
    while dma.read_obj::<[u8; 7]>(GuestAddress(0x3000)).unwrap() != *b"written" {
        std::thread::yield_now();
    }
    machine
}

pub(super) fn saved() -> Vec<u8> {
    let file = tempfile::tempfile().unwrap();
    let machine = machine();
    machine.pause().unwrap().snapshot_to(&file).unwrap();
    machine.stop().unwrap();
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

pub(super) fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A device without a state that does something when it goes on, before it says that it has.
pub(super) struct OnResume<F> {
    dma: Option<Dma>,
    does: F,
}

impl<F: FnMut(&Dma) + Send> OnResume<F> {
    pub(super) fn new(does: F) -> Self {
        Self { dma: None, does }
    }
}

impl<F: FnMut(&Dma) + Send> Device for OnResume<F> {
    fn id(&self) -> &str {
        "on-resume"
    }

    fn requires(&self) -> Requires {
        Requires::new()
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        self.dma = Some(assigned.dma().clone());
        Ok(NodeKind::Hidden)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        (self.does)(self.dma.as_ref().unwrap());
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::Stateless)
    }

    fn restore(&mut self, _: Handover<'_>) -> Result<(), StateError> {
        Ok(())
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }

    fn metrics(&self, _: &mut dyn MetricVisitor) {}
}

fn open(bytes: &[u8]) -> Result<Snapshot, SnapshotError> {
    Snapshot::from_file(file(bytes))
}

pub(super) fn build(builder: MachineBuilder) -> Result<Machine, BuildErrors> {
    builder.build(&Scripted::new([Script::new(), Script::new()]))
}

/// What a refusal is; a machine that is built instead is none.
#[track_caller]
pub(super) fn refusal(built: Result<Machine, BuildErrors>) -> SnapshotError {
    match built.unwrap_err().0.pop() {
        Some(BuildError::Snapshot(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// The parts of a file: its sections, and its memory.
pub(super) fn parts(bytes: &[u8]) -> (BTreeMap<String, SavedState<'static>>, Vec<u8>) {
    let snapshot = open(bytes).unwrap();
    (snapshot.sections, bytes[snapshot.header.memory as usize..].to_vec())
}

/// A file of these parts, with every checksum right.
pub(super) fn assembled(sections: &BTreeMap<String, SavedState<'static>>, memory: &[u8]) -> Vec<u8> {
    let mut state = Vec::new();
    let sections: Vec<_> = sections.iter().map(|(id, state)| (id.as_str(), state)).collect();
    state_file::write(&mut state, header::HERE, &sections).unwrap();
    let header = Header::new(state.len() as u64, memory.len() as u64, false).unwrap();
    let mut bytes = header.to_bytes().to_vec();
    bytes.extend(state);
    bytes.resize(header.memory as usize, 0);
    bytes.extend(memory);
    bytes
}

#[test]
fn a_machine_goes_on_with_memory_devices_and_vcpus() {
    let bytes = saved();
    let snapshot = open(&bytes).unwrap();
    snapshot.verify_memory().unwrap();
    assert_eq!((snapshot.cpus(), snapshot.memory_size()), (2, RAM));
    assert_eq!(snapshot.devices().collect::<Vec<_>>(), ["i8042", "rtc"]);
    let ids: Vec<_> = snapshot.sections().map(|section| section.id.to_owned()).collect();
    assert_eq!(ids, ["i8042", "machine", "memory", "ossature.identity", "rtc", "vcpu0", "vcpu1", "vm"]);
    // Mapped, or copied where other processes are to see it.
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let builder = builder().memory(RamConfig::new(RAM).backing(backing)).restore(open(&bytes).unwrap());
        let guest = Script::new()
            .pio_expect(0x71, Size::B1, 0) // the register that was selected
            .ram_expect(GuestAddress(0x3000), b"written")
            .ram_expect(GuestAddress(0xfff0), b"loaded");
        let scripted = Scripted::new([guest, Script::new()]);
        let machine = builder.build(&scripted).unwrap();
        machine.start().unwrap();
        while scripted.remaining() > 0 {
            assert_eq!(machine.outcome(), None);
            std::thread::yield_now();
        }
        let paused = machine.pause().unwrap();
        assert_eq!(paused.vcpus().registers(0).unwrap(), registers_at(0x1234));
        // What it saves is what it was restored from.
        let again = tempfile::tempfile().unwrap();
        paused.snapshot_to(&again).unwrap();
        let again = Snapshot::from_file(again).unwrap();
        assert_ne!(again.id(), snapshot.id());
        let rest = |snapshot: &Snapshot| {
            let mut sections = snapshot.sections.clone();
            sections.remove(identity::ID);
            sections
        };
        assert_eq!(rest(&again), rest(&snapshot));
        paused.resume().unwrap();
        // A reset takes it back to memory that is zero, as a guest's kernel expects.
        machine.reset().unwrap();
        assert_eq!(machine.ram().dma().read_obj::<[u8; 7]>(GuestAddress(0x3000)).unwrap(), [0; 7]);
    }
}

#[test]
fn a_machine_that_has_not_started_and_one_that_is_paused_are_saved_as_they_are() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("guest.snap");
    let machine = build(builder().memory(RamConfig::new(RAM))).unwrap();
    machine.snapshot(&path).unwrap();
    machine.start().unwrap();
    let paused = machine.pause().unwrap();
    machine.snapshot(&path).unwrap();
    assert_eq!(machine.state(), crate::machine::LifecycleState::Paused);
    paused.resume().unwrap();
    machine.snapshot(&path).unwrap();
    assert_eq!(machine.state(), crate::machine::LifecycleState::Running);
    machine.stop().unwrap();
    let error = machine.snapshot(&path).unwrap_err();
    assert!(error.to_string().contains("stopped"), "{error}");
    build(builder().restore(Snapshot::open(&path).unwrap())).unwrap().start().unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_snapshot_replaces_none_but_snapshots_and_leaves_nothing_half_made() {
    let folder = TempDir::new().unwrap();
    let machine = build(builder().memory(RamConfig::new(RAM))).unwrap();
    let names = || {
        let names = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    };
    let path = folder.path().join("guest.snap");
    machine.snapshot(&path).unwrap();
    let first = fs::metadata(&path).unwrap();
    assert_eq!(first.permissions().mode() & 0o777, 0o600);
    assert!(first.blocks() * 512 < first.len(), "zeros are holes");
    machine.snapshot(&path).unwrap();
    assert_ne!(fs::metadata(&path).unwrap().ino(), first.ino(), "machines that map it keep the old one");

    // Something else, a folder, and a link: each is left as it is.
    let disk = folder.path().join("disk.img");
    fs::write(&disk, [7; 4096]).unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    for taken in [&disk, &folder.path().to_owned(), &link] {
        let error = machine.snapshot(taken).unwrap_err();
        assert!(matches!(error, SnapshotError::Taken { .. }), "{error}");
    }
    assert_eq!(fs::read(&disk).unwrap(), [7; 4096]);
    for nowhere in ["missing/guest.snap", "guest.snap/guest.snap", ".."] {
        let error = machine.snapshot(folder.path().join(nowhere)).unwrap_err();
        assert!(matches!(error, SnapshotError::File { .. }), "{error}");
    }
    assert!(matches!(machine.snapshot(""), Err(SnapshotError::File { .. })));
    assert_eq!(names(), ["disk.img", "guest.snap", "link"]);

    // A machine that cannot be saved leaves what was there.
    machine.start().unwrap();
    machine.stop().unwrap();
    machine.snapshot(&path).unwrap_err();
    machine.snapshot(folder.path().join("other")).unwrap_err();
    assert_eq!(names(), ["disk.img", "guest.snap", "link"]);
    let mut used = file(b"x");
    used.flush().unwrap();
    let other = build(builder().memory(RamConfig::new(RAM))).unwrap();
    other.start().unwrap();
    let refused = other.pause().unwrap().snapshot_to(&used);
    assert!(matches!(refused, Err(SnapshotError::NotEmpty { len: 1 })));
}

#[test]
fn another_shape_is_refused_by_name() {
    let bytes = saved();
    let restore = || builder().restore(open(&bytes).unwrap());
    assert!(matches!(refusal(build(restore().cpus(1))), SnapshotError::OtherCpus { found: 2, asked: 1 }));
    let other = restore().memory(RamConfig::new(2 * RAM));
    assert!(matches!(refusal(build(other)), SnapshotError::OtherMemory { found: RAM, asked: 0x2_0000 }));
    for backing in [FileBacking::shared, FileBacking::private].map(|of| of(file(&[7; RAM as usize]), 0)) {
        let in_file = restore().memory(RamConfig::new(RAM).backing(Backing::File(backing)));
        assert!(matches!(refusal(build(in_file)), SnapshotError::FileMemory));
    }
    let given = ossature_memory::Ram::new(&RamConfig::new(2 * RAM)).unwrap();
    assert!(matches!(refusal(build(restore().ram(given))), SnapshotError::OtherMemory { .. }));
    let more = restore().device(I8042::new("second"));
    let error = refusal(build(more)).to_string();
    assert!(error.contains("\"second\""), "{error}");
    let none = Machine::builder("none").restore(open(&bytes).unwrap());
    match refusal(build(none)) {
        SnapshotError::OtherDevices { missing, extra } => {
            assert_eq!((missing, extra), (vec!["i8042".to_owned(), "rtc".to_owned()], Vec::new()));
        }
        error => panic!("{error}"),
    }
    // Of the same names, and other devices.
    let swapped = Machine::builder("swapped").device(I8042::new("rtc")).device(I8042::new("i8042"));
    let error = refusal(build(swapped.restore(open(&bytes).unwrap())));
    assert!(matches!(&error, SnapshotError::OtherDevice { id } if id == "rtc"), "{error}");
    build(restore().cpus(2).memory(RamConfig::new(RAM))).unwrap();
}

/// A file that is refused when it is opened, when its memory is checked, or when a machine is built of it.
fn is_refused(bytes: &[u8]) -> bool {
    open(bytes).is_err_and(|error| {
        assert!(!error.to_string().is_empty());
        true
    })
}

#[test]
fn d2_every_truncation_and_every_flipped_bit_is_refused() {
    let bytes = saved();
    let snapshot = open(&bytes).unwrap();
    let behind = header::LEN + snapshot.header.state as usize;
    for len in (0..behind).chain((behind..bytes.len()).step_by(1021)).chain([bytes.len() - 1]) {
        assert!(is_refused(&bytes[..len]), "cut at {len}");
    }
    let mut changed = bytes.clone();
    for at in 0..behind {
        for bit in 0..8 {
            changed[at] ^= 1 << bit;
            assert!(is_refused(&changed), "bit {bit} of byte {at}");
            changed[at] ^= 1 << bit;
        }
    }
    // Memory is read when somebody asks for it, or has to copy it.
    let at = snapshot.header.memory as usize + 0x3001;
    changed[at] ^= 4;
    let damaged = open(&changed).unwrap();
    assert!(matches!(damaged.verify_memory(), Err(SnapshotError::MemoryChecksum { addr: 0 })));
    let copied = builder().memory(RamConfig::new(RAM).backing(Backing::Memfd)).restore(damaged);
    assert!(matches!(refusal(build(copied)), SnapshotError::MemoryChecksum { addr: 0 }));
}

#[test]
fn d2_sections_that_are_missing_or_of_nobody_are_refused() {
    let (sections, memory) = parts(&saved());
    for id in sections.keys() {
        let mut fewer = sections.clone();
        fewer.remove(id);
        let built = open(&assembled(&fewer, &memory)).map(|snapshot| build(builder().restore(snapshot)));
        assert!(!matches!(built, Ok(Ok(_))), "without {id}");
    }
    for id in ["other", "vcpu2", "vcpu", "vcpu00", "kvm", ""] {
        let mut more = sections.clone();
        more.insert(id.to_owned(), sections["vm"].clone());
        let error = open(&assembled(&more, &memory)).unwrap_err();
        assert!(matches!(&error, SnapshotError::Foreign { id: other } if other == id), "{error}");
    }
    for len in [0, memory.len() - 4096, memory.len() + 4096] {
        let mut other = memory.clone();
        other.resize(len, 0);
        let error = open(&assembled(&sections, &other)).unwrap_err();
        assert!(matches!(error, SnapshotError::Damaged { field: "memory", .. }), "{error}");
    }
}

/// Offsets and lengths of the fields of a payload, those in records included.
pub(super) fn fields(payload: &[u8], start: usize, found: &mut Vec<(usize, usize)>) {
    let mut at = 0;
    while let Some(head) = payload.get(at..at + 6) {
        let len = u32::from_le_bytes(head[2..].try_into().unwrap()) as usize;
        let Some(value) = payload.get(at + 6..at + 6 + len) else { return };
        found.push((start + at, len));
        // A record, or a list of them, if it looks like one.
        fields(value, start + at + 6, found);
        if let Some(inner) = value.get(4..) {
            fields(inner, start + at + 10, found);
        }
        at += 6 + len;
    }
}

#[test]
fn d2_each_field_that_is_changed_is_refused_or_harmless() {
    let (sections, memory) = parts(&saved());
    let (mut refused, mut taken) = (0, 0);
    for (id, section) in &sections {
        let mut places = Vec::new();
        fields(&section.payload, 0, &mut places);
        assert!(!places.is_empty(), "{id}");
        for (at, len) in places {
            let value = at + 6..at + 6 + len;
            let mut changes: Vec<Vec<u8>> = Vec::new();
            for fill in [0, 1, 0xff, 0x7f, 0x80] {
                let mut payload = section.payload.to_vec();
                payload[value.clone()].fill(fill);
                changes.push(payload);
            }
            // 1, and one less: as numbers.
            let mut payload = section.payload.to_vec();
            if let Some(bytes) = payload.get_mut(value.clone()).filter(|bytes| !bytes.is_empty()) {
                bytes.fill(0);
                bytes[0] = 1;
                changes.push(payload);
            }
            for length in [len.wrapping_sub(1), len + 1, 0, u32::MAX as usize] {
                let mut payload = section.payload.to_vec();
                payload[at + 2..at + 6].copy_from_slice(&(length as u32).to_le_bytes());
                changes.push(payload);
            }
            for payload in changes {
                let mut changed = sections.clone();
                let state = SavedState::new(section.kind.clone(), section.version, payload);
                changed.insert(id.clone(), state);
                let built =
                    open(&assembled(&changed, &memory)).map(|snapshot| build(builder().restore(snapshot)));
                match built {
                    // Whatever it is now, the machine runs with it and can be saved.
                    Ok(Ok(machine)) => {
                        machine.start().unwrap();
                        let file = tempfile::tempfile().unwrap();
                        machine.pause().unwrap().snapshot_to(&file).unwrap();
                        machine.stop().unwrap();
                        taken += 1;
                    }
                    Ok(Err(errors)) => {
                        assert!(!errors.to_string().is_empty());
                        refused += 1;
                    }
                    Err(_) => refused += 1,
                }
            }
        }
        for version in [0, 2, u16::MAX] {
            let mut changed = sections.clone();
            changed.get_mut(id).unwrap().version = version;
            let built =
                open(&assembled(&changed, &memory)).map(|snapshot| build(builder().restore(snapshot)));
            // The clock has two versions.
            assert!(!matches!(built, Ok(Ok(_))) || id == "rtc", "version {version} of {id}");
        }
    }
    assert!(refused > 100 && taken > 10, "{refused} are refused, {taken} are taken");
}

/// A file that lies beside the tests.
#[cfg(target_arch = "x86_64")]
fn golden(name: &str) -> String {
    format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Restores a machine like [`machine`], whose guest finds what was written and loaded.
#[cfg(target_arch = "x86_64")]
fn goes_on(snapshot: Snapshot, script: Script) {
    snapshot.verify_memory().unwrap();
    assert_eq!((snapshot.cpus(), snapshot.memory_size()), (2, RAM));
    let guest = script.ram_expect(GuestAddress(0xfff0), b"loaded");
    let scripted = Scripted::new([guest, Script::new()]);
    let machine = builder().restore(snapshot).build(&scripted).unwrap();
    machine.start().unwrap();
    while scripted.remaining() > 0 {
        assert_eq!(machine.outcome(), None);
        std::thread::yield_now();
    }
    assert_eq!(machine.pause().unwrap().vcpus().registers(0).unwrap().rip, 0x1234);
}

/// Each later release restores it.
#[test]
#[cfg(target_arch = "x86_64")]
fn v1_a_golden_file_is_restored() {
    let snapshot = Snapshot::open(golden("v1-scripted.snap")).unwrap();
    goes_on(snapshot, Script::new().ram_expect(GuestAddress(0x3000), b"written"));
}

/// As that one. To make them anew, which only files that no release has written may be, set BLESS.
#[test]
#[cfg(target_arch = "x86_64")]
fn v2_a_golden_chain_is_restored() {
    let [base, diff] = ["v2-scripted.snap", "v2-scripted.diff"].map(golden);
    if std::env::var_os("BLESS").is_some() {
        let machine = machine();
        let mut checkpoint = machine.checkpoint_at(&base).unwrap();
        machine.ram().dma().write(GuestAddress(0x3000), b"changed").unwrap();
        machine.snapshot_diff(&mut checkpoint, &diff).unwrap();
    }
    goes_on(Snapshot::open(&base).unwrap(), Script::new().ram_expect(GuestAddress(0x3000), b"written"));
    let chain = Snapshot::open_chain([base, diff]).unwrap();
    goes_on(chain, Script::new().ram_expect(GuestAddress(0x3000), b"changed"));
}

/// As that one, of snapshots that were saved with a key.
#[test]
#[cfg(target_arch = "x86_64")]
fn v3_a_golden_chain_with_a_tree_is_restored() {
    let key = SnapshotKey::new([7; 32]);
    let [base, diff] = ["v3-scripted.snap", "v3-scripted.diff"].map(golden);
    if std::env::var_os("BLESS").is_some() {
        let machine = machine_of(builder().snapshot_key(key.clone()));
        let mut checkpoint = machine.checkpoint_at(&base).unwrap();
        machine.ram().dma().write(GuestAddress(0x3000), b"changed").unwrap();
        machine.snapshot_diff(&mut checkpoint, &diff).unwrap();
    }
    goes_on(key.open(&base).unwrap(), Script::new().ram_expect(GuestAddress(0x3000), b"written"));
    let chain = key.open_chain([base, diff]).unwrap();
    goes_on(chain, Script::new().ram_expect(GuestAddress(0x3000), b"changed"));
}

/// The same with the states of vCPUs of KVM, made by `tests/kvm_snapshot.rs`. They are decoded: not each host has such
/// processors.
#[test]
#[cfg(target_arch = "x86_64")]
fn v1_and_v2_golden_files_of_kvm_are_decoded() {
    for name in ["v1-kvm.snap", "v2-kvm.snap"] {
        let snapshot = Snapshot::open(golden(name)).unwrap();
        snapshot.verify_memory().unwrap();
        let state = snapshot.state().unwrap();
        assert_eq!((state.vcpus.len(), state.devices.len()), (1, 1), "{name}");
    }
}
