//! Which clusters of an image are in use, counted from its tables before anything is written to it: each has one user, in
//! the file, and its refcount says so. Whatever allocates clusters after that may rely on the refcounts. Those of an image
//! that was not closed are written anew.

use std::os::unix::fs::FileExt;

use super::header::{Header, image_error};
use super::storage::ImageFile;
use super::tables::{COPIED, OFFSET, check_l1_entry, read_table, write_table};
use crate::DiskError;

/// Memory that counting takes at most: that is 32 TiB of clusters of 64 KiB.
const MAX_COUNTS: u64 = 1 << 30;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// The count of a cluster that has one user and may have no other.
const ALONE: u16 = 0x8001;

/// An image whose clusters are counted.
pub(super) struct Refcounts<'a> {
    image: &'a ImageFile,
    header: &'a Header,
    len: u64,
    counts: Vec<u16>,
    /// Some of the clusters are compressed.
    compressed: bool,
}

impl<'a> Refcounts<'a> {
    /// Counts what header and tables of both levels use. With `repair`, what was never flushed is dropped.
    pub(super) fn count(
        image: &'a ImageFile,
        header: &'a Header,
        len: u64,
        repair: bool,
    ) -> Result<Self, DiskError> {
        let ImageFile { file, path, .. } = image;
        let cluster = header.cluster_size();
        let clusters = len.div_ceil(cluster);
        if clusters * 2 > MAX_COUNTS {
            let problem =
                format!("has {clusters} clusters, too many to be counted; larger clusters are fewer");
            return Err(image_error(path, "file", problem));
        }
        let mut this = Self { image, header, len, counts: vec![0; clusters as usize], compressed: false };
        this.alone("header", 0, cluster)?;
        this.alone("L1 table", header.l1_offset, u64::from(header.l1_entries) * 8)?;
        let io = |source| DiskError::Io { path: path.clone(), action: "repair", source };
        let mut l1 = read_table(file, path, "L1 table", header.l1_offset, header.l1_entries.into())?;
        let mut l1_changed = false;
        for (number, entry) in l1.iter_mut().enumerate() {
            let Some(at) = check_l1_entry(path, cluster, len, number, *entry)? else { continue };
            this.alone("L1 table", at, cluster)?;
            if *entry & COPIED == 0 {
                if !repair {
                    let problem = format!(
                        "entry {number} is {entry:#x}: shared, but not by a snapshot; qemu-img check -r all repairs it"
                    );
                    return Err(image_error(path, "L1 table", problem));
                }
                (*entry, l1_changed) = (*entry | COPIED, true);
            }
            let mut l2 = read_table(file, path, "L2 table", at, cluster / 8)?;
            let mut changed = false;
            for entry in &mut l2 {
                let before = *entry;
                if before != 0 {
                    this.count_data(entry, at, repair)?;
                    changed |= before != *entry;
                }
            }
            if changed {
                write_table(file, at, &l2).map_err(io)?;
            }
        }
        if l1_changed {
            write_table(file, header.l1_offset, &l1).map_err(io)?;
        }
        Ok(this)
    }

    pub(super) fn has_compressed(&self) -> bool {
        self.compressed
    }

