//! Small kernel images for tests.

use ossature_memory::GuestMmap;
use vm_memory::GuestAddress;
use zerocopy::IntoBytes;

use super::bzimage::{MAGIC, SETUP_HEADER, SetupHeader};
use crate::platform::{Platform, RamRange};

pub(crate) const LOAD: u64 = 0x100_0000;
pub(crate) const PVH_ENTRY: u32 = 0x100_0040;
pub(crate) const TEXT: &[u8] = b"text of a kernel";
pub(crate) const DATA: &[u8] = b"its data";
/// Offset of the first program header.
pub(crate) const PROGRAM_HEADERS: usize = 64;
pub(crate) const PROGRAM_HEADER: usize = 56;

/// Guest memory and a platform of this many MiB.
pub(crate) fn machine(mib: u64) -> (GuestMmap, Platform) {
    let mem = GuestMmap::from_ranges(&[(GuestAddress(0), (mib << 20) as usize)]).unwrap();
    (mem, Platform::new(vec![0], vec![RamRange::new(0, mib << 20)], Vec::new()))
}

/// One ELF note, padded to 4 bytes.
pub(crate) fn note(owner: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for value in [owner.len() as u32, desc.len() as u32, kind] {
        note.extend(value.to_le_bytes());
    }
    for part in [owner, desc] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// A kernel of two loadable segments with these notes.
pub(crate) fn elf_with_notes(notes: &[u8]) -> Vec<u8> {
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    image.extend([LOAD, PROGRAM_HEADERS as u64, 0].into_iter().flat_map(u64::to_le_bytes));
    image.extend([0, 0, 0, 0, 64, 0, PROGRAM_HEADER as u8, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    let text = 0x1000u64;
    let data = 0x2000u64;
    let noted = 0x3000u64;
    let headers = [
        (1u32, text, LOAD, TEXT.len() as u64, 0x1000u64, 0x1000u64),
        (4, noted, 0, notes.len() as u64, notes.len() as u64, 4),
        (1, data, LOAD + 0x20_0000, DATA.len() as u64, 0x3000, 0x1000),
    ];
    for (kind, offset, paddr, filesz, memsz, align) in headers {
        image.extend(kind.to_le_bytes());
        image.extend([0; 4]);
        let vaddr = paddr | 0xffff_ffff_0000_0000;
        image.extend([offset, vaddr, paddr, filesz, memsz, align].into_iter().flat_map(u64::to_le_bytes));
    }
    for (offset, bytes) in [(text, TEXT), (data, DATA), (noted, notes)] {
        image.resize(offset as usize, 0);
        image.extend(bytes);
    }
    image
}

/// A kernel of two loadable segments with a PVH entry point.
pub(crate) fn elf() -> Vec<u8> {
    let mut notes = note(b"GNU\0", 3, b"build id of 20 bytes");
    notes.extend(note(b"Xen\0", 18, &u64::from(PVH_ENTRY).to_le_bytes()));
    elf_with_notes(&notes)
}

/// A note with a PVH entry point, as 32-bit kernels have it.
pub(crate) fn pvh_note() -> Vec<u8> {
    note(b"Xen\0", 18, &PVH_ENTRY.to_le_bytes())
}

/// The 32-bit kernel of two loadable segments with these notes.
pub(crate) fn elf32(notes: &[u8]) -> Vec<u8> {
    let mut image = b"\x7fELF\x01\x01\x01".to_vec();
    image.resize(16, 0);
    image.extend([2, 0, 3, 0, 1, 0, 0, 0]);
    image.extend([LOAD as u32, 52, 0, 0].into_iter().flat_map(u32::to_le_bytes));
    image.extend([52, 0, 32, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    let size = notes.len() as u32;
    for (kind, offset, paddr, filesz, memsz) in [
        (1u32, 0x1000u32, LOAD as u32, TEXT.len() as u32, 0x1000u32),
        (4, 0x3000, 0, size, size),
        (1, 0x2000, LOAD as u32 + 0x20_0000, DATA.len() as u32, 0x3000),
    ] {
        let vaddr = paddr | 0xc000_0000;
        image
            .extend([kind, offset, vaddr, paddr, filesz, memsz, 0, 4].into_iter().flat_map(u32::to_le_bytes));
    }
    for (offset, bytes) in [(0x1000, TEXT), (0x2000, DATA), (0x3000, notes)] {
        image.resize(offset, 0);
        image.extend(bytes);
    }
    image
}

/// The setup header of [`bzimage`].
pub(crate) fn setup_header() -> SetupHeader {
    SetupHeader {
        setup_sects: 1,
        boot_flag: 0xaa55.into(),
        jump: [0xeb, 0x6a],
        header: MAGIC,
        version: 0x020f.into(),
        loadflags: 1,
        code32_start: 0x10_0000.into(),
        initrd_addr_max: 0x7fff_ffff.into(),
        kernel_alignment: 0x20_0000.into(),
        relocatable_kernel: 1,
        xloadflags: 3.into(),
        cmdline_size: 0x7ff.into(),
        payload_offset: 0x240.into(),
        pref_address: LOAD.into(),
        init_size: 0x80_0000.into(),
        ..Default::default()
    }
}

/// A bzImage with this setup header, except for the sizes, and this payload.
pub(crate) fn bzimage_with(mut header: SetupHeader, payload: &[u8]) -> Vec<u8> {
    let code_len = 0x240 + payload.len();
    header.syssize = (code_len.div_ceil(16) as u32).into();
    header.payload_length = (payload.len() as u32).into();
    let mut image = vec![0; SETUP_HEADER];
    image.extend(header.as_bytes());
    image.resize(1024, 0);
    image.resize(1024 + 0x240, 0xcc);
    image.extend(payload);
    image
}

/// A bzImage with this payload.
pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
    bzimage_with(setup_header(), payload)
}

/// `bytes` as a file, packed by each of the programs: `gzip`, `zstd`, `xz`, `lz4` and `lz4 -l`.
pub(crate) fn pack_all(bytes: &[u8]) -> Vec<Vec<u8>> {
    use std::io::Write;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    let zstd = ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest);
    let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(0)).unwrap();
    xz.write_all(bytes).unwrap();
    let mut frame = lz4_flex::frame::FrameEncoder::new(Vec::new());
    frame.write_all(bytes).unwrap();
    let mut legacy = lz4(bytes);
    legacy.truncate(legacy.len() - 4);
    vec![gzip.finish().unwrap(), zstd, xz.finish().unwrap(), frame.finish().unwrap(), legacy]
}

/// `bytes` as the kernel's build compresses them with LZ4.
pub(crate) fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x02, 0x21, 0x4c, 0x18];
    for block in bytes.chunks(8 << 20) {
        let block = lz4_flex::block::compress(block);
        out.extend((block.len() as u32).to_le_bytes());
        out.extend(block);
    }
    out.extend((bytes.len() as u32).to_le_bytes());
    out
}
