//! Unpacking compressed kernels: the payload of a bzImage, and files that were packed as a whole.
//!
//! A payload ends with the unpacked size as a little-endian 32-bit number: gzip's own trailer, or one that the kernel's
//! build appends. It bounds the output from the start, so that no payload grows beyond [`MAX_UNPACKED`] or beyond what
//! it declares. A file says no size that could be trusted: [`MAX_UNPACKED`] alone bounds it.

use std::io::{self, BufReader};
use std::ops::Range;

use crate::image::{ImageReader, ImageSource};

/// The largest kernel that is unpacked, in bytes. Debian's are about 55 MB.
pub const MAX_UNPACKED: u64 = 512 << 20;

/// Why a compressed kernel cannot be unpacked here.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnpackError {
    /// The compression is not a known one.
    #[error("its payload starts with {magic:02x?}, which is no compression that is known here")]
    UnknownFormat {
        /// First bytes of the payload.
        magic: [u8; 4],
    },
    /// The compression is known, but this build leaves its decoder out.
    #[error("it is packed with {format}: this build lacks ossature-boot's feature `{feature}`")]
    NotBuilt {
        /// Compression.
        format: &'static str,
        /// The cargo feature that has the decoder.
        feature: &'static str,
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
    /// What is packed is no valid data of its compression, or is not as large as it claims.
    #[error("its {format} data is corrupt")]
    Corrupt {
        /// Compression.
        format: &'static str,
        /// What the decoder says.
        source: io::Error,
    },
}

type Input<'a> = BufReader<ImageReader<'a>>;
/// Gives what the input unpacks to, or a little more than the limit if it is more than that.
type Decoder = fn(input: Input, size: Size) -> io::Result<Vec<u8>>;

/// What is known of the unpacked size.
#[derive(Clone, Copy)]
enum Size {
    /// The image says so.
    Claimed(u64),
    /// Nothing but what is too much.
    AtMost(u64),
}

impl Size {
    fn limit(self) -> u64 {
        match self {
            Self::Claimed(size) | Self::AtMost(size) => size,
        }
    }

    /// Room for what is claimed. What is not known grows as it comes.
    fn buffer(self) -> Vec<u8> {
        Vec::with_capacity(match self {
            Self::Claimed(claimed) => claimed as usize,
            Self::AtMost(_) => 0,
        })
    }

    /// What is wrong with an output beyond the limit.
    fn exceeded(self) -> io::Error {
        match self {
            Self::Claimed(_) => invalid("larger than it claims"),
            Self::AtMost(limit) => {
                io::Error::new(io::ErrorKind::InvalidData, format!("it unpacks to more than {limit} bytes"))
            }
        }
    }
}

/// A compression.
struct Format {
    name: &'static str,
    feature: &'static str,
    /// The bytes that it starts with.
    magic: &'static [u8],
    /// `None` if this build leaves it out.
    decode: Option<Decoder>,
}

impl Format {
    const fn new(
        name: &'static str,
        feature: &'static str,
        magic: &'static [u8],
        decode: Option<Decoder>,
    ) -> Self {
        Self { name, feature, magic, decode }
    }

    fn of(head: &[u8]) -> Option<&'static Self> {
        FORMATS.iter().find(|format| head.starts_with(format.magic))
    }

    fn decoder(&self) -> Result<Decoder, UnpackError> {
        self.decode.ok_or(UnpackError::NotBuilt { format: self.name, feature: self.feature })
    }
}

/// A decoder, if its feature is on.
macro_rules! decoder {
    ($feature:literal, $decode:ident) => {{
        #[cfg(feature = $feature)]
        let decoder: Option<Decoder> = Some($decode);
        #[cfg(not(feature = $feature))]
        let decoder: Option<Decoder> = None;
        decoder
    }};
}

