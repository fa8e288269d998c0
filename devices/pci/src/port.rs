//! A function as guests reach it: its configuration space, and what follows from what they write there.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_bus::{Access, Effect, RangeId, RegisterRange, Size};

use crate::bar::Bar;
use crate::bus::Windows;
use crate::capability::{Answered, Bars};
use crate::msix::Vectors;
use crate::space::{COMMAND_MEMORY, ConfigSpace, LEN, reg};

/// Registers at which a write may move ranges: the command register and the BARs.
const MOVING: [std::ops::Range<u16>; 2] = [0x04..0x06, 0x10..0x28];

/// The host bridge: an id without a driver of its own, which guests do not mistake for a chipset.
const BRIDGE: [(u8, &[u8]); 3] = [
    (reg::VENDOR, &0x1b36_u16.to_le_bytes()),
    (reg::DEVICE, &0x0008_u16.to_le_bytes()),
    // Class 06 (bridge), subclass 00 (host).
    (reg::CLASS, &[0, 0, 6]),
];

pub(crate) struct FunctionPort {
    space: Mutex<ConfigSpace>,
    /// One of its device's ranges, by which the machine knows the device.
    id: Option<RangeId>,
    ranges: Vec<(Bar, RegisterRange)>,
    bars: Bars,
    answered: Vec<Answered>,
    /// Offset of the capability, and what it is about.
    msix: Option<(u8, Vectors)>,
    windows: Arc<Windows>,
    /// Its guest has given it up: it is on its way out of the machine.
    ejected: AtomicBool,
}

/// What a function consists of once it is attached.
pub(crate) struct Parts {
    pub(crate) space: ConfigSpace,
    pub(crate) id: Option<RangeId>,
    pub(crate) ranges: Vec<(Bar, RegisterRange)>,
    pub(crate) bars: Bars,
    pub(crate) answered: Vec<Answered>,
    pub(crate) msix: Option<(u8, Vectors)>,
    pub(crate) windows: Arc<Windows>,
}

