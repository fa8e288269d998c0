//! From parts to a machine: layout, memory, devices, boot, vCPUs, in this order.

use std::collections::HashSet;
use std::sync::Arc;

use ossature_boot::{Node, NodeKind, NodeRange, Platform, RamRange};
use ossature_bus::{
    AddressSpace, Assigned, Attached, Bus, Device, DoorbellRequest, Event, EventSink, NodeHint, Registration,
    Requires,
};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Ram, RamConfig, RegisterPage};

use super::error::{BuildError, BuildErrors};
use super::events::{EventLog, MachineEvent};
use super::outcome::{MachineHandle, Shared};
use super::payload::Payload;
use super::plan::{self, Place};
use super::timeline::Stopwatch;
use super::{LifecycleState, Machine};
use crate::{Buses, Doorbell, DoorbellAddress, Hypervisor, KickSignal, Vm, VmConfig};

/// The parts of a machine. Nothing happens on the host before [`build`](Self::build).
#[must_use]
pub struct MachineBuilder {
    name: String,
    cpus: u32,
    ram: RamConfig,
    payload: Option<Box<dyn Payload>>,
    devices: Vec<Box<dyn Device>>,
    statistics: bool,
    kick: KickSignal,
    shared: Arc<Shared>,
}

impl MachineBuilder {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            cpus: 1,
            ram: RamConfig::new(128 << 20),
            payload: None,
            devices: Vec::new(),
            statistics: false,
            kick: KickSignal::default(),
            shared: Arc::new(Shared::new()),
        }
    }

    /// A handle of the machine to be, for devices and signal handlers that stop it. A machine that is stopped before
    /// it has started does not start.
    pub fn handle(&self) -> MachineHandle {
        MachineHandle { shared: Arc::clone(&self.shared) }
    }

    /// The number of vCPUs; 1 by default.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Guest memory; 128 MiB by default.
    pub fn memory(mut self, ram: RamConfig) -> Self {
        self.ram = ram;
        self
    }

    /// What the machine runs: a [`Linux`](super::Linux) kernel, or a closure that fills guest memory.
    pub fn payload(mut self, payload: impl Payload + 'static) -> Self {
        self.payload = Some(Box::new(payload));
        self
    }

    /// Adds a device. Guests find devices of one kind in the order in which they were added; where a device is
    /// placed depends on the ids of all devices, not on their order.
    pub fn device(mut self, device: impl Device + 'static) -> Self {
        self.devices.push(Box::new(device));
        self
    }

    /// Adds devices, as [`device`](Self::device) does one by one.
    pub fn devices(mut self, devices: impl IntoIterator<Item = Box<dyn Device>>) -> Self {
        self.devices.extend(devices);
        self
    }

    /// The signal that interrupts vCPUs; by default one that needs no handler.
    pub fn kick_signal(mut self, kick: KickSignal) -> Self {
        self.kick = kick;
        self
    }

    /// Also shows the hypervisor's own counters in [`Machine::metrics`]: a descriptor for the machine and one for
    /// each vCPU.
    pub fn statistics(mut self) -> Self {
        self.statistics = true;
        self
    }

    /// Builds the machine, or says everything that is wrong with its configuration. On an error nothing is left
    /// behind.
    pub fn build(self, hypervisor: &dyn Hypervisor) -> Result<Machine, BuildErrors> {
        let Self { name, cpus, ram, payload, mut devices, statistics, kick, shared } = self;
        let mut watch = Stopwatch::start();
        let requires: Vec<Requires> = devices.iter().map(|device| device.requires()).collect();
        let ids: Vec<&str> = devices.iter().map(|device| device.id()).collect();
        let mut errors = check(cpus, &ids);
        let places = plan::plan(&ids, &requires).unwrap_or_else(|conflicts| {
            errors.extend(conflicts);
            Vec::new()
        });
        watch.lap("layout");
        let ram = Ram::new(&ram).map_err(|error| errors.push(BuildError::Ram(error))).ok();
        let Some(ram) = ram.filter(|_| errors.is_empty()) else {
            return Err(BuildErrors(errors));
        };
        watch.lap("memory");

        let vm = hypervisor.create_vm(&VmConfig { cpus, kick, ..VmConfig::default() })?;
        vm.set_memory(&ram)?;
        watch.lap("vm");
        let (mut ports, mut memory) = (Vec::new(), Vec::new());
        let mut nodes = Vec::new();
        // All memory comes before all doorbells: after one, the kernel takes milliseconds to change its memory slots.
        let parts = || requires.iter().zip(&places);
        let pages = devices
            .iter()
            .zip(parts())
            .map(|(device, (requires, places))| register_pages(&*vm, device.id(), requires, places));
        let pages: Vec<_> = pages.collect::<Result<_, _>>()?;
        for ((device, (requires, places)), pages) in devices.iter_mut().zip(parts()).zip(pages) {
            let id = device.id().to_owned();
            let assigned = Assigned { pages, ..assign(&*vm, &ram, &shared.events, &id, requires, places)? };
            let attached =
                device.attach(assigned).map_err(|source| BuildError::Attach { id: id.clone(), source })?;
            nodes.extend(node(&id, attached.node, requires, places));
            registrations(&mut ports, &mut memory, id, attached, requires, places)?;
        }
        let (pio, mmio) = (Bus::new(AddressSpace::Pio), Bus::new(AddressSpace::Mmio));
        pio.insert_all(ports).and_then(|()| mmio.insert_all(memory)).map_err(BuildError::Bus)?;
        watch.lap("devices");

        let platform = Platform {
            cpus: (0..cpus).collect(),
            ram: ram.slots().map(|slot| RamRange { base: slot.guest_addr, len: slot.size }).collect(),
            nodes,
        };
        let start = payload
            .map(|payload| payload.load(ram.map(), &platform))
            .transpose()
            .map_err(|source| BuildError::Payload { source })?;
        watch.lap("payload");

        let mut vcpus = Vec::new();
        for index in 0..cpus {
            let buses = Buses { pio: pio.cursor(), mmio: mmio.cursor() };
            vcpus.push(vm.create_vcpu(index, buses)?);
        }
        if let (Some(registers), Some(boot)) = (&start, vcpus.first_mut()) {
            boot.set_registers(registers)?;
        }
        let mut statistics_of = Vec::new();
        if statistics {
            statistics_of.push(("kvm".to_owned(), vm.stats_reader()?));
            for (index, vcpu) in vcpus.iter().enumerate() {
                statistics_of.push((format!("vcpu{index}"), vcpu.stats_reader()?));
            }
        }
        watch.lap("vcpus");
        Ok(Machine {
            state: LifecycleState::Created,
            phases: watch.phases(),
            shared,
            vcpus,
            threads: Vec::new(),
            name,
            devices,
            statistics: statistics_of,
            _vm: vm,
            ram,
        })
    }
}

