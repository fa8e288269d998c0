//! The pages of a guest's RAM that were written by vCPUs or by this process.

use std::fmt::Debug;

use ossature_memory::{DirtyLog, DirtyPages};

use crate::VmError;

/// What a hypervisor knows of the pages that its vCPUs wrote. It logs until this is dropped.
pub(crate) trait DirtySource: Debug + Send {
    /// Adds the pages that were written since the last call.
    fn merge_into(&mut self, log: &mut DirtyLog) -> Result<(), VmError>;
}

/// A log of the pages of a guest's RAM that vCPUs, or devices of this process, have written. See
/// [`Vm::dirty_log`](crate::Vm::dirty_log). Dropping it ends the log.
#[derive(Debug)]
pub struct GuestDirtyLog {
    log: DirtyLog,
    vcpus: Option<Box<dyn DirtySource>>,
}

impl GuestDirtyLog {
    /// Without `vcpus`, those write through this process.
    pub(crate) fn new(log: DirtyLog, vcpus: Option<Box<dyn DirtySource>>) -> Self {
        Self { log, vcpus }
    }

    /// Takes the dirty pages and makes them clean. Each write is in some take, and a page's bytes can be read after the
    /// take that it is in. What a vCPU has written that runs may be in the next one: to have everything, pause the
    /// machine. Pages that KVM has only made writable may be among them.
    pub fn take(&mut self) -> Result<DirtyPages, VmError> {
        if let Some(vcpus) = &mut self.vcpus {
            vcpus.merge_into(&mut self.log)?;
        }
        Ok(self.log.take())
    }

    /// Makes the pages clean that this process has written since the last take.
    pub(crate) fn forget_own(&mut self) {
        self.log.take();
    }
}
