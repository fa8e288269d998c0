//! Tests of whole images. Those that need QEMU's tools to say what is right call `qemu-img`.

mod exchange;
mod hostile;
mod model;
mod power;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ossature_memory::Segment;
use ossature_memory::vm_memory::GuestAddress;
use tempfile::TempDir;

use super::*;
use crate::OpenMode;
use crate::testing::guest_ram;
pub(super) use power::Journal;

/// A guest that has a disk.
struct Guest {
    mem: Dma,
    disk: Arc<Qcow2>,
}

const RAM: usize = 4 << 20;

impl Guest {
    /// Takes the disk into use.
    fn new(disk: Qcow2) -> Self {
        disk.lock().unwrap();
        Self { mem: guest_ram(&[(0, RAM)]), disk: Arc::new(disk) }
    }

    fn open(path: &Path, options: &Qcow2Options) -> Self {
        Self::new(Qcow2::open(path, options).unwrap())
    }

    fn try_read(&self, offset: u64, len: usize) -> Result<Vec<u8>, DmaIoError> {
        let to = segments(len);
        let mut done = 0;
        while done < len {
            let all: Segments<'_> = (&to).into();
            match self.disk.read(&self.mem, all.skip(done as u64), offset + done as u64)? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                n => done += n,
            }
        }
        let mut data = vec![0; len];
        self.mem.gather(&to, &mut data).unwrap();
        Ok(data)
    }

    fn read(&self, offset: u64, len: usize) -> Vec<u8> {
        self.try_read(offset, len).unwrap()
    }

    fn try_write(&self, offset: u64, data: &[u8]) -> Result<(), DmaIoError> {
        let from = segments(data.len());
        self.mem.scatter(&from, data).unwrap();
        let mut done = 0;
        while done < data.len() {
            let all: Segments<'_> = (&from).into();
            done += self.disk.write(&self.mem, all.skip(done as u64), offset + done as u64)?;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.try_write(offset, data).unwrap();
    }

    fn all(&self) -> Vec<u8> {
        let size = self.disk.capacity();
        let step = 1 << 20;
        (0..size).step_by(step).flat_map(|at| self.read(at, (size - at).min(step as u64) as usize)).collect()
    }
}

/// Two pieces of memory, the first of an odd length.
fn segments(len: usize) -> [Segment; 2] {
    let first = len.min(1001);
    [
        Segment { addr: GuestAddress(3), len: first as u32 },
        Segment { addr: GuestAddress(8192), len: (len - first) as u32 },
    ]
}

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn read_write() -> Qcow2Options {
    Qcow2Options::new(OpenMode::ReadWrite)
}

fn read_only() -> Qcow2Options {
    Qcow2Options::new(OpenMode::ReadOnly)
}

/// Runs one of QEMU's tools, which has to succeed.
#[track_caller]
fn qemu(tool: &str, args: &[&str]) -> String {
    let output = Command::new(tool)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{tool}, of the package qemu-utils: {e}"));
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{tool} {args:?}: {text}");
    text
}

