//! Forks on the host's KVM: a thousand clones of one machine, each with an identity of its own, or none at all.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, too, may panic

mod board;
mod taken;

use std::error::Error;
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use board::{Part, alone, guest, number, until};
use ossature_bus::{Access, BusFault, Device, Effect, Mmio, RegistersRequest, Requires};
use ossature_core::Kvm;
use ossature_core::machine::{ForkError, ForkPlan, GuestClock, Holder, Machine, Snapshot, Template};
use ossature_legacy::{FwCfg, GenerationId, VmGenId};
use ossature_memory::vm_memory::GuestAddress;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use taken::{given_back, taken};

/// What the parent reads instead of a number.
const PARENT: u64 = 0xffff;
/// Where the guest keeps the number, and counts how often it has read one.
const NUMBER: u64 = 0x4000;
const ROUNDS: u64 = 0x4004;

/// Says its number for as long as that is the parent's.
const GUEST: &[u8] = &[
    0xba, 0x80, 0x00, // mov dx, 0x80
    0xed, // L: in ax, dx
    0xa3, 0x00, 0x40, // mov [0x4000], ax
    0xff, 0x06, 0x04, 0x40, // inc word [0x4004]
    0xef, // out dx, ax
    0x3d, 0xff, 0xff, // cmp ax, 0xffff
    0x74, 0xf2, // je L
    0xf4, // hlt
];

/// Tells the guest its number, and keeps what the guest says.
struct Teller {
    number: u64,
    said: Arc<AtomicU64>,
}

impl Mmio for Teller {
    fn read(&self, _: Access) -> Result<u64, BusFault> {
        Ok(self.number)
    }

    fn write(&self, _: Access, value: u64) -> Result<Effect, BusFault> {
        // A child may have to say first what its parent had just read.
        if value == self.number {
            self.said.fetch_add(value + 1, Ordering::Relaxed);
        }
        Ok(Effect::None)
    }
}

type Made = Result<Vec<Box<dyn Device>>, Box<dyn Error + Send + Sync>>;

/// The sum of all that guests have said, and 1 each time.
type Said = Arc<AtomicU64>;

fn teller(number: u64, said: &Said) -> Box<dyn Device> {
    let port = Requires::new().registers(RegistersRequest::ports("port", 2).fixed(0x80));
    let said = Arc::clone(said);
    Box::new(Part::new("teller", port, move |_| Teller { number, said: Arc::clone(&said) }))
}

fn devices(number: u64, said: &Said) -> Made {
    let generation = VmGenId::new("generation", GenerationId::random()?);
    let files = FwCfg::new("fw-cfg").file("opt/org.example/hostname", format!("clone-{number}"))?;
    Ok(vec![teller(number, said), Box::new(generation), Box::new(files)])
}

fn parent() -> Machine {
    let machine = guest("parent", &[(0x1000, GUEST)]).devices(devices(PARENT, &Said::default()).unwrap());
    let machine = machine.build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    until(&machine, "the guest runs", || number(&machine, ROUNDS) > 3);
    machine
}

/// The sum of what so many children from `first` on say.
fn sum(first: u64, children: u64) -> u64 {
    (first..first + children).map(|child| child + 1).sum()
}

fn all_have_spoken(children: &[Machine], first: u64, said: &Said) {
    for (child, machine) in (first..).zip(children) {
        until(machine, "a child has its number", || u64::from(number(machine, NUMBER)) & 0xffff == child);
    }
    let last = children.last().unwrap();
    let expected = sum(first, children.len() as u64);
    until(last, "all children speak", || said.load(Ordering::Relaxed) == expected);
}

