//! The saved form of the real-time clock.
//!
//! The time itself is not saved, only how far the guest has set it off the host's: while the state lies in a file the
//! clock goes on, as a battery makes it do, and the guest finds the host's time as it then is, off by as much as
//! before.

use ossature_bus::state::{Decoder, Encoder, SavedState, StateError};

use super::{A_UIP, B_ABSENT, CMOS_SIZE};

const KIND: &str = "ossature.rtc";
const VERSION: u16 = 1;

/// The clock's state; the fields in the order of the payload.
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
        fields.i64(*offset).i64(*snapshot).i64(*seen);
        fields.u8(*index).u8(*status_a).u8(*status_b).array(cmos);
        fields.finish()
    }

    pub(super) fn load(state: &SavedState<'_>) -> Result<Self, StateError> {
        let mut fields = Decoder::new(state, KIND, VERSION)?;
        let state = Self {
            // Any distance is possible: the clock stands still beyond what its registers can show.
            offset: fields.i64("offset")?,
            snapshot: fields.i64("snapshot")?,
            seen: fields.i64("seen")?,
            index: fields.u8_where("index", |index| usize::from(index) < CMOS_SIZE)?,
            status_a: fields.u8_where("status_a", |a| a & A_UIP == 0)?,
            status_b: fields.u8_where("status_b", |b| b & B_ABSENT == 0)?,
            cmos: fields.array("cmos")?,
        };
        fields.finish()?;
        Ok(state)
    }
}

#[cfg(test)]
mod tests;
