//! Requests that fail on the host and are kept until it is in order again.

use super::asynchronous::{late, offer};
use super::*;
use crate::testing::Desc;
use crate::{QueueBroken, Removed};

const DISCARD: u32 = 11;

fn stalled(rig: &Rig) -> usize {
    rig.reports.lock().unwrap().iter().filter(|event| matches!(event, DeviceEvent::Stalled { .. })).count()
}

/// Offers a request with its own status.
fn put(rig: &mut Rig, head: &[u8], data_out: &[Segment], data_in: &[Segment]) -> (u32, Segment) {
    let (head, status) = (rig.put(head), rig.put(&[0xff]));
    let readable: Vec<_> = [head].iter().chain(data_out).copied().collect();
    let writable: Vec<_> = data_in.iter().copied().chain([status]).collect();
    (rig.offer(0, &readable, &writable).into(), status)
}

#[test]
fn a_request_that_fails_is_tried_again_after_a_pause_and_the_driver_sees_no_error() {
    // A transfer that comes half way first, and a failure of each kind of request.
    let mut blk = blk(MemDisk::scripted(16, &[Some(100), None])).with_on_error(OnHostError::Hold);
    let mut rig = Rig::new(&mut blk, FLUSH_BIT | 1 << 13);
    let data = rig.put(&[0x5a; 512]);
    let to = rig.alloc(512);
    let write = put(&mut rig, &header(OUT, 3), &[data], &[]);
    let read = put(&mut rig, &header(IN, 3), &[], &[to]);
    rig.run(0);
    assert_eq!((rig.used(0), rig.get(write.1), rig.get(read.1)), (None, vec![0xff], vec![0xff]));
    assert_eq!((stalled(&rig), counter(&blk, "host_errors"), counter(&blk, "write_requests")), (1, 1, 0));
    // Nothing more is taken, whatever the driver does.
    rig.run(0);
    assert_eq!((rig.used(0), stalled(&rig)), (None, 1));
    rig.restart(&mut blk);
    rig.run(0);
    let used: Vec<_> = std::iter::from_fn(|| rig.used(0)).collect();
    assert_eq!(
        used.iter().map(|used| (used.head, used.len)).collect::<Vec<_>>(),
        [(write.0, 1), (read.0, 513)]
    );
    assert_eq!((rig.get(write.1), rig.get(read.1), rig.get(to)), (vec![OK], vec![OK], vec![0x5a; 512]));
    assert_eq!(stalled(&rig), 1);
    for counted in ["write_requests", "read_requests", "host_errors"] {
        assert_eq!(counter(&blk, counted), 1, "{counted}");
    }
}

#[test]
fn what_fails_again_is_kept_again_and_the_vmm_is_told_again() {
    let failures = [None, None, None];
    let mut blk = blk(MemDisk::scripted(16, &failures)).with_on_error(OnHostError::Hold);
    let mut rig = Rig::new(&mut blk, FLUSH_BIT | 1 << 13);
    let range = [&0_u64.to_le_bytes()[..], &8_u32.to_le_bytes(), &[0; 4]].concat();
    let range = rig.put(&range);
    let (head, status) = put(&mut rig, &header(DISCARD, 0), &[range], &[]);
    for told in 1..=3 {
        rig.run(0);
        assert_eq!((rig.used(0), stalled(&rig)), (None, told));
        // A pause before it is tried changes nothing.
        rig.restart(&mut blk);
        rig.restart(&mut blk);
    }
    rig.run(0);
    assert_eq!((rig.used(0).unwrap().head, rig.get(status)), (head, vec![OK]));
    assert_eq!(blk.disk().bytes()[..4096], [0; 4096]);
}

#[test]
fn a_disk_that_cannot_be_given_up_keeps_no_machine_from_the_pause_that_is_to_mend_it() {
    let disk = |script| MemDisk { fail_unlock: true, ..MemDisk::scripted(16, script) };
    let mut blk = blk(disk(&[None])).with_on_error(OnHostError::Hold);
    let mut rig = Rig::new(&mut blk, FLUSH_BIT);
    let to = rig.alloc(512);
    let (_, status) = put(&mut rig, &header(IN, 0), &[], &[to]);
    rig.run(0);
    assert_eq!(stalled(&rig), 1);
    rig.restart(&mut blk);
    rig.run(0);
    assert_eq!(rig.get(status), [OK]);
    // Nothing is kept any more.
    let _ = rig.stop();
    assert!(blk.quiesce().is_err());
}

#[test]
fn a_flush_and_a_guests_own_mistake_are_never_kept() {
    let mut blk = blk(MemDisk { fail_flush: true, ..MemDisk::new(16) }).with_on_error(OnHostError::Hold);
    let mut rig = Rig::new(&mut blk, FLUSH_BIT);
    assert_eq!(request(&mut rig, &header(FLUSH, 0), &[], &[]).0, IOERR);
    let data = rig.alloc(512);
    assert_eq!(request(&mut rig, &header(IN, 16), &[], &[data]).0, IOERR);
    assert_eq!(stalled(&rig), 0);
    assert_eq!(rig.reports.lock().unwrap().len(), 1);
}

