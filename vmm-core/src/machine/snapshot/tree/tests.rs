//! Snapshots that were saved with a key: whatever is changed in them, or is put in place of them, is refused.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ossature_bus::Device;
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Backing, RamConfig};
use tempfile::TempDir;

use super::super::identity::{Identity, SnapshotId};
use super::super::memory::MemoryTable;
use super::super::save::{sections, write_parts};
use super::super::tests::{OnResume, assembled, builder as with_devices, file, machine_of, refusal};
use super::super::{RemoteSnapshot, identity, serve_snapshot};
use super::*;
use crate::machine::{BuildErrors, LifecycleState, Machine, MachineBuilder, Outcome};
use crate::scripted::{Script, Scripted};

const MIB: u64 = 1 << 20;
const RAM: u64 = 8 * MIB;
const LIMIT: Duration = Duration::from_secs(120);
/// Where the file's memory is at some guest addresses, and what is there: chunks 0, 1 and 3 have something.
const WRITTEN: [(u64, &[u8]); 4] =
    [(0x1000, b"first"), (0x2f_fff0, b"second"), (0x7f_f000, b"last"), (0x7f_fff0, b"end")];

fn key() -> SnapshotKey {
    SnapshotKey::new([7; 32])
}

fn other_key() -> SnapshotKey {
    SnapshotKey::new([8; 32])
}

fn builder() -> MachineBuilder {
    Machine::builder("keyed").memory(RamConfig::new(RAM))
}

fn hypervisor() -> Scripted {
    Scripted::new([Script::new()])
}

fn write(machine: &Machine, addr: u64, bytes: &[u8]) {
    machine.ram().dma().write(GuestAddress(addr), bytes).unwrap();
}

fn memory(machine: &Machine) -> Vec<u8> {
    let mut bytes = vec![0; RAM as usize];
    machine.ram().dma().read(GuestAddress(0), &mut bytes).unwrap();
    bytes
}

/// A machine with a key that runs and has something in its memory.
fn machine() -> Machine {
    let machine = builder().snapshot_key(key()).build(&hypervisor()).unwrap();
    WRITTEN.iter().for_each(|(addr, bytes)| write(&machine, *addr, bytes));
    machine.start().unwrap();
    machine
}

fn restore(snapshot: Snapshot) -> Result<Machine, BuildErrors> {
    Machine::builder("restored").restore(snapshot).build(&hypervisor())
}

/// The snapshot of such a machine.
fn saved() -> (TempDir, PathBuf, Vec<u8>) {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("guest.snap");
    let machine = machine();
    machine.snapshot(&path).unwrap();
    (folder, path, memory(&machine))
}

fn open(bytes: &[u8]) -> Result<Snapshot, SnapshotError> {
    key().open_file(file(bytes))
}

/// A header with the right checksum after it was changed.
fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = crc32fast::hash(&bytes[..header::LEN - 4]);
    bytes[header::LEN - 4..header::LEN].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[test]
fn a_machine_with_a_key_saves_with_it_and_goes_on_by_it() {
    let (_folder, path, expected) = saved();
    let snapshot = key().open(&path).unwrap();
    assert_eq!((snapshot.key_id(), snapshot.header.version), (Some(key().id()), 3));
    snapshot.verify_memory().unwrap();
    assert!(snapshot.sections().any(|section| section.id == "ossature.tree" && section.len == 6 + 3 * 32));
    // Copied, come on demand, and to memory that others see: the same.
    for on_demand in [false, true] {
        for backing in [Backing::Anonymous, Backing::Memfd] {
            let snapshot = key().open(&path).unwrap();
            let snapshot = if on_demand { snapshot.on_demand() } else { snapshot };
            let ram = RamConfig::new(RAM).backing(backing);
            let machine = builder().memory(ram).restore(snapshot).build(&hypervisor()).unwrap();
            assert!(memory(&machine) == expected);
            // What it saves has the same key.
            machine.start().unwrap();
            let again = tempfile::tempfile().unwrap();
            machine.pause().unwrap().snapshot_to(&again).unwrap();
            let again = key().open_file(again).unwrap();
            again.verify_memory().unwrap();
            assert!(memory(&restore(again).unwrap()) == expected);
        }
    }
    // Or the one that it is given.
    let machine = builder().restore(key().open(&path).unwrap()).snapshot_key(other_key());
    machine.build(&hypervisor()).unwrap().snapshot(&path).unwrap();
    assert!(memory(&restore(other_key().open(&path).unwrap()).unwrap()) == expected);
}

