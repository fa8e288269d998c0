use std::fs::{self, OpenOptions};
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::time::Instant;

use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Segment, Segments};
use tempfile::NamedTempFile;

use super::*;
use crate::testing::{guest_ram, wait_for};
use crate::{EngineKind, OpenMode, RawOptions};

const SECTORS: u64 = 128;

fn image() -> NamedTempFile {
    let image = NamedTempFile::new().unwrap();
    let bytes: Vec<u8> = (0..SECTORS * 512).map(|i| (i / 512 + i * 3) as u8).collect();
    fs::write(image.path(), bytes).unwrap();
    image
}

fn options() -> RawOptions {
    RawOptions::new(OpenMode::ReadWrite).engine(EngineKind::Uring)
}

fn engine(image: &NamedTempFile, depth: u16) -> UringEngine {
    let disk = Arc::new(RawFile::open(image.path(), options()).unwrap());
    UringEngine::new(disk, &EngineSetup::new(depth, EventSink::discard())).unwrap()
}

fn segment(addr: u64, len: u32) -> Segment {
    Segment { addr: GuestAddress(addr), len }
}

fn read(to: &[Segment], offset: u64) -> Operation<'_> {
    Operation::Read { to: to.into(), offset }
}

fn write(from: &[Segment], offset: u64) -> Operation<'_> {
    Operation::Write { from: from.into(), offset, durable: false }
}

fn pending(submitted: Submitted) {
    assert!(matches!(submitted, Submitted::Pending), "{submitted:?}");
}

/// Completions as they come, until there are so many.
fn reap(engine: &mut UringEngine, count: usize) -> Vec<Completion> {
    let mut all = Vec::new();
    wait_for("completions", || {
        all.extend(std::iter::from_fn(|| engine.reap()));
        all.len() >= count
    });
    assert_eq!(all.len(), count);
    all
}

fn result(finished: &Finished) -> (u64, Option<i32>) {
    let error = finished.result.as_ref().err().map(|error| match error {
        DmaIoError::Io(error) => error.raw_os_error().unwrap_or(-1),
        other => panic!("{other}"),
    });
    (finished.moved, error)
}

#[test]
fn as_many_are_in_flight_as_there_is_depth_and_all_come_back() {
    let image = image();
    let before = fs::read(image.path()).unwrap();
    let mem = guest_ram(&[(0, 0x10_0000)]);
    let mut engine = engine(&image, 8);
    for round in 0..3 {
        let segments: Vec<_> =
            (0..8).map(|i| [segment(i * 0x1000 + 1, 100), segment(i * 0x1000 + 200, 924)]).collect();
        for (i, to) in segments.iter().enumerate() {
            pending(engine.submit(&mem, 100 + i as u64, read(to, i as u64 * 1024)));
        }
        assert_eq!(engine.in_flight(), 8);
        let refused = engine.submit(&mem, 9, read(&segments[0], 0));
        assert!(matches!(refused, Submitted::Finished(Finished { result: Err(_), .. })), "round {round}");
        engine.start();
        let mut tokens: Vec<_> = reap(&mut engine, 8)
            .into_iter()
            .map(|done| {
                assert_eq!(result(&done.finished), (1024, None));
                done.token
            })
            .collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (100..108).collect::<Vec<_>>());
        assert_eq!(engine.in_flight(), 0);
        for (i, to) in segments.iter().enumerate() {
            let mut bytes = vec![0; 1024];
            assert_eq!(mem.gather(Segments::from(to), &mut bytes).unwrap(), 1024);
            assert_eq!(bytes, before[i * 1024..][..1024]);
        }
    }
}

