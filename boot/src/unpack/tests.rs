use std::io::Write;

use super::*;
use crate::x86_64::testing::lz4 as pack_lz4;

/// Something that compresses.
fn sample(len: u32) -> Vec<u8> {
    (0..len).map(|i| (i ^ (i >> 9)) as u8).collect()
}

fn unpack(payload_bytes: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let mut image = b"before".to_vec();
    image.extend(payload_bytes);
    image.extend(b"behind");
    payload(&ImageSource::Bytes(&image), 6..6 + payload_bytes.len() as u64)
}

fn with_size(mut packed: Vec<u8>, size: usize) -> Vec<u8> {
    packed.extend((size as u32).to_le_bytes());
    packed
}

fn pack_gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn pack_zstd(bytes: &[u8]) -> Vec<u8> {
    let packed = ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest);
    with_size(packed, bytes.len())
}

/// As the kernel's build does it: with the filter for x86 code.
fn pack_xz(bytes: &[u8]) -> Vec<u8> {
    let mut options = lzma_rust2::XzOptions::with_preset(0);
    options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    writer.write_all(bytes).unwrap();
    with_size(writer.finish().unwrap(), bytes.len())
}

fn all(bytes: &[u8]) -> [(&'static str, Vec<u8>); 4] {
    [("LZ4", pack_lz4(bytes)), ("XZ", pack_xz(bytes)), ("gzip", pack_gzip(bytes)), ("zstd", pack_zstd(bytes))]
}

#[test]
fn each_format_comes_back() {
    let sample = sample(300_000);
    for (format, packed) in all(&sample) {
        assert!(packed.len() < sample.len(), "{format}");
        assert!(unpack(&packed).unwrap() == sample, "{format}");
    }
}

#[test]
fn c3_decompression_bombs_stop_at_what_they_claim() {
    let len = (2 << 20) + 1;
    let zeros = vec![0; len as usize];
    for (format, mut packed) in all(&zeros) {
        let trailer = packed.len() - 4;
        for claimed in [0u32, 1000, len - 1, len + 1] {
            packed[trailer..].copy_from_slice(&claimed.to_le_bytes());
            let result = unpack(&packed);
            let Err(UnpackError::Corrupt { format: found, source }) = result else {
                panic!("{format}: {claimed}")
            };
            assert_eq!(found, format);
            // This decoder would go on to the end of the frame's window, if it were not stopped.
            if format == "zstd" && claimed <= 1000 {
                assert_eq!(source.to_string(), "larger than it claims");
            }
        }
        packed[trailer..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(unpack(&packed), Err(UnpackError::TooLarge { claimed: 0xffff_ffff })), "{format}");
    }
}

#[test]
fn g9_a_packed_file_stops_at_the_limit() {
    const LIMIT: u64 = 3 << 20;
    for len in [LIMIT, LIMIT + 1] {
        for packed in crate::x86_64::testing::pack_all(&vec![0; len as usize]) {
            let unpacked = file_up_to(LIMIT, &ImageSource::Bytes(&packed), packed.len() as u64, &packed);
            if len == LIMIT {
                assert_eq!(unpacked.unwrap().len() as u64, LIMIT);
                continue;
            }
            let Err(UnpackError::Corrupt { source, .. }) = unpacked else { panic!("accepted") };
            assert_eq!(source.to_string(), "it unpacks to more than 3145728 bytes");
        }
    }
}

#[test]
fn g9_files_of_several_frames_or_members_are_one() {
    let (first, second) = (sample(5000), sample(3000));
    let pack = |bytes: &[u8]| crate::x86_64::testing::pack_all(bytes);
    // LZ4's legacy format alone has no end of its own.
    for (packed, more) in pack(&first).into_iter().zip(pack(&second)).take(3) {
        let both = [packed, more].concat();
        let unpacked = file(&ImageSource::Bytes(&both), both.len() as u64, &both).unwrap();
        assert!(unpacked == [&first[..], &second].concat());
    }
}

#[test]
fn c3_a_dictionary_that_nothing_needs() {
    let mut packed = pack_xz(&[7; 1000]);
    // Block header: size, flags, then for each filter its id, the size of its properties and these; LZMA2's
    // one property byte is the size of the dictionary, 40 for 4 GiB.
    let header = &mut packed[12..];
    let len = (usize::from(header[0]) + 1) * 4;
    let at = header.windows(2).position(|pair| pair == [0x21, 1]).unwrap() + 2;
    header[at] = 40;
    let crc = crc32(&header[..len - 4]);
    header[len - 4..len].copy_from_slice(&crc.to_le_bytes());
    let Err(UnpackError::Corrupt { format: "XZ", source }) = unpack(&packed) else { panic!("accepted") };
    assert_eq!(source.kind(), io::ErrorKind::OutOfMemory, "{source}");
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    })
}

