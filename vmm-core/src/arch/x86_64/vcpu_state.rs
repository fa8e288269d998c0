//! All that a vCPU consists of, read from KVM and written back.

use std::fmt;
use std::sync::{Arc, OnceLock};

use kvm_bindings::nested::KvmNestedStateBuffer;
use kvm_bindings::{
    KVM_STATE_NESTED_FORMAT_VMX, KVM_STATE_NESTED_GUEST_MODE, KVM_VCPUEVENT_VALID_SIPI_VECTOR, kvm_debugregs,
    kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};

use super::cpuid::Cpuid;
use super::host::HostFacts;
use super::page::KvmRegisters;
use super::plain::Plain;
use super::setup::{config_cpuid, default_cpuid};
use super::{features, msrs, xsave};
use crate::arch::pieces;
use crate::call::call;
use crate::{VmConfig, VmError};

const KIND: &str = "org.ossature.vcpu.x86_64";
const VERSION: u16 = 1;
const REGS: Field = Field::new(1, "registers");
const SREGS: Field = Field::new(2, "system registers");
const XSAVE: Field = Field::new(3, "XSAVE area");
const XCRS: Field = Field::new(4, "XCRs");
const DEBUG: Field = Field::new(5, "debug registers");
const EVENTS: Field = Field::new(6, "events");
const MSRS: Field = Field::new(7, "MSRs");
const TSC_KHZ: Field = Field::new(8, "TSC frequency");
const LAPIC: Field = Field::new(9, "local APIC");
const MP_STATE: Field = Field::new(10, "multiprocessing state");
const CPUID: Field = Field::new(11, "CPUID");

/// More than any processor has: AMX takes 11 KiB, and there are some 300 MSRs.
const MAX_XSAVE: usize = 1 << 16;
const MAX_MSRS: usize = 4096;
/// Bytes of an MSR: its number and its value.
const MSR: usize = 12;

/// Where a vCPU's state is read from and written to.
#[derive(Clone, Copy)]
pub(crate) struct VcpuAccess<'a> {
    vm: &'a VmFd,
    vcpu: &'a VcpuFd,
    /// Which vCPU.
    index: u32,
    /// It has not run, and nothing was set.
    is_new: bool,
    /// True if the machine has interrupt controllers.
    irqchip: bool,
    /// The MSRs that exist, in the order in which they are to be written.
    msrs: &'a [u32],
    host: (&'a Kvm, &'a HostFacts),
    config: &'a VmConfig,
}

impl<'a> VcpuAccess<'a> {
    /// vCPU `index` of a machine.
    pub(crate) fn new(
        vm: &'a VmFd,
        (vcpu, index, is_new): (&'a VcpuFd, u32, bool),
        host: (&'a Kvm, &'a HostFacts),
        config: &'a VmConfig,
    ) -> Result<Self, VmError> {
        let msrs = host.1.state_msrs(host.0, vcpu)?;
        Ok(Self { vm, vcpu, index, is_new, irqchip: config.has_irqchip(), msrs, host, config })
    }

    /// The CPUID that the vCPU has.
    fn cpuid(self) -> Result<Arc<Cpuid>, VmError> {
        config_cpuid(self.index, self.host, self.config)
    }
}

/// The complete state of a vCPU.
#[derive(Clone)]
pub(crate) struct VcpuParts {
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Vec<u32>,
    xcrs: kvm_xcrs,
    debug: kvm_debugregs,
    events: kvm_vcpu_events,
    msrs: Vec<(u32, u64)>,
    /// With interrupt controllers only, as the next one.
    lapic: Option<kvm_lapic_state>,
    mp_state: Option<u32>,
    /// Frequency of the TSC; 0 where the host does not say.
    tsc_khz: u32,
    /// What it was made with.
    pub(super) cpuid: Arc<Cpuid>,
    /// The MSRs that a new vCPU has otherwise when all else was written, once that was found out.
    differing: Arc<OnceLock<Vec<u32>>>,
}

impl VcpuParts {
    /// Reads everything, which fails if the guest runs guests of its own. `set` is what was set and the kernel has not
    /// taken yet.
    pub(crate) fn read(from: VcpuAccess<'_>, set: Option<KvmRegisters>) -> Result<Self, VmError> {
        let vcpu = from.vcpu;
        if from.host.1.has_nested_state(from.host.0) {
            let mut nested = KvmNestedStateBuffer::empty();
            vcpu.nested_state(&mut nested).map_err(call("KVM_GET_NESTED_STATE"))?;
            check_nested(&nested)?;
        }
        // First: an event that waits for the vCPU (INIT, a start) becomes part of the other registers.
        let mp_state = match from.irqchip {
            true => Some(vcpu.get_mp_state().map_err(call("KVM_GET_MP_STATE"))?.mp_state),
            false => None,
        };
        let KvmRegisters { regs, sregs } = set.map_or_else(|| KvmRegisters::read(vcpu), Ok)?;
        Ok(Self {
            regs,
            sregs,
            xsave: xsave::read(from.vm, vcpu)?,
            xcrs: vcpu.get_xcrs().map_err(call("KVM_GET_XCRS"))?,
            debug: vcpu.get_debug_regs().map_err(call("KVM_GET_DEBUGREGS"))?,
            events: vcpu.get_vcpu_events().map_err(call("KVM_GET_VCPU_EVENTS"))?,
            msrs: msrs::read(vcpu, from.msrs)?,
            lapic: match from.irqchip {
                true => Some(vcpu.get_lapic().map_err(call("KVM_GET_LAPIC"))?),
                false => None,
            },
            mp_state,
            tsc_khz: vcpu.get_tsc_khz().unwrap_or(0),
            cpuid: from.cpuid()?,
            differing: Arc::default(),
        })
    }

