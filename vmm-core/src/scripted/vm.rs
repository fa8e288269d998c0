//! The machine around scripted vCPUs.

use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};

use ossature_boot::{Caches, Numa};
use ossature_bus::{Event, MsiMessage};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{DirtyLog, Ram, RegisterPage};

use super::vcpu::ScriptedVcpu;
use super::wiring::{Line, Wiring};
use super::{Script, Scripted};
use crate::backend::sealed::Sealed;
use crate::guard::Route;
use crate::state::VmStateOf;
use crate::{
    Buses, Doorbell, GuestDirtyLog, Ioeventfd, Irqchip, Irqfd, MemorySlot, MsiRoute, StatsReader, Vcpu, Vm,
    VmConfig, VmError, VmState,
};

/// See [`Vm`].
#[derive(Debug)]
pub(super) struct ScriptedVm {
    config: VmConfig,
    scripts: Mutex<Vec<Script>>,
    remaining: Arc<AtomicUsize>,
    wiring: Arc<Wiring>,
    address_bits: u32,
    messages: bool,
}

impl ScriptedVm {
    pub(super) fn new(config: &VmConfig, scripts: Vec<Script>, scripted: &Scripted) -> Result<Self, VmError> {
        let (wiring, remaining) = (Arc::new(Wiring::new()?), Arc::clone(&scripted.remaining));
        Ok(Self {
            config: config.clone(),
            scripts: Mutex::new(scripts),
            remaining,
            wiring,
            address_bits: scripted.address_bits,
            messages: scripted.messages,
        })
    }

    fn needs_irqchip(&self, gsi: u32) -> Result<(), VmError> {
        if self.config.irqchip == Irqchip::None { Err(VmError::NoIrqchip { gsi }) } else { Ok(()) }
    }
}

/// A line that sends a message, until this is dropped.
struct ScriptedRoute {
    wiring: Arc<Wiring>,
    gsi: u32,
}

impl Route for ScriptedRoute {
    fn set(&self, message: MsiMessage) -> Result<(), VmError> {
        self.wiring.connected().routes.set(self.gsi, message).map(drop)
    }
}

impl Drop for ScriptedRoute {
    fn drop(&mut self) {
        self.wiring.connected().routes.remove(self.gsi);
    }
}

impl Sealed for ScriptedVm {}

impl Vm for ScriptedVm {
    fn has_ports(&self) -> bool {
        true
    }

    fn set_memory(&self, ram: &Ram) -> Result<(), VmError> {
        match &mut self.wiring.connected().ram {
            Some(_) => Err(VmError::MemoryAlreadySet),
            none => {
                *none = Some(ram.dma());
                Ok(())
            }
        }
    }

    fn map_register_page(
        &self,
        address: GuestAddress,
        page: &Arc<RegisterPage>,
    ) -> Result<Option<MemorySlot>, VmError> {
        let undo = self.wiring.connect(|connected| &mut connected.pages, (address.0, Arc::clone(page)));
        Ok(Some(MemorySlot::new(undo)))
    }

    fn irqfd(&self, event: &Arc<Event>, gsi: u32, resample: Option<&Arc<Event>>) -> Result<Irqfd, VmError> {
        self.needs_irqchip(gsi)?;
        let line = Line { gsi, event: Arc::clone(event), resample: resample.cloned() };
        Ok(Irqfd::new(self.wiring.connect(|connected| &mut connected.lines, line)))
    }

    fn check_edge_line(&self, gsi: u32) -> Result<(), VmError> {
        self.needs_irqchip(gsi)?;
        self.wiring.connected().edges.entry(gsi).or_default();
        Ok(())
    }

    fn raise_edge(&self, gsi: u32) -> Result<(), VmError> {
        self.needs_irqchip(gsi)?;
        self.wiring.raise_edge(gsi);
        Ok(())
    }

    fn set_irq_line(&self, gsi: u32, asserted: bool) -> Result<(), VmError> {
        self.needs_irqchip(gsi)?;
        self.wiring.set_level(gsi, asserted);
        Ok(())
    }

    fn ioeventfd(&self, event: &Arc<Event>, doorbell: Doorbell) -> Result<Ioeventfd, VmError> {
        let undo = self.wiring.connect(|connected| &mut connected.doorbells, (doorbell, Arc::clone(event)));
        Ok(Ioeventfd::new(undo))
    }

    fn has_messages(&self) -> bool {
        self.messages
    }

    fn add_msi_route(&self, message: MsiMessage) -> Result<MsiRoute, VmError> {
        let gsi = self.wiring.connected().routes.add(message)?;
        let route = ScriptedRoute { wiring: Arc::clone(&self.wiring), gsi };
        self.needs_irqchip(gsi).map(|()| MsiRoute::new(gsi, Arc::new(route)))
    }

    fn create_vcpu(&self, index: u32, buses: Buses) -> Result<Vcpu, VmError> {
        if index >= self.config.cpus {
            return Err(VmError::TooManyVcpus { index, max: self.config.cpus });
        }
        let mut scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        let script = scripts.get_mut(index as usize).map(std::mem::take).unwrap_or_default();
        let vcpu = ScriptedVcpu::new(index, script, Arc::clone(&self.wiring), Arc::clone(&self.remaining))?;
        Ok(Vcpu::new(Box::new(vcpu), buses))
    }

    fn dirty_log(&self, ram: &Ram) -> Result<GuestDirtyLog, VmError> {
        let log = DirtyLog::start(ram).map_err(|source| VmError::DirtyLog { source })?;
        Ok(GuestDirtyLog::new(log, None))
    }

    fn state(&self) -> Result<VmState, VmError> {
        let connected = self.wiring.connected();
        let asserted = connected.levels.iter().filter(|(_, asserted)| **asserted).map(|(gsi, _)| *gsi);
        Ok(VmState(VmStateOf::Scripted(asserted.collect())))
    }

    fn set_state(&self, state: &VmState) -> Result<(), VmError> {
        let VmStateOf::Scripted(asserted) = &state.0 else { return Err(VmError::foreign_state()) };
        self.reset()?;
        asserted.iter().for_each(|gsi| self.wiring.set_level(*gsi, true));
        Ok(())
    }

    fn reset(&self) -> Result<(), VmError> {
        self.wiring.connected().levels.values_mut().for_each(|asserted| *asserted = false);
        Ok(())
    }

    fn has_performance_monitors(&self) -> bool {
        false
    }

    fn numa(&self) -> Option<Numa> {
        self.config.numa.clone()
    }

    fn caches(&self) -> Option<Caches> {
        None
    }

    fn address_bits(&self) -> u32 {
        self.address_bits
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn stats_reader(&self) -> Result<StatsReader, VmError> {
        Err(VmError::Unsupported { what: "a counter of a scripted machine" })
    }
}
