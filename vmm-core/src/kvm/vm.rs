//! A virtual machine of KVM: memory slots, interrupts, doorbells.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_PIT_SPEAKER_DUMMY, KvmIrqRouting, kvm_ioeventfd,
    kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_pio, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use ossature_bus::Event;
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, PAGE_SIZE, Ram, RegisterPage};

use super::vcpu::KvmVcpu;
use super::{Host, call, retry, sys};
use crate::arch::{self, CpuFeatures, IrqRoutes};
use crate::backend::sealed::Sealed;
use crate::{
    Buses, Doorbell, DoorbellAddress, Irqchip, MsiMessage, StatsReader, Vcpu, Vm, VmConfig, VmError,
};

/// The machine as its vCPUs keep it: what they run in must outlive them.
#[derive(Debug)]
pub(super) struct VmShared {
    // Closed before the memory behind its slots goes away: fields are dropped in this order.
    pub fd: VmFd,
    pub config: VmConfig,
    pub host: Arc<Host>,
    slots: Mutex<Slots>,
    routes: Mutex<IrqRoutes>,
    has_irqchip: Mutex<bool>,
}

/// The memory slots of a machine, and what keeps the memory behind them mapped.
#[derive(Debug, Default)]
struct Slots {
    ram: Option<Dma>,
    ram_slots: Vec<kvm_userspace_memory_region>,
    pages: Vec<Arc<RegisterPage>>,
    count: u32,
}

/// See [`Vm`].
#[derive(Debug)]
pub(super) struct KvmVm {
    shared: Arc<VmShared>,
}