#[test]
fn a_thousand_forks_of_a_machine_run_and_leave_nothing() {
    let _alone = alone();
    let open_files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: open_files.maximum, ..open_files }).unwrap();
    let kvm = Kvm::open().unwrap();
    let parent = parent();
    let template = parent.template().unwrap();
    // The parent goes on, and is not in the way of a thousand others.
    let rounds = number(&parent, ROUNDS) & 0xffff;
    until(&parent, "the parent goes on", || number(&parent, ROUNDS) & 0xffff != rounds);
    parent.pause().unwrap().keep();
    let before = taken();
    for (first, children) in [(0, 16), (16, 1000)] {
        let said = Said::default();
        let plan = ForkPlan::new(children, GuestClock::Continue, |child| devices(child, &said));
        let start = Instant::now();
        let machines = template.fork(&kvm, &plan).unwrap();
        let took = start.elapsed();
        all_have_spoken(&machines, first, &said);
        let usages = machines.iter().map(|machine| machine.memory_usage().unwrap());
        let unique: Vec<_> = usages.map(|usage| usage.unique).collect();
        let each = unique.iter().sum::<u64>() / children;
        println!("{children} forks: {:?} each, {each} bytes of guest memory each", took / children as u32);
        // A page with what it wrote, in a machine of half a MiB.
        assert!(unique.iter().all(|unique| (4096..=64 << 10).contains(unique)), "{unique:?}");
        drop(machines);
        given_back(before);
    }
    assert_eq!(number(&parent, NUMBER) & 0xffff, PARENT as u32, "no child writes to its parent");
    parent.resume().unwrap();
    let rounds = number(&parent, ROUNDS) & 0xffff;
    until(&parent, "the parent goes on", || number(&parent, ROUNDS) & 0xffff != rounds);
}

/// Sets an MSR (`IA32_SYSENTER_CS`) before it becomes many, and reads it afterwards.
const KEEPS_AN_MSR: &[u8] = &[
    0x66, 0xb9, 0x74, 0x01, 0x00, 0x00, // mov ecx, 0x174
    0x66, 0xb8, 0xef, 0xbe, 0x00, 0x00, // mov eax, 0xbeef
    0x66, 0x31, 0xd2, // xor edx, edx
    0x0f, 0x30, // wrmsr
    0xba, 0x80, 0x00, // mov dx, 0x80
    0xed, // L: in ax, dx
    0xa3, 0x00, 0x40, // mov [0x4000], ax
    0xff, 0x06, 0x04, 0x40, // inc word [0x4004]
    0x3d, 0xff, 0xff, // cmp ax, 0xffff
    0x74, 0xf3, // je L
    0x0f, 0x32, // rdmsr
    0x66, 0xa3, 0x10, 0x40, // mov [0x4010], eax
    0xf4, // hlt
];

#[test]
fn each_child_has_the_msrs_of_its_parent() {
    let _alone = alone();
    let (kvm, said) = (Kvm::open().unwrap(), Said::default());
    let parent = guest("parent", &[(0x1000, KEEPS_AN_MSR)]).devices(devices(PARENT, &said).unwrap());
    let parent = parent.build(&kvm).unwrap();
    parent.start().unwrap();
    until(&parent, "the guest runs", || number(&parent, ROUNDS) > 3);
    let template = parent.template().unwrap();
    for clock in [GuestClock::Continue, GuestClock::CatchUp] {
        let plan = ForkPlan::new(2, clock, |child| devices(child, &said));
        for child in template.fork(&kvm, &plan).unwrap() {
            until(&child, "a child has read it", || number(&child, 0x4010) == 0xbeef);
        }
    }
}

#[test]
fn a_device_of_any_child_is_replaced_by_one_that_asks_for_the_same() {
    let _alone = alone();
    let anywhere = || -> Box<dyn Device> {
        let page = Requires::new().registers(RegistersRequest::memory("page", 0x1000));
        Box::new(Part::new("anywhere", page, |_| Teller { number: 0, said: Said::default() }))
    };
    let parent = guest("parent", &[(0x1000, GUEST)]).devices(devices(PARENT, &Said::default()).unwrap());
    let kvm = Kvm::open().unwrap();
    let parent = parent.device(anywhere()).build(&kvm).unwrap();
    parent.start().unwrap();
    let template = parent.template().unwrap();
    let plan = ForkPlan::new(2, GuestClock::Continue, |child| {
        let mut made = devices(child, &Said::default())?;
        made.push(anywhere());
        Ok(made)
    });
    let children = template.fork(&kvm, &plan).unwrap();
    for machine in children.iter().chain([&parent]) {
        machine.replace_device(anywhere()).unwrap();
    }
}

