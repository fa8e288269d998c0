//! The control queue (virtio 1.2, section 5.1.6.5): commands of the driver, each answered with one byte.

use ossature_bus::EventSink;
use ossature_memory::vm_memory::ByteValued;
use ossature_memory::{Dma, Segments};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK, VIRTIO_NET_CTRL_GUEST_OFFLOADS,
    VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET,
    VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_CTRL_RX,
    VIRTIO_NET_CTRL_RX_ALLMULTI, VIRTIO_NET_CTRL_RX_NOBCAST, VIRTIO_NET_CTRL_RX_PROMISC,
    VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD, VIRTIO_NET_CTRL_VLAN_DEL, VIRTIO_NET_ERR,
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MQ,
    VIRTIO_NET_OK,
};

use super::filter::{Addresses, TABLE, VLAN};
use super::io::{NetIo, Offloads};
use super::mac::Mac;
use super::settings::whole;
use super::shared::Shared;
use crate::{QueueBroken, Turn, VirtQueue};

/// Commands that a turn takes at most.
const TURN_COMMANDS: u32 = 32;

/// The answer to a command. What is wrong with one that fails, a driver is not told.
type Answer = Option<()>;

/// The control queue, which one of the card's workers serves.
pub(super) struct Control(pub(super) VirtQueue);

impl Control {
    /// Takes commands until there are none, or enough for a turn.
    pub(super) fn run(&mut self, with: &Shared<impl NetIo>) -> Result<Turn, QueueBroken> {
        let queue = &mut self.0;
        let counters = &with.card.counters;
        queue.disable_kicks()?;
        for _ in 0..TURN_COMMANDS {
            let Some(chain) = queue.pop()? else {
                queue.flush()?;
                if queue.enable_kicks()? {
                    continue;
                }
                return Ok(Turn::Sleep);
            };
            let command = Segments::first_bytes(chain.readable(), chain.readable_len().into());
            // A command that cannot be answered is none.
            let done = if chain.writable_len() == 0 { None } else { carry_out(with, queue.dma(), command) };
            match done {
                Some(()) => counters.commands.add(1),
                None => counters.refused.add(1),
            }
            let answer = if done.is_some() { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
            let written = queue.dma().scatter(chain.writable(), &[answer as u8]).unwrap_or_default();
            queue.complete(chain, written as u32)?;
        }
        queue.flush()?;
        Ok(Turn::Again)
    }
}

/// The bytes of a command as it is taken apart. Each is read once.
struct Words<'a> {
    mem: &'a Dma,
    left: Segments<'a>,
}

impl Words<'_> {
    /// The next of them.
    fn next<T: ByteValued>(&mut self) -> Option<T> {
        let value = self.mem.gather_obj(self.left).ok().flatten()?;
        self.left = self.left.skip(size_of::<T>() as u64);
        Some(value)
    }

    /// The only one left.
    fn last<T: ByteValued>(mut self) -> Option<T> {
        let value = self.next()?;
        self.left.is_empty().then_some(value)
    }

    /// A list of addresses behind its length. There may be more than are kept.
    fn addresses(&mut self) -> Option<Addresses> {
        let count = u64::from(u32::from_le(self.next()?));
        let len = 6 * count;
        if len > self.left.len() {
            return None;
        }
        let mut bytes = [0; 6 * TABLE];
        let all = count > TABLE as u64;
        let bytes = if all { &mut [][..] } else { bytes.get_mut(..len as usize)? };
        let read = self.mem.gather(self.left.take(len), bytes).ok()?;
        self.left = self.left.skip(len);
        // Group addresses in the one list and others in the other would be found in neither: they harm nobody.
        Some(Addresses { known: whole(bytes.get(..read)?)?, all })
    }
}

