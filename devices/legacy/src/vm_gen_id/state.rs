//! The saved form of the generation ID.

use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};

use super::GenerationId;

const KIND: &str = "ossature.vmgenid";
const VERSION: u16 = 1;

const ID: Field = Field::new(1, "id");
const UNTOLD: Field = Field::new(2, "untold");

/// The ID, and whether the guest has yet to be told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GenerationState {
    pub(super) id: GenerationId,
    pub(super) untold: bool,
}

impl GenerationState {
    pub(super) fn save(&self) -> SavedState<'static> {
        let mut fields = Encoder::new(KIND, VERSION);
        fields.bytes(ID, &self.id.0).bool(UNTOLD, self.untold);
        fields.finish()
    }

    pub(super) fn load(state: &SavedState<'_>) -> Result<Self, StateError> {
        let mut fields = Decoder::new(state, KIND, VERSION..=VERSION)?;
        let state = Self { id: GenerationId(fields.array(ID)?), untold: fields.bool(UNTOLD)? };
        fields.finish()?;
        Ok(state)
    }
}
