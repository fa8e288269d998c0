//! What each queue of a card is for, which depends on the features that its driver has negotiated.

use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Receive,
    Send,
    Control,
    /// Nothing, with this driver.
    None,
}

/// The queues of a card: pairs, and one more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Roles {
    pairs: u16,
    control: Option<u16>,
}

impl Roles {
    pub(super) fn new(pairs: u16, features: u128) -> Self {
        let has = |bit: u32| features & 1 << bit != 0;
        // For a driver that knows of one pair of queues, the control queue is the next (5.1.2).
        let known = if has(VIRTIO_NET_F_MQ) { pairs } else { 1 };
        Self { pairs, control: has(VIRTIO_NET_F_CTRL_VQ).then_some(2 * known) }
    }

    /// How many queues there are.
    pub(super) fn queues(self) -> u16 {
        2 * self.pairs + 1
    }

    /// The role of a queue.
    pub(super) fn of(self, index: u16) -> Role {
        if self.control == Some(index) {
            Role::Control
        } else if index >= 2 * self.pairs {
            Role::None
        } else if index.is_multiple_of(2) {
            Role::Receive
        } else {
            Role::Send
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTROL: u128 = 1 << VIRTIO_NET_F_CTRL_VQ;
    const MQ: u128 = 1 << VIRTIO_NET_F_MQ;

    #[test]
    fn the_control_queue_comes_after_the_pairs_that_the_driver_knows() {
        use Role::{Control, None, Receive, Send};
        let roles =
            |pairs, features| (0..=2 * pairs).map(|i| Roles::new(pairs, features).of(i)).collect::<Vec<_>>();
        assert_eq!(roles(1, 0), [Receive, Send, None]);
        assert_eq!(roles(1, CONTROL), [Receive, Send, Control]);
        assert_eq!(roles(2, CONTROL | MQ), [Receive, Send, Receive, Send, Control]);
        assert_eq!(roles(2, CONTROL), [Receive, Send, Control, Send, None]);
        assert_eq!(roles(2, MQ), [Receive, Send, Receive, Send, None]);
        assert_eq!(Roles::new(2, 0).queues(), 5);
    }
}
