//! How many clones there are to be, and what is each one's own.

use std::error::Error;
use std::fmt;

use ossature_bus::Device;

use crate::machine::{GuestClock, MachineBuilder};

/// Makes the devices of a child.
type MakeDevices<'a> =
    dyn Fn(u64) -> Result<Vec<Box<dyn Device>>, Box<dyn Error + Send + Sync>> + Send + Sync + 'a;
/// Says more of its machine.
type Change<'a> = dyn Fn(MachineBuilder, u64) -> MachineBuilder + Send + Sync + 'a;

/// What a [fork](super::Template::fork) makes: how many children, each with devices of its own, and what their clocks do.
pub struct ForkPlan<'a> {
    pub(super) children: u64,
    pub(super) clock: GuestClock,
    pub(super) devices: Box<MakeDevices<'a>>,
    pub(super) change: Option<Box<Change<'a>>>,
}

impl<'a> ForkPlan<'a> {
    /// A plan of so many children, each with the devices that `devices` makes for it from its number: of the same kinds,
    /// with the same ids, as those of the machine that is forked. No number is given twice by one template.
    ///
    /// One of them has to have a generation ID ([`VmGenId`]), so that the guest learns that it is another one. All that
    /// devices [name](Device::identities) as theirs has to be each child's own, as must be the contents of a firmware
    /// configuration device ([`FwCfg`]), from which the guest learns its host name.
    ///
    /// [`VmGenId`]: https://docs.rs/ossature-legacy/latest/ossature_legacy/struct.VmGenId.html
    /// [`FwCfg`]: https://docs.rs/ossature-legacy/latest/ossature_legacy/struct.FwCfg.html
    pub fn new(
        children: u64,
        clock: GuestClock,
        devices: impl Fn(u64) -> Result<Vec<Box<dyn Device>>, Box<dyn Error + Send + Sync>> + Send + Sync + 'a,
    ) -> Self {
        Self { children, clock, devices: Box::new(devices), change: None }
    }

    /// The same with more to say of each child's machine, such as what a reset does or how its vCPUs are made.
    #[must_use]
    pub fn with_machine(
        mut self,
        change: impl Fn(MachineBuilder, u64) -> MachineBuilder + Send + Sync + 'a,
    ) -> Self {
        self.change = Some(Box::new(change));
        self
    }
}

impl fmt::Debug for ForkPlan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForkPlan")
            .field("children", &self.children)
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}
