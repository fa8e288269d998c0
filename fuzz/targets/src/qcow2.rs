//! Disks in qcow2 images that were damaged, or made to do harm.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use ossature_block::{Disk, DiskIo, NewQcow2, OpenMode, Qcow2, Qcow2Options};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, Segment};
use ossature_virtio::testing::guest_ram;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::Input;

/// Steps of one input.
const STEPS: usize = 32;
/// Bytes of the disk in the image that others are made from.
const SIZE: u64 = 128 << 10;
/// The most bytes that one request moves.
const LEN: u64 = 16 << 10;
/// The longest that the guest of an image of 128 KiB can make its file.
const MAX_FILE: u64 = 8 << 20;

/// Where the images have 4096 bytes of data.
const WRITTEN: [u64; 3] = [0, 40 << 10, 100 << 10];

/// A file that no folder has.
fn file(bytes: &[u8]) -> File {
    let mut file = File::from(memfd_create("ossature-fuzz", MemfdFlags::CLOEXEC).expect("a file in memory"));
    file.write_all(bytes).expect("room");
    file
}

fn clone(file: &File) -> File {
    file.try_clone().expect("a descriptor")
}

/// Images with data in some clusters, of 512 and of 4096 bytes.
fn templates() -> &'static [Vec<u8>; 2] {
    static TEMPLATES: OnceLock<[Vec<u8>; 2]> = OnceLock::new();
    TEMPLATES.get_or_init(|| [512, 4096].map(template))
}

fn template(cluster: u32) -> Vec<u8> {
    let mut image = file(&[]);
    NewQcow2::new(SIZE).with_cluster_size(cluster).create_in(clone(&image)).expect("an image");
    let disk = Qcow2::from_fd(clone(&image), &Qcow2Options::new(OpenMode::ReadWrite)).expect("a disk");
    disk.lock().expect("a lock");
    let mem = guest_ram(&[(0, LEN as usize)]);
    mem.write(GuestAddress(0), &[0x33; LEN as usize]).expect("RAM");
    for at in WRITTEN {
        assert_eq!(transfer(&disk, &mem, at, 4096, true), Some(()));
    }
    disk.unlock().expect("an unlock");
    let mut bytes = Vec::new();
    image.seek(SeekFrom::Start(0)).expect("a start");
    image.read_to_end(&mut bytes).expect("an image");
    bytes
}

/// Moves all of a request, as engines do.
fn transfer(disk: &Qcow2, mem: &Dma, at: u64, len: u64, write: bool) -> Option<()> {
    let mut done = 0;
    while done < len {
        let segment = [Segment { addr: GuestAddress(done), len: (len - done) as u32 }];
        let moved = if write {
            disk.write(mem, (&segment).into(), at + done)
        } else {
            disk.read(mem, (&segment).into(), at + done)
        };
        match moved.ok()? {
            0 => return None,
            moved => done += moved as u64,
        }
        assert!(done <= len, "{done} of {len} bytes");
    }
    Some(())
}

/// Opens an image and uses it. One that nobody has damaged holds what was written to it.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let form = input.u8();
    let (mut image, mut sound) = match form & 3 {
        0 => (input.bytes(usize::MAX).to_vec(), false),
        number => (templates()[usize::from(number & 1)].clone(), true),
    };
    for _ in 0..form >> 4 {
        // Header and tables are more interesting than data.
        let at = input.u16() % if form & 8 == 0 { 0x80 } else { 0x1000 };
        let len = usize::from(input.u8() % 9);
        let patch = input.bytes(len);
        if let Some(place) = image.get_mut(usize::from(at)..usize::from(at) + patch.len()) {
            sound &= *place == *patch;
            place.copy_from_slice(patch);
        }
    }
    let image = file(&image);
    let before = image.metadata().expect("a file").len();
    let writable = form & 4 == 0;
    let mode = if writable { OpenMode::ReadWrite } else { OpenMode::ReadOnly };
    let options = Qcow2Options::new(mode);
    let Ok(disk) = Qcow2::from_fd(clone(&image), &options) else {
        assert!(!sound, "a sound image is refused");
        return;
    };
    if let Err(error) = disk.lock() {
        assert!(!sound, "a sound image is refused: {error}");
        return;
    }
    let mem = guest_ram(&[(0, LEN as usize)]);
    let mut model = vec![0; SIZE as usize];
    for at in WRITTEN {
        model[at as usize..][..4096].fill(0x33);
    }
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let (op, value) = (input.u8(), input.u8());
        let size = disk.capacity();
        if size == 0 {
            break;
        }
        let at = (u64::from(input.u16()) << 9) % size.max(512) / 512 * 512;
        let len = (512 * (1 + u64::from(input.u8()) % 32)).min(LEN).min(size.saturating_sub(at));
        let range = at as usize..(at + len) as usize;
        let mut expect = |done: bool, fill: Option<u8>| {
            if !sound {
                return;
            }
            assert_eq!(done, writable, "a request for a sound image");
            if let (true, Some(fill)) = (done, fill) {
                model[range.clone()].fill(fill);
            }
        };
        match op % 8 {
            0 | 1 => {
                mem.write(GuestAddress(0), &[value; LEN as usize]).expect("RAM");
                expect(transfer(&disk, &mem, at, len, true).is_some(), Some(value));
            }
            2 => expect(disk.write_zeroes(at, len, value & 1 != 0).is_ok(), Some(0)),
            3 => {
                let done = disk.discard(at, len).is_ok();
                expect(done, None);
                // What was discarded reads as anything.
                if sound && done && transfer(&disk, &mem, at, len, false).is_some() {
                    mem.read(GuestAddress(0), &mut model[range]).expect("RAM");
                }
            }
            4 => {
                let done = disk.flush().is_ok();
                assert!(done || !sound, "a flush of a sound image");
            }
            5 => {
                assert!(disk.unlock().is_ok() || !sound, "a sound image is not given up");
                if let Err(error) = disk.lock() {
                    assert!(!sound, "a sound image is not taken again: {error}");
                    return;
                }
            }
            6 if value & 1 != 0 && size <= 1 << 20 => {
                let size = 512 * (1 + u64::from(value));
                if disk.resize(size).is_ok() {
                    assert_eq!(disk.capacity(), size);
                    model.resize(size as usize, 0);
                } else {
                    assert!(!sound || !writable, "a sound image is not resized");
                }
            }
            _ => {
                let done = transfer(&disk, &mem, at, len, false).is_some();
                let mut read = vec![0; len as usize];
                mem.read(GuestAddress(0), &mut read).expect("RAM");
                assert!(
                    !sound || done && read == model[range],
                    "a sound image reads something else at {at:#x}"
                );
            }
        }
    }
    let _ = disk.unlock();
    let len = image.metadata().expect("a file").len();
    assert!(len <= before.max(MAX_FILE), "the file has {len} bytes now");
    // What nobody writes to stays as it is, however it is damaged.
    if !writable {
        assert_eq!(len, before);
    }
    let mut magic = [0; 4];
    let _ = image.read_exact_at(&mut magic, 0);
    assert_eq!(magic, *b"QFI\xfb", "what was opened as qcow2 is no longer that");
}
