//! A virtual machine of KVM: memory, interrupts, doorbells.

use std::error::Error;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use ossature_boot::{Caches, Numa};
use ossature_bus::{Event, MsiMessage, Size};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{DirtyLog, ListenerGuard, MemoryListener, Ram, RamError, RamSlot, RegisterPage};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use super::dirty::KvmDirtyLog;
use super::host::Host;
use super::shared::VmShared;
use super::sys;
use super::vcpu::KvmVcpu;
use crate::arch::{self, VmParts};
use crate::backend::sealed::Sealed;
use crate::call::call;
use crate::guard::Route;
use crate::state::VmStateOf;
use crate::{
    Buses, Doorbell, DoorbellAddress, GuestDirtyLog, Ioeventfd, Irqfd, MemorySlot, MsiRoute, StatsReader,
    Vcpu, Vm, VmConfig, VmError, VmState,
};

/// See [`Vm`].
#[derive(Debug)]
pub(super) struct KvmVm {
    shared: Arc<VmShared>,
    /// Not among what is shared: whoever drops that may be the one who is told.
    memory: Mutex<Option<ListenerGuard>>,
}

impl KvmVm {
    /// A new one, or what `fd` is.
    pub(super) fn new(host: &Arc<Host>, config: &VmConfig, fd: Option<OwnedFd>) -> Result<Self, VmError> {
        if config.cpus > 1 {
            let max = host.max_vcpus();
            if config.cpus > max {
                return Err(VmError::TooManyVcpus { index: config.cpus - 1, max });
            }
            if let Some(numa) = &config.numa {
                let index = config.cpus - 1;
                let number = arch::vcpu_id(index, config.cpus, Some(numa));
                let gaps = if number == index { u32::MAX } else { arch::NUMBERS_WITH_GAPS };
                let max = host.max_vcpu_id().min(gaps);
                if number >= max {
                    return Err(VmError::VcpuNumber { index, number, max });
                }
            }
        }
        let shared = match fd {
            None => VmShared::new(host, config)?,
            Some(fd) => {
                let fd = sys::vm_from_fd(&host.kvm, fd).map_err(call("KVM_GET_VCPU_MMAP_SIZE"))?;
                VmShared::with_fd(host, config, fd)?
            }
        };
        let shared = Arc::new(shared);
        Ok(Self { shared, memory: Mutex::default() })
    }
}

/// Makes the slots of RAM memory slots of the machine, as they come and go.
#[derive(Debug)]
struct Follower(Weak<VmShared>);

impl MemoryListener for Follower {
    fn slot_added(&self, slot: &RamSlot) -> Result<(), Box<dyn Error + Send + Sync>> {
        let Some(vm) = self.0.upgrade() else { return Ok(()) };
        Ok(vm.slots().add_ram(&vm.fd, slot)?)
    }

    fn slot_removed(&self, slot: &RamSlot) {
        if let Some(vm) = self.0.upgrade() {
            vm.slots().remove_ram(&vm.fd, slot.id);
        }
    }
}

impl Sealed for KvmVm {}

impl Vm for KvmVm {
    fn has_ports(&self) -> bool {
        arch::HAS_PORTS
    }

