//! The board: which devices a machine has, where they are, and what connects them. It alone carries out what devices
//! ask for, and takes each device through its life.

mod claims;
mod place;
mod remap;
mod replace;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_boot::{Node, NodeInterrupt, NodeKind, NodeRange, Platform, RamRange};
use ossature_bus::{
    AddressSpace, Assigned, Bus, Device, DeviceError, DeviceState, Handover, Identity, Metric, MetricVisitor,
    Panic, RangeId, Registration, Requires, Retired, Syscall,
};
use ossature_memory::{ListenerGuard, Ram, RamError};

use self::claims::RamClaims;
use self::place::place_beside;
pub(super) use self::place::{Fitting, Placed, place, place_again};
use super::error::{BuildError, BuildErrors, LifecycleError};
use super::lines::Lines;
use super::plan::{Above, Place};
use super::snapshot::Shape;
use super::status::Status;
use super::wiring::{Stock, WiredRange, Wiring};
use crate::{Buses, StatsReader, Vm, arch};

/// Where RAM ends.
pub(super) fn ram_end(ram: &Ram) -> u64 {
    ram.slots().map(|slot| slot.guest_addr.saturating_add(slot.size)).max().unwrap_or_default()
}

/// A device and what it was given.
struct Slot {
    device: Box<dyn Device>,
    requires: Requires,
    /// Where it was put at first: a reset takes it back there.
    place: Place,
    kind: NodeKind,
    assigned: Assigned,
}

