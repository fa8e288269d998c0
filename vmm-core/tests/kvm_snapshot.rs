//! Snapshots on the host's KVM: a guest that is saved after any of its exits goes on in another machine, and ends the same.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::expect_used, clippy::unwrap_used, clippy::panic)] // helpers of tests, too, may panic

mod board;

use std::fs::{self, File};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ossature_boot::Platform;
use ossature_bus::state::{Decoder, Encoder, Field, StateError};
use ossature_bus::{
    Access, Assigned, BusFault, Device, DeviceError, DeviceState, Effect, Handover, MetricVisitor, MmioMut,
    NodeKind, RegistersRequest, Requires, Syscall, VmRequest,
};
use ossature_core::machine::{
    BuildError, Machine, MachineBuilder, MachineHandle, Outcome, Snapshot, SnapshotError,
};
use ossature_core::{Kvm, Registers, VmError};
use ossature_memory::vm_memory::{Bytes, GuestAddress};
use ossature_memory::{Backing, GuestMmap, RamConfig};

const CODE: u16 = 0x1000;
const RAM: u64 = 8 << 20;
/// Where the guest finds the register that it reads.
const REGISTER: u64 = 0xd800_0000;
/// What of its memory the guest changes.
const CHANGED: std::ops::Range<u64> = 0x3000..0x5000;
const LIMIT: Duration = Duration::from_secs(120);

/// Counts, prints each count and a string, sums up what it reads from a register, and stores the sums.
const GUEST: &[u8] = &[
    0xb9, 0x0c, 0x00, // mov cx, 12
    0xff, 0x06, 0x00, 0x30, // L: inc word [0x3000]
    0xa0, 0x00, 0x30, // mov al, [0x3000]
    0x04, 0x20, // add al, 0x20
    0xe6, 0x80, // out 0x80, al
    0x89, 0xcd, // mov bp, cx
    0xbe, 0x00, 0x20, // mov si, 0x2000
    0xb9, 0x03, 0x00, // mov cx, 3
    0xba, 0x80, 0x00, // mov dx, 0x80
    0xf3, 0x6e, // rep outsb
    0x89, 0xe9, // mov cx, bp
    0x64, 0xa0, 0x00, 0x00, // mov al, fs:[0]
    0x00, 0x06, 0x02, 0x30, // add [0x3002], al
    0x8b, 0x3e, 0x02, 0x30, // mov di, [0x3002]
    0x89, 0xbd, 0x00, 0x40, // mov [di + 0x4000], di
    0xe2, 0xd4, // loop L
    0xb0, 0x00, 0xe6, 0x80, // mov al, 0; out 0x80, al
    0xf4, // hlt
];

/// Prints what is written to it, counts its reads, and keeps both in its state. A byte of 0 powers the machine off.
#[derive(Clone)]
struct Printer {
    paper: Arc<Mutex<Paper>>,
}

#[derive(Default)]
struct Paper {
    text: Vec<u8>,
    reads: u8,
    accesses: usize,
    /// Has the machine paused after so many accesses, and tells so.
    pause: Option<(usize, MachineHandle, Sender<()>)>,
}

impl Paper {
    fn accessed(&mut self) {
        self.accesses += 1;
        if let Some((_, machine, paused)) = self.pause.take_if(|(after, ..)| *after == self.accesses) {
            machine.request_pause();
            paused.send(()).unwrap();
        }
    }
}

const KIND: &str = "org.ossature.tests.printer";
const TEXT: Field = Field::new(1, "text");
const READS: Field = Field::new(2, "reads");

impl MmioMut for Paper {
    fn read(&mut self, _: Access) -> Result<u64, BusFault> {
        self.reads += 1;
        self.accessed();
        Ok(self.reads.into())
    }

    fn write(&mut self, _: Access, value: u64) -> Result<Effect, BusFault> {
        self.text.push(value as u8);
        self.accessed();
        Ok(if value == 0 { Effect::Vm(VmRequest::Shutdown) } else { Effect::None })
    }
}

impl Device for Printer {
    fn id(&self) -> &str {
        "printer"
    }

    fn requires(&self) -> Requires {
        let mut requires = Requires::default();
        requires.registers.push(RegistersRequest::ports("port", 1).fixed(0x80));
        requires.registers.push(RegistersRequest::memory("register", 0x1000).fixed(REGISTER));
        requires
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        assigned.all_registers().iter().for_each(|registers| registers.answer(self.paper.clone()));
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
        let paper = self.paper.lock().unwrap();
        let mut fields = Encoder::new(KIND, 1);
        fields.bytes(TEXT, &paper.text).u8(READS, paper.reads);
        Ok(DeviceState::Saved(Handover::new(fields.finish())))
    }

