//! vm-superio's keyboard controller, which knows the reset command alone, as a device of ours.

use std::cell::Cell;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use ossature_bus::state::StateError;
use ossature_bus::{
    Access, Assigned, BusFault, Device, DeviceError, DeviceState, Effect, Handover, MetricVisitor, Mmio,
    NodeKind, RegistersRequest, Requires, Size, Syscall, VmRequest,
};

use super::{I8042Device, Trigger};

const DATA: &str = "data";
const COMMAND: &str = "command";

/// An [`I8042Device`] in a machine, on ports 0x60 and 0x64: its reset command resets the machine. It has no state.
///
/// No table tells the guest of it, because it is no keyboard: a Linux guest uses it if its command line says `reboot=k`.
/// [`ossature_legacy::I8042`] is one that a guest finds.
///
/// ```
/// use ossature_bus::testing::TestBoard;
/// use ossature_bus::{Access, Effect, Size, VmRequest};
/// use ossature_rust_vmm::vm_superio::SuperioI8042;
///
/// let mut board = TestBoard::default();
/// board.attach(&mut SuperioI8042::new("i8042"))?;
/// let at = Access { offset: 0, size: Size::B1 };
/// let asks = board.port("command").unwrap().write(at, 0xfe);
/// assert_eq!(asks, Ok(Effect::Vm(VmRequest::Reset)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SuperioI8042 {
    id: String,
    controller: Arc<Mutex<I8042Device<Asked>>>,
}

impl SuperioI8042 {
    /// A controller named `id`.
    pub fn new(id: impl Into<String>) -> Self {
        let controller = I8042Device::new(Asked::default());
        Self { id: id.into(), controller: Arc::new(Mutex::new(controller)) }
    }
}

/// A reset has been asked for.
#[derive(Debug, Default)]
struct Asked(Cell<bool>);

impl Trigger for Asked {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.set(true);
        Ok(())
    }
}

/// One of the two ports: `offset` bytes from where vm-superio counts.
struct Port {
    controller: Arc<Mutex<I8042Device<Asked>>>,
    offset: u8,
}

impl Mmio for Port {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        check(at)?;
        let mut controller = self.controller.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(controller.read(self.offset).into())
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        check(at)?;
        let mut controller = self.controller.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(()) = controller.write(self.offset, value as u8);
        let asked = controller.reset_evt().0.take();
        Ok(if asked { Effect::Vm(VmRequest::Reset) } else { Effect::None })
    }
}

fn check(at: Access) -> Result<(), BusFault> {
    match at {
        Access { offset: 0, size: Size::B1 } => Ok(()),
        Access { offset: 0, .. } => Err(BusFault::Width),
        _ => Err(BusFault::Unmapped),
    }
}

impl Device for SuperioI8042 {
    fn id(&self) -> &str {
        &self.id
    }

    fn requires(&self) -> Requires {
        Requires::new()
            .registers(RegistersRequest::ports(DATA, 1).fixed(0x60))
            .registers(RegistersRequest::ports(COMMAND, 1).fixed(0x64))
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        for (name, offset) in [(DATA, 0), (COMMAND, 4)] {
            let controller = self.controller.clone();
            assigned.registers(name)?.answer(Arc::new(Port { controller, offset }));
        }
        Ok(NodeKind::Hidden)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::Stateless)
    }

    fn restore(&mut self, _: Handover<'_>) -> Result<(), StateError> {
        Err(StateError::Unsupported { reason: "there is nothing to restore" })
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        // The lock.
        &[Syscall("futex")]
    }

    fn metrics(&self, _: &mut dyn MetricVisitor) {}
}
