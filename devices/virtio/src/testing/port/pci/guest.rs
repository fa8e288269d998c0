//! A PCI bus as a guest's kernel uses it: configuration space, BARs, capabilities, MSI-X.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_bus::testing::TestBoard;
use ossature_bus::{
    Access, BusFault, Effect, Event, Mmio, MsiMessage, RangeId, RegisterRange, ResourceName, Size,
};
use ossature_memory::vm_memory::GuestAddress;

/// Bits of the command register: memory space, bus master.
const COMMAND_MEMORY: u64 = 1 << 1;
const COMMAND_MASTER: u64 = 1 << 2;
/// Bit of the status register: there is a list of capabilities.
const STATUS_CAPABILITIES: u64 = 1 << 4;

pub(in crate::testing) const VENDOR_ID: u16 = 0x00;
pub(in crate::testing) const DEVICE_ID: u16 = 0x02;
pub(in crate::testing) const COMMAND: u16 = 0x04;
const STATUS: u16 = 0x06;
pub(in crate::testing) const REVISION: u16 = 0x08;
const HEADER_TYPE: u16 = 0x0e;
pub(in crate::testing) const BAR0: u16 = 0x10;
const CAPABILITIES: u16 = 0x34;

pub(in crate::testing) const CAP_VENDOR: u8 = 0x09;
pub(in crate::testing) const CAP_MSIX: u8 = 0x11;

/// Bits of MSI-X message control.
pub(in crate::testing) const MSIX_ENABLE: u64 = 1 << 15;
pub(in crate::testing) const MSIX_MASK: u64 = 1 << 14;

/// A machine with a PCI bus, as its guest reaches it.
pub(in crate::testing) struct Guest {
    board: Arc<Mutex<TestBoard>>,
    ecam: Arc<dyn Mmio>,
    hotplug: Arc<dyn Mmio>,
    /// Where the guest may put BARs: below and above 4 GiB.
    windows: [std::ops::RangeInclusive<u64>; 2],
    /// What writes have asked the machine to remove.
    removed: Mutex<Vec<RangeId>>,
}

/// Registers for hotplug.
#[derive(Clone, Copy, Debug)]
pub(in crate::testing) enum Hotplug {
    Up = 0,
    Down = 4,
    Eject = 8,
    Present = 12,
}

impl Guest {
    pub(in crate::testing) fn new(
        board: Arc<Mutex<TestBoard>>,
        ecam: Arc<dyn Mmio>,
        hotplug: Arc<dyn Mmio>,
        windows: [std::ops::RangeInclusive<u64>; 2],
    ) -> Self {
        Self { board, ecam, hotplug, windows, removed: Mutex::default() }
    }

    pub(in crate::testing) fn board(&self) -> MutexGuard<'_, TestBoard> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out what a write asks for.
    fn apply(&self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Remove(id) => {
                self.removed.lock().unwrap().push(id);
                self.settle();
            }
            Effect::Remap(_) => self.settle(),
            other => panic!("a write that asks for {other:?}"),
        }
    }

    /// Moves ranges to where their devices want them, except onto RAM.
    pub(in crate::testing) fn settle(&self) {
        let board = self.board();
        for range in board.registers() {
            let ram = |base: u64| board.dma().check(GuestAddress(base), 1).is_ok();
            if range.wanted().is_some_and(ram) {
                range.moved(range.base());
            }
        }
        board.carry_out(Effect::Remap(RangeId(0)));
    }

    /// How many ranges of the board lie at `addr`.
    pub(in crate::testing) fn ranges_at(&self, addr: u64) -> usize {
        self.board().registers().iter().filter(|range| range.base() == Some(addr)).count()
    }

    /// What the guest's writes have asked to be removed since the last time.
    pub(in crate::testing) fn take_removed(&self) -> Vec<RangeId> {
        std::mem::take(&mut self.removed.lock().unwrap())
    }

    pub(in crate::testing) fn hotplug(&self, register: Hotplug) -> u32 {
        let at = Access { offset: register as u64, size: Size::B4 };
        self.hotplug.read(at).expect("a hotplug register") as u32
    }

    /// Ejects the functions of these slots.
    pub(in crate::testing) fn eject(&self, slots: u32) {
        let at = Access { offset: Hotplug::Eject as u64, size: Size::B4 };
        self.apply(self.hotplug.write(at, slots.into()).expect("a hotplug register"));
    }

    /// Slots in which a function answers.
    pub(in crate::testing) fn slots(self: &Arc<Self>) -> Vec<Slot> {
        let slots = (1..32).map(|number| Slot { guest: self.clone(), number });
        slots.filter(|slot| slot.read(VENDOR_ID, Size::B2) != 0xffff).collect()
    }
}

