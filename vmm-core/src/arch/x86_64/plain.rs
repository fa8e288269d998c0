//! Kernel structures as bytes.

use std::any::type_name;

use kvm_bindings::nested::KvmNestedStateBuffer;
use kvm_bindings::{
    kvm_clock_data, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_pit_state2, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs,
};
use ossature_bus::state::{Decoder, Field, StateError};

/// A structure of the kernel's interface that is nothing but bytes.
///
/// # Safety
///
/// The type has no padding, and each bit pattern is a value of it.
pub(super) unsafe trait Plain: Copy {
    /// Its bytes.
    fn to_bytes(&self) -> &[u8] {
        // SAFETY: there is no padding, so all bytes are initialized, and they live as long as `self`.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    /// The structure that has these bytes; `None` if they are of another number.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        // SAFETY: there are as many bytes as the structure has, and each bit pattern is a value.
        (bytes.len() == size_of::<Self>()).then(|| unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }

    /// Reads the structure from a state's field.
    fn decode(fields: &mut Decoder<'_>, field: Field) -> Result<Self, StateError> {
        let bytes = fields.bytes(field, size_of::<Self>())?;
        Self::from_bytes(bytes).ok_or(StateError::Truncated { field: type_name::<Self>() })
    }
}

macro_rules! plain {
    ($($name:ty),* $(,)?) => {
        $(
            // SAFETY: integers and explicit padding only, as the kernel's header has it.
            unsafe impl Plain for $name {}
        )*
    };
}

plain!(
    KvmNestedStateBuffer,
    kvm_clock_data,
    kvm_debugregs,
    kvm_irqchip,
    kvm_lapic_state,
    kvm_pit_state2,
    kvm_regs,
    kvm_sregs,
    kvm_vcpu_events,
    kvm_xcrs,
);
