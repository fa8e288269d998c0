//! All that a vCPU consists of, read from KVM and written back.

use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED, KVM_MP_STATE_SUSPENDED, kvm_mp_state, kvm_vcpu_events,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};

use super::features::Features;
use super::one_reg::{self, COUNTERS, MPIDR, RegisterFile, RegisterId, SVE_LENGTHS};
use super::registers::KvmRegisters;
use super::setup::{HostFacts, MadeWith, init_vcpu, vcpu_init};
use super::{spaces, sys};
use crate::call::{call, retry};
use crate::{VmConfig, VmError};

const KIND: &str = "org.ossature.vcpu.aarch64";
const VERSION: u16 = 1;
const FEATURES: Field = Field::new(1, "features");
const REGISTERS: Field = Field::new(2, "registers");
const MP_STATE: Field = Field::new(3, "multiprocessing state");
const SERROR: Field = Field::new(4, "pending SError");
const FREQUENCY: Field = Field::new(5, "frequency of the counter");

/// MPIDR_EL1's bit that is always set.
const MPIDR_RES1: u64 = 1 << 31;
const NANOSECONDS: u128 = 1_000_000_000;

/// Where a vCPU's state is read from and written to.
#[derive(Clone, Copy)]
pub(crate) struct VcpuAccess<'a> {
    pub(super) vm: &'a VmFd,
    pub(super) vcpu: &'a VcpuFd,
    pub(super) index: u32,
    /// It has not run, and nothing was set.
    is_new: bool,
    pub(super) kvm: &'a Kvm,
    pub(super) config: &'a VmConfig,
}

impl<'a> VcpuAccess<'a> {
    /// vCPU `index` of a machine.
    pub(crate) fn new(
        vm: &'a VmFd,
        (vcpu, index, is_new): (&'a VcpuFd, u32, bool),
        (kvm, _): (&'a Kvm, &'a HostFacts),
        config: &'a VmConfig,
    ) -> Result<Self, VmError> {
        Ok(Self { vm, vcpu, index, is_new, kvm, config })
    }
}

/// An SError that waits for the guest to take it. Its syndrome is there with RAS.
type SError = Option<Option<u64>>;

/// The complete state of a vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VcpuParts {
    /// What it was made with.
    features: Features,
    registers: RegisterFile,
    mp_state: u32,
    serror: SError,
    /// How often the counter counts in a second.
    frequency: u64,
    /// What a reset writes: of this host's processors, of which a machine that another host has saved may have less.
    is_reset: bool,
}

impl VcpuParts {
    /// Reads everything.
    pub(crate) fn read(from: VcpuAccess<'_>, _: Option<KvmRegisters>) -> Result<Self, VmError> {
        let vcpu = from.vcpu;
        // First: a start by PSCI that waits for the vCPU becomes part of the registers.
        let registers = RegisterFile::read(vcpu)?;
        let events = vcpu.get_vcpu_events().map_err(call("KVM_GET_VCPU_EVENTS"))?.exception;
        Ok(Self {
            features: Features::of(from.kvm, from.config),
            registers,
            mp_state: vcpu.get_mp_state().map_err(call("KVM_GET_MP_STATE"))?.mp_state,
            serror: (events.serror_pending != 0)
                .then(|| (events.serror_has_esr != 0).then_some(events.serror_esr)),
            frequency: sys::counter_frequency(),
            is_reset: false,
        })
    }

    /// Writes everything, after it was found to fit.
    pub(crate) fn write(&self, to: VcpuAccess<'_>) -> Result<(), VmError> {
        let vcpu = to.vcpu;
        self.check(to.index)?;
        if self.features != Features::of(to.kvm, to.config) {
            return Err(VmError::InvalidState { part: "features", reason: "not those of this vCPU" });
        }
        let current = RegisterFile::read(vcpu)?;
        let registers = match self.is_reset {
            true => &self.registers.common(&current),
            false => &self.registers,
        };
        let differing = differing_features(registers, &current)?;
        if !to.is_new {
            if let Some((id, value)) = differing.first() {
                return Err(lacks(*id, value, &current));
            }
            // For what writing registers does not do: a pending SError goes, and the processor sees as code what the host
            // wrote to memory that the guest has mapped.
            let init = vcpu_init(to.vm, to.index, self.features)?;
            vcpu.vcpu_init(&init).map_err(call("KVM_ARM_VCPU_INIT"))?;
        }
        for (id, value) in differing {
            one_reg::set(vcpu, id, value).map_err(|_| lacks(id, value, &current))?;
        }
        let (counters, others): (Vec<_>, Vec<_>) =
            registers.iter().filter(|(id, _)| !id.is_feature()).partition(|(id, _)| COUNTERS.contains(id));
        // What timers compare with comes first.
        for (id, value) in counters.into_iter().chain(others) {
            one_reg::set(vcpu, id, value).map_err(|error| VmError::RegisterRefused {
                index: to.index,
                register: id.to_string(),
                value: one_reg::hex(value),
                source: error.into(),
            })?;
        }
        vcpu.set_mp_state(kvm_mp_state { mp_state: self.mp_state }).map_err(call("KVM_SET_MP_STATE"))?;
        let mut events = kvm_vcpu_events::default();
        if let Some(syndrome) = self.serror {
            events.exception.serror_pending = 1;
            events.exception.serror_has_esr = syndrome.is_some().into();
            events.exception.serror_esr = syndrome.unwrap_or(0);
        }
        vcpu.set_vcpu_events(&events).map_err(call("KVM_SET_VCPU_EVENTS"))
    }

