//! The header of a qcow2 file: read and checked before anything else looks at the image.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::ImageFormat;
use crate::DiskError;

const MAGIC: &[u8] = b"QFI\xfb";
const V2_LEN: usize = 72;
const V3_LEN: usize = 104;
/// The format's limit on the name of a backing file.
const MAX_NAME: u32 = 1023;
/// The size of a first-level table that other programs open, and that we hold in memory.
const MAX_L1_BYTES: u64 = 32 << 20;
/// The same for the table of refcount blocks.
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;

const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;

/// Offset of the incompatible feature bits.
pub(super) const INCOMPATIBLE_AT: u64 = 72;
/// The refcounts may be wrong: the image was not closed.
pub(super) const DIRTY: u64 = 1;
/// Incompatible features with a name.
const FEATURES: [(u64, &str); 4] = [
    (1 << 1, "is marked as corrupt; qemu-img check -r all repairs it"),
    (
        1 << 2,
        "asks for an external data file, which is not supported; qemu-img convert makes one file of them",
    ),
    (
        1 << 3,
        "asks for another compression than deflate, such as zstd, which is not supported; qemu-img convert removes it",
    ),
    (1 << 4, "asks for extended L2 entries, which are not supported; qemu-img convert removes them"),
];

/// What the header of an image says, all of it checked against the length of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) cluster_bits: u32,
    /// Size of the disk in bytes.
    pub(super) size: u64,
    pub(super) l1_entries: u32,
    pub(super) l1_offset: u64,
    pub(super) refcount_offset: u64,
    pub(super) refcount_clusters: u32,
    pub(super) refcount_order: u32,
    pub(super) snapshots: u32,
    pub(super) dirty: bool,
    pub(super) backing: Option<BackingName>,
}

/// How a header names its backing file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BackingName {
    pub(super) name: String,
    /// `None` if the header says nothing.
    pub(super) format: Option<ImageFormat>,
}

/// Where an error is.
pub(super) fn image_error(path: &Path, field: &'static str, problem: impl Into<String>) -> DiskError {
    DiskError::Image { path: path.to_owned(), field, problem: problem.into() }
}

impl Header {
    pub(super) fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Where the header is, and the tables that it points to.
    pub(super) fn pointers(&self) -> [Range<u64>; 3] {
        let refcounts = u64::from(self.refcount_clusters) * self.cluster_size();
        let l1 = u64::from(self.l1_entries) * 8;
        [
            0..self.cluster_size(),
            self.l1_offset..self.l1_offset + l1,
            self.refcount_offset..self.refcount_offset + refcounts,
        ]
    }

    /// Refcount blocks that the table of them has entries for.
    pub(super) fn refcount_entries(&self) -> u64 {
        u64::from(self.refcount_clusters) << (self.cluster_bits - 3)
    }

    /// Tables of the second level that the disk has at most.
    pub(super) fn l2_tables(&self) -> u64 {
        self.size.div_ceil(1 << (2 * self.cluster_bits - 3))
    }