/// A function, which the guest knows by the slot that it is in.
#[derive(Clone)]
pub(in crate::testing) struct Slot {
    pub(in crate::testing) guest: Arc<Guest>,
    pub(in crate::testing) number: u8,
}

impl Slot {
    fn at(&self, register: u16, size: Size) -> Access {
        Access { offset: u64::from(self.number) << 15 | u64::from(register), size }
    }

    /// Reads configuration space; all ones where nothing answers.
    pub(in crate::testing) fn read(&self, register: u16, size: Size) -> u64 {
        self.guest.ecam.read(self.at(register, size)).unwrap_or(size.mask())
    }

    pub(in crate::testing) fn write(&self, register: u16, size: Size, value: u64) {
        if let Ok(effect) = self.guest.ecam.write(self.at(register, size), value) {
            self.guest.apply(effect);
        }
    }

    /// The capabilities: id and where they begin.
    pub(in crate::testing) fn capabilities(&self) -> Vec<(u8, u16)> {
        if self.read(STATUS, Size::B2) & STATUS_CAPABILITIES == 0 {
            return Vec::new();
        }
        let mut next = self.read(CAPABILITIES, Size::B1) & !3;
        let mut found = Vec::new();
        while next != 0 {
            assert!(found.len() < 48, "the list of capabilities does not end");
            assert!(next >= 0x40, "a capability in the header");
            let at = next as u16;
            found.push((self.read(at, Size::B1) as u8, at));
            next = self.read(at + 1, Size::B1) & !3;
        }
        found
    }

    /// The BARs: each with its number, whether it has 64 bits, and its size.
    pub(in crate::testing) fn bars(&self) -> Vec<(u8, bool, u64)> {
        assert_eq!(self.read(HEADER_TYPE, Size::B1) & 0x7f, 0);
        let decoding = self.read(COMMAND, Size::B2);
        self.write(COMMAND, Size::B2, decoding & !COMMAND_MEMORY);
        let mut bars = Vec::new();
        let mut bar = 0;
        while bar < 6 {
            let wide = self.is_wide(bar);
            let before = self.bar(bar, wide);
            self.set_bar(bar, wide, u64::MAX);
            let mask = self.bar(bar, wide);
            self.set_bar(bar, wide, before);
            if mask != 0 {
                let size = if wide { mask.wrapping_neg() } else { (mask as u32).wrapping_neg().into() };
                assert!(size.is_power_of_two() && size >= 16, "BAR {bar} has {size:#x} bytes");
                bars.push((bar, wide, size));
            }
            bar += 1 + u8::from(wide);
        }
        self.write(COMMAND, Size::B2, decoding);
        bars
    }

    fn is_wide(&self, bar: u8) -> bool {
        self.read(BAR0 + 4 * u16::from(bar), Size::B4) & 0b110 == 0b100
    }

    /// A BAR's address.
    pub(in crate::testing) fn bar(&self, bar: u8, wide: bool) -> u64 {
        let register = BAR0 + 4 * u16::from(bar);
        let high = if wide { self.read(register + 4, Size::B4) } else { 0 };
        self.read(register, Size::B4) & !0xf | high << 32
    }

    /// Writes a BAR, one half after the other.
    pub(in crate::testing) fn set_bar(&self, bar: u8, wide: bool, addr: u64) {
        let register = BAR0 + 4 * u16::from(bar);
        self.write(register, Size::B4, addr & 0xffff_ffff);
        if wide {
            self.write(register + 4, Size::B4, addr >> 32);
        }
    }

