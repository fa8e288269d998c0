//! The PPTT: how processors belong together, and their caches (ACPI 6.3, 5.2.29).
//!
//! `acpi_tables` writes revision 3, whose caches have ids, which nobody needs here and older tools do not know.

use acpi_tables::AmlSink;

use crate::acpi::HEADER;
use crate::caches::{Cache, Caches};
use crate::platform::Platform;

pub(super) const REVISION: u8 = 2;

const PROCESSOR: u8 = 0;
const PROCESSOR_LEN: usize = 20;
/// Flags of a processor.
const PHYSICAL_PACKAGE: u32 = 1;
const ID_VALID: u32 = 1 << 1;
const LEAF: u32 = 1 << 3;

const CACHE: u8 = 1;
const CACHE_LEN: u8 = 24;
/// Flags of a cache: what is known of it.
const SIZE: u32 = 1;
const SETS: u32 = 1 << 1;
const WAYS: u32 = 1 << 2;
const KIND: u32 = 1 << 4;
const LINE_SIZE: u32 = 1 << 6;
/// Kinds of caches.
const DATA: u8 = 0;
const INSTRUCTION: u8 = 1 << 2;
const UNIFIED: u8 = 1 << 3;

/// Where no other structure is referred to.
const NONE: u32 = 0;

/// Packages of cores with one thread each, as on x86_64. Without caches, these are as their registers say.
///
/// Caches are private resources: those that a package's cores share are its own, and what a core's caches lead to ends with its own
/// ones.
pub(super) fn body(platform: &Platform, out: &mut Vec<u8>) {
    let mut table = Table { start: out.len(), out };
    let mut uids = 0..;
    for cores in platform.packages() {
        let shared = platform.caches.as_ref().map_or(NONE, |caches| table.caches(&caches.shared));
        let resources = [shared];
        let resources = if shared == NONE { &[][..] } else { &resources };
        let package = table.processor(PHYSICAL_PACKAGE, NONE, 0, resources);
        for uid in uids.by_ref().take(cores) {
            let own = platform.caches.as_ref().map(|caches| table.first_level(caches));
            table.processor(ID_VALID | LEAF, package, uid, own.as_ref().map_or(&[], |own| own));
        }
    }
}

/// The table's structures, each of which is referred to by its offset.
struct Table<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
}

impl Table<'_> {
    fn offset(&self) -> u32 {
        (HEADER + self.out.len() - self.start) as u32
    }

    fn processor(&mut self, flags: u32, parent: u32, uid: u32, resources: &[u32]) -> u32 {
        let (offset, reserved) = (self.offset(), 0);
        self.out.byte(PROCESSOR);
        self.out.byte((PROCESSOR_LEN + 4 * resources.len()) as u8);
        self.out.word(reserved);
        for value in [flags, parent, uid, resources.len() as u32] {
            self.out.dword(value);
        }
        resources.iter().for_each(|&cache| self.out.dword(cache));
        offset
    }

    /// The caches of a core, for data and for instructions, which lead to its other ones.
    fn first_level(&mut self, caches: &Caches) -> [u32; 2] {
        let next = self.caches(&caches.own);
        [(&caches.data, DATA), (&caches.instruction, INSTRUCTION)]
            .map(|(cache, kind)| self.cache(cache, kind, next))
    }

    /// The first of these caches, each of which leads to the one behind.
    fn caches(&mut self, caches: &[Cache]) -> u32 {
        caches.iter().rev().fold(NONE, |next, cache| self.cache(cache, UNIFIED, next))
    }

    fn cache(&mut self, cache: &Cache, kind: u8, next: u32) -> u32 {
        let offset = self.offset();
        let ways = cache.ways().and_then(|ways| u8::try_from(ways).ok());
        let (line_size, sets) = cache.lines.unwrap_or_default();
        let mut flags = SIZE | KIND;
        flags |= if cache.lines.is_some() { SETS | LINE_SIZE } else { 0 };
        flags |= if ways.is_some() { WAYS } else { 0 };
        let reserved = 0;
        self.out.byte(CACHE);
        self.out.byte(CACHE_LEN);
        self.out.word(reserved);
        for value in [flags, next, cache.size, sets] {
            self.out.dword(value);
        }
        self.out.byte(ways.unwrap_or_default());
        self.out.byte(kind);
        self.out.word(line_size as u16);
        offset
    }
}
