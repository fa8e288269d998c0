use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ossature_bus::state::{SavedState, StateError};
use ossature_bus::{
    Access, AddressSpace, Assigned, AttachError, Attached, BusFault, DeviceError, DeviceEvent, Effect,
    InterruptRequest, Mmio, NodeHint, Placement, RangeRequest, Requires, Size, State, Syscall, Trigger,
    VmRequest,
};
use ossature_memory::RamConfig;

use super::*;
use crate::Hypervisor;
use crate::scripted::{Script, Scripted};

const PORT: u16 = 0x80;

/// A device with one port: what is written to it is what it asks of the machine. It counts its life's steps.
#[derive(Clone, Default)]
struct Probe {
    id: &'static str,
    counts: Arc<[AtomicU32; 3]>,
    assigned: Arc<Mutex<Option<Assigned>>>,
    refuses: Option<&'static str>,
    extra_port: bool,
}

const QUIESCED: usize = 0;
const RESUMED: usize = 1;
const READS: usize = 2;

impl Probe {
    fn named(id: &'static str) -> Self {
        Self { id, ..Self::default() }
    }

    fn count(&self, what: usize) -> u32 {
        self.counts[what].load(Ordering::SeqCst)
    }

    fn add(&self, what: usize) {
        self.counts[what].fetch_add(1, Ordering::SeqCst);
    }

    fn step(&self, what: usize, name: &str) -> Result<(), DeviceError> {
        self.add(what);
        match self.refuses {
            Some(step) if step == name => Err(DeviceError { reason: format!("no {name}"), source: None }),
            _ => Ok(()),
        }
    }
}

impl Mmio for Probe {
    fn read(&self, _: Access) -> Result<u64, BusFault> {
        self.add(READS);
        Ok(7)
    }

    fn write(&self, _: Access, value: u64) -> Result<Effect, BusFault> {
        Ok(match value {
            0 => Effect::Vm(VmRequest::Shutdown),
            1 => Effect::Vm(VmRequest::Reset),
            2 => Effect::Vm(VmRequest::GuestPanic),
            3 => {
                let assigned = self.assigned.lock().unwrap();
                let events = &assigned.as_ref().unwrap().events;
                events.report(DeviceEvent::HostError { reason: "the disk is gone".to_owned() });
                Effect::None
            }
            _ => panic!("a bug in a device"),
        })
    }
}

impl Device for Probe {
    fn id(&self) -> &str {
        self.id
    }

    fn requires(&self) -> Requires {
        let range = RangeRequest {
            space: AddressSpace::Pio,
            size: 1,
            align: 1,
            placement: Placement::Fixed(PORT.into()),
        };
        let interrupt = InterruptRequest { placement: Placement::Fixed(5), trigger: Trigger::Edge };
        Requires { ranges: vec![range], interrupts: vec![interrupt], ..Requires::default() }
    }

