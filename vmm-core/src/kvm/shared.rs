//! What a machine and its vCPUs share.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kvm_bindings::{KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KvmIrqRouting, kvm_enable_cap};
use kvm_ioctls::{VcpuFd, VmFd};
use ossature_boot::Caches;
use ossature_memory::Dma;

use super::host::Host;
use super::reset::ResetState;
use super::ring::{self, Rings};
use super::run::Peer;
use super::slots::Slots;
use crate::arch::{self, Controllers};
use crate::call::{call, retry};
use crate::irq_routes::IrqRoutes;
use crate::{VmConfig, VmError};

/// The machine as its vCPUs keep it: what they run in must outlive them.
#[derive(Debug)]
pub(super) struct VmShared {
    // Closed before the memory behind its slots goes away: fields are dropped in this order.
    pub fd: VmFd,
    pub config: VmConfig,
    pub host: Arc<Host>,
    /// Asked for before a sandbox is closed: a reset opens nothing.
    pub caches: Option<Caches>,
    ram: OnceLock<Dma>,
    // Taken in this order.
    slots: Mutex<Slots>,
    rings: Mutex<Rings>,
    routes: Mutex<IrqRoutes>,
    /// The interrupt controllers, once there are any.
    chips: Mutex<Option<Controllers>>,
    /// vCPUs that were created before anybody asked for them, by index.
    vcpus: Mutex<Vec<Option<VcpuFd>>>,
    /// The vCPUs for each other.
    peers: Mutex<Vec<Peer>>,
    /// Once somebody has asked for a reset.
    reset: Mutex<Option<Arc<ResetState>>>,
}

impl VmShared {
    pub(super) fn new(host: &Arc<Host>, config: &VmConfig) -> Result<Self, VmError> {
        Self::with_fd(host, config, retry(|| host.kvm.create_vm()).map_err(call("KVM_CREATE_VM"))?)
    }

    /// A machine that somebody else has created, and that has nothing yet.
    pub(super) fn with_fd(host: &Arc<Host>, config: &VmConfig, fd: VmFd) -> Result<Self, VmError> {
        arch::prepare_vm(&fd)?;
        if let Some(entries) = config.dirty_ring {
            if !arch::HAS_DIRTY_RINGS {
                return Err(VmError::Unsupported {
                    what: "a ring of dirty pages (KVM_CAP_DIRTY_LOG_RING_ACQ_REL)",
                });
            }
            let bytes = u64::from(entries).saturating_mul(ring::ENTRY as u64);
            let cap = kvm_enable_cap {
                cap: KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
                args: [bytes, 0, 0, 0],
                ..Default::default()
            };
            fd.enable_cap(&cap).map_err(call("KVM_ENABLE_CAP of KVM_CAP_DIRTY_LOG_RING_ACQ_REL"))?;
        }
        Ok(Self {
            fd,
            config: config.clone(),
            host: Arc::clone(host),
            caches: arch::caches(config, &host.facts),
            ram: OnceLock::new(),
            slots: Mutex::default(),
            rings: Mutex::default(),
            routes: Mutex::default(),
            chips: Mutex::default(),
            vcpus: Mutex::default(),
            peers: Mutex::default(),
            reset: Mutex::default(),
        })
    }

    /// The RAM, once.
    pub(super) fn set_ram(&self, ram: Dma) {
        // Set before: the caller knows.
        let _ = self.ram.set(ram);
    }

    pub(super) fn rings(&self) -> MutexGuard<'_, Rings> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the ring of a new vCPU, if it has one.
    pub(super) fn add_ring(&self, index: u32, vcpu: &VcpuFd) -> Result<(), VmError> {
        let Some(entries) = self.config.dirty_ring else { return Ok(()) };
        let added = self.rings().add(index, vcpu, entries as usize);
        added.map_err(|source| VmError::Call { call: "mmap of a dirty ring", source })
    }

