//! The saved form of a PL031. The time itself is not saved, only how far the guest has set it off the host's.

use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};

use super::ALARM;

const KIND: &str = "ossature.pl031";
const VERSION: u16 = 1;

const OFFSET: Field = Field::new(1, "offset");
const LOAD: Field = Field::new(2, "load");
const MATCH: Field = Field::new(3, "match");
const MASK: Field = Field::new(4, "mask");
const SEEN: Field = Field::new(5, "seen");
const PENDING: Field = Field::new(6, "pending");
const RAISED: Field = Field::new(7, "raised");

/// The clock's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pl031State {
    /// Seconds off the host's UTC.
    pub(super) offset: u32,
    pub(super) load: u32,
    pub(super) matches: u32,
    pub(super) mask: u32,
    /// The time up to which `pending` speaks.
    pub(super) seen: u32,
    pub(super) pending: bool,
    pub(super) raised: bool,
}

impl Pl031State {
    pub(super) fn save(&self) -> SavedState<'static> {
        let Self { offset, load, matches, mask, seen, pending, raised } = *self;
        let mut fields = Encoder::new(KIND, VERSION);
        fields.u32(OFFSET, offset).u32(LOAD, load).u32(MATCH, matches).u32(MASK, mask).u32(SEEN, seen);
        fields.bool(PENDING, pending).bool(RAISED, raised);
        fields.finish()
    }

    pub(super) fn load(state: &SavedState<'_>) -> Result<Self, StateError> {
        let mut fields = Decoder::new(state, KIND, VERSION..=VERSION)?;
        let state = Self {
            offset: fields.u32(OFFSET)?,
            load: fields.u32(LOAD)?,
            matches: fields.u32(MATCH)?,
            mask: fields.u32(MASK)?,
            seen: fields.u32(SEEN)?,
            pending: fields.bool(PENDING)?,
            raised: fields.bool(RAISED)?,
        };
        fields.finish()?;
        if state.mask & !ALARM != 0 {
            return Err(StateError::Value { field: "mask", value: state.mask.into() });
        }
        if state.raised && !(state.pending && state.mask & ALARM != 0) {
            return Err(StateError::Inconsistent { field: "raised", reason: "the alarm is not pending" });
        }
        Ok(state)
    }
}
