//! Unpacking the compressed kernel that an image carries.
//!
//! Every format ends with the unpacked size as a little-endian 32-bit number: gzip's own trailer, or one
//! that the kernel's build appends. It bounds the output from the start, so that no payload grows beyond
//! [`MAX_UNPACKED`] or beyond what it declares.

use std::io::{self, BufReader};
use std::ops::Range;

use crate::image::{ImageReader, ImageSource};

/// The largest kernel that is unpacked, in bytes. Debian's are about 55 MB.
pub const MAX_UNPACKED: u64 = 512 << 20;

/// Why a compressed kernel cannot be unpacked here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The compression is not one of those compiled in.
    #[error("its payload starts with {magic:02x?}, which is no compression that this build knows")]
    UnknownFormat {
        /// First bytes of the payload.
        magic: [u8; 4],
    },
    /// The payload is too short to be one.
    #[error("its payload of {len} bytes is too short")]
    TooShort {
        /// Its length.
        len: u64,
    },
    /// The payload claims to be larger than any kernel.
    #[error("its payload claims to unpack to {claimed} bytes; the limit is {MAX_UNPACKED}")]
    TooLarge {
        /// What it claims.
        claimed: u64,
    },
    /// The payload does not unpack to what it claims.
    #[error("its {format} payload is corrupt")]
    Corrupt {
        /// Compression.
        format: &'static str,
        /// What the decoder says.
        source: io::Error,
    },
}

type Input<'a> = BufReader<ImageReader<'a>>;
/// Gives what the payload unpacks to, or `claimed` bytes of it and a few more if it is more than that.
type Decoder = fn(input: Input, claimed: u64) -> io::Result<Vec<u8>>;

/// A format: its name, the bytes that it starts with, its decoder.
struct Format(&'static str, &'static [u8], Decoder);

const FORMATS: &[Format] = &[
    #[cfg(feature = "lz4")]
    Format("LZ4", &[0x02, 0x21, 0x4c, 0x18], lz4),
    #[cfg(feature = "xz")]
    Format("XZ", &[0xfd, b'7', b'z', b'X', b'Z', 0], xz),
    #[cfg(feature = "gzip")]
    Format("gzip", &[0x1f, 0x8b], gzip),
    #[cfg(feature = "zstd")]
    Format("zstd", &[0x28, 0xb5, 0x2f, 0xfd], zstd),
];

const TRAILER: u64 = 4;

/// Unpacks the payload that `range` of `source` holds.
pub(crate) fn payload(source: &ImageSource, range: Range<u64>) -> Result<Vec<u8>, UnpackError> {
    let len = range.end.saturating_sub(range.start);
    let mut magic = [0; 6];
    let mut trailer = [0; TRAILER as usize];
    if len < magic.len() as u64 + TRAILER {
        return Err(UnpackError::TooShort { len });
    }
    let read = |at, buf: &mut [u8]| {
        source.read_exact_at(at, buf).map_err(|source| UnpackError::Corrupt { format: "compressed", source })
    };
    read(range.start, &mut magic)?;
    read(range.end - TRAILER, &mut trailer)?;
    let Some(Format(format, _, decode)) =
        FORMATS.iter().find(|Format(_, prefix, _)| magic.starts_with(prefix))
    else {
        let [a, b, c, d, ..] = magic;
        return Err(UnpackError::UnknownFormat { magic: [a, b, c, d] });
    };
    let claimed = u64::from(u32::from_le_bytes(trailer));
    if claimed > MAX_UNPACKED {
        return Err(UnpackError::TooLarge { claimed });
    }
    // gzip's trailer is part of its format; the others' was appended.
    let len = if *format == "gzip" { len } else { len - TRAILER };
    let input = BufReader::with_capacity(256 << 10, source.reader(range.start, len));
    decode(input, claimed)
        .and_then(|out| if out.len() as u64 == claimed { Ok(out) } else { Err(invalid("wrong size")) })
        .map_err(|source| UnpackError::Corrupt { format, source })
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(any(feature = "gzip", feature = "xz"))]
fn read(decoder: impl io::Read, claimed: u64) -> io::Result<Vec<u8>> {
    use io::Read;
    let mut out = Vec::with_capacity(claimed as usize);
    decoder.take(claimed + 1).read_to_end(&mut out)?;
    Ok(out)
}

#[cfg(feature = "gzip")]
fn gzip(input: Input, claimed: u64) -> io::Result<Vec<u8>> {
    read(flate2::bufread::GzDecoder::new(input), claimed)
}

#[cfg(feature = "xz")]
fn xz(input: Input, claimed: u64) -> io::Result<Vec<u8>> {
    // A dictionary larger than this is never of use for an output of at most this size. In KiB.
    const MEMORY: u32 = (MAX_UNPACKED >> 10) as u32;
    read(lzma_rust2::XzReader::new_mem_limit(input, false, MEMORY), claimed)
}

/// The legacy LZ4 frame: blocks, each behind its compressed size, each of 8 MiB except the last.
#[cfg(feature = "lz4")]
fn lz4(mut input: Input, claimed: u64) -> io::Result<Vec<u8>> {
    use std::io::{BufRead, Read};
    const BLOCK: usize = 8 << 20;
    /// What incompressible data grows to: `LZ4_COMPRESSBOUND`.
    const MAX_COMPRESSED: usize = BLOCK + BLOCK / 255 + 16;
    input.read_exact(&mut [0; 4])?;
    let mut out = vec![0; claimed as usize];
    let mut rest = out.as_mut_slice();
    let mut block = Vec::new();
    while !rest.is_empty() {
        let mut size = [0; 4];
        input.read_exact(&mut size)?;
        let size = u32::from_le_bytes(size) as usize;
        if size > MAX_COMPRESSED {
            return Err(invalid("block too large"));
        }
        block.clear();
        if input.by_ref().take(size as u64).read_to_end(&mut block)? != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (chunk, after) = rest.split_at_mut(rest.len().min(BLOCK));
        let written = lz4_flex::block::decompress_into(&block, chunk).map_err(io::Error::other)?;
        if written != chunk.len() {
            return Err(invalid("short block"));
        }
        rest = after;
    }
    if input.fill_buf()?.is_empty() { Ok(out) } else { Err(invalid("larger than it claims")) }
}

#[cfg(feature = "zstd")]
fn zstd(mut input: Input, claimed: u64) -> io::Result<Vec<u8>> {
    use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
    const STEP: usize = 1 << 20;
    let mut out = Vec::with_capacity(claimed as usize);
    let mut decoder = FrameDecoder::new();
    decoder.init(&mut input).map_err(io::Error::other)?;
    // The decoder keeps a window of the size that the frame claims, however large: what bounds it is that
    // each turn produces at least a step.
    let mut produced = 0;
    while !decoder
        .decode_blocks(&mut input, BlockDecodingStrategy::UptoBytes(STEP))
        .map_err(io::Error::other)?
    {
        decoder.collect_to_writer(&mut out)?;
        produced += STEP as u64;
        if produced > claimed {
            return Err(invalid("larger than it claims"));
        }
    }
    decoder.collect_to_writer(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests;
