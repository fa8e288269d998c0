//! How the outcomes of ioctls become ours.

use vmm_sys_util::errno;

use crate::VmError;

/// Turns a failed ioctl into an error that names it.
pub(crate) fn call(call: &'static str) -> impl FnOnce(errno::Error) -> VmError {
    move |e| VmError::Call { call, source: e.into() }
}

/// Does an ioctl again that a signal interrupted before it had any effect.
pub(crate) fn retry<T>(mut ioctl: impl FnMut() -> errno::Result<T>) -> errno::Result<T> {
    loop {
        match ioctl() {
            Err(e) if e.errno() == libc::EINTR => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests;