fn check(cpus: u32, ids: &[&str]) -> Vec<BuildError> {
    let mut errors = Vec::new();
    if cpus == 0 {
        errors.push(BuildError::NoCpu);
    }
    let mut seen = HashSet::new();
    for (index, id) in ids.iter().enumerate() {
        if id.is_empty() {
            errors.push(BuildError::EmptyId { index });
        } else if !seen.insert(id) {
            errors.push(BuildError::DuplicateId { id: (*id).to_owned() });
        }
    }
    errors
}

/// Makes the pages of registers that a device asked for and lets the guest read them.
fn register_pages(
    vm: &dyn Vm,
    id: &str,
    requires: &Requires,
    places: &Place,
) -> Result<Vec<Arc<RegisterPage>>, BuildError> {
    let mut pages = Vec::new();
    for &range in &requires.pages {
        let page = RegisterPage::new().map_err(|source| BuildError::Host { id: id.to_owned(), source })?;
        let page = Arc::new(page);
        if let Some(&base) = places.ranges.get(range) {
            vm.map_register_page(GuestAddress(base), Arc::clone(&page))?;
        }
        pages.push(page);
    }
    Ok(pages)
}

/// Makes what a device asked for, but for its pages, and connects it to the hypervisor.
fn assign(
    vm: &dyn Vm,
    ram: &Ram,
    events: &EventLog,
    id: &str,
    requires: &Requires,
    places: &Place,
) -> Result<Assigned, BuildError> {
    let event = || match Event::new() {
        Ok(event) => Ok(Arc::new(event)),
        Err(source) => Err(BuildError::Host { id: id.to_owned(), source }),
    };
    let mut interrupts = Vec::new();
    for &gsi in &places.interrupts {
        let line = event()?;
        vm.irqfd(&line, gsi)?;
        interrupts.push(line);
    }
    let mut doorbells = Vec::new();
    for request in &requires.doorbells {
        let bell = event()?;
        if let Some(doorbell) = doorbell(request, requires, places) {
            vm.ioeventfd(&bell, doorbell)?;
        }
        doorbells.push(bell);
    }
    let (log, id) = (events.clone(), id.to_owned());
    let events = EventSink::new(move |event| log.push(MachineEvent::Device { id: id.clone(), event }));
    Ok(Assigned { dma: ram.dma(), interrupts, doorbells, pages: Vec::new(), events })
}

