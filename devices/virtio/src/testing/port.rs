//! A virtio transport as drivers use it, whatever its registers look like.

pub(super) mod mmio;
pub(super) mod pci;

use std::sync::Arc;

use ossature_bus::{Access, BusFault, Event, Mmio, Size};

use crate::transport::core::Ring;

/// The registers, doorbells and interrupts of one device. Registers of queues are those of the selected one.
pub(crate) trait Port: Send + Sync {
    fn status(&self) -> u8;
    fn set_status(&self, status: u8);
    /// What answers the status register at present, and where: for a vCPU that still writes to a device that has left.
    fn status_register(&self) -> (Arc<dyn Mmio>, Access);
    /// Features that the device offers, from bit `32 * window`.
    fn device_features(&self, window: u32) -> u32;
    /// Features that the driver accepts, from bit `32 * window`.
    fn set_driver_features(&self, window: u32, bits: u32);
    /// How many queues the device has.
    fn queue_count(&self) -> u16;
    /// The highest number that can be written to select a queue.
    fn last_queue(&self) -> u32;
    fn select_queue(&self, queue: u32);
    /// The largest size of a queue that was not set up; 0 where there is none.
    fn queue_max(&self) -> u32;
    fn set_queue_size(&self, size: u32);
    fn set_queue_address(&self, ring: Ring, addr: u64);
    fn queue_ready(&self) -> u32;
    fn set_queue_ready(&self, value: u32);
    fn queue_reset(&self) -> u32;
    fn set_queue_reset(&self, value: u32);
    /// Chooses the interrupt of configuration changes, where the transport has several.
    fn connect_config(&self);
    /// Chooses the interrupt of the selected queue, which is `queue`.
    fn connect_queue(&self, queue: u16);
    /// How long configuration space may be.
    fn config_room(&self) -> u64;
    /// Reads configuration space.
    fn config(&self, at: Access) -> Result<u64, BusFault>;
    fn set_config(&self, at: Access, value: u64) -> Result<(), BusFault>;
    fn generation(&self) -> u32;
    /// Kicks a queue by a register write that reaches the device, or one that a driver might take for that of a queue
    /// that does not exist.
    fn notify(&self, queue: u32);
    /// What the host kernel signals when the driver kicks the queue.
    fn doorbell(&self, queue: u16) -> Arc<Event>;
    /// What the driver has not acknowledged: bit 0 for queues, bit 1 for configuration changes. 0 where there is nothing
    /// to acknowledge.
    fn pending(&self) -> u32;
    fn acknowledge(&self, bits: u32);
    /// Writes each register that the device has with this value, and reads it.
    fn scribble(&self, value: u64);
    /// Readable when there is an interrupt to take; there is none to wait for where the driver has to look by itself.
    fn events(&self) -> &[Arc<Event>];
    /// Takes the interrupts that were raised since the last time: how many, as far as they are counted.
    fn take_interrupts(&self) -> u64;
    /// Takes the interrupts as well; returns true if one told the driver of a configuration change.
    fn take_config_interrupt(&self) -> bool;
}

/// The byte at `offset` of configuration space.
pub(super) fn config_byte(port: &dyn Port, offset: u64) -> u8 {
    port.config(Access { offset, size: Size::B1 }).expect("configuration space") as u8
}
