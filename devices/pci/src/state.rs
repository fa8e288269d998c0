//! What a function saves.

use ossature_bus::MsiMessage;
use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};

use crate::msix::Entry;
use crate::port::FunctionPort;
use crate::space::LEN;

const KIND: &str = "ossature.pci-function";
const VERSION: u16 = 1;

const SLOT: Field = Field::new(1, "slot");
const SPACE: Field = Field::new(2, "configuration space");
const EJECTED: Field = Field::new(3, "ejected");
const ENTRIES: Field = Field::new(4, "MSI-X table");
const PENDING: Field = Field::new(5, "pending bits");
const PLACES: Field = Field::new(6, "places of BARs");

const ADDRESS: Field = Field::new(1, "address of a message");
const DATA: Field = Field::new(2, "data of a message");
const MASKED: Field = Field::new(3, "mask of a message");

const BASE: Field = Field::new(1, "address of a BAR");

/// The most BARs.
const MAX_BARS: usize = 6;

/// The most entries of an MSI-X table, and bytes of pending bits.
const MAX_ENTRIES: usize = 2048;
const MAX_PENDING: usize = MAX_ENTRIES / 8;

/// A function's state, read and checked: see [`Function::check`](crate::Function::check).
#[derive(Debug)]
pub struct FunctionState {
    slot: u8,
    space: [u8; LEN],
    pub(crate) ejected: bool,
    entries: Vec<Entry>,
    pending: Vec<u64>,
    /// Where BARs are that are not all where configuration space says.
    places: Option<Vec<Option<u64>>>,
}

impl FunctionState {
    pub(crate) fn of(slot: u8, port: &FunctionPort) -> Self {
        let (entries, pending) = port.vectors().map(|vectors| vectors.save()).unwrap_or_default();
        let (space, places) = (port.bytes(), port.places());
        Self { slot, space, ejected: port.is_ejected(), entries, pending, places }
    }

    pub(crate) fn save(&self) -> SavedState<'static> {
        let Self { slot, space, ejected, entries, pending, places } = self;
        let mut fields = Encoder::new(KIND, VERSION);
        fields.u8(SLOT, *slot).bytes(SPACE, space).bool(EJECTED, *ejected).list(
            ENTRIES,
            entries,
            |fields, Entry { message: MsiMessage { address, data, .. }, masked }| {
                fields.u64(ADDRESS, *address).u32(DATA, *data).bool(MASKED, *masked);
            },
        );
        let pending: Vec<u8> = pending.iter().flat_map(|word| word.to_le_bytes()).collect();
        fields.bytes(PENDING, &pending);
        if let Some(places) = places {
            fields.list(PLACES, places, |fields, base| {
                if let Some(base) = base {
                    fields.u64(BASE, *base);
                }
            });
        }
        fields.finish()
    }

    pub(crate) fn read(state: &SavedState<'_>) -> Result<Self, StateError> {
        let mut fields = Decoder::new(state, KIND, 1..=VERSION)?;
        let slot = fields.u8(SLOT)?;
        let space = fields.array(SPACE)?;
        let ejected = fields.bool(EJECTED)?;
        let entries = fields.list(ENTRIES, MAX_ENTRIES, |fields| {
            let (address, data) = (fields.u64(ADDRESS)?, fields.u32(DATA)?);
            Ok(Entry { message: MsiMessage::new(address, data), masked: fields.bool(MASKED)? })
        })?;
        let bytes = fields.bytes(PENDING, MAX_PENDING)?;
        let words = bytes.chunks(8).map(|word| word.try_into().map(u64::from_le_bytes));
        let pending = words.collect::<Result<_, _>>();
        let pending = pending.map_err(|_| inconsistent("pending bits", "they come in words of 64"))?;
        let base = |fields: &mut Decoder<'_>| fields.optional(BASE, Decoder::u64);
        let places = fields.optional(PLACES, |fields, field| fields.list(field, MAX_BARS, base))?;
        fields.finish()?;
        Ok(Self { slot, space, ejected, entries, pending, places })
    }

    /// Fails if this is not a state that `port` in `slot` can be in.
    pub(crate) fn check(&self, slot: u8, port: &FunctionPort) -> Result<(), StateError> {
        if self.slot != slot {
            return Err(inconsistent("slot", "the function is in another"));
        }
        if !port.may_read(&self.space) {
            return Err(inconsistent("configuration space", "a bit that no guest can write is another"));
        }
        let count = port.vectors().map_or(0, |vectors| vectors.len());
        if self.entries.len() != count {
            return Err(inconsistent("MSI-X table", "the function has another number of vectors"));
        }
        if self.places.as_ref().is_some_and(|places| !port.may_be_at(places)) {
            return Err(inconsistent("places of BARs", "one cannot be there"));
        }
        if self.entries.iter().any(|entry| entry.message.address % 4 != 0) {
            return Err(inconsistent("address of a message", "it is not a multiple of 4"));
        }
        let beyond = |(word, first): (&u64, usize)| match count.checked_sub(first) {
            Some(left @ 0..64) => word >> left != 0,
            Some(_) => false,
            None => *word != 0,
        };
        if self.pending.len() != count.div_ceil(64) || self.pending.iter().zip((0..).step_by(64)).any(beyond)
        {
            return Err(inconsistent("pending bits", "there are no such vectors"));
        }
        Ok(())
    }

    pub(crate) fn restore(self, port: &FunctionPort) {
        let Self { slot: _, space, ejected, entries, pending, places } = self;
        port.restore(space, ejected, places.as_deref(), |vectors, control| {
            vectors.restore(entries, &pending, control)
        });
    }
}

fn inconsistent(field: &'static str, reason: &'static str) -> StateError {
    StateError::Inconsistent { field, reason }
}
