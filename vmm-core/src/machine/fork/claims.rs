//! Which clone has what no other one may have.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use ossature_bus::{Device, Identity};

use super::error::{ForkError, Holder};
use crate::machine::control::Shared;

/// The identities of the parent and of its children, as long as these live.
#[derive(Default)]
pub(super) struct Claims {
    held: HashMap<Identity, Claim>,
    /// So many are looked through for children that are gone.
    crowd: usize,
}

enum Claim {
    Parent,
    Child(u64, Weak<Shared>),
}

impl Claim {
    /// Who has it, unless that machine is gone.
    fn holder(&self) -> Option<Holder> {
        match self {
            Self::Parent => Some(Holder::Parent),
            Self::Child(child, machine) => {
                let lives = machine.upgrade().is_some_and(|machine| !machine.is_released());
                lives.then_some(Holder::Child(*child))
            }
        }
    }
}

impl Claims {
    /// What the machine has that is forked, and no child of it.
    pub(super) fn of_parent(&mut self, identities: Vec<Identity>) {
        for identity in identities {
            if self.held.get(&identity).and_then(Claim::holder).is_none() {
                self.held.insert(identity, Claim::Parent);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Gives `child`, which becomes `machine`, what its devices say is theirs, or says who has it.
    pub(super) fn claim(
        &mut self,
        child: u64,
        devices: &[Box<dyn Device>],
        machine: &Arc<Shared>,
    ) -> Result<(), ForkError> {
        if self.held.len() > self.crowd {
            self.held.retain(|_, claim| claim.holder().is_some());
            self.crowd = 2 * self.held.len() + 64;
        }
        let mut told = false;
        for device in devices {
            for identity in device.identities() {
                told |= identity.name() == Identity::GENERATION;
                let holder = self.held.get(&identity).and_then(Claim::holder);
                if let Some(holder) = holder.filter(|holder| *holder != Holder::Child(child)) {
                    let device = device.id().to_owned();
                    return Err(ForkError::SameIdentity { child, device, identity, holder });
                }
                self.held.insert(identity, Claim::Child(child, Arc::downgrade(machine)));
            }
        }
        if told { Ok(()) } else { Err(ForkError::NoGeneration { child }) }
    }
}
