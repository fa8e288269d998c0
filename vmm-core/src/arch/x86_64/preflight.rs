//! How fast the host's KVM runs a guest's kernel, where it may be that it emulates it.

use std::error::Error;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use ossature_bus::{AddressSpace, Bus};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Ram, RamConfig};

use super::native::cpuid;
use super::{Registers, registers::SegmentRegister};
use crate::{Buses, Hypervisor, Irqchip, Kvm, Step, VmConfig, VmError};

/// Leaf 1, ECX: VMX. Leaf 0x8000_0001, ECX: SVM.
const VMX: u32 = 1 << 5;
const SVM: u32 = 1 << 2;

/// Where the probe's page tables and its code are, in RAM of 64 KiB.
const TABLES: u64 = 0x1000;
const CODE: u64 = 0x4000;
const RAM: u64 = 0x1_0000;

/// How often the probe goes round, two instructions each time.
const ROUNDS: u32 = 1000;
/// The fastest of so many runs counts: others may have waited for a processor.
const RUNS: u32 = 3;

/// Returns true on AMD's processors, or others of their kind, that run guests.
pub(super) fn has_svm() -> bool {
    let [.., features, _] = cpuid(0x8000_0001, 0);
    features & SVM != 0
}

/// The time that an instruction of a guest's kernel takes; `None` if the processor runs guests by itself.
pub(crate) fn time_per_instruction(kvm: &Kvm) -> Result<Option<Duration>, VmError> {
    let [.., features, _] = cpuid(1, 0);
    if features & VMX != 0 || has_svm() {
        return Ok(None);
    }
    // On a thread of its own: whoever runs a vCPU has its signal mask changed.
    let fastest = thread::scope(|scope| scope.spawn(|| fastest(kvm)).join());
    let died = |_| VmError::Call { call: "KVM_RUN", source: io::Error::other("the probe panicked") };
    Ok(Some(fastest.map_err(died)?? / (2 * ROUNDS)))
}

fn fastest(kvm: &Kvm) -> Result<Duration, VmError> {
    let mut fastest = Duration::MAX;
    for _ in 0..RUNS {
        fastest = fastest.min(run(kvm)?);
    }
    Ok(fastest)
}

/// Runs the probe once in a machine of its own, in 64-bit mode as kernels run.
fn run(kvm: &Kvm) -> Result<Duration, VmError> {
    let vm = kvm.create_vm(&VmConfig::default().irqchip(Irqchip::None))?;
    let ram = Ram::new(&RamConfig::new(RAM)).map_err(no_memory)?;
    // mov ecx, ROUNDS; dec ecx; jnz to the dec; hlt
    let mut code = vec![0xb9];
    code.extend(ROUNDS.to_le_bytes());
    code.extend([0xff, 0xc9, 0x75, 0xfc, 0xf4]);
    // Each table's first entry: the next table, at last a page of 2 MiB from address 0.
    let entries = [TABLES + 0x1003, TABLES + 0x2003, 0x83].map(u64::to_le_bytes);
    let tables = [TABLES, TABLES + 0x1000, TABLES + 0x2000];
    let pieces = tables.into_iter().zip(entries.iter().map(|entry| &entry[..])).chain([(CODE, &code[..])]);
    for (address, bytes) in pieces {
        ram.dma().write(GuestAddress(address), bytes).map_err(no_memory)?;
    }
    vm.set_memory(&ram)?;
    let (ports, mmio) = (Bus::new(AddressSpace::Pio), Bus::new(AddressSpace::Mmio));
    let mut vcpu = vm.create_vcpu(0, Buses::new(ports.cursor(), mmio.cursor()))?;
    vcpu.set_registers(&start())?;
    let began = Instant::now();
    loop {
        match vcpu.run_once() {
            Ok(Step::Handled | Step::Interrupted) => {}
            Ok(Step::Halted) => return Ok(began.elapsed()),
            other => {
                let what = format!("{other:?}, where the guest halts");
                return Err(VmError::Call { call: "KVM_RUN", source: io::Error::other(what) });
            }
        }
    }
}

fn no_memory(error: impl Error + Send + Sync + 'static) -> VmError {
    VmError::Call { call: "mmap", source: io::Error::other(error) }
}

/// 64-bit mode, at the code.
fn start() -> Registers {
    let data = SegmentRegister { selector: 0x10, base: 0, limit: u32::MAX, access: 0xc093 };
    Registers {
        rip: CODE,
        cr0: 0x8001_0031, // PG, WP, NE, ET, PE
        cr3: TABLES,
        cr4: 0x20,   // PAE
        efer: 0x500, // LMA, LME
        cs: SegmentRegister { selector: 8, access: 0xa09b, ..data },
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        ..Registers::real_mode(0)
    }
}