#[test]
fn no_child_sees_what_another_one_or_the_parent_writes() {
    let _alone = alone();
    let parent = parent();
    let mark = |machine: &Machine, value: u32| {
        machine.ram().dma().write_obj(GuestAddress(0x5000), value).unwrap();
    };
    mark(&parent, 1);
    let said = Said::default();
    let plan = ForkPlan::new(2, GuestClock::Continue, |child| devices(child, &said));
    let children = parent.fork(&Kvm::open().unwrap(), &plan).unwrap();
    mark(&parent, 2);
    mark(&children[0], 3);
    let seen = [&parent, &children[0], &children[1]].map(|machine| number(machine, 0x5000));
    assert_eq!(seen, [2, 3, 1]);
    all_have_spoken(&children, 0, &said);
    let usage = children[1].memory_usage().unwrap();
    assert!(usage.unique > 0 && usage.shared > 0 && usage.reclaimable == 0, "{usage:?}");
}

#[test]
fn forks_of_the_same_machine_and_of_its_children_know_each_other() {
    let _alone = alone();
    let (kvm, parent, said) = (Kvm::open().unwrap(), parent(), Said::default());
    let plan = ForkPlan::new(1, GuestClock::Continue, |child| devices(child, &said));
    let first = parent.fork(&kvm, &plan).unwrap();
    let second = parent.fork(&kvm, &plan).unwrap();
    until(&second[0], "a second child has its number", || number(&second[0], NUMBER) & 0xffff == 1);
    let third = first[0].fork(&kvm, &plan).unwrap();
    // Named like the second, which is a child of the first's parent.
    let plan = ForkPlan::new(1, GuestClock::Continue, |_| devices(1, &said));
    let error = third[0].fork(&kvm, &plan).unwrap_err();
    let expected = r#"child 3: device "fw-cfg": its contents of all files is child 1's too"#;
    assert_eq!(error.to_string(), expected);
    // Who is gone has nothing.
    drop(second);
    assert_eq!(third[0].fork(&kvm, &plan).unwrap().len(), 1);
}

#[test]
fn a_parent_that_runs_is_copied_while_it_runs() {
    let _alone = alone();
    let (kvm, parent) = (Kvm::open().unwrap(), parent());
    parent.ram().dma().write_obj(GuestAddress(0x5000), 7).unwrap();
    let before = taken();
    let (template, cost) = parent.template_live().unwrap();
    assert!(cost.paused <= cost.protected, "{cost:?}");
    parent.ram().dma().write_obj(GuestAddress(0x5000), 8).unwrap();
    let rounds = number(&parent, ROUNDS) & 0xffff;
    until(&parent, "the parent goes on", || number(&parent, ROUNDS) & 0xffff != rounds);

    let said = Said::default();
    let plan = ForkPlan::new(4, GuestClock::Continue, |child| devices(child, &said));
    let children = template.fork(&kvm, &plan).unwrap();
    all_have_spoken(&children, 0, &said);
    assert!(children.iter().all(|child| number(child, 0x5000) == 7));
    // The parent's name is taken, as with any template.
    let plan = ForkPlan::new(1, GuestClock::Continue, |_| devices(PARENT, &said));
    assert!(matches!(
        template.fork(&kvm, &plan),
        Err(ForkError::SameIdentity { holder: Holder::Parent, .. })
    ));
    // A child's memory is mapped from the template, but for what it has written.
    children[0].ram().dma().write_obj(GuestAddress(0x6000), 9).unwrap();
    let (own, _) = children[0].template_live().unwrap();
    children[0].ram().dma().write_obj(GuestAddress(0x6000), 10).unwrap();
    let plan = ForkPlan::new(1, GuestClock::Continue, |child| devices(child, &said));
    let grandchildren = own.fork(&kvm, &plan).unwrap();
    assert_eq!([0x5000, 0x6000].map(|at| number(&grandchildren[0], at)), [7, 9]);
    drop((grandchildren, own, children, template));
    given_back(before);

    let (template, _) = parent.template_live().unwrap();
    parent.stop().unwrap();
    assert!(parent.template_live().is_err());
    drop(parent);
    let plan = ForkPlan::new(2, GuestClock::Continue, |child| devices(child, &said));
    assert_eq!(template.fork(&kvm, &plan).unwrap().len(), 2);
}