/// `qemu-img check` finds neither errors nor leaks.
#[track_caller]
fn check(path: &Path) {
    let text = qemu("qemu-img", &["check", "-f", "qcow2", text(path)]);
    assert!(text.contains("No errors were found"), "{text}");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The contents as QEMU reads them.
fn contents(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("as-raw");
    qemu("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", text(path), text(&raw)]);
    let contents = fs::read(&raw).unwrap();
    fs::remove_file(&raw).unwrap();
    contents
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

fn new_image(dir: &TempDir, size: u64) -> PathBuf {
    let path = dir.path().join("disk.qcow2");
    NewQcow2::new(size).create(&path).unwrap();
    path
}

#[test]
fn what_is_written_is_read_and_is_there_after_a_flush() {
    let dir = dir();
    let path = new_image(&dir, 8 << 20);
    let guest = Guest::open(&path, &read_write());
    let data = noise(7, 200_192);
    guest.write(70_144, &data);
    guest.disk.flush().unwrap();
    assert_eq!(guest.read(70_144, data.len()), data);
    assert!(guest.read(0, 70_144).iter().all(|byte| *byte == 0));
    // A copy of the file at this moment is what a machine without power would find.
    let copy = dir.path().join("copy.qcow2");
    fs::copy(&path, &copy).unwrap();
    assert_eq!(Guest::open(&copy, &read_write()).all(), guest.all());
    check(&copy);
    drop(guest);
    check(&path);
    assert_eq!(contents(&path)[70_144..][..data.len()], data);
}

#[test]
fn without_a_lock_nothing_works_and_after_unlock_others_may_have_it() {
    let dir = dir();
    let path = new_image(&dir, 1 << 20);
    let (one, other) =
        (Qcow2::open(&path, &read_write()).unwrap(), Qcow2::open(&path, &read_write()).unwrap());
    let mem = guest_ram(&[(0, 0x1000)]);
    let to = [Segment { addr: GuestAddress(0), len: 512 }];
    assert!(one.read(&mem, (&to).into(), 0).unwrap_err().to_string().contains("not locked"));
    let guest = Guest::new(one);
    let error = other.lock().unwrap_err().to_string();
    assert!(error.contains("is in use by another process") && error.contains("disk.qcow2"), "{error}");
    guest.write(512, &[9; 512]);
    guest.disk.unlock().unwrap();
    check(&path);
    let other = Guest::new(other);
    assert_eq!(other.read(512, 512), [9; 512]);
    other.write(512, &[10; 512]);
    other.disk.unlock().unwrap();
    // What the other has written is seen, although it was read before.
    guest.disk.lock().unwrap();
    assert_eq!(guest.read(512, 512), [10; 512]);
}

#[test]
#[allow(unsafe_code)] // the file of a disk is made read-only under it
fn a_pause_that_cannot_write_loses_nothing_that_was_written() {
    use std::os::fd::AsRawFd;

    let dir = dir();
    let path = new_image(&dir, 1 << 20);
    let guest = Guest::open(&path, &read_write());
    guest.write(0, &[7; 512]);
    let file = &guest.disk.layers[0].image.file;
    let (kept, unwritable) = (file.try_clone().unwrap(), fs::File::open(&path).unwrap());
    let become_one_of = |other: &fs::File| {
        // SAFETY: the descriptor stays open, and nobody else uses it meanwhile.
        assert!(unsafe { libc::dup2(other.as_raw_fd(), file.as_raw_fd()) } >= 0);
    };
    become_one_of(&unwritable);
    let error = guest.disk.unlock().unwrap_err().to_string();
    become_one_of(&kept);
    assert!(error.contains("cannot flush it"), "{error}");
    // The machine goes on.
    guest.disk.lock().unwrap();
    assert_eq!(guest.read(0, 512), [7; 512]);
    guest.disk.unlock().unwrap();
    check(&path);
    guest.disk.lock().unwrap();
    assert_eq!(guest.read(0, 512), [7; 512]);
}

#[test]
fn clones_share_a_base_that_nobody_may_write_to() {
    let dir = dir();
    let base = dir.path().join("base.img");
    let data = noise(3, 1 << 20);
    fs::write(&base, &data).unwrap();
    let clones: Vec<_> = ["a", "b"]
        .iter()
        .map(|name| {
            let path = dir.path().join(name);
            Guest::new(Qcow2::overlay(path, &base, ImageFormat::Raw, &read_write()).unwrap())
        })
        .collect();
    clones[0].write(0, &[1; 512]);
    assert_eq!(clones[1].all(), data);
    assert_eq!(clones[0].read(512, 4096), data[512..4608]);
    let raw = crate::RawFile::open(&base, OpenMode::ReadWrite).unwrap();
    assert!(raw.lock().unwrap_err().to_string().contains("base.img"));
    for clone in &clones {
        clone.disk.unlock().unwrap();
    }
    raw.lock().unwrap();
    let error = clones[0].disk.lock().unwrap_err().to_string();
    assert!(error.contains("base.img") && error.contains("in use"), "{error}");
    raw.unlock().unwrap();
    drop(clones);
    assert_eq!(fs::read(&base).unwrap(), data);
    for name in ["a", "b"] {
        check(&dir.path().join(name));
    }
    // Opened again, it is the same; over another base it is refused.
    let again =
        Guest::new(Qcow2::overlay(dir.path().join("a"), &base, ImageFormat::Raw, &read_write()).unwrap());
    assert_eq!(again.read(0, 1024), [vec![1; 512], data[512..1024].to_vec()].concat());
    let other = dir.path().join("other.img");
    fs::write(&other, &data).unwrap();
    let error = Qcow2::overlay(dir.path().join("a"), &other, ImageFormat::Raw, &read_write())
        .unwrap_err()
        .to_string();
    assert!(error.contains("rebase it") && error.contains("base.img"), "{error}");
    let error = Qcow2::overlay(dir.path().join("a"), &base, ImageFormat::Qcow2, &read_write())
        .unwrap_err()
        .to_string();
    assert!(error.contains("magic"), "{error}");
}

#[test]
fn an_overlay_lives_in_memory_if_it_is_made_there() {
    let dir = dir();
    let base = dir.path().join("base.img");
    fs::write(&base, noise(3, 1 << 20)).unwrap();
    let memory = rustix::fs::memfd_create("overlay", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    NewQcow2::over(&base, ImageFormat::Raw).unwrap().create_in(memory.try_clone().unwrap()).unwrap();
    let base_fd = fs::File::open(&base).unwrap();
    let options = read_write().with_base_fd(base_fd, ImageFormat::Raw);
    let guest = Guest::new(Qcow2::from_fd(memory, &options).unwrap());
    guest.write(4096, &[5; 512]);
    assert_eq!(guest.read(4096, 512), [5; 512]);
    assert_eq!(guest.read(0, 4096), noise(3, 1 << 20)[..4096]);
}

#[test]
fn discard_and_zeroes_give_space_back_and_read_as_zeros_over_a_base() {
    use std::os::unix::fs::MetadataExt;
    let dir = dir();
    let base = dir.path().join("base.img");
    fs::write(&base, noise(3, 8 << 20)).unwrap();
    let path = dir.path().join("clone.qcow2");
    let guest = Guest::new(Qcow2::overlay(&path, &base, ImageFormat::Raw, &read_write()).unwrap());
    let mut want = noise(4, 8 << 20);
    for at in (0..8 << 20).step_by(1 << 20) {
        guest.write(at as u64, &want[at..at + (1 << 20)]);
    }
    guest.disk.flush().unwrap();
    let blocks = || fs::metadata(&path).unwrap().blocks() * 512;
    let full = blocks();
    guest.disk.discard(1 << 20, 4 << 20).unwrap();
    want[1 << 20..5 << 20].fill(0);
    // Not counting what tables have taken.
    assert!(full - blocks() >= (4 << 20) - (64 << 10));
    guest.disk.write_zeroes(6 << 20, 1 << 20, true).unwrap();
    want[6 << 20..7 << 20].fill(0);
    guest.disk.write_zeroes((7 << 20) + 512, 70_144, false).unwrap();
    want[(7 << 20) + 512..][..70_144].fill(0);
    guest.disk.write_zeroes(512, 1024, true).unwrap();
    want[512..1536].fill(0);
    assert!(full - blocks() >= (5 << 20) - (64 << 10));
    assert!(guest.all() == want);
    // What was given up is used again, and holds nothing of what it was.
    guest.write(2 << 20, &[1; 512]);
    want[2 << 20..][..512].fill(1);
    assert!(guest.all() == want);
    drop(guest);
    check(&path);
    assert!(contents(&path) == want);
}

#[test]
fn zeros_in_a_part_of_a_cluster_that_the_disk_ends_in_are_written_there_only() {
    let dir = dir();
    for (name, unmap) in [("zeroes", false), ("unmap", true)] {
        let path = dir.path().join(name);
        NewQcow2::new(3 * 512).with_cluster_size(4096).create(&path).unwrap();
        let guest = Guest::open(&path, &read_write());
        let mut want = noise(5, 3 * 512);
        guest.write(0, &want);
        for at in [0, 512] {
            guest.disk.write_zeroes(at, 512, unmap).unwrap();
            want[at as usize..][..512].fill(0);
            assert!(guest.all() == want, "{name} at {at}");
        }
        drop(guest);
        check(&path);
        assert!(contents(&path) == want);
    }
}

#[test]
fn zeros_over_compressed_clusters_give_them_up_before_anything_takes_their_place() {
    let dir = dir();
    let (raw, path) = (dir.path().join("raw"), dir.path().join("packed.qcow2"));
    let mut want = noise(6, 1 << 20);
    // So that it is worth compressing.
    want.chunks_mut(2).for_each(|pair| pair[1] = 0);
    fs::write(&raw, &want).unwrap();
    qemu("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", text(&raw), text(&path)]);
    let guest = Guest::open(&path, &read_write());
    let has_freed = || guest.disk.image.read().unwrap().as_ref().unwrap().has_freed();
    // Whole clusters, parts of two, and data that takes their place.
    for (number, (at, len)) in
        [(0, 65_536), (131_072 - 512, 1024), (262_144, 131_072)].into_iter().enumerate()
    {
        guest.disk.write_zeroes(at, len, false).unwrap();
        want[at as usize..][..len as usize].fill(0);
        assert!(has_freed(), "{at}");
        let data = 524_288 + 65_536 * number;
        guest.write(data as u64, &[7; 65_536]);
        want[data..][..65_536].fill(7);
        assert!(guest.all() == want, "{at}");
    }
    drop(guest);
    check(&path);
    assert!(contents(&path) == want);
}

#[test]
fn discarding_what_is_not_there_takes_no_space() {
    let dir = dir();
    let path = new_image(&dir, 1 << 40);
    let guest = Guest::open(&path, &read_write());
    let before = fs::metadata(&path).unwrap().len();
    guest.disk.discard(0, 1 << 40).unwrap();
    guest.disk.write_zeroes(0, 1 << 40, true).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), before);
}

