//! Queues and whole requests with a back end that does nothing; a batch is 32 chains (8 of 16 descriptors).
//! Beside the queue, the raw virtio-queue crate does the same; beside the block device, the floor.
#![allow(missing_docs)] // criterion_group! makes a public function

mod support;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ossature::memory::vm_memory::GuestMemoryBackend;
use support::rings::{BATCH, DeviceRig, Driver, FloorRig, Layout, QueueRig};
use virtio_queue::{Queue, QueueT};

const LAYOUTS: [(&str, Layout); 2] = [("direct", Layout::Direct), ("indirect", Layout::Indirect)];

/// The raw crate on the driver's ring.
fn raw_queue(driver: &Driver) -> Queue {
    let mut queue = Queue::new(driver.ring.size).unwrap();
    queue.set_size(driver.ring.size);
    let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
    let (low, high) = halves(driver.ring.desc);
    queue.set_desc_table_address(low, high);
    let (low, high) = halves(driver.ring.avail);
    queue.set_avail_ring_address(low, high);
    let (low, high) = halves(driver.ring.used);
    queue.set_used_ring_address(low, high);
    queue.set_event_idx(true);
    queue.set_ready(true);
    queue
}

/// What [`QueueRig::batch`] does, with the raw crate: every descriptor is looked at, every buffer checked.
fn raw_batch(rig: &mut QueueRig, queue: &mut Queue) -> u64 {
    rig.driver.offer();
    let mem = rig.dma.memory();
    let mut bytes = 0;
    while let Some(chain) = queue.pop_descriptor_chain(mem) {
        let head = chain.head_index();
        for desc in chain {
            assert!(mem.check_range(desc.addr(), desc.len() as usize));
            bytes += u64::from(desc.len()) * u64::from(!desc.is_write_only());
        }
        queue.add_used(mem, head, 64).unwrap();
    }
    if queue.needs_notification(mem).unwrap() {
        black_box(&rig.queue);
    }
    assert!(!queue.enable_notification(mem).unwrap());
    bytes
}

fn queue(c: &mut Criterion) {
    for (name, layout) in LAYOUTS {
        let mut group = c.benchmark_group(format!("queue/{name}"));
        for descriptors in [1, 3, 16] {
            let mut rig = QueueRig::new(descriptors, layout);
            group.throughput(Throughput::Elements(rig.chains().into()));
            group.bench_function(BenchmarkId::new("ours", descriptors), |b| b.iter(|| rig.batch()));
            let mut rig = QueueRig::new(descriptors, layout);
            let mut raw = raw_queue(&rig.driver);
            group.bench_function(BenchmarkId::new("virtio_queue", descriptors), |b| {
                b.iter(|| raw_batch(&mut rig, &mut raw));
            });
        }
        group.finish();
    }
}

fn requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("request");
    group.throughput(Throughput::Elements(BATCH.into()));
    for (name, layout) in LAYOUTS {
        let mut rig = DeviceRig::blk(layout);
        group.bench_function(format!("blk_{name}"), |b| b.iter(|| rig.batch(0)));
    }

    let mut floor = FloorRig::new();
    group.bench_function("blk_floor", |b| b.iter(|| floor.batch()));

    for (queue, name) in [(1, "net_send"), (0, "net_receive")] {
        let mut rig = DeviceRig::net();
        group.bench_function(name, |b| b.iter(|| rig.batch(queue)));
    }
    group.finish();
}

fn settings() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(600))
}

criterion_group! { name = benches; config = settings(); targets = queue, requests }
criterion_main!(benches);
