//! Takes memory for RAM from the host, or says why there is none.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::sync::Arc;

use crate::config::{Backing, FileBacking};
use crate::error::RamError;
use crate::host;
use crate::mapping::{self, CallError, Kind, Mapping, Options};

/// What all RAM of a guest has in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// What the host's kernel is asked to do with it.
    pub(crate) options: Options,
    /// True if it may be more than the host has.
    pub(crate) overcommit: bool,
}

/// Maps `size` bytes for a guest that has `present` bytes already.
pub(crate) fn allocate(
    size: u64,
    backing: &Backing,
    terms: &Terms,
    present: u64,
) -> Result<Mapping, RamError> {
    let page_size = backing.page_size();
    if size == 0 {
        return Err(RamError::Zero);
    }
    if !size.is_multiple_of(page_size) {
        return Err(RamError::Unaligned { size, page_size });
    }
    let len = usize::try_from(size).map_err(|_| RamError::AddressSpace { size })?;
    let of_host = match backing {
        Backing::File(file) => !file.shared,
        other => other.huge_log().is_none(),
    };
    let host = host::total_memory();
    let all = present.saturating_add(size);
    if of_host && all > host && !terms.overcommit {
        return Err(RamError::HostMemory { size: all, host });
    }
    let huge = backing.huge_log();
    let failed = |(call, source): CallError| match huge {
        Some(_) => no_huge(size, page_size, (call, source)),
        None => RamError::Host { size, call, source },
    };
    let kind = match backing {
        Backing::Anonymous => Kind::Anonymous,
        Backing::File(backing) => return map_file(backing, size, len, terms),
        Backing::Memfd | Backing::Huge2M | Backing::Huge1G => {
            let file = Arc::new(mapping::memfd(size, huge).map_err(failed)?);
            Kind::Shared { file, offset: 0, huge: huge.is_some(), own: true }
        }
    };
    Mapping::new(kind, len, terms.options).map_err(failed)
}

fn no_huge(size: u64, page_size: u64, (call, source): CallError) -> RamError {
    let needed = size / page_size;
    match host::huge_pool(page_size) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => RamError::HugePageSize { page_size },
        Ok(pool) if source.raw_os_error() == Some(libc::ENOMEM) => {
            RamError::HugePages { page_size, needed, available: pool.available, total: pool.total }
        }
        _ => RamError::Host { size, call, source },
    }
}

fn map_file(backing: &FileBacking, size: u64, len: usize, terms: &Terms) -> Result<Mapping, RamError> {
    let &FileBacking { ref file, offset, shared } = backing;
    let not_mappable = |source| RamError::FileNotMappable { shared, source };
    let huge = host::huge_page_size(file);
    let page_size = huge.unwrap_or(host::host_page_size() as u64);
    if !offset.is_multiple_of(page_size) {
        return Err(RamError::FileOffset { offset, page_size });
    }
    if huge.is_some() && !shared {
        // A guest that writes would take pages that nobody has reserved for it.
        let error = io::Error::new(io::ErrorKind::Unsupported, "it is made of huge pages");
        return Err(not_mappable(error));
    }
    let needs = offset.saturating_add(size);
    let has = length(file).map_err(not_mappable)?;
    if needs > has {
        return Err(RamError::FileTooShort { needs, has });
    }
    let file = file.clone();
    let kind = if shared {
        Kind::Shared { file, offset, huge: huge.is_some(), own: false }
    } else {
        Kind::Private { file, offset }
    };
    Mapping::new(kind, len, terms.options).map_err(|(call, source)| match call {
        "mmap" => not_mappable(source),
        _ => RamError::Host { size, call, source },
    })
}

/// The length of a file or block device. Does not move the cursor of a regular file.
fn length(mut file: &File) -> io::Result<u64> {
    let about = file.metadata()?;
    if about.is_file() {
        return Ok(about.len());
    }
    let at = file.stream_position()?;
    let len = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(at))?;
    Ok(len)
}
