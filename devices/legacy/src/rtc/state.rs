//! The saved form of the real-time clock.
//!
//! The time itself is not saved, only how far the guest has set it off the host's: while the state lies in a file the
//! clock goes on, as a battery makes it do, and the guest finds the host's time as it then is, off by as much as
//! before.

use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};

use super::registers::{A_UIP, B_ABSENT, CMOS_SIZE};

const KIND: &str = "ossature.rtc";
const VERSION: u16 = 1;

const OFFSET: Field = Field::new(1, "offset");
const SNAPSHOT: Field = Field::new(2, "snapshot");
const SEEN: Field = Field::new(3, "seen");
const INDEX: Field = Field::new(4, "index");
const STATUS_A: Field = Field::new(5, "status_a");
const STATUS_B: Field = Field::new(6, "status_b");
const CMOS: Field = Field::new(7, "cmos");

/// The clock's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RtcState {
    /// Seconds off the host's UTC.
    pub(super) offset: i64,
    /// Seconds since 1970 as of the last read of register A, by the guest's clock.
    pub(super) snapshot: i64,
    /// The same, of register C.
    pub(super) seen: i64,
    pub(super) index: u8,
    pub(super) status_a: u8,
    pub(super) status_b: u8,
    pub(super) cmos: [u8; CMOS_SIZE],
}

impl RtcState {
    pub(super) fn save(&self) -> SavedState<'static> {
        let Self { offset, snapshot, seen, index, status_a, status_b, cmos } = self;
        let mut fields = Encoder::new(KIND, VERSION);
        fields.i64(OFFSET, *offset).i64(SNAPSHOT, *snapshot).i64(SEEN, *seen);
        fields.u8(INDEX, *index).u8(STATUS_A, *status_a).u8(STATUS_B, *status_b).bytes(CMOS, cmos);
        fields.finish()
    }

    pub(super) fn load(state: &SavedState<'_>) -> Result<Self, StateError> {
        let mut fields = Decoder::new(state, KIND, VERSION..=VERSION)?;
        let state = Self {
            // Any distance is possible: the clock stops beyond what its registers can show.
            offset: fields.i64(OFFSET)?,
            snapshot: fields.i64(SNAPSHOT)?,
            seen: fields.i64(SEEN)?,
            index: fields.u8_where(INDEX, |index| usize::from(index) < CMOS_SIZE)?,
            status_a: fields.u8_where(STATUS_A, |a| a & A_UIP == 0)?,
            status_b: fields.u8_where(STATUS_B, |b| b & B_ABSENT == 0)?,
            cmos: fields.array(CMOS)?,
        };
        fields.finish()?;
        Ok(state)
    }
}

#[cfg(test)]
mod tests;