#[test]
fn a_live_snapshot_has_a_tree() {
    let (folder, machine) = (TempDir::new().unwrap(), machine());
    let path = folder.path().join("live.snap");
    machine.snapshot_live(&path).unwrap();
    assert!(memory(&restore(key().open(&path).unwrap()).unwrap()) == memory(&machine));
    assert!(matches!(other_key().open(&path).unwrap_err().reason(), SnapshotError::OtherKey { .. }));
}

#[test]
fn a_wrong_missing_or_needless_key_is_refused_by_name() {
    let (folder, path, _) = saved();
    let (plain, new) = (folder.path().join("plain.snap"), folder.path().join("new.snap"));
    builder().build(&hypervisor()).unwrap().snapshot(&plain).unwrap();

    let error = other_key().open(&path).unwrap_err();
    assert!(
        matches!(error.reason(), SnapshotError::OtherKey { found, given } if *found == key().id() && *given == other_key().id())
    );
    assert!(error.to_string().contains(&key().id().to_string()), "{error}");
    for error in [key().open(&plain), key().open_chain([&plain])].map(Result::unwrap_err) {
        assert!(matches!(error.reason(), SnapshotError::NoTree), "{error}");
        assert!(error.to_string().starts_with(&format!("{}: ", plain.display())), "{error}");
    }
    assert!(matches!(key().open_source(File::open(&plain).unwrap()), Err(SnapshotError::NoTree)));

    // Without the key it is listed, and not used.
    let without = || Snapshot::open(&path).unwrap();
    assert_eq!((without().key_id(), without().memory_size()), (Some(key().id()), RAM));
    let is_needed = |error: SnapshotError| {
        assert!(
            matches!(error.reason(), SnapshotError::KeyNeeded { key: of } if *of == key().id()),
            "{error}"
        );
    };
    is_needed(refusal(restore(without())));
    is_needed(refusal(restore(without().on_demand())));
    is_needed(without().verify_memory().unwrap_err());
    is_needed(without().merge(&new).unwrap_err());
    is_needed(Snapshot::open_chain([&path]).unwrap_err());
    is_needed(crate::machine::Template::new(without()).unwrap_err());
    let logged =
        builder().restore(without()).build_with_checkpoint(&hypervisor()).map(|(machine, _)| machine);
    is_needed(refusal(logged));
    assert!(!new.exists());
}

/// What must not be said of what is changed in a snapshot: that it is as it was.
fn is_refused(bytes: &[u8]) -> SnapshotError {
    open(bytes).unwrap_err()
}

#[test]
fn d2_every_flipped_bit_and_truncation_of_header_root_leaves_and_state_is_refused_before_it_is_decoded() {
    let machine = machine_of(with_devices().snapshot_key(key()));
    let file = tempfile::tempfile().unwrap();
    machine.pause().unwrap().snapshot_to(&file).unwrap();
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let header = open(&bytes).unwrap().header;
    let behind = (header.state_at() + header.state) as usize;
    for len in (0..behind).chain((behind..bytes.len()).step_by(1021)).chain([bytes.len() - 1]) {
        is_refused(&bytes[..len]);
    }
    for bit in 0..behind * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let error = is_refused(&changed);
        match bit / 8 {
            at if at < header::LEN => {}
            at if at < header::LEN + 16 => {
                assert!(matches!(error, SnapshotError::OtherKey { .. }), "{error}")
            }
            _ => assert!(matches!(error, SnapshotError::Tampered), "{bit}: {error}"),
        }
        // Whoever changes a header sets its checksum right.
        if bit / 8 < header::LEN - 4 {
            let error = is_refused(&with_checksum(changed));
            let by_name = matches!(
                error,
                SnapshotError::NotASnapshot
                    | SnapshotError::Version { .. }
                    | SnapshotError::NoTree
                    | SnapshotError::Architecture { .. }
                    | SnapshotError::Damaged { .. }
                    | SnapshotError::Truncated { .. }
                    | SnapshotError::Tampered
            );
            assert!(by_name, "{bit}: {error}");
        }
    }
}

