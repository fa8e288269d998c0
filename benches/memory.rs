//! Guest memory beside raw vm-memory, and what a boot builds in it.
#![allow(missing_docs)] // criterion_group! makes a public function

mod support;

use std::hint::black_box;
use std::io::Cursor;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use linux_loader::loader::KernelLoader;
use linux_loader::loader::elf::Elf;
use ossature::boot::x86_64::{self, Kernel, acpi};
use ossature::memory::vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use ossature::memory::{Ram, RamConfig};
use support::{boot, rings};

const AT: GuestAddress = GuestAddress(0x2010);

fn copies(c: &mut Criterion) {
    let ours = rings::ram().dma();
    let raw = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap();
    let mut group = c.benchmark_group("memory");
    for len in [8usize, 64, 4096, 65536] {
        let mut buf = vec![1; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(BenchmarkId::new("read/ours", len), |b| {
            b.iter(|| ours.read(black_box(AT), &mut buf).unwrap());
        });
        group.bench_function(BenchmarkId::new("read/vm_memory", len), |b| {
            b.iter(|| raw.read_slice(&mut buf, black_box(AT)).unwrap());
        });
        group.bench_function(BenchmarkId::new("write/ours", len), |b| {
            b.iter(|| ours.write(black_box(AT), &buf).unwrap());
        });
        group.bench_function(BenchmarkId::new("write/vm_memory", len), |b| {
            b.iter(|| raw.write_slice(&buf, black_box(AT)).unwrap());
        });
    }
    group.finish();

    let mut group = c.benchmark_group("translation");
    group.bench_function("ours", |b| b.iter(|| ours.check(black_box(AT), 512).unwrap()));
    group.bench_function("vm_memory", |b| b.iter(|| assert!(raw.check_range(black_box(AT), 512))));
    group.finish();
}

fn boots(c: &mut Criterion) {
    let platform = boot::platform();
    let mut group = c.benchmark_group("boot");
    group.bench_function("acpi/ours", |b| {
        b.iter(|| acpi::tables(black_box(&platform), 0xe_0000, 0x2_0000).unwrap());
    });
    group.bench_function("acpi/acpi_tables", |b| b.iter(boot::raw_tables));
    group.bench_function("e820/ours", |b| {
        b.iter(|| x86_64::memory_map::memory_map(black_box(&platform)).unwrap());
    });
    group.bench_function("e820/linux_loader", |b| b.iter(boot::e820));

    let image = boot::kernel(16 << 20);
    group.throughput(Throughput::Bytes(16 << 20));
    let ram = Ram::new(&RamConfig::new(64 << 20)).unwrap();
    group.bench_function("kernel/ours", |b| {
        b.iter(|| {
            let kernel = Kernel::open(image.as_slice().into(), Default::default()).unwrap();
            kernel.load(&ram.map()).unwrap();
        });
    });
    group.bench_function("kernel/linux_loader", |b| {
        b.iter(|| Elf::load(&*ram.map(), None, &mut Cursor::new(&image), None).unwrap());
    });
    // The least of what both do.
    group.bench_function("kernel/copy", |b| {
        b.iter(|| ram.map().write_slice(&image[0x1000..], GuestAddress(0x100_0000)).unwrap());
    });
    group.finish();
}

fn settings() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(600))
}

criterion_group! { name = benches; config = settings(); targets = copies, boots }
criterion_main!(benches);
