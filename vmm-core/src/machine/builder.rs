//! From parts to a machine: layout, memory, devices, boot, vCPUs, in this order.

use std::io;
use std::sync::Arc;

use ossature_boot::Numa;
use ossature_bus::Device;
use ossature_memory::{Ram, RamConfig};

use super::Machine;
use super::board::Board;
use super::checkpoint::Checkpoint;
use super::clock::GuestClock;
use super::control::{Control, Shared};
use super::error::{BuildError, BuildErrors};
use super::handle::MachineHandle;
use super::payload::Payload;
use super::plan::Above;
use super::snapshot::{Pager, Pages, Saved, Snapshot, SnapshotError, SnapshotKey};
use super::status::{OnReset, OnTripleFault};
use super::timeline::Stopwatch;
use super::vcpu_thread::OnThreadStart;
use crate::{GuestDirtyLog, Hypervisor, KickSignal, VmConfig, VmError};

/// The parts of a machine. Nothing happens on the host before [`build`](Self::build).
///
/// ```
/// use ossature_core::machine::{Machine, OnReset};
/// use ossature_core::scripted::{Script, Scripted};
/// use ossature_memory::RamConfig;
///
/// let machine = Machine::builder("example")
///     .cpus(2)
///     .memory(RamConfig::new(64 << 20))
///     .on_reset(OnReset::Restart)
///     .build(&Scripted::new([Script::new(), Script::new()]))?;
/// assert_eq!(machine.ram().size(), 64 << 20);
/// # Ok::<(), ossature_core::machine::BuildErrors>(())
/// ```
#[must_use]
pub struct MachineBuilder {
    name: String,
    vm: VmConfig,
    cpus: Option<u32>,
    numa: Option<Numa>,
    ram: Option<RamConfig>,
    given: Option<Ram>,
    snapshot: Option<Snapshot>,
    /// What it is a clone of.
    template: Option<Arc<Saved>>,
    clock: GuestClock,
    key: Option<SnapshotKey>,
    payload: Option<Box<dyn Payload>>,
    pub(super) devices: Vec<Box<dyn Device>>,
    statistics: bool,
    on_reset: OnReset,
    on_triple_fault: OnTripleFault,
    on_thread_start: Option<OnThreadStart>,
    pub(super) shared: Arc<Shared>,
}

