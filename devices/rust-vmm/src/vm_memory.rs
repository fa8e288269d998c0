//! vm-memory, and its adapters: guest memory both ways.
//!
//! | there | here | by |
//! |---|---|---|
//! | [`GuestMemoryMmap<B>`](GuestMemoryMmap) | [`Ram`], for a machine and its devices | [`Ram::from_memory`] |
//! | [`GuestMemory`] and its like, of any bitmap | [`Ram`], [`Dma`](ossature_memory::Dma) | [`Ram::map`], [`Dma::memory`](ossature_memory::Dma::memory): [`GuestMmap`](ossature_memory::GuestMmap) is vm-memory's own type |
//! | [`GuestMemoryMmap`] without a bitmap | [`Ram`] that is shared | [`memory_of`] |
//!
//! Our crates name vm-memory's types in their own interfaces, so that most of this needs no adapter.
//!
//! ```
//! use ossature_core::machine::Machine;
//! use ossature_core::scripted::{Script, Scripted};
//! use ossature_memory::{Backing, Ram, RamConfig};
//! use ossature_rust_vmm::vm_memory::{self, Bytes, GuestAddress, GuestMemoryMmap};
//!
//! // Memory that a VMM has mapped, for a machine of ours.
//! let theirs = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 2 << 20)])?;
//! let machine =
//!     Machine::builder("guest").ram(Ram::from_memory(&theirs)?).build(&Scripted::new([Script::new()]))?;
//! machine.ram().dma().write(GuestAddress(0x1000), b"hello")?;
//! assert_eq!(theirs.read_obj::<[u8; 5]>(GuestAddress(0x1000))?, *b"hello");
//!
//! // Ours, for code that takes nothing but `GuestMemoryMmap`.
//! let ram = Ram::new(&RamConfig::new(2 << 20).backing(Backing::Memfd))?;
//! let theirs = vm_memory::memory_of(&ram)?;
//! theirs.write_obj(7u8, GuestAddress(0x1000))?;
//! assert_eq!(ram.dma().read_obj::<u8>(GuestAddress(0x1000))?, 7);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use ossature_memory::Ram;

pub use ::vm_memory::*;

/// RAM that lies in shared memory, mapped once more: all of its slots as they are now, without a bitmap. What is written
/// through it is in no [`DirtyLog`](ossature_memory::DirtyLog).
///
/// Private RAM cannot be mapped twice: it is an error of the kind
/// [`Unsupported`](std::io::ErrorKind::Unsupported).
pub fn memory_of(ram: &Ram) -> std::io::Result<GuestMemoryMmap> {
    let mut regions = Vec::new();
    for slot in ram.slots() {
        let Some(file) = slot.file().cloned() else {
            let what = "private guest memory cannot be mapped twice: take Backing::Memfd";
            return Err(std::io::Error::new(std::io::ErrorKind::Unsupported, what));
        };
        let size = usize::try_from(slot.size).map_err(std::io::Error::other)?;
        let mapped = MmapRegion::from_file(file, size).map_err(std::io::Error::other)?;
        let region = GuestRegionMmap::new(mapped, GuestAddress(slot.guest_addr));
        regions.push(region.ok_or_else(|| std::io::Error::other("it wraps"))?);
    }
    GuestMemoryMmap::from_regions(regions).map_err(std::io::Error::other)
}

#[cfg(test)]
mod tests {
    use ossature_memory::{Backing, Ram, RamConfig};

    use super::*;

    #[test]
    fn shared_memory_is_seen_by_both() {
        let config = RamConfig::new(4 << 20).backing(Backing::Memfd).gap(2 << 20..8 << 20);
        let ram = Ram::new(&config).unwrap();
        ram.add_slot(1 << 32, 1 << 20, &Backing::Memfd).unwrap();
        let (theirs, mut ours) = (memory_of(&ram).unwrap(), ram.dma());
        ours.refresh();
        for addr in [5, (2 << 20) - 1, 8 << 20, (1 << 32) + 77].map(GuestAddress) {
            theirs.write_obj(addr.0 as u8 | 1, addr).unwrap();
            assert_eq!(ours.read_obj::<u8>(addr).unwrap(), addr.0 as u8 | 1);
        }
        assert!(theirs.read_obj::<u8>(GuestAddress(2 << 20)).is_err());
    }

    #[test]
    fn private_memory_is_refused() {
        let ram = Ram::new(&RamConfig::new(1 << 20)).unwrap();
        assert_eq!(memory_of(&ram).unwrap_err().kind(), std::io::ErrorKind::Unsupported);
    }
}
