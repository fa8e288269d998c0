//! KVM's own log of dirty pages: a bitmap for each slot, or a ring for each vCPU.

use std::sync::Arc;

use ossature_memory::{DirtyLog, DirtyLogError};

use super::shared::VmShared;
use crate::VmError;
use crate::dirty_log::DirtySource;

/// Until this is dropped, KVM logs.
#[derive(Debug)]
pub(super) struct KvmDirtyLog(Arc<VmShared>);

impl KvmDirtyLog {
    pub(super) fn start(vm: &Arc<VmShared>) -> Result<Self, VmError> {
        // Whatever an earlier log has left.
        vm.harvest_rings(None)?;
        vm.rings().take();
        let log = Self(Arc::clone(vm));
        vm.slots().log_dirty(&vm.fd, true)?;
        Ok(log)
    }
}

impl DirtySource for KvmDirtyLog {
    fn merge_into(&mut self, log: &mut DirtyLog) -> Result<(), VmError> {
        let vm = &self.0;
        // A slot that is removed meanwhile is forgotten.
        let merge = |result: Result<(), DirtyLogError>| match result {
            Ok(()) | Err(DirtyLogError::NotRam { .. }) => Ok(()),
            Err(source) => Err(VmError::DirtyLog { source }),
        };
        if vm.config.dirty_ring.is_some() {
            vm.harvest_rings(None)?;
            let pages = vm.rings().take();
            return pages.into_iter().try_for_each(|(start, words)| merge(log.merge_bitmap(start, &words)));
        }
        let mut result = Ok(());
        vm.slots().take_bitmaps(&vm.fd, &mut |start, words| {
            let merged = merge(log.merge_bitmap(start, words));
            result = std::mem::replace(&mut result, Ok(())).and(merged);
        })?;
        result
    }
}

impl Drop for KvmDirtyLog {
    fn drop(&mut self) {
        // A kernel that goes on to log does no harm.
        let _ = self.0.slots().log_dirty(&self.0.fd, false);
    }
}