    fn restore(&mut self, handover: Handover<'_>) -> Result<(), StateError> {
        let mut fields = Decoder::new(&handover.state, KIND, 1..=1)?;
        let (text, reads) = (fields.bytes(TEXT, 1000)?.to_vec(), fields.u8(READS)?);
        fields.finish()?;
        let mut paper = self.paper.lock().unwrap();
        (paper.text, paper.reads) = (text, reads);
        Ok(())
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }

    fn metrics(&self, _: &mut dyn MetricVisitor) {}
}

/// A machine of so many vCPUs with a printer, and what is printed.
fn machine() -> (MachineBuilder, Arc<Mutex<Paper>>) {
    let paper = Arc::<Mutex<Paper>>::default();
    (Machine::builder("snapshot").device(Printer { paper: paper.clone() }), paper)
}

fn load(memory: &GuestMmap, _: &Platform) -> Result<Registers, ossature_core::machine::PayloadError> {
    memory.write_slice(GUEST, GuestAddress(CODE.into()))?;
    memory.write_slice(b"abc", GuestAddress(0x2000))?;
    let mut registers = Registers::real_mode(CODE);
    registers.fs.base = REGISTER;
    Ok(registers)
}

/// What a guest has printed and stored.
type Traces = (Vec<u8>, Vec<u8>);

fn end(machine: &Machine, paper: &Mutex<Paper>) -> Traces {
    let outcome = machine.wait_timeout(LIMIT).unwrap();
    assert_eq!(outcome, Some(Outcome::Shutdown));
    let mut memory = vec![0; (CHANGED.end - CHANGED.start) as usize];
    machine.ram().dma().read(GuestAddress(CHANGED.start), &mut memory).unwrap();
    (paper.lock().unwrap().text.clone(), memory)
}

/// Runs a new guest to its end, or until it is saved to `path` after so many accesses.
fn run(save: Option<(usize, &Path)>) -> Option<(Traces, usize)> {
    let (builder, paper) = machine();
    let (paused, when) = channel();
    let at = save.map(|(after, _)| (after, builder.handle(), paused));
    paper.lock().unwrap().pause = at;
    let machine = builder.memory(RamConfig::new(RAM)).payload(load).build(&Kvm::open().unwrap()).unwrap();
    match save {
        Some((0, path)) => {
            machine.snapshot(path).unwrap();
            machine.start().unwrap();
        }
        Some((_, path)) => {
            machine.start().unwrap();
            when.recv_timeout(LIMIT).unwrap();
            machine.snapshot(path).unwrap();
        }
        None => {
            machine.start().unwrap();
            let end = end(&machine, &paper);
            let accesses = paper.lock().unwrap().accesses;
            return Some((end, accesses));
        }
    }
    machine.stop().unwrap();
    None
}

fn restored(
    path: &Path,
    configure: impl FnOnce(MachineBuilder) -> MachineBuilder,
) -> (Machine, Arc<Mutex<Paper>>) {
    let (builder, paper) = machine();
    let builder = configure(builder.restore(Snapshot::open(path).unwrap()));
    (builder.build(&Kvm::open().unwrap()).unwrap(), paper)
}

#[test]
fn d3_a_guest_that_is_saved_after_any_of_its_exits_ends_the_same_in_another_machine() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.snap");
    let (whole, accesses) = run(None).unwrap();
    assert!(accesses > 40, "{accesses}");
    assert!(whole.0.starts_with(b"!abc\"abc#abc"), "{:?}", whole.0);
    for after in 0..accesses {
        assert!(run(Some((after, &path))).is_none());
        let snapshot = Snapshot::open(&path).unwrap();
        snapshot.verify_memory().unwrap();
        let (machine, paper) = restored(&path, |builder| builder);
        machine.start().unwrap();
        assert!(end(&machine, &paper) == whole, "saved after {after} accesses");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn two_vcpus_go_on_and_each_machine_has_its_own_memory() {
    const COUNTERS: [u64; 2] = [0x5000, 0x5004];
    let count = |counter: u64| [0x66, 0xff, 0x06, counter as u8, (counter >> 8) as u8, 0xeb, 0xf9]; // inc; jmp back
    let first = [board::START_SECOND, &count(COUNTERS[0])].concat();
    let counts = |machine: &Machine| COUNTERS.map(|at| board::number(machine, at));
    let go_on = |machine: &Machine, from: [u32; 2]| {
        let ahead = || counts(machine).iter().zip(from).all(|(now, from)| *now > from);
        board::until(machine, "both vCPUs count", ahead);
    };
    let kvm = Kvm::open().unwrap();
    let code = [(u64::from(board::CODE), &first[..]), (board::SECOND, &count(COUNTERS[1]))];
    let machine = board::guest("two", &code).cpus(2).build(&kvm).unwrap();
    machine.start().unwrap();
    go_on(&machine, [0, 0]);
    // A file without a name, which any process may be handed.
    let file = tempfile::tempfile().unwrap();
    let paused = machine.pause().unwrap();
    let saved = counts(&machine);
    paused.snapshot_to(&file).unwrap();
    paused.resume().unwrap();
    go_on(&machine, saved);
    let restored = [(); 2].map(|()| {
        let snapshot = Snapshot::from_file(file.try_clone().unwrap()).unwrap();
        Machine::builder("restored").restore(snapshot).build(&kvm).unwrap()
    });
    for machine in &restored {
        assert_eq!(counts(machine), saved, "whatever the others have written since");
        machine.start().unwrap();
        go_on(machine, saved);
    }
    machine.stop().unwrap();
    go_on(&restored[0], counts(&restored[0]));
}

#[test]
fn a_guest_goes_on_in_memory_of_another_kind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.snap");
    let (whole, _) = run(None).unwrap();
    run(Some((7, &path)));
    let (machine, paper) =
        restored(&path, |builder| builder.memory(RamConfig::new(RAM).backing(Backing::Memfd)));
    machine.start().unwrap();
    assert!(end(&machine, &paper) == whole);
}

