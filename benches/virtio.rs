//! Queues and whole requests with a back end that does nothing; a batch is 32 chains (8 of 16 descriptors).
//! Beside each, the raw virtio-queue crate does the same; beside the block device, the floor too.
#![allow(missing_docs)] // criterion_group! makes a public function

mod support;

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use support::raw::{self, RawDevice, RawQueue};
use support::rings::{BATCH, DeviceRig, FloorRig, Layout, QueueRig};
use support::sockets::{BYTES, Pair, Sockets};
use support::turns::ratio;

const LAYOUTS: [(&str, Layout); 2] = [("direct", Layout::Direct), ("indirect", Layout::Indirect)];

fn queue(c: &mut Criterion) {
    for (name, layout) in LAYOUTS {
        let mut group = c.benchmark_group(format!("queue/{name}"));
        for descriptors in [1, 3, 16] {
            let mut rig = QueueRig::new(descriptors, layout);
            group.throughput(Throughput::Elements(rig.chains().into()));
            group.bench_function(BenchmarkId::new("ours", descriptors), |b| b.iter(|| rig.batch()));
            let mut raw = RawQueue::new(QueueRig::new(descriptors, layout));
            group.bench_function(BenchmarkId::new("virtio_queue", descriptors), |b| b.iter(|| raw.batch()));
        }
        group.finish();
    }
}

fn requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("request");
    group.throughput(Throughput::Elements(BATCH.into()));
    for (name, layout) in LAYOUTS {
        let mut rig = DeviceRig::blk(layout);
        group.bench_function(format!("blk_{name}/ours"), |b| b.iter(|| rig.batch(0)));
        let mut raw = RawDevice::new(DeviceRig::blk(layout), 0);
        group.bench_function(format!("blk_{name}/virtio_queue"), |b| b.iter(|| raw.batch(raw::read)));
    }

    let mut floor = FloorRig::new();
    group.bench_function("blk_direct/floor", |b| b.iter(|| floor.batch()));

    for (queue, name, serve) in [(1, "net_send", raw::send as raw::Serve), (0, "net_receive", raw::receive)] {
        let mut rig = DeviceRig::net();
        group.bench_function(format!("{name}/ours"), |b| b.iter(|| rig.batch(queue)));
        let mut raw = RawDevice::new(DeviceRig::net(), queue);
        group.bench_function(format!("{name}/virtio_queue"), |b| b.iter(|| raw.batch(serve)));
    }
    group.finish();
}

/// A stream between the guest and a program, beside a pair of sockets.
fn sockets(c: &mut Criterion) {
    let mut group = c.benchmark_group("stream");
    group.throughput(Throughput::Bytes(BYTES as u64));
    let (mut sends, mut receives, mut pair) = (Sockets::new(true), Sockets::new(false), Pair::new());
    group.bench_function("vsock/sent", |b| b.iter(|| sends.send()));
    group.bench_function("vsock/received", |b| b.iter(|| receives.receive()));
    group.bench_function("pair/floor", |b| b.iter(|| pair.batch()));
    group.finish();
    ratio("stream/vsock/sent", 200, || sends.send(), || pair.batch());
    ratio("stream/vsock/received", 200, || receives.receive(), || pair.batch());
}

fn settings() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(600))
}

criterion_group! { name = benches; config = settings(); targets = queue, requests, sockets }
criterion_main!(benches);
