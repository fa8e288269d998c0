//! Descriptors that the program was started with.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// The descriptor with this number, which whoever started the program left open for it: a copy, which goes when it is
/// dropped, and not to programs that this one starts. Fails if there is none.
///
/// ```
/// use ossature_core::program::inherited_descriptor;
///
/// assert!(inherited_descriptor(0).is_ok());
/// assert!(inherited_descriptor(1_000_000).is_err());
/// ```
pub fn inherited_descriptor(number: u32) -> io::Result<OwnedFd> {
    let number = i32::try_from(number).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
    // Above the standard streams, one of which may be closed.
    let least: libc::c_int = 3;
    // SAFETY: F_DUPFD_CLOEXEC takes its argument by value, and fails for a number that is no descriptor.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, least) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, so nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}
