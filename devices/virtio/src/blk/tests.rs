use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use ossature_block::{DiskIo, EngineKind, EngineSetup, RawOptions, SyncEngine};
use ossature_bus::testing::TestBoard;
use ossature_bus::{Device, DeviceEvent, RateLimit, RateLimits};
use ossature_memory::{Dma, DmaIoError, Segment, Segments};
use proptest::prelude::*;

use super::worker::{TURN_BYTES, TURN_REQUESTS};
use super::*;
use crate::rig::{Rig, config, counter};
use crate::testing::Used;
use crate::{Inline, Turn, VirtioMmio};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const FLUSH_BIT: u128 = 1 << 9;

/// A disk in memory. `script` bounds the bytes of each transfer in turn; `None` makes it fail.
#[derive(Debug, Default)]
struct MemDisk {
    bytes: Mutex<Vec<u8>>,
    read_only: bool,
    script: Mutex<Vec<Option<usize>>>,
    flushes: AtomicU64,
    fail_flush: bool,
    fail_unlock: bool,
}

impl MemDisk {
    fn new(sectors: usize) -> Self {
        let bytes = (0..sectors * 512).map(|i| (i / 512 + i * 3) as u8).collect();
        Self { bytes: Mutex::new(bytes), ..Self::default() }
    }

    fn scripted(sectors: usize, script: &[Option<usize>]) -> Self {
        let script = Mutex::new(script.iter().rev().copied().collect());
        Self { script, ..Self::new(sectors) }
    }

    fn bytes(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }

    fn step(&self, len: u64) -> io::Result<usize> {
        match self.script.lock().unwrap().pop() {
            None => Ok(len as usize),
            Some(Some(most)) => Ok(most.min(len as usize)),
            Some(None) => Err(io::Error::other("scripted")),
        }
    }
}

impl DiskIo for MemDisk {
    fn read(&self, mem: &Dma, to: Segments<'_>, offset: u64) -> Result<usize, DmaIoError> {
        let n = self.step(to.len())?;
        let at = offset as usize;
        Ok(mem.scatter(to, &self.bytes.lock().unwrap()[at..at + n])?)
    }

    fn write(&self, mem: &Dma, from: Segments<'_>, offset: u64) -> Result<usize, DmaIoError> {
        assert!(!self.read_only, "the device wrote to a read-only disk");
        let n = self.step(from.len())?;
        let at = offset as usize;
        Ok(mem.gather(from, &mut self.bytes.lock().unwrap()[at..at + n])?)
    }

    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        if self.fail_flush { Err(io::Error::other("scripted")) } else { Ok(()) }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len, true)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> io::Result<()> {
        assert!(!self.read_only, "the device wrote to a read-only disk");
        self.step(len)?;
        self.bytes.lock().unwrap()[offset as usize..][..len as usize].fill(0);
        Ok(())
    }
}

impl Disk for MemDisk {
    type Engine = SyncEngine<Self>;

