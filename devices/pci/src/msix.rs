//! MSI-X: the table of messages, and the bits of those that are pending (PCI Local Bus 3.0, section 6.8.2).

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_bus::{
    Access, BusFault, DeviceError, DeviceEvent, Effect, EventSink, Interrupt, MessageInterrupt, Mmio,
    MsiMessage, Size,
};

use crate::capability::{self, Capability};

/// The most vectors that a function can have.
const MAX_VECTORS: u16 = 2048;
/// Bytes of an entry in the table.
const ENTRY: u64 = 16;

/// Bits of message control.
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// Bit of an entry's vector control.
const MASKED: u32 = 1;
/// Bits of a message's address that can be written: it is a multiple of 4.
const ADDRESS: u64 = !3;

/// Where a function's MSI-X table and pending bits are, and how many vectors there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MsixLayout {
    /// 1 to 2048.
    pub vectors: u16,
    /// The BAR that both are in.
    pub bar: u8,
    /// Offset of the table, a multiple of 8: 16 bytes for each vector.
    pub table: u32,
    /// Offset of the pending bits, a multiple of 8: 8 bytes for each 64 vectors.
    pub pending: u32,
}

impl MsixLayout {
    /// `vectors` vectors in BAR `bar`, the table at `table` and the pending bits at `pending`.
    pub fn new(vectors: u16, bar: u8, table: u32, pending: u32) -> Self {
        Self { vectors, bar, table, pending }
    }

    fn table_len(&self) -> u64 {
        u64::from(self.vectors) * ENTRY
    }

    fn pending_len(&self) -> u64 {
        u64::from(self.vectors.div_ceil(64)) * 8
    }

    /// Fails if this is not possible in a BAR of `size` bytes.
    pub(crate) fn check(&self, size: Option<u64>) -> Result<(), DeviceError> {
        let wrong = |reason: &str| Err(DeviceError::new(format!("MSI-X: {reason}")));
        let Some(size) = size else { return wrong("the function does not have its BAR") };
        if !(1..=MAX_VECTORS).contains(&self.vectors) {
            return wrong("a function has 1 to 2048 vectors");
        }
        let (table, pending) = (u64::from(self.table), u64::from(self.pending));
        let (table_end, pending_end) = (table + self.table_len(), pending + self.pending_len());
        if !table.is_multiple_of(8) || !pending.is_multiple_of(8) {
            return wrong("table and pending bits begin at multiples of 8");
        }
        if table_end > size || pending_end > size || table < pending_end && pending < table_end {
            return wrong("table and pending bits do not fit into the BAR, or overlap");
        }
        Ok(())
    }

    pub(crate) fn capability(&self) -> Capability {
        let control = self.vectors.saturating_sub(1);
        let place = |offset: u32| (offset | u32::from(self.bar)).to_le_bytes();
        let body = [&control.to_le_bytes()[..], &place(self.table), &place(self.pending)].concat();
        Capability::new(capability::MSIX, body).writable((ENABLE | FUNCTION_MASK).to_le_bytes())
    }
}

/// One entry of the table, as its registers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) message: MsiMessage,
    pub(crate) masked: bool,
}

impl Default for Entry {
    fn default() -> Self {
        Self { message: MsiMessage::default(), masked: true }
    }
}

#[derive(Debug)]
struct Table {
    entries: Vec<Entry>,
    /// For each entry, its message is sent when it is signalled.
    open: Vec<bool>,
    control: u16,
    /// A failure of the host has been told.
    told: bool,
}

/// The vectors of a function. Clones are the same ones.
#[derive(Clone)]
pub struct Vectors(Arc<Shared>);

struct Shared {
    messages: Vec<MessageInterrupt>,
    /// Who sends them.
    requester: u32,
    enabled: AtomicBool,
    table: Mutex<Table>,
    events: EventSink,
}

