//! Machines on this host's `/dev/kvm` beside the floors: making one and taking it down, and the round trip of an
//! exit. The ratios are printed at the end of each group. Then 500 machines at once.
#![allow(missing_docs)] // criterion_group! makes a public function

#[cfg_attr(target_arch = "x86_64", path = "machine/x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "machine/aarch64.rs")]
mod arch;
#[path = "floors/exits.rs"]
mod floor_exits;
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use floor_exits::machine as floor_machine;
use floor_exits::{Exits, PORT, REGISTER};
use floor_machine::{EXITS, HALT, POWER_OFF};
use ossature::boot::Platform;
use ossature::bus::{AddressSpace, Bus};
use ossature::memory::vm_memory::{Bytes, GuestAddress};
use ossature::memory::{GuestMmap, Ram, RamConfig};
use ossature::vmm::machine::{Machine, Outcome, PayloadError};
use ossature::vmm::{Buses, Hypervisor, Kvm, Registers, Step, Vcpu, Vm, VmConfig};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::bus::Number;
use support::turns::ratio;

/// Puts code where a guest starts, with this base for its accesses.
fn payload(
    code: &'static [u8],
    base: u64,
) -> impl FnMut(&GuestMmap, &Platform) -> Result<Registers, PayloadError> {
    move |memory, _| {
        memory.write_slice(code, GuestAddress(0x1000))?;
        Ok(arch::registers(base))
    }
}

/// From parts to the end of the guest, and everything given back.
fn machine(kvm: &Kvm) {
    let machine = Machine::builder("bench")
        .memory(RamConfig::new(1 << 20))
        .payload(payload(POWER_OFF, 0))
        .device(arch::power())
        .build(kvm)
        .unwrap();
    machine.start().unwrap();
    assert!(matches!(machine.wait().unwrap(), Outcome::Shutdown));
}

fn create(c: &mut Criterion) {
    let mut group = c.benchmark_group("kvm_create");
    let kvm = Kvm::open().unwrap();
    let host = floor_machine::Host::open();
    group.bench_function("ours", |b| b.iter(|| machine(&kvm)));
    group.bench_function("floor", |b| b.iter(|| floor_machine::once(&host)));
    group.finish();
    ratio("kvm_create", 5, || machine(&kvm), || floor_machine::once(&host));
}

/// A vCPU of ours in a loop of exits, and what it needs.
struct Guest {
    vcpu: Vcpu,
    _vm: Box<dyn Vm>,
}

impl Guest {
    fn new(code: &[u8]) -> Self {
        let vm = Kvm::open().unwrap().create_vm(&VmConfig::default()).unwrap();
        let ram = Ram::new(&RamConfig::new(1 << 20)).unwrap();
        ram.dma().write(GuestAddress(0x1000), code).unwrap();
        vm.set_memory(&ram).unwrap();
        let (pio, mmio) = (Bus::new(AddressSpace::Pio), Bus::new(AddressSpace::Mmio));
        pio.insert(PORT.into(), 1, "port", Arc::new(Number(1))).unwrap();
        mmio.insert(REGISTER, 4096, "register", Arc::new(Number(1))).unwrap();
        let mut vcpu = vm.create_vcpu(0, Buses::new(pio.cursor(), mmio.cursor())).unwrap();
        vcpu.set_registers(&arch::registers(REGISTER)).unwrap();
        Self { vcpu, _vm: vm }
    }

    fn step(&mut self) {
        assert_eq!(self.vcpu.run_once().unwrap(), Step::Handled);
    }
}

fn exits(c: &mut Criterion) {
    for &(name, code) in EXITS {
        let mut group = c.benchmark_group(format!("kvm_exit/{name}"));
        let mut guest = Guest::new(code);
        group.bench_function("ours", |b| b.iter(|| guest.step()));
        let mut floor = Exits::new(&floor_machine::Host::open(), code);
        group.bench_function("floor", |b| b.iter(|| floor.step()));
        group.finish();
        ratio(&format!("kvm_exit/{name}"), 200, || guest.step(), || floor.step());
    }
}

/// A vCPU that runs, stopped between two instructions with its devices, and started again.
fn pause(c: &mut Criterion) {
    const COUNTER: GuestAddress = GuestAddress(0x2000);
    let machine = Machine::builder("pause")
        .memory(RamConfig::new(1 << 20))
        .payload(payload(arch::COUNT, COUNTER.0))
        .device(arch::power())
        .build(&Kvm::open().unwrap())
        .unwrap();
    machine.start().unwrap();
    let dma = machine.ram().dma();
    let counter = || -> u16 { dma.read_obj(COUNTER).unwrap() };
    let round = || {
        // A vCPU whose thread has not woken since the last round would stand still already.
        let before = counter();
        while counter() == before {
            std::hint::spin_loop();
        }
        let start = Instant::now();
        machine.pause().unwrap().resume().unwrap();
        start.elapsed()
    };
    c.bench_function("kvm_pause_and_resume", |b| b.iter_custom(|rounds| (0..rounds).map(|_| round()).sum()));
    machine.stop().unwrap();
}

/// 500 machines in one process, all alive: whether the last are made as fast as the first, and what each takes.
fn many(_: &mut Criterion) {
    // What a process may have open by default is not enough for so many.
    let open_files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: open_files.maximum, ..open_files }).unwrap();
    let kvm = Kvm::open().unwrap();
    let private = || {
        let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let field = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
        rollup.lines().filter(|line| line.starts_with("Private_")).filter_map(field).sum::<u64>()
    };
    let ours = || {
        let builder = Machine::builder("many").memory(RamConfig::new(1 << 20)).payload(payload(HALT, 0));
        let machine = builder.device(arch::power()).build(&kvm).unwrap();
        machine.start().unwrap();
        machine
    };
    let before = private();
    let machines: Vec<Machine> = (0..500).map(|_| ours()).collect();
    println!("500 machines: {} KiB each", (private() - before) / 500);
    drop(machines);

    let host = floor_machine::Host::open();
    let floor = || {
        let mut machine = host.machine(1 << 20, &[9], &[], &[]);
        machine.ram.write(0x1000, HALT);
        floor_machine::enter(&machine.vcpu, 0x1000, 0);
        // Halted for ever: it ends with the process.
        std::thread::spawn(move || machine.vcpu.run().map(drop));
    };
    fn time<M>(make: impl FnOnce() -> M) -> (M, f64) {
        let start = Instant::now();
        let made = make();
        (made, start.elapsed().as_secs_f64())
    }
    // In turns: what slows the host down, or grows in its kernel with each machine, is the same for both.
    let (mut machines, mut times) = (Vec::new(), [Vec::new(), Vec::new()]);
    for _ in 0..500 {
        let (machine, seconds) = time(ours);
        machines.push(machine);
        times[0].push(seconds);
        times[1].push(time(floor).1);
    }
    let rate = |times: &[f64]| times.len() as f64 / times.iter().sum::<f64>();
    for (name, times) in ["machines", "floors"].iter().zip(&times) {
        let (first, last) = (rate(&times[..50]), rate(&times[450..]));
        println!("500 {name}: {first:.0}/s at first, {last:.0}/s at last ({:.2})", last / first);
    }
}

fn settings() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2))
}

criterion_group! { name = benches; config = settings(); targets = create, exits, pause, arch::more, many }
criterion_main!(benches);
