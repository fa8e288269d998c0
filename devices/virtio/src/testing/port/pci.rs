//! The PCI transport as drivers use it (virtio 1.2, 4.1).

pub(in crate::testing) mod guest;

use std::sync::Arc;

use ossature_bus::{Access, BusFault, Event, Mmio, Requires, Size};

use self::guest::{CAP_MSIX, CAP_VENDOR, DEVICE_ID, Msix, REVISION, Region, Slot, VENDOR_ID};
use super::Port;
use crate::transport::core::Ring;

/// No vector.
pub(in crate::testing) const NO_VECTOR: u64 = 0xffff;

/// Registers of the common configuration (4.1.4.3).
pub(in crate::testing) mod common {
    pub(in crate::testing) const DEVICE_FEATURE_SELECT: u64 = 0;
    pub(in crate::testing) const DEVICE_FEATURE: u64 = 4;
    pub(in crate::testing) const DRIVER_FEATURE_SELECT: u64 = 8;
    pub(in crate::testing) const DRIVER_FEATURE: u64 = 12;
    pub(in crate::testing) const CONFIG_MSIX_VECTOR: u64 = 16;
    pub(in crate::testing) const NUM_QUEUES: u64 = 18;
    pub(in crate::testing) const DEVICE_STATUS: u64 = 20;
    pub(in crate::testing) const CONFIG_GENERATION: u64 = 21;
    pub(in crate::testing) const QUEUE_SELECT: u64 = 22;
    pub(in crate::testing) const QUEUE_SIZE: u64 = 24;
    pub(in crate::testing) const QUEUE_MSIX_VECTOR: u64 = 26;
    pub(in crate::testing) const QUEUE_ENABLE: u64 = 28;
    pub(in crate::testing) const QUEUE_NOTIFY_OFF: u64 = 30;
    pub(in crate::testing) const QUEUE_DESC: u64 = 32;
    pub(in crate::testing) const QUEUE_DRIVER: u64 = 40;
    pub(in crate::testing) const QUEUE_DEVICE: u64 = 48;
    pub(in crate::testing) const QUEUE_RESET: u64 = 58;
}

/// Which vectors a driver uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Vectors {
    /// One for configuration changes and one for each queue.
    #[default]
    PerQueue,
    /// One for all.
    Shared,
    /// None: the driver looks by itself.
    None,
}

/// A function with a virtio transport, which the driver has found and enabled.
pub(in crate::testing) struct PciPort {
    pub(in crate::testing) slot: Slot,
    pub(in crate::testing) bars: Vec<(u8, u64)>,
    pub(in crate::testing) common: Region,
    pub(in crate::testing) notify: Region,
    pub(in crate::testing) isr: Region,
    config: Option<Region>,
    /// The capability with the window into the BARs.
    pub(in crate::testing) window: u16,
    pub(in crate::testing) msix: Msix,
    vectors: Vectors,
    multiplier: u64,
    /// Where in the notification region each queue is kicked.
    kicks: Vec<u64>,
    doorbells: Vec<Arc<Event>>,
}

impl PciPort {
    /// Finds the function in `slot`, whose device requires `requires`, and enables it.
    pub(in crate::testing) fn new(slot: Slot, requires: &Requires, vectors: Vectors) -> Self {
        assert_eq!(slot.read(VENDOR_ID, Size::B2), 0x1af4);
        assert!((0x1041..0x1080).contains(&slot.read(DEVICE_ID, Size::B2)), "the id of a virtio device");
        assert!(slot.read(REVISION, Size::B1) >= 1, "a device without the legacy interface");
        let bars = slot.enable();
        let mut port = Self::on(slot, bars, requires, vectors);
        if vectors != Vectors::None {
            port.msix.enable();
        }
        let queues = port.common.read(common::NUM_QUEUES, Size::B2) as u16;
        let kicks = (0..queues).map(|queue| {
            port.select_queue(queue.into());
            let offset = port.common.read(common::QUEUE_NOTIFY_OFF, Size::B2) * port.multiplier;
            assert!(offset + 2 <= port.notify.len, "queue {queue} is kicked at {offset:#x}");
            offset
        });
        port.kicks = kicks.collect();
        port.doorbells = port.doorbells(requires);
        port
    }