    /// Empties the rings of dirty pages. `full` is a vCPU that has left the guest because its ring is full.
    pub(super) fn harvest_rings(&self, full: Option<u32>) -> Result<(), VmError> {
        let slots = self.slots();
        self.rings().harvest(&self.fd, &slots, full).map_err(call("KVM_RESET_DIRTY_RINGS"))
    }

    pub(super) fn set_routes(&self, routes: &IrqRoutes) -> Result<(), VmError> {
        let invalid = |_| VmError::Unsupported { what: "an interrupt table of this length" };
        let table = KvmIrqRouting::from_entries(&routes.entries()).map_err(invalid)?;
        self.fd.set_gsi_routing(&table).map_err(call("KVM_SET_GSI_ROUTING"))
    }

    pub(super) fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All vCPUs that were handed out. Who asks one keeps the others from asking.
    pub(super) fn peers(&self) -> MutexGuard<'_, Vec<Peer>> {
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn routes(&self) -> MutexGuard<'_, IrqRoutes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine's RAM, once it has some.
    pub(super) fn ram(&self) -> Option<Dma> {
        let mut ram = self.ram.get()?.clone();
        ram.refresh();
        Some(ram)
    }

    /// The state before the machine ran.
    pub(super) fn reset_state(&self) -> Result<Arc<ResetState>, VmError> {
        let mut reset = self.reset.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = &*reset {
            return Ok(Arc::clone(state));
        }
        let state = Arc::new(ResetState::of(&self.host, &self.config)?);
        *reset = Some(Arc::clone(&state));
        Ok(state)
    }

    /// A new vCPU, or the one that the interrupt controllers have needed already.
    pub(super) fn vcpu(&self, index: u32) -> Result<VcpuFd, VmError> {
        let mut waiting = self.vcpus.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.get_mut(index as usize).and_then(Option::take) {
            Some(vcpu) => Ok(vcpu),
            None => new_vcpu(&self.fd, index, &self.host, &self.config),
        }
    }

    pub(super) fn needs_irqchip(&self, gsi: u32) -> Result<(), VmError> {
        if !self.config.has_irqchip() { Err(VmError::NoIrqchip { gsi }) } else { self.create_irqchip() }
    }

    /// Creates the interrupt controllers, if there are to be any, when they are first needed: after the memory, as
    /// far as possible. A change of the memory slots waits until the kernel has no more use for the old version of
    /// whatever was changed before it, and the controllers are on the kernel's own bus.
    pub(super) fn create_irqchip(&self) -> Result<(), VmError> {
        self.controllers().map(drop)
    }

    /// The interrupt controllers, which are created if there are to be any; see [`create_irqchip`](Self::create_irqchip).
    pub(super) fn controllers(&self) -> Result<MutexGuard<'_, Option<Controllers>>, VmError> {
        let mut chips = self.chips.lock().unwrap_or_else(PoisonError::into_inner);
        if chips.is_some() || !self.config.has_irqchip() {
            return Ok(chips);
        }
        if arch::VCPUS_FIRST {
            let vcpus = (0..self.config.cpus)
                .map(|index| new_vcpu(&self.fd, index, &self.host, &self.config).map(Some));
            let vcpus = vcpus.collect::<Result<_, _>>()?;
            *self.vcpus.lock().unwrap_or_else(PoisonError::into_inner) = vcpus;
        }
        *chips = Some(arch::create_controllers(&self.fd, &self.config, &self.host.facts)?);
        Ok(chips)
    }
}

/// Creates vCPU `index` as it is before it ever runs.
pub(super) fn new_vcpu(vm: &VmFd, index: u32, host: &Host, config: &VmConfig) -> Result<VcpuFd, VmError> {
    let number = arch::vcpu_id(index, config.cpus, config.numa.as_ref());
    let vcpu = retry(|| vm.create_vcpu(number.into())).map_err(call("KVM_CREATE_VCPU"))?;
    arch::init_vcpu((vm, &vcpu), index, (&host.kvm, &host.facts), config)?;
    Ok(vcpu)
}
