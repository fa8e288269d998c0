use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ossature_bus::state::{Decoder, Encoder, Field, StateError};
use ossature_bus::{
    Access, Assigned, BusFault, Device, DeviceError, DeviceEvent, DeviceState, Effect, EventLoop, Handover,
    InterruptRequest, MessagesRequest, Metric, MetricKind, MetricVisitor, Mmio, NodeKind, RegistersRequest,
    Requires, Size, Syscall, VmRequest,
};
use ossature_memory::RamConfig;

use super::control::Shared;
use super::mailbox::Mailbox;
use super::status::Peer;
use super::vcpu_thread::VcpuThread;
use super::*;
use crate::arch::testing::registers_at;
use crate::scripted::{Script, Scripted};
use crate::{CrashReason, Hypervisor, Registers, VmError};

mod buses;
mod devices;
mod failing;
mod reset;
mod watching;

/// A device that does nothing but ask for something.
pub(super) struct Asks(pub &'static str, pub Requires);

impl Device for Asks {
    fn id(&self) -> &str {
        self.0
    }

    fn requires(&self) -> Requires {
        self.1.clone()
    }

    fn attach(&mut self, _: Assigned) -> Result<NodeKind, DeviceError> {
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
        Err(StateError::Unsupported { reason: "there is none" })
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }

    fn metrics(&self, _: &mut dyn MetricVisitor) {}
}

const PORT: u16 = 0x80;

/// A device with one port: what is written to it is what it asks of the machine. It counts its life's steps.
#[derive(Clone, Default)]
struct Probe {
    id: &'static str,
    counts: Arc<[AtomicU32; 5]>,
    assigned: Arc<Mutex<Option<Assigned>>>,
    refuses: Option<&'static str>,
    silent: bool,
    sends_messages: bool,
    /// Held by a test while the device is not to get on with its quiescing.
    gate: Arc<Mutex<()>>,
}

const QUIESCED: usize = 0;
const RESUMED: usize = 1;
const READS: usize = 2;
const RESET: usize = 3;
const DETACHED: usize = 4;

const SAVED_READS: Field = Field::new(1, "reads");

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
            Some(step) if step == name => Err(DeviceError::new(format!("no {name}"))),
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
                let events = assigned.as_ref().unwrap().events();
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
        let requires = Requires::new()
            .registers(RegistersRequest::ports("port", 1).fixed(PORT.into()))
            .interrupt(InterruptRequest::edge("irq").fixed(5));
        if self.sends_messages { requires.messages(MessagesRequest::new("messages", 2)) } else { requires }
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        if self.refuses == Some("attach") {
            return Err(DeviceError::new("its cable is missing")
                .with_source(io::Error::from(io::ErrorKind::NotFound)));
        }
        if !self.silent {
            assigned.registers("port")?.answer(Arc::new(self.clone()));
        }
        *self.assigned.lock().unwrap() = Some(assigned);
        Ok(NodeKind::Hidden)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        let step = self.step(QUIESCED, "quiesce");
        drop(self.gate.lock().unwrap());
        step
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.step(RESUMED, "resume")
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.step(RESET, "reset")
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        if self.refuses == Some("save") {
            return Ok(DeviceState::Unsupported { reason: "a stubborn probe" });
        }
        let mut fields = Encoder::new("org.example.probe", 1);
        fields.u32(SAVED_READS, self.count(READS));
        Ok(DeviceState::Saved(Handover::new(fields.finish())))
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        if self.refuses == Some("restore") {
            return Err(StateError::Unsupported { reason: "a stubborn probe" });
        }
        let mut fields = Decoder::new(&handover.state, "org.example.probe", 1..=1)?;
        let reads = fields.u32(SAVED_READS)?;
        fields.finish()?;
        self.counts[READS].store(reads, Ordering::SeqCst);
        Ok(())
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        *self.assigned.lock().unwrap() = None;
        self.step(DETACHED, "detach")
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[Syscall("write")]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        visitor.counter("reads", "Reads of the register.", self.count(READS).into());
        visitor.gauge("quiet", "1 while it is quiet.", self.count(QUIESCED).into());
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
    let mut stream = machine.events();
    std::iter::from_fn(|| stream.try_next()).collect()
}