#[test]
fn a_processor_that_lacks_a_feature_is_refused_with_its_name() {
    const AVX512PF: u32 = 1 << 26;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.snap");
    let (builder, _) = machine();
    // A vCPU may have what its processor lacks: no host of today has this one.
    let builder = builder.vm(|vm| vm.cpuid(|cpuid, _| cpuid.update(7, 0, |leaf| leaf.ebx |= AVX512PF)));
    let kvm = Kvm::open().unwrap();
    let saved = builder.memory(RamConfig::new(RAM)).payload(load).build(&kvm).unwrap();
    saved.snapshot(&path).unwrap();
    let (builder, _) = machine();
    let errors = builder.restore(Snapshot::open(&path).unwrap()).build(&kvm).unwrap_err();
    let is_named = |error: &BuildError| match error {
        BuildError::Snapshot(SnapshotError::Vm(VmError::MissingFeature { feature })) => {
            feature.starts_with("avx512pf")
        }
        _ => false,
    };
    assert!(errors.errors().iter().any(is_named), "{errors}");
}

#[test]
fn a_vcpu_keeps_the_cpuid_that_it_was_saved_with() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.snap");
    let kvm = Kvm::open().unwrap();
    let (builder, _) = machine();
    // mov eax, 1; cpuid; mov [0x3000], eax; hlt, on a processor with a signature of its own.
    let code = [0x66, 0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0x66, 0xa3, 0x00, 0x30, 0xf4];
    let saved = builder
        .vm(|vm| vm.cpuid(|cpuid, _| cpuid.update(1, 0, |leaf| leaf.eax = 0x1234)))
        .memory(RamConfig::new(RAM))
        .payload(move |memory: &GuestMmap, _: &Platform| {
            memory.write_slice(&code, GuestAddress(CODE.into()))?;
            Ok(Registers::real_mode(CODE))
        })
        .build(&kvm)
        .unwrap();
    saved.snapshot(&path).unwrap();
    let (machine, _) = restored(&path, |builder| builder);
    machine.start().unwrap();
    board::until(&machine, "it reads its CPUID", || board::number(&machine, 0x3000) != 0);
    assert_eq!(board::number(&machine, 0x3000), 0x1234);
}

/// Makes the golden file that the unit tests of snapshots decode, if BLESS is set: only one that no release has written may
/// be made anew.
#[test]
fn v2_a_golden_file_of_kvm_is_made_on_request() {
    let folder = tempfile::tempdir().unwrap();
    let path = match std::env::var_os("BLESS") {
        Some(_) => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v2-kvm.snap"),
        None => folder.path().join("v2-kvm.snap"),
    };
    let (builder, _) = machine();
    let machine =
        builder.memory(RamConfig::new(64 << 10)).payload(load).build(&Kvm::open().unwrap()).unwrap();
    machine.snapshot(&path).unwrap();
    assert_eq!(Snapshot::open(&path).unwrap().cpus(), 1);
}

#[test]
fn a_snapshot_that_is_no_file_at_all_is_refused() {
    for path in ["/dev/null", "/dev/zero", "/proc/self/status"] {
        let error = Snapshot::open(path).unwrap_err();
        assert!(matches!(error.reason(), SnapshotError::NotASnapshot), "{path}: {error}");
        assert_eq!(error.to_string(), format!("{path}: it is no snapshot"));
    }
    let error = Snapshot::open("/no/such/file").unwrap_err().to_string();
    assert!(error.contains("/no/such/file"), "{error}");
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    Snapshot::from_file(socket).unwrap_err();
    let write_only = File::options().write(true).open("/dev/null").unwrap();
    Snapshot::from_file(write_only).unwrap_err();
}
