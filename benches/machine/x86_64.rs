//! A PC's guests, interrupts by messages, and the example VMM as a process.

use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use criterion::Criterion;
use ossature::bus::state::StateError;
use ossature::bus::{
    Assigned, Device, DeviceError, DeviceState, Handover, Interrupt, MessagesRequest, MetricVisitor,
    MsiMessage, NodeKind, Requires, Syscall,
};
use ossature::legacy::AcpiPower;
use ossature::memory::RamConfig;
use ossature::vmm::machine::Machine;
use ossature::vmm::{Kvm, Registers};

use super::floor_machine::{self, POWER_OFF};
use super::payload;
use super::support::turns::ratio;

/// Counts the 16 bits at the base up: inc word fs:[0]; jmp to itself.
pub const COUNT: &[u8] = &[0x64, 0xff, 0x06, 0x00, 0x00, 0xeb, 0xf9];

/// Where a guest starts.
pub fn registers(base: u64) -> Registers {
    let mut registers = Registers::real_mode(0x1000);
    registers.fs.base = base;
    registers
}

/// What powers a machine off.
pub fn power() -> AcpiPower {
    AcpiPower::new("power")
}

/// What is this architecture's alone.
pub fn more(c: &mut Criterion) {
    messages(c);
    exec();
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
        .payload(payload(POWER_OFF, 0))
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
fn exec() {
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
