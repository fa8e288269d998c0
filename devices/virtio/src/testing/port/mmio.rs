//! The MMIO transport as drivers use it (virtio 1.2, 4.2).

use std::sync::Arc;

use ossature_bus::testing::TestBoard;
use ossature_bus::{Access, BusFault, Event, Mmio, Size};
use ossature_memory::RegisterPage;
use virtio_bindings::bindings::virtio_mmio as reg;

use super::Port;
use crate::transport::core::Ring;

/// QueueReset, which has no name in Linux' headers.
const QUEUE_RESET: u32 = 0xc0;

/// The registers of a device that a board has given a place.
pub(in crate::testing) struct MmioPort {
    registers: Arc<dyn Mmio>,
    page: Arc<RegisterPage>,
    doorbells: Vec<Arc<Event>>,
    edges: [Arc<Event>; 1],
}

impl MmioPort {
    /// The device that was attached to `board`.
    pub(in crate::testing) fn new(board: &TestBoard) -> Self {
        let registers = board.port("registers").expect("the device answers");
        let page = board.registers()[0].page().expect("a register page").clone();
        let doorbells = (0..u16::MAX).map_while(|queue| board.doorbell(("kick", queue))).collect();
        Self { registers, page, doorbells, edges: [board.edges("irq").expect("an interrupt")] }
    }

    pub(in crate::testing) fn registers(&self) -> &Arc<dyn Mmio> {
        &self.registers
    }

    /// Reads a 32-bit register. What a guest would see without an exit is the same.
    pub(in crate::testing) fn read(&self, register: u32) -> u32 {
        let value = self.peek(register);
        // The interrupt status may change at any time.
        if register != reg::VIRTIO_MMIO_INTERRUPT_STATUS {
            assert_eq!(self.page.load(register as usize), value, "the register page at {register:#x}");
        }
        value
    }

    /// The same while another thread may write registers.
    fn peek(&self, register: u32) -> u32 {
        let at = Access { offset: register.into(), size: Size::B4 };
        self.registers.read(at).expect("a readable register") as u32
    }

    /// Writes a 32-bit register.
    pub(in crate::testing) fn write(&self, register: u32, value: u32) {
        let at = Access { offset: register.into(), size: Size::B4 };
        let _ = self.registers.write(at, value.into()).expect("a writable register");
    }
}

/// An access to configuration space, as one to the registers.
fn config(at: Access) -> Access {
    Access { offset: at.offset.saturating_add(reg::VIRTIO_MMIO_CONFIG.into()), ..at }
}

impl Port for MmioPort {
    fn status(&self) -> u8 {
        self.read(reg::VIRTIO_MMIO_STATUS) as u8
    }

    fn set_status(&self, status: u8) {
        self.write(reg::VIRTIO_MMIO_STATUS, status.into());
    }

    fn status_register(&self) -> (Arc<dyn Mmio>, Access) {
        (self.registers.clone(), Access { offset: reg::VIRTIO_MMIO_STATUS.into(), size: Size::B4 })
    }

    fn device_features(&self, window: u32) -> u32 {
        self.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, window);
        self.read(reg::VIRTIO_MMIO_DEVICE_FEATURES)
    }

    fn set_driver_features(&self, window: u32, bits: u32) {
        self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, window);
        self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, bits);
    }

    fn queue_count(&self) -> u16 {
        let none = |queue: &u16| {
            self.select_queue((*queue).into());
            self.queue_max() == 0
        };
        (0..u16::MAX).find(none).expect("an end of queues")
    }

    fn last_queue(&self) -> u32 {
        u32::MAX
    }

    fn select_queue(&self, queue: u32) {
        self.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue);
    }

    fn queue_max(&self) -> u32 {
        self.read(reg::VIRTIO_MMIO_QUEUE_NUM_MAX)
    }

    fn set_queue_size(&self, size: u32) {
        self.write(reg::VIRTIO_MMIO_QUEUE_NUM, size);
    }

    fn set_queue_address(&self, ring: Ring, addr: u64) {
        let (low, high) = match ring {
            Ring::Desc => (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, reg::VIRTIO_MMIO_QUEUE_DESC_HIGH),
            Ring::Avail => (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH),
            Ring::Used => (reg::VIRTIO_MMIO_QUEUE_USED_LOW, reg::VIRTIO_MMIO_QUEUE_USED_HIGH),
        };
        self.write(low, addr as u32);
        self.write(high, (addr >> 32) as u32);
    }

    fn queue_ready(&self) -> u32 {
        self.read(reg::VIRTIO_MMIO_QUEUE_READY)
    }

    fn set_queue_ready(&self, value: u32) {
        self.write(reg::VIRTIO_MMIO_QUEUE_READY, value);
    }

    fn queue_reset(&self) -> u32 {
        self.peek(QUEUE_RESET)
    }

    fn set_queue_reset(&self, value: u32) {
        self.write(QUEUE_RESET, value);
    }

    fn connect_config(&self) {
        // There is one interrupt for all.
    }

    fn connect_queue(&self, _: u16) {
        // As above.
    }

    fn config_room(&self) -> u64 {
        u64::from(0x1000 - reg::VIRTIO_MMIO_CONFIG)
    }

    fn config(&self, at: Access) -> Result<u64, BusFault> {
        self.registers.read(config(at))
    }

    fn set_config(&self, at: Access, value: u64) -> Result<(), BusFault> {
        self.registers.write(config(at), value).map(drop)
    }

    fn generation(&self) -> u32 {
        self.read(reg::VIRTIO_MMIO_CONFIG_GENERATION)
    }

    fn notify(&self, queue: u32) {
        self.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue);
    }

    fn doorbell(&self, queue: u16) -> Arc<Event> {
        self.doorbells.get(usize::from(queue)).expect("a doorbell of the queue").clone()
    }

    fn pending(&self) -> u32 {
        self.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS)
    }

    fn acknowledge(&self, bits: u32) {
        self.write(reg::VIRTIO_MMIO_INTERRUPT_ACK, bits);
    }

    fn scribble(&self, value: u64) {
        for offset in (0..0x110).step_by(4) {
            let at = Access { offset, size: Size::B4 };
            let _ = self.registers.write(at, value);
            let _ = self.registers.read(at);
        }
    }

    fn events(&self) -> &[Arc<Event>] {
        &self.edges
    }

    fn take_interrupts(&self) -> u64 {
        self.edges[0].take().expect("an event")
    }

    fn take_config_interrupt(&self) -> bool {
        self.take_interrupts() > 0 && self.pending() & 2 != 0
    }
}