#[test]
fn resize_gains_zeros_whatever_was_there_before() {
    let dir = dir();
    let base = dir.path().join("base.img");
    fs::write(&base, noise(3, 4 << 20)).unwrap();
    for over in [false, true] {
        let path = dir.path().join(format!("disk{over}"));
        let new =
            if over { NewQcow2::over(&base, ImageFormat::Raw).unwrap() } else { NewQcow2::new(4 << 20) };
        new.create(&path).unwrap();
        let options = read_write().with_backing_folder(dir.path());
        let guest = Guest::open(&path, &options);
        guest.write(0, &noise(5, 2 << 20));
        guest.disk.resize((1 << 20) + 512).unwrap();
        assert_eq!(guest.disk.capacity(), (1 << 20) + 512);
        guest.disk.resize(6 << 20).unwrap();
        let all = guest.all();
        assert!(all[..(1 << 20) + 512] == noise(5, 2 << 20)[..(1 << 20) + 512]);
        assert!(all[(1 << 20) + 512..].iter().all(|byte| *byte == 0), "over a base: {over}");
        guest.write(5 << 20, &[1; 512]);
        for (size, want) in [(0, "is empty"), (1000, "multiple of 512")] {
            assert!(guest.disk.resize(size).unwrap_err().to_string().contains(want));
        }
        drop(guest);
        check(&path);
        assert_eq!(contents(&path).len(), 6 << 20);
    }
}