/// The errors of forks of a machine whose third child is made by `third`.
fn refused(template: &Template, third: impl Fn(u64) -> Made + Send + Sync) -> ForkError {
    let before = taken();
    let said = Said::default();
    // Numbers go on from fork to fork.
    let plan = ForkPlan::new(5, GuestClock::Continue, |child| match child % 5 {
        3 => third(child),
        _ => devices(child, &said),
    });
    let error = template.fork(&Kvm::open().unwrap(), &plan).unwrap_err();
    given_back(before);
    assert_eq!(said.load(Ordering::Relaxed), 0, "no child has run: {error}");
    error
}

#[test]
fn a_fork_that_fails_names_the_child_and_leaves_nothing() {
    let _alone = alone();
    let kvm = Kvm::open().unwrap();
    let parent = parent();
    let own = parent.template().unwrap();
    parent.pause().unwrap().keep();
    let said = Said::default();
    let none = ForkPlan::new(0, GuestClock::Continue, |child| devices(child, &said));
    assert!(matches!(own.fork(&kvm, &none), Err(ForkError::NoChildren)));

    let error = refused(&own, |_| Err("no more names".into()));
    assert_eq!(error.to_string(), "child 3: its devices: no more names");
    let error = refused(&own, |_| panic!("out of names"));
    assert_eq!(error.to_string(), "child 8: making its devices panicked: out of names");
    let error = refused(&own, |child| devices(child - 1, &Said::default()));
    let expected = r#"child 13: device "fw-cfg": its contents of all files is child 12's too"#;
    assert_eq!(error.to_string(), expected);
    let error = refused(&own, |_| devices(PARENT, &Said::default()));
    let Err(ForkError::SameIdentity { child: 18, holder: Holder::Parent, .. }) = Err::<(), _>(error) else {
        panic!("the parent's files");
    };
    // A device too few, and one too many.
    let error = refused(&own, |child| Ok(devices(child, &Said::default())?.drain(..2).collect()));
    assert!(error.to_string().starts_with("child 23: snapshot: it has the devices"), "{error}");
    let error = refused(&own, |child| {
        let mut devices = devices(child, &Said::default())?;
        devices.push(Box::new(FwCfg::new("another")));
        Ok(devices)
    });
    assert!(error.to_string().contains("another"), "{error}");
    // One that asks for other things than that of the parent and of the children before.
    let error = refused(&own, |child| {
        let mut devices = devices(child, &Said::default())?;
        let ports = Requires::new().registers(RegistersRequest::ports("port", 2).fixed(0x84));
        devices[0] = Box::new(Part::new("teller", ports, |_| Teller { number: 0, said: Said::default() }));
        Ok(devices)
    });
    assert!(error.to_string().starts_with("child 33: ") && error.to_string().contains("teller"), "{error}");

    // A parent that has gone leaves its template; one that was stopped has none.
    let template = parent.template().unwrap();
    parent.stop().unwrap();
    let plan = ForkPlan::new(3, GuestClock::Continue, |child| devices(child, &said));
    assert!(matches!(parent.fork(&kvm, &plan), Err(ForkError::Parent(_))));
    drop(parent);
    let children = template.fork(&kvm, &plan).unwrap();
    all_have_spoken(&children, 35, &said);
    // Names are free again when their machines are gone.
    let again = ForkPlan::new(1, GuestClock::Continue, |_| devices(36, &said));
    assert!(matches!(
        template.fork(&kvm, &again),
        Err(ForkError::SameIdentity { holder: Holder::Child(36), .. })
    ));
    drop(children);
    template.fork(&kvm, &again).unwrap();
}

#[test]
fn a_machine_without_a_generation_id_is_not_forked() {
    let _alone = alone();
    let kvm = Kvm::open().unwrap();
    let machine = guest("parent", &[(0x1000, GUEST)]).devices([teller(PARENT, &Said::default())]);
    let machine = machine.build(&kvm).unwrap();
    machine.start().unwrap();
    let plan = ForkPlan::new(2, GuestClock::Continue, |child| Ok(vec![teller(child, &Said::default())]));
    let error = machine.fork(&kvm, &plan).unwrap_err();
    assert!(matches!(error, ForkError::NoGeneration { child: 0 }), "{error}");
    assert!(error.to_string().contains("VmGenId"), "{error}");
}