pub(super) struct Board {
    // Dropped in this order: devices, then the hypervisor's machine, and then connections, which go with it.
    slots: Mutex<Vec<Slot>>,
    vm: Arc<dyn Vm>,
    /// By the device's id. Taken by vCPUs too: held for no longer than an edit.
    wired: Mutex<BTreeMap<String, Wiring>>,
    pio: Bus,
    mmio: Bus,
    lines: Lines,
    status: Arc<Status>,
    next_range: AtomicU32,
    refused_moves: AtomicU64,
    /// The hypervisor's counters, by scope.
    statistics: Mutex<Vec<(String, StatsReader)>>,
    ram: Arc<Ram>,
    /// What of memory was not written yet can be read from a disk again.
    from_disk: bool,
    _claims: ListenerGuard,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Board {
    /// A board without devices. Fails if RAM is where the platform is.
    pub(super) fn new(
        vm: Arc<dyn Vm>,
        ram: Arc<Ram>,
        from_disk: bool,
        status: Arc<Status>,
    ) -> Result<Self, RamError> {
        let mmio = Bus::new(AddressSpace::Mmio);
        let claims = ram.listen(Arc::new(RamClaims(mmio.clone())))?;
        Ok(Self {
            slots: Mutex::default(),
            vm,
            wired: Mutex::default(),
            pio: Bus::new(AddressSpace::Pio),
            mmio,
            lines: Lines::default(),
            status,
            next_range: AtomicU32::new(0),
            refused_moves: AtomicU64::new(0),
            statistics: Mutex::default(),
            ram,
            from_disk,
            _claims: claims,
        })
    }

    pub(super) fn vm(&self) -> &Arc<dyn Vm> {
        &self.vm
    }

    pub(super) fn ram(&self) -> &Ram {
        &self.ram
    }

    pub(super) fn is_from_disk(&self) -> bool {
        self.from_disk
    }

    pub(super) fn buses(&self) -> Buses {
        Buses::new(self.pio.cursor(), self.mmio.cursor())
    }

    fn bus(&self, space: AddressSpace) -> &Bus {
        match space {
            AddressSpace::Mmio => &self.mmio,
            AddressSpace::Pio => &self.pio,
        }
    }

    /// What the guest is told about: processors, RAM and the devices as they are.
    pub(super) fn platform(&self, cpus: u32) -> Platform {
        let own = arch::platform_nodes(cpus, self.vm.has_performance_monitors(), self.vm.has_messages());
        let numa = self.vm.numa();
        let slots = lock(&self.slots);
        Platform::new(
            (0..cpus).map(|index| arch::cpu_id(arch::vcpu_id(index, cpus, numa.as_ref()))).collect(),
            self.ram.slots().map(|slot| RamRange::new(slot.guest_addr, slot.size)).collect(),
            own.into_iter().chain(slots.iter().filter_map(Slot::node)).collect(),
        )
        .with_caches(self.vm.caches())
        .with_numa(numa)
    }

    /// What has to be the same where the machine's state is restored.
    pub(super) fn shape(&self, cpus: u32) -> Shape {
        let slots = lock(&self.slots);
        let devices = slots.iter().map(|slot| (slot.device.id().to_owned(), slot.place.clone()));
        Shape::new(cpus, self.vm.numa(), devices.collect())
    }

    /// Adds a device beside those that are there, which keep their places.
    pub(super) fn add(&self, device: Box<dyn Device>) -> Result<(), BuildErrors> {
        let mut slots = lock(&self.slots);
        let above = Above { ram_end: ram_end(&self.ram), address_bits: self.vm.address_bits() };
        let placed = place_beside(&slots, vec![device], above).map_err(BuildErrors)?;
        self.check_reach(&placed)?;
        slots.extend(self.connect(placed, true)?);
        Ok(())
    }

    /// Adds the devices of a new machine.
    pub(super) fn add_placed(&self, placed: Vec<Placed>) -> Result<(), BuildErrors> {
        self.check_reach(&placed)?;
        let slots = self.connect(placed, false)?;
        *lock(&self.slots) = slots;
        Ok(())
    }

    /// Fails if devices have ports that no guest can reach, or messages that reach no guest.
    fn check_reach(&self, placed: &[Placed]) -> Result<(), BuildErrors> {
        let id = |placed: &Placed| placed.device.id().to_owned();
        let has_ports =
            |placed: &&Placed| placed.requires.registers.iter().any(|r| r.space == AddressSpace::Pio);
        let has_messages = |placed: &&Placed| !placed.requires.messages.is_empty();
        let mut errors = Vec::new();
        if !self.vm.has_ports() {
            errors
                .extend(placed.iter().filter(has_ports).map(|placed| BuildError::NoPorts { id: id(placed) }));
        }
        if placed.iter().any(|placed| has_messages(&placed)) && !self.vm.has_messages() {
            let without = placed.iter().filter(has_messages);
            errors.extend(without.map(|placed| BuildError::NoMessages { id: id(placed) }));
        }
        if errors.is_empty() { Ok(()) } else { Err(BuildErrors(errors)) }
    }

    /// Connects and attaches devices, and puts them on the buses. All of them, or none. The guest may run meanwhile if
    /// they are added `live`.
    fn connect(&self, placed: Vec<Placed>, live: bool) -> Result<Vec<Slot>, BuildError> {
        let mut stock = Stock::new(placed.iter().map(|placed| &placed.requires), !live);
        let ranges: Vec<Vec<WiredRange>> = placed
            .iter()
            .map(|Placed { device, requires, place }| {
                stock.ranges(&*self.vm, device.id(), requires, place, || self.next_range())
            })
            .collect::<Result<_, _>>()?;
        let mut attached: Vec<(Slot, Wiring)> = Vec::with_capacity(placed.len());
        for (placed, ranges) in placed.into_iter().zip(ranges) {
            match self.attach(placed, ranges, live) {
                Ok(one) => attached.push(one),
                Err(error) => {
                    detach_all(attached);
                    return Err(error);
                }
            }
        }
        // Until they are known here, whatever a vCPU has a device ask for waits.
        let mut wired = lock(&self.wired);
        if let Err(error) = self.register(&attached) {
            drop(wired);
            detach_all(attached);
            return Err(BuildError::Bus(error));
        }
        let slots = attached.into_iter().map(|(slot, wiring)| {
            wired.insert(slot.device.id().to_owned(), wiring);
            slot
        });
        Ok(slots.collect())
    }

    fn next_range(&self) -> RangeId {
        RangeId(self.next_range.fetch_add(1, Ordering::Relaxed))
    }

    fn attach(
        &self,
        placed: Placed,
        ranges: Vec<WiredRange>,
        live: bool,
    ) -> Result<(Slot, Wiring), BuildError> {
        let Placed { mut device, requires, place } = placed;
        let id = device.id().to_owned();
        let events = self.status.sink(&id);
        let (mut wiring, assigned) =
            Wiring::new(&self.vm, &self.ram, &self.lines, (&id, events), (&requires, &place), ranges)?;
        let kind = caught(|| device.attach(assigned.clone()))
            .map_err(|source| BuildError::Attach { id: id.clone(), source: source.without_context(&id) })?;
        if let Some(silent) = assigned.all_registers().iter().find(|registers| registers.port().is_none()) {
            let name = silent.name();
            // It is in the way of nobody: it has not been resumed.
            let _ = caught(|| device.detach());
            return Err(BuildError::Unanswered { id, name });
        }
        if let Err(error) = if live { wiring.map_pages(&*self.vm) } else { Ok(()) } {
            let _ = caught(|| device.detach());
            return Err(error.into());
        }
        Ok((Slot { device, requires, place, kind, assigned }, wiring))
    }

    /// Puts what answers on the buses.
    fn register(&self, attached: &[(Slot, Wiring)]) -> Result<(), ossature_bus::BusError> {
        let of = |space| {
            let all = attached
                .iter()
                .flat_map(|(slot, wiring)| wiring.ranges.iter().map(move |range| (slot.device.id(), range)));
            all.filter_map(move |(id, range)| {
                let base = range.registers.base().filter(|_| range.request.space == space)?;
                let device = range.registers.port()?;
                Some(Registration::new(base, range.request.size, id, device))
            })
        };
        self.pio.insert_all(of(AddressSpace::Pio))?;
        self.mmio.insert_all(of(AddressSpace::Mmio)).inspect_err(|_| {
            for registration in of(AddressSpace::Pio) {
                drop(self.pio.remove(registration.base));
            }
        })
    }

    /// Removes a device. `sync` makes every vCPU take notice of the buses; from then on nothing reaches the device. One
    /// that cannot be quiesced stays, unless it `must_go`.
    pub(super) fn remove(
        &self,
        id: &str,
        must_go: bool,
        sync: impl FnOnce() -> Result<(), LifecycleError>,
    ) -> Result<Box<dyn Device>, LifecycleError> {
        let mut slots = lock(&self.slots);
        let at = position(&slots, id)?;
        if let Some(slot) = slots.get_mut(at) {
            let quiet = self.step(&mut *slot.device, |device| device.quiesce());
            quiet.or_else(|source| if must_go { Ok(()) } else { Err(failed(id, source)) })?;
        }
        let mut slot = slots.remove(at);
        let wiring = lock(&self.wired).remove(id);
        let mut retired = Vec::new();
        for range in wiring.iter().flat_map(|wiring| &wiring.ranges) {
            let Some(base) = range.registers.base() else { continue };
            retired.extend(self.bus(range.request.space).remove(base).ok());
        }
        drop(wiring);
        sync()?;
        retired.iter().for_each(Retired::wait);
        caught(|| slot.device.detach()).map_err(|source| failed(id, source))?;
        Ok(slot.device)
    }

    /// Returns true if there is a device of this id.
    pub(super) fn has(&self, id: &str) -> bool {
        position(&lock(&self.slots), id).is_ok()
    }

    /// The id of the device that `range` belongs to.
    pub(super) fn owner_of(&self, range: RangeId) -> Option<String> {
        let wired = lock(&self.wired);
        let mut devices = wired.iter();
        let has = |wiring: &Wiring| wiring.ranges.iter().any(|wired| wired.registers.id() == range);
        devices.find(|(_, wiring)| has(wiring)).map(|(id, _)| id.clone())
    }

    /// The id of the device that answers `address`.
    pub(super) fn owner(&self, space: AddressSpace, address: u64) -> Option<String> {
        let wired = lock(&self.wired);
        let answers = |range: &WiredRange| {
            let inside = |base: u64| address >= base && address - base < range.request.size;
            range.request.space == space && range.registers.base().is_some_and(inside)
        };
        let mut devices = wired.iter();
        devices.find(|(_, wiring)| wiring.ranges.iter().any(answers)).map(|(id, _)| id.clone())
    }

    /// Takes a device of the machine through a step. If it panics, the machine ends (row E1).
    fn step<R>(
        &self,
        device: &mut dyn Device,
        step: impl FnOnce(&mut dyn Device) -> Result<R, DeviceError>,
    ) -> Result<R, DeviceError> {
        Panic::catch(|| step(device)).unwrap_or_else(|panic| {
            let error = panicked(&panic);
            self.status.panicked(device.id(), panic.message);
            Err(error)
        })
    }

    /// Takes each device through a step; the first failure is told, but none is left out.
    fn each(&self, step: impl Fn(&mut dyn Device) -> Result<(), DeviceError>) -> Result<(), LifecycleError> {
        let mut first = Ok(());
        for slot in lock(&self.slots).iter_mut() {
            if let Err(source) = self.step(&mut *slot.device, &step) {
                first = first.and(Err(failed(slot.device.id(), source)));
            }
        }
        first
    }

    pub(super) fn quiesce(&self) -> Result<(), LifecycleError> {
        self.each(|device| device.quiesce())
    }

    pub(super) fn resume(&self) -> Result<(), LifecycleError> {
        self.each(|device| device.resume())
    }

    pub(super) fn resume_one(&self, id: &str) -> Result<(), LifecycleError> {
        let mut slots = lock(&self.slots);
        let at = position(&slots, id)?;
        let Some(slot) = slots.get_mut(at) else { return Ok(()) };
        self.step(&mut *slot.device, |device| device.resume()).map_err(|source| failed(id, source))
    }

    /// Resets each device, and takes ranges that were moved back to where they began.
    pub(super) fn reset(&self) -> Result<(), LifecycleError> {
        self.each(|device| device.reset())?;
        let slots = lock(&self.slots);
        for slot in slots.iter() {
            for (registers, &place) in slot.assigned.all_registers().iter().zip(&slot.place.registers) {
                // The effect of what is done below.
                let _ = registers.move_to(place);
            }
        }
        self.settle(&slots)
    }

    /// The states of all devices that have one, by id.
    pub(super) fn save(&self) -> Result<Vec<(String, Handover<'static>)>, LifecycleError> {
        let mut states = Vec::new();
        for slot in lock(&self.slots).iter_mut() {
            let id = slot.device.id().to_owned();
            let saved = self.step(&mut *slot.device, |device| device.save());
            match saved.map_err(|source| failed(&id, source))? {
                DeviceState::Saved(handover) => states.push((id, handover)),
                DeviceState::Unsupported { reason } => {
                    return Err(LifecycleError::Unsupported { id, reason });
                }
                _ => {}
            }
        }
        Ok(states)
    }

    /// Restores all devices from the states of a machine of the same devices, or refuses and leaves them as they were.
    pub(super) fn restore(&self, states: Vec<(String, Handover<'static>)>) -> Result<(), LifecycleError> {
        let before = self.save()?;
        let ids = |states: &[(String, Handover<'static>)]| -> BTreeSet<String> {
            states.iter().map(|(id, _)| id.clone()).collect()
        };
        let (given, expected) = (ids(&states), ids(&before));
        if let Some(id) = given.symmetric_difference(&expected).next() {
            let (id, missing) = (id.clone(), expected.contains(id));
            return Err(LifecycleError::OtherDevices { id, missing });
        }
        self.restore_all(states).inspect_err(|_| {
            // Each was restored from a state of its own making a moment ago, or has not been touched.
            let _ = self.restore_all(before);
        })
    }

    /// Restores all devices of a new machine from the states of one of the same devices. After an error, they are as they
    /// happen to be.
    pub(super) fn take_over(
        &self,
        states: &[(String, Handover<'static>)],
        to_clone: bool,
    ) -> Result<(), LifecycleError> {
        let mut slots = lock(&self.slots);
        for (id, _) in states {
            position(&slots, id)
                .map_err(|_| LifecycleError::OtherDevices { id: id.clone(), missing: false })?;
        }
        for slot in slots.iter_mut() {
            let id = slot.device.id().to_owned();
            let Some((_, saved)) = states.iter().find(|(other, _)| *other == id) else {
                let own = self.step(&mut *slot.device, |device| device.save());
                match own.map_err(|source| failed(&id, source))? {
                    DeviceState::Saved(_) => return Err(LifecycleError::OtherDevices { id, missing: true }),
                    _ => continue,
                }
            };
            let mut handover = Handover::new(saved.state.borrowed());
            handover.to_clone = to_clone;
            let restored = self.step(&mut *slot.device, |device| Ok(device.restore(handover)));
            let restored = restored.map_err(|source| failed(&id, source))?;
            restored.map_err(|source| LifecycleError::State { id, source })?;
        }
        self.settle(&slots)
    }

    /// What of its devices is no other guest's.
    pub(super) fn identities(&self) -> Vec<Identity> {
        lock(&self.slots).iter().flat_map(|slot| slot.device.identities()).collect()
    }

    fn restore_all(&self, states: Vec<(String, Handover<'static>)>) -> Result<(), LifecycleError> {
        let mut slots = lock(&self.slots);
        for (id, handover) in states {
            let at = position(&slots, &id)?;
            let Some(slot) = slots.get_mut(at) else { continue };
            let restored = self.step(&mut *slot.device, |device| Ok(device.restore(handover)));
            let restored = restored.map_err(|source| failed(&id, source))?;
            restored.map_err(|source| LifecycleError::State { id, source })?;
        }
        self.settle(&slots)
    }

    /// The system calls that its devices make while the machine runs.
    pub(super) fn syscalls(&self) -> BTreeSet<Syscall> {
        lock(&self.slots).iter().flat_map(|slot| slot.device.syscalls()).copied().collect()
    }

    pub(super) fn set_statistics(&self, statistics: Vec<(String, StatsReader)>) {
        *lock(&self.statistics) = statistics;
    }

    /// Shows every metric with its scope.
    pub(super) fn metrics(&self, visit: &mut dyn FnMut(&str, &Metric<'_>, u64)) {
        for slot in lock(&self.slots).iter() {
            slot.device.metrics(&mut Scoped { scope: slot.device.id(), visit });
        }
        let refused_moves =
            Metric::counter("refused_moves", "Moves of registers by the guest to where they cannot be.");
        visit("machine", &refused_moves, self.refused_moves.load(Ordering::Relaxed));
        for (scope, reader) in lock(&self.statistics).iter() {
            for stat in reader.read().unwrap_or_default() {
                // Histograms are for tools that read the descriptor themselves.
                if let [value] = stat.values[..] {
                    visit(scope, &stat.metric(), value);
                }
            }
        }
    }
}

impl Slot {
    fn node(&self) -> Option<Node> {
        if self.kind == NodeKind::Hidden {
            return None;
        }
        let ranges = self.requires.registers.iter().zip(&self.place.registers);
        let ranges = ranges.filter_map(|(request, &base)| {
            Some(match request.space {
                AddressSpace::Mmio => NodeRange::Memory { base: base?, len: request.size },
                // The plan keeps ports below 64 Ki.
                AddressSpace::Pio => NodeRange::Io { base: base? as u16, len: request.size as u16 },
            })
        });
        let interrupts = self.requires.interrupts.iter().zip(&self.place.interrupts);
        let interrupts = interrupts.map(|(request, &line)| NodeInterrupt::new(line, request.trigger));
        let node = Node::new(self.device.id(), self.kind, ranges.collect(), interrupts.collect());
        Some(node.with_windows(self.place.windows.iter().cloned()))
    }
}

fn position(slots: &[Slot], id: &str) -> Result<usize, LifecycleError> {
    let at = slots.iter().position(|slot| slot.device.id() == id);
    at.ok_or_else(|| LifecycleError::NoSuchDevice { id: id.to_owned() })
}

fn failed(id: &str, source: DeviceError) -> LifecycleError {
    LifecycleError::Device { id: id.to_owned(), source: source.without_context(id) }
}

fn panicked(panic: &Panic) -> DeviceError {
    DeviceError::new(format!("it panicked: {panic}"))
}

/// What the code of a device does that is not in the machine yet, or not any more. A panic is an error.
fn caught<R>(f: impl FnOnce() -> Result<R, DeviceError>) -> Result<R, DeviceError> {
    Panic::catch(f).unwrap_or_else(|panic| Err(panicked(&panic)))
}

/// Gives back devices that no guest has reached yet.
fn detach_all(attached: Vec<(Slot, Wiring)>) {
    for (mut slot, _) in attached {
        // The error that brought us here is the one to tell.
        let _ = caught(|| slot.device.detach());
    }
}

impl Slot {
    fn place_now(&self) -> Place {
        let registers = self.assigned.all_registers().iter().map(|registers| registers.base()).collect();
        Place { registers, ..self.place.clone() }
    }
}

struct Scoped<'a> {
    scope: &'a str,
    visit: &'a mut dyn FnMut(&str, &Metric<'_>, u64),
}

impl MetricVisitor for Scoped<'_> {
    fn metric(&mut self, metric: &Metric<'_>, value: u64) {
        (self.visit)(self.scope, metric, value);
    }
}
