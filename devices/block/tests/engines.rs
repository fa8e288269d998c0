//! Random requests against a model, on every engine: whatever is in flight at once, the disk ends as if the requests had
//! been carried out one by one.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // helpers of tests, too, may panic

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ossature_block::{
    Disk, Engine, EngineKind, EngineSetup, Finished, OpenMode, Operation, RawFile, RawOptions, Submitted,
};
use ossature_bus::EventSink;
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, Ram, RamConfig, Segment};
use proptest::prelude::*;

/// Each request of a batch has a place of its own on the disk, and in memory.
const PLACE: u64 = 8 * 512;
const PLACES: u64 = 16;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Write { durable: bool },
    Discard,
    Zeroes { unmap: bool },
    Flush,
}

#[derive(Clone, Debug)]
struct Step {
    kind: Kind,
    /// Sectors within the place.
    first: u64,
    count: u64,
    /// Where the transfer is cut into segments, and how its memory is aligned.
    cuts: Vec<u32>,
    align: u64,
    fill: u8,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        3 => Just(Kind::Read),
        3 => any::<bool>().prop_map(|durable| Kind::Write { durable }),
        1 => Just(Kind::Discard),
        1 => any::<bool>().prop_map(|unmap| Kind::Zeroes { unmap }),
        1 => Just(Kind::Flush),
    ];
    let range = (0..8u64).prop_flat_map(|first| (Just(first), 1..=8 - first));
    let cuts = proptest::collection::vec(1..4096u32, 0..6);
    (kind, range, cuts, prop_oneof![Just(0u64), Just(512), 1..64u64], any::<u8>())
        .prop_map(|(kind, (first, count), cuts, align, fill)| Step { kind, first, count, cuts, align, fill })
}

fn segments(place: u64, step: &Step) -> Vec<Segment> {
    let len = (step.count * 512) as u32;
    let mut ends: Vec<_> = step.cuts.iter().copied().filter(|cut| *cut < len).chain([len]).collect();
    ends.sort_unstable();
    ends.dedup();
    let base = 0x1_0000 * (place + 1) + step.align;
    let starts = [0].into_iter().chain(ends.clone());
    // Pieces in reverse order in memory, so that neighbours are none.
    let piece = |(start, end): (u32, u32)| Segment {
        addr: GuestAddress(base + u64::from(len - end)),
        len: end - start,
    };
    starts.zip(ends.clone()).map(piece).collect()
}

fn bytes(fill: u8, len: u64) -> Vec<u8> {
    (0..len).map(|i| fill.wrapping_add((i * 5) as u8)).collect()
}

fn run_batch(engine: &mut impl Engine, mem: &Dma, model: &mut [u8], batch: &[(u64, Step)]) {
    let pieces: Vec<_> = batch.iter().map(|(place, step)| segments(*place, step)).collect();
    let mut done: HashMap<u64, Finished> = HashMap::new();
    let mut pending = 0;
    for ((place, step), pieces) in batch.iter().zip(&pieces) {
        let (offset, len) = (place * PLACE + step.first * 512, step.count * 512);
        let operation = match step.kind {
            Kind::Read => Operation::Read { to: pieces.into(), offset },
            Kind::Write { durable } => {
                mem.scatter(pieces, &bytes(step.fill, len)).unwrap();
                Operation::Write { from: pieces.into(), offset, durable }
            }
            Kind::Discard => Operation::Discard { offset, len },
            Kind::Zeroes { unmap } => {
                Operation::WriteZeroes { offset, len, unmap, durable: step.fill % 2 == 0 }
            }
            Kind::Flush => Operation::Flush,
        };
        match engine.submit(mem, *place, operation) {
            Submitted::Finished(finished) => assert!(done.insert(*place, finished).is_none()),
            Submitted::Pending => pending += 1,
        }
    }
    assert_eq!(engine.in_flight(), pending);
    engine.start();
    let limit = Instant::now() + Duration::from_secs(60);
    while done.len() < batch.len() {
        while let Some(completion) = engine.reap() {
            assert!(done.insert(completion.token, completion.finished).is_none(), "completed twice");
        }
        assert!(Instant::now() < limit, "requests never complete");
    }
    assert_eq!(engine.in_flight(), 0);
    for ((place, step), pieces) in batch.iter().zip(&pieces) {
        let (offset, len) = (place * PLACE + step.first * 512, step.count * 512);
        let range = offset as usize..(offset + len) as usize;
        let finished = &done[place];
        finished.result.as_ref().unwrap();
        match step.kind {
            Kind::Read => {
                let mut read = vec![0; len as usize];
                mem.gather(pieces, &mut read).unwrap();
                assert_eq!(read, model[range]);
            }
            Kind::Write { .. } => model[range].copy_from_slice(&bytes(step.fill, len)),
            Kind::Zeroes { .. } => model[range].fill(0),
            // Zeros, on a file; the contract promises nothing.
            Kind::Discard => model[range].fill(0),
            Kind::Flush => {}
        }
        let transfers = matches!(step.kind, Kind::Read | Kind::Write { .. });
        assert_eq!(finished.moved, if transfers { len } else { 0 });
    }
}

fn check(engine: EngineKind, direct: bool, batches: &[Vec<(u64, Step)>]) {
    // Beside the program: there the file system is likely to have O_DIRECT.
    let folder = std::env::current_exe().unwrap();
    let image = tempfile::NamedTempFile::new_in(folder.parent().unwrap()).unwrap();
    let mut model = bytes(3, PLACES * PLACE);
    fs::write(image.path(), &model).unwrap();
    let options = RawOptions::new(OpenMode::ReadWrite).engine(engine).direct(direct);
    let disk = Arc::new(RawFile::open(image.path(), options).unwrap());
    let mem = Ram::new(&RamConfig::new(2 << 20)).unwrap().dma();
    let mut engine = disk.engine(&EngineSetup::new(PLACES as u16, EventSink::discard())).unwrap();
    for batch in batches {
        run_batch(&mut engine, &mem, &mut model, batch);
    }
    assert_eq!(fs::read(image.path()).unwrap(), model);
}

fn batches() -> impl Strategy<Value = Vec<Vec<(u64, Step)>>> {
    let places = Just((0..PLACES).collect::<Vec<_>>()).prop_shuffle();
    let batch = (places, proptest::collection::vec(step(), 1..PLACES as usize))
        .prop_map(|(places, steps)| places.into_iter().zip(steps).collect::<Vec<_>>());
    proptest::collection::vec(batch, 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn sync_ends_as_the_model_does(batches in batches()) {
        check(EngineKind::Sync, false, &batches);
    }

    #[test]
    fn sync_past_the_page_cache_ends_as_the_model_does(batches in batches()) {
        check(EngineKind::Sync, true, &batches);
    }

    #[test]
    fn a_thread_ends_as_the_model_does(batches in batches()) {
        check(EngineKind::Thread, false, &batches);
    }

    #[test]
    fn uring_ends_as_the_model_does(batches in batches()) {
        check(EngineKind::Uring, false, &batches);
    }

    #[test]
    fn uring_past_the_page_cache_ends_as_the_model_does(batches in batches()) {
        check(EngineKind::Uring, true, &batches);
    }
}