#[test]
fn the_descriptor_is_readable_once_something_is_there_to_reap() {
    let image = image();
    let mem = guest_ram(&[(0, 0x1000)]);
    let mut engine = engine(&image, 1);
    let is_readable = |engine: &UringEngine| {
        let mut poll =
            libc::pollfd { fd: engine.fd().unwrap().as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one pollfd that is there.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    };
    let to = [segment(0, 512)];
    pending(engine.submit(&mem, 1, read(&to, 0)));
    assert!(!is_readable(&engine));
    engine.start();
    wait_for("the descriptor", || is_readable(&engine));
    assert_eq!(reap(&mut engine, 1)[0].token, 1);
    assert!(!is_readable(&engine), "what was reaped wakes nobody");
    // The kernel had no room: that ends a wait, once.
    engine.ask_again();
    assert!(is_readable(&engine));
    engine.start();
    assert!(!is_readable(&engine));
}

#[test]
fn what_the_host_refuses_is_an_error_of_that_request() {
    let image = image();
    let mem = guest_ram(&[(0, 0x1000)]);
    let disk = Arc::new(
        RawFile::open(image.path(), RawOptions::new(OpenMode::ReadOnly).engine(EngineKind::Uring)).unwrap(),
    );
    let mut engine = UringEngine::new(disk, &EngineSetup::new(2, EventSink::discard())).unwrap();
    let data = [segment(0, 512)];
    pending(engine.submit(&mem, 1, write(&data, 0)));
    pending(engine.submit(&mem, 2, read(&data, 0)));
    engine.start();
    let mut all = reap(&mut engine, 2);
    all.sort_by_key(|done| done.token);
    assert_eq!(result(&all[0].finished), (0, Some(libc::EBADF)));
    assert_eq!(result(&all[1].finished), (512, None));
    // Not RAM: nothing was begun.
    let beyond = [segment(0xfff, 512)];
    let refused = engine.submit(&mem, 3, read(&beyond, 0));
    assert!(matches!(
        refused,
        Submitted::Finished(Finished { moved: 0, result: Err(DmaIoError::Dma(_)), .. })
    ));
    assert_eq!(engine.in_flight(), 0);
}

#[test]
fn a15_a_file_that_ends_early_is_an_error_after_what_there_was() {
    for end in [1, 511, 512, 700, 1023] {
        let image = image();
        let mem = guest_ram(&[(0, 0x1000)]);
        mem.write(GuestAddress(0), &[0xee; 1024]).unwrap();
        let before = fs::read(image.path()).unwrap();
        let mut engine = engine(&image, 1);
        OpenOptions::new().write(true).open(image.path()).unwrap().set_len(end).unwrap();
        let to = [segment(0, 100), segment(100, 924)];
        pending(engine.submit(&mem, 1, read(&to, 0)));
        engine.start();
        // The kernel's short transfer is gone on with, once, and that finds the end.
        let done = reap(&mut engine, 1).remove(0);
        assert_eq!(result(&done.finished), (end, Some(-1)));
        let mut bytes = vec![0; 1024];
        mem.read(GuestAddress(0), &mut bytes).unwrap();
        assert_eq!(bytes[..end as usize], before[..end as usize]);
        assert!(bytes[end as usize..].iter().all(|byte| *byte == 0xee));
    }
}

#[test]
fn a15_what_the_kernel_says_is_accounted_for_at_each_split() {
    let image = image();
    let disk = RawFile::open(image.path(), options()).unwrap();
    let mem = Arc::new(guest_ram(&[(0, 0x1000)]));
    let segments = [segment(0, 100), segment(200, 412)];
    for split in 1..512 {
        let mut slot = Slot { kind: Kind::Write { durable: false }, offset: 4096, ..Slot::default() };
        slot.pinned.pin(&mem, &segments).unwrap();
        assert!(matches!(slot.judge(&disk, -libc::EINTR), Next::Again));
        assert!(matches!(slot.judge(&disk, split), Next::Again));
        assert_eq!((slot.pinned.moved(), slot.pinned.left()), (split as u64, 512 - split as u64));
        if split % 2 == 0 {
            assert!(matches!(slot.judge(&disk, -libc::EIO), Next::Ended(Err(_))));
            assert_eq!(slot.pinned.moved(), split as u64);
        } else {
            assert!(matches!(slot.judge(&disk, 512 - split), Next::Ended(Ok(()))));
            assert_eq!(slot.pinned.moved(), 512);
        }
    }
}

#[test]
fn a_request_that_the_kernel_never_takes_ends() {
    let image = image();
    let disk = RawFile::open(image.path(), options()).unwrap();
    let mut slot = Slot { kind: Kind::Flush, ..Slot::default() };
    let again = (0..1000).take_while(|_| matches!(slot.judge(&disk, -libc::EAGAIN), Next::Again)).count();
    assert_eq!(again, usize::from(TRIES));
}

#[test]
fn without_io_uring_requests_are_served_and_the_vmm_is_told_once() {
    let image = image();
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&told);
    let events = EventSink::new(move |event| sink.lock().unwrap().push(event.to_string()));
    let disk = Arc::new(RawFile::open(image.path(), options()).unwrap());
    let mut engine = UringEngine::new(disk, &EngineSetup::new(4, events)).unwrap();
    engine.make_ring = |_| Err(io::Error::from_raw_os_error(libc::EPERM));
    let mem = guest_ram(&[(0, 0x1000)]);
    mem.write(GuestAddress(0), &[7; 512]).unwrap();
    let data = [segment(0, 512)];
    for operation in [write(&data, 512), Operation::Flush, read(&data, 1024)] {
        let submitted = engine.submit(&mem, 1, operation);
        assert!(matches!(submitted, Submitted::Finished(Finished { result: Ok(()), .. })), "{submitted:?}");
        engine.start();
        assert!(engine.reap().is_none());
    }
    assert_eq!(engine.in_flight(), 0);
    assert_eq!(fs::read(image.path()).unwrap()[512..1024], [7; 512]);
    let told = told.lock().unwrap();
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("io_uring cannot be used") && told[0].contains("not permitted"), "{}", told[0]);
}