#[test]
fn d2_a_state_that_is_another_with_every_checksum_right_is_refused() {
    let (_folder, path, _) = saved();
    let bytes = fs::read(&path).unwrap();
    let (mut all, memory) = (Snapshot::open(&path).unwrap().sections, bytes.clone());
    let header = open(&bytes).unwrap().header;
    // Each section with one bit changed, or left out: as long as it was, so that all else is where it was.
    let mut tried = 0;
    for id in all.keys().cloned().collect::<Vec<_>>() {
        let section = all[&id].clone();
        let mut payload = section.payload.to_vec();
        *payload.last_mut().unwrap() ^= 1;
        all.insert(id.clone(), SavedState::new(section.kind.clone(), section.version, payload));
        let mut state = Vec::new();
        let parts: Vec<_> = all.iter().map(|(id, state)| (id.as_str(), state)).collect();
        ossature_bus::state_file::write(&mut state, header::HERE, &parts).unwrap();
        assert_eq!(state.len() as u64, header.state);
        let mut changed = memory.clone();
        changed[header.state_at() as usize..][..state.len()].copy_from_slice(&state);
        assert!(matches!(is_refused(&changed), SnapshotError::Tampered), "{id}");
        all.insert(id, section);
        tried += 1;
    }
    assert_eq!(tried, 6);
    // The tree taken away, with its section: a snapshot without a tree, as anybody makes one.
    let mut fewer = all.clone();
    fewer.remove(ID);
    let plain = assembled(&fewer, &bytes[header.memory as usize..]);
    assert!(matches!(is_refused(&plain), SnapshotError::NoTree));
    // And one of the old version that says it has a root.
    let error = Snapshot::from_file(file(&assembled(&all, &bytes[header.memory as usize..])));
    assert!(matches!(error, Err(SnapshotError::Foreign { .. })));
}

#[test]
fn a_guest_whose_memory_is_what_a_root_is_made_of_gets_no_root() {
    let (_folder, path, _) = saved();
    let bytes = fs::read(path).unwrap();
    let header = open(&bytes).unwrap().header;
    let (beginning, state) =
        (bytes.first_chunk().unwrap(), &bytes[header.state_at() as usize..][..header.state as usize]);
    let root = key().root(beginning, state);
    assert_eq!(bytes[header::LEN + 16..][..HASH], root);
    assert_ne!(key().leaf().update(beginning).update(state).finalize(), root);
    assert_ne!(
        *blake3::Hasher::new_keyed(&[7; 32]).update(beginning).update(state).finalize().as_bytes(),
        root
    );
}