impl MachineBuilder {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            vm: VmConfig::default(),
            cpus: None,
            numa: None,
            ram: None,
            given: None,
            snapshot: None,
            template: None,
            clock: GuestClock::default(),
            key: None,
            payload: None,
            devices: Vec::new(),
            statistics: false,
            on_reset: OnReset::default(),
            on_triple_fault: OnTripleFault::default(),
            on_thread_start: None,
            shared: Arc::new(Shared::new()),
        }
    }

    /// A handle of the machine that will be built, for devices and signal handlers that stop it. A machine that is
    /// stopped before it has started does not start.
    pub fn handle(&self) -> MachineHandle {
        MachineHandle { shared: Arc::clone(&self.shared) }
    }

    /// The number of vCPUs; 1 by default. The host has a limit, [`Capabilities::max_vcpus`](crate::Capabilities::max_vcpus)
    /// of [`Kvm::capabilities`](crate::Kvm::capabilities); more are refused with
    /// [`VmError::TooManyVcpus`](crate::VmError::TooManyVcpus).
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = Some(cpus);
        self
    }

    /// The NUMA nodes that the guest is told of; by default there are none. They have all of the vCPUs and of the memory. A
    /// machine that is [restored](Self::restore) has the snapshot's.
    ///
    /// ```
    /// use ossature_boot::{Numa, NumaNode};
    /// use ossature_core::machine::Machine;
    /// use ossature_core::scripted::{Script, Scripted};
    /// use ossature_memory::RamConfig;
    ///
    /// Machine::builder("example")
    ///     .cpus(2)
    ///     .memory(RamConfig::new(96 << 20))
    ///     .numa(Numa::new([NumaNode::new(1, 64 << 20), NumaNode::new(1, 32 << 20)]))
    ///     .build(&Scripted::new([Script::new(), Script::new()]))?;
    /// # Ok::<(), ossature_core::machine::BuildErrors>(())
    /// ```
    pub fn numa(mut self, numa: Numa) -> Self {
        self.numa = Some(numa);
        self
    }

    /// Changes what the virtual machine has from the start: the interrupt controllers; on x86_64 also the vCPUs' CPUID
    /// (`VmConfig::cpuid`), the dirty log and the timer chip; on aarch64 also the caches that the guest is told of
    /// (`VmConfig::caches`).
    ///
    /// ```
    /// use ossature_core::Irqchip;
    /// # use ossature_core::machine::Machine;
    ///
    /// // For a guest of a few instructions: no interrupts.
    /// let builder = Machine::builder("example").vm(|vm| vm.irqchip(Irqchip::None));
    /// ```
    pub fn vm(mut self, change: impl FnOnce(VmConfig) -> VmConfig) -> Self {
        self.vm = change(self.vm);
        self
    }

    /// Guest memory; 128 MiB by default.
    pub fn memory(mut self, ram: RamConfig) -> Self {
        self.ram = Some(ram);
        self
    }

    /// Guest memory that there is already, such as [another owner's](Ram::from_memory), instead of what
    /// [`memory`](Self::memory) describes. It must read as zero.
    ///
    /// ```
    /// use ossature_core::machine::Machine;
    /// use ossature_core::scripted::{Script, Scripted};
    /// use ossature_memory::{Ram, RamConfig};
    ///
    /// let ram = Ram::new(&RamConfig::new(64 << 20))?;
    /// let machine = Machine::builder("example").ram(ram).build(&Scripted::new([Script::new()]))?;
    /// assert_eq!(machine.ram().size(), 64 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn ram(mut self, ram: Ram) -> Self {
        self.given = Some(ram);
        self
    }

    /// Goes on where the machine of `snapshot` was: with its memory, its vCPUs and its clock, and the states of its
    /// devices. The devices are the caller's, each of the same kind and with the same id, on whatever the host has for
    /// them now; they are where they were. The number of vCPUs, their CPUID, the NUMA nodes and the size of memory are the
    /// snapshot's: what is said of number, nodes and size here must be the same, and a hook for the CPUID is not asked.
    ///
    /// A snapshot has no [payload](Self::payload). Give it here again if the machine may be reset, as by a guest that reboots
    /// with [`OnReset::Restart`]: it is loaded then, and not before. Without it a reset leaves memory empty, and vCPU 0
    /// nothing to run.
    pub fn restore(mut self, snapshot: Snapshot) -> Self {
        self.snapshot = Some(snapshot);
        self
    }

    /// Saves each snapshot of the machine with this key: full ones, diffs and checkpoints. A machine that goes on from a
    /// snapshot, or a fork, has the key of that by default. With another one, or without, it writes no diff of it.
    pub fn snapshot_key(mut self, key: SnapshotKey) -> Self {
        self.key = Some(key);
        self
    }

    /// What the guest's clock does when the machine is [restored](Self::restore); by default, it goes on where it was.
    pub fn clock(mut self, clock: GuestClock) -> Self {
        self.clock = clock;
        self
    }

    /// Goes on where a machine was, as a clone of it.
    pub(super) fn clone_of(mut self, template: Arc<Saved>) -> Self {
        self.template = Some(template);
        self
    }

    /// What the machine runs: a [`Linux`](super::Linux) kernel, or a closure that fills guest memory. It is loaded again
    /// with each reset, since a reset clears memory. A machine without a payload is reset to empty memory, and vCPU 0 has
    /// nothing to run, with [`OnReset::Restart`] too; one that is [restored](Self::restore) needs the payload for its resets
    /// alone.
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

    /// What happens when the guest asks for a reset; by default the machine ends.
    pub fn on_reset(mut self, on_reset: OnReset) -> Self {
        self.on_reset = on_reset;
        self
    }

    /// What a triple fault is taken for; by default the machine ends with a crash.
    pub fn on_triple_fault(mut self, on_triple_fault: OnTripleFault) -> Self {
        self.on_triple_fault = on_triple_fault;
        self
    }

    /// The signal that interrupts vCPUs; by default one that needs no handler.
    pub fn kick_signal(mut self, kick: KickSignal) -> Self {
        self.vm.kick = kick;
        self
    }

    /// Calls `hook` on each vCPU's thread before it runs, with the vCPU's index: to pin it, or to install a filter. An
    /// error ends the machine.
    pub fn on_vcpu_thread(mut self, hook: impl Fn(u32) -> io::Result<()> + Send + Sync + 'static) -> Self {
        self.on_thread_start = Some(Arc::new(hook));
        self
    }

    /// Also shows the hypervisor's own counters in [`MachineHandle::metrics`]: a descriptor for the machine and one for
    /// each vCPU.
    pub fn statistics(mut self) -> Self {
        self.statistics = true;
        self
    }

    /// Builds the machine, or fails and leaves nothing behind.
    ///
    /// Told together is what is wrong with
    /// - the number of vCPUs, if it is 0,
    /// - ids, requests and places of devices,
    /// - guest memory, if it cannot be had,
    /// - NUMA nodes.
    ///
    /// Of what comes after these, the first error alone is told: the virtual machine, which is refused too many vCPUs; devices
    /// (those that guests cannot reach by ports or messages together, then the first that cannot be attached); the payload;
    /// vCPUs.
    ///
    /// Of a machine that is [restored](Self::restore), one error is told before all these: that the snapshot cannot be read, or
    /// does not fit the host, or the number of vCPUs or the NUMA nodes that are said here. Devices that do not fit it are told
    /// instead of what is wrong with their ids and places. Its state comes last.
    pub fn build(self, hypervisor: &dyn Hypervisor) -> Result<Machine, BuildErrors> {
        Ok(self.build_logging(hypervisor, false)?.0)
    }

    /// As [`build`](Self::build), with a [`Checkpoint`] of the machine as it is built. For one that is
    /// [restored](Self::restore), the snapshot is the checkpoint, and nothing is copied, unless it comes on demand.
    pub fn build_with_checkpoint(
        self,
        hypervisor: &dyn Hypervisor,
    ) -> Result<(Machine, Checkpoint), BuildErrors> {
        let (machine, restored) = self.build_logging(hypervisor, true)?;
        let checkpoint = match restored {
            Some((snapshot, log)) => Checkpoint::new(snapshot, log, &machine.shared),
            None => machine.checkpoint(),
        };
        Ok((machine, checkpoint.map_err(BuildError::Snapshot)?))
    }

    /// Builds the machine. One that is restored has a log from then on, if there is to be one.
    fn build_logging(
        self,
        hypervisor: &dyn Hypervisor,
        log: bool,
    ) -> Result<(Machine, Option<(Snapshot, GuestDirtyLog)>), BuildErrors> {
        let Self {
            name,
            mut vm,
            cpus,
            numa,
            ram,
            given,
            snapshot,
            mut payload,
            devices,
            statistics,
            shared,
            ..
        } = self;
        let Self { template, clock, key, on_reset, on_triple_fault, on_thread_start, .. } = self;
        let mut watch = Stopwatch::start();
        vm.cpus = cpus.unwrap_or(vm.cpus);
        vm.numa = numa;
        let to_clone = template.is_some();
        let saved = match (template, snapshot) {
            (None, Some(snapshot)) => Some(Arc::new(Saved::new(snapshot)?)),
            (template, _) => template,
        };
        if let Some(saved) = &saved {
            saved.take_over(cpus, &mut vm, hypervisor)?;
        }
        let cpus = vm.cpus;
        let mut errors = Vec::new();
        if cpus == 0 {
            errors.push(BuildError::NoCpu);
        }
        // With the hole that RAM leaves for devices.
        let size = saved.as_ref().map(|saved| saved.memory_size()).or(ram.as_ref().map(|ram| ram.size));
        let address_bits = hypervisor.address_bits();
        let ram_end = match &given {
            Some(ram) => super::board::ram_end(ram),
            None => size.unwrap_or(DEFAULT_MEMORY).saturating_add(4 << 30),
        };
        let above = Above { ram_end, address_bits };
        let placed = match &saved {
            Some(saved) => saved.place(devices, above),
            None => super::board::place(devices, above),
        };
        let placed = placed.map_err(|conflicts| errors.extend(conflicts)).ok();
        watch.lap("layout");
        let ram = match (&saved, given) {
            (Some(saved), given) => saved.ram(given, ram).map_err(BuildError::Snapshot),
            (None, Some(ram)) => Ok(ram),
            (None, None) => {
                let config = ram.unwrap_or_else(|| RamConfig::new(DEFAULT_MEMORY));
                Ram::new(&config).map_err(BuildError::Ram)
            }
        };
        let ram = ram.and_then(|ram| match super::board::ram_end(&ram) {
            end if end.saturating_sub(1) >> address_bits.min(63) > 0 => {
                Err(BuildError::TooHigh { end, address_bits })
            }
            _ => Ok(Arc::new(ram)),
        });
        let ram = ram.map_err(|error| errors.push(error)).ok();
        if let (Some(numa), Some(ram)) = (&vm.numa, &ram) {
            // RAM may have come before the machine was saved.
            let memory = if saved.is_some() { ram.size().min(numa.memory()) } else { ram.size() };
            errors.extend(numa.check(cpus, memory).err().map(BuildError::Numa));
        }
        let (Some(placed), Some(ram), true) = (placed, ram, errors.is_empty()) else {
            return Err(BuildErrors(errors));
        };
        let pages = Pages { machine: name.clone(), status: Arc::clone(&shared.status) };
        let pager = saved.as_ref().map(|saved| saved.snapshot().pager(&ram, pages)).transpose()?.flatten();
        watch.lap("memory");

        let created = hypervisor.create_vm(&vm).map_err(|error| match error {
            VmError::TooManyVcpus { index, max } => {
                BuildError::TooManyCpus { cpus: u64::from(index) + 1, max }
            }
            error => error.into(),
        });
        let vm: Arc<dyn crate::Vm> = Arc::from(created?);
        vm.set_memory(&ram)?;
        // What comes on demand is nowhere to go back to.
        let restored = saved.as_ref().filter(|_| log).and_then(|saved| saved.snapshot().duplicate().ok());
        let log = restored.is_some().then(|| vm.dirty_log(&ram)).transpose()?;
        watch.lap("vm");
        let status = Arc::clone(&shared.status);
        status.set_on_reset(on_reset);
        status.set_on_triple_fault(on_triple_fault);
        let from_disk = saved.as_ref().is_some_and(|saved| saved.is_on_disk());
        let board =
            Board::new(vm, Arc::clone(&ram), from_disk, Arc::clone(&status)).map_err(BuildError::Ram)?;
        board.add_placed(placed)?;
        watch.lap("devices");

        let start = payload
            .as_mut()
            .filter(|_| saved.is_none())
            .map(|payload| payload.load(&ram.map(), &board.platform(cpus)))
            .transpose()
            .map_err(|source| BuildError::Payload { source })?;
        watch.lap("payload");

        let mut vcpus = Vec::new();
        for index in 0..cpus {
            vcpus.push(board.vm().create_vcpu(index, board.buses())?);
        }
        if let (Some(registers), Some(boot)) = (&start, vcpus.first_mut()) {
            boot.set_registers(registers)?;
        }
        if statistics {
            let mut all = vec![("kvm".to_owned(), board.vm().stats_reader()?)];
            for (index, vcpu) in vcpus.iter().enumerate() {
                all.push((format!("vcpu{index}"), vcpu.stats_reader()?));
            }
            board.set_statistics(all);
        }
        watch.lap("vcpus");
        let mut control = Control {
            name,
            vcpus,
            threads: Vec::new(),
            cpus,
            payload,
            on_thread_start,
            phases: Vec::new(),
            pauses: 0,
            status,
            key: key.or_else(|| saved.as_ref().and_then(|saved| saved.key().cloned())),
            pager,
            board: Arc::new(board),
        };
        if let Some(saved) = saved {
            control.go_on_from(saved.state(), to_clone, clock).map_err(SnapshotError::Machine)?;
            watch.lap("state");
        }
        if let Some(error) = control.pager.as_ref().and_then(Pager::failure) {
            return Err(BuildError::Snapshot(error).into());
        }
        control.phases = watch.phases();
        shared.built(control);
        Ok((Machine { handle: MachineHandle { shared }, ram }, restored.zip(log)))
    }
}

/// Bytes of memory by default.
const DEFAULT_MEMORY: u64 = 128 << 20;