    /// Writes everything.
    pub(crate) fn write(&self, to: VcpuAccess<'_>) -> Result<(), VmError> {
        if self.lapic.is_some() != to.irqchip || self.mp_state.is_some() != to.irqchip {
            let reason = "of a machine with other interrupt controllers";
            return Err(VmError::InvalidState { part: "local APIC", reason });
        }
        if self.cpuid != to.cpuid()? {
            return Err(VmError::InvalidState { part: "CPUID", reason: "not that of this vCPU" });
        }
        let mut known = to.msrs.iter();
        if !self.msrs.iter().all(|(msr, _)| known.any(|other| other == msr)) {
            return Err(VmError::InvalidState {
                part: "MSRs",
                reason: "not those that vCPUs of this host have",
            });
        }
        let vcpu = to.vcpu;
        if self.tsc_khz != 0 && vcpu.get_tsc_khz().unwrap_or(0) != self.tsc_khz {
            vcpu.set_tsc_khz(self.tsc_khz).map_err(call("KVM_SET_TSC_KHZ"))?;
        }
        if let Some(mp_state) = self.mp_state {
            vcpu.set_mp_state(kvm_mp_state { mp_state }).map_err(call("KVM_SET_MP_STATE"))?;
        }
        // With the APIC's mode, which its registers and its timer's MSR depend on.
        KvmRegisters { regs: self.regs, sregs: self.sregs }.write(vcpu)?;
        vcpu.set_xcrs(&self.xcrs).map_err(call("KVM_SET_XCRS"))?;
        xsave::write(to.vm, vcpu, &self.xsave)?;
        vcpu.set_debug_regs(&self.debug).map_err(call("KVM_SET_DEBUGREGS"))?;
        if let Some(lapic) = &self.lapic {
            vcpu.set_lapic(lapic).map_err(call("KVM_SET_LAPIC"))?;
        }
        // All that are new are the same.
        let known = self.differing.get().filter(|_| to.is_new);
        let found = if known.is_none() { msrs::differing(vcpu, &self.msrs)? } else { Vec::new() };
        msrs::write(vcpu, to.index, &self.msrs, known.unwrap_or(&found))?;
        if to.is_new && known.is_none() {
            self.differing.get_or_init(|| found);
        }
        // Last: what the calls above make pending does not count.
        vcpu.set_vcpu_events(&self.events).map_err(call("KVM_SET_VCPU_EVENTS"))
    }

    /// The state as bytes.
    pub(crate) fn to_saved(&self) -> SavedState<'static> {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        let msr = |(msr, value): &(u32, u64)| msr.to_le_bytes().into_iter().chain(value.to_le_bytes());
        let msrs: Vec<_> = self.msrs.iter().flat_map(msr).collect();
        let mut fields = Encoder::new(KIND, VERSION);
        fields
            .bytes(REGS, self.regs.to_bytes())
            .bytes(SREGS, self.sregs.to_bytes())
            .bytes(XSAVE, &words(&self.xsave))
            .bytes(XCRS, self.xcrs.to_bytes())
            .bytes(DEBUG, self.debug.to_bytes())
            .bytes(EVENTS, self.events.to_bytes())
            .bytes(MSRS, &msrs)
            .u32(TSC_KHZ, self.tsc_khz);
        if let Some(lapic) = &self.lapic {
            fields.bytes(LAPIC, lapic.to_bytes());
        }
        if let Some(mp_state) = self.mp_state {
            fields.u32(MP_STATE, mp_state);
        }
        fields.bytes(CPUID, &self.cpuid.to_bytes());
        fields.finish()
    }