/// Carries a command out, or does nothing.
fn carry_out(with: &Shared<impl NetIo>, mem: &Dma, command: Segments<'_>) -> Answer {
    let mut words = Words { mem, left: command };
    let [class, command]: [u8; 2] = words.next()?;
    let (class, command) = (u32::from(class), u32::from(command));
    let has = |bit: u32| (with.features & 1 << bit != 0).then_some(());
    match (class, command) {
        (VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC..=VIRTIO_NET_CTRL_RX_NOBCAST) => {
            has(VIRTIO_NET_F_CTRL_RX)?;
            if command > VIRTIO_NET_CTRL_RX_ALLMULTI {
                has(VIRTIO_NET_F_CTRL_RX_EXTRA)?;
            }
            let on = words.last::<u8>()? != 0;
            with.card.change(|set| match on {
                true => set.filter.mode |= 1 << command,
                false => set.filter.mode &= !(1 << command),
            });
        }
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET) => {
            has(VIRTIO_NET_F_CTRL_RX)?;
            let (unicast, multicast) = (words.addresses()?, words.addresses()?);
            words.left.is_empty().then_some(())?;
            with.card.change(|set| (set.filter.unicast, set.filter.multicast) = (unicast, multicast));
        }
        (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
            has(VIRTIO_NET_F_CTRL_MAC_ADDR)?;
            let mac = Mac::new(words.last()?).ok()?;
            with.card.change(|set| set.mac = mac.bytes());
            // The transport shows configuration space as it read when it last changed.
            with.card.raise();
        }
        (VIRTIO_NET_CTRL_VLAN, VIRTIO_NET_CTRL_VLAN_ADD | VIRTIO_NET_CTRL_VLAN_DEL) => {
            has(VIRTIO_NET_F_CTRL_VLAN)?;
            let vlan = u16::from_le(words.last()?);
            (vlan <= VLAN).then_some(())?;
            with.card.change(|set| match command {
                VIRTIO_NET_CTRL_VLAN_ADD => set.filter.vlans.insert(vlan),
                _ => set.filter.vlans.remove(&vlan),
            });
        }
        (VIRTIO_NET_CTRL_ANNOUNCE, VIRTIO_NET_CTRL_ANNOUNCE_ACK) => {
            has(VIRTIO_NET_F_GUEST_ANNOUNCE)?;
            words.left.is_empty().then_some(())?;
            with.card.change(|set| set.announce = false);
            with.card.raise();
        }
        (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
            has(VIRTIO_NET_F_MQ)?;
            return set_pairs(with, u16::from_le(words.last()?));
        }
        (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
            has(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)?;
            return set_offloads(with, u64::from_le(words.last()?));
        }
        _ => return None,
    }
    Some(())
}

/// The driver uses so many pairs of queues from now on.
fn set_pairs(with: &Shared<impl NetIo>, pairs: u16) -> Answer {
    (pairs != 0 && usize::from(pairs) <= with.pairs.len()).then_some(())?;
    // Under the lock, so that no worker that starts meanwhile says otherwise.
    let result = with.card.change(|set| {
        let before = std::mem::replace(&mut set.pairs, pairs);
        let all = |used: u16| (0..).zip(&*with.pairs).try_for_each(|(i, pair)| pair.io.set_active(i < used));
        all(pairs).inspect_err(|_| {
            set.pairs = before;
            // As far as it goes: this one is told of already.
            let _ = all(before);
        })
    });
    with.pairs.iter().for_each(|pair| pair.wake());
    note(with, "use so many pairs of queues", result)
}

/// The guest accepts these kinds of unfinished packets from now on, of those that it has negotiated.
fn set_offloads(with: &Shared<impl NetIo>, bits: u64) -> Answer {
    let negotiated = with.features & Offloads::all().guest_features();
    (u128::from(bits) & !negotiated == 0).then_some(())?;
    let result = with.card.change(|set| {
        let before = set.offloads.replace(bits);
        let all = |offloads| with.pairs.iter().try_for_each(|pair| pair.io.set_offloads(offloads));
        all(set.accepted(with.features)).inspect_err(|_| {
            set.offloads = before;
            // As above.
            let _ = all(set.accepted(with.features));
        })
    });
    note(with, "set the offloads of the host's interface", result)
}

fn note(with: &Shared<impl NetIo>, action: &str, result: std::io::Result<()>) -> Answer {
    let events: &EventSink = &with.events;
    result.map_err(|e| with.card.counters.host_errors.note(events, action, &e)).ok()
}