    /// Checks that the refcounts of all clusters in use are there and say so.
    pub(super) fn verify(mut self) -> Result<(), DiskError> {
        let (header, image, len) = (self.header, self.image, self.len);
        let cluster = header.cluster_size();
        let wrong = |problem: String| Err(image_error(&image.path, "refcount table", problem));
        self.alone("refcount table", header.refcount_offset, u64::from(header.refcount_clusters) * cluster)?;
        let table = read_table(
            &image.file,
            &image.path,
            "refcount table",
            header.refcount_offset,
            header.refcount_entries(),
        )?;
        for (number, at) in table.iter().enumerate() {
            if !at.is_multiple_of(cluster) {
                return wrong(format!("entry {number} is {at:#x}, not the offset of a cluster"));
            }
            if at.saturating_add(cluster) > len && *at != 0 {
                return wrong(format!(
                    "entry {number} is {at:#x}, outside of the file, which has {len} bytes"
                ));
            }
            if *at != 0 {
                self.alone("refcount table", *at, cluster)?;
            }
        }
        let per_block = (cluster * 8) >> header.refcount_order;
        let mut block = vec![0; cluster as usize];
        for (number, counts) in self.counts.chunks(per_block as usize).enumerate() {
            if counts.iter().all(|count| *count == 0) {
                continue;
            }
            let at = table.get(number).copied().unwrap_or(0);
            if at == 0 {
                return wrong(format!(
                    "entry {number} is 0, and clusters that it stands for are in use; qemu-img check -r all repairs it"
                ));
            }
            super::header::read_exact(&image.file, &image.path, "refcount block", &mut block, at)?;
            let missing = counts.iter().enumerate().find(|(index, count)| {
                refcount(&block, *index, header.refcount_order) < u64::from(**count & !0x8000)
            });
            if let Some((index, _)) = missing {
                let cluster = number as u64 * per_block + index as u64;
                let problem = format!(
                    "of cluster {cluster} is smaller than its users are; qemu-img check -r all repairs it"
                );
                return Err(image_error(&image.path, "refcount", problem));
            }
        }
        Ok(())
    }

    /// Writes new refcounts behind the end of the file, then lets the header point to them. What is interrupted there is
    /// begun anew at the next time.
    pub(super) fn rebuild(mut self) -> Result<(), DiskError> {
        let (header, image) = (self.header, self.image);
        let ImageFile { file, path, .. } = image;
        let io = |source| DiskError::Io { path: path.clone(), action: "repair", source };
        let (bits, cluster) = (header.cluster_bits, header.cluster_size());
        let clusters = self.counts.len() as u64;
        let per_block = (cluster * 8) >> header.refcount_order;
        let (mut blocks, mut table_clusters) = (0, 0);
        loop {
            let total = (clusters + blocks + table_clusters).div_ceil(per_block);
            if (total, (total * 8).div_ceil(cluster)) == (blocks, table_clusters) {
                break;
            }
            (blocks, table_clusters) = (total, (total * 8).div_ceil(cluster));
        }
        self.counts.resize((clusters + blocks + table_clusters) as usize, ALONE);
        let most = (1_u64 << (1 << header.refcount_order).min(15)) - 1;
        let mut table = vec![0_u64; (table_clusters * cluster / 8) as usize];
        for ((index, counts), entry) in self.counts.chunks(per_block as usize).enumerate().zip(&mut table) {
            let counts = counts.iter().map(|count| u64::from(count & !0x8000));
            if counts.clone().any(|count| count > most) {
                let problem = "is too small for the compressed clusters; qemu-img convert makes a new image";
                return Err(image_error(path, "refcount_order", problem));
            }
            *entry = (clusters + index as u64) << bits;
            let block = refcount_block(counts, header.refcount_order, cluster);
            file.write_all_at(&block, *entry).map_err(io)?;
        }
        let table_at = (clusters + blocks) << bits;
        write_table(file, table_at, &table).map_err(io)?;
        file.sync_data().map_err(io)?;
        let Ok(table_clusters) = u32::try_from(table_clusters) else {
            return Err(image_error(path, "refcount table", "would be too large"));
        };
        let place = [table_at.to_be_bytes().as_slice(), &table_clusters.to_be_bytes()].concat();
        file.write_all_at(&place, 48).map_err(io)?;
        file.sync_data().map_err(io)
    }