    /// Gives each BAR an address in a window of the bus, and has the function answer there: each BAR's number and address.
    pub(in crate::testing) fn enable(&self) -> Vec<(u8, u64)> {
        let mut next = self.guest.windows.each_ref().map(|window| *window.start());
        // Room for those of other slots.
        next.iter_mut().for_each(|next| *next += u64::from(self.number) << 20);
        let mut placed = Vec::new();
        for (bar, wide, size) in self.bars() {
            let next = &mut next[usize::from(wide)];
            let addr = next.next_multiple_of(size);
            *next = addr + size;
            self.set_bar(bar, wide, addr);
            assert_eq!(self.bar(bar, wide), addr, "BAR {bar} reads what was written");
            placed.push((bar, addr));
        }
        self.set_decoding(true);
        placed
    }

    /// The function answers, and its BARs are where [`enable`](Self::enable) put them.
    pub(in crate::testing) fn assert_enabled(&self, bars: &[(u8, u64)]) {
        assert_ne!(self.read(COMMAND, Size::B2) & COMMAND_MEMORY, 0, "it does not decode memory");
        for &(bar, addr) in bars {
            assert_eq!(self.bar(bar, self.is_wide(bar)), addr, "BAR {bar}");
        }
    }

    /// The function does not answer, and its BARs are nowhere.
    pub(in crate::testing) fn assert_disabled(&self) {
        assert_eq!(self.read(COMMAND, Size::B2), 0, "the command register after a reset");
        (0..6).for_each(|bar| assert_eq!(self.bar(bar, false), 0, "BAR {bar} after a reset"));
    }

    /// Has the function answer at its BARs, or no longer.
    pub(in crate::testing) fn set_decoding(&self, on: bool) {
        let command = self.read(COMMAND, Size::B2) & !(COMMAND_MEMORY | COMMAND_MASTER);
        let bits = if on { COMMAND_MEMORY | COMMAND_MASTER } else { 0 };
        self.write(COMMAND, Size::B2, command | bits);
    }
}

/// A part of a BAR.
#[derive(Clone)]
pub(in crate::testing) struct Region {
    guest: Arc<Guest>,
    /// The address of its BAR.
    pub(in crate::testing) bar: u64,
    pub(in crate::testing) offset: u64,
    pub(in crate::testing) len: u64,
}

impl Region {
    pub(in crate::testing) fn new(guest: &Arc<Guest>, bar: u64, offset: u64, len: u64) -> Self {
        Self { guest: guest.clone(), bar, offset, len }
    }

    /// The same part of a BAR at another address.
    pub(in crate::testing) fn at_bar(&self, bar: u64) -> Self {
        Self { bar, ..self.clone() }
    }

    /// What answers at the BAR's address.
    pub(in crate::testing) fn port(&self) -> Result<Arc<dyn Mmio>, BusFault> {
        let range = self.range().ok_or(BusFault::Unmapped)?;
        range.port().ok_or(BusFault::Unmapped)
    }

    /// The range of the board that lies at the BAR's address.
    pub(in crate::testing) fn range(&self) -> Option<RegisterRange> {
        let board = self.guest.board();
        board.registers().iter().find(|range| range.base() == Some(self.bar)).cloned()
    }

    fn at(&self, at: Access) -> Access {
        Access { offset: at.offset.saturating_add(self.offset), ..at }
    }

    pub(in crate::testing) fn try_read(&self, at: Access) -> Result<u64, BusFault> {
        self.port()?.read(self.at(at))
    }

    pub(in crate::testing) fn try_write(&self, at: Access, value: u64) -> Result<(), BusFault> {
        let effect = self.port()?.write(self.at(at), value)?;
        self.guest.apply(effect);
        Ok(())
    }

    /// Reads a register that is there.
    pub(in crate::testing) fn read(&self, offset: u64, size: Size) -> u64 {
        assert!(offset + size.bytes() <= self.len, "a register at {offset:#x}");
        self.try_read(Access { offset, size }).expect("a readable register")
    }

