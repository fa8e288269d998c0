//! The transport between a guest and its virtio devices.

use std::sync::Arc;

use ossature::bus::Device;
use ossature::pci::PciBus;
use ossature::virtio::{LocalDevice, MmioInterrupt, Runtime, VirtioMmio, VirtioPci};

use super::Guest;

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Mmio,
    Pci,
}

/// A virtio device, named in its machine, and its interrupt where the transport is MMIO.
pub type Virtio<'a> = (&'a str, Box<dyn LocalDevice>, MmioInterrupt);

impl Transport {
    /// `devices` behind this transport, and the bus that they need.
    pub fn plug<'a>(
        self,
        devices: impl IntoIterator<Item = Virtio<'a>>,
        runtime: &Arc<impl Runtime + 'static>,
    ) -> Vec<Box<dyn Device>> {
        self.plug_into(&PciBus::new(), devices, runtime)
    }

    /// The same on a bus of the caller's.
    pub fn plug_into<'a>(
        self,
        bus: &PciBus,
        devices: impl IntoIterator<Item = Virtio<'a>>,
        runtime: &Arc<impl Runtime + 'static>,
    ) -> Vec<Box<dyn Device>> {
        let host: Option<Box<dyn Device>> =
            (self == Self::Pci).then(|| Box::new(bus.host("pci")) as Box<dyn Device>);
        let devices = devices.into_iter().map(|device| self.plug_one(bus, device, runtime));
        host.into_iter().chain(devices).collect()
    }

    /// One device, to come to a bus that is there or to take another one's place.
    pub fn plug_one(
        self,
        bus: &PciBus,
        (id, device, interrupt): Virtio,
        runtime: &Arc<impl Runtime + 'static>,
    ) -> Box<dyn Device> {
        match self {
            Self::Mmio => Box::new(VirtioMmio::new(id, device, runtime.clone()).with_interrupt(interrupt)),
            Self::Pci => Box::new(VirtioPci::new(id, device, runtime.clone(), bus)),
        }
    }
}

impl Guest {
    /// Has the VMM give the guest virtio devices behind this transport.
    pub fn transport(self, transport: Transport) -> Self {
        match transport {
            Transport::Mmio => self,
            Transport::Pci => self.args(["--transport", "pci"]),
        }
    }
}
