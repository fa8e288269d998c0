//! What only this transport saves: the vectors that its driver has chosen, and the function.

use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};

use super::super::state::{Own, inconsistent, read_nested, write_nested};
use super::layout::MAX_QUEUES;

const VECTORS: Field = Field::new(13, "vectors");
const FUNCTION: Field = Field::new(14, "function");

pub(super) struct PciState {
    /// See [`Signals::saved_vectors`](super::signals::Signals::saved_vectors).
    pub(super) vectors: Vec<u16>,
    pub(super) function: SavedState<'static>,
}

impl Own for PciState {
    const KIND: &'static str = "ossature.virtio-pci";

    fn save(&self, fields: &mut Encoder) {
        let vectors: Vec<u8> = self.vectors.iter().flat_map(|vector| vector.to_le_bytes()).collect();
        fields.bytes(VECTORS, &vectors);
        write_nested(fields, FUNCTION, &self.function);
    }

    fn read(fields: &mut Decoder<'_>) -> Result<Self, StateError> {
        let bytes = fields.bytes(VECTORS, 2 * (usize::from(MAX_QUEUES) + 1))?;
        let vectors = bytes.chunks(2).map(|vector| vector.try_into().map(u16::from_le_bytes));
        let vectors = vectors.collect::<Result<_, _>>();
        let vectors = vectors.map_err(|_| inconsistent("vectors", "each has two bytes"))?;
        Ok(Self { vectors, function: read_nested(fields, FUNCTION)? })
    }
}
