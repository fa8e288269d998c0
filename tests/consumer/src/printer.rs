//! A device on the bus, behind a port: prints bytes, and ends the machine at the end of the text.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature::bus::state::{Decoder, Encoder, Field, StateError};
use ossature::bus::{
    Access, Assigned, BusFault, Device, DeviceError, DeviceState, Effect, Handover, MetricVisitor, Mmio,
    NodeKind, RegistersRequest, Requires, Size, Syscall, VmRequest,
};

/// Where the guest finds it.
pub const PORT: u16 = 0x700;
/// What ends the text, and the machine.
pub const END: u8 = 4;

const KIND: &str = "com.example.printer";
const TEXT: Field = Field::new(1, "text");
/// The most that is kept, in bytes.
const ROOM: usize = 4096;

/// What has been printed.
#[derive(Debug, Default)]
pub struct Paper(Mutex<Vec<u8>>);

impl Paper {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock()).into_owned()
    }
}

impl Mmio for Paper {
    fn read(&self, _: Access) -> Result<u64, BusFault> {
        Err(BusFault::WriteOnly)
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        if at.size != Size::B1 {
            return Err(BusFault::Width);
        }
        let byte = value as u8;
        if byte == END {
            return Ok(Effect::Vm(VmRequest::Shutdown));
        }
        let mut text = self.lock();
        if text.len() < ROOM {
            text.push(byte);
        }
        Ok(Effect::None)
    }
}

/// The device.
#[derive(Debug)]
pub struct Printer(Arc<Paper>);

impl Printer {
    pub fn new(paper: Arc<Paper>) -> Self {
        Self(paper)
    }
}

impl Device for Printer {
    fn id(&self) -> &str {
        "printer"
    }

    fn requires(&self) -> Requires {
        Requires::new().registers(RegistersRequest::ports("data", 1).fixed(PORT.into()))
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        assigned.registers("data")?.answer(self.0.clone());
        Ok(NodeKind::Hidden)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.0.lock().clear();
        Ok(())
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        let mut fields = Encoder::new(KIND, 1);
        fields.bytes(TEXT, &self.0.lock());
        Ok(DeviceState::Saved(Handover::new(fields.finish())))
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        let mut fields = Decoder::new(&handover.state, KIND, 1..=1)?;
        let text = fields.bytes(TEXT, ROOM)?.to_vec();
        fields.finish()?;
        *self.0.lock() = text;
        Ok(())
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        visitor.gauge("bytes", "Bytes that were printed.", self.0.lock().len() as u64);
    }
}
