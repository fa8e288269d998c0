//! A snapshot whose state has been decoded: what any number of machines go on from.

use std::fs::File;
use std::sync::OnceLock;

use ossature_bus::Device;
use ossature_memory::{Ram, RamConfig};
use rustix::fs::fstatfs;

use super::{Snapshot, SnapshotError, SnapshotKey};
use crate::machine::board::{self, Fitting, Placed};
use crate::machine::plan::Above;
use crate::machine::{BuildError, MachineState};
use crate::{Hypervisor, VmConfig};

/// A snapshot and its state. Machines only look at it.
#[derive(Debug)]
pub(in crate::machine) struct Saved {
    snapshot: Snapshot,
    state: MachineState,
    on_disk: bool,
    key: Option<SnapshotKey>,
    /// The host can have such vCPUs.
    checked: OnceLock<()>,
    /// How devices fit, once some have.
    fitting: OnceLock<Vec<Fitting>>,
}

impl Saved {
    pub(in crate::machine) fn new(snapshot: Snapshot) -> Result<Self, SnapshotError> {
        let state = snapshot.state()?;
        let key = snapshot.key().cloned();
        // With a key, memory is copied.
        let on_disk = key.is_none() && snapshot.file().is_ok_and(|file| is_on_disk(file));
        let (checked, fitting) = (OnceLock::new(), OnceLock::new());
        Ok(Self { snapshot, state, on_disk, key, checked, fitting })
    }

    /// The same, whose machines save with this key.
    pub(in crate::machine) fn with_key(self, key: Option<SnapshotKey>) -> Self {
        Self { key, ..self }
    }

    /// The key that machines which go on from it save with.
    pub(in crate::machine) fn key(&self) -> Option<&SnapshotKey> {
        self.key.as_ref()
    }

    /// Finds the places of a machine's devices again.
    pub(in crate::machine) fn place(
        &self,
        devices: Vec<Box<dyn Device>>,
        above: Above,
    ) -> Result<Vec<Placed>, Vec<BuildError>> {
        board::place_again(devices, (self.snapshot.shape(), &self.fitting), above)
    }

    pub(in crate::machine) fn state(&self) -> &MachineState {
        &self.state
    }

    pub(in crate::machine) fn memory_size(&self) -> u64 {
        self.snapshot.memory_size()
    }

    pub(in crate::machine) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Returns true if its memory can be read from a disk again.
    pub(in crate::machine) fn is_on_disk(&self) -> bool {
        self.on_disk
    }

    /// Has vCPUs be as those of the snapshot. Fails if the host cannot have such vCPUs or their addresses, or if others were
    /// `asked` for.
    pub(in crate::machine) fn take_over(
        &self,
        asked: Option<u32>,
        vm: &mut VmConfig,
        hypervisor: &dyn Hypervisor,
    ) -> Result<(), SnapshotError> {
        let found = self.snapshot.cpus();
        if let Some(asked) = asked.filter(|asked| *asked != found) {
            return Err(SnapshotError::OtherCpus { found, asked });
        }
        vm.cpus = found;
        let numa = self.snapshot.shape().numa.clone();
        if vm.numa.is_some() && vm.numa != numa {
            return Err(SnapshotError::OtherNuma);
        }
        vm.numa = numa;
        // One host is the same for all.
        if self.checked.get().is_none() {
            hypervisor.check_states(vm, &self.state.vcpus)?;
            self.checked.get_or_init(|| ());
        }
        vm.take_over(&self.state.vcpus);
        self.snapshot.check_addresses(hypervisor.address_bits())
    }

    /// See [`Snapshot::ram`].
    pub(in crate::machine) fn ram(
        &self,
        given: Option<Ram>,
        config: Option<RamConfig>,
    ) -> Result<Ram, SnapshotError> {
        self.snapshot.ram(given, config)
    }
}

/// Returns false if the file is nowhere but in memory.
fn is_on_disk(file: &File) -> bool {
    const IN_MEMORY: [u32; 3] = [0x0102_1994, 0x8584_58f6, 0x9584_58f6]; // tmpfs, ramfs, hugetlbfs
    fstatfs(file).is_ok_and(|about| !IN_MEMORY.contains(&(about.f_type as u32)))
}