/// Changes a byte of a file.
fn flip(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

#[test]
fn d2_memory_that_was_changed_is_refused_when_it_is_copied_and_when_it_is_touched() {
    let (_folder, path, expected) = saved();
    let open = || key().open(&path).unwrap();
    let start = open().header.memory;
    flip(&path, start + 0x2f_fff3);
    let is_named = |error: SnapshotError| {
        assert!(matches!(error, SnapshotError::TamperedMemory { addr: 0x20_0000 }), "{error}")
    };
    is_named(open().verify_memory().unwrap_err());
    is_named(open().on_demand().verify_memory().unwrap_err());
    is_named(refusal(restore(open())));
    let shared = RamConfig::new(RAM).backing(Backing::Memfd);
    is_named(refusal(builder().memory(shared).restore(open().on_demand()).build(&hypervisor())));
    is_named(open().merge(path.with_file_name("merged")).unwrap_err());

    // On demand: others come, and whoever touches this one gets none of it.
    let guest = Script::new().ram_expect(GuestAddress(0x2f_fff0), b"second");
    let scripted = Scripted::new([guest]);
    let machine = Machine::builder("restored").restore(open().on_demand()).build(&scripted).unwrap();
    let dma = machine.ram().dma();
    assert_eq!(dma.read_obj::<[u8; 5]>(GuestAddress(0x1000)).unwrap(), *b"first");
    machine.start().unwrap();
    let Outcome::Failed { part, reason } = machine.wait_timeout(LIMIT).unwrap().unwrap() else { panic!() };
    assert_eq!(part, "memory");
    assert_eq!(reason, "guest memory at 0x200000 is not what was saved with this key");
    assert_eq!(dma.read_obj::<[u8; 8]>(GuestAddress(0x2f_fff0)).unwrap(), [0; 8]);

    // What is zero is not read, whatever is there: nothing of it is in the tree.
    flip(&path, start + 0x2f_fff3);
    flip(&path, start + 0x50_0000);
    assert!(memory(&restore(open()).unwrap()) == expected);
    assert!(memory(&restore(open().on_demand()).unwrap()) == expected);
    assert!(open().verify_memory().is_err());
}

#[test]
fn d2_memory_that_is_not_what_was_saved_is_not_saved_again() {
    type Save = fn(&Machine, &Path) -> Result<(), SnapshotError>;
    let (folder, path, _) = saved();
    flip(&path, key().open(&path).unwrap().header.memory + 0x2f_fff3);
    let new = folder.path().join("new.snap");
    let on_demand = || builder().restore(key().open(&path).unwrap().on_demand());
    let is_named = |what: &str, error: SnapshotError| {
        let expected = "guest memory at 0x200000 is not what was saved with this key";
        let named = matches!(&error, SnapshotError::OnDemand { reason } if reason == expected);
        assert!(named, "{what}: {error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "{what}");
    };
    let calls: [(&str, Save); 4] = [
        ("snapshot", |machine, path| machine.snapshot(path)),
        ("template", |machine, _| machine.template().map(drop)),
        ("checkpoint", |machine, _| machine.checkpoint().map(drop)),
        ("checkpoint_at", |machine, path| machine.checkpoint_at(path).map(drop)),
    ];
    for state in [LifecycleState::Created, LifecycleState::Running, LifecycleState::Paused] {
        for (name, save) in calls {
            let machine = on_demand().build(&hypervisor()).unwrap();
            if state != LifecycleState::Created {
                machine.start().unwrap();
            }
            let _paused = (state == LifecycleState::Paused).then(|| machine.pause().unwrap());
            assert_eq!(machine.state(), state);
            is_named(&format!("{name}, {state:?}"), save(&machine, &new).unwrap_err());
            assert!(matches!(machine.outcome(), Some(Outcome::Failed { .. })));
        }
    }
    let machine = on_demand().build(&hypervisor()).unwrap();
    machine.start().unwrap();
    let file = tempfile::tempfile().unwrap();
    is_named("snapshot_to", machine.pause().unwrap().snapshot_to(&file).unwrap_err());
    assert_eq!(file.metadata().unwrap().len(), 0);
    // So no diff has it either: there is no checkpoint that it could be based on.
    let built = on_demand().build_with_checkpoint(&hypervisor()).map(|(machine, _)| machine);
    is_named("diff", refusal(built));
}

#[test]
fn d2_chunks_that_changed_places_are_refused() {
    let (_folder, path, _) = saved();
    let start = key().open(&path).unwrap().header.memory;
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let mut chunks = [vec![0; 2 << 20], vec![0; 2 << 20]];
    for (chunk, at) in chunks.iter_mut().zip([0, 3]) {
        file.read_exact_at(chunk, start + at * (2 << 20)).unwrap();
    }
    for (chunk, at) in chunks.iter().zip([3, 0]) {
        file.write_all_at(chunk, start + at * (2 << 20)).unwrap();
    }
    assert!(matches!(
        refusal(restore(key().open(&path).unwrap())),
        SnapshotError::TamperedMemory { addr: 0 }
    ));
}

/// A base, two diffs of it, and what memory was at each.
struct Chain {
    folder: TempDir,
    paths: Vec<PathBuf>,
    memory: Vec<Vec<u8>>,
    machine: Machine,
}

fn chain() -> Chain {
    let (folder, machine) = (TempDir::new().unwrap(), machine());
    let mut paths = vec![folder.path().join("base.snap")];
    let mut checkpoint = machine.checkpoint_at(&paths[0]).unwrap();
    let mut all = vec![memory(&machine)];
    for (number, at) in [(1, 0x3000), (2, 0x3800)] {
        write(&machine, at, &[number; 0x900]);
        write(&machine, 0x40_0000, &[number; 9]);
        paths.push(folder.path().join(format!("{number}.diff")));
        machine.snapshot_diff(&mut checkpoint, paths.last().unwrap()).unwrap();
        all.push(memory(&machine));
    }
    Chain { folder, paths, memory: all, machine }
}

#[test]
fn a_chain_is_restored_and_merged_with_its_key() {
    let chain = chain();
    let open = |count: usize| key().open_chain(&chain.paths[..count]).unwrap();
    for count in 1..=3 {
        open(count).verify_memory().unwrap();
        assert!(memory(&restore(open(count)).unwrap()) == chain.memory[count - 1]);
    }
    // What is merged has the key, and diffs of its parts go on it, also if it is merged again.
    let path = |name: &str| chain.folder.path().join(name);
    open(2).merge(path("two")).unwrap();
    key().open(path("two")).unwrap().merge(path("again")).unwrap();
    for merged in ["two", "again"].map(path) {
        assert!(memory(&restore(key().open(&merged).unwrap()).unwrap()) == chain.memory[1]);
        assert!(matches!(
            Snapshot::open(&merged).unwrap().verify_memory(),
            Err(SnapshotError::KeyNeeded { .. })
        ));
        let chain_on = key().open_chain([&merged, &chain.paths[2]]).unwrap();
        assert!(memory(&restore(chain_on).unwrap()) == chain.memory[2]);
    }
    // A diff of what was merged goes on all that has its memory: on that, merged again or not, and on its parts.
    let merged = builder().restore(key().open(path("two")).unwrap());
    let (machine, mut checkpoint) = merged.build_with_checkpoint(&hypervisor()).unwrap();
    machine.start().unwrap();
    write(&machine, 0x20_0000, b"on what was merged");
    machine.snapshot_diff(&mut checkpoint, path("of-two.diff")).unwrap();
    for below in [vec![path("two")], vec![path("again")], chain.paths[..2].to_vec()] {
        let all = below.into_iter().chain([path("of-two.diff")]);
        assert!(memory(&restore(key().open_chain(all).unwrap()).unwrap()) == memory(&machine));
    }
    // A machine that goes on from it goes on with diffs.
    let (machine, mut checkpoint) =
        Machine::builder("on").restore(open(3)).build_with_checkpoint(&hypervisor()).unwrap();
    machine.start().unwrap();
    write(&machine, 0x10_0000, b"next");
    machine.snapshot_diff(&mut checkpoint, path("3.diff")).unwrap();
    let all = chain.paths.iter().cloned().chain([path("3.diff")]);
    assert!(memory(&restore(key().open_chain(all).unwrap()).unwrap()) == memory(&machine));
}

#[test]
fn d2_layers_that_are_changed_left_out_or_of_other_keys_are_refused() {
    let chain = chain();
    let [base, first, second] = [0, 1, 2].map(|at| chain.paths[at].clone());
    let error = key().open_chain([&base, &second]).unwrap_err();
    assert!(matches!(error.reason(), SnapshotError::OtherBase { .. }), "{error}");
    // Its page, and one that it has not, which is not looked at.
    let start = key().open(&first).unwrap().header.memory;
    let restored = || restore(key().open_chain([&base, &first]).unwrap());
    flip(&first, start + 0x3001);
    assert!(matches!(refusal(restored()), SnapshotError::TamperedMemory { addr: 0 }));
    flip(&first, start + 0x3001);
    flip(&first, start + 0x5001);
    assert!(memory(&restored().unwrap()) == chain.memory[1]);
    flip(&base, key().open(&base).unwrap().header.memory + 0x7f_f001);
    assert!(matches!(refusal(restored()), SnapshotError::TamperedMemory { addr: 0x60_0000 }));
    // Opened without the key, or some of it.
    let opened = Snapshot::open(&first).unwrap().on(key().open(&base).unwrap());
    assert!(matches!(opened, Err(SnapshotError::KeyNeeded { .. })));
    let opened = key().open(&first).unwrap().on(Snapshot::open(&base).unwrap());
    assert!(matches!(opened, Err(SnapshotError::KeyNeeded { .. })));
    // A machine with another key, or without, makes no diff of it.
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("diff");
    let plain = builder().build(&hypervisor()).unwrap();
    plain.snapshot(folder.path().join("plain")).unwrap();
    for (snapshot, asked) in [
        (key().open(&second).unwrap().on(key().open_chain([&base, &first]).unwrap()).unwrap(), other_key()),
        (Snapshot::open(folder.path().join("plain")).unwrap(), key()),
    ] {
        flip(&base, key().open(&base).unwrap().header.memory + 0x7f_f001);
        let (machine, mut checkpoint) =
            builder().restore(snapshot).snapshot_key(asked).build_with_checkpoint(&hypervisor()).unwrap();
        let error = machine.snapshot_diff(&mut checkpoint, &path).unwrap_err();
        assert!(matches!(error, SnapshotError::MixedKeys { .. }), "{error}");
        assert!(!path.exists());
    }
}

/// Writes a full snapshot of this id and memory of a machine in the same state.
fn write_with(id: SnapshotId, of: &Snapshot, ram: &Machine, path: &Path, key: &SnapshotKey) {
    let file = File::create_new(path).unwrap();
    let state = of.state().unwrap();
    let table = MemoryTable::of(ram.ram()).unwrap().with_key(Some(key));
    let identity = Identity { id, base: None, stands_for: None };
    write_parts(&file, &identity, &sections(&of.shape, &state), table, |table, start| {
        table.write(ram.ram(), &file, start)
    })
    .unwrap();
}

#[test]
fn d2_another_base_of_the_same_id_state_and_key_is_refused() {
    let chain = chain();
    let base = key().open(&chain.paths[0]).unwrap();
    let id = base.id().unwrap();
    let other = chain.folder.path().join("other.snap");
    write_with(id, &base, &chain.machine, &other, &key());
    let others = key().open(&other).unwrap();
    assert_eq!((others.id(), identity::seal(&others.sections)), (base.id(), identity::seal(&base.sections)));
    let error = key().open_chain([&other, &chain.paths[1]]).unwrap_err();
    assert!(matches!(error.reason(), SnapshotError::ChangedBase { base: of } if *of == id), "{error}");
    // Without a tree, its memory is not compared: that is what a key is for.
}

/// Puts another snapshot into the file that is being written in a folder, if there is one, when the machine goes on: that
/// is after it was written, and before anybody reads it.
fn swapper(folder: &Path, other: &Path) -> impl Device + use<> {
    let (folder, other) = (folder.to_owned(), other.to_owned());
    OnResume::new(move |_| {
        let files = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
        let part = files.into_iter().find(|path| path.extension().is_some_and(|end| end == "part"));
        if let (Some(part), true) = (part, other.exists()) {
            fs::copy(&other, part).unwrap();
        }
    })
}

#[test]
fn d2_a_file_that_has_become_another_good_snapshot_is_no_checkpoint() {
    for with_key in [true, false] {
        let (folder, other) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let (path, other) = (|name: &str| folder.path().join(name), other.path().join("other"));
        let builder = builder().device(swapper(folder.path(), &other));
        let builder = if with_key { builder.snapshot_key(key()) } else { builder };
        let machine = builder.build(&hypervisor()).unwrap();
        machine.start().unwrap();
        // An older one, of the same machine and key.
        machine.snapshot(path("older")).unwrap();
        fs::copy(path("older"), &other).unwrap();
        write(&machine, 0x1000, b"newer");
        let error = machine.checkpoint_at(path("base")).unwrap_err();
        assert!(matches!(error, SnapshotError::Overwritten), "{error}");
        fs::remove_file(&other).unwrap();

        // And a diff of the same base.
        let mut checkpoint = machine.checkpoint_at(path("base")).unwrap();
        let before = memory(&machine);
        let paused = machine.pause().unwrap();
        machine.snapshot_diff(&mut checkpoint, path("first")).unwrap();
        paused.resume().unwrap();
        fs::copy(path("first"), &other).unwrap();
        let open = |names: &[&str]| {
            let names = names.iter().map(|name| path(name));
            if with_key { key().open_chain(names) } else { Snapshot::open_chain(names) }
        };
        let builder = Machine::builder("on").restore(open(&["base"]).unwrap());
        let builder = builder.device(swapper(folder.path(), &other));
        let (on, mut checkpoint_on) = builder.build_with_checkpoint(&hypervisor()).unwrap();
        on.start().unwrap();
        write(&on, 0x3000, b"on");
        let error = on.snapshot_diff(&mut checkpoint_on, path("second")).unwrap_err();
        assert!(matches!(error, SnapshotError::Overwritten), "{error}");
        // Nothing is left, and the checkpoint is what it was.
        let mut left: Vec<_> =
            fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["base", "first", "older"]);
        on.reset_to(&mut checkpoint_on).unwrap();
        assert!(memory(&on) == before);
        fs::remove_file(&other).unwrap();
        write(&on, 0x3000, b"on");
        on.snapshot_diff(&mut checkpoint_on, path("second")).unwrap();
        assert!(memory(&restore_with(open(&["base", "second"]).unwrap(), &folder)) == memory(&on));
    }
}

/// A machine with a swapper that finds nothing to put anywhere.
fn restore_with(snapshot: Snapshot, folder: &TempDir) -> Machine {
    let swapper = swapper(folder.path(), &folder.path().join("none"));
    Machine::builder("restored").restore(snapshot).device(swapper).build(&hypervisor()).unwrap()
}

#[test]
fn checkpoints_go_back_to_what_was_checked() {
    let chain = chain();
    let path = |name: &str| chain.folder.path().join(name);
    let (machine, mut checkpoint) = Machine::builder("back")
        .restore(key().open_chain(&chain.paths).unwrap())
        .build_with_checkpoint(&hypervisor())
        .unwrap();
    machine.start().unwrap();
    // A file that is changed before the first reset: refused before anything changes.
    let at = key().open(&chain.paths[0]).unwrap().header.memory + 0x7f_f001;
    write(&machine, 0x3000, b"changed");
    let now = memory(&machine);
    flip(&chain.paths[0], at);
    let error = machine.reset_to(&mut checkpoint).unwrap_err();
    assert!(matches!(error, SnapshotError::TamperedMemory { addr: 0x60_0000 }), "{error}");
    assert_eq!(machine.state(), LifecycleState::Running);
    assert!(memory(&machine) == now);
    flip(&chain.paths[0], at);
    machine.reset_to(&mut checkpoint).unwrap();
    assert!(memory(&machine) == chain.memory[2]);
    // And after it: it has a copy.
    flip(&chain.paths[0], at);
    write(&machine, 0x7f_f000, b"changed");
    machine.reset_to(&mut checkpoint).unwrap();
    assert!(memory(&machine) == chain.memory[2]);
    flip(&chain.paths[0], at);
    // In memory, and in a file.
    drop(checkpoint);
    for in_file in [false, true] {
        let mut checkpoint =
            if in_file { machine.checkpoint_at(path("at")) } else { machine.checkpoint() }.unwrap();
        assert_eq!(checkpoint.snapshot().key_id(), Some(key().id()));
        write(&machine, 0x7e_f000, &[7; 5000]);
        machine.reset_to(&mut checkpoint).unwrap();
        assert!(memory(&machine) == chain.memory[2]);
        // What is in memory goes to a file by a merge, and diffs of it go on that.
        checkpoint.snapshot().merge(path("merged")).unwrap();
        write(&machine, 0x3000, b"more");
        let diff = path("more.diff");
        machine.snapshot_diff(&mut checkpoint, &diff).unwrap();
        let whole = key().open_chain([path("merged"), diff]).unwrap();
        assert!(memory(&restore(whole).unwrap()) == memory(&machine));
        write(&machine, 0x3000, b"even");
        machine.reset_to(&mut checkpoint).unwrap();
        assert_eq!(machine.ram().dma().read_obj::<[u8; 4]>(GuestAddress(0x3000)).unwrap(), *b"more");
        write(&machine, 0x3000, &chain.memory[2][0x3000..0x3004]);
    }
}

#[test]
fn resets_after_diffs_read_no_file_again() {
    let (folder, machine) = (TempDir::new().unwrap(), machine());
    let path = |name: &str| folder.path().join(name);
    let memory_at = |name: &str| key().open(path(name)).unwrap().header.memory;
    let mut checkpoint = machine.checkpoint_at(path("base")).unwrap();
    let base = memory(&machine);
    // The copy is made.
    machine.reset_to(&mut checkpoint).unwrap();
    assert!(memory(&machine) == base);
    flip(&path("base"), memory_at("base") + 0x7f_f001);
    // Over what is in the base, next to it, where it has zeros, and zeros over what is not.
    for round in 1..=3_u8 {
        for at in [0x1000, 0x2000 + 0x1000 * u64::from(round), 0x40_0000, 0x20_0000 * u64::from(round)] {
            write(&machine, at, &[round; 0x1000]);
        }
        write(&machine, 0x2f_f000, &[0; 0x1000]);
        let name = format!("{round}.diff");
        machine.snapshot_diff(&mut checkpoint, path(&name)).unwrap();
        flip(&path(&name), memory_at(&name) + 0x1001);
        let expected = memory(&machine);
        for at in [0x1800, 0x3800, 0x4800, 0x2f_fff0, 0x40_0800, 0x60_0000, 0x7f_f000] {
            write(&machine, at, b"changed");
        }
        machine.reset_to(&mut checkpoint).unwrap();
        assert!(memory(&machine) == expected, "{round}");
    }
    // From files, all that was changed is found.
    let chain = key().open_chain(["base", "1.diff"].map(path)).unwrap();
    refusal(restore(chain));
}

#[test]
fn peers_and_sources_of_any_kind_are_checked() {
    let (_folder, path, expected) = saved();
    let remote = |path: &Path| {
        let (here, there) = UnixStream::pair().unwrap();
        let file = File::open(path).unwrap();
        let server = std::thread::spawn(move || serve_snapshot(file, there));
        (RemoteSnapshot::over(here).unwrap(), server)
    };
    let (source, server) = remote(&path);
    let machine = restore(key().open_source(source).unwrap()).unwrap();
    assert!(memory(&machine) == expected);
    drop(machine);
    server.join().unwrap().unwrap();
    let (source, server) = remote(&path);
    assert!(matches!(other_key().open_source(source), Err(SnapshotError::OtherKey { .. })));
    server.join().unwrap().unwrap();

    flip(&path, key().open(&path).unwrap().header.memory + 0x7f_f001);
    let (source, server) = remote(&path);
    let machine = restore(key().open_source(source).unwrap()).unwrap();
    let dma = machine.ram().dma();
    let _ = dma.read_obj::<u8>(GuestAddress(0x7f_f000)).unwrap();
    let start = Instant::now();
    while machine.outcome().is_none() {
        assert!(start.elapsed() < LIMIT);
        std::thread::yield_now();
    }
    let reason = machine.outcome().unwrap().to_string();
    assert!(reason.contains("guest memory at 0x600000 is not what was saved with this key"), "{reason}");
    drop(machine);
    server.join().unwrap().unwrap();
}

#[test]
#[cfg(feature = "lz4")]
fn a_compressed_snapshot_is_checked() {
    use crate::machine::PackedSnapshot;
    let (_folder, path, expected) = saved();
    let packed = path.with_file_name("guest.pack");
    PackedSnapshot::write(File::open(&path).unwrap(), &packed).unwrap();
    let open = || PackedSnapshot::open(&packed).unwrap();
    assert!(memory(&restore(key().open_source(open()).unwrap()).unwrap()) == expected);
    refusal(restore(Snapshot::from_source(open()).unwrap()));
    // Packed again by somebody who has no key, with other memory.
    flip(&path, key().open(&path).unwrap().header.memory + 0x1001);
    fs::remove_file(&packed).unwrap();
    PackedSnapshot::write(File::open(&path).unwrap(), &packed).unwrap();
    let error = key().open_source(open()).unwrap().verify_memory().unwrap_err();
    assert!(matches!(error, SnapshotError::TamperedMemory { addr: 0 }), "{error}");
}

#[test]
fn forks_save_with_the_key_of_their_parent() {
    let (_folder, path, expected) = saved();
    // Of a machine: a copy in memory. Of a file: each child has a checked copy.
    let parent = restore(key().open(&path).unwrap()).unwrap();
    parent.start().unwrap();
    let saved = parent.template().unwrap();
    let stored = crate::machine::Template::new(key().open(&path).unwrap()).unwrap();
    for template in [saved, stored] {
        let child = template.any_child().build(&hypervisor()).unwrap();
        assert!(memory(&child) == expected);
        let again = path.with_file_name("child.snap");
        child.snapshot(&again).unwrap();
        assert!(memory(&restore(key().open(&again).unwrap()).unwrap()) == expected);
    }
    // By its descriptor: the key is whoever forks it to give.
    let descriptor = parent.template().unwrap().as_fd().try_clone_to_owned().unwrap();
    let template = crate::machine::Template::new(Snapshot::from_file(descriptor).unwrap()).unwrap();
    for given in [None, Some(key())] {
        let child = template.any_child();
        let child = if let Some(key) = &given { child.snapshot_key(key.clone()) } else { child };
        let again = path.with_file_name("elsewhere.snap");
        child.build(&hypervisor()).unwrap().snapshot(&again).unwrap();
        assert_eq!(Snapshot::open(&again).unwrap().key_id(), given.map(|key| key.id()));
    }
    flip(&path, key().open(&path).unwrap().header.memory + 0x1001);
    let template = crate::machine::Template::new(key().open(&path).unwrap()).unwrap();
    let error = refusal(template.any_child().build(&hypervisor()));
    assert!(matches!(error, SnapshotError::TamperedMemory { addr: 0 }), "{error}");
}

#[test]
fn leaves_that_do_not_fit_are_refused() {
    let load = |state: &SavedState<'_>, present| Leaves::load(state, present);
    let good = Leaves::save([[1; HASH], [2; HASH]].iter());
    assert_eq!(load(&good, 2).unwrap(), [[1; HASH], [2; HASH]]);
    for present in [0, 1, 3] {
        assert!(load(&good, present).is_err());
    }
    let mut short = good.payload.to_vec();
    short.pop();
    assert!(load(&SavedState::new(good.kind.clone(), good.version, short), 2).is_err());
}

#[test]
fn keys_have_ids_and_no_words_about_them_have_the_secret() {
    assert_ne!(key().id(), other_key().id());
    assert_eq!(key().id(), key().id());
    assert_eq!(SnapshotKey::read(&[7; 32][..]).unwrap(), key());
    for (len, expected) in [(0, "0 bytes"), (31, "31 bytes"), (33, "more")] {
        let error = SnapshotKey::read(&vec![7; len][..]).unwrap_err().to_string();
        assert_eq!(error, format!("a key has 32 bytes, and this is {expected}"));
    }
    let said = format!("{:?} {}", key(), key().id());
    assert!(!said.contains("070707") && !said.contains("7, 7"), "{said}");
}
