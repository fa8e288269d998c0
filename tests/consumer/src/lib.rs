//! A small VMM outside of Ossature's workspace: a virtio device and a bus device of its own, a guest that uses both,
//! and threads that watch.

pub mod guest;
pub mod printer;
pub mod shout;
pub mod watch;

use std::sync::Arc;

use ossature::memory::RamConfig;
use ossature::virtio::{Runtime, VirtioMmio};
use ossature::vmm::Hypervisor;
use ossature::vmm::machine::{BuildErrors, Machine, MachineBuilder};

use crate::guest::Guest;
use crate::printer::{Paper, Printer};
use crate::shout::Shout;

/// A machine and what its guest has printed.
#[derive(Debug)]
pub struct Vmm {
    pub machine: Machine,
    pub paper: Arc<Paper>,
}

impl Vmm {
    /// A machine with this guest, whose shouter has its turns on `runtime`.
    pub fn new(
        name: &str,
        guest: Guest,
        runtime: Arc<dyn Runtime>,
        hypervisor: &dyn Hypervisor,
    ) -> Result<Self, BuildErrors> {
        let paper = Arc::new(Paper::default());
        let machine = Self::parts(name, &paper, runtime)
            .payload(move |memory: &_, platform: &_| guest.load(memory, platform))
            .build(hypervisor)?;
        Ok(Self { machine, paper })
    }

    /// The machine without a guest.
    pub fn parts(name: &str, paper: &Arc<Paper>, runtime: Arc<dyn Runtime>) -> MachineBuilder {
        Machine::builder(name)
            .memory(RamConfig::new(2 << 20))
            .device(VirtioMmio::new(shout::ID, Box::new(Shout::new()), runtime))
            .device(Printer::new(Arc::clone(paper)))
    }
}
