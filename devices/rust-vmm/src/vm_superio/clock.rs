//! vm-superio's PL031 clock as a device of ours.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use ossature_bus::state::{Decoder, Encoder, Field, StateError};
use ossature_bus::{
    Access, Assigned, BusFault, Device, DeviceError, DeviceState, Effect, Handover, MetricVisitor, Mmio,
    NodeKind, RegistersRequest, Requires, Size, Syscall,
};

use super::rtc_pl031::{NoEvents, RtcEvents};
use super::{Rtc, RtcState};

const REGISTERS: &str = "registers";
/// Bytes of registers (Arm DDI 0224, section 3.2).
const LEN: u64 = 0x1000;
/// The data register: the time.
const RTCDR: u16 = 0x000;
/// The load register, by which the guest sets the time.
const RTCLR: u16 = 0x008;

const KIND: &str = "ossature.vm_superio.pl031";
const VERSION: u16 = 1;
const LR: Field = Field::new(1, "lr");
const OFFSET: Field = Field::new(2, "offset");
const MR: Field = Field::new(3, "mr");
const IMSC: Field = Field::new(4, "imsc");
const RIS: Field = Field::new(5, "ris");

/// An [`Rtc`], which is an Arm PL031, in a machine: the host's time in seconds, and what the guest sets it to. It raises
/// no interrupt, because vm-superio's has no alarm.
///
/// The guest is not told of it (the node is [hidden](NodeKind::Hidden)) but by what a caller writes of its place, which
/// is fixed with [`at`](Self::at), or found in the machine's layout.
///
/// ```
/// use ossature_bus::testing::TestBoard;
/// use ossature_bus::{Access, Size};
/// use ossature_rust_vmm::vm_superio::SuperioRtc;
///
/// let mut board = TestBoard::default();
/// board.attach(&mut SuperioRtc::new("rtc").at(0x901_0000))?;
/// let clock = board.port("registers").unwrap();
/// let at = |offset| Access { offset, size: Size::B4 };
/// clock.write(at(8), 1_000_000_000).unwrap(); // the load register
/// assert!(clock.read(at(0)).unwrap() >= 1_000_000_000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SuperioRtc<EV: RtcEvents = NoEvents> {
    id: String,
    request: RegistersRequest,
    registers: Arc<Registers<EV>>,
}

impl SuperioRtc {
    /// A clock named `id` with the host's time, anywhere in memory.
    pub fn new(id: impl Into<String>) -> Self {
        Self::with_events(id, NoEvents)
    }
}

impl<EV: RtcEvents + Clone + Send + 'static> SuperioRtc<EV> {
    /// The same; `events` is told of accesses that no PL031 answers.
    pub fn with_events(id: impl Into<String>, events: EV) -> Self {
        let registers = Registers { rtc: Mutex::new(Rtc::with_events(events)), now: SystemTime::now };
        let request = RegistersRequest::memory(REGISTERS, LEN);
        Self { id: id.into(), request, registers: Arc::new(registers) }
    }

    /// The same at this address.
    #[must_use]
    pub fn at(mut self, base: u64) -> Self {
        self.request = self.request.fixed(base);
        self
    }

    fn set(&self, state: &RtcState) {
        let mut rtc = self.registers.lock();
        let events = rtc.events().clone();
        *rtc = Rtc::from_state(state, events);
    }
}

impl<EV: RtcEvents> fmt::Debug for SuperioRtc<EV> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SuperioRtc").field("id", &self.id).finish_non_exhaustive()
    }
}

struct Registers<EV: RtcEvents> {
    rtc: Mutex<Rtc<EV>>,
    /// The host's time.
    now: fn() -> SystemTime,
}

impl<EV: RtcEvents> Registers<EV> {
    fn lock(&self) -> MutexGuard<'_, Rtc<EV>> {
        self.rtc.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns true if the host's clock is before 1970, where vm-superio's would panic. It counts as 1970 then.
    fn is_too_early(&self) -> bool {
        (self.now)() < UNIX_EPOCH
    }
}

/// Registers are words; each may be accessed as a whole.
fn register(at: Access) -> Result<u16, BusFault> {
    if at.size != Size::B4 {
        return Err(BusFault::Width);
    }
    u16::try_from(at.offset).ok().filter(|offset| u64::from(*offset) < LEN).ok_or(BusFault::Unmapped)
}

impl<EV: RtcEvents + Clone + Send> Mmio for Registers<EV> {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        let mut data = [0; 4];
        let register = register(at)?;
        let mut rtc = self.lock();
        if register == RTCDR && self.is_too_early() {
            return Ok(u32::try_from(rtc.state().offset).unwrap_or_default().into());
        }
        rtc.read(register, &mut data);
        Ok(u32::from_le_bytes(data).into())
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        let (register, value) = (register(at)?, value as u32);
        let mut rtc = self.lock();
        if register == RTCLR && self.is_too_early() {
            let events = rtc.events().clone();
            *rtc = Rtc::from_state(&RtcState { lr: value, offset: value.into(), ..rtc.state() }, events);
        } else {
            rtc.write(register, &value.to_le_bytes());
        }
        Ok(Effect::None)
    }
}

impl<EV: RtcEvents + Clone + Send + 'static> Device for SuperioRtc<EV> {
    fn id(&self) -> &str {
        &self.id
    }

    fn requires(&self) -> Requires {
        Requires::new().registers(self.request.clone())
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        assigned.registers(REGISTERS)?.answer(self.registers.clone());
        self.set(&RtcState::default());
        Ok(NodeKind::Hidden)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.set(&RtcState::default());
        Ok(())
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        let RtcState { lr, offset, mr, imsc, ris } = self.registers.lock().state();
        let mut fields = Encoder::new(KIND, VERSION);
        fields.u32(LR, lr).i64(OFFSET, offset).u32(MR, mr).u32(IMSC, imsc).u32(RIS, ris);
        Ok(DeviceState::Saved(Handover::new(fields.finish())))
    }

    fn restore(&mut self, handover: Handover<'_>) -> Result<(), StateError> {
        let mut fields = Decoder::new(&handover.state, KIND, VERSION..=VERSION)?;
        let state = RtcState {
            lr: fields.u32(LR)?,
            offset: fields.i64(OFFSET)?,
            mr: fields.u32(MR)?,
            imsc: fields.u32(IMSC)?,
            ris: fields.u32(RIS)?,
        };
        fields.finish()?;
        if state.imsc > 1 {
            return Err(StateError::Value { field: "imsc", value: state.imsc.into() });
        }
        self.set(&state);
        Ok(())
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        // The lock, and the time where the kernel does not lend its clock.
        &[Syscall("futex"), Syscall("clock_gettime")]
    }

    fn metrics(&self, _: &mut dyn MetricVisitor) {}
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_host_whose_clock_is_before_1970_is_in_1970() {
        let registers =
            Registers { rtc: Mutex::new(Rtc::new()), now: || UNIX_EPOCH - Duration::from_secs(1) };
        let at = |offset| Access { offset, size: Size::B4 };
        assert_eq!(registers.read(at(RTCDR.into())), Ok(0));
        assert_eq!(registers.write(at(RTCLR.into()), 1_000_000_000), Ok(Effect::None));
        assert_eq!(registers.read(at(RTCDR.into())), Ok(1_000_000_000));
        assert_eq!(registers.read(at(RTCLR.into())), Ok(1_000_000_000));
        // The others are as ever.
        assert_eq!(registers.read(at(0x00c)), Ok(1));
    }
}
