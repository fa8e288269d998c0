//! What a machine costs beside its guest: bytes of each queue and vCPU, nothing more after many requests and pauses,
//! and exits that are answered without any other system call.

#[path = "../benches/support/mod.rs"]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicIsize, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature::boot::Platform;
use ossature::bus::{Access, AddressSpace, Bus, BusFault, Effect, Event, Mmio};
use ossature::legacy::AcpiPower;
use ossature::memory::vm_memory::{Bytes, GuestAddress};
use ossature::memory::{GuestMmap, Ram, RamConfig};
use ossature::vmm::machine::{Machine, PayloadError};
use ossature::vmm::{Buses, Hypervisor, Kvm, Registers, Step, VmConfig, install_kick_handler};
use support::rings::{BATCH, DeviceRig, Layout as Chains, QueueRig};

/// Bytes that are allocated, and how often any were.
static LIVE: AtomicIsize = AtomicIsize::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: the system's allocator does the work; counting neither allocates nor panics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size() as isize, Ordering::Relaxed);
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promise is the system's.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test at a time: they count what the process does.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn live() -> isize {
    LIVE.load(Ordering::Relaxed)
}

/// The bytes that `work` leaves, and how often it allocates any. Up to three times, as the test's harness may allocate
/// something meanwhile, too: what work leaves, it leaves each time.
fn left_by(mut work: impl FnMut()) -> (isize, u64) {
    let mut left = (0, 0);
    for _ in 0..3 {
        let before = (live(), COUNT.load(Ordering::Relaxed));
        work();
        left = (live() - before.0, COUNT.load(Ordering::Relaxed) - before.1);
        if left == (0, 0) {
            break;
        }
    }
    left
}