    fn set_memory(&self, ram: &Ram) -> Result<(), VmError> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.is_some() {
            return Err(VmError::MemoryAlreadySet);
        }
        let listener = Arc::new(Follower(Arc::downgrade(&self.shared)));
        *memory = Some(ram.listen(listener).map_err(|error| match error {
            RamError::Listener { source, .. } => VmError::from_listener(source),
            _ => VmError::Unsupported { what: "guest memory of this kind" },
        })?);
        self.shared.set_ram(ram.dma());
        Ok(())
    }

    fn map_register_page(
        &self,
        address: GuestAddress,
        page: &Arc<RegisterPage>,
    ) -> Result<Option<MemorySlot>, VmError> {
        let vm = &self.shared;
        let slot = match vm.slots().add_page(&vm.fd, address.0, page) {
            // What a kernel without such slots says too.
            Err(e) if e.errno() == libc::EINVAL && !vm.host.register_pages() => return Ok(None),
            result => result.map_err(call("KVM_SET_USER_MEMORY_REGION"))?,
        };
        let vm = Arc::downgrade(vm);
        Ok(Some(MemorySlot::new(move || {
            let Some(vm) = vm.upgrade() else { return };
            vm.slots().remove_page(&vm.fd, slot);
        })))
    }

    fn irqfd(&self, event: &Arc<Event>, gsi: u32, resample: Option<&Arc<Event>>) -> Result<Irqfd, VmError> {
        self.shared.needs_irqchip(gsi)?;
        let fd = &self.shared.fd;
        let connected = sys::with_eventfd(event, |event| match resample {
            None => fd.register_irqfd(event, gsi),
            Some(resample) => {
                sys::with_eventfd(resample, |resample| fd.register_irqfd_with_resample(event, resample, gsi))
            }
        });
        connected.map_err(call("KVM_IRQFD"))?;
        let (vm, event) = (Arc::downgrade(&self.shared), Arc::clone(event));
        Ok(Irqfd::new(move || {
            let Some(vm) = vm.upgrade() else { return };
            // It was connected: there is nothing that could fail.
            let _ = sys::with_eventfd(&event, |event| vm.fd.unregister_irqfd(event, gsi));
        }))
    }

    fn check_edge_line(&self, gsi: u32) -> Result<(), VmError> {
        self.shared.needs_irqchip(gsi)
    }

    fn raise_edge(&self, gsi: u32) -> Result<(), VmError> {
        // What an irqfd does. An edge that somebody else raises in between is this one: the guest sees one interrupt
        // after both.
        self.set_irq_line(gsi, true).and_then(|()| self.set_irq_line(gsi, false))
    }

    fn set_irq_line(&self, gsi: u32, asserted: bool) -> Result<(), VmError> {
        self.shared.needs_irqchip(gsi)?;
        let line = arch::line_number(gsi);
        self.shared.fd.set_irq_line(line, asserted).map_err(call("KVM_IRQ_LINE"))
    }

    fn ioeventfd(&self, event: &Arc<Event>, doorbell: Doorbell) -> Result<Ioeventfd, VmError> {
        ioeventfd(&self.shared.fd, event, doorbell, true).map_err(call("KVM_IOEVENTFD"))?;
        let (vm, event) = (Arc::downgrade(&self.shared), Arc::clone(event));
        Ok(Ioeventfd::new(move || {
            let Some(vm) = vm.upgrade() else { return };
            // It was connected: there is nothing that could fail.
            let _ = ioeventfd(&vm.fd, &event, doorbell, false);
        }))
    }

    fn has_messages(&self) -> bool {
        arch::has_messages(&self.shared.fd, &self.shared.host.facts)
    }

    fn add_msi_route(&self, message: MsiMessage) -> Result<MsiRoute, VmError> {
        if !self.has_messages() {
            return Err(VmError::Unsupported {
                what: "an interrupt by a message, with the interrupt controller of this host",
            });
        }
        let mut routes = self.shared.routes();
        let gsi = routes.add(message)?;
        self.shared
            .needs_irqchip(gsi)
            .and_then(|()| self.shared.set_routes(&routes))
            .inspect_err(|_| routes.remove(gsi))?;
        Ok(MsiRoute::new(gsi, Arc::new(KvmRoute { vm: Arc::downgrade(&self.shared), gsi })))
    }

    fn create_vcpu(&self, index: u32, buses: Buses) -> Result<Vcpu, VmError> {
        if index >= self.shared.config.cpus {
            return Err(VmError::TooManyVcpus { index, max: self.shared.config.cpus });
        }
        self.shared.create_irqchip()?;
        Ok(Vcpu::new(Box::new(KvmVcpu::new(&self.shared, index)?), buses))
    }

    fn dirty_log(&self, ram: &Ram) -> Result<GuestDirtyLog, VmError> {
        let log = DirtyLog::start(ram).map_err(|source| VmError::DirtyLog { source })?;
        Ok(GuestDirtyLog::new(log, Some(Box::new(KvmDirtyLog::start(&self.shared)?))))
    }

    fn state(&self) -> Result<VmState, VmError> {
        let vm = &self.shared;
        let controllers = vm.controllers()?;
        let parts = VmParts::read(&vm.fd, controllers.as_ref(), &vm.config)?;
        Ok(VmState(VmStateOf::Kvm(Box::new(parts))))
    }

    fn set_state(&self, state: &VmState) -> Result<(), VmError> {
        let vm = &self.shared;
        let VmStateOf::Kvm(parts) = &state.0 else { return Err(VmError::foreign_state()) };
        let controllers = vm.controllers()?;
        parts.write(&vm.fd, controllers.as_ref(), &vm.config)
    }

    fn reset(&self) -> Result<(), VmError> {
        let vm = &self.shared;
        let controllers = vm.controllers()?;
        vm.reset_state()?.vm.write_chips(&vm.fd, controllers.as_ref(), &vm.config)
    }

    fn has_performance_monitors(&self) -> bool {
        arch::has_performance_monitors(&self.shared.host.kvm, &self.shared.config)
    }

    fn numa(&self) -> Option<Numa> {
        self.shared.config.numa.clone()
    }

    fn caches(&self) -> Option<Caches> {
        arch::with_processors(self.shared.caches.clone()?, &self.shared.host.facts)
    }

    fn address_bits(&self) -> u32 {
        arch::address_bits((&self.shared.host.kvm, &self.shared.host.facts))
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(sys::borrow(&self.shared.fd))
    }

    fn stats_reader(&self) -> Result<StatsReader, VmError> {
        StatsReader::new(sys::stats_fd(&self.shared.fd).map_err(call("KVM_GET_STATS_FD"))?)
    }
}

