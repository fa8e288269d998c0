//! The BAR through configuration space (virtio 1.2, 4.1.4.9), for firmware that has not placed it yet.

use ossature_bus::{Access, Effect, Size};
use ossature_pci::{Bars, CapabilityPort};

/// Offsets in the capability.
const BAR: usize = 4;
const OFFSET: usize = 8;
const LENGTH: usize = 12;
const DATA: usize = 16;
const DATA_LEN: u64 = 4;

pub(super) struct Window;

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..).and_then(<[u8]>::first_chunk);
    word.map_or(0, |word| u32::from_le_bytes(*word))
}

/// The register that the capability leads to, and in which BAR; `None` for a length that is none, and if `at` is not
/// about the data.
fn target(bytes: &[u8], at: Access) -> Option<(u8, Access)> {
    at.offset.checked_sub(DATA as u64).filter(|inside| *inside < DATA_LEN)?;
    let size = Size::from_len(word(bytes, LENGTH) as usize).filter(|size| *size != Size::B8)?;
    Some((*bytes.get(BAR)?, Access { offset: word(bytes, OFFSET).into(), size }))
}

impl CapabilityPort for Window {
    fn read(&self, bytes: &[u8], at: Access, bars: &Bars) -> Option<u64> {
        let (bar, register) = target(bytes, at)?;
        let value = bars.read(bar, register).unwrap_or(register.size.mask());
        Some(value >> (8 * (at.offset % DATA_LEN)))
    }

    fn write(&self, bytes: &[u8], at: Access, _: u64, bars: &Bars) -> Effect {
        // The value is in the data by now, with what was written there before.
        let Some((bar, register)) = target(bytes, at) else { return Effect::None };
        let value = u64::from(word(bytes, DATA)) & register.size.mask();
        // A driver that writes where nothing is has written nothing.
        bars.write(bar, register, value).unwrap_or(Effect::None)
    }
}