#[test]
fn lz4_comes_in_blocks_of_8_mib() {
    let mut sample = vec![0; (8 << 20) + 5];
    sample[(8 << 20) - 2..].copy_from_slice(b"two one");
    let mut packed = pack_lz4(&sample);
    assert!(unpack(&packed).unwrap() == sample);
    // A claim that ends with the first block.
    let trailer = packed.len() - 4;
    packed[trailer..].copy_from_slice(&(8u32 << 20).to_le_bytes());
    assert!(matches!(unpack(&packed), Err(UnpackError::Corrupt { format: "LZ4", .. })));
}

#[test]
fn lz4_blocks_that_lie() {
    let mut packed = pack_lz4(&[1; 1000]);
    packed[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let Err(UnpackError::Corrupt { format: "LZ4", source }) = unpack(&packed) else { panic!("accepted") };
    assert_eq!(source.to_string(), "block too large");
    packed[4..8].copy_from_slice(&0u32.to_le_bytes());
    assert!(matches!(unpack(&packed), Err(UnpackError::Corrupt { format: "LZ4", .. })));
}

/// Unpacks a file.
fn unpack_file(bytes: &[u8]) -> Result<Vec<u8>, UnpackError> {
    file(&ImageSource::Bytes(bytes), bytes.len() as u64, bytes)
}

/// An LZ4 frame of several blocks, with all checksums or none.
fn lz4_frame_of_blocks(bytes: &[u8], has_checksums: bool) -> Vec<u8> {
    use lz4_flex::frame::{BlockSize, FrameEncoder, FrameInfo};
    let info = FrameInfo::new()
        .block_size(BlockSize::Max64KB)
        .block_checksums(has_checksums)
        .content_checksum(has_checksums)
        .content_size(has_checksums.then_some(bytes.len() as u64));
    let mut frame = FrameEncoder::with_frame_info(info, Vec::new());
    frame.write_all(bytes).unwrap();
    frame.finish().unwrap()
}

#[test]
fn an_lz4_frame_ends_with_its_file_and_not_before() {
    let sample = sample(200_000);
    for has_checksums in [true, false] {
        let packed = lz4_frame_of_blocks(&sample, has_checksums);
        assert!(unpack_file(&packed).unwrap() == sample);
        let payload = with_size(packed.clone(), sample.len());
        assert!(unpack(&payload).unwrap() == sample);
        // Around the end of the first block, too, where the size of the next one would follow.
        let (header, checksum) = if has_checksums { (15, 4) } else { (7, 0) };
        let size = u32::from_le_bytes(packed[header..header + 4].try_into().unwrap()) as usize;
        let (first, all) = (header + 4 + size + checksum, packed.len());
        for len in (4..30).chain(first - 6..first + 6).chain(all - 12..all) {
            let error = unpack_file(&packed[..len]).unwrap_err();
            assert!(matches!(error, UnpackError::Corrupt { format: "LZ4", .. }), "{len}: {error}");
        }
        for behind in [&[0][..], &[0; 4], &packed] {
            unpack_file(&[&packed, behind].concat()).unwrap_err();
        }
    }
}

#[test]
fn the_last_block_of_a_legacy_lz4_frame_ends_with_its_file() {
    let sample = sample((8 << 20) + 70_000);
    let mut packed = pack_lz4(&sample);
    packed.truncate(packed.len() - 4);
    assert!(unpack_file(&packed).unwrap() == sample);
    // What the frame does not say, and what is loaded has to: how many blocks there are.
    let second = 8 + u32::from_le_bytes(packed[4..8].try_into().unwrap()) as usize;
    assert_eq!(unpack_file(&packed[..second]).unwrap().len(), 8 << 20);
    for len in [5, 7, 8, 9, second - 1, second + 1, second + 3, second + 4, second + 5, packed.len() - 1] {
        let error = unpack_file(&packed[..len]).unwrap_err();
        assert!(matches!(error, UnpackError::Corrupt { format: "LZ4", .. }), "{len}: {error}");
    }
    for behind in [&[0][..], &[0; 3], &[0; 4], &[1, 0, 0, 0], b"behind"] {
        unpack_file(&[&packed, behind].concat()).unwrap_err();
    }
}

#[test]
fn cut_payloads_are_corrupt() {
    for (format, packed) in all(&sample(100_000)) {
        for len in [10, 20, packed.len() / 2, packed.len() - 5] {
            let cut = with_size(packed[..len].to_vec(), 100_000);
            let error = unpack(&cut).unwrap_err();
            assert!(
                matches!(error, UnpackError::Corrupt { format: f, .. } if f == format),
                "{format} {len}: {error}"
            );
        }
    }
}

#[test]
fn others_are_unknown_or_too_short() {
    let error = unpack(b"BZh91AY&SY  ").unwrap_err();
    assert!(matches!(error, UnpackError::UnknownFormat { magic: [b'B', b'Z', b'h', b'9'] }));
    assert!(matches!(unpack(&[0x1f, 0x8b, 8]), Err(UnpackError::TooShort { len: 3 })));
}