    /// The function where it is.
    fn on(slot: Slot, bars: Vec<(u8, u64)>, requires: &Requires, vectors: Vectors) -> Self {
        let region = |at: u16| {
            let bar = slot.read(at + 4, Size::B1);
            let [offset, len] = [8, 12].map(|field| slot.read(at + field, Size::B4));
            let bar = bars.iter().find(|(number, _)| u64::from(*number) == bar).expect("a BAR");
            Region::new(&slot.guest, bar.1, offset, len)
        };
        let capabilities = slot.capabilities();
        let of_type = |kind: u64| {
            let is = |(id, at): &&(u8, u16)| *id == CAP_VENDOR && slot.read(at + 3, Size::B1) == kind;
            capabilities.iter().find(is).map(|(_, at)| *at)
        };
        let the = |kind| of_type(kind).unwrap_or_else(|| panic!("a virtio capability of type {kind}"));
        let msix = capabilities.iter().find(|(id, _)| *id == CAP_MSIX).expect("MSI-X").1;
        Self {
            common: region(the(1)),
            notify: region(the(2)),
            multiplier: slot.read(the(2) + 16, Size::B4),
            isr: region(the(3)),
            config: of_type(4).map(region),
            window: the(5),
            msix: Msix::new(&slot, msix, &bars, requires.messages[0].name),
            bars,
            slot,
            vectors,
            kicks: Vec::new(),
            doorbells: Vec::new(),
        }
    }

    fn doorbells(&self, requires: &Requires) -> Vec<Arc<Event>> {
        let bells: Vec<_> = requires.registers.iter().flat_map(|range| &range.doorbells).collect();
        let doorbell = |offset: &u64| {
            let bell = bells.iter().find(|bell| bell.offset == self.notify.offset + offset);
            let board = self.slot.guest.board();
            bell.and_then(|bell| board.doorbell(bell.name)).expect("a doorbell of the queue")
        };
        self.kicks.iter().map(doorbell).collect()
    }

    /// The same function on another board, in `slot` there, where it has been restored: it is configured as it was.
    pub(in crate::testing) fn moved_to(&self, slot: Slot, requires: &Requires) -> Self {
        slot.assert_enabled(&self.bars);
        let mut port = Self::on(slot, self.bars.clone(), requires, self.vectors);
        port.kicks = self.kicks.clone();
        port.doorbells = port.doorbells(requires);
        port.assert_enabled();
        port
    }

    /// The function is configured as [`new`](Self::new) left it.
    pub(in crate::testing) fn assert_enabled(&self) {
        self.slot.assert_enabled(&self.bars);
        if self.vectors != Vectors::None {
            self.msix.assert_enabled();
        }
    }

    /// The function is as before a driver came.
    pub(in crate::testing) fn assert_disabled(&self) {
        self.slot.assert_disabled();
        assert_eq!(self.slot.read(self.msix.capability + 2, Size::B2) >> 14, 0, "MSI-X after a reset");
        assert!(self.common.range().is_none(), "it answers after a reset");
    }

    fn set_vector(&self, register: u64, vector: u64) {
        let vector = match self.vectors {
            Vectors::PerQueue => vector,
            Vectors::Shared => 0,
            Vectors::None => NO_VECTOR,
        };
        self.common.write(register, Size::B2, vector);
        assert_eq!(self.common.read(register, Size::B2), vector, "the vector that the device took");
    }
}

impl Port for PciPort {
    fn status(&self) -> u8 {
        self.common.read(common::DEVICE_STATUS, Size::B1) as u8
    }

    fn set_status(&self, status: u8) {
        self.common.write(common::DEVICE_STATUS, Size::B1, status.into());
    }

    fn status_register(&self) -> (Arc<dyn Mmio>, Access) {
        let at = Access { offset: self.common.offset + common::DEVICE_STATUS, size: Size::B1 };
        (self.common.port().expect("it answers"), at)
    }

    fn device_features(&self, window: u32) -> u32 {
        self.common.write(common::DEVICE_FEATURE_SELECT, Size::B4, window.into());
        self.common.read(common::DEVICE_FEATURE, Size::B4) as u32
    }

    fn set_driver_features(&self, window: u32, bits: u32) {
        self.common.write(common::DRIVER_FEATURE_SELECT, Size::B4, window.into());
        self.common.write(common::DRIVER_FEATURE, Size::B4, bits.into());
    }

    fn queue_count(&self) -> u16 {
        self.common.read(common::NUM_QUEUES, Size::B2) as u16
    }

    fn last_queue(&self) -> u32 {
        u16::MAX.into()
    }

    fn select_queue(&self, queue: u32) {
        self.common.write(common::QUEUE_SELECT, Size::B2, queue.into());
    }

