use super::*;
use crate::aarch64::testing::{image, lz4_legacy, zboot};

fn open(bytes: &[u8]) -> Result<(u64, u64, u64), KernelError> {
    let kernel = Kernel::open(ImageSource::Bytes(bytes))?;
    let place = kernel.place(0x10_0000).unwrap();
    assert_eq!(place.file_offset, 0);
    Ok((place.guest_addr, place.file_len, place.mem_len))
}

fn refused(bytes: &[u8]) -> String {
    crate::testing::chain(&open(bytes).unwrap_err())
}

#[test]
fn an_image_lies_at_its_offset_from_two_mebibytes_and_needs_what_it_says() {
    assert_eq!(open(&image(0, 0x30_0000)).unwrap(), (0x20_0000, 0x1000, 0x30_0000));
    assert_eq!(open(&image(0x8_0000, 0x30_0000)).unwrap(), (0x28_0000, 0x1000, 0x30_0000));
    // What is longer than it says, such as by a signature, is loaded whole.
    assert_eq!(open(&image(0, 0x800)).unwrap(), (0x20_0000, 0x1000, 0x1000));
}

#[test]
fn a_text_offset_is_a_multiple_of_an_instruction() {
    for offset in [1, 2, 3, 0x8_0002, u64::MAX] {
        let said = format!("invalid kernel: text_offset is {offset:#x}");
        assert_eq!(refused(&image(offset, 0x30_0000)), said);
        // Where it is no field.
        open(&image(offset, 0)).unwrap();
    }
    open(&image(4, 0x30_0000)).unwrap();
}

#[test]
fn before_linux_3_17_an_image_said_nothing() {
    assert_eq!(open(&image(0x1234_5678, 0)).unwrap(), (0x28_0000, 0x1000, 0x1000));
}

#[cfg(feature = "gzip")]
#[test]
fn a_packed_image_is_unpacked() {
    use std::io::Write;
    let gzip = |bytes: &[u8]| {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packer.write_all(bytes).unwrap();
        packer.finish().unwrap()
    };
    let packed = gzip(&image(0, 0x30_0000));
    assert_eq!(open(&packed).unwrap(), (0x20_0000, 0x1000, 0x30_0000));
    let efi = zboot("gzip", &packed, 0);
    assert_eq!(open(&efi).unwrap(), (0x20_0000, 0x1000, 0x30_0000));
    // Packed as a whole, as some distributions do.
    assert_eq!(open(&gzip(&efi)).unwrap(), (0x20_0000, 0x1000, 0x30_0000));
}

#[cfg(feature = "lz4")]
#[test]
fn the_size_behind_a_payload_is_not_counted_in_its_length() {
    let payload = lz4_legacy(&image(0, 0x30_0000));
    assert_eq!(open(&zboot("lz4", &payload, 4)).unwrap(), (0x20_0000, 0x1000, 0x30_0000));
}

#[test]
fn what_is_no_kernel_for_this_machine_is_refused_by_what_it_is() {
    let mut x86 = vec![0; 4096];
    x86[0x202..0x206].copy_from_slice(b"HdrS");
    assert_eq!(refused(&x86), "the kernel is for x86; this machine is aarch64");
    let mut riscv = vec![0; 4096];
    riscv[0x38..0x3c].copy_from_slice(b"RSC\x05");
    assert_eq!(refused(&riscv), "the kernel is for RISC-V; this machine is aarch64");
    let mut elf = vec![0; 64];
    elf[..4].copy_from_slice(b"\x7fELF");
    elf[18] = 62;
    assert_eq!(refused(&elf), "the kernel is for x86; this machine is aarch64");
    elf[18] = 183;
    assert!(refused(&elf).starts_with("the kernel is an ELF file (vmlinux)"));
    for bytes in [&[][..], b"MZ", &[0; 4096]] {
        assert!(refused(bytes).starts_with("not a kernel"), "{}", refused(bytes));
    }
    let mut big = image(0, 0x30_0000);
    big[24] = 1;
    assert!(refused(&big).starts_with("the kernel is big-endian"));
}