    /// The clusters of these bytes belong to one user and to no other.
    fn alone(&mut self, user: &'static str, at: u64, len: u64) -> Result<(), DiskError> {
        let bits = self.header.cluster_bits;
        for cluster in at >> bits..at.saturating_add(len).div_ceil(1 << bits) {
            let count = usize::try_from(cluster).ok().and_then(|cluster| self.counts.get_mut(cluster));
            let problem = match count {
                None => "outside of the file",
                Some(count) if *count != 0 => "which overlaps another: something else uses that cluster",
                Some(count) => {
                    *count = ALONE;
                    continue;
                }
            };
            let problem =
                format!("points to {at:#x} of the file, {problem}; qemu-img check -r all may repair it");
            return Err(image_error(&self.image.path, user, problem));
        }
        Ok(())
    }

    /// Counts what an entry of the second-level table at `table` points to.
    fn count_data(&mut self, entry: &mut u64, table: u64, repair: bool) -> Result<(), DiskError> {
        let (bits, len) = (self.header.cluster_bits, self.len);
        let path = &self.image.path;
        let wrong = |problem: &str| {
            let problem = format!(
                "at {table:#x} has the entry {entry:#x}, {problem}; qemu-img check -r all may repair it"
            );
            Err(image_error(path, "L2 table", problem))
        };
        if *entry & COMPRESSED != 0 {
            let offset_bits = 62 - (bits - 8);
            let at = *entry & ((1 << offset_bits) - 1);
            let sectors = (*entry & (COMPRESSED - 1)) >> offset_bits;
            if *entry & COPIED != 0 {
                return wrong("compressed and not");
            }
            if at >= len {
                if repair {
                    *entry = 0;
                    return Ok(());
                }
                return wrong("outside of the file");
            }
            self.compressed = true;
            let end = ((at & !511) + (sectors + 1) * 512).min(len);
            let clusters = (at >> bits) as usize..=((end - 1) >> bits) as usize;
            for count in self.counts.get_mut(clusters).unwrap_or_default() {
                if *count >= ALONE - 2 {
                    return wrong("which overlaps another: something else uses that cluster");
                }
                *count += 1;
            }
            return Ok(());
        }
        let at = *entry & OFFSET;
        if *entry & !(OFFSET | COPIED | ZERO) != 0
            || at & ((1 << bits) - 1) != 0
            || at == 0 && *entry & COPIED != 0
        {
            return wrong("not the offset of a cluster");
        }
        if at == 0 {
            return Ok(());
        }
        if repair {
            if at >= len {
                *entry &= ZERO; // never flushed
                return Ok(());
            }
            *entry |= COPIED;
        } else if at >= len {
            return wrong("outside of the file");
        } else if *entry & COPIED == 0 {
            return wrong("shared, but not by a snapshot");
        }
        self.alone("L2 table", at, 1)
    }
}

/// One refcount of a block, in which each has `1 << order` bits.
fn refcount(block: &[u8], index: usize, order: u32) -> u64 {
    if order < 3 {
        let per_byte = 8 >> order;
        let byte = block.get(index / per_byte).copied().unwrap_or(0);
        return u64::from(byte >> ((index % per_byte) << order)) & ((1 << (1 << order)) - 1);
    }
    let width = 1 << (order - 3);
    let bytes = block.get(index * width..(index + 1) * width).unwrap_or_default();
    bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// A block of refcounts of `1 << order` bits each.
fn refcount_block(counts: impl Iterator<Item = u64>, order: u32, cluster: u64) -> Vec<u8> {
    let mut block = vec![0; cluster as usize];
    if order < 3 {
        let per_byte = 8 >> order;
        for (index, count) in counts.enumerate() {
            if let Some(byte) = block.get_mut(index / per_byte) {
                *byte |= (count as u8) << ((index % per_byte) << order);
            }
        }
    } else {
        let width = 1 << (order - 3);
        for (field, count) in block.chunks_exact_mut(width).zip(counts) {
            let bytes = count.to_be_bytes();
            field.copy_from_slice(bytes.get(8 - width..).unwrap_or_default());
        }
    }
    block
}
