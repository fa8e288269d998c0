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
        let bus = PciBus::new();
        let virtio = |(id, device, interrupt): Virtio<'a>| -> Box<dyn Device> {
            match self {
                Self::Mmio => {
                    Box::new(VirtioMmio::new(id, device, runtime.clone()).with_interrupt(interrupt))
                }
                Self::Pci => Box::new(VirtioPci::new(id, device, runtime.clone(), &bus)),
            }
        };
        let mut plugged: Vec<Box<dyn Device>> = devices.into_iter().map(virtio).collect();
        if self == Self::Pci {
            plugged.insert(0, Box::new(bus.host("pci")));
        }
        plugged
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