fn doorbell(request: &DoorbellRequest, requires: &Requires, places: &Place) -> Option<Doorbell> {
    let range = requires.ranges.get(request.range)?;
    let address = places.ranges.get(request.range)? + request.offset;
    let address = match range.space {
        AddressSpace::Mmio => DoorbellAddress::Mmio(address),
        AddressSpace::Pio => DoorbellAddress::Pio(u16::try_from(address).ok()?),
    };
    Some(Doorbell { address, size: request.size, value: request.value })
}

/// Sorts a device's ports by the bus that they belong on.
fn registrations(
    ports: &mut Vec<Registration>,
    memory: &mut Vec<Registration>,
    owner: String,
    attached: Attached,
    requires: &Requires,
    places: &Place,
) -> Result<(), BuildError> {
    let (asked, given) = (requires.ranges.len(), attached.ports.len());
    if asked != given {
        return Err(BuildError::Ports { id: owner, asked, given });
    }
    for ((range, &base), device) in requires.ranges.iter().zip(&places.ranges).zip(attached.ports) {
        let bus = match range.space {
            AddressSpace::Mmio => &mut *memory,
            AddressSpace::Pio => &mut *ports,
        };
        bus.push(Registration { base, size: range.size, owner: owner.clone(), device });
    }
    Ok(())
}

/// What the boot tables say about a device.
fn node(id: &str, hint: NodeHint, requires: &Requires, places: &Place) -> Option<Node> {
    let kind = match hint {
        NodeHint::VirtioMmio => NodeKind::VirtioMmio,
        NodeHint::Serial16550 => NodeKind::Serial16550,
        NodeHint::Rtc => NodeKind::Rtc,
        NodeHint::I8042 => NodeKind::I8042,
        NodeHint::AcpiPower => NodeKind::AcpiPower,
        NodeHint::Pvpanic => NodeKind::Pvpanic,
        _ => return None,
    };
    let ranges = requires.ranges.iter().zip(&places.ranges).map(|(range, &base)| match range.space {
        AddressSpace::Mmio => NodeRange::Memory { base, len: range.size },
        // The plan keeps ports below 64 Ki.
        AddressSpace::Pio => NodeRange::Io { base: base as u16, len: range.size as u16 },
    });
    Some(Node { id: id.to_owned(), kind, ranges: ranges.collect(), interrupts: places.interrupts.clone() })
}