#[test]
fn headers_are_hostile() {
    let efi = zboot("gzip", b"payload", 0);
    let with = |at: usize, value: u32| {
        let mut efi = efi.clone();
        efi[at..at + 4].copy_from_slice(&value.to_le_bytes());
        refused(&efi)
    };
    assert_eq!(with(8, 0), "invalid kernel: the payload offset is 0x0");
    assert_eq!(
        with(8, u32::MAX),
        "the kernel image is truncated: the payload would end at byte 4294967302, the file has 4103"
    );
    assert_eq!(
        with(12, u32::MAX),
        "the kernel image is truncated: the payload would end at byte 4294971391, the file has 4103"
    );
    assert!(with(12, 0).contains("too short"), "{}", with(12, 0));
    // Each ends beyond all addresses.
    for (offset, size) in [(u64::MAX - 3, 0x1000), (0, u64::MAX), (1 << 63, 1 << 63)] {
        let image = image(offset, size);
        assert_eq!(Kernel::open(ImageSource::Bytes(&image)).unwrap().place(1 << 20), None);
    }
}

#[test]
fn every_truncation_is_an_error_or_a_shorter_kernel() {
    let image = image(0, 0x30_0000);
    for len in 0..64 {
        assert!(refused(&image[..len]).starts_with("not a kernel"), "{len}");
    }
    assert_eq!(open(&image[..64]).unwrap(), (0x20_0000, 64, 0x30_0000));
    let efi = zboot("gzip", b"payload", 0);
    for len in 0..efi.len() {
        open(&efi[..len]).unwrap_err();
    }
    // One that says where its sections are is never shorter.
    let image = with_sections(&[(0x800, 0x400), (0xc00, 0x200)]);
    for len in 0..0xe00 {
        refused(&image[..len]);
    }
    assert_eq!(open(&image[..0xe00]).unwrap(), (0x20_0000, 0xe00, 0x30_0000));
}

/// An Image with sections at these places and of these lengths.
fn with_sections(sections: &[(u32, u32)]) -> Vec<u8> {
    let mut image = image(0, 0x30_0000);
    image[..2].copy_from_slice(b"MZ");
    image[0x3c] = 0x40;
    image[0x40..0x44].copy_from_slice(b"PE\0\0");
    image[0x46] = sections.len() as u8;
    image[0x54] = 0xa0;
    for (section, (at, len)) in image[0xf8..].chunks_exact_mut(40).zip(sections) {
        section[16..20].copy_from_slice(&len.to_le_bytes());
        section[20..24].copy_from_slice(&at.to_le_bytes());
    }
    image
}

#[test]
fn the_sections_of_an_image_lie_in_its_file() {
    let truncated = |what: &str, needs: u64, has: u64| {
        format!("the kernel image is truncated: {what} would end at byte {needs}, the file has {has}")
    };
    // As of Debian: what is signed has more behind its sections.
    let image = with_sections(&[(0x800, 0x600), (0xe00, 0x200 - 1)]);
    assert_eq!(open(&image).unwrap(), (0x20_0000, 0x1000, 0x30_0000));
    assert_eq!(refused(&image[..0xffe]), truncated("a section", 0xfff, 0xffe));
    assert_eq!(refused(&image[..0x57]), truncated("the PE header", 0x58, 0x57));
    assert_eq!(refused(&image[..0x147]), truncated("the table of sections", 0x148, 0x147));
    let image = with_sections(&[(u32::MAX, u32::MAX)]);
    assert_eq!(refused(&image), truncated("a section", 2 * u64::from(u32::MAX), 0x1000));
    // What has no bytes has no place.
    open(&with_sections(&[(u32::MAX, 0)])).unwrap();
    open(&with_sections(&[])).unwrap();
    let mut many = with_sections(&[(0, 0); 90]);
    many[0x46] = 97;
    assert_eq!(refused(&many), "invalid kernel: the number of sections is 0x61");
    // Without a PE header, none of this is looked at.
    let mut plain = with_sections(&[(u32::MAX, u32::MAX)]);
    plain[0x41] = b'e';
    open(&plain).unwrap();
}