    fn queue_max(&self) -> u32 {
        self.common.read(common::QUEUE_SIZE, Size::B2) as u32
    }

    fn set_queue_size(&self, size: u32) {
        self.common.write(common::QUEUE_SIZE, Size::B2, u64::from(size) & 0xffff);
    }

    fn set_queue_address(&self, ring: Ring, addr: u64) {
        let register = match ring {
            Ring::Desc => common::QUEUE_DESC,
            Ring::Avail => common::QUEUE_DRIVER,
            Ring::Used => common::QUEUE_DEVICE,
        };
        self.common.write(register, Size::B4, addr & 0xffff_ffff);
        self.common.write(register + 4, Size::B4, addr >> 32);
    }

    fn queue_ready(&self) -> u32 {
        self.common.read(common::QUEUE_ENABLE, Size::B2) as u32
    }

    fn set_queue_ready(&self, value: u32) {
        self.common.write(common::QUEUE_ENABLE, Size::B2, value.into());
    }

    fn queue_reset(&self) -> u32 {
        self.common.read(common::QUEUE_RESET, Size::B2) as u32
    }

    fn set_queue_reset(&self, value: u32) {
        self.common.write(common::QUEUE_RESET, Size::B2, u64::from(value) & 0xffff);
    }

    fn connect_config(&self) {
        self.set_vector(common::CONFIG_MSIX_VECTOR, 0);
    }

    fn connect_queue(&self, queue: u16) {
        self.set_vector(common::QUEUE_MSIX_VECTOR, u64::from(queue) + 1);
    }

    fn config_room(&self) -> u64 {
        self.config.as_ref().map_or(0, |config| config.len)
    }

    fn config(&self, at: Access) -> Result<u64, BusFault> {
        self.config.as_ref().ok_or(BusFault::Unmapped)?.try_read(at)
    }

    fn set_config(&self, at: Access, value: u64) -> Result<(), BusFault> {
        self.config.as_ref().ok_or(BusFault::Unmapped)?.try_write(at, value)
    }

    fn generation(&self) -> u32 {
        self.common.read(common::CONFIG_GENERATION, Size::B1) as u32
    }

    fn notify(&self, queue: u32) {
        let value = u64::from(queue) & 0xffff;
        if let Some(&offset) = self.kicks.get(queue as usize) {
            return self.notify.write(offset, Size::B2, value);
        }
        // Where it would be kicked if it existed, and where another queue is.
        let offset = u64::from(queue) * self.multiplier;
        let _ = self.notify.try_write(Access { offset, size: Size::B2 }, value);
        self.notify.write(self.kicks.first().copied().unwrap_or(0), Size::B2, value);
    }

    fn doorbell(&self, queue: u16) -> Arc<Event> {
        self.doorbells.get(usize::from(queue)).expect("a doorbell of the queue").clone()
    }

    fn pending(&self) -> u32 {
        match self.vectors {
            // Reading it acknowledges it.
            Vectors::None => self.isr.read(0, Size::B1) as u32,
            Vectors::PerQueue | Vectors::Shared => 0,
        }
    }

    fn acknowledge(&self, _: u32) {
        // The driver has done so by reading what is pending.
    }

    fn scribble(&self, value: u64) {
        for region in [Some(&self.common), Some(&self.isr), Some(&self.notify), self.config.as_ref()]
            .into_iter()
            .flatten()
        {
            for size in [Size::B1, Size::B2, Size::B4] {
                for offset in (0..region.len.min(64)).step_by(size.bytes() as usize) {
                    let at = Access { offset, size };
                    let _ = region.try_write(at, value);
                    let _ = region.try_read(at);
                }
            }
        }
    }

    fn events(&self) -> &[Arc<Event>] {
        match self.vectors {
            Vectors::None => &[],
            Vectors::PerQueue | Vectors::Shared => &self.msix.events,
        }
    }

    fn take_interrupts(&self) -> u64 {
        match self.vectors {
            Vectors::None => u64::from(self.pending() != 0),
            Vectors::PerQueue | Vectors::Shared => {
                (0..self.msix.events.len()).filter(|&vector| self.msix.take(vector)).count() as u64
            }
        }
    }

    fn take_config_interrupt(&self) -> bool {
        let sent = self.vectors == Vectors::None || self.msix.take(0);
        self.take_interrupts();
        // Where the vector is not its own, the driver reads why.
        sent && (self.vectors == Vectors::PerQueue || self.isr.read(0, Size::B1) & 2 != 0)
    }
}