const FORMATS: &[Format] = &[
    Format::new("LZ4", "lz4", &[0x02, 0x21, 0x4c, 0x18], decoder!("lz4", lz4)),
    Format::new("LZ4", "lz4", &[0x04, 0x22, 0x4d, 0x18], decoder!("lz4", lz4_frame)),
    Format::new("XZ", "xz", &[0xfd, b'7', b'z', b'X', b'Z', 0], decoder!("xz", xz)),
    Format::new("gzip", "gzip", &[0x1f, 0x8b], decoder!("gzip", gzip)),
    Format::new("zstd", "zstd", &[0x28, 0xb5, 0x2f, 0xfd], decoder!("zstd", zstd)),
];

pub(crate) const TRAILER: u64 = 4;
const BUFFER: usize = 256 << 10;

/// Returns true if a file that starts with `head` is packed in a known way.
pub(crate) fn is_packed(head: &[u8]) -> bool {
    Format::of(head).is_some()
}

/// Unpacks a file of `len` bytes that starts with `head`; [`is_packed`] holds.
pub(crate) fn file(source: &ImageSource, len: u64, head: &[u8]) -> Result<Vec<u8>, UnpackError> {
    file_up_to(MAX_UNPACKED, source, len, head)
}

fn file_up_to(limit: u64, source: &ImageSource, len: u64, head: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let format = Format::of(head).ok_or(UnpackError::TooShort { len })?;
    let input = BufReader::with_capacity(BUFFER, source.reader(0, len));
    let size = Size::AtMost(limit);
    format.decoder()?(input, size)
        .and_then(|out| if out.len() as u64 <= limit { Ok(out) } else { Err(size.exceeded()) })
        .map_err(|source| UnpackError::Corrupt { format: format.name, source })
}

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
    let Some(format) = Format::of(&magic) else {
        let [a, b, c, d, ..] = magic;
        return Err(UnpackError::UnknownFormat { magic: [a, b, c, d] });
    };
    let claimed = u64::from(u32::from_le_bytes(trailer));
    if claimed > MAX_UNPACKED {
        return Err(UnpackError::TooLarge { claimed });
    }
    // gzip's trailer is part of its format; the others' was appended.
    let len = if format.name == "gzip" { len } else { len - TRAILER };
    let input = BufReader::with_capacity(BUFFER, source.reader(range.start, len));
    format.decoder()?(input, Size::Claimed(claimed))
        .and_then(|out| if out.len() as u64 == claimed { Ok(out) } else { Err(invalid("wrong size")) })
        .map_err(|source| UnpackError::Corrupt { format: format.name, source })
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

#[cfg(any(feature = "gzip", feature = "xz", feature = "lz4"))]
fn read(decoder: impl io::Read, size: Size) -> io::Result<Vec<u8>> {
    use io::Read;
    let mut out = size.buffer();
    decoder.take(size.limit() + 1).read_to_end(&mut out)?;
    Ok(out)
}

#[cfg(feature = "gzip")]
fn gzip(input: Input, size: Size) -> io::Result<Vec<u8>> {
    read(flate2::bufread::MultiGzDecoder::new(input), size)
}

#[cfg(feature = "xz")]
fn xz(input: Input, size: Size) -> io::Result<Vec<u8>> {
    // A dictionary larger than this is never of use for an output of at most this size. In KiB.
    const MEMORY: u32 = (MAX_UNPACKED >> 10) as u32;
    read(lzma_rust2::XzReader::new_mem_limit(input, true, MEMORY), size)
}

/// A reader of what says itself where it ends: the end of the input is an error.
#[cfg(feature = "lz4")]
struct BeforeEnd<R>(R);

#[cfg(feature = "lz4")]
impl<R: io::Read> io::Read for BeforeEnd<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buf)? {
            0 if !buf.is_empty() => Err(invalid("it ends too early")),
            read => Ok(read),
        }
    }
}

