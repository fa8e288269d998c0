//! The saved form of a firmware configuration device: what the guest has made of it, and the names of its files. What is
//! in them is its VMM's to say, also for a device that a state is restored into.

use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};

use super::files::MAX_FILES;

const KIND: &str = "ossature.fw_cfg";
const VERSION: u16 = 1;

const SELECTOR: Field = Field::new(1, "selector");
const OFFSET: Field = Field::new(2, "offset");
const ADDRESS_HIGH: Field = Field::new(3, "address_high");
const FILES: Field = Field::new(4, "files");
/// Of a file's record.
const NAME: Field = Field::new(1, "files.name");

pub(super) struct FwCfgState {
    pub(super) selector: u16,
    pub(super) offset: u32,
    pub(super) address_high: u32,
}

impl FwCfgState {
    pub(super) fn save<'a>(&self, names: impl Iterator<Item = &'a str>) -> SavedState<'static> {
        let mut fields = Encoder::new(KIND, VERSION);
        fields.u16(SELECTOR, self.selector).u32(OFFSET, self.offset).u32(ADDRESS_HIGH, self.address_high);
        fields.list(FILES, names, |file, name| {
            file.bytes(NAME, name.as_bytes());
        });
        fields.finish()
    }

    /// The state of a device that has files of these names.
    pub(super) fn load<'a>(
        state: &SavedState<'_>,
        mut names: impl Iterator<Item = &'a str>,
    ) -> Result<Self, StateError> {
        let mut fields = Decoder::new(state, KIND, VERSION..=VERSION)?;
        let loaded = Self {
            selector: fields.u16(SELECTOR)?,
            offset: fields.u32(OFFSET)?,
            address_high: fields.u32(ADDRESS_HIGH)?,
        };
        let others =
            StateError::Inconsistent { field: "files", reason: "the device has files of other names" };
        fields.list(FILES, MAX_FILES, |file| {
            let name = file.bytes(NAME, usize::MAX)?;
            match names.next() {
                Some(ours) if ours.as_bytes() == name => Ok(()),
                _ => Err(others.clone()),
            }
        })?;
        if names.next().is_some() {
            return Err(others);
        }
        fields.finish()?;
        Ok(loaded)
    }
}