impl Vectors {
    pub(crate) fn new(messages: &[MessageInterrupt], requester: u32, events: EventSink) -> Self {
        let (entries, open) = (vec![Entry::default(); messages.len()], vec![false; messages.len()]);
        let table = Mutex::new(Table { entries, open, control: 0, told: false });
        let messages = messages.to_vec();
        Self(Arc::new(Shared { messages, requester, enabled: AtomicBool::new(false), table, events }))
    }

    /// How many there are.
    #[allow(clippy::len_without_is_empty)] // a function without any has no use for this
    pub fn len(&self) -> usize {
        self.0.messages.len()
    }

    /// Returns true if the guest has enabled MSI-X.
    pub fn is_enabled(&self) -> bool {
        self.0.enabled.load(Ordering::Acquire)
    }

    /// The interrupt of a vector. What is signalled while it is masked, or MSI-X is not enabled, is pending.
    pub fn interrupt(&self, vector: u16) -> Option<&Interrupt> {
        self.0.messages.get(usize::from(vector)).map(MessageInterrupt::interrupt)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest has written message control.
    pub(crate) fn set_control(&self, control: u16) {
        let mut table = self.table();
        if table.control == control {
            return;
        }
        table.control = control;
        self.0.enabled.store(control & ENABLE != 0, Ordering::Release);
        for vector in 0..self.len() {
            self.apply(&mut table, vector, false);
        }
    }

    /// Has a vector's message be what its registers say; they have `changed` if that is more than who masks it.
    fn apply(&self, table: &mut Table, vector: usize, changed: bool) {
        let enabled = table.control & (ENABLE | FUNCTION_MASK) == ENABLE;
        let (Some(entry), Some(open)) = (table.entries.get(vector), table.open.get_mut(vector)) else {
            return;
        };
        let Some(message) = self.0.messages.get(vector) else { return };
        let (was, now) = (*open, enabled && !entry.masked);
        let sent = entry.message.from_requester(self.0.requester);
        let done = match (was, now) {
            (false, true) => message.set_message(sent).and_then(|()| message.unmask()),
            (true, false) => message.mask(),
            (true, true) if changed => message.set_message(sent),
            _ => Ok(()),
        };
        if done.is_ok() {
            *open = now;
        }
        self.note(table, done);
    }

    /// The host's failure is told once until a reset.
    fn note(&self, table: &mut Table, done: io::Result<()>) {
        let Err(error) = done else { return };
        if !std::mem::replace(&mut table.told, true) {
            self.0
                .events
                .report(DeviceEvent::HostError { reason: format!("an MSI-X vector cannot be set: {error}") });
        }
    }

    fn read_entry(&self, offset: u64) -> u32 {
        let table = self.table();
        let entry = table.entries.get((offset / ENTRY) as usize).copied().unwrap_or_default();
        match offset % ENTRY {
            0 => entry.message.address as u32,
            4 => (entry.message.address >> 32) as u32,
            8 => entry.message.data,
            _ => u32::from(entry.masked) * MASKED,
        }
    }

    fn write_entry(&self, offset: u64, size: Size, value: u64) {
        let mut table = self.table();
        let vector = (offset / ENTRY) as usize;
        let Some(entry) = table.entries.get_mut(vector) else { return };
        let before = entry.message;
        let halves = if size == Size::B8 { 2 } else { 1 };
        for half in 0..halves {
            let (place, value) = (offset % ENTRY + 4 * half, value >> (32 * half) & 0xffff_ffff);
            let MsiMessage { address, data, .. } = &mut entry.message;
            match place {
                0 => *address = *address & !0xffff_ffff | value & ADDRESS,
                4 => *address = *address & 0xffff_ffff | value << 32,
                8 => *data = value as u32,
                _ => entry.masked = value as u32 & MASKED != 0,
            }
        }
        let changed = entry.message != before;
        self.apply(&mut table, vector, changed);
    }

    /// 64 pending bits, from vector `first` on.
    fn pending_word(&self, first: usize) -> u64 {
        let bits = self.0.messages.iter().skip(first).take(64).enumerate();
        bits.fold(0, |word, (bit, message)| word | u64::from(message.is_pending()) << bit)
    }

    /// The entries, and all pending bits.
    pub(crate) fn save(&self) -> (Vec<Entry>, Vec<u64>) {
        let pending = (0..self.len()).step_by(64).map(|first| self.pending_word(first)).collect();
        (self.table().entries.clone(), pending)
    }

    /// Becomes what was saved, with this message control.
    pub(crate) fn restore(&self, entries: Vec<Entry>, pending: &[u64], control: u16) {
        let mut table = self.table();
        table.entries = entries;
        table.control = control;
        self.0.enabled.store(control & ENABLE != 0, Ordering::Release);
        for (vector, message) in self.0.messages.iter().enumerate() {
            let masked = message.mask();
            self.note(&mut table, masked);
            if let Some(open) = table.open.get_mut(vector) {
                *open = false;
            }
            let was_pending = pending.get(vector / 64).is_some_and(|word| word >> (vector % 64) & 1 != 0);
            message.forget_pending();
            if was_pending {
                let signalled = message.interrupt().signal();
                self.note(&mut table, signalled);
            }
            self.apply(&mut table, vector, true);
        }
    }

    pub(crate) fn reset(&self) {
        self.restore(vec![Entry::default(); self.len()], &[], 0);
        self.table().told = false;
    }
}

impl fmt::Debug for Vectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Vectors").field(&self.len()).finish()
    }
}

