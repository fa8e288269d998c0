//! Requests that are in flight between turns.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use ossature_block::{Completion, Engine, Finished, Operation, Submitted};
use ossature_bus::Event;

use super::*;
use crate::testing::Desc;
use crate::{QueueBroken, Removed};

/// A disk whose requests end when the test says so, in the order that it says.
#[derive(Debug)]
pub(super) struct Late {
    in_flight: Mutex<VecDeque<u64>>,
    ended: Mutex<VecDeque<Completion>>,
    started: AtomicU64,
}

pub(super) struct LateEngine(Arc<Late>, Event);

impl Late {
    fn new() -> Self {
        Self { in_flight: Mutex::default(), ended: Mutex::default(), started: AtomicU64::new(0) }
    }

    /// Ends the request at this place in the order in which they came.
    pub(super) fn end(&self, at: usize, moved: u64, result: io::Result<()>) {
        let token = self.in_flight.lock().unwrap().remove(at).unwrap();
        let finished = Finished::new(moved, result.map_err(Into::into));
        self.ended.lock().unwrap().push_back(Completion::new(token, finished));
    }

    pub(super) fn count(&self) -> usize {
        self.in_flight.lock().unwrap().len()
    }
}

impl Engine for LateEngine {
    fn submit(&mut self, _: &Dma, token: u64, _: Operation<'_>) -> Submitted {
        self.0.in_flight.lock().unwrap().push_back(token);
        Submitted::Pending
    }

    fn start(&mut self) {
        self.0.started.fetch_add(1, Ordering::Relaxed);
    }

    fn reap(&mut self) -> Option<Completion> {
        self.0.ended.lock().unwrap().pop_front()
    }

    fn in_flight(&self) -> usize {
        self.0.count() + self.0.ended.lock().unwrap().len()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.1.as_fd())
    }
}

impl Disk for Late {
    type Engine = LateEngine;

    fn capacity(&self) -> u64 {
        1 << 20
    }

    fn read_only(&self) -> bool {
        false
    }

    fn logical_block(&self) -> u32 {
        512
    }

    fn physical_block(&self) -> u32 {
        512
    }

    fn engine(self: &Arc<Self>, _: &EngineSetup) -> Result<LateEngine, DeviceError> {
        Ok(LateEngine(Arc::clone(self), Event::new().unwrap()))
    }

    fn resize(&self, _: u64) -> Result<(), DiskError> {
        Ok(())
    }