    /// Reads and checks the header of `file`, which is `len` bytes long.
    pub(super) fn read(file: &File, path: &Path, len: u64) -> Result<Self, DiskError> {
        let io = |source| DiskError::Io { path: path.to_owned(), action: "read the header of", source };
        let wrong = |field, problem: String| Err(image_error(path, field, problem));
        let mut first = [0; V3_LEN];
        let have = read_up_to(file, &mut first).map_err(io)?;
        if have < V2_LEN || !first.starts_with(MAGIC) {
            return wrong("magic", "is not that of a qcow2 image; if the disk is raw, say so".into());
        }
        let version = be32(&first, 4);
        if !(2..=3).contains(&version) {
            return wrong(
                "version",
                format!("{version} is not supported; qemu-img amend -o compat=1.1 makes it 3"),
            );
        }
        if version == 3 && have < V3_LEN {
            return wrong("header", format!("ends after {have} bytes: the file was cut off"));
        }
        let cluster_bits = be32(&first, 20);
        if !(9..=21).contains(&cluster_bits) {
            return wrong("cluster_bits", format!("is {cluster_bits}; 9 to 21 are possible"));
        }
        let cluster = 1_u64 << cluster_bits;
        if be32(&first, 32) != 0 {
            return wrong(
                "crypt_method",
                "is set: encrypted images are not supported; qemu-img convert decrypts".into(),
            );
        }
        let (incompatible, refcount_order, header_len) = match version {
            2 => (0, 4, V2_LEN as u64),
            _ => (be64(&first, 72), be32(&first, 96), u64::from(be32(&first, 100))),
        };
        if let Some((_, problem)) = FEATURES.iter().find(|(bit, _)| incompatible & bit != 0) {
            return wrong("incompatible_features", (*problem).into());
        }
        if incompatible & !DIRTY != 0 {
            let bit = (incompatible & !DIRTY).trailing_zeros();
            return wrong("incompatible_features", format!("has bit {bit}, which is unknown"));
        }
        if refcount_order > 6 {
            return wrong("refcount_order", format!("is {refcount_order}; 0 to 6 are possible"));
        }
        if version == 3 && (header_len < V3_LEN as u64 || header_len > cluster || header_len % 8 != 0) {
            return wrong(
                "header_length",
                format!("is {header_len}; a multiple of 8 from {V3_LEN} to {cluster} is possible"),
            );
        }
        let size = be64(&first, 24);
        if size == 0 || !size.is_multiple_of(512) {
            return wrong("size", format!("is {size}; a disk has a multiple of 512 bytes, and some"));
        }
        let l1_entries = be32(&first, 36);
        let (l1_offset, refcount_offset) = (be64(&first, 40), be64(&first, 48));
        let l1_bytes = u64::from(l1_entries) * 8;
        if l1_bytes > MAX_L1_BYTES {
            return wrong("l1_size", format!("is {l1_entries}; at most {} is supported", MAX_L1_BYTES / 8));
        }
        if u128::from(l1_entries) << (2 * cluster_bits - 3) < u128::from(size) {
            return wrong("l1_size", format!("is {l1_entries}, too few for a disk of {size} bytes"));
        }
        let refcount_clusters = be32(&first, 56);
        let refcount_bytes = u64::from(refcount_clusters) * cluster;
        if refcount_clusters == 0 || refcount_bytes > MAX_REFCOUNT_TABLE_BYTES.max(cluster) {
            let most = (MAX_REFCOUNT_TABLE_BYTES >> cluster_bits).max(1);
            return wrong(
                "refcount_table_clusters",
                format!("is {refcount_clusters}; 1 to {most} is possible"),
            );
        }
        for (field, offset, bytes) in [
            ("l1_table_offset", l1_offset, l1_bytes),
            ("refcount_table_offset", refcount_offset, refcount_bytes),
        ] {
            if offset == 0 || offset % cluster != 0 {
                return wrong(
                    field,
                    format!("is {offset:#x}; a multiple of {cluster} after the header is possible"),
                );
            }
            if offset.checked_add(bytes).is_none_or(|end| end > len) {
                return wrong(
                    field,
                    format!("is {offset:#x}: the table ends after the file, which has {len} bytes"),
                );
            }
        }
        let format = match version {
            2 => None,
            _ => read_extensions(file, path, header_len, cluster)?,
        };
        let backing = match (be64(&first, 8), be32(&first, 16)) {
            (0, _) => None,
            (_, bytes) if bytes == 0 || bytes > MAX_NAME => {
                return wrong("backing_file_size", format!("is {bytes}; 1 to {MAX_NAME} is possible"));
            }
            (offset, bytes)
                if offset < header_len
                    || offset.checked_add(bytes.into()).is_none_or(|end| end >= cluster) =>
            {
                return wrong(
                    "backing_file_offset",
                    format!("is {offset:#x}; the name is in the first cluster, after the header"),
                );
            }
            (offset, bytes) => {
                let mut name = vec![0; bytes as usize];
                read_exact(file, path, "backing_file_offset", &mut name, offset)?;
                match String::from_utf8(name) {
                    Ok(name) if !name.contains('\0') => Some(BackingName { name, format }),
                    _ => return wrong("backing_file", "is not a name in UTF-8".into()),
                }
            }
        };
        Ok(Self {
            version,
            cluster_bits,
            size,
            l1_entries,
            l1_offset,
            refcount_offset,
            refcount_clusters,
            refcount_order,
            snapshots: be32(&first, 60),
            dirty: incompatible & DIRTY != 0,
            backing,
        })
    }
}

/// Checks the extensions and returns the format of the backing file, if they name it.
fn read_extensions(
    file: &File,
    path: &Path,
    start: u64,
    cluster: u64,
) -> Result<Option<ImageFormat>, DiskError> {
    let wrong = |problem: String| Err(image_error(path, "header extension", problem));
    let (mut at, mut format) = (start, None);
    loop {
        if at + 8 > cluster {
            return wrong(format!("at {at:#x} is not in the first cluster"));
        }
        let mut head = [0; 8];
        read_exact(file, path, "header extension", &mut head, at)?;
        let (kind, len) = (be32(&head, 0), u64::from(be32(&head, 4)));
        if kind == EXTENSION_END {
            return Ok(format);
        }
        let data = at + 8;
        if len > cluster - data {
            return wrong(format!(
                "{kind:#x} at {at:#x} has {len} bytes, which are not in the first cluster"
            ));
        }
        if kind == EXTENSION_FEATURE_NAMES && len % 48 != 0 {
            return wrong(format!("{kind:#x} (feature names) has {len} bytes, not a multiple of 48"));
        }
        if kind == EXTENSION_BACKING_FORMAT {
            let mut name = vec![0; len.min(16) as usize];
            read_exact(file, path, "header extension", &mut name, data)?;
            let named = match (name.as_slice(), len) {
                (b"raw", 3) => ImageFormat::Raw,
                (b"qcow2", 5) => ImageFormat::Qcow2,
                _ => {
                    let name = String::from_utf8_lossy(&name).into_owned();
                    return wrong(format!("backing format names {name:?}; raw and qcow2 are supported"));
                }
            };
            if format.is_some_and(|before| before != named) {
                return wrong("backing format is there twice, and they differ".into());
            }
            format = Some(named);
        }
        at = data + len.next_multiple_of(8);
    }
}

