//! linux-loader, and its adapters: its loaders as what our machines run, ours as a loader of its kind, and its command
//! lines.
//!
//! | there | here | by |
//! |---|---|---|
//! | [`KernelLoader`](loader::KernelLoader) | [`Payload`](ossature_core::machine::Payload) | `FromKernelLoader` |
//! | [`KernelLoader`](loader::KernelLoader) | [`Kernel`](ossature_boot::x86_64::Kernel) | `ToKernelLoader` |
//! | [`Cmdline`](cmdline::Cmdline) | `String` | [`cmdline_of`] |
//!
//! Its loaders for ELF kernels and bzImages exist on x86 only, and so do the first two.
//!
//! # A kernel that their loader puts into our machine
//!
//! ```no_run
//! use std::fs::File;
//!
//! use ossature_core::Kvm;
//! use ossature_core::machine::Machine;
//! use ossature_rust_vmm::linux_loader::cmdline::Cmdline;
//! use ossature_rust_vmm::linux_loader::{FromKernelLoader, loader};
//!
//! # #[cfg(target_arch = "x86_64")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut cmdline = Cmdline::new(2048)?;
//! cmdline.insert("console", "ttyS0")?;
//! let kernel = FromKernelLoader::<loader::Elf>::new(File::open("vmlinux")?)
//!     .initrd(File::open("initrd")?)
//!     .cmdline(cmdline);
//! let machine = Machine::builder("guest").payload(kernel).build(&Kvm::open()?)?;
//! # Ok(())
//! # }
//! # #[cfg(not(target_arch = "x86_64"))]
//! # fn main() {}
//! ```

#[cfg(target_arch = "x86_64")]
mod payload;
#[cfg(target_arch = "x86_64")]
mod reader;
#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests;
#[cfg(target_arch = "x86_64")]
mod to_loader;

pub use ::linux_loader::*;

#[cfg(target_arch = "x86_64")]
pub use payload::{FromKernelLoader, FromKernelLoaderError};
#[cfg(target_arch = "x86_64")]
pub use to_loader::ToKernelLoader;

/// A command line as our payloads take it.
///
/// ```
/// use ossature_core::machine::Linux;
/// use ossature_rust_vmm::linux_loader::{cmdline::Cmdline, cmdline_of};
///
/// let mut cmdline = Cmdline::new(2048)?;
/// cmdline.insert("console", "ttyS0")?;
/// cmdline.insert_str("quiet")?;
/// assert_eq!(cmdline_of(&cmdline)?, "console=ttyS0 quiet");
/// let kernel = Linux::new("vmlinux").cmdline(cmdline_of(&cmdline)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn cmdline_of(cmdline: &cmdline::Cmdline) -> Result<String, cmdline::Error> {
    // It has ASCII only.
    cmdline.as_cstring()?.into_string().map_err(|_| cmdline::Error::InvalidAscii)
}