#[test]
fn a_disk_that_was_resized_is_given_up_and_taken_again() {
    let dir = dir();
    let path = dir.path().join("disk");
    NewQcow2::new(1 << 20).create(&path).unwrap();
    let disk = Qcow2::open(&path, &read_write()).unwrap();
    for size in [2 << 20, 512 << 10] {
        disk.lock().unwrap();
        disk.resize(size).unwrap();
        disk.unlock().unwrap();
    }
    disk.lock().unwrap();
    assert_eq!(disk.capacity(), 512 << 10);
}

#[test]
fn commit_writes_into_the_base_and_empties_the_overlay() {
    let dir = dir();
    for format in [ImageFormat::Raw, ImageFormat::Qcow2] {
        let base = dir.path().join(format!("base.{format}"));
        match format {
            ImageFormat::Raw => fs::write(&base, noise(3, 1 << 20)).unwrap(),
            ImageFormat::Qcow2 => NewQcow2::new(1 << 20).create(&base).unwrap(),
        }
        let path = dir.path().join(format!("over.{format}"));
        let guest = Guest::new(Qcow2::overlay(&path, &base, format, &read_write()).unwrap());
        guest.disk.resize(2 << 20).unwrap();
        guest.write(66_048, &noise(6, 4096));
        guest.write((2 << 20) - 512, &[8; 512]);
        guest.disk.write_zeroes(262_144, 131_072, true).unwrap();
        let want = guest.all();
        drop(guest);
        let options = read_write().with_backing_folder(dir.path());
        Qcow2::commit(&path, &options).unwrap();
        let raw = match format {
            ImageFormat::Raw => fs::read(&base).unwrap(),
            ImageFormat::Qcow2 => contents(&base),
        };
        assert!(raw == want, "{format}");
        check(&path);
        assert!(contents(&path) == want);
        let map = qemu("qemu-img", &["map", "-f", "qcow2", "--output=json", text(&path)]);
        assert!(!map.contains("\"depth\": 0"), "{map}");
    }
    let alone = new_image(&dir, 1 << 20);
    assert!(Qcow2::commit(alone, &read_write()).unwrap_err().to_string().contains("nothing to commit to"));
}