#[test]
fn an_engine_that_is_dropped_waits_for_what_is_in_flight() {
    let image = image();
    let mem = guest_ram(&[(0, 0x1_0000)]);
    mem.write(GuestAddress(0), &[0x5a; 0x8000]).unwrap();
    let from = [segment(0, 0x8000)];
    let mut engine = engine(&image, 4);
    pending(engine.submit(&mem, 1, write(&from, 0)));
    engine.start();
    // Not even started.
    pending(engine.submit(&mem, 2, write(&from, 0x8000)));
    drop(engine);
    assert_eq!(fs::read(image.path()).unwrap(), [0x5a; 0x1_0000]);
}

#[test]
fn memory_that_the_guest_loses_stays_until_the_request_has_ended() {
    let image = image();
    let ram = ossature_memory::Ram::new(&ossature_memory::RamConfig::new(1 << 20)).unwrap();
    let slot = ram.add_slot(1 << 32, 1 << 20, &ossature_memory::Backing::Anonymous).unwrap();
    let mut dma = ram.dma();
    dma.write(GuestAddress(1 << 32), &[0x77; 512]).unwrap();
    let from = [segment(1 << 32, 512)];
    let mut engine = engine(&image, 2);
    pending(engine.submit(&dma, 1, write(&from, 0)));
    ram.remove_slot(slot).unwrap();
    assert!(dma.refresh());
    engine.start();
    assert_eq!(result(&reap(&mut engine, 1)[0].finished), (512, None));
    assert_eq!(fs::read(image.path()).unwrap()[..512], [0x77; 512]);
    // The engine sees the new map.
    assert!(matches!(
        engine.submit(&dma, 1, write(&from, 0)),
        Submitted::Finished(Finished { result: Err(_), .. })
    ));
}

