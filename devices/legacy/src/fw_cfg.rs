//! A firmware configuration device: small files that the VMM has for its guest.

mod files;
mod registers;
mod state;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_bus::state::StateError;
use ossature_bus::{
    Assigned, Device, DeviceError, DeviceState, Handover, Identity, MetricVisitor, NodeKind,
    RegistersRequest, Requires, Syscall,
};

use crate::register::REGISTERS;
pub use files::FwCfgError;
use registers::{Place, Registers};
use state::FwCfgState;

/// QEMU's firmware configuration device (its `docs/specs/fw_cfg`): files that the guest reads at I/O ports 0x510 and
/// 0x511, at registers [in memory](Self::in_memory), or by DMA. Linux shows them below
/// `/sys/firmware/qemu_fw_cfg/by_name`, each file's contents as `raw`. Names that begin with `opt/` and a domain of one's own
/// are for users.
///
/// The guest can write nothing. One transfer moves at most 16 MiB, to RAM alone; one that asks for more, or for anything
/// else, is answered with the error bit and has moved nothing.
///
/// Contents are the VMM's to say, at any time; they are not part of a saved state. A device that a state is restored into
/// has files of the same names, and keeps its own contents: a clone finds its own. A guest that was saved in the middle of
/// reading a file byte by byte goes on at the same offset of the clone's contents.
///
/// ```
/// use ossature_legacy::FwCfg;
///
/// let device = FwCfg::new("fw-cfg").file("opt/org.example/hostname", "clone-1")?;
/// let files = device.files();
/// files.set("opt/org.example/hostname", "clone-2")?;
/// # Ok::<(), ossature_legacy::FwCfgError>(())
/// ```
pub struct FwCfg {
    id: String,
    registers: Arc<Mutex<Registers>>,
}

impl FwCfg {
    /// A device named `id` without files, at the I/O ports of a PC.
    pub fn new(id: impl Into<String>) -> Self {
        Self::at(Place::Ports, id.into())
    }

    /// The same with registers in memory, as machines of Arm have it. Linux on x86_64 knows the ports alone.
    pub fn in_memory(id: impl Into<String>) -> Self {
        Self::at(Place::Memory, id.into())
    }

    fn at(place: Place, id: String) -> Self {
        Self { id, registers: Arc::new(Mutex::new(Registers::new(place))) }
    }

    /// With this file of at most 16 MiB. Its name has 1 to 55 printable ASCII characters; slashes make folders in Linux.
    pub fn file(self, name: impl Into<String>, contents: impl Into<Vec<u8>>) -> Result<Self, FwCfgError> {
        self.registers().files.add(name.into(), contents.into())?;
        Ok(self)
    }

    /// The files, for the VMM.
    pub fn files(&self) -> FwCfgFiles {
        FwCfgFiles(self.registers.clone())
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        lock(&self.registers)
    }
}

fn lock(registers: &Mutex<Registers>) -> MutexGuard<'_, Registers> {
    registers.lock().unwrap_or_else(PoisonError::into_inner)
}

// Contents may be secret.
impl fmt::Debug for FwCfg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let registers = self.registers();
        let names: Vec<_> = registers.files.names().collect();
        f.debug_struct("FwCfg").field("id", &self.id).field("files", &names).finish_non_exhaustive()
    }
}

/// The files of an [`FwCfg`]: a clonable handle.
#[derive(Clone)]
pub struct FwCfgFiles(Arc<Mutex<Registers>>);

impl FwCfgFiles {
    /// Gives a file other contents, while the machine runs or is paused. The guest gets them when it next selects the file;
    /// what it is reading it reads to the end.
    ///
    /// Linux takes the lengths of all files when it loads its module `qemu_fw_cfg`. Later contents that are longer are
    /// cut there, and shorter ones are followed by zeros, until the module is loaded again.
    pub fn set(&self, name: &str, contents: impl Into<Vec<u8>>) -> Result<(), FwCfgError> {
        let contents = contents.into();
        lock(&self.0).files.set(name, contents)
    }
}

impl fmt::Debug for FwCfgFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(lock(&self.0).files.names()).finish()
    }
}

impl Device for FwCfg {
    fn id(&self) -> &str {
        &self.id
    }

    fn requires(&self) -> Requires {
        let place = self.registers().place;
        Requires::new().registers(match place {
            Place::Ports => RegistersRequest::ports(REGISTERS, place.len()).fixed(0x510),
            Place::Memory => RegistersRequest::memory(REGISTERS, place.len().into()),
        })
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        assigned.registers(REGISTERS)?.answer(self.registers.clone());
        let mut registers = self.registers();
        registers.dma = Some(assigned.dma().clone());
        registers.reset();
        Ok(NodeKind::FwCfg)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// Nothing is selected; the files stay.
    fn reset(&mut self) -> Result<(), DeviceError> {
        self.registers().reset();
        Ok(())
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        let registers = self.registers();
        let (selector, offset, address_high) = (registers.selector, registers.offset, registers.address_high);
        let state = FwCfgState { selector, offset, address_high };
        Ok(DeviceState::Saved(Handover::new(state.save(registers.files.names()))))
    }

    fn restore(&mut self, handover: Handover<'_>) -> Result<(), StateError> {
        let mut registers = self.registers();
        let state = FwCfgState::load(&handover.state, registers.files.names())?;
        registers.select(state.selector);
        (registers.offset, registers.address_high) = (state.offset, state.address_high);
        Ok(())
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        self.registers().dma = None;
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        // The lock.
        &[Syscall("futex")]
    }

    /// All contents together: whoever finds the same ones cannot tell itself from the other.
    fn identities(&self) -> Vec<Identity> {
        let digest = self.registers().files.digest();
        digest.map(|digest| Identity::secret("contents of all files", digest)).into_iter().collect()
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        let registers = self.registers();
        visitor.counter("transfers", "Requests for DMA.", registers.transfers);
        visitor.counter("refused_transfers", "Requests for DMA that were refused.", registers.refused);
    }
}

#[cfg(test)]
mod tests;
