//! Device state: the legacy devices' registers to a file and back, beside a copy of the file.
#![allow(missing_docs)] // criterion_group! makes a public function

mod support;

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use support::state::Devices;

fn device_state(c: &mut Criterion) {
    let mut devices = Devices::new();
    let mut group = c.benchmark_group("device state");
    group.throughput(Throughput::Bytes(devices.copy() as u64));
    group.bench_function("encode", |b| b.iter(|| devices.encode()));
    group.bench_function("decode", |b| b.iter(|| devices.decode()));
    group.bench_function("copy", |b| b.iter(|| devices.copy()));
    group.finish();
}

fn settings() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(600))
}

criterion_group! { name = benches; config = settings(); targets = device_state }
criterion_main!(benches);
