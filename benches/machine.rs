//! Machines on this host's `/dev/kvm` beside the floors: making one and taking it down, and the round trip of an
//! exit. The ratios are printed at the end of each group. Then 500 machines at once.
#![allow(missing_docs)] // criterion_group! makes a public function

#[path = "floors/exits.rs"]
mod floor_exits;
mod support;

use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use floor_exits::machine as floor_machine;
use floor_exits::{Exits, MMIO, PIO, PORT, REGISTER};
use ossature::boot::Platform;
use ossature::bus::state::StateError;
use ossature::bus::{
    AddressSpace, Assigned, Bus, Device, DeviceError, DeviceState, Handover, Interrupt, MessagesRequest,
    MetricVisitor, MsiMessage, NodeKind, Requires, Syscall,
};
use ossature::legacy::AcpiPower;
use ossature::memory::vm_memory::{Bytes, GuestAddress};
use ossature::memory::{GuestMmap, Ram, RamConfig};
use ossature::vmm::machine::{Machine, Outcome, PayloadError};
use ossature::vmm::{Buses, Hypervisor, Kvm, Registers, Step, Vcpu, Vm, VmConfig};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::bus::Number;
use support::turns::ratio;

/// mov dx, 0x600; mov al, 0x34; out dx, al: powers the machine off.
const POWER_OFF: [u8; 6] = [0xba, 0x00, 0x06, 0xb0, 0x34, 0xee];

fn payload(memory: &GuestMmap, _: &Platform) -> Result<Registers, PayloadError> {
    memory.write_slice(&POWER_OFF, GuestAddress(0x1000))?;
    Ok(Registers::real_mode(0x1000))
}

/// From parts to the end of the guest, and everything given back.
fn machine(kvm: &Kvm) {
    let machine = Machine::builder("bench")
        .memory(RamConfig::new(1 << 20))
        .payload(payload)
        .device(AcpiPower::new("power"))
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
    group.bench_function("floor", |b| b.iter(|| floor_machine::once(&host, &POWER_OFF)));
    group.finish();
    ratio("kvm_create", 5, || machine(&kvm), || floor_machine::once(&host, &POWER_OFF));
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
        let mut registers = Registers::real_mode(0x1000);
        registers.fs.base = REGISTER;
        vcpu.set_registers(&registers).unwrap();
        Self { vcpu, _vm: vm }
    }

    fn step(&mut self) {
        assert_eq!(self.vcpu.run_once().unwrap(), Step::Handled);
    }
}

fn exits(c: &mut Criterion) {
    for (name, code) in [("pio", &PIO[..]), ("mmio", &MMIO[..])] {
        let mut group = c.benchmark_group(format!("kvm_exit/{name}"));
        let mut guest = Guest::new(code);
        group.bench_function("ours", |b| b.iter(|| guest.step()));
        let mut floor = Exits::new(&floor_machine::Host::open(), code);
        group.bench_function("floor", |b| b.iter(|| floor.step()));
        group.finish();
        ratio(&format!("kvm_exit/{name}"), 200, || guest.step(), || floor.step());
    }
}

/// A device that interrupts by a message, as a queue of virtio-pci does.
struct Bell(Arc<OnceLock<Interrupt>>);

impl Device for Bell {
    fn id(&self) -> &str {
        "bell"
    }
    fn requires(&self) -> Requires {
        Requires::new().messages(MessagesRequest::new("bell", 1))
    }
    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        let [message] = assigned.messages("bell")? else { return Ok(NodeKind::Hidden) };
        message.set_message(MsiMessage::new(0xfee0_0000, 0x41)).unwrap();
        message.unmask().unwrap();
        let _ = self.0.set(message.interrupt().clone());
        Ok(NodeKind::Hidden)
    }
    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn reset(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::Stateless)
    }
    fn restore(&mut self, _: Handover<'_>) -> Result<(), StateError> {
        Ok(())
    }
    fn detach(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn syscalls(&self) -> &'static [Syscall] {
        &[Syscall("write")]
    }
    fn metrics(&self, _: &mut dyn MetricVisitor) {}
}

/// An interrupt by a message, to a vCPU that does not run: nothing but the way there.
fn messages(c: &mut Criterion) {
    let interrupt = Arc::new(OnceLock::new());
    let _machine = Machine::builder("messages")
        .memory(RamConfig::new(1 << 20))
        .payload(payload)
        .device(Bell(Arc::clone(&interrupt)))
        .build(&Kvm::open().unwrap())
        .unwrap();
    let interrupt = interrupt.get().unwrap();
    let floor = floor_machine::Host::open().machine(1 << 20, &[24], &[], &[]);
    floor_machine::route(&floor.vm, 24, 0xfee0_0000, 0x41);
    let mut group = c.benchmark_group("kvm_message");
    let ours = || interrupt.signal().unwrap();
    let floor = || assert_eq!(rustix::io::write(&floor.events[0], &1_u64.to_ne_bytes()), Ok(8));
    group.bench_function("ours", |b| b.iter(ours));
    group.bench_function("floor", |b| b.iter(floor));
    group.finish();
    ratio("kvm_message", 1000, ours, floor);
}

