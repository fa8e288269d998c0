//! Power cuts: what was not synced may be lost, in any combination. What was flushed is there all the same, nothing shows
//! that was never written, and the image is in order again when it is opened.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard};

use super::*;

const SECTOR: usize = 512;

/// What happens to an image file, in order.
#[derive(Clone, Debug)]
enum Change {
    Write { at: u64, data: Vec<u8> },
    Length(u64),
    Sync,
    Guest(Request),
}

/// What the guest does.
#[derive(Clone, Copy, Debug)]
enum Request {
    /// Fills sectors from the first one on.
    Fill {
        first: u64,
        sectors: u64,
        byte: u8,
    },
    /// The contents of sectors do not matter any more.
    Discard {
        first: u64,
        sectors: u64,
    },
    Flush,
    /// The flush has returned.
    Flushed,
}

/// Records what happens to an image file, if a test asks for it.
#[derive(Debug, Default)]
pub(in crate::qcow2) struct Journal(Mutex<Option<Vec<Change>>>);

impl Journal {
    fn lock(&self) -> MutexGuard<'_, Option<Vec<Change>>> {
        self.0.lock().unwrap()
    }

    fn push(&self, change: impl FnOnce() -> Change) {
        if let Some(changes) = &mut *self.lock() {
            changes.push(change());
        }
    }

    pub(in crate::qcow2) fn write(&self, file: &File, at: u64, len: usize) {
        self.push(|| {
            let mut data = vec![0; len];
            // A hole may be longer than the file.
            let len = file.metadata().unwrap().len().saturating_sub(at).min(len as u64);
            file.read_exact_at(&mut data[..len as usize], at).unwrap();
            Change::Write { at, data }
        });
    }

    pub(in crate::qcow2) fn set_len(&self, len: u64) {
        self.push(|| Change::Length(len));
    }

    pub(in crate::qcow2) fn sync(&self) {
        self.push(|| Change::Sync);
    }
}

/// The same numbers in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit
    }
}

fn write_at(image: &mut Vec<u8>, at: u64, data: &[u8]) {
    let (start, end) = (at as usize, at as usize + data.len());
    if image.len() < end {
        image.resize(end, 0);
    }
    image[start..end].copy_from_slice(data);
}

/// What is left of the image if the power goes after `changes`: all that was synced, and of the rest each sector or not.
fn cut(before: &[u8], changes: &[Change], random: &mut Random) -> Vec<u8> {
    let synced = changes.iter().rposition(|change| matches!(change, Change::Sync)).unwrap_or(0);
    let mut image = before.to_vec();
    // All, none, or as it comes.
    let odds = [0, 1, 1, 2][random.below(4) as usize];
    for (index, change) in changes.iter().enumerate() {
        let mut stays = || index < synced || random.below(2) < odds;
        match change {
            Change::Write { at, data } => {
                for (at, sector) in (*at..).step_by(SECTOR).zip(data.chunks(SECTOR)) {
                    if stays() {
                        write_at(&mut image, at, sector);
                    }
                }
            }
            Change::Length(len) => {
                if stays() {
                    image.resize(*len as usize, 0);
                }
            }
            Change::Sync | Change::Guest(_) => {}
        }
    }
    image
}

/// What sectors may be after `changes`, of those that the guest has ever done something to.
fn allowed(changes: &[Change]) -> BTreeMap<u64, Vec<u8>> {
    let mut sectors: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    // What each sector has been since the last flush began.
    let mut flushing = BTreeMap::new();
    for change in changes {
        match change {
            Change::Guest(Request::Fill { first, sectors: count, byte }) => {
                for sector in *first..first + count {
                    sectors.entry(sector).or_insert_with(|| vec![at_first(sector)]).push(*byte);
                }
            }
            Change::Guest(Request::Discard { first, sectors: count }) => {
                for sector in *first..first + count {
                    sectors.entry(sector).or_insert_with(|| vec![at_first(sector)]).push(0);
                }
            }
            Change::Guest(Request::Flush) => flushing = sectors.clone(),
            Change::Guest(Request::Flushed) => {
                for (sector, values) in &flushing {
                    let now = sectors.get_mut(sector).unwrap();
                    // Discards leave what was there, or zeros.
                    now.drain(..values.iter().rposition(|value| *value != 0).unwrap());
                }
            }
            _ => {}
        }
    }
    sectors
}

/// What is in all sectors of the base.
const BASE: u8 = 1;

/// What a sector was before the guest's requests.
fn at_first(sector: u64) -> u8 {
    if sector.is_multiple_of(TABLE) { 2 } else { BASE }
}

/// Sectors in the range of one second-level table, with clusters of 1 KiB.
const TABLE: u64 = 256;