/// The LZ4 frame that `lz4` writes unless told otherwise.
#[cfg(feature = "lz4")]
fn lz4_frame(input: Input, size: Size) -> io::Result<Vec<u8>> {
    use std::io::BufRead;
    // The decoder takes an end of the input where a block would begin for the end of the frame.
    let mut decoder = lz4_flex::frame::FrameDecoder::new(BeforeEnd(input));
    let out = read(&mut decoder, size)?;
    if out.len() as u64 <= size.limit() && !decoder.get_mut().0.fill_buf()?.is_empty() {
        return Err(invalid("something follows its end"));
    }
    Ok(out)
}

/// What a block of a legacy LZ4 frame unpacks to, except the last, which may be less.
#[cfg(feature = "lz4")]
const LZ4_BLOCK: usize = 8 << 20;

/// The legacy LZ4 frame: blocks, each behind its compressed size. The last one ends where the input does.
#[cfg(feature = "lz4")]
fn lz4(mut input: Input, size: Size) -> io::Result<Vec<u8>> {
    use std::io::{BufRead, Read};
    input.read_exact(&mut [0; 4])?;
    let mut block = Vec::new();
    let Size::Claimed(claimed) = size else {
        let (mut out, mut chunk) = (Vec::new(), vec![0; LZ4_BLOCK]);
        while out.len() as u64 <= size.limit() && !input.fill_buf()?.is_empty() {
            let written = lz4_block(&mut input, &mut block, &mut chunk)?;
            out.extend_from_slice(chunk.get(..written).unwrap_or_default());
        }
        return Ok(out);
    };
    let mut out = vec![0; claimed as usize];
    let mut rest = out.as_mut_slice();
    while !rest.is_empty() {
        let (chunk, after) = rest.split_at_mut(rest.len().min(LZ4_BLOCK));
        if lz4_block(&mut input, &mut block, chunk)? != chunk.len() {
            return Err(invalid("short block"));
        }
        rest = after;
    }
    if input.fill_buf()?.is_empty() { Ok(out) } else { Err(invalid("larger than it claims")) }
}

/// Unpacks the next block of a legacy LZ4 frame to the start of `chunk` by way of `block`; returns its length.
#[cfg(feature = "lz4")]
fn lz4_block(input: &mut Input, block: &mut Vec<u8>, chunk: &mut [u8]) -> io::Result<usize> {
    use std::io::Read;
    /// What incompressible data grows to: `LZ4_COMPRESSBOUND`.
    const MAX_COMPRESSED: usize = LZ4_BLOCK + LZ4_BLOCK / 255 + 16;
    let mut size = [0; 4];
    input.read_exact(&mut size)?;
    let size = u32::from_le_bytes(size) as usize;
    if size > MAX_COMPRESSED {
        return Err(invalid("block too large"));
    }
    block.clear();
    if input.take(size as u64).read_to_end(block)? != size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    lz4_flex::block::decompress_into(block, chunk).map_err(io::Error::other)
}

#[cfg(feature = "zstd")]
fn zstd(mut input: Input, size: Size) -> io::Result<Vec<u8>> {
    use std::io::BufRead;

    use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
    const STEP: usize = 1 << 20;
    let mut out = size.buffer();
    // The decoder keeps a window of the size that the frame claims, however large: what bounds it is that
    // each turn produces at least a step.
    let mut produced = 0;
    while out.is_empty() || !input.fill_buf()?.is_empty() {
        let mut decoder = FrameDecoder::new();
        decoder.init(&mut input).map_err(io::Error::other)?;
        while !decoder
            .decode_blocks(&mut input, BlockDecodingStrategy::UptoBytes(STEP))
            .map_err(io::Error::other)?
        {
            decoder.collect_to_writer(&mut out)?;
            produced += STEP as u64;
            if produced > size.limit() {
                return Err(size.exceeded());
            }
        }
        decoder.collect_to_writer(&mut out)?;
        if out.len() as u64 > size.limit() {
            break;
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
