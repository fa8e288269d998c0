//! What a guest reads and writes on a PCI bus, with an entropy source in slot 1.

use std::sync::Arc;

use ossature::bus::testing::TestBoard;
use ossature::bus::{Access, Device, Mmio, Size};
use ossature::pci::{PciBus, PciHost};
use ossature::virtio::{Inline, Rng, VirtioPci};

pub struct Slot {
    ecam: Arc<dyn Mmio>,
    ports: Arc<dyn Mmio>,
    bar: Arc<dyn Mmio>,
    _devices: (PciHost, VirtioPci, TestBoard, TestBoard),
}

/// Of a function's vector 0 in its BAR.
const VECTOR_CONTROL: u64 = 0x400c;

impl Slot {
    pub fn new() -> Self {
        let bus = PciBus::new();
        let (mut host, mut host_board) = (bus.host("pci").with_ports(true), TestBoard::default());
        host_board.attach(&mut host).unwrap();
        let runtime = Arc::new(Inline::new().unwrap());
        let (mut rng, mut board) =
            (VirtioPci::new("rng", Box::new(Rng::new()), runtime, &bus), TestBoard::default());
        board.attach(&mut rng).unwrap();
        host.resume().unwrap();
        rng.resume().unwrap();
        let port = |name: &'static str| host_board.port(name).unwrap();
        let (ecam, ports, bar) = (port("ecam"), port("config"), board.port(("bar", 0)).unwrap());
        // MSI-X enabled.
        let _ = ecam.write(Access { offset: 1 << 15 | 0x42, size: Size::B2 }, 1 << 15).unwrap();
        Self { ecam, ports, bar, _devices: (host, rng, host_board, board) }
    }

    /// Reads the ids by ECAM.
    pub fn ecam(&self) -> u64 {
        self.ecam.read(Access { offset: 1 << 15, size: Size::B4 }).unwrap()
    }

    /// Reads them by the ports: address, then data.
    pub fn ports(&self) -> u64 {
        let _ = self.ports.write(Access { offset: 0, size: Size::B4 }, 1 << 31 | 1 << 11).unwrap();
        self.ports.read(Access { offset: 4, size: Size::B4 }).unwrap()
    }

    /// Reads the device's status.
    pub fn status(&self) -> u64 {
        self.bar.read(Access { offset: 20, size: Size::B1 }).unwrap()
    }

    /// Unmasks a vector, and masks it.
    pub fn mask(&self) {
        for masked in [0, 1] {
            let _ = self.bar.write(Access { offset: VECTOR_CONTROL, size: Size::B4 }, masked).unwrap();
        }
    }
}
