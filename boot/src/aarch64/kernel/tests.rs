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
    for (offset, size) in [(u64::MAX, 0x1000), (0, u64::MAX), (1 << 63, 1 << 63)] {
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
}