    pub(in crate::testing) fn write(&self, offset: u64, size: Size, value: u64) {
        assert!(offset + size.bytes() <= self.len, "a register at {offset:#x}");
        self.try_write(Access { offset, size }, value).expect("a writable register");
    }
}

/// A function's MSI-X vectors.
pub(in crate::testing) struct Msix {
    slot: Slot,
    /// Where the capability is.
    pub(in crate::testing) capability: u16,
    pub(in crate::testing) table: Region,
    pub(in crate::testing) pending: Region,
    /// The name of the messages on the board.
    name: ResourceName,
    pub(in crate::testing) events: Vec<Arc<Event>>,
}

impl Msix {
    pub(in crate::testing) fn new(
        slot: &Slot,
        capability: u16,
        bars: &[(u8, u64)],
        name: ResourceName,
    ) -> Self {
        let vectors = (slot.read(capability + 2, Size::B2) & 0x7ff) + 1;
        let region = |register: u16, len| {
            let place = slot.read(register, Size::B4);
            let bar = bars.iter().find(|(bar, _)| u64::from(*bar) == place & 7).expect("a BAR");
            Region::new(&slot.guest, bar.1, place & !7, len)
        };
        let (table, pending) =
            (region(capability + 4, vectors * 16), region(capability + 8, vectors.div_ceil(64) * 8));
        let event = |index| slot.guest.board().message_event(name, index).expect("a message for each vector");
        let events = (0..vectors as usize).map(event).collect();
        Self { slot: slot.clone(), capability, table, pending, name, events }
    }

    /// The message of a vector, as the driver programs it.
    fn message(vector: usize) -> MsiMessage {
        MsiMessage::new(0xfee0_1000, 0x40 + vector as u32)
    }

    /// Programs all vectors and enables them, as Linux does: with the function masked until all is there.
    pub(in crate::testing) fn enable(&self) {
        self.set_control(MSIX_ENABLE | MSIX_MASK);
        for vector in 0..self.events.len() {
            let MsiMessage { address, data, .. } = Self::message(vector);
            let entry = 16 * vector as u64;
            self.table.write(entry, Size::B4, address & 0xffff_ffff);
            self.table.write(entry + 4, Size::B4, address >> 32);
            self.table.write(entry + 8, Size::B4, data.into());
            self.table.write(entry + 12, Size::B4, 0);
        }
        self.set_control(MSIX_ENABLE);
    }

    /// Vectors and message control are as [`enable`](Self::enable) left them.
    pub(in crate::testing) fn assert_enabled(&self) {
        let control = self.slot.read(self.capability + 2, Size::B2);
        assert_eq!(control & (MSIX_ENABLE | MSIX_MASK), MSIX_ENABLE, "MSI-X is not enabled");
        for vector in 0..self.events.len() {
            let MsiMessage { address, data, .. } = Self::message(vector);
            let words = [0, 8].map(|field| self.table.read(16 * vector as u64 + field, Size::B8));
            assert_eq!(words, [address, data.into()], "vector {vector}");
        }
    }

    /// Writes message control.
    pub(in crate::testing) fn set_control(&self, bits: u64) {
        self.slot.write(self.capability + 2, Size::B2, bits);
    }

    /// Masks or unmasks a vector.
    pub(in crate::testing) fn set_masked(&self, vector: u16, masked: bool) {
        self.table.write(16 * u64::from(vector) + 12, Size::B4, masked.into());
    }

    /// The pending bit of a vector.
    pub(in crate::testing) fn is_pending(&self, vector: u16) -> bool {
        self.pending.read(u64::from(vector / 64) * 8, Size::B8) >> (vector % 64) & 1 != 0
    }

    /// Returns true if the vector's message was sent since the last time.
    pub(in crate::testing) fn take(&self, vector: usize) -> bool {
        let sent = self.slot.guest.board().take_message(self.name, vector);
        if let Some(sent) = sent {
            let expected = Self::message(vector).from_requester(u32::from(self.slot.number) << 3);
            assert_eq!(sent, expected, "another message than vector {vector} was programmed with");
        }
        sent.is_some()
    }
}
