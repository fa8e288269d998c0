//! Ours and theirs see the same chains: on the same ring, and through the adapter.

use proptest::prelude::*;

use ossature_memory::GuestMmap;
use ossature_virtio::testing::{GuestRing, guest_ram};
use ossature_virtio::{Activation, Worker};

use std::sync::Arc;

use ::virtio_queue::{DescriptorChain, Queue, QueueT};
use ossature_bus::Event;
use ossature_memory::Segment;
use ossature_virtio::testing::Desc;
use ossature_virtio::{QueueSetup, QueueState, features};

use crate::virtio_queue::{QueueWorker, queue_of, segments_of, state_of};

const SIZE: u16 = 16;
const TABLE: u64 = 0x4000;
const RAM: u64 = 0x4_0000;

/// Address, length and direction of each buffer of a chain.
type Buffers = Vec<(u64, u32, bool)>;

fn desc() -> impl Strategy<Value = Desc> {
    let addr = prop_oneof![8 => 0x8000..RAM - 0x1000, 1 => RAM - 64..RAM + 64, 1 => any::<u64>()];
    let len = prop_oneof![8 => 1..0x1000u32, 1 => Just(0), 1 => any::<u32>()];
    let flags = prop_oneof![4 => Just(Desc::NEXT), 4 => Just(Desc::NEXT | Desc::WRITE), 2 => Just(0),
        3 => Just(Desc::WRITE), 2 => Just(Desc::INDIRECT), 1 => 0..8u16];
    let next = prop_oneof![30 => 0..SIZE, 1 => any::<u16>()];
    (addr, len, flags, next).prop_map(|(addr, len, flags, next)| {
        if flags & Desc::INDIRECT == 0 {
            return Desc { addr, len, flags, next };
        }
        // Mostly a table that there is.
        let (addr, len) = if len % 16 == 15 { (addr, len) } else { (TABLE, 16 * (1 + len % 15)) };
        Desc { addr, len, flags, next }
    })
}

fn buffers(chain: DescriptorChain<&GuestMmap>) -> Buffers {
    chain.map(|desc| (desc.addr().0, desc.len(), desc.is_write_only())).collect()
}

fn parts((readable, writable): (&[Segment], &[Segment])) -> Buffers {
    let all = readable.iter().map(|s| (s, false)).chain(writable.iter().map(|s| (s, true)));
    all.map(|(s, write)| (s.addr.0, s.len, write)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn ours_theirs_and_the_adapter_see_the_same_chains(
        table in proptest::collection::vec(desc(), usize::from(SIZE)),
        indirect in proptest::collection::vec(desc(), usize::from(SIZE)),
        heads in Just((0..SIZE).collect::<Vec<_>>()).prop_shuffle(),
        count in 1..SIZE,
        start in any::<u16>(),
    ) {
        let dma = guest_ram(&[(0, RAM as usize)]);
        let mut ring = GuestRing::new(dma.clone(), 0x1000, SIZE, start);
        for (at, (desc, other)) in (0..).zip(table.iter().zip(&indirect)) {
            ring.set_desc(at, *desc);
            ring.set_desc_at(TABLE + 16 * u64::from(at), *other);
        }
        for head in &heads[..count.into()] {
            ring.publish(*head);
        }
        let event = || Arc::new(Event::new().unwrap());
        let state = QueueState::new(SIZE).at(ring.desc, ring.avail, ring.used).from_index(start);
        let setup = QueueSetup::new(0, state, dma.clone(), event(), event().into());
        let setup = setup.with_features(features::INDIRECT_DESC);
        let mut ours = setup.clone().build().unwrap();
        let mut theirs = queue_of(&setup).unwrap();
        prop_assert_eq!(state_of(&theirs), state);

        let mut sound = Vec::new();
        let broken = loop {
            match ours.pop() {
                Ok(Some(chain)) => {
                    let seen = parts((chain.readable(), chain.writable()));
                    let other = theirs.pop_descriptor_chain(dma.memory()).unwrap();
                    prop_assert_eq!(other.head_index(), chain.head());
                    let (readable, writable) = segments_of(other.clone(), SIZE, &dma).unwrap();
                    prop_assert_eq!(parts((&readable, &writable)), seen.clone());
                    prop_assert_eq!(buffers(other), seen.clone());
                    sound.push((chain.head(), seen));
                }
                Ok(None) => break false,
                Err(_) => break true,
            }
        };
        prop_assert!(broken || theirs.pop_descriptor_chain(dma.memory()).is_none());

        let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
        let shown = seen.clone();
        let look = move |_: u16, queue: &mut Queue, memory: &Arc<GuestMmap>| {
            while let Some(chain) = queue.pop_descriptor_chain(&**memory) {
                let head = chain.head_index();
                shown.lock().unwrap().push((head, buffers(chain)));
                queue.add_used(&**memory, head, 0)?;
            }
            Ok(())
        };
        let mut worker = QueueWorker::new(look, &Activation::new(0, dma));
        worker.add_queue(setup.build().unwrap());
        prop_assert_eq!(worker.turn(0).is_err(), broken);
        // Where the ring is broken, the device does not see what came before it in the same turn either.
        let seen = seen.lock().unwrap();
        prop_assert_eq!(&*seen, if broken { &[][..] } else { &sound });
        prop_assert_eq!(usize::from(ring.used_index().wrapping_sub(start)), seen.len());
    }
}
