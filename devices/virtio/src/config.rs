//! Configuration space as bytes.

/// Copies the bytes at `offset` on into `buf`; beyond the end it reads zeros.
pub(crate) fn read(config: &[u8], offset: u32, buf: &mut [u8]) {
    let from = config.iter().copied().skip(offset as usize).chain(std::iter::repeat(0));
    for (to, from) in buf.iter_mut().zip(from) {
        *to = from;
    }
}