#[test]
fn forks_without_enough_descriptors_leave_nothing() {
    let _alone = alone();
    let parent = parent();
    let template = parent.template().unwrap();
    parent.pause().unwrap().keep();
    let kvm = Kvm::open().unwrap();
    let before = taken();
    let limit = getrlimit(Resource::Nofile);
    let said = Said::default();
    let mut failures = 0;
    // Whichever call it is that gets none.
    for more in 0..30 {
        setrlimit(Resource::Nofile, Rlimit { current: Some(before.0 as u64 + more), ..limit }).unwrap();
        let plan = ForkPlan::new(3, GuestClock::Continue, |child| devices(child, &said));
        let forked = template.fork(&kvm, &plan);
        setrlimit(Resource::Nofile, limit).unwrap();
        match forked {
            Ok(children) => drop(children),
            Err(ForkError::Build { .. } | ForkError::Start { .. } | ForkError::Devices { .. }) => {
                failures += 1
            }
            Err(other) => panic!("{other}"),
        }
        given_back(before);
    }
    assert!((3..30).contains(&failures), "{failures}");
    parent.resume().unwrap();
}

/// In a process that has a template as its standard input: forks it.
#[test]
fn another_process_forks_a_template() {
    const ASKED: &str = "OSSATURE_TEST_FORKS_ITS_INPUT";
    if std::env::var_os(ASKED).is_some() {
        let file = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
        let template = Template::new(Snapshot::from_file(file).unwrap()).unwrap();
        let said = Said::default();
        let plan = ForkPlan::new(4, GuestClock::Continue, |child| devices(child, &said));
        let children = template.fork(&Kvm::open().unwrap(), &plan).unwrap();
        all_have_spoken(&children, 0, &said);
        return;
    }
    let _alone = alone();
    let parent = parent();
    let template = parent.template().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "another_process_forks_a_template"])
        .env(ASKED, "1")
        .stdin(Stdio::from(template.as_fd().try_clone_to_owned().unwrap()))
        .output()
        .unwrap();
    let out = String::from_utf8_lossy(&child.stdout);
    assert!(child.status.success() && out.contains("1 passed"), "{out}");
    assert_eq!(parent.outcome(), None);
}

/// Nanoseconds of the guest's clock.
fn clock(machine: &Machine) -> u64 {
    const KVM_GET_CLOCK: libc::c_ulong = 0x8030_ae7c;
    let vm = machine.vm_descriptor().unwrap().unwrap();
    let mut data = kvm_bindings::kvm_clock_data::default();
    // SAFETY: the kernel writes the struct whose size is in the request.
    assert_eq!(unsafe { libc::ioctl(vm.as_raw_fd(), KVM_GET_CLOCK, &raw mut data) }, 0);
    data.clock
}

#[test]
fn a_clock_goes_on_where_it_was_or_catches_up() {
    const APART: Duration = Duration::from_secs(2);
    let _alone = alone();
    let kvm = Kvm::open().unwrap();
    let parent = parent();
    let earliest = clock(&parent);
    let template = parent.template().unwrap();
    let latest = clock(&parent);
    let waits = Instant::now();
    until(&parent, "some time is over", || waits.elapsed() > APART);
    let said = Said::default();
    let [behind, right] = [GuestClock::Continue, GuestClock::CatchUp].map(|policy| {
        let plan = ForkPlan::new(1, policy, |child| devices(child, &said));
        let start = Instant::now();
        let children = template.fork(&kvm, &plan).unwrap();
        // Less what may have passed since it was set.
        clock(&children[0]).saturating_sub(start.elapsed().as_nanos() as u64)
    });
    let apart = APART.as_nanos() as u64;
    assert!(behind <= latest + apart / 10, "{behind}, and the template had {latest} at most");
    assert!(right >= earliest + apart / 10 * 9, "{right}, and the template had {earliest} at least");
}