    fn attach(&mut self, assigned: Assigned) -> Result<Attached, AttachError> {
        if self.refuses == Some("attach") {
            let source = Some(io::ErrorKind::NotFound.into());
            return Err(AttachError { reason: "its cable is missing".to_owned(), source });
        }
        *self.assigned.lock().unwrap() = Some(assigned);
        let port: Arc<dyn Mmio> = Arc::new(self.clone());
        let ports = vec![port; if self.extra_port { 2 } else { 1 }];
        Ok(Attached { ports, node: NodeHint::Hidden })
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.step(QUIESCED, "quiesce")
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.step(RESUMED, "resume")
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn state(&self) -> State {
        State::Stateless
    }

    fn restore(&mut self, _: &SavedState<'_>) -> Result<(), StateError> {
        Err(StateError::Unsupported { reason: "a probe" })
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        visitor.counter("reads", self.count(READS).into());
    }
}

fn machine(scripts: Vec<Script>, probe: &Probe) -> Machine {
    Machine::builder("test")
        .cpus(scripts.len() as u32)
        .memory(RamConfig::new(1 << 20))
        .device(probe.clone())
        .build(&Scripted::new(scripts))
        .unwrap()
}

fn ask(value: u64) -> Script {
    Script::new().pio_expect(PORT, Size::B1, 7).pio_write(PORT, Size::B1, value)
}

fn events(machine: &Machine) -> Vec<MachineEvent> {
    let stream = machine.events();
    std::iter::from_fn(|| stream.try_next()).collect()
}

#[test]
fn a_guest_that_powers_off_stops_every_vcpu() {
    let probe = Probe::named("probe");
    let mut machine = machine(vec![ask(0), Script::new(), Script::new()], &probe);
    assert_eq!(machine.state(), LifecycleState::Created);
    machine.start().unwrap();
    assert!(matches!(machine.wait().unwrap(), Outcome::Shutdown));
    assert_eq!(machine.state(), LifecycleState::Stopped);
    assert_eq!(events(&machine), [MachineEvent::Started, MachineEvent::Shutdown]);
    assert_eq!(probe.count(QUIESCED), 1, "what devices had begun is finished when wait returns");
    let mut metrics = Vec::new();
    machine.metrics(&mut |scope, name, value| metrics.push((scope.to_owned(), name.to_owned(), value)));
    assert_eq!(metrics, [("probe".to_owned(), "reads".to_owned(), 1)]);
}

#[test]
fn phases_follow_each_other_up_to_the_first_run() {
    let probe = Probe::named("probe");
    let mut machine = machine(vec![ask(0), Script::new()], &probe);
    assert!(machine.first_runs().is_empty());
    machine.start().unwrap();
    machine.wait().unwrap();
    let names: Vec<_> = machine.phases().iter().map(|phase| phase.name).collect();
    assert_eq!(names, ["layout", "memory", "vm", "devices", "payload", "vcpus", "start"]);
    assert!(machine.phases().windows(2).all(|two| two[0].end <= two[1].start));
    let start = machine.phases().last().unwrap().start;
    let runs = machine.first_runs();
    assert_eq!(runs.len(), 2);
    assert!(runs[0].is_some_and(|run| run >= start));
    assert!(runs[1].is_none_or(|run| run >= start), "it may have been stopped before");
}

#[test]
fn each_end_is_told_apart() {
    let probe = Probe::named("probe");
    let mut reset = machine(vec![ask(1)], &probe);
    reset.start().unwrap();
    assert!(matches!(reset.wait().unwrap(), Outcome::Reset));

    let mut panicked = machine(vec![ask(2).pio_write(PORT, Size::B1, 1)], &probe);
    panicked.start().unwrap();
    assert!(matches!(panicked.wait().unwrap(), Outcome::Reset));
    assert!(panicked.guest_panicked());
    assert_eq!(events(&panicked), [MachineEvent::Started, MachineEvent::GuestPanic, MachineEvent::Reset]);

    let mut crashed = machine(vec![Script::new().triple_fault()], &probe);
    crashed.start().unwrap();
    let Outcome::Crashed(error) = crashed.wait().unwrap() else { panic!("not a crash") };
    assert!(error.to_string().starts_with("vCPU 0: triple fault"), "{error}");

    let mut unexpected = machine(vec![Script::new().pio_expect(PORT, Size::B1, 8)], &probe);
    unexpected.start().unwrap();
    let Outcome::Crashed(error) = unexpected.wait().unwrap() else { panic!("not a crash") };
    assert!(error.to_string().contains("step 0"), "{error}");

    let mut buggy = machine(vec![ask(99), Script::new()], &probe);
    buggy.start().unwrap();
    assert!(matches!(buggy.wait().unwrap(), Outcome::ThreadPanicked));
}

#[test]
fn a_device_reports_into_the_event_stream() {
    let mut machine = machine(vec![ask(3).pio_write(PORT, Size::B1, 0)], &Probe::named("disk"));
    machine.start().unwrap();
    machine.wait().unwrap();
    let event = DeviceEvent::HostError { reason: "the disk is gone".to_owned() };
    assert!(events(&machine).contains(&MachineEvent::Device { id: "disk".to_owned(), event }));
}

#[test]
fn pause_stops_vcpus_then_devices_and_resume_starts_them_again() {
    let probe = Probe::named("probe");
    let mut machine = machine(vec![Script::new(), Script::new()], &probe);
    machine.start().unwrap();
    for round in 1..=20 {
        let paused = machine.pause().unwrap();
        assert_eq!(paused.state(), LifecycleState::Paused);
        assert_eq!((probe.count(QUIESCED), probe.count(RESUMED)), (round, round - 1));
        if round % 2 == 0 {
            paused.resume().unwrap();
        }
        // Else the guard goes out of scope.
    }
    assert_eq!(machine.state(), LifecycleState::Running);
    assert_eq!(probe.count(RESUMED), 20);

    machine.pause().unwrap().keep();
    assert_eq!(machine.state(), LifecycleState::Paused);
    machine.resume().unwrap();
    assert!(matches!(machine.stop().unwrap(), Outcome::Stopped));
}

#[test]
fn every_call_that_does_not_fit_the_state_is_refused_by_name() {
    let refused = |result: Result<(), LifecycleError>, text: &str| match result {
        Err(error @ LifecycleError::Illegal { .. }) => assert_eq!(error.to_string(), text),
        other => panic!("{text}: {other:?}"),
    };
    let mut machine = machine(vec![Script::new()], &Probe::named("probe"));
    refused(machine.pause().map(drop), "cannot pause a machine that is created");
    refused(machine.resume(), "cannot resume a machine that is created");
    refused(machine.wait().map(drop), "cannot wait for a machine that is created");
    machine.start().unwrap();
    refused(machine.start(), "cannot start a machine that is running");
    refused(machine.resume(), "cannot resume a machine that is running");
    machine.pause().unwrap().keep();
    refused(machine.start(), "cannot start a machine that is paused");
    refused(machine.pause().map(drop), "cannot pause a machine that is paused");
    refused(machine.wait().map(drop), "cannot wait for a machine that is paused");
    machine.stop().unwrap();
    refused(machine.start(), "cannot start a machine that is stopped");
    refused(machine.pause().map(drop), "cannot pause a machine that is stopped");
    refused(machine.resume(), "cannot resume a machine that is stopped");
    assert!(matches!(machine.wait().unwrap(), Outcome::Stopped), "waiting again tells the same");
    assert!(matches!(machine.stop().unwrap(), Outcome::Stopped), "and so does stopping");
}

#[test]
fn a_machine_that_never_started_stops() {
    let mut machine = machine(vec![Script::new()], &Probe::named("probe"));
    assert!(matches!(machine.stop().unwrap(), Outcome::Stopped));
    assert_eq!(machine.state(), LifecycleState::Stopped);
}

#[test]
fn a_handle_of_the_builder_stops_the_machine_before_it_has_started() {
    let builder = Machine::builder("test").memory(RamConfig::new(1 << 20));
    let handle = builder.handle();
    let mut machine = builder.build(&Scripted::new([Script::new()])).unwrap();
    handle.stop();
    let error = machine.start().unwrap_err();
    assert!(matches!(error, LifecycleError::Illegal { state: LifecycleState::Stopped, .. }), "{error}");
    assert!(matches!(machine.wait().unwrap(), Outcome::Stopped));
}

#[test]
fn who_ends_a_machine_that_is_about_to_name_its_vcpus_ends_them_too() {
    let shared = Arc::new(Shared::new());
    shared.end(Outcome::Stopped);
    let vm = Scripted::new([Script::new()]).create_vm(&crate::VmConfig::default()).unwrap();
    let [pio, mmio] =
        [AddressSpace::Pio, AddressSpace::Mmio].map(|space| ossature_bus::Bus::new(space).cursor());
    let vcpu = vm.create_vcpu(0, crate::Buses { pio, mmio }).unwrap();
    let mailbox = Arc::new(Mailbox::new());
    shared.set_peers(vec![Peer { mailbox: Arc::clone(&mailbox), kicker: vcpu.kicker() }]);
    // A vCPU without an order to stop would run its empty script for ever.
    vcpu_thread::spawn("test", 0, vcpu, mailbox, shared).unwrap().join().unwrap();
}

#[test]
fn a_handle_stops_a_machine_that_is_waited_for() {
    let mut machine = machine(vec![Script::new()], &Probe::named("probe"));
    machine.start().unwrap();
    let handle = machine.handle();
    assert!(handle.outcome().is_none());
    let stopper = std::thread::spawn(move || handle.stop());
    assert!(matches!(machine.wait().unwrap(), Outcome::Stopped));
    stopper.join().unwrap();
}

#[test]
fn a_device_that_cannot_quiesce_leaves_the_machine_running() {
    let probe = Probe { refuses: Some("quiesce"), ..Probe::named("stubborn") };
    let mut machine = machine(vec![Script::new()], &probe);
    machine.start().unwrap();
    let error = machine.pause().unwrap_err();
    assert_eq!(error.to_string(), "device \"stubborn\": no quiesce");
    assert_eq!(machine.state(), LifecycleState::Running);
    assert_eq!(probe.count(RESUMED), 1);
}

#[test]
fn a_dropped_machine_stops() {
    let probe = Probe::named("probe");
    let mut machine = machine(vec![Script::new()], &probe);
    machine.start().unwrap();
    let stream = machine.events();
    drop(machine);
    assert_eq!(stream.next_timeout(Duration::ZERO), Some(MachineEvent::Started));
    assert_eq!(stream.next_timeout(Duration::ZERO), Some(MachineEvent::Stopped));
    assert_eq!(probe.count(QUIESCED), 1);
}

#[test]
fn a_wrong_configuration_is_told_in_full() {
    let build = |builder: MachineBuilder| builder.build(&Scripted::new([Script::new()])).unwrap_err();
    let errors = build(
        Machine::builder("wrong")
            .cpus(0)
            .memory(RamConfig::new(0))
            .device(Probe::named("twin"))
            .device(Probe::named("twin"))
            .device(Probe::named("")),
    );
    let text = errors.to_string();
    for part in [
        "cpus: 0 asked for; a machine has at least 1",
        "device id \"twin\" is used twice; give each device a unique id",
        "device 2: its id is empty; give each device a unique id",
        "ports: twin at 0x80+0x1 overlaps twin at 0x80+0x1",
        "memory: guest memory must be larger than 0 bytes",
    ] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }

    let refuses =
        build(Machine::builder("x").device(Probe { refuses: Some("attach"), ..Probe::named("net0") }));
    assert_eq!(refuses.to_string(), "device \"net0\" cannot be attached: its cable is missing");
    let ports = build(Machine::builder("x").device(Probe { extra_port: true, ..Probe::named("odd") }));
    assert_eq!(ports.to_string(), "device \"odd\" asked for 1 ranges and answers 2");
    let payload = build(Machine::builder("x").payload(Linux::new("/no/such/kernel")));
    assert!(payload.to_string().starts_with("kernel /no/such/kernel: No such file"), "{payload}");
}

#[test]
fn d3_a_machine_that_ends_while_it_is_paused_stays_ended() {
    for _ in 0..50 {
        let mut machine = machine(vec![ask(0), Script::new()], &Probe::named("probe"));
        machine.start().unwrap();
        // The guest powers off at any moment of this.
        match machine.pause() {
            Ok(paused) => drop(paused),
            Err(LifecycleError::Illegal { state: LifecycleState::Stopped, .. }) => {}
            Err(other) => panic!("{other}"),
        }
        assert!(matches!(machine.wait().unwrap(), Outcome::Shutdown));
    }
}
