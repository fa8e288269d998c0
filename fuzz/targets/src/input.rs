//! What a target reads its input with.

/// The bytes that a fuzzer has made, taken from the front. After the last one there are zeros, so that each prefix of an
/// input is an input.
#[derive(Clone, Debug)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// All of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Returns true if there is nothing left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.0
    }

    /// Up to `len` bytes.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.bytes(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// A number of 16 bits.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// A number of 32 bits.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// A number of 64 bits.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        let value: u64 = if end <= 256 { self.u8().into() } else { self.u32().into() };
        value % end
    }

    /// A bit.
    pub fn flag(&mut self) -> bool {
        self.u8() & 1 != 0
    }

    /// A number of 64 bits that is likely to matter to somebody: small, close to the ends of 16, 32 and 64 bits, or any.
    pub fn number(&mut self) -> u64 {
        match self.u8() {
            small @ 0..=0x7f => small.into(),
            bit @ 0x80..=0xbf => 1 << (bit & 0x3f),
            bit @ 0xc0..=0xfd => (1 << (bit & 0x3f)) - 1,
            0xfe => u64::MAX,
            _ => self.u64(),
        }
    }
}
