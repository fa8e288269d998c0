//! The machine around a device under test, and the registers by which its driver reaches it.

use std::sync::Arc;

use ossature_bus::Device;
use ossature_bus::testing::TestBoard;
use ossature_memory::Dma;
use virtio_bindings::bindings::virtio_mmio as reg;

use super::port::Port;
use super::port::mmio::MmioPort;

/// A board with one device that has a virtio transport.
pub(super) struct Machine {
    pub(super) board: TestBoard,
    port: Arc<dyn Port>,
    mmio: Option<Arc<MmioPort>>,
}

impl Machine {
    /// A machine around `device`, with `dma` as its RAM.
    pub(super) fn new(device: &mut dyn Device, dma: &Dma) -> Self {
        let mut board = TestBoard::with_ram(dma.clone());
        board.attach(device).expect("the device attaches");
        let port = Arc::new(MmioPort::new(&board));
        Self { board, port: port.clone(), mmio: Some(port) }
    }

    /// The registers.
    pub(super) fn port(&self) -> &Arc<dyn Port> {
        &self.port
    }

    /// The registers, of a device whose transport is the MMIO one.
    pub(super) fn mmio(&self) -> &MmioPort {
        self.mmio.as_ref().expect("a device behind the MMIO transport")
    }

    /// The device says that it is a virtio device.
    pub(super) fn identify(&self) {
        if let Some(port) = &self.mmio {
            assert_eq!(port.read(reg::VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
            assert_eq!(port.read(reg::VIRTIO_MMIO_VERSION), 2);
        }
    }
}
