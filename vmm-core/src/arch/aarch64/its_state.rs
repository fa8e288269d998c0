//! The state of an ITS: its registers. All else of it is in guest memory.

use kvm_bindings::{
    KVM_DEV_ARM_ITS_CTRL_RESET, KVM_DEV_ARM_ITS_RESTORE_TABLES, KVM_DEV_ARM_ITS_SAVE_TABLES,
    KVM_DEV_ARM_VGIC_GRP_ITS_REGS,
};
use ossature_bus::state::{Decoder, Encoder, Field, StateError};

use super::its::Its;
use super::sys::attribute;
use crate::VmError;
use crate::call::call;

/// The registers of its state (GICv3 and GICv4 architecture, IHI 0069, 12.19).
mod register {
    pub(super) const CTLR: u32 = 0x00;
    pub(super) const IIDR: u32 = 0x04;
    pub(super) const CBASER: u32 = 0x80;
    pub(super) const CWRITER: u32 = 0x88;
    pub(super) const CREADR: u32 = 0x90;
    pub(super) const BASER: u32 = 0x100;
}

/// Registers that say where its tables are.
const BASERS: usize = 8;

const CONTROL: Field = Field::new(1, "ITS control");
const IMPLEMENTATION: Field = Field::new(2, "ITS implementation");
const QUEUE: Field = Field::new(3, "ITS command queue");
const WRITTEN: Field = Field::new(4, "ITS commands written");
const READ: Field = Field::new(5, "ITS commands read");
const BASE: Field = Field::new(6, "ITS tables");

/// Bits of the control register: enabled; and read-only, idle.
const ENABLED: u64 = 1;
const IDLE: u64 = 1 << 31;
/// Bit of the command queue and of the tables: there is one.
const VALID: u64 = 1 << 63;
/// Bits of the command queue: pages of 4 KiB less one.
const PAGES: u64 = 0xff;
/// Bytes of a command.
const COMMAND: u64 = 32;
/// Bits of a table that say of what it is: devices, collections.
const KIND_SHIFT: u32 = 56;
const KINDS: [u64; 2] = [1, 4];

/// What an [`Its`] is, beside its tables in guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ItsState {
    control: u64,
    implementation: u64,
    queue: u64,
    written: u64,
    read: u64,
    base: [u64; BASERS],
}

impl Its {
    fn register(&self, register: u32) -> Result<u64, VmError> {
        attribute(&self.0, KVM_DEV_ARM_VGIC_GRP_ITS_REGS, register.into())
            .map_err(call("KVM_GET_DEVICE_ATTR of the ITS"))
    }

    fn set_register(&self, register: u32, value: u64) -> Result<(), VmError> {
        self.set(KVM_DEV_ARM_VGIC_GRP_ITS_REGS, register, Some(value))
    }

    /// Resets it, as power-on does. The vCPUs must be paused.
    pub(super) fn reset(&self) -> Result<(), VmError> {
        self.control(KVM_DEV_ARM_ITS_CTRL_RESET)
    }
}

impl ItsState {
    /// Reads the state. The tables are written to guest memory: what is read or logged of that afterwards has them. The
    /// vCPUs must be paused.
    pub(super) fn read(its: &Its) -> Result<Self, VmError> {
        its.control(KVM_DEV_ARM_ITS_SAVE_TABLES).map_err(|error| match error {
            VmError::Call { source, .. } if source.raw_os_error() == Some(libc::EFAULT) => {
                VmError::NotInMemory { what: "the tables of its ITS" }
            }
            error => error,
        })?;
        let get = |register| its.register(register);
        let mut base = [0; BASERS];
        for (n, base) in (0..).zip(&mut base) {
            *base = get(register::BASER + 8 * n)?;
        }
        Ok(Self {
            control: get(register::CTLR)?,
            implementation: get(register::IIDR)?,
            queue: get(register::CBASER)?,
            written: get(register::CWRITER)?,
            read: get(register::CREADR)?,
            base,
        })
    }

    /// Makes an ITS one of the same revision, by which it lays out its tables. One that this host has not is refused.
    pub(super) fn write_revision(&self, its: &Its) -> Result<(), VmError> {
        its.set_register(register::IIDR, self.implementation).map_err(|_| VmError::MissingFeature {
            feature: format!("an ITS with the GITS_IIDR {:#x}", self.implementation),
        })
    }

    /// Writes the state to an ITS [of its revision](Self::write_revision) that has been [reset](Its::reset), once guest memory and
    /// the redistributors are what they were. The vCPUs must be paused.
    pub(super) fn write(&self, its: &Its) -> Result<(), VmError> {
        // What a queue that was never set reads as is not what it reads as once that was written.
        if its.register(register::CBASER)? != self.queue {
            // Forgets where it has read and written.
            its.set_register(register::CBASER, self.queue)?;
        }
        its.set_register(register::CREADR, self.read)?;
        its.set_register(register::CWRITER, self.written)?;
        for (n, base) in (0..).zip(self.base) {
            its.set_register(register::BASER + 8 * n, base)?;
        }
        its.control(KVM_DEV_ARM_ITS_RESTORE_TABLES)?;
        // Enables it.
        its.set_register(register::CTLR, self.control)
    }

    /// Writes its fields, which are numbered for a nested value of their own.
    pub(super) fn encode(&self, fields: &mut Encoder) {
        fields
            .u64(CONTROL, self.control)
            .u64(IMPLEMENTATION, self.implementation)
            .u64(QUEUE, self.queue)
            .u64(WRITTEN, self.written)
            .u64(READ, self.read);
        let base: Vec<u8> = self.base.iter().flat_map(|base| base.to_le_bytes()).collect();
        fields.bytes(BASE, &base);
    }

    /// Reads what [`encode`](Self::encode) wrote. Refuses what no guest can have led to.
    pub(super) fn decode(fields: &mut Decoder<'_>) -> Result<Self, StateError> {
        let (control, implementation) = (fields.u64(CONTROL)?, fields.u64(IMPLEMENTATION)?);
        let (queue, written, read) = (fields.u64(QUEUE)?, fields.u64(WRITTEN)?, fields.u64(READ)?);
        let bytes: [u8; BASERS * 8] = fields.array(BASE)?;
        let mut base = [0; BASERS];
        for (base, bytes) in base.iter_mut().zip(bytes.chunks_exact(8)) {
            *base = bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        }
        let state = Self { control, implementation, queue, written, read, base };
        state.check()?;
        Ok(state)
    }

    fn check(&self) -> Result<(), StateError> {
        let value = |field, value| Err(StateError::Value { field, value });
        if self.control & !(ENABLED | IDLE) != 0 {
            return value("ITS control", self.control);
        }
        if u32::try_from(self.implementation).is_err() {
            return value("ITS implementation", self.implementation);
        }
        let queue_len = ((self.queue & PAGES) + 1) << 12;
        let fits = |at: u64| at < queue_len && at.is_multiple_of(COMMAND);
        for (field, at) in [("ITS commands written", self.written), ("ITS commands read", self.read)] {
            if !fits(at) {
                return value(field, at);
            }
        }
        let has = |kind| self.base.iter().any(|base| base & VALID != 0 && base >> KIND_SHIFT & 7 == kind);
        if self.control & ENABLED != 0 && (self.queue & VALID == 0 || !KINDS.into_iter().all(has)) {
            let reason = "it is enabled without a command queue, a table of devices or one of collections";
            return Err(StateError::Inconsistent { field: "ITS control", reason });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
