//! Bus dispatch: ours, vm-device's manager in a mutex, and a map in a read-write lock; 1, 8 and 64 devices, 1, 2 and
//! 4 threads that all stay on one device of their own, as vCPUs do. Ratios, taken in turns, are printed at the end of
//! each group.
#![allow(missing_docs)] // criterion_group! makes a public function

mod support;

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rustix::time::{ClockId, clock_gettime};
use support::bus::{self, Addresses, Dispatch};

/// What a number of reads on each of several threads took.
#[derive(Clone, Copy)]
struct Times {
    /// From the first start to the last end.
    wall: Duration,
    /// Of the processor, on the thread that took most: the same with fewer cores than threads.
    cpu: Duration,
}

/// Each of `threads` does `rounds` reads.
fn run<D: Dispatch>(make: &(impl Fn() -> D + Sync), devices: u64, threads: u64, rounds: u64) -> Times {
    let barrier = Barrier::new(threads as usize);
    let one = |thread| {
        let (barrier, mut handle) = (&barrier, make());
        let addr = Addresses::new(devices, thread).next();
        move || {
            barrier.wait();
            let (start, before) = (Instant::now(), clock_gettime(ClockId::ThreadCPUTime));
            for _ in 0..rounds {
                black_box(handle.read(black_box(addr)));
            }
            let cpu = Duration::try_from(clock_gettime(ClockId::ThreadCPUTime) - before).unwrap();
            (start, Instant::now(), cpu)
        }
    };
    let times: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(one(thread))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let first = times.iter().map(|(start, ..)| start).min().unwrap();
    let last = times.iter().map(|(_, end, _)| end).max().unwrap();
    let cpu = times.iter().map(|(.., cpu)| *cpu).max().unwrap();
    Times { wall: last.duration_since(*first), cpu }
}

/// The median of what `other` takes over what `ours` takes.
fn ratio(name: &str, mut ours: impl FnMut() -> Duration, mut other: impl FnMut() -> Duration) {
    let once = |_| {
        let ours = ours().as_secs_f64();
        other().as_secs_f64() / ours
    };
    let mut ratios: Vec<_> = (0..41).map(once).collect();
    ratios.sort_by(f64::total_cmp);
    println!("{name}: {:.2} x (quartiles {:.2}, {:.2})", ratios[20], ratios[10], ratios[30]);
}

fn contender<D: Dispatch>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    devices: u64,
    threads: u64,
    make: &(impl Fn() -> D + Sync),
) {
    group.bench_function(BenchmarkId::new(name, threads), |b| {
        b.iter_custom(|rounds| run(make, devices, threads, rounds).wall);
    });
}

fn dispatch(c: &mut Criterion) {
    let full = std::env::args().any(|argument| argument == "--bench");
    let rounds = if full { 100_000 } else { 100 };
    for devices in [1, 8, 64] {
        let (ours, mutex, rwlock) = (bus::cursors(devices), bus::managers(devices), bus::maps(devices));
        let mut group = c.benchmark_group(format!("bus/{devices}_devices"));
        for threads in [1, 2, 4] {
            // A round is a read on each thread.
            group.throughput(Throughput::Elements(threads));
            contender(&mut group, "ours", devices, threads, &ours);
            contender(&mut group, "mutex_io_manager", devices, threads, &mutex);
            contender(&mut group, "rwlock_btreemap", devices, threads, &rwlock);
        }
        group.finish();
        for threads in [1, 2, 4] {
            let name = |other| format!("bus/{devices}_devices/{threads}_threads: {other} over ours");
            let base = || run(&ours, devices, threads, rounds).wall;
            ratio(&name("mutex_io_manager"), base, || run(&mutex, devices, threads, rounds).wall);
            ratio(&name("rwlock_btreemap"), base, || run(&rwlock, devices, threads, rounds).wall);
        }
        for threads in [2, 4] {
            let name = format!(
                "bus/{devices}_devices: ours, processor time of a thread of {threads} over one alone"
            );
            let one = || run(&ours, devices, 1, rounds).cpu;
            ratio(&name, one, || run(&ours, devices, threads, rounds).cpu);
        }
    }
}

fn settings() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(600))
}

criterion_group! { name = benches; config = settings(); targets = dispatch }
criterion_main!(benches);
