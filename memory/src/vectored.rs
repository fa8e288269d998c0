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

/// Pieces of guest memory as the kernel takes them, in an array on the stack: one of [`MANY`] takes longer to move than to
/// fill, so it stays where it is.
struct IoVecs<'a> {
    array: &'a mut [MaybeUninit<iovec>],
    len: usize,
}

impl IoVecs<'_> {
    /// Adds a piece if there is one, and room for it: once there is none, nothing further is added.
    #[inline]
    fn extend(&mut self, piece: Option<iovec>) {
        if let Some((piece, room)) = piece.zip(self.array.get_mut(self.len)) {
            room.write(piece);
            self.len += 1;
        }
    }
}

/// Pieces of the host's own memory before and after those of the guest.
#[derive(Clone, Copy, Default)]
struct Ends {
    head: Option<iovec>,
    tail: Option<iovec>,
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
        self.fill(Ends::default(), segments.into(), |vecs, len| unsafe {
            libc::preadv(fd, vecs, len, offset)
        })
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
        self.transfer(Ends::default(), segments.into(), |vecs, len| unsafe {
            libc::pwritev(fd, vecs, len, offset)
        })
    }

    /// Reads from `fd`, a stream or a packet device, into `segments` with one readv(2). Returns as
    /// [`preadv`](Self::preadv).
    pub fn readv<'a>(&self, fd: impl AsFd, segments: impl Into<Segments<'a>>) -> Result<usize, DmaIoError> {
        self.readv_spilling(fd, segments, &mut [])
    }

    /// [`readv`](Self::readv) that goes on into `spill` once the segments are full. The result counts both: with
    /// a descriptor that cuts packets, one byte of `spill` tells a packet that was cut from one that fits.
    pub fn readv_spilling<'a>(
        &self,
        fd: impl AsFd,
        segments: impl Into<Segments<'a>>,
        spill: &mut [u8],
    ) -> Result<usize, DmaIoError> {
        let fd = fd.as_fd().as_raw_fd();
        let tail = iovec { iov_base: spill.as_mut_ptr().cast(), iov_len: spill.len() };
        let ends = Ends { head: None, tail: (!spill.is_empty()).then_some(tail) };
        // SAFETY: as for preadv; the last piece is `spill`, which is ours alone during the call.
        self.fill(ends, segments.into(), |vecs, len| unsafe { libc::readv(fd, vecs, len) })
    }

    /// Writes `segments` to `fd`, a stream or a packet device, with one writev(2). Returns as
    /// [`preadv`](Self::preadv).
    pub fn writev<'a>(&self, fd: impl AsFd, segments: impl Into<Segments<'a>>) -> Result<usize, DmaIoError> {
        self.writev_headed(fd, &[], segments)
    }

    /// [`writev`](Self::writev) of `head`, a copy that the guest cannot change any more, and then the segments,
    /// as one packet. The result counts both.
    pub fn writev_headed<'a>(
        &self,
        fd: impl AsFd,
        head: &[u8],
        segments: impl Into<Segments<'a>>,
    ) -> Result<usize, DmaIoError> {
        let fd = fd.as_fd().as_raw_fd();
        let first = iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() };
        let ends = Ends { head: (!head.is_empty()).then_some(first), tail: None };
        // SAFETY: as for pwritev; the first piece is `head`, which writev only reads.
        self.transfer(ends, segments.into(), |vecs, len| unsafe { libc::writev(fd, vecs, len) })
    }

    /// Sends `segments` to the socket `fd` with one sendmsg(2) that neither waits nor raises SIGPIPE. Returns as
    /// [`preadv`](Self::preadv): a stream takes a part, a socket of messages all or nothing.
    pub fn send<'a>(&self, fd: impl AsFd, segments: impl Into<Segments<'a>>) -> Result<usize, DmaIoError> {
        let fd = fd.as_fd().as_raw_fd();
        // SAFETY: transfer passes pieces of guest memory, which may be read at any time; all else in the message is
        // empty, for which zeros stand.
        self.transfer(Ends::default(), segments.into(), |vecs, len| unsafe {
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = vecs.cast_mut();
            message.msg_iovlen = len as _;
            libc::sendmsg(fd, &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
        })
    }

    /// [`transfer`](Self::transfer) that writes to guest memory.
    fn fill(
        &self,
        ends: Ends,
        segments: Segments<'_>,
        call: impl Fn(*const iovec, c_int) -> ssize_t,
    ) -> Result<usize, DmaIoError> {
        let result = self.transfer(ends, segments, call);
        match &result {
            Ok(read) => self.mark_dirty(segments.take(*read as u64)),
            Err(DmaIoError::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(DmaIoError::Io(_)) => self.mark_dirty(segments),
            Err(DmaIoError::Dma(_)) => {}
        }
        result
    }

    fn transfer(
        &self,
        ends: Ends,
        segments: Segments<'_>,
        call: impl Fn(*const iovec, c_int) -> ssize_t,
    ) -> Result<usize, DmaIoError> {
        // A segment that spans two regions is two pieces, and there may be one of the host's.
        if segments.max_pieces() < FEW / 2 {
            self.transfer_pieces::<FEW>(ends, segments, call)
        } else {
            self.transfer_pieces::<MANY>(ends, segments, call)
        }
    }

    #[inline(never)]
    fn transfer_pieces<const N: usize>(
        &self,
        ends: Ends,
        segments: Segments<'_>,
        call: impl Fn(*const iovec, c_int) -> ssize_t,
    ) -> Result<usize, DmaIoError> {
        let mut array = [const { MaybeUninit::uninit() }; N];
        let mut vecs = IoVecs { array: &mut array, len: 0 };
        vecs.extend(ends.head);
        self.pieces(segments, |piece| vecs.extend(Some(piece)))?;
        vecs.extend(ends.tail);
        let len = vecs.len;
        if len == 0 {
            return Ok(0);
        }
        loop {
            if let Ok(done) = usize::try_from(call(array.as_ptr().cast(), len as c_int)) {
                return Ok(done);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error.into());
            }
        }
    }

    /// Hands each piece of `segments` to `take`, in order. Fails at the first that is not RAM.
    #[inline]
    pub(crate) fn pieces(&self, segments: Segments<'_>, mut take: impl FnMut(iovec)) -> Result<(), DmaError> {
        for segment in segments.iter() {
            let len = segment.len as usize;
            if let Some(piece) = self.in_region(segment.addr, |region, at| region.iovec(at, len)) {
                take(piece);
                continue;
            }
            for slice in self.memory().get_slices(segment.addr, len) {
                let not_ram = DmaError::NotRam { addr: segment.addr.0, len: segment.len.into() };
                let slice = slice.map_err(|_| not_ram)?;
                let iov_base = slice.ptr_guard_mut().as_ptr().cast();
                take(iovec { iov_base, iov_len: slice.len() });
            }
        }
        Ok(())
    }

    pub(crate) fn mark_dirty(&self, segments: Segments<'_>) {
        if !self.is_tracked() {
            return;
        }
        for segment in segments.iter() {
            let len = segment.len as usize;
            if self.in_region(segment.addr, |region, at| region.mark_dirty(at, len)).is_some() {
                continue;
            }
            for slice in self.memory().get_slices(segment.addr, len).flatten() {
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
