//! The caches that guests are told of: the host's, or those that the caller gives.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use ossature_boot::{Cache, Caches};

use super::setup::HostFacts;
use crate::{VmConfig, VmError};

/// Of which caches guests are told.
#[derive(Clone, Debug, Default)]
pub(super) enum Told {
    #[default]
    Host,
    Given(Option<Caches>),
}

impl VmConfig {
    /// Tells the guest of these caches, or of none, instead of the host's, which are those of its first processor, as far
    /// as `/sys/devices/system/cpu/cpu0/cache` says. Each vCPU is a core: what cores of the host have for themselves is
    /// each vCPU's own, and all vCPUs share what they share. What contradicts the CLIDR_EL1 of the guest's processors,
    /// and what is behind it, is left out. A machine with caches that [cannot be](Caches::check) is not created. On aarch64
    /// only.
    ///
    /// ```
    /// use ossature_boot::{Cache, Caches};
    /// use ossature_core::VmConfig;
    ///
    /// let first = Cache::new(64 << 10).lines(64, 256);
    /// let caches = Caches::new(first, first).own(Cache::new(1 << 20)).shared(Cache::new(32 << 20));
    /// let config = VmConfig::new(2).caches(caches);
    /// ```
    #[must_use]
    pub fn caches(mut self, caches: impl Into<Option<Caches>>) -> Self {
        self.arch.caches = Told::Given(caches.into());
        self
    }
}

/// The caches of which the guest of a machine is to be told, if any. Fails if there can be no such caches.
pub(crate) fn caches(config: &VmConfig, facts: &HostFacts) -> Result<Option<Caches>, VmError> {
    match &config.arch.caches {
        Told::Host => Ok(facts.caches.get_or_init(|| of(Path::new(FIRST))).clone()),
        Told::Given(caches) => {
            let checked = caches.as_ref().map_or(Ok(()), Caches::check);
            checked.map(|()| caches.clone()).map_err(|source| VmError::Caches { source })
        }
    }
}

/// What of the caches does not contradict the guest's processors, once there is one.
pub(crate) fn with_processors(caches: Caches, facts: &HostFacts) -> Option<Caches> {
    by_clidr(caches, *facts.clidr.get()?)
}

/// What a level of CLIDR_EL1 has: none that a processor knows of, caches for data and for instructions, or one for both (Arm
/// Architecture Reference Manual, D19.2.26).
const NONE: u64 = 0;
const SEPARATE: u64 = 3;
const UNIFIED: u64 = 4;
/// Bits of each level.
const LEVEL: usize = 3;

/// What of the caches does not contradict a CLIDR_EL1: there may be more outside of them. Linux finds
/// no caches at all where both have a level and differ. From Linux 6.3 on, KVM tells there of what software has to maintain, which
/// may be less than the host has.
fn by_clidr(mut caches: Caches, clidr: u64) -> Option<Caches> {
    let kind = |level: usize| clidr >> (LEVEL * (level - 1)) & 0b111;
    if kind(1) != SEPARATE {
        return None;
    }
    let behind = (2..=7).take_while(|level| [UNIFIED, NONE].contains(&kind(*level))).count();
    caches.own.truncate(behind);
    caches.shared.truncate(behind - caches.own.len());
    Some(caches)
}

/// The host's first processor.
const FIRST: &str = "/sys/devices/system/cpu/cpu0";
/// More than seven levels of caches have indices.
const MAX_INDEX: usize = 16;
/// No file there is longer.
const MAX_FILE: u64 = 4096;

/// One cache as a host's folder has it.
struct Found {
    level: u32,
    kind: String,
    /// Whether it is one core's.
    own: bool,
    cache: Cache,
}

/// The caches of the processor of this folder. `None` if the first level is unknown; what is behind a level that is unknown
/// or not for both data and instructions is left out.
fn of(cpu: &Path) -> Option<Caches> {
    let threads = text(&cpu.join("topology/thread_siblings_list")).unwrap_or_default();
    let folders = (0..MAX_INDEX).map(|index| cpu.join(format!("cache/index{index}")));
    let found: Vec<Found> = folders.filter_map(|folder| one(&folder, &threads)).collect();
    let get = |level: u32, kind: &str| found.iter().find(|found| found.level == level && found.kind == kind);
    let mut caches = Caches::new(get(1, "Data")?.cache, get(1, "Instruction")?.cache);
    for next in (2..).map_while(|level| get(level, "Unified")) {
        // Behind one that is shared there is none for a core alone.
        let own = next.own && caches.shared.is_empty();
        let more = if own { caches.clone().own(next.cache) } else { caches.clone().shared(next.cache) };
        if more.check().is_err() {
            break;
        }
        caches = more;
    }
    caches.check().is_ok().then_some(caches)
}

/// The cache in this folder. Lines and sets that cannot be are not known.
fn one(folder: &Path, threads: &str) -> Option<Found> {
    let read = |name: &str| text(&folder.join(name));
    let number = |name: &str| read(name)?.parse().ok();
    let mut cache = Cache::new(size(&read("size")?)?);
    if let (Some(line_size), Some(sets)) = (number("coherency_line_size"), number("number_of_sets")) {
        let whole = cache.lines(line_size, sets);
        cache = if whole.is_valid() { whole } else { cache };
    }
    let users = read("shared_cpu_list")?;
    let own = users == threads || users == "0";
    Some(Found { level: number("level")?, kind: read("type")?, own, cache })
}

/// A size as Linux prints it: bytes, or with a suffix.
fn size(text: &str) -> Option<u32> {
    let digits = text.trim_end_matches(['K', 'M', 'G']);
    let shift = match text.get(digits.len()..)? {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return None,
    };
    digits.parse::<u32>().ok()?.checked_mul(1 << shift).filter(|size| *size > 0)
}

/// What a file says, without the end of the line.
fn text(file: &Path) -> Option<String> {
    let mut text = String::new();
    File::open(file).ok()?.take(MAX_FILE).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests;