/// Random requests to a disk with far more tables than are held in memory, over a base that is full.
fn requests(guest: &Guest, sectors: u64, random: &mut Random) -> (Vec<u8>, Vec<Change>) {
    let top = &guest.disk.layers[0].image;
    // A new table is synced before anything refers to it, and with it all that was written before.
    for first in (0..sectors).step_by(TABLE as usize) {
        guest.write(first * 512, &[2; SECTOR]);
    }
    guest.disk.flush().unwrap();
    let before = fs::read(&top.path).unwrap();
    *top.journal.lock() = Some(Vec::new());
    let note = |request| top.journal.push(|| Change::Guest(request));
    // Flushes are rare, and so are discards, after which nothing is given up before the next flush: tables go because
    // others come while data that they show is not synced.
    for number in 0..2400_u64 {
        let first = 1 + random.below(sectors - 9);
        match random.below(800) {
            0 => {
                note(Request::Flush);
                guest.disk.flush().unwrap();
                note(Request::Flushed);
            }
            1 => {
                note(Request::Discard { first, sectors: 8 });
                guest.disk.discard(first * 512, 8 * 512).unwrap();
            }
            _ => {
                let (count, byte) = (1 + random.below(3), 3 + (number % 250) as u8);
                note(Request::Fill { first, sectors: count, byte });
                guest.write(first * 512, &vec![byte; count as usize * SECTOR]);
            }
        }
    }
    (before, top.journal.lock().take().unwrap())
}

#[test]
fn what_was_flushed_survives_a_power_cut_at_any_point_whatever_else_is_lost() {
    let dir = dir();
    let [base, image, after] = ["base", "image", "after"].map(|name| dir.path().join(name));
    // 128 of 256 tables of the second level are held.
    let size = 32 << 20;
    fs::write(&base, vec![BASE; size]).unwrap();
    NewQcow2::over(&base, ImageFormat::Raw).unwrap().with_cluster_size(1024).create(&image).unwrap();
    let options = read_write().with_backing_folder(dir.path());
    let guest = Guest::open(&image, &options);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (before, changes) = requests(&guest, size as u64 / 512, &mut random);
    let is = fs::read(&image).unwrap();
    let mut replayed = Random(1);
    let all = changes.iter().cloned().chain([Change::Sync]).collect::<Vec<_>>();
    assert!(cut(&before, &all, &mut replayed) == is, "the journal has all that happened to the file");
    drop(guest);

    for number in 0..64 {
        let end = random.below(changes.len() as u64 + 1) as usize;
        let done = &changes[..end];
        fs::write(&after, cut(&before, done, &mut random)).unwrap();
        let guest = Guest::open(&after, &options);
        let allowed = allowed(done);
        for (sector, values) in &allowed {
            // Its cluster, of which the other half may be the base's.
            let data = guest.read(sector * 512, SECTOR);
            assert!(
                values.contains(&data[0]),
                "cut {number} after {end}: sector {sector} is {}, not {values:?}",
                data[0]
            );
            assert!(
                data.iter().all(|byte| *byte == data[0]),
                "cut {number} after {end}: sector {sector} is torn"
            );
            let other = *sector ^ 1;
            if !allowed.contains_key(&other) {
                assert!(
                    guest.read(other * 512, SECTOR) == [at_first(other); SECTOR],
                    "cut {number} after {end}: sector {other}"
                );
            }
        }
        drop(guest);
        if number % 16 == 0 {
            let text = qemu("qemu-img", &["check", "-f", "qcow2", after.to_str().unwrap()]);
            assert!(!text.contains("ERROR"), "{text}");
        }
    }
}

/// So many syncs does a sequential write of `mib` take that ends without a flush.
fn syncs_of_a_sequential_write(cluster: u32, mib: u64) -> (usize, usize) {
    let dir = dir();
    let image = dir.path().join("image");
    NewQcow2::new(mib << 20).with_cluster_size(cluster).create(&image).unwrap();
    let guest = Guest::open(&image, &read_write());
    let journal = &guest.disk.layers[0].image.journal;
    *journal.lock() = Some(Vec::new());
    let data = vec![7; 1 << 20];
    for at in 0..mib {
        guest.write(at << 20, &data);
    }
    let changes = journal.lock().take().unwrap();
    let syncs = changes.iter().filter(|change| matches!(change, Change::Sync)).count();
    let writes = changes.iter().filter(|change| matches!(change, Change::Write { .. })).count();
    (syncs, writes)
}

#[test]
fn a_sequential_write_waits_for_the_disk_at_new_tables_alone() {
    // One table of the second level for 512 MiB: its entry in the first is synced before and after.
    let (syncs, _) = syncs_of_a_sequential_write(65536, 64);
    assert!(syncs <= 4, "{syncs}");
    // One for 128 KiB, and a block of refcounts for 512 KiB; 128 tables are held, and each of the 64 others makes one go
    // that was written to.
    let (syncs, writes) = syncs_of_a_sequential_write(1024, 24);
    println!("{syncs} syncs, {writes} writes for 24 MiB in clusters of 1 KiB");
    let pointers = 2 * (192 + 48);
    assert!((pointers + 64..=pointers + 64 + 8).contains(&syncs), "{syncs}");
}
