//! What is connected to a virtual machine, as values: dropping one disconnects it.

use std::fmt;
use std::sync::Arc;

use ossature_bus::MsiMessage;

use crate::VmError;

/// What takes a connection back.
struct Undo(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(undo) = self.0.take() {
            undo();
        }
    }
}

macro_rules! guard {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[must_use = "dropping it disconnects it"]
        pub struct $name {
            _undo: Undo,
        }

        impl $name {
            /// Calls `undo` when it is dropped, which must do nothing where the virtual machine is gone.
            pub(crate) fn new(undo: impl FnOnce() + Send + Sync + 'static) -> Self {
                Self { _undo: Undo(Some(Box::new(undo))) }
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    };
}

guard! {
    /// An event that raises an interrupt line (`KVM_IRQFD`).
    Irqfd
}

guard! {
    /// A guest's write that signals an event (`KVM_IOEVENTFD`).
    Ioeventfd
}

guard! {
    /// A range of guest-physical memory that the guest reaches without an exit (`KVM_SET_USER_MEMORY_REGION`).
    MemorySlot
}

/// What a back end does for a [`MsiRoute`].
pub(crate) trait Route: Send + Sync {
    fn set(&self, message: MsiMessage) -> Result<(), VmError>;
}

/// An interrupt line of its own that sends a message (`KVM_SET_GSI_ROUTING`).
#[must_use = "dropping it takes the route out of the table"]
pub struct MsiRoute {
    gsi: u32,
    route: Arc<dyn Route>,
}

impl MsiRoute {
    /// `route` takes itself out of the table when it is dropped.
    pub(crate) fn new(gsi: u32, route: Arc<dyn Route>) -> Self {
        Self { gsi, route }
    }

    /// The line, for [`Vm::irqfd`](crate::Vm::irqfd).
    pub fn gsi(&self) -> u32 {
        self.gsi
    }

    /// Changes what it sends.
    pub fn set(&self, message: MsiMessage) -> Result<(), VmError> {
        self.route.set(message)
    }
}

impl fmt::Debug for MsiRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MsiRoute({})", self.gsi)
    }
}