    fn capacity(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn logical_block(&self) -> u32 {
        512
    }

    fn physical_block(&self) -> u32 {
        4096
    }

    fn engine(self: &Arc<Self>, _: &EngineSetup) -> Result<Self::Engine, DeviceError> {
        Ok(SyncEngine::new(Arc::clone(self)))
    }

    fn resize(&self, capacity: u64) -> Result<(), DiskError> {
        self.bytes.lock().unwrap().resize(capacity as usize, 0);
        Ok(())
    }

    fn lock(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn unlock(&self) -> Result<(), DeviceError> {
        if self.fail_unlock { Err(DeviceError::new("scripted")) } else { Ok(()) }
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }
}

fn blk(disk: MemDisk) -> Blk<MemDisk> {
    Blk::new(disk, "disk-7".parse().unwrap())
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat()
}

/// Makes one request with these data segments; returns the status, 0xff where none was written, and what the
/// used ring says.
fn request(rig: &mut Rig, head: &[u8], data_out: &[Segment], data_in: &[Segment]) -> (u8, Used) {
    let head = rig.put(head);
    let status = rig.put(&[0xff]);
    let readable: Vec<_> = [head].iter().chain(data_out).copied().collect();
    let writable: Vec<_> = data_in.iter().copied().chain([status]).collect();
    let id = rig.offer(0, &readable, &writable);
    rig.run(0);
    let used = rig.used(0).expect("an answer");
    assert_eq!(used.head, u32::from(id));
    assert_eq!(rig.used(0), None);
    (rig.get(status)[0], used)
}

#[test]
fn reads_writes_flushes_and_names_itself() {
    let mut blk = blk(MemDisk::new(16));
    let mut rig = Rig::new(&mut blk, FLUSH_BIT);
    let (a, b) = (rig.alloc(100), rig.alloc(924));
    let (status, used) = request(&mut rig, &header(IN, 3), &[], &[a, b]);
    assert_eq!((status, used.len), (OK, 1025));
    assert_eq!([rig.get(a), rig.get(b)].concat(), blk.disk().bytes()[1536..2560]);

    let data = rig.put(&[0x5a; 512]);
    let before = blk.disk().bytes();
    let (status, used) = request(&mut rig, &header(OUT, 15), &[data], &[]);
    assert_eq!((status, used.len), (OK, 1));
    let after = blk.disk().bytes();
    assert_eq!(after[..15 * 512], before[..15 * 512]);
    assert_eq!(after[15 * 512..], [0x5a; 512]);
    assert_eq!(blk.disk().flushes.load(Ordering::Relaxed), 0);

    let (status, used) = request(&mut rig, &header(FLUSH, 0), &[], &[]);
    assert_eq!((status, used.len), (OK, 1));
    assert_eq!(blk.disk().flushes.load(Ordering::Relaxed), 1);

    let id = rig.alloc(20);
    let (status, used) = request(&mut rig, &header(GET_ID, 0), &[], &[id]);
    assert_eq!((status, used.len), (OK, 21));
    assert_eq!(rig.get(id), b"disk-7\0\0\0\0\0\0\0\0\0\0\0\0\0\0");

    let counters = ["read_requests", "read_bytes", "write_requests", "written_bytes", "flush_requests"];
    assert_eq!(counters.map(|name| counter(&blk, name)), [1, 1024, 1, 512, 1]);
    assert_eq!(counter(&blk, "refused_requests"), 0);
}

#[test]
fn configuration_space_tells_size_and_limits() {
    let blk = blk(MemDisk::new(16));
    let config = config(&blk);
    let le32 = |at: usize| u32::from_le_bytes(config[at..at + 4].try_into().unwrap());
    assert_eq!(config[..8], 16u64.to_le_bytes());
    assert_eq!((le32(8), le32(12), le32(20)), (1 << 20, 254, 512));
    // Eight sectors to a physical block, which is also the least good size of a request.
    assert_eq!(config[24..28], [3, 0, 8, 0]);
    // Writeback; one queue; discards and zeros: how many sectors, in how many ranges, aligned to what.
    assert_eq!((config[32], &config[34..36]), (1, &[1, 0][..]));
    assert_eq!((le32(36), le32(40), le32(44)), (1 << 22, 1, 8));
    assert_eq!((le32(48), le32(52), config[56], config.len()), (1 << 17, 1, 1, 60));
    let always = 1 << 1 | 1 << 2 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11;
    assert_eq!(blk.info().features, always | 1 << 13 | 1 << 14);
    let read_only = Blk::new(MemDisk { read_only: true, ..MemDisk::new(1) }, DiskId::default());
    assert_eq!(read_only.info().features, always | 1 << 5);
    let many = blk.with_queues(4);
    assert_eq!(many.info().features, always | 1 << 12 | 1 << 13 | 1 << 14);
    assert_eq!((many.info().queues, many.groups().len()), (vec![256; 4], 4));
    assert_eq!(super::tests::config(&many)[34..36], [4, 0]);
}

#[test]
fn a_driver_that_cannot_flush_gets_a_disk_that_writes_through() {
    let mut blk = blk(MemDisk::new(16));
    let mut rig = Rig::new(&mut blk, 0);
    let data = rig.put(&[1; 512]);
    assert_eq!(request(&mut rig, &header(OUT, 0), &[data], &[]).0, OK);
    assert_eq!(blk.disk().flushes.load(Ordering::Relaxed), 1);
    let to = rig.alloc(512);
    assert_eq!(request(&mut rig, &header(IN, 0), &[], &[to]).0, OK);
    assert_eq!(blk.disk().flushes.load(Ordering::Relaxed), 1);
}

#[test]
fn a_flush_that_failed_is_an_io_error() {
    for (features, kind) in [(FLUSH_BIT, FLUSH), (0, OUT)] {
        let mut blk = blk(MemDisk { fail_flush: true, ..MemDisk::new(16) });
        let mut rig = Rig::new(&mut blk, features);
        let data = rig.put(&[1; 512]);
        for errors in 1..3 {
            assert_eq!(request(&mut rig, &header(kind, 0), &[data], &[]).0, IOERR);
            assert_eq!(counter(&blk, "host_errors"), errors);
        }
        let told = rig.reports.lock().unwrap();
        assert!(matches!(&told[..], [DeviceEvent::HostError { reason }] if reason.ends_with("scripted")));
    }
}

#[test]
fn b8_writes_to_a_read_only_disk_are_refused() {
    let mut blk = blk(MemDisk { read_only: true, ..MemDisk::new(16) });
    let mut rig = Rig::new(&mut blk, FLUSH_BIT);
    let data = rig.put(&[1; 512]);
    let (status, used) = request(&mut rig, &header(OUT, 0), &[data], &[]);
    assert_eq!((status, used.len), (IOERR, 1));
    // Not even a write of nothing.
    assert_eq!(request(&mut rig, &header(OUT, 0), &[], &[]).0, IOERR);
    assert_eq!(request(&mut rig, &header(IN, 0), &[], &[data]).0, OK);
    assert_eq!(counter(&blk, "refused_requests"), 2);
}

#[test]
fn b8_types_that_were_not_negotiated_are_unsupported() {
    // Discard and write-zeroes, which this driver has not accepted, secure erase, SCSI, zoned and made-up ones.
    for kind in [2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 16, 18, 24, 26, 0x100, 0x8000_0000, u32::MAX] {
        let mut blk = blk(MemDisk::new(16));
        let before = blk.disk().bytes();
        let mut rig = Rig::new(&mut blk, FLUSH_BIT);
        let out = rig.put(&[0xff; 4096]);
        let (status, used) = request(&mut rig, &header(kind, u64::MAX), &[out], &[]);
        assert_eq!((status, used.len), (UNSUPP, 1), "type {kind:#x}");
        let room = rig.put(&[7; 100]);
        let (status, used) = request(&mut rig, &header(kind, 0), &[], &[room]);
        assert_eq!((status, used.len), (UNSUPP, 0), "type {kind:#x}: nothing before the status was written");
        assert_eq!(rig.get(room), [7; 100]);
        assert_eq!(blk.disk().bytes(), before);
    }
}

#[test]
fn transfers_beyond_the_end_are_refused() {
    let mut blk = blk(MemDisk::new(16));
    let before = blk.disk().bytes();
    let mut rig = Rig::new(&mut blk, FLUSH_BIT);
    let data = rig.put(&[0xee; 1024]);
    for sector in [15, 16, 17, u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1, 1 << 55, (1 << 55) - 1] {
        assert_eq!(request(&mut rig, &header(OUT, sector), &[data], &[]).0, IOERR, "write at {sector}");
        let (status, used) = request(&mut rig, &header(IN, sector), &[], &[data]);
        assert_eq!((status, used.len), (IOERR, 0), "read at {sector}");
    }
    assert_eq!(rig.get(data), [0xee; 1024]);
    assert_eq!(blk.disk().bytes(), before);
    assert_eq!(request(&mut rig, &header(OUT, 14), &[data], &[]).0, OK);
}

#[test]
fn lengths_that_are_no_sectors_are_refused() {
    let mut blk = blk(MemDisk::new(16));
    let mut rig = Rig::new(&mut blk, FLUSH_BIT);
    for len in [1, 511, 513, 1023] {
        let data = rig.alloc(len);
        assert_eq!(request(&mut rig, &header(OUT, 0), &[data], &[]).0, IOERR, "write of {len}");
        assert_eq!(request(&mut rig, &header(IN, 0), &[], &[data]).0, IOERR, "read of {len}");
    }
    for len in [1, 19] {
        let short = rig.put(&vec![7; len]);
        let (status, used) = request(&mut rig, &header(GET_ID, 0), &[], &[short]);
        assert_eq!((status, used.len, rig.get(short)), (IOERR, 0, vec![7; len]));
    }
}

#[test]
fn a_transfer_of_nothing_succeeds() {
    let mut blk = blk(MemDisk::new(16));
    let mut rig = Rig::new(&mut blk, FLUSH_BIT);
    for kind in [IN, OUT] {
        let (status, used) = request(&mut rig, &header(kind, 16), &[], &[]);
        assert_eq!((status, used.len), (OK, 1));
        assert_eq!(request(&mut rig, &header(kind, 17), &[], &[]).0, IOERR);
    }
}

#[test]
fn a_request_longer_than_the_limits_allow_is_refused() {
    let mut blk = Blk::new(NullDisk::new(u32::MAX), DiskId::default());
    let mut rig = Rig::with_rings(&mut blk, FLUSH_BIT, 256, false);
    let mib = rig.alloc(1 << 20);
    assert_eq!(request(&mut rig, &header(OUT, 0), &[mib; 254], &[]).0, OK);
    let two = rig.alloc(2 << 20);
    let most = vec![two; 128];
    assert_eq!(request(&mut rig, &header(OUT, 0), &most, &[]).0, IOERR);
    assert_eq!(request(&mut rig, &header(IN, 0), &[], &most).0, IOERR);
    assert_eq!(request(&mut rig, &header(IN, 0), &[], &most[..127]).0, OK);
}

#[test]
fn a10_used_length_is_what_was_written_without_a_gap() {
    let mut blk = blk(MemDisk::new(16));
    let mut rig = Rig::new(&mut blk, FLUSH_BIT);
    // No place for a status.
    let head = rig.put(&header(IN, 0));
    rig.offer(0, &[head], &[]);
    rig.run(0);
    assert_eq!(rig.used(0).unwrap().len, 0);
    // No header, and one cut short.
    for len in [0, 1, 15] {
        let (room, status) = (rig.put(&[7; 512]), rig.put(&[0xff]));
        let head = rig.put(&vec![0; len]);
        let readable = if len == 0 { vec![] } else { vec![head] };
        rig.offer(0, &readable, &[room, status]);
        rig.run(0);
        assert_eq!(rig.used(0).unwrap().len, 0, "header of {len}");
        assert_eq!((rig.get(status), rig.get(room)), (vec![IOERR], vec![7; 512]));
    }
    // More room than the name has: the status stands behind the room.
    let room = rig.put(&[7; 512]);
    let (status, used) = request(&mut rig, &header(GET_ID, 0), &[], &[room]);
    assert_eq!((status, used.len), (OK, 20));
    assert_eq!(rig.get(room)[20..], [7; 492]);
    assert_eq!(counter(&blk, "refused_requests"), 4);
}

#[test]
fn a15_partial_progress_is_made_once_at_each_split() {
    for split in 1..1536 {
        let mut blk = blk(MemDisk::scripted(16, &[Some(split)]));
        let mut rig = Rig::new(&mut blk, FLUSH_BIT);
        let to = [rig.alloc(500), rig.alloc(1), rig.alloc(1035)];
        assert_eq!(request(&mut rig, &header(IN, 2), &[], &to), (OK, Used { head: 0, len: 1537 }));
        let got: Vec<_> = to.iter().flat_map(|s| rig.get(*s)).collect();
        assert_eq!(got, blk.disk().bytes()[1024..2560], "split at {split}");
    }
}

#[test]
fn a15_an_error_after_partial_progress_ends_there() {
    for split in (0..1024).step_by(31) {
        let script = if split == 0 { vec![None] } else { vec![Some(split), None] };
        let disk = MemDisk::scripted(16, &script);
        let before = disk.bytes();
        let mut blk = blk(disk);
        let mut rig = Rig::new(&mut blk, FLUSH_BIT);
        let to = rig.put(&[0xee; 1024]);
        let (status, used) = request(&mut rig, &header(IN, 0), &[], &[to]);
        assert_eq!((status, used.len), (IOERR, split as u32));
        assert_eq!(rig.get(to)[..split], before[..split]);
        assert_eq!(rig.get(to)[split..], vec![0xee; 1024 - split]);

        *blk.disk().script.lock().unwrap() = script.iter().rev().copied().collect();
        let from = rig.put(&[0x11; 1024]);
        let (status, used) = request(&mut rig, &header(OUT, 0), &[from], &[]);
        assert_eq!((status, used.len), (IOERR, 1));
        let after = blk.disk().bytes();
        assert_eq!(after[..split], vec![0x11; split]);
        assert_eq!(after[split..], before[split..]);
        assert_eq!(counter(&blk, "host_errors"), 2);
        assert_eq!(counter(&blk, "written_bytes"), split as u64);
    }
}

#[test]
fn a15_a_disk_that_ends_early_is_an_io_error() {
    let mut blk = blk(MemDisk::scripted(16, &[Some(100), Some(0)]));
    let mut rig = Rig::new(&mut blk, FLUSH_BIT);
    let to = rig.alloc(512);
    let (status, used) = request(&mut rig, &header(IN, 0), &[], &[to]);
    assert_eq!((status, used.len), (IOERR, 100));
}

/// A disk during whose transfers another vCPU rewrites the header.
#[derive(Debug)]
struct Rewriting {
    disk: MemDisk,
    header: Mutex<Option<Segment>>,
}

impl Rewriting {
    fn rewrite(&self, mem: &Dma) {
        if let Some(at) = *self.header.lock().unwrap() {
            mem.write(at.addr, &header(OUT, 1000)).unwrap();
        }
    }
}

impl DiskIo for Rewriting {
    fn read(&self, mem: &Dma, to: Segments<'_>, offset: u64) -> Result<usize, DmaIoError> {
        assert!(offset < 1024);
        self.rewrite(mem);
        self.disk.read(mem, to, offset)
    }

    fn write(&self, _: &Dma, _: Segments<'_>, _: u64) -> Result<usize, DmaIoError> {
        panic!("the device read the header twice")
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        panic!("the device read the header twice")
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        panic!("the device read the header twice")
    }
}

impl Disk for Rewriting {
    type Engine = SyncEngine<Self>;

    fn capacity(&self) -> u64 {
        self.disk.capacity()
    }

    fn read_only(&self) -> bool {
        true
    }

    fn logical_block(&self) -> u32 {
        512
    }

    fn physical_block(&self) -> u32 {
        512
    }

    fn engine(self: &Arc<Self>, _: &EngineSetup) -> Result<Self::Engine, DeviceError> {
        Ok(SyncEngine::new(Arc::clone(self)))
    }

    fn resize(&self, capacity: u64) -> Result<(), DiskError> {
        self.disk.resize(capacity)
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

#[test]
fn a16_a_header_is_read_once() {
    // A short first transfer makes the device come back to the request.
    let disk = Rewriting { disk: MemDisk::scripted(16, &[Some(10)]), header: Mutex::default() };
    let mut blk = Blk::new(disk, DiskId::default());
    let mut rig = Rig::new(&mut blk, FLUSH_BIT);
    let head = rig.put(&header(IN, 1));
    *blk.disk().header.lock().unwrap() = Some(head);
    let (to, status) = (rig.alloc(512), rig.put(&[0xff]));
    rig.offer(0, &[head], &[to, status]);
    rig.run(0);
    assert_eq!(rig.used(0).unwrap().len, 513);
    assert_eq!((rig.get(to), rig.get(status)), (blk.disk().disk.bytes()[512..1024].to_vec(), vec![OK]));
}

#[test]
fn a16_status_and_data_over_the_header_do_no_harm() {
    let mut blk = blk(MemDisk::new(16));
    let mut rig = Rig::new(&mut blk, FLUSH_BIT);
    let head = rig.put(&[header(IN, 0), vec![0; 512]].concat());
    let all = Segment { addr: head.addr, len: 513 };
    rig.offer(0, &[Segment { len: 16, ..head }], &[all]);
    rig.run(0);
    assert_eq!(rig.used(0).unwrap().len, 513);
    assert_eq!(rig.get(all)[..512], blk.disk().bytes()[..512]);
    assert_eq!(rig.get(all)[512], OK);
}

#[test]
fn b5_a_turn_serves_a_bounded_number_of_requests() {
    let mut blk = Blk::new(NullDisk::new(64), DiskId::default());
    let mut rig = Rig::with_rings(&mut blk, FLUSH_BIT, 256, false);
    let (head, status) = (rig.put(&header(FLUSH, 0)), rig.alloc(1));
    let requests = TURN_REQUESTS + 1;
    for _ in 0..requests {
        rig.offer(0, &[head], &[status]);
    }
    assert_eq!(rig.turn(0), Ok(Turn::Again));
    assert_eq!(rig.rings[0].used_index(), TURN_REQUESTS as u16);
    assert_eq!(rig.irqs[0].take().unwrap(), 1, "one interrupt for a batch");
    assert_eq!(rig.turn(0), Ok(Turn::Sleep));
    assert_eq!(rig.rings[0].used_index(), requests as u16);
    assert_eq!(rig.irqs[0].take().unwrap(), 1);
}

#[test]
fn b5_a_turn_moves_a_bounded_number_of_bytes() {
    let mut blk = Blk::new(NullDisk::new(1 << 20), DiskId::default());
    let mut rig = Rig::new(&mut blk, FLUSH_BIT);
    let (head, data, status) = (rig.put(&header(OUT, 0)), rig.alloc(1 << 20), rig.alloc(1));
    for _ in 0..6 {
        rig.offer(0, &[head, data], &[status]);
    }
    assert_eq!(rig.turn(0), Ok(Turn::Again));
    assert_eq!(u64::from(rig.rings[0].used_index()), TURN_BYTES >> 20);
    assert_eq!(rig.turn(0), Ok(Turn::Sleep));
    assert_eq!(rig.rings[0].used_index(), 6);
}

#[test]
fn c6_kicks_are_off_while_it_works_and_on_while_it_sleeps() {
    let mut blk = Blk::new(NullDisk::new(64), DiskId::default());
    let mut rig = Rig::with_rings(&mut blk, FLUSH_BIT, 256, false);
    assert_eq!(rig.turn(0), Ok(Turn::Sleep));
    assert!(!rig.rings[0].no_notify());
    let (head, status) = (rig.put(&header(FLUSH, 0)), rig.alloc(1));
    for _ in 0..TURN_REQUESTS + 1 {
        rig.offer(0, &[head], &[status]);
    }
    assert_eq!(rig.turn(0), Ok(Turn::Again));
    assert!(rig.rings[0].no_notify());
    assert_eq!(rig.turn(0), Ok(Turn::Sleep));
    assert!(!rig.rings[0].no_notify());
}

#[test]
fn goes_on_after_a_stop_where_it_was() {
    let mut blk = blk(MemDisk::new(16));
    let mut rig = Rig::new(&mut blk, FLUSH_BIT);
    assert_eq!(request(&mut rig, &header(FLUSH, 0), &[], &[]).0, OK);
    let queues = rig.stop();
    assert_eq!(queues.len(), 1);
    rig.start_with(&mut blk, queues);
    let to = rig.alloc(512);
    assert_eq!(request(&mut rig, &header(IN, 5), &[], &[to]).0, OK);
    assert_eq!(rig.get(to), blk.disk().bytes()[2560..3072]);
}

/// Cuts `len` bytes into segments at these places.
fn cut(whole: Segment, cuts: &[u32]) -> Vec<Segment> {
    let mut ends: Vec<_> = cuts.iter().map(|c| c % whole.len).chain([0, whole.len]).collect();
    ends.sort_unstable();
    ends.dedup();
    let piece = |w: &[u32]| Segment {
        addr: ossature_memory::vm_memory::GuestAddress(whole.addr.0 + u64::from(w[0])),
        len: w[1] - w[0],
    };
    ends.windows(2).map(piece).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// However a request is cut into descriptors, and however the disk cuts its transfers, the result is the same.
    #[test]
    fn cuts_do_not_matter(
        sectors in 1u32..5,
        at in 0u64..13,
        write in any::<bool>(),
        cuts in prop::collection::vec(any::<u32>(), 0..8),
        script in prop::collection::vec((1usize..700).prop_map(Some), 0..6),
    ) {
        let mut blk = blk(MemDisk::scripted(16, &script));
        let mut rig = Rig::new(&mut blk, FLUSH_BIT);
        let len = sectors * 512;
        let fits = at + u64::from(sectors) <= 16;
        let mut expect = blk.disk().bytes();
        let range = at as usize * 512..(at as usize * 512 + len as usize).min(expect.len());
        let data: Vec<u8> = (0..len).map(|i| (i * 5 + 1) as u8).collect();
        let (readable, writable, all);
        if write {
            all = rig.put(&[header(OUT, at), data.clone()].concat());
            readable = cut(all, &cuts);
            writable = vec![rig.put(&[0xff])];
            if fits {
                expect[range].copy_from_slice(&data);
            }
        } else {
            let head = rig.put(&header(IN, at));
            all = rig.put(&vec![0xff; len as usize + 1]);
            readable = cut(head, &cuts);
            writable = cut(all, &cuts);
        }
        rig.offer(0, &readable, &writable);
        rig.run(0);
        let used = rig.used(0).unwrap();
        prop_assert_eq!(blk.disk().bytes(), expect.clone());
        let last = *rig.get(*writable.last().unwrap()).last().unwrap();
        prop_assert_eq!(last, if fits { OK } else { IOERR });
        if write {
            prop_assert_eq!(used.len, 1);
        } else if fits {
            prop_assert_eq!(used.len, len + 1);
            let got = rig.get(all);
            prop_assert_eq!(&got[..len as usize], &expect[at as usize * 512..][..len as usize]);
        } else {
            prop_assert_eq!(used.len, 0);
        }
    }

    /// Whatever the driver writes, it gets one answer, and the status is one that exists.
    #[test]
    fn any_request_is_answered(
        bytes in prop::collection::vec(any::<u8>(), 0..40),
        kind in prop::option::of(0u8..30),
        cuts in prop::collection::vec(any::<u32>(), 0..4),
        room in 1u32..2000,
    ) {
        let mut blk = blk(MemDisk::new(16));
        let mut rig = Rig::new(&mut blk, FLUSH_BIT);
        let mut bytes = bytes;
        if let (Some(first), Some(kind)) = (bytes.first_mut(), kind) {
            *first = kind;
        }
        let readable = if bytes.is_empty() { vec![] } else { cut(rig.put(&bytes), &cuts) };
        let room = rig.put(&vec![0xff; room as usize]);
        rig.offer(0, &readable, &cut(room, &cuts));
        rig.run(0);
        let used = rig.used(0).unwrap();
        let got = rig.get(room);
        let (status, data) = got.split_last().unwrap();
        prop_assert!(*status <= UNSUPP);
        prop_assert!(used.len <= room.len);
        prop_assert!(data.iter().skip(used.len as usize).all(|b| *b == 0xff), "no byte beyond used.len");
    }
}

crate::conformance_tests!(conformance, || blk(MemDisk::new(16)));
crate::conformance_tests!(conformance_on_a_file, || {
    let path = tempfile::NamedTempFile::new().unwrap();
    path.as_file().set_len(1 << 20).unwrap();
    Blk::new(RawFile::open(path.path(), OpenMode::ReadWrite).unwrap(), DiskId::default())
});

#[test]
fn a_disk_is_locked_while_its_machine_runs_and_no_longer() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let plugged = || {
        let disk = RawFile::open(&path, OpenMode::ReadWrite).unwrap();
        let device = Blk::new(disk, DiskId::default());
        let mut device = VirtioMmio::new("disk", Box::new(device), Arc::new(Inline::new().unwrap()));
        TestBoard::default().attach(&mut device).unwrap();
        device
    };
    let (mut one, mut two) = (plugged(), plugged());
    one.resume().unwrap();
    let busy = two.resume().unwrap_err().to_string();
    assert!(busy.contains("disk.img") && busy.contains("is in use by another"), "{busy}");
    // It is as quiet as before, and can be asked again.
    two.quiesce().unwrap();
    assert!(two.resume().is_err());
    one.quiesce().unwrap();
    two.resume().unwrap();
    assert!(one.resume().is_err());
    two.detach().unwrap();
    one.resume().unwrap();
    drop(one);
    plugged().resume().unwrap();
}

#[test]
fn another_disk_refuses_the_state_by_name() {
    let state = |sectors, id: &str| {
        let mut blk = Blk::new(NullDisk::new(sectors), id.parse().unwrap());
        let DeviceState::Saved(handover) = blk.save().unwrap() else { panic!("no state") };
        (blk, handover)
    };
    let refusal =
        |(mut blk, _): (Blk<NullDisk>, Handover)| blk.restore(state(16, "a").1).map_err(|e| e.to_string());
    assert_eq!(refusal(state(16, "a")), Ok(()));
    assert!(refusal(state(17, "a")).unwrap_err().contains("sectors of the disk"));
    assert!(refusal(state(16, "b")).unwrap_err().contains("id of the disk"));
}

mod asynchronous;
mod cache;
mod holding;
mod ranges;
mod sizes;

crate::conformance_tests!(conformance_with_queues, || blk(MemDisk::new(16)).with_queues(3));
crate::conformance_tests!(conformance_with_limits, || {
    let limits = RateLimits::new(Some(RateLimit::per_second(1 << 30)), Some(RateLimit::per_second(1 << 20)));
    blk(MemDisk::new(16)).with_limiter(RateLimiter::new(limits))
});
crate::conformance_tests!(conformance_with_uring, || {
    let path = tempfile::NamedTempFile::new().unwrap();
    path.as_file().set_len(1 << 20).unwrap();
    let options = RawOptions::new(OpenMode::ReadWrite).engine(EngineKind::Uring);
    Blk::new(RawFile::open(path.path(), options).unwrap(), DiskId::default()).with_queues(2)
});