    /// The state that has these bytes.
    pub(crate) fn from_saved(state: &SavedState<'_>) -> Result<Self, StateError> {
        let mut fields = Decoder::new(state, KIND, 1..=VERSION)?;
        let (regs, sregs) = (Plain::decode(&mut fields, REGS)?, Plain::decode(&mut fields, SREGS)?);
        let xsave = pieces(fields.bytes(XSAVE, MAX_XSAVE)?, "XSAVE area", u32::from_le_bytes)?;
        let (xcrs, debug) = (Plain::decode(&mut fields, XCRS)?, Plain::decode(&mut fields, DEBUG)?);
        let events = Plain::decode(&mut fields, EVENTS)?;
        let msrs = pieces(fields.bytes(MSRS, MAX_MSRS * MSR)?, "MSRs", |bytes: [u8; MSR]| {
            let [a, b, c, d, value @ ..] = bytes;
            (u32::from_le_bytes([a, b, c, d]), u64::from_le_bytes(value))
        })?;
        let tsc_khz = fields.u32(TSC_KHZ)?;
        let lapic = fields.optional(LAPIC, Plain::decode)?;
        let mp_state = fields.optional(MP_STATE, Decoder::u32)?;
        let cpuid = pieces(fields.bytes(CPUID, Cpuid::MAX_BYTES)?, "CPUID", Cpuid::entry)?;
        let cpuid = Arc::new(Cpuid { entries: cpuid });
        fields.finish()?;
        let differing = Arc::default();
        Ok(Self { regs, sregs, xsave, xcrs, debug, events, msrs, lapic, mp_state, tsc_khz, cpuid, differing })
    }

    /// Has its TSC be so many nanoseconds later.
    pub(crate) fn advance(&mut self, by: u64) {
        let ticks = u128::from(by) * u128::from(self.tsc_khz) / 1_000_000;
        for (_, value) in self.msrs.iter_mut().filter(|(msr, _)| *msr == msrs::TSC) {
            *value = value.wrapping_add(ticks as u64);
        }
    }

    /// The state as a reset writes it. The TSC goes on, in step with the other vCPUs': it never goes backwards, and
    /// KVM keeps TSCs in step whose values it is not told.
    pub(crate) fn for_reset(mut self) -> Self {
        for (msr, value) in &mut self.msrs {
            if *msr == msrs::TSC {
                *value = 0;
            }
        }
        self.events.flags |= KVM_VCPUEVENT_VALID_SIPI_VECTOR;
        self.differing = Arc::default();
        self
    }

    pub(crate) fn registers(&self) -> super::Registers {
        super::Registers::from_kvm(&self.regs, &self.sregs)
    }

    /// Each part with its name, for comparisons. Of the TSC and of timers that run, two reads are never the same.
    fn parts(&self) -> [(&'static str, &[u8]); 6] {
        [
            ("registers", self.regs.to_bytes()),
            ("system registers", self.sregs.to_bytes()),
            ("XCRs", self.xcrs.to_bytes()),
            ("debug registers", self.debug.to_bytes()),
            ("events", self.events.to_bytes()),
            ("local APIC", self.lapic.as_ref().map_or(&[], Plain::to_bytes)),
        ]
    }
}

/// Fails if this host cannot have the vCPUs of a machine of `config` with all the features that these have, by index.
pub(crate) fn check_states(
    states: &[&VcpuParts],
    host: (&Kvm, &HostFacts),
    config: &VmConfig,
) -> Result<(), VmError> {
    let check = |(index, state): (u32, &&VcpuParts)| {
        features::check(&state.cpuid, &default_cpuid(index, host, config)?)
    };
    (0..).zip(states).try_for_each(check)
}

/// Fails if there is more in the state of nested virtualization than what a vCPU begins with: no other part has it.
fn check_nested(state: &KvmNestedStateBuffer) -> Result<(), VmError> {
    // Where the guest has put its VMXON region: all ones if VMX is off.
    let vmxon = state.to_bytes().get(8..16) != Some(&[0xff; 8]);
    let is_vmx = u32::from(state.format) == KVM_STATE_NESTED_FORMAT_VMX;
    if u32::from(state.flags) & KVM_STATE_NESTED_GUEST_MODE != 0 || is_vmx && vmxon {
        return Err(VmError::Unsupported { what: "saving a vCPU whose guest is a hypervisor itself" });
    }
    Ok(())
}

impl PartialEq for VcpuParts {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
            && self.xsave == other.xsave
            && self.msrs == other.msrs
            && (self.mp_state, self.tsc_khz) == (other.mp_state, other.tsc_khz)
            && self.cpuid == other.cpuid
    }
}

impl Eq for VcpuParts {}

impl fmt::Debug for VcpuParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VcpuParts")
            .field("registers", &self.registers())
            .field("msrs", &self.msrs.len())
            .field("xsave", &(size_of_val(&*self.xsave)))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
