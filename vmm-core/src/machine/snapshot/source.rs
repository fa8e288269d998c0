//! Where a snapshot's bytes come from if they come when they are needed.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// The bytes of a snapshot, wherever they are: [`Snapshot::from_source`](super::Snapshot::from_source) reads the state
/// from it, and guest memory when the guest touches it, in pieces of at most 2 MiB.
///
/// It is called by one thread at a time. While a vCPU or a device waits for its memory, the machine cannot stop: a source
/// that asks a peer has to have a time limit, as [`RemoteSnapshot`](super::RemoteSnapshot) does. An error, and a panic,
/// end the machine.
///
/// ```
/// use std::io;
/// use ossature_core::machine::SnapshotSource;
///
/// /// A snapshot that somebody has downloaded into memory.
/// struct Downloaded(Vec<u8>);
///
/// impl SnapshotSource for Downloaded {
///     fn size(&mut self) -> io::Result<u64> {
///         Ok(self.0.len() as u64)
///     }
///
///     fn fetch(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
///         let from = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..)?.get(..bytes.len()));
///         bytes.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
///         Ok(())
///     }
/// }
/// ```
pub trait SnapshotSource: Send {
    /// Bytes of the snapshot.
    fn size(&mut self) -> io::Result<u64>;

    /// Reads all of `bytes`, which are at `offset` of the snapshot.
    fn fetch(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
}

impl SnapshotSource for &File {
    fn size(&mut self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn fetch(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }
}

impl SnapshotSource for File {
    fn size(&mut self) -> io::Result<u64> {
        (&mut &*self).size()
    }

    fn fetch(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        (&mut &*self).fetch(offset, bytes)
    }
}

impl SnapshotSource for Arc<File> {
    fn size(&mut self) -> io::Result<u64> {
        (&mut &**self).size()
    }

    fn fetch(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        (&mut &**self).fetch(offset, bytes)
    }
}

impl<T: SnapshotSource + ?Sized> SnapshotSource for Box<T> {
    fn size(&mut self) -> io::Result<u64> {
        (**self).size()
    }

    fn fetch(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        (**self).fetch(offset, bytes)
    }
}