#[test]
fn a_guest_that_powers_off_stops_every_vcpu() {
    let probe = Probe::named("probe");
    let machine = machine(vec![ask(0), Script::new(), Script::new()], &probe);
    assert_eq!(machine.state(), LifecycleState::Created);
    machine.start().unwrap();
    assert!(matches!(machine.wait().unwrap(), Outcome::Shutdown));
    assert_eq!(machine.state(), LifecycleState::Stopped);
    assert_eq!(events(&machine), [MachineEvent::Started, MachineEvent::Ended(Outcome::Shutdown)]);
    assert_eq!(probe.count(QUIESCED), 1, "what devices had begun is finished when wait returns");
    let mut metrics = Vec::new();
    machine.metrics(&mut |scope, metric, value| {
        let Metric { name, kind, help, .. } = *metric;
        metrics.push((scope.to_owned(), name.to_owned(), kind, help.to_owned(), value));
    });
    // A4: what a device says of its metrics arrives.
    let shown = |scope: &str, name: &str, kind, help: &str, value| {
        (scope.to_owned(), name.to_owned(), kind, help.to_owned(), value)
    };
    assert_eq!(metrics[0], shown("probe", "reads", MetricKind::Counter, "Reads of the register.", 1));
    assert_eq!(metrics[1], shown("probe", "quiet", MetricKind::Gauge, "1 while it is quiet.", 1));
    assert_eq!(metrics[2].1, "refused_moves");
    assert_eq!(machine.syscalls().into_iter().collect::<Vec<_>>(), [Syscall("write")]);
}

#[test]
fn phases_follow_each_other_up_to_the_first_run() {
    let probe = Probe::named("probe");
    let machine = machine(vec![ask(0), Script::new()], &probe);
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
    let reset = machine(vec![ask(1)], &probe);
    reset.start().unwrap();
    assert!(matches!(reset.wait().unwrap(), Outcome::Reset));

    let panicked = machine(vec![ask(2).pio_write(PORT, Size::B1, 1)], &probe);
    panicked.start().unwrap();
    assert!(matches!(panicked.wait().unwrap(), Outcome::Reset));
    assert!(panicked.guest_panicked());
    assert_eq!(
        events(&panicked),
        [MachineEvent::Started, MachineEvent::GuestPanic, MachineEvent::Ended(Outcome::Reset)]
    );

    let crashed = machine(vec![Script::new().triple_fault()], &probe);
    crashed.start().unwrap();
    let Outcome::Crashed(error) = crashed.wait().unwrap() else { panic!("not a crash") };
    assert!(error.to_string().starts_with("vCPU 0: triple fault"), "{error}");

    let unexpected = machine(vec![Script::new().pio_expect(PORT, Size::B1, 8)], &probe);
    unexpected.start().unwrap();
    let Outcome::Crashed(error) = unexpected.wait().unwrap() else { panic!("not a crash") };
    assert!(error.to_string().contains("step 0"), "{error}");

    let buggy = machine(vec![ask(99), Script::new()], &probe);
    buggy.start().unwrap();
    let panicked = Outcome::Panicked { part: "probe".to_owned(), message: "a bug in a device".to_owned() };
    assert_eq!(buggy.wait().unwrap(), panicked);
    assert_eq!(events(&buggy).last(), Some(&MachineEvent::Ended(panicked)));
}

#[test]
fn t6_a_triple_fault_is_a_crash_or_a_reset_as_the_caller_chooses() {
    let built = |on_reset, scripts: Vec<Script>| {
        Machine::builder("test")
            .memory(RamConfig::new(1 << 20))
            .device(Probe::named("probe"))
            .on_reset(on_reset)
            .on_triple_fault(OnTripleFault::Reset)
            .build(&Scripted::new(scripts))
            .unwrap()
    };
    let ends = built(OnReset::Stop, vec![Script::new().triple_fault()]);
    ends.start().unwrap();
    assert_eq!(ends.wait().unwrap(), Outcome::Reset);
    let told = events(&ends);
    let [MachineEvent::Started, MachineEvent::TripleFault { crash }, MachineEvent::Ended(Outcome::Reset)] =
        &told[..]
    else {
        panic!("{told:?}")
    };
    assert_eq!((crash.index, &crash.reason), (0, &CrashReason::TripleFault));
    assert!(crash.registers.is_some(), "the report stays available");

    // The same vCPU goes on after the reset.
    let again = built(OnReset::Restart, vec![Script::new().triple_fault().pio_write(PORT, Size::B1, 0)]);
    again.start().unwrap();
    assert_eq!(again.wait().unwrap(), Outcome::Shutdown);
    let told = events(&again);
    assert!(
        matches!(
            &told[..],
            [
                MachineEvent::Started,
                MachineEvent::TripleFault { .. },
                MachineEvent::Reset,
                MachineEvent::Ended(Outcome::Shutdown)
            ]
        ),
        "{told:?}"
    );
}

