//! What a VMM keeps in memory beyond its guest's RAM, from `/proc/PID/smaps`.

/// Bytes of a process's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident, guest RAM included.
    pub resident: u64,
    /// Written by this process only, without guest RAM.
    pub private_dirty: u64,
    /// Held by this process only, written or not, without guest RAM.
    pub private: u64,
}

#[derive(Clone, Debug, Default)]
struct Mapping {
    start: u64,
    end: u64,
    could_be_ram: bool,
    resident: u64,
    private_clean: u64,
    private_dirty: u64,
}

/// Sums up `smaps`. Guest RAM are the writable mappings without a gap between them that together have at least
/// the guest's size: a VMM may map files over parts of it.
pub fn of(smaps: &str, guest_ram: u64) -> Memory {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        if let Some(mapping) = header(line) {
            mappings.push(mapping);
        } else if let Some(mapping) = mappings.last_mut() {
            let mut words = line.split_whitespace();
            let field = words.next().unwrap_or_default();
            let bytes = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or_default() << 10;
            match field {
                "Rss:" => mapping.resident = bytes,
                "Private_Clean:" => mapping.private_clean = bytes,
                "Private_Dirty:" => mapping.private_dirty = bytes,
                _ => {}
            }
        }
    }
    let mut memory = Memory::default();
    let together =
        |one: &Mapping, next: &Mapping| one.end == next.start && one.could_be_ram && next.could_be_ram;
    for run in mappings.chunk_by(together) {
        let size: u64 = run.iter().map(|mapping| mapping.end - mapping.start).sum();
        let is_ram = size >= guest_ram && run.iter().all(|mapping| mapping.could_be_ram);
        for mapping in run {
            memory.resident += mapping.resident;
            if !is_ram {
                memory.private_dirty += mapping.private_dirty;
                memory.private += mapping.private_dirty + mapping.private_clean;
            }
        }
    }
    memory
}

/// `7f00-7f10 rw-p 00000000 00:00 0   [heap]`
fn header(line: &str) -> Option<Mapping> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    let could_be_ram = rest.starts_with("rw") && !rest.contains('[');
    Some(Mapping { start: address(start)?, end: address(end)?, could_be_ram, ..Mapping::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(range: &str, rights: &str, name: &str, private_dirty: u32) -> String {
        format!(
            "{range} {rights} 00000000 00:00 0    {name}\nSize: 999 kB\nRss: {} kB\nPrivate_Clean: 4 kB\n\
             Private_Dirty: {private_dirty} kB\nVmFlags: rd wr\n",
            private_dirty + 4
        )
    }

    #[test]
    fn guest_memory_is_left_out_also_where_files_are_mapped_over_it() {
        let smaps = [
            mapping("1000-2000", "r-xp", "/bin/vmm", 0),
            mapping("2000-3000", "rw-p", "[heap]", 8),
            mapping("100000-180000", "rw-p", "", 100),
            mapping("180000-1c0000", "rw-p", "/vmlinux", 200),
            mapping("1c0000-200000", "rw-p", "", 300),
            mapping("300000-301000", "rw-p", "", 16),
        ];
        let memory = of(&smaps.concat(), 1 << 20);
        assert_eq!(memory.private_dirty, 24 << 10);
        assert_eq!(memory.private, (24 + 3 * 4) << 10);
        assert_eq!(memory.resident, (624 + 6 * 4) << 10);
    }

    #[test]
    fn nothing_is_taken_for_guest_memory_that_is_smaller() {
        let memory = of(&mapping("100000-180000", "rw-p", "", 100), 1 << 20);
        assert_eq!(memory.private_dirty, 100 << 10);
    }
}