/// Memory that this process alone has and has written, in KiB.
fn written() -> u64 {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find(|line| line.starts_with("Private_Dirty:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// What reading the figures may itself write, in KiB.
const SLACK: u64 = 16;

/// A machine whose vCPUs run `code` in real mode; all but the first wait to be started.
fn machine(cpus: u32, code: &'static [u8]) -> Machine {
    let payload = move |memory: &GuestMmap, _: &Platform| -> Result<Registers, PayloadError> {
        memory.write_slice(code, GuestAddress(0x1000))?;
        Ok(Registers::real_mode(0x1000))
    };
    let builder = Machine::builder("footprint").cpus(cpus).memory(RamConfig::new(1 << 20)).payload(payload);
    let machine = builder.device(AcpiPower::new("power")).build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    // Every vCPU's thread has been as far as the guest.
    while machine.first_runs().iter().any(Option::is_none) {
        std::thread::yield_now();
    }
    machine
}

/// hlt; jmp back
const HALT: &[u8] = &[0xf4, 0xeb, 0xfd];

#[test]
fn a_further_vcpu_takes_less_than_48_kib() {
    let _alone = alone();
    drop(machine(9, HALT));
    let taken = |cpus| {
        let before = written();
        let machine = machine(cpus, HALT);
        let after = written();
        drop(machine);
        after.saturating_sub(before)
    };
    // Threads that ended leave their stacks and arenas to the next ones, so that these take new ones.
    let others = machine(9, HALT);
    let (one, nine) = (taken(1), taken(9));
    drop(others);
    let each = nine.saturating_sub(one) / 8;
    println!("a machine with one vCPU: {one} KiB, with nine: {nine} KiB, each further one: {each} KiB");
    assert!(each <= 48, "{each} KiB");
}

#[test]
fn a_queue_takes_less_than_4_kib() {
    let _alone = alone();
    let mut largest = 0;
    for descriptors in [1, 3, 16] {
        let mut rig = QueueRig::new(descriptors, Chains::Direct);
        let before = live();
        let event = || Arc::new(Event::new().unwrap());
        let queue = rig.driver.queue(0, &rig.dma, &event(), &event());
        let with = live();
        rig.queue = queue; // the first one goes
        let one = with - before;
        let before = live();
        (0..10).for_each(|_| assert!(rig.batch() > 0 || descriptors == 1));
        largest = largest.max(one + live() - before);
    }
    let inline = size_of_val(&QueueRig::new(1, Chains::Direct).queue) as isize;
    println!("a queue: {inline} bytes, and {largest} bytes allocated");
    assert!(inline + largest <= 4096, "{inline} + {largest}");
}

#[test]
fn a_million_requests_leave_nothing_behind() {
    let _alone = alone();
    let mut rig = DeviceRig::blk(Chains::Direct);
    // Until the rings' 16-bit indices have wrapped, and the figures have been taken once.
    (0..3000).for_each(|_| rig.batch(0));
    written();
    let before = written();
    let left = left_by(|| (0..1_000_000 / u64::from(BATCH)).for_each(|_| rig.batch(0)));
    let after = written();
    println!("KiB written: {before} before, {after} after; bytes, allocations: {left:?}");
    assert_eq!(left, (0, 0));
    assert!(after <= before + SLACK, "{before} KiB, {after} KiB");
}

#[test]
fn ten_thousand_pauses_leave_nothing_behind() {
    let _alone = alone();
    // inc word [0x2000]; jmp to itself
    let machine = machine(2, &[0xff, 0x06, 0x00, 0x20, 0xeb, 0xfa]);
    let rounds = |n| (0..n).for_each(|_| machine.pause().unwrap().resume().unwrap());
    // Until the queue of events that nobody reads is full.
    rounds(1000);
    let before = written();
    let (bytes, _) = left_by(|| rounds(10_000));
    let after = written();
    println!("KiB written: {before} before, {after} after; bytes: {bytes}");
    assert_eq!(bytes, 0);
    assert!(after <= before + SLACK, "{before} KiB, {after} KiB");
}

/// A register that answers.
struct Number;

impl Mmio for Number {
    fn read(&self, _: Access) -> Result<u64, BusFault> {
        Ok(1)
    }

    fn write(&self, _: Access, _: u64) -> Result<Effect, BusFault> {
        Ok(Effect::None)
    }
}

/// From here on any system call of this thread but `KVM_RUN` and the end of the process ends the process.
fn only_kvm_run() {
    const KVM_RUN: u32 = 0xae80;
    let stmt = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let jump = |k: u32, jt: u8, jf: u8| libc::sock_filter {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt,
        jf,
        k,
    };
    let load = |offset: u32| stmt(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let answer = |k: u32| stmt(libc::BPF_RET | libc::BPF_K, k);
    // struct seccomp_data: the call's number at 0, its second argument at 24.
    let mut filter = [
        load(0),
        jump(libc::SYS_exit_group as u32, 3, 0),
        jump(libc::SYS_ioctl as u32, 0, 3),
        load(24),
        jump(KVM_RUN, 0, 1),
        answer(libc::SECCOMP_RET_ALLOW),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: no pointers; then the kernel copies a program that outlives the call.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &program), 0);
    }
}

const STAGE: &str = "OSSATURE_TEST_EXITS";

/// Runs `code`, whose accesses are all answered, for 1000 exits under the filter, and ends the process with 0 if all
/// went well.
fn a_thousand_exits(code: &[u8]) -> ! {
    let kick = install_kick_handler(libc::SIGRTMIN()).unwrap();
    let vm = Kvm::open().unwrap().create_vm(&VmConfig::new(1).kick(kick)).unwrap();
    let ram = Ram::new(&RamConfig::new(1 << 20)).unwrap();
    ram.dma().write(GuestAddress(0x1000), code).unwrap();
    vm.set_memory(&ram).unwrap();
    let (pio, mmio) = (Bus::new(AddressSpace::Pio), Bus::new(AddressSpace::Mmio));
    pio.insert(0x80, 1, "port", Arc::new(Number)).unwrap();
    mmio.insert(0xd000_0000, 4096, "register", Arc::new(Number)).unwrap();
    let mut vcpu = vm.create_vcpu(0, Buses::new(pio.cursor(), mmio.cursor())).unwrap();
    let mut registers = Registers::real_mode(0x1000);
    registers.fs.base = 0xd000_0000;
    vcpu.set_registers(&registers).unwrap();
    // The first entry prepares the thread for being interrupted.
    let mut exits = u32::from(matches!(vcpu.run_once(), Ok(Step::Handled)));
    let before = COUNT.load(Ordering::Relaxed);
    only_kvm_run();
    for _ in 0..1000 {
        exits += u32::from(matches!(vcpu.run_once(), Ok(Step::Handled)));
    }
    let allocations = COUNT.load(Ordering::Relaxed) - before;
    let status = if (exits, allocations) == (1001, 0) { 0 } else { 3 };
    // SAFETY: ends the process, with all that the filter forbids to give back.
    unsafe { libc::_exit(status) }
}

/// out 0x80, al; in al, 0x80; jmp back
const PIO: &[u8] = &[0xe6, 0x80, 0xe4, 0x80, 0xeb, 0xfa];
/// fs mov [0], eax; fs mov eax, [0]; jmp back
const MMIO: &[u8] = &[0x66, 0x64, 0xa3, 0x00, 0x00, 0x66, 0x64, 0xa1, 0x00, 0x00, 0xeb, 0xf4];

#[test]
fn an_exit_is_one_system_call_and_no_allocation() {
    if let Ok(stage) = std::env::var(STAGE) {
        a_thousand_exits(if stage == "pio" { PIO } else { MMIO });
    }
    let _alone = alone();
    for stage in ["pio", "mmio"] {
        let test = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "an_exit_is_one_system_call_and_no_allocation", "--nocapture"])
            .env(STAGE, stage)
            .output()
            .unwrap();
        assert!(test.status.success(), "{stage}: {test:?}");
    }
}
