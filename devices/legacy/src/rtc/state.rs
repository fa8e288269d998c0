//! The saved form of the real-time clock.
//!
//! The time itself is not saved, only how far the guest has set it off the host's: while the state lies in a file the
//! clock goes on, as a battery makes it do, and the guest finds the host's time as it then is, off by as much as
//! before.

use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};

use super::moment::Moment;
use super::registers::{A_UIP, B_ABSENT, C_FLAGS, CMOS_SIZE};

const KIND: &str = "ossature.rtc";
/// Version 1 had no interrupts.
const VERSION: u16 = 2;
const OLDEST: u16 = 1;

const OFFSET: Field = Field::new(1, "offset");
const SNAPSHOT: Field = Field::new(2, "snapshot");
const SEEN: Field = Field::new(3, "seen");
const INDEX: Field = Field::new(4, "index");
const STATUS_A: Field = Field::new(5, "status_a");
const STATUS_B: Field = Field::new(6, "status_b");
const CMOS: Field = Field::new(7, "cmos");
const SEEN_NANOS: Field = Field::new(8, "seen_nanos");
const FLAGS: Field = Field::new(9, "flags");
const RAISED: Field = Field::new(10, "raised");

/// The clock's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RtcState {
    /// Seconds off the host's UTC.
    pub(super) offset: i64,
    /// Seconds since 1970 as of the last read of register A, by the guest's clock.
    pub(super) snapshot: i64,
    /// The time up to which `flags` speaks.
    pub(super) seen: Moment,
    pub(super) flags: u8,
    pub(super) raised: bool,
    pub(super) index: u8,
    pub(super) status_a: u8,
    pub(super) status_b: u8,
    pub(super) cmos: [u8; CMOS_SIZE],
}

impl RtcState {
    pub(super) fn save(&self) -> SavedState<'static> {
        let Self { offset, snapshot, seen, flags, raised, index, status_a, status_b, cmos } = self;
        let mut fields = Encoder::new(KIND, VERSION);
        fields.i64(OFFSET, *offset).i64(SNAPSHOT, *snapshot).i64(SEEN, seen.second);
        fields.u8(INDEX, *index).u8(STATUS_A, *status_a).u8(STATUS_B, *status_b).bytes(CMOS, cmos);
        fields.u32(SEEN_NANOS, seen.nanos).u8(FLAGS, *flags).bool(RAISED, *raised);
        fields.finish()
    }

    pub(super) fn load(state: &SavedState<'_>) -> Result<Self, StateError> {
        let mut fields = Decoder::new(state, KIND, OLDEST..=VERSION)?;
        // Any distance is possible: the clock stops beyond what its registers can show.
        let (offset, snapshot, second) = (fields.i64(OFFSET)?, fields.i64(SNAPSHOT)?, fields.i64(SEEN)?);
        let state = Self {
            offset,
            snapshot,
            index: fields.u8_where(INDEX, |index| usize::from(index) < CMOS_SIZE)?,
            status_a: fields.u8_where(STATUS_A, |a| a & A_UIP == 0)?,
            status_b: fields.u8_where(STATUS_B, |b| b & B_ABSENT == 0)?,
            cmos: fields.array(CMOS)?,
            seen: Moment { second, nanos: fields.since(2, SEEN_NANOS, 0, nanos)? },
            flags: fields
                .since(2, FLAGS, 0, |fields, flags| fields.u8_where(flags, |c| c & !C_FLAGS == 0))?,
            raised: fields.since(2, RAISED, false, Decoder::bool)?,
        };
        fields.finish()?;
        Ok(state)
    }
}

fn nanos(fields: &mut Decoder<'_>, field: Field) -> Result<u32, StateError> {
    let nanos = fields.u32(field)?;
    if Moment::is_valid(nanos) {
        Ok(nanos)
    } else {
        Err(StateError::Value { field: "seen_nanos", value: nanos.into() })
    }
}

#[cfg(test)]
mod tests;
