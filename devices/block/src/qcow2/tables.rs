//! The tables of an image that point to others.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::header::{Header, be64, image_error, read_exact};
use crate::DiskError;

/// Bits of an entry that are the offset of a cluster.
pub(super) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Nobody else uses the cluster.
pub(super) const COPIED: u64 = 1 << 63;

/// Checks the first-level table of an image that is only read: all that it points to is in the file.
pub(super) fn check_l1(file: &File, path: &Path, header: &Header, len: u64) -> Result<(), DiskError> {
    let l1 = read_table(file, path, "L1 table", header.l1_offset, header.l1_entries.into())?;
    for (number, entry) in l1.iter().enumerate() {
        check_l1_entry(path, header.cluster_size(), len, number, *entry)?;
    }
    Ok(())
}

/// The place of the second-level table that an entry of the first level points to.
pub(super) fn check_l1_entry(
    path: &Path,
    cluster: u64,
    len: u64,
    number: usize,
    entry: u64,
) -> Result<Option<u64>, DiskError> {
    let at = entry & OFFSET;
    let problem = if entry & !(OFFSET | COPIED) != 0 || !at.is_multiple_of(cluster) {
        "not the offset of a cluster"
    } else if at.saturating_add(cluster) > len {
        "outside of the file"
    } else {
        return Ok((at != 0).then_some(at));
    };
    if at == 0 && entry & !COPIED == 0 {
        return Ok(None);
    }
    Err(image_error(
        path,
        "L1 table",
        format!("entry {number} is {entry:#x}, {problem}, which has {len} bytes"),
    ))
}

/// A table of 64-bit entries, whose size the header's check has bounded.
pub(super) fn read_table(
    file: &File,
    path: &Path,
    field: &'static str,
    offset: u64,
    entries: u64,
) -> Result<Vec<u64>, DiskError> {
    let mut bytes = vec![0; (entries * 8) as usize];
    read_exact(file, path, field, &mut bytes, offset)?;
    Ok(bytes.chunks_exact(8).map(|entry| be64(entry, 0)).collect())
}

/// Writes a table of 64-bit entries.
pub(super) fn write_table(file: &File, offset: u64, table: &[u64]) -> io::Result<()> {
    let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
    file.write_all_at(&bytes, offset)
}