impl KvmVm {
    pub(super) fn new(host: &Arc<Host>, config: &VmConfig) -> Result<Self, VmError> {
        if config.cpus > 1 {
            let max = super::saturating(host.kvm.get_max_vcpus());
            if config.cpus > max {
                return Err(VmError::TooManyVcpus { index: config.cpus - 1, max });
            }
        }
        let fd = retry(|| host.kvm.create_vm()).map_err(call("KVM_CREATE_VM"))?;
        fd.set_tss_address(arch::TSS_ADDRESS).map_err(call("KVM_SET_TSS_ADDR"))?;
        let shared = VmShared {
            fd,
            config: config.clone(),
            host: Arc::clone(host),
            slots: Mutex::default(),
            routes: Mutex::default(),
            has_irqchip: Mutex::new(false),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    fn set_routes(&self, routes: &IrqRoutes) -> Result<(), VmError> {
        let invalid = |_| VmError::Unsupported { what: "an interrupt table of this length" };
        let table = KvmIrqRouting::from_entries(&routes.entries()).map_err(invalid)?;
        self.shared.fd.set_gsi_routing(&table).map_err(call("KVM_SET_GSI_ROUTING"))
    }
}

impl VmShared {
    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn routes(&self) -> MutexGuard<'_, IrqRoutes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The machine's RAM, once it has some.
    pub(super) fn ram(&self) -> Option<Dma> {
        self.slots().ram.clone()
    }

    /// What of the vCPUs' CPUID this machine decides.
    pub(super) fn cpu_features(&self) -> CpuFeatures {
        let lapic = self.config.irqchip == Irqchip::Kernel;
        CpuFeatures { cpus: self.config.cpus, lapic, tsc_deadline: lapic && self.host.tsc_deadline() }
    }

    fn needs_irqchip(&self, gsi: u32) -> Result<(), VmError> {
        if self.config.irqchip == Irqchip::None {
            Err(VmError::NoIrqchip { gsi })
        } else {
            self.create_irqchip()
        }
    }

    /// Creates the interrupt controllers, if there are to be any, when they are first needed: after the memory, as
    /// far as possible. A change of the memory slots waits until the kernel has no more use for the old version of
    /// whatever was changed before it, and the controllers are on the kernel's own bus.
    pub(super) fn create_irqchip(&self) -> Result<(), VmError> {
        let mut done = self.has_irqchip.lock().unwrap_or_else(PoisonError::into_inner);
        if *done || self.config.irqchip == Irqchip::None {
            return Ok(());
        }
        self.fd.create_irq_chip().map_err(call("KVM_CREATE_IRQCHIP"))?;
        *done = true;
        if self.config.pit {
            // The dummy answers port 0x61, where guests gate the timer's second channel.
            let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
            self.fd.create_pit2(pit).map_err(call("KVM_CREATE_PIT2"))?;
        }
        Ok(())
    }
}

impl Sealed for KvmVm {}

impl Vm for KvmVm {
    fn set_memory(&self, ram: &Ram) -> Result<(), VmError> {
        let mut slots = self.shared.slots();
        if slots.ram.is_some() {
            return Err(VmError::MemoryAlreadySet);
        }
        // Kept from here on, whatever fails below: the kernel may already have one of the slots.
        slots.ram = Some(ram.dma());
        for slot in ram.slots() {
            let region = kvm_userspace_memory_region {
                slot: slots.count,
                flags: 0,
                guest_phys_addr: slot.guest_addr,
                memory_size: slot.size,
                userspace_addr: slot.host_addr,
            };
            // SAFETY: `slots.ram` keeps the mapping for as long as this machine or a vCPU of it lives, and
            // guest memory is only reached through copies.
            unsafe { sys::set_memory_region(&self.shared.fd, region) }
                .map_err(call("KVM_SET_USER_MEMORY_REGION"))?;
            slots.ram_slots.push(region);
            slots.count += 1;
        }
        Ok(())
    }

    fn map_register_page(&self, address: GuestAddress, page: Arc<RegisterPage>) -> Result<bool, VmError> {
        let mut slots = self.shared.slots();
        let region = kvm_userspace_memory_region {
            slot: slots.count,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: address.0,
            memory_size: PAGE_SIZE as u64,
            userspace_addr: page.host_address(),
        };
        slots.pages.push(page);
        // SAFETY: `slots.pages` keeps the page for as long as this machine or a vCPU of it lives; it is only
        // reached through atomics.
        match unsafe { sys::set_memory_region(&self.shared.fd, region) } {
            // What a kernel without such slots says too.
            Err(e) if e.errno() == libc::EINVAL && !self.shared.host.register_pages() => return Ok(false),
            result => result.map_err(call("KVM_SET_USER_MEMORY_REGION"))?,
        }
        slots.count += 1;
        Ok(true)
    }

    fn irqfd(&self, event: &Arc<Event>, gsi: u32) -> Result<(), VmError> {
        self.shared.needs_irqchip(gsi)?;
        sys::irqfd(&self.shared.fd, event, gsi).map_err(call("KVM_IRQFD"))
    }

    fn ioeventfd(&self, event: &Arc<Event>, doorbell: Doorbell) -> Result<(), VmError> {
        let request = ioeventfd_request(event, doorbell);
        sys::ioeventfd(&self.shared.fd, &request).map_err(call("KVM_IOEVENTFD"))
    }

    fn add_msi_route(&self, message: MsiMessage) -> Result<u32, VmError> {
        let mut routes = self.shared.routes();
        let gsi = routes.add(message)?;
        self.shared
            .needs_irqchip(gsi)
            .and_then(|()| self.set_routes(&routes))
            .inspect_err(|_| routes.remove_last())?;
        Ok(gsi)
    }

    fn set_msi_route(&self, gsi: u32, message: MsiMessage) -> Result<(), VmError> {
        let mut routes = self.shared.routes();
        let before = routes.set(gsi, message)?;
        self.set_routes(&routes).inspect_err(|_| {
            // The line exists: it was set just now.
            let _ = routes.set(gsi, before);
        })
    }

    fn create_vcpu(&self, index: u32, buses: Buses) -> Result<Vcpu, VmError> {
        if index >= self.shared.config.cpus {
            return Err(VmError::TooManyVcpus { index, max: self.shared.config.cpus });
        }
        self.shared.create_irqchip()?;
        Ok(Vcpu::new(Box::new(KvmVcpu::new(&self.shared, index)?), buses))
    }

    fn set_dirty_log(&self, on: bool) -> Result<(), VmError> {
        let slots = self.shared.slots();
        for region in &slots.ram_slots {
            let region = kvm_userspace_memory_region {
                flags: if on { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
                ..*region
            };
            // SAFETY: the slot and its memory stay as they are.
            unsafe { sys::set_memory_region(&self.shared.fd, region) }
                .map_err(call("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    fn take_dirty_log(&self, visit: &mut dyn FnMut(GuestAddress, &[u64])) -> Result<(), VmError> {
        let slots = self.shared.slots();
        for region in &slots.ram_slots {
            let size = region.memory_size as usize;
            let bitmap =
                self.shared.fd.get_dirty_log(region.slot, size).map_err(call("KVM_GET_DIRTY_LOG"))?;
            visit(GuestAddress(region.guest_phys_addr), &bitmap);
        }
        Ok(())
    }

    fn stats_reader(&self) -> Result<StatsReader, VmError> {
        StatsReader::new(sys::stats_fd(&self.shared.fd).map_err(call("KVM_GET_STATS_FD"))?)
    }
}

fn ioeventfd_request(event: &Event, doorbell: Doorbell) -> kvm_ioeventfd {
    let mut request =
        kvm_ioeventfd { fd: event.as_raw_fd(), len: doorbell.size.bytes() as u32, ..Default::default() };
    match doorbell.address {
        DoorbellAddress::Pio(port) => {
            request.addr = port.into();
            request.flags |= 1 << kvm_ioeventfd_flag_nr_pio;
        }
        DoorbellAddress::Mmio(address) => {
            request.addr = address;
            if doorbell.value.is_none() {
                // Of any width: the kernel then knows enough from the address, and skips the instruction.
                request.len = 0;
            }
        }
    }
    if let Some(value) = doorbell.value {
        request.datamatch = value;
        request.flags |= 1 << kvm_ioeventfd_flag_nr_datamatch;
    }
    request
}