/// A vCPU that runs, stopped between two instructions with its devices, and started again.
fn pause(c: &mut Criterion) {
    const COUNTER: GuestAddress = GuestAddress(0x2000);
    let machine = Machine::builder("pause")
        .memory(RamConfig::new(1 << 20))
        .payload(|memory: &GuestMmap, _: &Platform| -> Result<Registers, PayloadError> {
            // inc word [0x2000]; jmp to itself
            memory.write_slice(&[0xff, 0x06, 0x00, 0x20, 0xeb, 0xfa], GuestAddress(0x1000))?;
            Ok(Registers::real_mode(0x1000))
        })
        .device(AcpiPower::new("power"))
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

/// An ELF file with a page of code, a PVH note, and nothing else: powers off at once.
fn kernel() -> Vec<u8> {
    const ENTRY: u64 = 0x10_0000;
    let note = [4_u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), ENTRY as u32].map(u32::to_le_bytes).concat();
    let mut image = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    image.extend([ENTRY, 64, 0].map(u64::to_le_bytes).concat());
    image.extend([0, 0, 64, 56, 2, 64, 0, 0].map(u16::to_le_bytes).concat());
    let header = |kind: u64, offset: u64, at: u64, len: u64| [kind, offset, at, at, len, len, 4096];
    let headers =
        [header(5 << 32 | 1, 0x1000, ENTRY, 4096), header(4 << 32 | 4, 0x800, 0, note.len() as u64)];
    image.extend(headers.as_flattened().iter().flat_map(|word| word.to_le_bytes()));
    image.resize(0x800, 0);
    image.extend(note);
    image.resize(0x1000, 0);
    // In protected mode: mov dx, 0x600; mov al, 0x34; out dx, al
    image.extend([0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee]);
    image.resize(0x2000, 0);
    image
}

/// The example VMM beside the floor, each from exec to its end.
fn exec(_: &mut Criterion) {
    let Ok(tap) = std::env::var("OSSATURE_TAP") else {
        println!("kvm_exec: needs OSSATURE_TAP, the name of a tap, and the examples built");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let file = |name, bytes: &[u8]| {
        let path = folder.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let (kernel, disk) = (file("kernel", &kernel()), file("disk", &[0; 1 << 20]));
    let (as_disk, as_tap) = (format!("path={disk}"), format!("tap={tap}"));
    let run = |program: &str, arguments: &[&str]| {
        let examples = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples");
        let mut command = Command::new(examples.join(program));
        let status = command.args(arguments).stdin(Stdio::null()).status().unwrap();
        assert!(status.success(), "{program}: {status}");
    };
    let ours = ["--kernel", &kernel, "--memory", "128M", "--disk", &as_disk, "--net", &as_tap];
    ratio("kvm_exec", 1, || run("microvm", &ours), || run("floor_boot", &[&kernel, &disk, &tap]));
}

/// 500 machines in one process, all alive: whether the last are made as fast as the first, and what each takes.
fn many(_: &mut Criterion) {
    // What a process may have open by default is not enough for so many.
    let open_files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: open_files.maximum, ..open_files }).unwrap();
    let kvm = Kvm::open().unwrap();
    // hlt; jmp back
    let halt = |memory: &GuestMmap, _: &Platform| -> Result<Registers, PayloadError> {
        memory.write_slice(&[0xf4, 0xeb, 0xfd], GuestAddress(0x1000))?;
        Ok(Registers::real_mode(0x1000))
    };
    let private = || {
        let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let field = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
        rollup.lines().filter(|line| line.starts_with("Private_")).filter_map(field).sum::<u64>()
    };
    let ours = || {
        let builder = Machine::builder("many").memory(RamConfig::new(1 << 20)).payload(halt);
        let machine = builder.device(AcpiPower::new("power")).build(&kvm).unwrap();
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
        machine.ram.write(0x1000, &[0xf4, 0xeb, 0xfd]);
        floor_machine::real_mode(&machine.vcpu, 0x1000, 0);
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

criterion_group! { name = benches; config = settings(); targets = create, exits, messages, pause, exec, many }
criterion_main!(benches);
