use std::fs;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use ossature_bus::EventSink;
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Segment, Segments};

use super::*;
use crate::testing::{guest_ram, wait_for};
use crate::{OpenMode, RawFile};

/// A disk that does this when it is read.
struct OnRead<F>(F);

impl<F: Fn() + Send + Sync + 'static> DiskIo for OnRead<F> {
    fn read(&self, _: &Dma, to: Segments<'_>, _: u64) -> Result<usize, DmaIoError> {
        (self.0)();
        Ok(to.len() as usize)
    }

    fn write(&self, _: &Dma, from: Segments<'_>, _: u64) -> Result<usize, DmaIoError> {
        Ok(from.len() as usize)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Ok(())
    }
}

fn setup(depth: u16) -> EngineSetup {
    EngineSetup::new(depth, EventSink::discard())
}

#[test]
fn e1_a_panic_of_the_disk_fails_that_request_alone() {
    let mem = guest_ram(&[(0, 0x1000)]);
    let reads = AtomicU32::new(0);
    let disk = OnRead(move || assert!(reads.fetch_add(1, Ordering::Relaxed) > 0, "the first read"));
    let mut engine = ThreadEngine::new(Arc::new(disk), &setup(4)).unwrap();
    let to = [Segment { addr: GuestAddress(0), len: 512 }];
    for token in 0..2 {
        assert!(matches!(
            engine.submit(&mem, token, Operation::Read { to: (&to).into(), offset: 0 }),
            Submitted::Pending
        ));
    }
    let mut all = Vec::new();
    wait_for("completions", || {
        all.extend(engine.reap());
        all.len() == 2
    });
    let error = all[0].finished.result.as_ref().unwrap_err().to_string();
    assert!(error.contains("the disk panicked: the first read"), "{error}");
    assert!(all[1].finished.result.is_ok());
    assert_eq!(engine.in_flight(), 0);
}

#[test]
fn an_engine_that_is_dropped_waits_for_what_is_in_flight() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(0x8000).unwrap();
    let mem = guest_ram(&[(0, 0x1_0000)]);
    mem.write(GuestAddress(0), &[0x5a; 0x1000]).unwrap();
    let from = [Segment { addr: GuestAddress(0), len: 0x1000 }];
    let disk = Arc::new(RawFile::open(image.path(), OpenMode::ReadWrite).unwrap());
    let mut engine = ThreadEngine::new(disk, &setup(8)).unwrap();
    for at in 0..8 {
        let write = Operation::Write { from: (&from).into(), offset: at * 0x1000, durable: false };
        assert!(matches!(engine.submit(&mem, at, write), Submitted::Pending));
    }
    let refused = engine.submit(&mem, 8, Operation::Flush);
    assert!(matches!(refused, Submitted::Finished(Finished { result: Err(_), .. })));
    drop(engine);
    assert_eq!(fs::read(image.path()).unwrap(), [0x5a; 0x8000]);
}

#[test]
fn t4_the_thread_takes_no_signals_to_the_process() {
    let (mem, found) = (guest_ram(&[(0, 0x1000)]), Arc::new(OnceLock::new()));
    let blocked = Arc::clone(&found);
    let disk = OnRead(move || {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        blocked.set(u64::from_str_radix(mask.trim(), 16).unwrap()).unwrap();
    });
    let mut engine = ThreadEngine::new(Arc::new(disk), &setup(1)).unwrap();
    let to = [Segment { addr: GuestAddress(0), len: 512 }];
    assert!(matches!(
        engine.submit(&mem, 0, Operation::Read { to: (&to).into(), offset: 0 }),
        Submitted::Pending
    ));
    wait_for("the completion", || engine.reap().is_some());
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGWINCH] {
        assert!(found.get().unwrap() & 1 << (signal - 1) != 0, "signal {signal}");
    }
}