#[test]
fn one_system_call_starts_a_batch() {
    let image = image();
    let mem = guest_ram(&[(0, 0x10_0000)]);
    let mut engine = engine(&image, 32);
    let segments: Vec<_> = (0..32).map(|i| [segment(i * 0x1000, 512)]).collect();
    for (i, to) in segments.iter().enumerate() {
        pending(engine.submit(&mem, i as u64, read(to, i as u64 * 512)));
    }
    engine.start();
    assert_eq!(engine.queued, 0, "the kernel took all of them");
    assert_eq!(reap(&mut engine, 32).len(), 32);
}

#[test]
fn a_kernel_that_takes_no_more_requests_fails_those_that_wait_and_no_others() {
    let image = image();
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&told);
    let events = EventSink::new(move |event| sink.lock().unwrap().push(event.to_string()));
    let disk = Arc::new(RawFile::open(image.path(), options()).unwrap());
    let mut engine = UringEngine::new(disk, &EngineSetup::new(4, events)).unwrap();
    // It refuses each batch until it is enabled, which it never is.
    engine.make_ring = |_| IoUring::builder().setup_r_disabled().build(4);
    let mem = guest_ram(&[(0, 0x1000)]);
    mem.write(GuestAddress(0), &[7; 512]).unwrap();
    let data = [segment(0, 512)];
    pending(engine.submit(&mem, 1, write(&data, 0)));
    pending(engine.submit(&mem, 2, Operation::Flush));
    engine.start();
    let mut failed = reap(&mut engine, 2);
    failed.sort_by_key(|done| done.token);
    let failed: Vec<_> = failed.iter().map(|done| (done.token, result(&done.finished))).collect();
    assert_eq!(failed, [(1, (0, Some(libc::EIO))), (2, (0, Some(libc::EIO)))]);
    assert_ne!(fs::read(image.path()).unwrap()[..512], [7; 512]);
    for token in 3..5 {
        let done = engine.submit(&mem, token, write(&data, 512));
        assert!(matches!(done, Submitted::Finished(Finished { result: Ok(()), .. })), "{done:?}");
        engine.start();
        assert!(engine.reap().is_none());
    }
    assert_eq!((engine.in_flight(), engine.queued), (0, 0));
    assert_eq!(fs::read(image.path()).unwrap()[512..1024], [7; 512]);
    let told = told.lock().unwrap();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("does not work any more"), "{}", told[0]);
}

#[test]
fn what_the_kernel_had_taken_before_comes_back_when_it_takes_no_more() {
    let image = image();
    let mem = guest_ram(&[(0, 0x1000)]);
    let mut engine = engine(&image, 4);
    let (first, second) = ([segment(0, 512)], [segment(1024, 512)]);
    pending(engine.submit(&mem, 1, read(&first, 0)));
    engine.start();
    pending(engine.submit(&mem, 2, read(&second, 512)));
    engine.give_up(&io::Error::from_raw_os_error(libc::EPERM));
    let mut all = reap(&mut engine, 2);
    all.sort_by_key(|done| done.token);
    let all: Vec<_> = all.iter().map(|done| (done.token, result(&done.finished))).collect();
    assert_eq!(all, [(1, (512, None)), (2, (0, Some(libc::EIO)))]);
    assert_eq!(engine.in_flight(), 0);
}

#[test]
fn a_kernel_that_is_short_of_memory_for_good_is_given_up() {
    let image = image();
    let mem = guest_ram(&[(0, 0x1000)]);
    let mut engine = engine(&image, 4);
    let data = [segment(0, 512)];
    pending(engine.submit(&mem, 1, read(&data, 0)));
    engine.start();
    assert_eq!(reap(&mut engine, 1).len(), 1);
    // No entry waits in the ring, so that it takes none.
    engine.queued = 1;
    engine.pushed += 1;
    for turn in 0..10 {
        engine.start();
        assert!(matches!(engine.state, State::Ring(_)), "turn {turn}");
        // As if the last time that it took some were just now.
        engine.refused = None;
    }
    engine.refused = Some(Instant::now().checked_sub(SHORT).unwrap());
    engine.start();
    assert!(matches!(engine.state, State::Fallback { .. }));
    assert_eq!(engine.queued, 0);
}