    /// Fails if it cannot be the state of vCPU `index`.
    fn check(&self, index: u32) -> Result<(), VmError> {
        let mpidr = MPIDR_RES1 | u64::from(spaces::cpu_id(index));
        if self.registers.get_u64(MPIDR).is_some_and(|found| found != mpidr) {
            return Err(VmError::InvalidState { part: "MPIDR_EL1", reason: "that of another vCPU" });
        }
        let here = sys::counter_frequency();
        if self.frequency != here {
            let there = self.frequency;
            let feature = format!("a counter of {there} Hz: this one has {here} Hz");
            return Err(VmError::MissingFeature { feature });
        }
        Ok(())
    }

    /// What vCPUs are to be made with so that they can be in this state.
    pub(super) fn made_with(&self) -> MadeWith {
        let lengths = self.registers.get(SVE_LENGTHS).and_then(|value| value.try_into().ok());
        MadeWith { features: self.features, sve_lengths: lengths }
    }

    /// Has its counters be so many nanoseconds later.
    pub(crate) fn advance(&mut self, by: u64) {
        let ticks = u128::from(by) * u128::from(self.frequency) / NANOSECONDS;
        self.registers = self.registers.increased(&COUNTERS, ticks as u64);
    }

    /// The state as a reset writes it: the counters go on, and the processor stays what it is.
    pub(crate) fn for_reset(mut self) -> Self {
        self.registers = self.registers.without(|id| COUNTERS.contains(&id) || id.is_feature());
        self.is_reset = true;
        self
    }

    /// The state as bytes.
    pub(crate) fn to_saved(&self) -> SavedState<'static> {
        let mut fields = Encoder::new(KIND, VERSION);
        fields
            .u32(FEATURES, self.features.bits())
            .bytes(REGISTERS, self.registers.to_bytes())
            .u32(MP_STATE, self.mp_state);
        match self.serror {
            None => {}
            Some(None) => _ = fields.bytes(SERROR, &[]),
            Some(Some(syndrome)) => _ = fields.u64(SERROR, syndrome),
        }
        fields.u64(FREQUENCY, self.frequency);
        fields.finish()
    }

    /// The state that has these bytes.
    pub(crate) fn from_saved(state: &SavedState<'_>) -> Result<Self, StateError> {
        let mut fields = Decoder::new(state, KIND, 1..=VERSION)?;
        let bits = fields.u32(FEATURES)?;
        let registers = RegisterFile::from_bytes(fields.bytes(REGISTERS, RegisterFile::MAX_LEN)?)?;
        let features =
            Features::from_bits(bits).ok_or(StateError::Value { field: "features", value: bits.into() })?;
        let mp_state = fields.u32(MP_STATE)?;
        if ![KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED, KVM_MP_STATE_SUSPENDED].contains(&mp_state) {
            return Err(StateError::Value { field: "multiprocessing state", value: mp_state.into() });
        }
        let serror = fields.optional(SERROR, |fields, field| {
            let bytes = fields.bytes(field, size_of::<u64>())?;
            let syndrome = <[u8; 8]>::try_from(bytes).map(u64::from_le_bytes);
            match bytes.is_empty() {
                true => Ok(None),
                false => syndrome.map(Some).map_err(|_| StateError::Truncated { field: "pending SError" }),
            }
        })?;
        let frequency = fields.u64(FREQUENCY)?;
        fields.finish()?;
        Ok(Self { features, registers, mp_state, serror, frequency, is_reset: false })
    }
}

/// The registers that say what the processor is, as far as they are not the same in `current`. Fails if there are
/// registers that are not in there at all.
fn differing_features<'a>(
    registers: &'a RegisterFile,
    current: &RegisterFile,
) -> Result<Vec<(RegisterId, &'a [u8])>, VmError> {
    let mut differing = Vec::new();
    let mut others = current.iter();
    for (id, value) in registers.iter() {
        match others.by_ref().find(|(other, _)| *other >= id) {
            Some((other, now)) if other == id => {
                if id.is_feature() && id != MPIDR && now != value {
                    differing.push((id, value));
                }
            }
            _ => {
                let feature = format!("the register {id}, which is {} there", one_reg::hex(value));
                return Err(VmError::MissingFeature { feature });
            }
        }
    }
    Ok(differing)
}

/// Fails if this host cannot have vCPUs with all that these have: one is made, and asked.
pub(crate) fn check_states(
    states: &[&VcpuParts],
    (kvm, _): (&Kvm, &HostFacts),
    config: &VmConfig,
) -> Result<(), VmError> {
    let Some(first) = states.first() else { return Ok(()) };
    let vm = retry(|| kvm.create_vm()).map_err(call("KVM_CREATE_VM"))?;
    let vcpu = retry(|| vm.create_vcpu(0)).map_err(call("KVM_CREATE_VCPU"))?;
    let mut config = config.clone();
    config.arch.take_over(std::iter::once(*first));
    init_vcpu((&vm, &vcpu), 0, (kvm, &HostFacts::default()), &config)?;
    let current = RegisterFile::read(&vcpu)?;
    for (index, state) in (0..).zip(states) {
        state.check(index)?;
        if state.features != first.features {
            return Err(VmError::InvalidState { part: "features", reason: "not those of the other vCPUs" });
        }
        for (id, value) in differing_features(&state.registers, &current)? {
            one_reg::set(&vcpu, id, value).map_err(|_| lacks(id, value, &current))?;
        }
    }
    Ok(())
}

/// A register that says what the processor is has a value that it cannot have here.
fn lacks(id: RegisterId, value: &[u8], current: &RegisterFile) -> VmError {
    let here = current.get(id).map_or_else(|| "nothing".into(), one_reg::hex);
    VmError::MissingFeature { feature: format!("{id} of {}: this one has {here}", one_reg::hex(value)) }
}

#[cfg(test)]
mod tests;
