//! The header of a snapshot, which can be read alone: what the file is, and where its parts are.

use ossature_bus::state_file::Architecture;

use super::error::SnapshotError;
use super::tree;

/// The first bytes of every snapshot.
pub(super) const MAGIC: [u8; 8] = *b"OSSASNAP";
/// The version of the format that is written.
const VERSION: u16 = 2;
/// The same with a tree of hashes.
const WITH_TREE: u16 = 3;
/// The oldest version that is read.
const OLDEST: u16 = 1;
/// Bytes of the header, behind which the state begins, or what says with which key it was saved.
pub(super) const LEN: usize = 44;
/// Where memory may begin: pages of every host.
pub(super) const ALIGN: u64 = 64 << 10;
/// More than the states of any machine take.
const MAX_STATE: u64 = 64 << 20;

/// The beginning of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Of the format.
    pub(super) version: u16,
    /// Of the guest.
    pub(super) architecture: Architecture,
    /// Bytes of the state, which follows.
    pub(super) state: u64,
    /// The first byte of memory, a multiple of [`ALIGN`].
    pub(super) memory: u64,
    /// The byte behind it, where the file ends.
    pub(super) end: u64,
}

/// The architecture of this host, and of its guests.
pub(super) const HERE: Architecture =
    if cfg!(target_arch = "aarch64") { Architecture::Aarch64 } else { Architecture::X86_64 };

impl Header {
    /// Of a snapshot of this host with `state` bytes of state and `memory` bytes of memory. `None` if they are too many.
    pub(super) fn new(state: u64, memory: u64, has_tree: bool) -> Option<Self> {
        let version = if has_tree { WITH_TREE } else { VERSION };
        let start = state_at(version).checked_add(state)?.checked_next_multiple_of(ALIGN)?;
        let end =
            start.checked_add(memory).filter(|end| i64::try_from(*end).is_ok() && state <= MAX_STATE)?;
        Some(Self { version, architecture: HERE, state, memory: start, end })
    }

    /// Returns true if it has a tree of hashes.
    pub(super) fn has_tree(&self) -> bool {
        self.version >= WITH_TREE
    }

    /// The first byte of the state.
    pub(super) fn state_at(&self) -> u64 {
        state_at(self.version)
    }

    pub(super) fn to_bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let fields = [
            &MAGIC[..],
            &self.version.to_le_bytes(),
            &(self.architecture as u16).to_le_bytes(),
            &[0; 4],
            &self.state.to_le_bytes(),
            &self.memory.to_le_bytes(),
            &self.end.to_le_bytes(),
        ];
        let checked = fields.concat();
        let all = checked.iter().copied().chain(crc32fast::hash(&checked).to_le_bytes());
        bytes.iter_mut().zip(all).for_each(|(to, byte)| *to = byte);
        bytes
    }

    /// Reads the header of a file of `len` bytes.
    pub(super) fn read(bytes: &[u8; LEN], len: u64) -> Result<Self, SnapshotError> {
        let mut left = &bytes[..];
        if take(&mut left) != MAGIC {
            return Err(SnapshotError::NotASnapshot);
        }
        let version = u16::from_le_bytes(take(&mut left));
        // Other versions may have put their checksum elsewhere.
        if !(OLDEST..=WITH_TREE).contains(&version) {
            return Err(SnapshotError::Version { found: version, known: WITH_TREE });
        }
        let architecture = u16::from_le_bytes(take(&mut left));
        let reserved = u32::from_le_bytes(take(&mut left));
        let [state, memory, end] = [(); 3].map(|()| u64::from_le_bytes(take(&mut left)));
        let checksum = u32::from_le_bytes(take(&mut left));
        if checksum != crc32fast::hash(bytes.get(..LEN - 4).unwrap_or_default()) {
            return Err(SnapshotError::Checksum { part: "header" });
        }
        let architecture = match architecture {
            1 => Architecture::X86_64,
            2 => Architecture::Aarch64,
            _ => {
                return Err(SnapshotError::Damaged { field: "architecture", reason: "there is no such one" });
            }
        };
        if architecture != HERE {
            return Err(SnapshotError::Architecture { found: architecture, here: HERE });
        }
        if reserved != 0 {
            return Err(SnapshotError::Damaged { field: "flags", reason: "none are known" });
        }
        if state > MAX_STATE {
            return Err(SnapshotError::Damaged {
                field: "length of the state",
                reason: "longer than possible",
            });
        }
        let behind = state_at(version) + state;
        if memory < behind || !memory.is_multiple_of(ALIGN) || end < memory {
            return Err(SnapshotError::Damaged {
                field: "place of the memory",
                reason: "it cannot be there",
            });
        }
        if len < end {
            return Err(SnapshotError::Truncated { needs: end, has: len });
        }
        Ok(Self { version, architecture, state, memory, end })
    }
}