#[test]
fn rebase_keeps_the_contents() {
    let dir = dir();
    let (one, two) = (dir.path().join("one.img"), dir.path().join("two.qcow2"));
    fs::write(&one, noise(3, 1 << 20)).unwrap();
    let small = Guest::new({
        NewQcow2::new(512 << 10).create(&two).unwrap();
        Qcow2::open(&two, &read_write()).unwrap()
    });
    small.write(0, &noise(3, 128 << 10));
    small.write(256 << 10, &noise(9, 64 << 10));
    drop(small);
    let path = dir.path().join("over.qcow2");
    let guest = Guest::new(Qcow2::overlay(&path, &one, ImageFormat::Raw, &read_write()).unwrap());
    guest.write(66_048, &noise(6, 4096));
    let want = guest.all();
    drop(guest);
    let options = read_write().with_backing_folder(dir.path());
    for base in [Some((two.as_path(), ImageFormat::Qcow2)), Some((one.as_path(), ImageFormat::Raw)), None] {
        Qcow2::rebase(&path, base, &options).unwrap();
        check(&path);
        assert!(contents(&path) == want, "{base:?}");
        assert!(Guest::open(&path, &options).all() == want, "{base:?}");
        let info = qemu("qemu-img", &["info", "-f", "qcow2", text(&path)]);
        assert_eq!(info.contains("backing file:"), base.is_some(), "{info}");
    }
    let error = Qcow2::rebase(&path, Some((&path, ImageFormat::Qcow2)), &options).unwrap_err().to_string();
    assert!(error.contains("a loop"), "{error}");
    // Moved bases are renamed without a look at them.
    Qcow2::rename_base(&path, Some(("/nowhere/base.img", ImageFormat::Raw))).unwrap();
    assert!(qemu("qemu-img", &["info", "-U", "-f", "qcow2", text(&path)]).contains("/nowhere/base.img"));
    Qcow2::rename_base(&path, None).unwrap();
    assert!(contents(&path) == want);
}

#[test]
fn queues_write_side_by_side() {
    let dir = dir();
    let path = new_image(&dir, 32 << 20);
    let guest = Guest::open(&path, &read_write());
    let threads = 4_u64;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let guest = Guest { mem: guest_ram(&[(0, RAM)]), disk: Arc::clone(&guest.disk) };
            scope.spawn(move || {
                // Neighbours in the same clusters.
                for round in 0..256_u64 {
                    let at = (round * 7919 % 8192 * threads + thread) * 1024;
                    guest.write(at, &[thread as u8 + 1; 1024]);
                    if round % 16 == 0 {
                        guest.disk.flush().unwrap();
                    }
                    if round % 32 == 5 {
                        guest.disk.discard(at, 1024).unwrap();
                        guest.write(at, &[thread as u8 + 1; 1024]);
                    }
                }
            });
        }
    });
    for round in 0..256_u64 {
        for thread in 0..threads {
            let at = (round * 7919 % 8192 * threads + thread) * 1024;
            assert_eq!(guest.read(at, 1024), [thread as u8 + 1; 1024]);
        }
    }
    drop(guest);
    check(&path);
}