/// A line that sends a message, until this is dropped.
struct KvmRoute {
    vm: Weak<VmShared>,
    gsi: u32,
}

impl Route for KvmRoute {
    fn set(&self, message: MsiMessage) -> Result<(), VmError> {
        let Some(vm) = self.vm.upgrade() else { return Ok(()) };
        let mut routes = vm.routes();
        let before = routes.set(self.gsi, message)?;
        vm.set_routes(&routes).inspect_err(|_| {
            // The line exists: it was set just now.
            let _ = routes.set(self.gsi, before);
        })
    }
}

impl Drop for KvmRoute {
    fn drop(&mut self) {
        let Some(vm) = self.vm.upgrade() else { return };
        let mut routes = vm.routes();
        routes.remove(self.gsi);
        // A route that stays in the kernel's table is one that nobody signals.
        let _ = vm.set_routes(&routes);
    }
}

/// Connects a doorbell, or takes it away.
fn ioeventfd(vm: &VmFd, event: &Event, doorbell: Doorbell, connect: bool) -> errno::Result<()> {
    /// With the width of `value`'s type, or of any width.
    fn ioctl<T: Into<u64>>(
        vm: &VmFd,
        event: &EventFd,
        address: &IoEventAddress,
        value: T,
        connect: bool,
    ) -> errno::Result<()> {
        if connect {
            vm.register_ioevent(event, address, value)
        } else {
            vm.unregister_ioevent(event, address, value)
        }
    }
    let address = match doorbell.address {
        DoorbellAddress::Pio(port) => IoEventAddress::Pio(port.into()),
        DoorbellAddress::Mmio(address) => IoEventAddress::Mmio(address),
    };
    sys::with_eventfd(event, |event| match (doorbell.value, doorbell.size) {
        // Of any width: the kernel then knows enough from the address, and skips the instruction.
        (None, _) => ioctl(vm, event, &address, NoDatamatch, connect),
        (Some(value), Size::B1) => ioctl(vm, event, &address, value as u8, connect),
        (Some(value), Size::B2) => ioctl(vm, event, &address, value as u16, connect),
        (Some(value), Size::B4) => ioctl(vm, event, &address, value as u32, connect),
        (Some(value), Size::B8) => ioctl(vm, event, &address, value, connect),
    })
}
