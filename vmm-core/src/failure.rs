//! What a program's `main` returns when something failed.

use std::error::Error;
use std::fmt;

use crate::error_chain;

/// Any error, for the `main` of a program: it is shown as text for its user, with the errors behind it, and not as the
/// `Debug` form of a type. The exit code is 1.
///
/// ```no_run
/// use ossature_core::{Failure, Kvm};
///
/// fn main() -> Result<(), Failure> {
///     // Error: /dev/kvm: permission denied: it belongs to group `kvm`; add the user with ...
///     let kvm = Kvm::open()?;
///     # drop(kvm);
///     Ok(())
/// }
/// ```
pub struct Failure(Box<dyn Error>);

impl<E: Into<Box<dyn Error>>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&error_chain(&*self.0))
    }
}

/// The same as `Display`: it is what the standard library prints of an error that `main` returns.
impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::VmError;

    #[test]
    fn c4_main_shows_the_text_with_its_causes() {
        let fails = || -> Result<(), Failure> {
            Err(VmError::Call { call: "KVM_CREATE_VM", source: io::Error::from_raw_os_error(24) })?
        };
        let failure = fails().unwrap_err();
        assert_eq!(format!("{failure:?}"), "KVM_CREATE_VM failed: Too many open files (os error 24)");
        let text = Failure::from(format!("{} is wrong", "it"));
        assert_eq!(format!("{text:?}"), "it is wrong");
    }
}
