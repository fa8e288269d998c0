//! Bus dispatch: ours, vm-device's manager in a mutex, and a map in a read-write lock; 1, 8 and 64 devices, 1, 2 and
//! 4 threads that all stay on one device of their own, as vCPUs do.
#![allow(missing_docs)] // criterion_group! makes a public function

mod support;

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use support::bus::{self, Addresses, Handles};

/// Each of `threads` does `rounds` reads; the time from the first start to the last end.
fn threads(handles: &Handles, devices: u64, threads: u64, rounds: u64) -> Duration {
    let barrier = Barrier::new(threads as usize);
    let times: Vec<_> = std::thread::scope(|scope| {
        let one = |thread| {
            let (barrier, mut handle) = (&barrier, handles());
            scope.spawn(move || {
                let addr = Addresses::new(devices, thread).next();
                barrier.wait();
                let start = Instant::now();
                for _ in 0..rounds {
                    black_box(handle.read(black_box(addr)));
                }
                (start, Instant::now())
            })
        };
        let threads: Vec<_> = (0..threads).map(one).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let first = times.iter().map(|(start, _)| start).min().unwrap();
    let last = times.iter().map(|(_, end)| end).max().unwrap();
    last.duration_since(*first)
}

fn dispatch(c: &mut Criterion) {
    type Contender = (&'static str, fn(u64) -> Handles);
    let contenders: [Contender; 3] =
        [("ours", bus::cursors), ("mutex_io_manager", bus::managers), ("rwlock_btreemap", bus::maps)];
    for devices in [1, 8, 64] {
        let mut group = c.benchmark_group(format!("bus/{devices}_devices"));
        for count in [1, 2, 4] {
            // A round is a read on each thread.
            group.throughput(Throughput::Elements(count));
            for (name, make) in contenders {
                let handles = make(devices);
                group.bench_function(BenchmarkId::new(name, count), |b| {
                    b.iter_custom(|rounds| threads(&handles, devices, count, rounds));
                });
            }
        }
        group.finish();
    }
}

fn settings() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(600))
}

criterion_group! { name = benches; config = settings(); targets = dispatch }
criterion_main!(benches);