#[test]
fn c3_too_many_vcpus_are_refused_at_once_and_with_the_number() {
    let builder = Machine::builder("test").memory(RamConfig::new(1 << 20)).cpus(100_000);
    let errors = builder.build(&Scripted::new([])).unwrap_err();
    assert_eq!(errors.to_string(), "cpus: 100000 vCPUs are more than the 1024 that are possible here");
}

#[test]
fn c3_memory_beyond_the_guests_addresses_is_refused_with_both_numbers() {
    let build = |size, bits| {
        let scripted = Scripted::new([Script::new()]).with_address_bits(bits);
        Machine::builder("high").memory(RamConfig::new(size)).build(&scripted)
    };
    let refused = build(2 << 20, 20).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "memory: it would end at 0x200000, and guests have 20 bits of addresses on this host; give the machine less \
         of it"
    );
    assert!(build(1 << 20, 20).is_ok(), "the last byte has the last address");
}

#[test]
fn c3_a_device_whose_messages_reach_no_guest_is_refused_with_what_would_be_right() {
    let disk = || Probe { sends_messages: true, ..Probe::named("disk") };
    let build = |scripted: Scripted| {
        Machine::builder("machine").memory(RamConfig::new(1 << 20)).device(disk()).build(&scripted)
    };
    assert!(build(Scripted::new([Script::new()])).is_ok());
    let refused = build(Scripted::new([Script::new()]).without_messages()).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "device \"disk\" sends messages (MSI-X), which the interrupt controller of this host does not take; use interrupt \
         lines, as virtio-mmio does"
    );
}

#[test]
fn c3_each_error_shows_its_cause() {
    let source = || io::Error::from_raw_os_error(libc::ENOSPC);
    let cause = source().to_string();
    let shown = [
        VmError::Call { call: "KVM_RUN", source: source() }.to_string(),
        VmError::Open { path: "/dev/kvm".into(), source: source() }.to_string(),
        VmError::VcpuConfig { index: 0, source: Box::new(source()) }.to_string(),
        crate::VcpuError::Call { index: 0, call: "KVM_RUN", source: source() }.to_string(),
        BuildErrors::from(VmError::Call { call: "KVM_RUN", source: source() }).to_string(),
        LifecycleError::Device { id: "d".into(), source: DeviceError::new("no").with_source(source()) }
            .to_string(),
        BuildError::Attach { id: "d".into(), source: DeviceError::new("no").with_source(source()) }
            .to_string(),
        LifecycleError::EventLoop { source: source() }.to_string(),
    ];
    for text in shown {
        assert_eq!(text.matches(&cause).count(), 1, "{text}");
    }
}

#[test]
fn a_device_reports_into_the_event_stream() {
    let machine = machine(vec![ask(3).pio_write(PORT, Size::B1, 0)], &Probe::named("disk"));
    machine.start().unwrap();
    machine.wait().unwrap();
    let event = DeviceEvent::HostError { reason: "the disk is gone".to_owned() };
    assert!(events(&machine).contains(&MachineEvent::Device { id: "disk".to_owned(), event }));
}

#[test]
fn pause_stops_vcpus_then_devices_and_resume_starts_them_again() {
    let probe = Probe::named("probe");
    let machine = machine(vec![Script::new(), Script::new()], &probe);
    machine.start().unwrap();
    for round in 1..=20 {
        let paused = machine.pause().unwrap();
        assert_eq!(paused.state(), LifecycleState::Paused);
        assert_eq!((probe.count(QUIESCED), probe.count(RESUMED)), (round, round));
        if round % 2 == 0 {
            paused.resume().unwrap();
        }
        // Else the guard goes out of scope.
    }
    assert_eq!(machine.state(), LifecycleState::Running);
    assert_eq!(probe.count(RESUMED), 21, "the first time with the start");

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
    let machine = machine(vec![Script::new()], &Probe::named("probe"));
    refused(machine.pause().map(drop), "cannot pause a machine that is created");
    refused(machine.resume(), "cannot resume a machine that is created");
    refused(machine.wait().map(drop), "cannot wait for a machine that is created");
    machine.start().unwrap();
    refused(machine.start(), "cannot start a machine that is running");
    refused(machine.resume(), "cannot resume a machine that is running");
    machine.pause().unwrap().keep();
    refused(machine.start(), "cannot start a machine that is paused");
    refused(machine.pause().map(drop), "cannot pause a machine that is paused");
    assert_eq!(machine.wait_timeout(Duration::ZERO).unwrap(), None, "it may go on and end");
    machine.stop().unwrap();
    refused(machine.start(), "cannot start a machine that is stopped");
    refused(machine.pause().map(drop), "cannot pause a machine that is stopped");
    refused(machine.resume(), "cannot resume a machine that is stopped");
    assert!(matches!(machine.wait().unwrap(), Outcome::Stopped), "waiting again tells the same");
    assert!(matches!(machine.stop().unwrap(), Outcome::Stopped), "and so does stopping");
}