impl FunctionPort {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { space, id, ranges, bars, answered, msix, windows } = parts;
        Self {
            space: Mutex::new(space),
            id,
            ranges,
            bars,
            answered,
            msix,
            windows,
            ejected: AtomicBool::new(false),
        }
    }

    /// A function of which nothing can be written.
    pub(crate) fn host_bridge() -> Self {
        let mut space = ConfigSpace::new();
        BRIDGE.iter().for_each(|(offset, bytes)| space.define(*offset, bytes));
        let (ranges, bars, answered) = (Vec::new(), Bars(Vec::new()), Vec::new());
        Self::new(Parts { space, id: None, ranges, bars, answered, msix: None, windows: Arc::default() })
    }

    fn space(&self) -> MutexGuard<'_, ConfigSpace> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The capability that answers accesses at `offset` itself.
    fn answered(&self, offset: u16) -> Option<(&Answered, u64)> {
        self.answered.iter().find_map(|answered| {
            let inside = offset.checked_sub(answered.start.into())?;
            (usize::from(inside) < answered.len).then_some((answered, inside.into()))
        })
    }

    /// Reads an aligned register.
    pub(crate) fn read(&self, offset: u16, size: Size) -> u64 {
        if let Some((Answered { start, len, port }, inside)) = self.answered(offset) {
            let bytes = self.space().copy(*start, *len);
            if let Some(value) = port.read(&bytes, Access { offset: inside, size }, &self.bars) {
                return value & size.mask();
            }
        }
        self.space().read(offset, size)
    }

    /// Writes an aligned register.
    pub(crate) fn write(&self, offset: u16, size: Size, value: u64) -> Effect {
        let mut space = self.space();
        space.write(offset, size, value);
        if let Some((Answered { start, len, port }, inside)) = self.answered(offset) {
            let bytes = space.copy(*start, *len);
            drop(space);
            return port.write(&bytes, Access { offset: inside, size }, value & size.mask(), &self.bars);
        }
        if let Some((at, vectors)) = &self.msix {
            if u16::from(*at) == offset & !3 {
                vectors.set_control(space.read_u16(at.saturating_add(2)));
            }
        }
        let end = offset.saturating_add(size as u16);
        if MOVING.iter().any(|range| offset < range.end && end > range.start) {
            return self.place(&space);
        }
        Effect::None
    }

    /// Where the registers say that each range is, if the bus has such addresses.
    fn said<'a>(&'a self, space: &'a ConfigSpace) -> impl Iterator<Item = Option<u64>> + 'a {
        let decodes = space.read_u16(reg::COMMAND) & COMMAND_MEMORY != 0 && !self.is_ejected();
        self.ranges.iter().map(move |(bar, _)| {
            let address = bar.address(space);
            (decodes && self.windows.contain(address, bar.size)).then_some(address)
        })
    }

    /// Has each range be where the registers say.
    fn place(&self, space: &ConfigSpace) -> Effect {
        let mut effect = Effect::None;
        for ((_, range), base) in self.ranges.iter().zip(self.said(space)) {
            if range.base() != base || range.wanted() != base {
                effect = range.move_to(base);
            }
        }
        effect
    }

    /// The guest has given it up: it answers no addresses any more, and the machine removes its device.
    pub(crate) fn eject(&self) -> Effect {
        let space = self.space();
        self.ejected.store(true, Ordering::Relaxed);
        let _ = self.place(&space);
        self.id.map_or(Effect::None, Effect::Remove)
    }

    pub(crate) fn is_ejected(&self) -> bool {
        self.ejected.load(Ordering::Relaxed)
    }

    pub(crate) fn reset(&self) {
        let mut space = self.space();
        space.reset();
        if let Some((_, vectors)) = &self.msix {
            vectors.reset();
        }
        // The machine takes ranges back by itself.
        let _ = self.place(&space);
    }

    pub(crate) fn vectors(&self) -> Option<&Vectors> {
        self.msix.as_ref().map(|(_, vectors)| vectors)
    }

    pub(crate) fn bytes(&self) -> [u8; LEN] {
        *self.space().bytes()
    }

    /// Where each range is, if one is elsewhere than the registers say: the machine has refused to move it onto another
    /// one.
    pub(crate) fn places(&self) -> Option<Vec<Option<u64>>> {
        let space = self.space();
        // What has been asked for and not been done yet is as good as done.
        let places: Vec<_> = self.ranges.iter().map(|(_, range)| range.wanted()).collect();
        (!self.said(&space).eq(places.iter().copied())).then_some(places)
    }

    /// Returns true if a machine can have left the ranges of this function at `places`.
    pub(crate) fn may_be_at(&self, places: &[Option<u64>]) -> bool {
        let fits =
            |bar: &Bar, base: u64| base.is_multiple_of(bar.size) && self.windows.contain(base, bar.size);
        let mut pairs = self.ranges.iter().zip(places);
        places.len() == self.ranges.len()
            && pairs.all(|((bar, _), place)| place.is_none_or(|base| fits(bar, base)))
    }

    /// Returns true if guest writes can have led to this configuration space.
    pub(crate) fn may_read(&self, bytes: &[u8; LEN]) -> bool {
        self.space().may_read(bytes)
    }

    /// Takes over what it [may read](Self::may_read), and [where it may be](Self::may_be_at) if that is said apart.
    pub(crate) fn restore(
        &self,
        bytes: [u8; LEN],
        ejected: bool,
        places: Option<&[Option<u64>]>,
        msix: impl FnOnce(&Vectors, u16),
    ) {
        let mut space = self.space();
        space.replace(bytes);
        self.ejected.store(ejected, Ordering::Relaxed);
        if let Some((at, vectors)) = &self.msix {
            msix(vectors, space.read_u16(at.saturating_add(2)));
        }
        // The machine moves ranges by itself when all devices are restored.
        let _ = self.place(&space);
        for ((_, range), place) in self.ranges.iter().zip(places.unwrap_or_default()) {
            let _ = range.move_to(*place);
        }
    }
}

impl fmt::Debug for FunctionPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FunctionPort")
    }
}
