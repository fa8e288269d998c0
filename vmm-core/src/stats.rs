//! KVM's own counters: how often a vCPU left the guest, how many interrupts were injected, and so on.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::VmError;

/// More than any kernel has (there are about 70): what a broken header could make us allocate.
const MAX_DESCRIPTORS: u32 = 4096;
const MAX_NAME: u32 = 4096;

/// Sizes and offsets in bytes of the header and the descriptors (`struct kvm_stats_header`, `kvm_stats_desc`).
const HEADER: usize = 24;
const DESCRIPTOR: usize = 16;

/// One counter of KVM. Names are the kernel's, such as `exits` or `io_exits`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The name.
    pub name: String,
    /// The value; a histogram has one number for each of its buckets.
    pub values: Vec<u64>,
}

/// Reads the counters of a machine or of a vCPU, on any thread, at any time, running or not.
#[derive(Debug)]
pub struct StatsReader {
    file: File,
    counters: Vec<Counter>,
    data_offset: u64,
    data_len: usize,
}

#[derive(Debug)]
struct Counter {
    name: String,
    /// Where its values are, in numbers from the start of the data.
    start: usize,
    count: usize,
}

impl StatsReader {
    /// Reads the descriptions from what `KVM_GET_STATS_FD` gave.
    pub(crate) fn new(file: File) -> Result<Self, VmError> {
        Self::parse(file).map_err(|source| VmError::Call { call: "reading KVM's counters", source })
    }

    fn parse(file: File) -> io::Result<Self> {
        let broken = || io::Error::new(io::ErrorKind::InvalidData, "the description makes no sense");
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0)?;
        let field = |offset| u32_at(&header, offset).ok_or_else(broken);
        let (name_size, count) = (field(4)?, field(8)?);
        let (desc_offset, data_offset) = (field(16)?, field(20)?);
        if name_size > MAX_NAME || count > MAX_DESCRIPTORS {
            return Err(broken());
        }
        let stride = DESCRIPTOR + name_size as usize;
        let mut descriptors = vec![0; stride * count as usize];
        file.read_exact_at(&mut descriptors, desc_offset.into())?;
        let counters: Option<Vec<_>> = descriptors.chunks_exact(stride).map(counter).collect();
        let counters = counters.ok_or_else(broken)?;
        let end = counters.iter().map(|c| c.start + c.count).max().unwrap_or(0);
        Ok(Self { file, counters, data_offset: data_offset.into(), data_len: 8 * end })
    }

    /// The counters as they are now.
    pub fn read(&self) -> io::Result<Vec<Stat>> {
        let mut data = vec![0; self.data_len];
        self.file.read_exact_at(&mut data, self.data_offset)?;
        let numbers: Vec<_> =
            data.chunks_exact(8).map(|n| n.try_into().map_or(0, u64::from_ne_bytes)).collect();
        let values = |c: &Counter| numbers.iter().skip(c.start).take(c.count).copied().collect();
        Ok(self.counters.iter().map(|c| Stat { name: c.name.clone(), values: values(c) }).collect())
    }
}

fn counter(descriptor: &[u8]) -> Option<Counter> {
    let count = descriptor.get(6..8)?.try_into().map(u16::from_ne_bytes).ok()?;
    let offset = u32_at(descriptor, 8)?;
    let name = descriptor.get(DESCRIPTOR..)?.split(|byte| *byte == 0).next()?;
    Some(Counter {
        name: String::from_utf8_lossy(name).into_owned(),
        start: offset as usize / 8,
        count: count.into(),
    })
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..offset + 4)?.try_into().map(u32::from_ne_bytes).ok()
}

#[cfg(test)]
mod tests;