/// The first byte of the state in a version of the format.
fn state_at(version: u16) -> u64 {
    LEN as u64 + if version >= WITH_TREE { tree::SEAL as u64 } else { 0 }
}

/// Takes the next bytes of a header that has them.
fn take<const N: usize>(left: &mut &[u8]) -> [u8; N] {
    let Some((bytes, rest)) = left.split_first_chunk() else { return [0; N] };
    *left = rest;
    *bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(mut bytes: [u8; LEN]) -> [u8; LEN] {
        let checksum = crc32fast::hash(&bytes[..LEN - 4]);
        bytes[LEN - 4..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let header = Header::new(1000, 1 << 20, false).unwrap();
        assert_eq!((header.memory, header.end), (ALIGN, ALIGN + (1 << 20)));
        assert_eq!(Header::read(&header.to_bytes(), header.end).unwrap(), header);
        assert_eq!(Header::new(MAX_STATE + 1, 1, false), None);
        assert_eq!(Header::new(1, u64::MAX - 1, false), None);
    }

    #[test]
    fn d2_each_flipped_bit_of_a_header_is_refused() {
        let header = Header::new(1000, 1 << 20, false).unwrap();
        for bit in 0..LEN * 8 {
            let mut bytes = header.to_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let error = Header::read(&bytes, header.end).unwrap_err();
            let as_it_is = match bit / 64 {
                0 => matches!(error, SnapshotError::NotASnapshot),
                // Version 3 is known, too.
                _ if (65..80).contains(&bit) => matches!(error, SnapshotError::Version { .. }),
                _ => matches!(error, SnapshotError::Checksum { part: "header" }),
            };
            assert!(as_it_is, "{bit}: {error}");
        }
    }

    #[test]
    fn d2_each_field_of_a_header_is_checked() {
        let header = Header::new(1000, 1 << 20, false).unwrap();
        let with = |at: usize, value: &[u8]| {
            let mut bytes = header.to_bytes();
            bytes[at..at + value.len()].copy_from_slice(value);
            Header::read(&sealed(bytes), header.end)
        };
        assert!(matches!(with(10, &[9, 0]), Err(SnapshotError::Damaged { field: "architecture", .. })));
        let other = if HERE == Architecture::X86_64 { 2 } else { 1 };
        assert!(matches!(with(10, &[other, 0]), Err(SnapshotError::Architecture { .. })));
        assert!(matches!(with(12, &[1]), Err(SnapshotError::Damaged { field: "flags", .. })));
        let numbers = |value: u64| [value.wrapping_sub(1), value + 1, 0, 1, u64::MAX, 1 << 63];
        for value in [0, 1, u64::MAX, MAX_STATE + 1] {
            let read = with(16, &value.to_le_bytes());
            assert_eq!(read.is_ok(), value < 2, "{value:#x}");
        }
        for value in numbers(header.memory) {
            assert!(with(24, &value.to_le_bytes()).is_err(), "{value:#x}");
        }
        for value in numbers(header.end) {
            let read = with(32, &value.to_le_bytes());
            assert_eq!(read.is_ok(), value == header.end - 1, "{value:#x}");
        }
        let cut = Header::read(&header.to_bytes(), header.end - 1);
        assert!(matches!(cut, Err(SnapshotError::Truncated { .. })));
    }
}
