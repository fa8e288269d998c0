//! How the processors of a machine belong together: the packages, and the APIC ids that follow from them.

use ossature_boot::Numa;

/// The packages of a machine: its NUMA nodes that have processors, or one of all. Each core has one thread.
///
/// The APIC id of a processor is its number in the package, and before that, the package's. Where there is one package, it is
/// the processor's index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Topology {
    /// How many cores each has.
    packages: Vec<u32>,
}

/// Where a processor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) apic_id: u32,
    pub(super) package: u32,
    /// Its number in the package.
    pub(super) core: u32,
    /// How many cores the largest package has: guests take what their first processor says of its package for all.
    pub(super) cores: u32,
    /// The bits of an APIC id that tell cores of a package from each other.
    pub(super) core_bits: u32,
}

impl Topology {
    pub(super) fn new(cpus: u32, numa: Option<&Numa>) -> Self {
        let packages = match numa {
            Some(numa) => numa.packages().collect(),
            None => vec![cpus.max(1)],
        };
        Self { packages }
    }

    /// Where the processor `index` is. One that the packages do not have is in one of its own behind them.
    pub(super) fn position(&self, index: u32) -> Position {
        let cores = self.packages.iter().copied().max().unwrap_or(1);
        let core_bits = cores.next_power_of_two().trailing_zeros();
        let (mut package, mut core) = (0, index);
        for &before in &self.packages {
            if core < before {
                break;
            }
            core -= before;
            package += 1;
        }
        Position { apic_id: package << core_bits | core, package, core, cores, core_bits }
    }
}

#[cfg(test)]
mod tests;
