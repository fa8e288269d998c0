//! What a VMM keeps in memory beyond its guest's RAM, from `/proc/PID/smaps`.

use std::ops::Range;

/// Bytes of a process's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident, guest RAM included.
    pub resident: u64,
    /// Written by this process, without guest RAM: what is not a page of a file.
    pub written: u64,
    /// Mapped by this process only, pages of files included, without guest RAM.
    pub private: u64,
}

#[derive(Clone, Debug, Default)]
struct Mapping {
    start: u64,
    end: u64,
    could_be_ram: bool,
    resident: u64,
    private: u64,
    anonymous: u64,
}

/// Sums up `smaps`. Guest RAM are writable mappings without a gap between them that together have the guest's size,
/// or more if none fits: a VMM may map files over parts of it.
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
                "Private_Clean:" | "Private_Dirty:" => mapping.private += bytes,
                "Anonymous:" => mapping.anonymous = bytes,
                _ => {}
            }
        }
    }
    let mut memory = Memory::default();
    let together =
        |one: &Mapping, next: &Mapping| one.end == next.start && one.could_be_ram && next.could_be_ram;
    for run in mappings.chunk_by(together) {
        let ram = ram_in(run, guest_ram);
        for mapping in run {
            memory.resident += mapping.resident;
            if !ram.contains(&mapping.start) {
                memory.written += mapping.anonymous;
                memory.private += mapping.private;
            }
        }
    }
    memory
}

/// The addresses in `run` that are the guest's memory.
fn ram_in(run: &[Mapping], guest_ram: u64) -> Range<u64> {
    let (Some(first), Some(last)) = (run.first(), run.last()) else { return 0..0 };
    if !first.could_be_ram || last.end - first.start < guest_ram {
        return 0..0;
    }
    let fits = |one: &&Mapping| run.iter().any(|other| other.end == one.start + guest_ram);
    match run.iter().find(fits) {
        Some(one) => one.start..one.start + guest_ram,
        None => first.start..last.end,
    }
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

    fn mapping(range: &str, rights: &str, name: &str, anonymous: u32) -> String {
        let private = anonymous + 4;
        format!(
            "{range} {rights} 00000000 00:00 0    {name}\nSize: 999 kB\nRss: {private} kB\nPrivate_Clean: 4 kB\n\
             Private_Dirty: {anonymous} kB\nAnonymous: {anonymous} kB\nVmFlags: rd wr\n",
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
            mapping("200000-201000", "rw-p", "", 16),
        ];
        let memory = of(&smaps.concat(), 1 << 20);
        assert_eq!(memory.written, 24 << 10);
        assert_eq!(memory.private, (24 + 3 * 4) << 10);
        assert_eq!(memory.resident, (624 + 6 * 4) << 10);
    }

    #[test]
    fn guest_memory_may_have_grown_together_with_its_neighbour() {
        let smaps = [mapping("100000-280000", "rw-p", "", 100), mapping("280000-281000", "r--p", "", 1)];
        assert_eq!(of(&smaps.concat(), 1 << 20).written, 1 << 10);
    }

    #[test]
    fn nothing_is_taken_for_guest_memory_that_is_smaller() {
        let memory = of(&mapping("100000-180000", "rw-p", "", 100), 1 << 20);
        assert_eq!(memory.written, 100 << 10);
    }
}
