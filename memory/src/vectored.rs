//! Files and sockets straight from and to guest RAM, without a copy in between.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

use libc::{c_int, iovec, off_t, ssize_t};
use vm_memory::GuestMemoryBackend;
use vm_memory::bitmap::Bitmap;

use crate::{Dma, DmaError, Segments};

/// Why I/O between a descriptor and guest memory failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DmaIoError {
    /// The guest's mistake: a segment is not RAM. Nothing was transferred.
    #[error(transparent)]
    Dma(#[from] DmaError),
    /// The host's kernel failed. Of what it had been asked to read, any part may have been written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The kernel's limit on the pieces of one transfer (`IOV_MAX`).
const MANY: usize = 1024;
/// Enough pieces for most transfers: a quarter of a KiB of stack instead of sixteen.
const FEW: usize = 16;

/// Pieces of guest memory as the kernel takes them, on the stack.
struct IoVecs<const N: usize> {
    array: [MaybeUninit<iovec>; N],
    len: usize,
}

impl<const N: usize> IoVecs<N> {
    /// The first pieces of `segments`, as many as there is room for.
    #[inline]
    fn new(dma: &Dma, segments: Segments<'_>) -> Result<Self, DmaError> {
        let mut vecs = Self { array: [const { MaybeUninit::uninit() }; N], len: 0 };
        for segment in segments.iter() {
            for slice in dma.memory().get_slices(segment.addr, segment.len as usize) {
                let not_ram = DmaError::NotRam { addr: segment.addr.0, len: segment.len.into() };
                let slice = slice.map_err(|_| not_ram)?;
                if let Some(room) = vecs.array.get_mut(vecs.len) {
                    let iov_base = slice.ptr_guard_mut().as_ptr().cast();
                    room.write(iovec { iov_base, iov_len: slice.len() });
                    vecs.len += 1;
                }
            }
        }
        Ok(vecs)
    }

    fn as_ptr(&self) -> *const iovec {
        self.array.as_ptr().cast()
    }
}

impl Dma {
    /// Reads from `fd` at `offset` bytes into `segments` with one preadv(2), which does not move the file's
    /// position. Returns what the call returned: fewer bytes than asked for is no error, and the caller goes on
    /// with [`Segments::skip`]. An interrupted call is made again. No more than 1024 pieces are transferred at
    /// once.
    pub fn preadv<'a>(
        &self,
        fd: impl AsFd,
        segments: impl Into<Segments<'a>>,
        offset: u64,
    ) -> Result<usize, DmaIoError> {
        let (fd, offset) = (fd.as_fd().as_raw_fd(), file_offset(offset)?);
        // SAFETY: fill passes pieces of guest memory, which may be written at any time.
        self.fill(segments.into(), |vecs, len| unsafe { libc::preadv(fd, vecs, len, offset) })
    }

    /// Writes `segments` to `fd` at `offset` bytes with one pwritev(2). Returns as [`preadv`](Self::preadv).
    pub fn pwritev<'a>(
        &self,
        fd: impl AsFd,
        segments: impl Into<Segments<'a>>,
        offset: u64,
    ) -> Result<usize, DmaIoError> {
        let (fd, offset) = (fd.as_fd().as_raw_fd(), file_offset(offset)?);
        // SAFETY: transfer passes pieces of guest memory, which may be read at any time.
        self.transfer(segments.into(), |vecs, len| unsafe { libc::pwritev(fd, vecs, len, offset) })
    }

    /// Reads from `fd`, a stream or a packet device, into `segments` with one readv(2). Returns as
    /// [`preadv`](Self::preadv).
    pub fn readv<'a>(&self, fd: impl AsFd, segments: impl Into<Segments<'a>>) -> Result<usize, DmaIoError> {
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: as for preadv.
        self.fill(segments.into(), |vecs, len| unsafe { libc::readv(fd, vecs, len) })
    }

    /// Writes `segments` to `fd`, a stream or a packet device, with one writev(2). Returns as
    /// [`preadv`](Self::preadv).
    pub fn writev<'a>(&self, fd: impl AsFd, segments: impl Into<Segments<'a>>) -> Result<usize, DmaIoError> {
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: as for pwritev.
        self.transfer(segments.into(), |vecs, len| unsafe { libc::writev(fd, vecs, len) })
    }

    /// [`transfer`](Self::transfer) that writes to guest memory.
    fn fill(
        &self,
        segments: Segments<'_>,
        call: impl Fn(*const iovec, c_int) -> ssize_t,
    ) -> Result<usize, DmaIoError> {
        let result = self.transfer(segments, call);
        match &result {
            Ok(read) => self.mark_dirty(segments.take(*read as u64)),
            Err(DmaIoError::Io(_)) => self.mark_dirty(segments),
            Err(DmaIoError::Dma(_)) => {}
        }
        result
    }

    fn transfer(
        &self,
        segments: Segments<'_>,
        call: impl Fn(*const iovec, c_int) -> ssize_t,
    ) -> Result<usize, DmaIoError> {
        // A segment that spans two regions is two pieces.
        if segments.max_pieces() <= FEW / 2 {
            self.transfer_pieces::<FEW>(segments, call)
        } else {
            self.transfer_pieces::<MANY>(segments, call)
        }
    }

    #[inline(never)]
    fn transfer_pieces<const N: usize>(
        &self,
        segments: Segments<'_>,
        call: impl Fn(*const iovec, c_int) -> ssize_t,
    ) -> Result<usize, DmaIoError> {
        let vecs = IoVecs::<N>::new(self, segments)?;
        if vecs.len == 0 {
            return Ok(0);
        }
        loop {
            if let Ok(done) = usize::try_from(call(vecs.as_ptr(), vecs.len as c_int)) {
                return Ok(done);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error.into());
            }
        }
    }

    fn mark_dirty(&self, segments: Segments<'_>) {
        for segment in segments.iter() {
            for slice in self.memory().get_slices(segment.addr, segment.len as usize).flatten() {
                slice.bitmap().mark_dirty(0, slice.len());
            }
        }
    }
}

fn file_offset(offset: u64) -> io::Result<off_t> {
    off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

#[cfg(test)]
mod tests;