#[test]
fn a_disk_that_is_full_can_be_told_from_one_that_fails() {
    // ENOSPC, EDQUOT, EIO.
    for (code, is_kept) in [(28, true), (122, true), (5, false)] {
        let mut blk = late().with_on_error(OnHostError::HoldIfFull);
        let mut rig = Rig::new(&mut blk, FLUSH_BIT);
        let (_, _, status) = offer(&mut rig);
        rig.run(0);
        blk.disk().end(0, 0, Err(io::Error::from_raw_os_error(code)));
        rig.run(1);
        assert_eq!((rig.used(0).is_none(), stalled(&rig) == 1), (is_kept, is_kept), "{code}");
        assert_eq!(rig.get(status), [if is_kept { 0xff } else { IOERR }]);
    }
}

#[test]
fn requests_in_flight_end_while_one_is_kept_whatever_their_order() {
    let mut blk = late().with_on_error(OnHostError::Hold);
    let mut rig = Rig::new(&mut blk, FLUSH_BIT);
    let requests: Vec<_> = (0..4).map(|_| offer(&mut rig)).collect();
    rig.run(0);
    let failed = || Err(io::Error::other("scripted"));
    blk.disk().end(1, 0, failed());
    blk.disk().end(2, 512, Ok(()));
    rig.run(1);
    assert_eq!(rig.used(0).unwrap().head, requests[3].0);
    // The third fails while the queue stops.
    assert!(matches!(rig.worker().remove_queue(0), Removed::Draining));
    blk.disk().end(1, 100, failed());
    blk.disk().end(0, 512, Ok(()));
    rig.run(1);
    assert_eq!(rig.used(0).unwrap().head, requests[0].0);
    let later = offer(&mut rig);
    rig.restart(&mut blk);
    rig.run(0);
    assert_eq!((blk.disk().count(), stalled(&rig)), (3, 1));
    (0..3).for_each(|_| blk.disk().end(0, 512, Ok(())));
    rig.run(1);
    let used: Vec<_> = std::iter::from_fn(|| rig.used(0)).map(|used| (used.head, used.len)).collect();
    assert_eq!(used, [requests[1].0, requests[2].0, later.0].map(|head| (head, 513)));
}

#[test]
fn what_is_kept_is_saved_with_the_device_and_tried_again_where_it_is_restored() {
    let mut blk = late().with_on_error(OnHostError::Hold);
    let mut rig = Rig::new(&mut blk, FLUSH_BIT);
    let requests: Vec<_> = (0..3).map(|_| offer(&mut rig)).collect();
    rig.run(0);
    blk.disk().end(0, 512, Ok(()));
    blk.disk().end(0, 0, Err(io::Error::other("scripted")));
    blk.disk().end(0, 0, Err(io::Error::other("scripted")));
    rig.run(1);
    assert_eq!(rig.used(0).unwrap().head, requests[0].0);
    let queues = rig.stop();
    let DeviceState::Saved(saved) = blk.save().unwrap() else { panic!("it has a state") };
    let mut blk = late();
    blk.restore(saved).unwrap();
    rig.start_anew(&mut blk, queues);
    rig.run(0);
    assert_eq!(blk.disk().count(), 2);
    (0..2).for_each(|_| blk.disk().end(0, 512, Ok(())));
    rig.run(1);
    let used: Vec<_> = std::iter::from_fn(|| rig.used(0)).map(|used| used.head).collect();
    assert_eq!(used, [requests[1].0, requests[2].0]);
}

#[test]
fn d4_a_state_that_keeps_what_no_queue_has_is_refused_or_breaks_the_queue() {
    let state = |held: &[(u16, Vec<u16>)]| {
        let mut blk = late();
        blk.shared.held.restore(held.to_vec());
        let DeviceState::Saved(saved) = blk.save().unwrap() else { panic!("it has a state") };
        saved
    };
    let too_many = (0..=256).collect();
    for held in [vec![(1, vec![0])], vec![(0, too_many)]] {
        assert!(late().restore(state(&held)).is_err(), "{held:?}");
    }
    // The driver has two requests in flight: 0 and 3.
    for (heads, broken) in [
        (vec![0, 3], None),
        (vec![64], Some(QueueBroken::Head { head: 64, size: 64 })),
        (vec![0, 0], Some(QueueBroken::HeadInFlight { head: 0 })),
        // The last is found first.
        (vec![0, 3, 6], Some(QueueBroken::NotInFlight { head: 0 })),
    ] {
        let mut blk = late();
        let mut rig = Rig::new(&mut blk, FLUSH_BIT);
        assert_eq!([offer(&mut rig).0, offer(&mut rig).0], [0, 3]);
        let descs = [Desc::readable(rig.put(&header(IN, 1))), Desc::writable(rig.alloc(513))];
        rig.rings[0].offer(6, &descs);
        let mut queues = rig.stop();
        for _ in 0..2 {
            let _ = queues[0].pop().unwrap();
        }
        blk.restore(state(&[(0, heads.clone())])).unwrap();
        rig.start_anew(&mut blk, queues);
        assert_eq!(rig.turn(0).err(), broken, "{heads:?}");
    }
}

#[test]
fn a_driver_that_resets_the_queue_or_the_device_gives_up_what_is_kept() {
    for device in [false, true] {
        let mut blk = blk(MemDisk::scripted(16, &[None])).with_on_error(OnHostError::Hold);
        let mut rig = Rig::new(&mut blk, FLUSH_BIT);
        let data = rig.put(&[0x5a; 512]);
        put(&mut rig, &header(OUT, 3), &[data], &[]);
        rig.run(0);
        rig.stop();
        if device {
            blk.reset()
        } else {
            blk.forget_queue(0)
        }
        assert!(blk.shared.held.take(0).is_empty());
    }
}