/// Writes another backing file into the header: the only part of the file that changes is its first cluster, in one
/// write. The names of feature bits are left out.
pub(super) fn set_backing(file: &File, path: &Path, backing: Option<&BackingName>) -> Result<(), DiskError> {
    let io = |action| move |source| DiskError::Io { path: path.to_owned(), action, source };
    let len = file.metadata().map_err(io("inspect"))?.len();
    let header = Header::read(file, path, len)?;
    if header.version != 3 {
        return Err(image_error(
            path,
            "version",
            "2 cannot be rebased; qemu-img amend -o compat=1.1 makes it 3",
        ));
    }
    let mut old = vec![0; header.cluster_size() as usize];
    let have = read_up_to(file, &mut old).map_err(io("read the header of"))?;
    old.truncate(have);
    let header_len = be32(&old, 100) as usize;
    let mut new = old.get(..header_len).unwrap_or_default().to_vec();
    let mut at = header_len;
    // All of it was checked by `Header::read`.
    while let Some(head) = old.get(at..at + 8) {
        let (kind, len) = (be32(head, 0), be32(head, 4) as usize);
        let end = at + 8 + len.next_multiple_of(8);
        match kind {
            EXTENSION_END => break,
            EXTENSION_BACKING_FORMAT | EXTENSION_FEATURE_NAMES => {}
            _ => new.extend_from_slice(old.get(at..end).unwrap_or_default()),
        }
        at = end;
    }
    if let Some(format) = backing.and_then(|backing| backing.format) {
        let name = format.name().as_bytes();
        new.extend_from_slice(&EXTENSION_BACKING_FORMAT.to_be_bytes());
        new.extend_from_slice(&(name.len() as u32).to_be_bytes());
        new.extend_from_slice(name);
        new.resize(new.len().next_multiple_of(8), 0);
    }
    new.extend_from_slice(&[0; 8]);
    let (offset, name) = match backing {
        Some(backing) => (new.len() as u64, backing.name.as_bytes()),
        None => (0, &[][..]),
    };
    new.extend_from_slice(name);
    if new.len() as u64 >= header.cluster_size() || name.len() > MAX_NAME as usize {
        let problem = "is too long for the first cluster; give it a shorter one".to_owned();
        return Err(image_error(path, "name of the backing file", problem));
    }
    let place = [offset.to_be_bytes().as_slice(), &(name.len() as u32).to_be_bytes()].concat();
    if let Some(field) = new.get_mut(8..20) {
        field.copy_from_slice(&place);
    }
    file.write_all_at(&new, 0).map_err(io("write the header of"))?;
    file.sync_data().map_err(io("write the header of"))
}

/// Sets or clears the mark that the refcounts may be wrong, durably.
pub(super) fn mark_dirty(file: &File, dirty: bool) -> io::Result<()> {
    let mut bits = [0; 8];
    file.read_exact_at(&mut bits, INCOMPATIBLE_AT)?;
    let bits = u64::from_be_bytes(bits);
    let bits = if dirty { bits | DIRTY } else { bits & !DIRTY };
    file.write_all_at(&bits.to_be_bytes(), INCOMPATIBLE_AT)?;
    file.sync_data()
}

/// Reads what there is for `buf` from the start of the file.
fn read_up_to(file: &File, buf: &mut [u8]) -> io::Result<usize> {
    let mut have = 0;
    while let Some(rest) = buf.get_mut(have..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(have)
}

/// Reads bytes that have to be there.
pub(super) fn read_exact(
    file: &File,
    path: &Path,
    field: &'static str,
    buf: &mut [u8],
    at: u64,
) -> Result<(), DiskError> {
    file.read_exact_at(buf, at).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => image_error(path, field, "is cut off: the file ends before it"),
        _ => DiskError::Io { path: path.to_owned(), action: "read the header of", source },
    })
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_be_bytes)
}
