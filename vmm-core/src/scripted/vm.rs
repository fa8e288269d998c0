//! The machine around scripted vCPUs: what is connected to it.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_bus::{Event, Size};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, PAGE_SIZE, Ram, RegisterPage};

use super::Script;
use super::vcpu::ScriptedVcpu;
use crate::arch::IrqRoutes;
use crate::backend::sealed::Sealed;
use crate::{
    Buses, Doorbell, DoorbellAddress, Irqchip, MsiMessage, StatsReader, Vcpu, Vm, VmConfig, VmError,
};

/// See [`Vm`].
#[derive(Debug)]
pub(super) struct ScriptedVm {
    config: VmConfig,
    scripts: Mutex<Vec<Script>>,
    remaining: Arc<AtomicUsize>,
    board: Arc<Board>,
}

/// What the vCPUs see of the machine.
#[derive(Debug, Default)]
pub(super) struct Board {
    connected: Mutex<Connected>,
}

#[derive(Debug, Default)]
struct Connected {
    ram: Option<Dma>,
    pages: Vec<(u64, Arc<RegisterPage>)>,
    interrupts: Vec<(u32, Arc<Event>)>,
    doorbells: Vec<(Doorbell, Arc<Event>)>,
    routes: IrqRoutes,
}

impl ScriptedVm {
    pub(super) fn new(config: &VmConfig, scripts: Vec<Script>, remaining: Arc<AtomicUsize>) -> Self {
        Self { config: config.clone(), scripts: Mutex::new(scripts), remaining, board: Arc::default() }
    }

    fn needs_irqchip(&self, gsi: u32) -> Result<(), VmError> {
        if self.config.irqchip == Irqchip::None { Err(VmError::NoIrqchip { gsi }) } else { Ok(()) }
    }
}

impl Board {
    fn connected(&self) -> MutexGuard<'_, Connected> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ram(&self) -> Option<Dma> {
        self.connected().ram.clone()
    }

    /// The events that raise line `gsi`.
    pub(super) fn interrupts(&self, gsi: u32) -> Vec<Arc<Event>> {
        self.connected()
            .interrupts
            .iter()
            .filter(|(line, _)| *line == gsi)
            .map(|(_, e)| Arc::clone(e))
            .collect()
    }

    /// The event that a write rings.
    pub(super) fn doorbell(&self, address: DoorbellAddress, size: Size, value: u64) -> Option<Arc<Event>> {
        let rings = |bell: &Doorbell| {
            let any_width = bell.value.is_none() && matches!(address, DoorbellAddress::Mmio(_));
            bell.address == address
                && (any_width || bell.size == size)
                && bell.value.is_none_or(|v| v == value & size.mask())
        };
        self.connected().doorbells.iter().find(|(bell, _)| rings(bell)).map(|(_, e)| Arc::clone(e))
    }

    /// What a read of a register page gives.
    pub(super) fn page_value(&self, address: u64, size: Size) -> Option<u64> {
        let connected = self.connected();
        let inside = |base: u64| address >= base && address - base <= PAGE_SIZE as u64 - size.bytes();
        let (base, page) = connected.pages.iter().find(|(base, _)| inside(*base))?;
        let offset = (address - base) as usize;
        let byte = |at: usize| u64::from(page.load(at & !3) >> (8 * (at & 3)) & 0xff);
        Some((0..size as usize).rev().fold(0, |value, n| value << 8 | byte(offset + n)))
    }
}

impl Sealed for ScriptedVm {}

impl Vm for ScriptedVm {
    fn set_memory(&self, ram: &Ram) -> Result<(), VmError> {
        match &mut self.board.connected().ram {
            Some(_) => Err(VmError::MemoryAlreadySet),
            none => {
                *none = Some(ram.dma());
                Ok(())
            }
        }
    }

    fn map_register_page(&self, address: GuestAddress, page: Arc<RegisterPage>) -> Result<bool, VmError> {
        self.board.connected().pages.push((address.0, page));
        Ok(true)
    }

    fn irqfd(&self, event: &Arc<Event>, gsi: u32) -> Result<(), VmError> {
        self.needs_irqchip(gsi)?;
        self.board.connected().interrupts.push((gsi, Arc::clone(event)));
        Ok(())
    }

    fn ioeventfd(&self, event: &Arc<Event>, doorbell: Doorbell) -> Result<(), VmError> {
        self.board.connected().doorbells.push((doorbell, Arc::clone(event)));
        Ok(())
    }

    fn add_msi_route(&self, message: MsiMessage) -> Result<u32, VmError> {
        let gsi = self.board.connected().routes.add(message)?;
        self.needs_irqchip(gsi).map(|()| gsi)
    }

    fn set_msi_route(&self, gsi: u32, message: MsiMessage) -> Result<(), VmError> {
        self.board.connected().routes.set(gsi, message).map(drop)
    }

    fn create_vcpu(&self, index: u32, buses: Buses) -> Result<Vcpu, VmError> {
        if index >= self.config.cpus {
            return Err(VmError::TooManyVcpus { index, max: self.config.cpus });
        }
        let mut scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        let script = scripts.get_mut(index as usize).map(std::mem::take).unwrap_or_default();
        let vcpu = ScriptedVcpu::new(index, script, Arc::clone(&self.board), Arc::clone(&self.remaining))?;
        Ok(Vcpu::new(Box::new(vcpu), buses))
    }

    fn set_dirty_log(&self, _: bool) -> Result<(), VmError> {
        Ok(())
    }

    fn take_dirty_log(&self, _: &mut dyn FnMut(GuestAddress, &[u64])) -> Result<(), VmError> {
        Ok(())
    }

    fn stats_reader(&self) -> Result<StatsReader, VmError> {
        Err(VmError::Unsupported { what: "a counter of a scripted machine" })
    }
}
