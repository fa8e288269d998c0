use super::*;
use crate::x86_64::testing::{LOAD, bzimage, bzimage_with, setup_header};

fn parse(image: &[u8]) -> Result<BzImage, KernelError> {
    BzImage::parse(image.len() as u64, &image[..image.len().min(4096)])
}

/// What the 64-bit entry of an image with a changed setup header is.
fn segment(change: impl FnOnce(&mut SetupHeader)) -> Result<(LoadSegment, u64), KernelError> {
    let mut header = setup_header();
    change(&mut header);
    parse(&bzimage_with(header, &[0; 64]))?.segment()
}

#[track_caller]
fn assert_invalid<T: std::fmt::Debug>(result: Result<T, KernelError>, expected: &str) {
    assert!(
        matches!(&result, Err(KernelError::InvalidBzImage { field, .. }) if *field == expected),
        "{result:?}"
    );
}

#[test]
fn the_code_goes_where_the_header_prefers() {
    let image = bzimage(&[0; 64]);
    assert!(has_magic(&image) && !has_magic(&image[1..]) && !has_magic(&image[..0x205]));
    let (segment, entry) = parse(&image).unwrap().segment().unwrap();
    let expected =
        LoadSegment { file_offset: 1024, file_len: 0x240 + 64, guest_addr: LOAD, mem_len: 0x80_0000 };
    assert_eq!((segment, entry), (expected, LOAD + 0x200));
    assert_eq!(parse(&image).unwrap().payload().unwrap(), 1024 + 0x240..1024 + 0x240 + 64);
}

#[test]
fn the_header_ends_where_the_image_says() {
    let mut header = setup_header();
    // A header that ends before pref_address: what lies behind is code.
    header.jump = [0xeb, 0x56];
    let parsed = parse(&bzimage_with(header.clone(), &[0; 64])).unwrap().header;
    assert_eq!((parsed.payload_length.get(), parsed.pref_address.get(), parsed.init_size.get()), (64, 0, 0));
    // One that is longer than we know: the rest is not ours.
    header.jump = [0xeb, 0xff];
    assert_eq!(parse(&bzimage_with(header, &[0; 64])).unwrap().header.init_size, 0x80_0000);
}

#[test]
fn old_protocols_are_refused() {
    let zimage = segment(|header| header.loadflags = 0);
    assert!(matches!(zimage, Err(KernelError::NeedsRealMode { version: 0x020f })), "{zimage:?}");
    let old = segment(|header| header.version = 0x020b.into());
    assert_eq!(
        old.unwrap_err().to_string(),
        "the bzImage has no 64-bit entry point (boot protocol 2.11, 2.12 and a 64-bit kernel are needed)"
    );
    let narrow = segment(|header| header.xloadflags = 2.into());
    assert!(matches!(narrow, Err(KernelError::NoLinux64Entry { version: 0x020f })));
}

#[test]
fn g9_a_boot_program_for_real_mode_is_told_what_is_missing() {
    // As ipxe.lkrn has it.
    let error =
        segment(|header| (header.version, header.xloadflags) = (0x0207.into(), 0.into())).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the bzImage needs the 16-bit entry, which this machine does not have (boot protocol 2.07): it takes an ELF \
         file, or a bzImage of protocol 2.08 with a kernel to unpack or of 2.12 with a 64-bit entry point"
    );
}

#[test]
fn c3_setup_sects_lies() {
    let mut header = setup_header();
    header.setup_sects = 0xff;
    let result = parse(&bzimage_with(header.clone(), &[0; 64]));
    assert!(matches!(result, Err(KernelError::Truncated { what: "the setup code", .. })), "{result:?}");
    // 0 means 4.
    header.setup_sects = 0;
    let image = bzimage_with(header, &[0; 4096]);
    assert_eq!(parse(&image).unwrap().code.start, 5 * 512);
    for len in SETUP_HEADER..1024 + 0x200 {
        assert!(matches!(parse(&image[..len]), Err(KernelError::Truncated { .. })), "{len}");
    }
}

#[test]
fn c3_init_size_alignment_and_address_lies() {
    let code_len: u32 = 0x240 + 64;
    assert_invalid(segment(|header| header.init_size = (code_len - 1).into()), "init_size");
    assert_eq!(segment(|header| header.init_size = code_len.into()).unwrap().0.mem_len, u64::from(code_len));
    assert_invalid(segment(|header| header.kernel_alignment = 0.into()), "kernel_alignment");
    assert_invalid(segment(|header| header.kernel_alignment = 0x30_0000.into()), "kernel_alignment");
    assert_invalid(segment(|header| header.pref_address = 0x100_1000.into()), "pref_address");
    assert_invalid(segment(|header| header.pref_address = (1 << 40).into()), "pref_address");
}

#[test]
fn c3_truncated_code_and_payload() {
    let image = bzimage(&[0; 64]);
    let cut = parse(&image[..image.len() - 32]).unwrap();
    assert!(matches!(cut.payload(), Err(KernelError::Truncated { what: "the payload", .. })));
    assert!(matches!(cut.segment(), Err(KernelError::Truncated { what: "the kernel", .. })));
    let mut header = setup_header();
    header.payload_offset = u32::MAX.into();
    let wild = parse(&bzimage_with(header, &[0; 64])).unwrap();
    assert!(matches!(wild.payload(), Err(KernelError::Truncated { .. })));
}