/// A BAR with table and pending bits in it.
pub(crate) struct MsixBar {
    pub(crate) layout: MsixLayout,
    pub(crate) vectors: Vectors,
    /// All else of it.
    pub(crate) port: Arc<dyn Mmio>,
}

enum Place {
    Table(u64),
    Pending(u64),
    Elsewhere,
}

impl MsixBar {
    fn place(&self, at: Access) -> Result<Place, BusFault> {
        let (table, pending) = (u64::from(self.layout.table), u64::from(self.layout.pending));
        let place = match at.offset {
            offset if offset >= table && offset - table < self.layout.table_len() => {
                Place::Table(offset - table)
            }
            offset if offset >= pending && offset - pending < self.layout.pending_len() => {
                Place::Pending(offset - pending)
            }
            offset => {
                let end = offset.saturating_add(at.size.bytes());
                let reaches = |start| offset < start && end > start;
                return if reaches(table) || reaches(pending) {
                    Err(BusFault::Crosses)
                } else {
                    Ok(Place::Elsewhere)
                };
            }
        };
        match at.size {
            Size::B1 | Size::B2 => Err(BusFault::Width),
            // Both end at multiples of 8 from their starts, so that nothing aligned crosses the end.
            size if !at.offset.is_multiple_of(size.bytes()) => Err(BusFault::Alignment),
            _ => Ok(place),
        }
    }
}

impl Mmio for MsixBar {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        match self.place(at)? {
            Place::Table(offset) if at.size == Size::B8 => {
                let [low, high] = [0, 4].map(|half| u64::from(self.vectors.read_entry(offset + half)));
                Ok(high << 32 | low)
            }
            Place::Table(offset) => Ok(self.vectors.read_entry(offset).into()),
            Place::Pending(offset) => {
                let word = self.vectors.pending_word((offset / 8 * 64) as usize);
                Ok(word >> (8 * (offset % 8)) & at.size.mask())
            }
            Place::Elsewhere => self.port.read(at),
        }
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        match self.place(at)? {
            Place::Table(offset) => self.vectors.write_entry(offset, at.size, value),
            Place::Pending(_) => return Err(BusFault::ReadOnly),
            Place::Elsewhere => return self.port.write(at, value),
        }
        Ok(Effect::None)
    }
}