    fn lock(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn unlock(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }
}

pub(super) fn late() -> Blk<Late> {
    Blk::new(Late::new(), DiskId::default())
}

/// Offers a read of a sector; returns its head, where its data goes and its status.
pub(super) fn offer(rig: &mut Rig) -> (u32, Segment, Segment) {
    let (head, to, status) = (rig.put(&header(IN, 1)), rig.put(&[7; 512]), rig.put(&[0xff]));
    (rig.offer(0, &[head], &[to, status]).into(), to, status)
}

#[test]
fn requests_end_in_any_order_and_each_with_its_own_answer() {
    let mut blk = late();
    let mut rig = Rig::new(&mut blk, FLUSH_BIT);
    let requests: Vec<_> = (0..3).map(|_| offer(&mut rig)).collect();
    assert_eq!(rig.turn(0), Ok(Turn::Sleep));
    let disk = blk.disk();
    assert_eq!((disk.count(), disk.started.load(Ordering::Relaxed), rig.used(0)), (3, 1, None));
    disk.end(1, 512, Ok(()));
    disk.end(1, 100, Err(io::Error::other("scripted")));
    assert_eq!(rig.turn(1), Ok(Turn::Sleep));
    assert_eq!(rig.irqs[0].take().unwrap(), 1);
    let used: Vec<_> = std::iter::from_fn(|| rig.used(0)).collect();
    assert_eq!(used.iter().map(|used| used.head).collect::<Vec<_>>(), [1, 2].map(|i| requests[i].0));
    // A10, A15: what fell short is not followed by the status.
    assert_eq!(used.iter().map(|used| used.len).collect::<Vec<_>>(), [513, 100]);
    let status = |at: usize| rig.get(requests[at].2)[0];
    assert_eq!([status(0), status(1), status(2)], [0xff, OK, IOERR]);
    disk.end(0, 512, Ok(()));
    assert_eq!(rig.turn(1), Ok(Turn::Sleep));
    assert_eq!(rig.used(0).unwrap().head, requests[0].0);
    assert_eq!((counter(&blk, "read_requests"), counter(&blk, "host_errors")), (3, 1));
}

#[test]
fn a2_a_head_that_is_in_flight_is_refused_when_it_is_offered_again() {
    let mut blk = late();
    let mut rig = Rig::new(&mut blk, FLUSH_BIT);
    let head = offer(&mut rig).0 as u16;
    assert_eq!(rig.turn(0), Ok(Turn::Sleep));
    let descs = [Desc::readable(rig.put(&header(IN, 1))), Desc::writable(rig.alloc(513))];
    rig.rings[0].offer(head, &descs);
    assert_eq!(rig.turn(0), Err(QueueBroken::HeadInFlight { head }));
    assert_eq!(blk.disk().count(), 1);
    // What ends now is not answered.
    blk.disk().end(0, 512, Ok(()));
    assert!(rig.turn(1).is_err());
    assert_eq!(rig.used(0), None);
}

#[test]
fn a8_what_is_in_flight_is_bounded_by_the_queue() {
    let mut blk = late();
    let mut rig = Rig::with_rings(&mut blk, FLUSH_BIT, 64, false);
    for _ in 0..21 {
        offer(&mut rig);
    }
    rig.run(0);
    assert_eq!(blk.disk().count(), 21);
    // The driver claims more than there are entries.
    let index = rig.rings[0].avail_index();
    rig.rings[0].set_avail_index(index.wrapping_add(44));
    assert!(matches!(rig.turn(0), Err(QueueBroken::AvailIndex { .. })));
    assert_eq!(blk.disk().count(), 21);
}

#[test]
fn d3_a_queue_stops_when_nothing_is_in_flight_and_goes_on_where_it_was() {
    let mut blk = late();
    let mut rig = Rig::new(&mut blk, FLUSH_BIT);
    let first = offer(&mut rig);
    let second = offer(&mut rig);
    assert_eq!(rig.turn(0), Ok(Turn::Sleep));
    assert!(matches!(rig.worker().remove_queue(0), Removed::Draining));
    // Nothing more is taken.
    let third = offer(&mut rig);
    assert_eq!(rig.turn(0), Ok(Turn::Sleep));
    assert_eq!(blk.disk().count(), 2);
    blk.disk().end(0, 512, Ok(()));
    assert_eq!(rig.turn(1), Ok(Turn::Sleep));
    assert!(matches!(rig.worker().remove_queue(0), Removed::Draining));
    blk.disk().end(0, 512, Ok(()));
    assert_eq!(rig.turn(1), Ok(Turn::Sleep));
    let queues = rig.stop();
    assert_eq!(queues.len(), 1);
    for request in [&first, &second] {
        assert_eq!((rig.get(request.2), rig.used(0).unwrap().head), (vec![OK], request.0));
    }
    assert_eq!(rig.used(0), None);
    rig.start_with(&mut blk, queues);
    assert_eq!(rig.turn(0), Ok(Turn::Sleep));
    blk.disk().end(0, 512, Ok(()));
    assert_eq!(rig.turn(1), Ok(Turn::Sleep));
    assert_eq!(rig.used(0).unwrap().head, third.0);
}

fn uring(image: &tempfile::NamedTempFile) -> Blk<RawFile> {
    let options = RawOptions::new(OpenMode::ReadWrite).engine(EngineKind::Uring);
    Blk::new(RawFile::open(image.path(), options).unwrap(), DiskId::default())
}

#[test]
fn io_uring_serves_a_whole_ring_of_requests() {
    let image = tempfile::NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..64 * 512).map(|i| (i / 512 + i * 3) as u8).collect();
    std::fs::write(image.path(), &bytes).unwrap();
    let mut blk = uring(&image);
    let mut rig = Rig::with_rings(&mut blk, FLUSH_BIT, 128, true);
    for round in 0..4 {
        let requests: Vec<_> = (0..32)
            .map(|sector| {
                let (head, to, status) = (rig.put(&header(IN, sector)), rig.alloc(512), rig.put(&[0xff]));
                let id = rig.offer(0, &[head], &[to, status]);
                (id, sector as usize, to, status)
            })
            .collect();
        let limit = Instant::now() + Duration::from_secs(60);
        let mut used = Vec::new();
        while used.len() < 32 {
            assert!(Instant::now() < limit, "round {round}: {} came back", used.len());
            rig.run(0);
            used.extend(std::iter::from_fn(|| rig.used(0)));
        }
        let mut heads: Vec<_> = used.iter().map(|used| used.head).collect();
        heads.sort_unstable();
        let mut want: Vec<_> = requests.iter().map(|(id, ..)| u32::from(*id)).collect();
        want.sort_unstable();
        assert_eq!(heads, want);
        assert!(used.iter().all(|used| used.len == 513));
        for (_, sector, to, status) in requests {
            assert_eq!((rig.get(to), rig.get(status)), (bytes[sector * 512..][..512].to_vec(), vec![OK]));
        }
    }
    assert_eq!(counter(&blk, "read_requests"), 128);
}

#[test]
fn io_uring_answers_what_a_shorter_file_has_and_fails() {
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), [5; 4096]).unwrap();
    let mut blk = uring(&image);
    let mut rig = Rig::new(&mut blk, FLUSH_BIT);
    image.as_file().set_len(700).unwrap();
    let (head, to, status) = (rig.put(&header(IN, 0)), rig.put(&[7; 1024]), rig.put(&[0xff]));
    rig.offer(0, &[head], &[to, status]);
    let limit = Instant::now() + Duration::from_secs(60);
    let used = loop {
        rig.run(0);
        if let Some(used) = rig.used(0) {
            break used;
        }
        assert!(Instant::now() < limit, "no answer");
    };
    assert_eq!((used.len, rig.get(status)), (700, vec![IOERR]));
    assert_eq!(rig.get(to), [[5; 700].to_vec(), [7; 324].to_vec()].concat());
    assert_eq!(rig.reports.lock().unwrap().len(), 1);
}
