//! KVM's own counters: how often a vCPU left the guest, how many interrupts were injected, and so on.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use kvm_bindings::{
    KVM_STATS_BASE_MASK as BASE_MASK, KVM_STATS_BASE_POW10 as BASE_POW10,
    KVM_STATS_TYPE_INSTANT as TYPE_INSTANT, KVM_STATS_TYPE_MASK as TYPE_MASK,
    KVM_STATS_TYPE_PEAK as TYPE_PEAK, KVM_STATS_UNIT_BOOLEAN as UNIT_BOOLEAN,
    KVM_STATS_UNIT_BYTES as UNIT_BYTES, KVM_STATS_UNIT_CYCLES as UNIT_CYCLES,
    KVM_STATS_UNIT_MASK as UNIT_MASK, KVM_STATS_UNIT_NONE as UNIT_NONE,
    KVM_STATS_UNIT_SECONDS as UNIT_SECONDS,
};
use ossature_bus::{Metric, MetricKind, MetricUnit};

use crate::VmError;

/// More than any kernel has (there are about 70): what a broken header could make us allocate.
const MAX_DESCRIPTORS: u32 = 4096;
const MAX_NAME: u32 = 4096;

/// Sizes and offsets in bytes of the header and the descriptors (`struct kvm_stats_header`, `kvm_stats_desc`).
const HEADER: usize = 24;
const DESCRIPTOR: usize = 16;

/// One counter of KVM. Names are the kernel's, such as `exits` or `io_exits`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stat {
    /// The name.
    pub name: String,
    /// How it changes.
    pub kind: MetricKind,
    /// What it is measured in.
    pub unit: MetricUnit,
    /// The value; a histogram has one number for each of its buckets.
    pub values: Vec<u64>,
}

impl Stat {
    /// It, without its values. The kernel says nothing more of it.
    pub fn metric(&self) -> Metric<'_> {
        let metric = match self.kind {
            MetricKind::Counter => Metric::counter(&self.name, ""),
            _ => Metric::gauge(&self.name, ""),
        };
        metric.with_unit(self.unit)
    }
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
    kind: MetricKind,
    unit: MetricUnit,
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
        let stat = |c: &Counter| Stat { name: c.name.clone(), kind: c.kind, unit: c.unit, values: values(c) };
        Ok(self.counters.iter().map(stat).collect())
    }
}

fn counter(descriptor: &[u8]) -> Option<Counter> {
    let flags = u32_at(descriptor, 0)?;
    let exponent = i16::from_ne_bytes(descriptor.get(4..6)?.try_into().ok()?);
    let count = descriptor.get(6..8)?.try_into().map(u16::from_ne_bytes).ok()?;
    let offset = u32_at(descriptor, 8)?;
    let name = descriptor.get(DESCRIPTOR..)?.split(|byte| *byte == 0).next()?;
    Some(Counter {
        name: String::from_utf8_lossy(name).into_owned(),
        kind: match flags & TYPE_MASK {
            TYPE_INSTANT | TYPE_PEAK => MetricKind::Gauge,
            _ => MetricKind::Counter,
        },
        unit: match (flags & UNIT_MASK, flags & BASE_MASK, exponent) {
            (UNIT_NONE, _, 0) => MetricUnit::Count,
            (UNIT_BYTES, _, 0) => MetricUnit::Bytes,
            (UNIT_SECONDS, BASE_POW10, -9) => MetricUnit::Nanoseconds,
            (UNIT_CYCLES, _, 0) => MetricUnit::Cycles,
            (UNIT_BOOLEAN, _, 0) => MetricUnit::Boolean,
            _ => MetricUnit::Other,
        },
        start: offset as usize / 8,
        count: count.into(),
    })
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..offset + 4)?.try_into().map(u32::from_ne_bytes).ok()
}

#[cfg(test)]
mod tests;
