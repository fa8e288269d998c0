//! What is connected to a scripted machine, as its vCPUs see it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ossature_bus::{Event, Size};
use ossature_memory::{Dma, REGISTER_PAGE_SIZE, RegisterPage};

use crate::irq_routes::IrqRoutes;
use crate::{Doorbell, DoorbellAddress, VmError};

/// What the vCPUs see of the machine.
#[derive(Debug)]
pub(super) struct Wiring {
    connected: Mutex<Connected>,
    /// Signalled when a line is raised by a call.
    raised: Event,
}

#[derive(Debug, Default)]
pub(super) struct Connected {
    pub(super) ram: Option<Dma>,
    pub(super) pages: List<(u64, Arc<RegisterPage>)>,
    pub(super) lines: List<Line>,
    pub(super) doorbells: List<(Doorbell, Arc<Event>)>,
    /// Level lines that somebody drives, and whether they are asserted.
    pub(super) levels: BTreeMap<u32, bool>,
    /// Lines whose edges are raised by calls, and how many no vCPU has waited for yet.
    pub(super) edges: BTreeMap<u32, u64>,
    pub(super) routes: IrqRoutes,
    /// The number of the next connection.
    next: u64,
}

/// Connections of one kind, each with a number.
pub(super) type List<T> = Vec<(u64, T)>;

/// An event that raises a line.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) gsi: u32,
    pub(super) event: Arc<Event>,
    pub(super) resample: Option<Arc<Event>>,
}

impl Wiring {
    pub(super) fn new() -> Result<Self, VmError> {
        let raised = Event::new().map_err(|source| VmError::Call { call: "eventfd", source })?;
        Ok(Self { connected: Mutex::default(), raised })
    }

    pub(super) fn connected(&self) -> MutexGuard<'_, Connected> {
        self.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds `item` to `list`; what is returned removes it.
    pub(super) fn connect<T: Send + 'static>(
        self: &Arc<Self>,
        list: fn(&mut Connected) -> &mut List<T>,
        item: T,
    ) -> impl FnOnce() + Send + Sync + use<T> {
        let mut connected = self.connected();
        connected.next += 1;
        let number = connected.next;
        list(&mut connected).push((number, item));
        drop(connected);
        let wiring = Arc::downgrade(self);
        move || {
            if let Some(wiring) = Weak::upgrade(&wiring) {
                list(&mut wiring.connected()).retain(|(other, _)| *other != number);
            }
        }
    }

    pub(super) fn ram(&self) -> Option<Dma> {
        let mut ram = self.connected().ram.clone()?;
        ram.refresh();
        Some(ram)
    }

    /// The events that raise line `gsi`.
    pub(super) fn lines(&self, gsi: u32) -> Vec<Line> {
        let connected = self.connected();
        connected.lines.iter().map(|(_, line)| line).filter(|line| line.gsi == gsi).cloned().collect()
    }

    pub(super) fn set_level(&self, gsi: u32, asserted: bool) {
        self.connected().levels.insert(gsi, asserted);
        if asserted {
            self.is_raised();
        }
    }

    pub(super) fn raise_edge(&self, gsi: u32) {
        *self.connected().edges.entry(gsi).or_default() += 1;
        self.is_raised();
    }

    fn is_raised(&self) {
        // Adding one to a counter only fails when it is full.
        let _ = self.raised.signal();
    }

    /// Returns true if line `gsi` was ever driven, or can be, by calls.
    pub(super) fn is_called(&self, gsi: u32) -> bool {
        let connected = self.connected();
        connected.levels.contains_key(&gsi) || connected.edges.contains_key(&gsi)
    }

    /// Returns true if level line `gsi` is asserted.
    pub(super) fn is_asserted(&self, gsi: u32) -> bool {
        self.connected().levels.get(&gsi).is_some_and(|asserted| *asserted)
    }

    /// Takes the edges of line `gsi` that were raised by calls.
    pub(super) fn take_edges(&self, gsi: u32) -> u64 {
        self.connected().edges.get_mut(&gsi).map_or(0, std::mem::take)
    }

    /// Signalled when a line is raised by a call.
    pub(super) fn raised(&self) -> &Event {
        &self.raised
    }

    /// The event that a write rings.
    pub(super) fn doorbell(&self, address: DoorbellAddress, size: Size, value: u64) -> Option<Arc<Event>> {
        let rings = |bell: &Doorbell| {
            bell.address == address
                && bell.value.is_none_or(|v| bell.size == size && v == value & size.mask())
        };
        let connected = self.connected();
        let mut bells = connected.doorbells.iter().map(|(_, bell)| bell);
        bells.find(|(bell, _)| rings(bell)).map(|(_, event)| Arc::clone(event))
    }

    /// What a read of a register page gives.
    pub(super) fn page_value(&self, address: u64, size: Size) -> Option<u64> {
        let connected = self.connected();
        let inside =
            |base: u64| address >= base && address - base <= REGISTER_PAGE_SIZE as u64 - size.bytes();
        let mut pages = connected.pages.iter().map(|(_, page)| page);
        let (base, page) = pages.find(|(base, _)| inside(*base))?;
        let offset = (address - base) as usize;
        let byte = |at: usize| u64::from(page.load(at & !3) >> (8 * (at & 3)) & 0xff);
        Some((0..size as usize).rev().fold(0, |value, n| value << 8 | byte(offset + n)))
    }
}