#[test]
fn a_machine_that_never_started_stops() {
    let machine = machine(vec![Script::new()], &Probe::named("probe"));
    assert!(matches!(machine.stop().unwrap(), Outcome::Stopped));
    assert_eq!(machine.state(), LifecycleState::Stopped);
}

#[test]
fn a_handle_of_the_builder_stops_the_machine_before_it_has_started() {
    let builder = Machine::builder("test").memory(RamConfig::new(1 << 20));
    let handle = builder.handle();
    let machine = builder.build(&Scripted::new([Script::new()])).unwrap();
    handle.stop();
    let error = machine.start().unwrap_err();
    assert!(matches!(error, LifecycleError::Illegal { state: LifecycleState::Stopped, .. }), "{error}");
    assert!(matches!(machine.wait().unwrap(), Outcome::Stopped));
}

#[test]
fn a_machine_that_ends_before_it_knows_its_vcpus_ends_them_too() {
    let shared = Arc::new(Shared::new());
    let status = Arc::clone(&shared.status);
    status.end(Outcome::Stopped);
    let vm = Arc::from(Scripted::new([Script::new()]).create_vm(&crate::VmConfig::default()).unwrap());
    let ram = Arc::new(Ram::new(&RamConfig::new(1 << 20)).unwrap());
    let board = Arc::new(board::Board::new(vm, ram, false, Arc::clone(&status)).unwrap());
    let vcpu = board.vm().create_vcpu(0, board.buses()).unwrap();
    let mailbox = Arc::new(Mailbox::new());
    status.set_peers(vec![Peer { mailbox: Arc::clone(&mailbox), kicker: vcpu.kicker() }]);
    // A vCPU without an order to stop would run its empty script for ever.
    let thread = VcpuThread { index: 0, mailbox, status, board, on_start: None };
    thread.spawn("test", vcpu).unwrap().join().unwrap();
}

#[test]
fn a_handle_stops_a_machine_that_is_waited_for() {
    let machine = machine(vec![Script::new()], &Probe::named("probe"));
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
    let machine = machine(vec![Script::new()], &probe);
    machine.start().unwrap();
    let error = machine.pause().unwrap_err();
    assert_eq!(error.to_string(), "device \"stubborn\": no quiesce");
    assert_eq!(machine.state(), LifecycleState::Running);
    assert_eq!(probe.count(RESUMED), 2);
}

#[test]
fn a_dropped_machine_stops() {
    let probe = Probe::named("probe");
    let machine = machine(vec![Script::new()], &probe);
    machine.start().unwrap();
    let mut stream = machine.events();
    drop(machine);
    assert_eq!(stream.next_timeout(Duration::ZERO), Some(MachineEvent::Started));
    assert_eq!(stream.next_timeout(Duration::ZERO), Some(MachineEvent::Ended(Outcome::Stopped)));
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
    assert_eq!(
        refuses.to_string(),
        "device \"net0\" cannot be attached: its cable is missing: entity not found"
    );
    let silent = build(Machine::builder("x").device(Probe { silent: true, ..Probe::named("odd") }));
    assert_eq!(silent.to_string(), "device \"odd\" asked for registers port and does not answer them");
    let reserved = build(Machine::builder("x").device(Probe::named("vcpu0")));
    assert_eq!(reserved.to_string(), "device id \"vcpu0\" is the machine's own; give the device another one");
    let payload = build(Machine::builder("x").payload(Linux::new("/no/such/kernel")));
    assert!(payload.to_string().starts_with("kernel /no/such/kernel: No such file"), "{payload}");
}

#[test]
fn d3_a_machine_that_ends_while_it_is_paused_stays_ended() {
    for _ in 0..50 {
        let machine = machine(vec![ask(0), Script::new()], &Probe::named("probe"));
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
