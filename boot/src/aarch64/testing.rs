//! Kernel images of a few instructions.

/// Bytes of an [`image`].
pub const LEN: usize = 0x1000;

/// An Image with this text offset and size, whose last byte is 0xa5.
pub fn image(text_offset: u64, image_size: u64) -> Vec<u8> {
    let mut image = vec![0; LEN];
    // wfi; b .-4
    image[..8].copy_from_slice(&[0x7f, 0x20, 0x03, 0xd5, 0xff, 0xff, 0xff, 0x17]);
    image[8..16].copy_from_slice(&text_offset.to_le_bytes());
    image[16..24].copy_from_slice(&image_size.to_le_bytes());
    image[24] = 0b1010;
    image[0x38..0x3c].copy_from_slice(b"ARM\x64");
    image[LEN - 1] = 0xa5;
    image
}

/// An EFI image that holds `payload`, of whose bytes the last `trailer` are not counted.
pub fn zboot(compression: &str, payload: &[u8], trailer: u32) -> Vec<u8> {
    let mut efi = vec![0; 0x1000];
    efi[..8].copy_from_slice(b"MZ\0\0zimg");
    efi[8..12].copy_from_slice(&0x1000_u32.to_le_bytes());
    efi[12..16].copy_from_slice(&(payload.len() as u32 - trailer).to_le_bytes());
    efi[24..24 + compression.len()].copy_from_slice(compression.as_bytes());
    efi[0x38..0x3c].copy_from_slice(&0x8182_23cd_u32.to_le_bytes());
    efi.extend(payload);
    efi
}

/// As the kernel's build packs with LZ4, with the size behind.
pub fn lz4_legacy(bytes: &[u8]) -> Vec<u8> {
    let block = lz4_flex::block::compress(bytes);
    let mut packed = vec![0x02, 0x21, 0x4c, 0x18];
    packed.extend((block.len() as u32).to_le_bytes());
    packed.extend(block);
    packed.extend((bytes.len() as u32).to_le_bytes());
    packed
}
