//! Those who reach a machine from elsewhere, and panics that end one machine and no other.

use super::*;

/// A thread that does something with a handle while another one waits.
fn beside<R: Send + 'static>(
    machine: &Machine,
    f: impl FnOnce(MachineHandle) -> R + Send + 'static,
) -> std::thread::JoinHandle<R> {
    let handle = machine.handle();
    std::thread::spawn(move || f(handle))
}

#[test]
fn one_waits_another_reads_metrics_and_a_third_pauses() {
    let machine = machine(vec![Script::new(), Script::new()], &Probe::named("probe"));
    machine.start().unwrap();
    assert_eq!(machine.wait_timeout(Duration::from_millis(1)).unwrap(), None);
    let seen = Arc::<AtomicU32>::default();
    let (counted, last) = (Arc::clone(&seen), Arc::clone(&seen));
    let reader = beside(&machine, move |handle| {
        while handle.outcome().is_none() {
            handle.metrics(&mut |scope, _, _| {
                counted.fetch_add(u32::from(scope == "probe"), Ordering::Relaxed);
            });
        }
    });
    let pauser = beside(&machine, move |handle| {
        for _ in 0..50 {
            handle.pause().unwrap().resume().unwrap();
        }
        while last.load(Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        handle.stop();
    });
    let outcome = machine.wait_timeout(Duration::from_secs(60)).unwrap();
    assert_eq!(outcome, Some(Outcome::Stopped));
    pauser.join().unwrap();
    reader.join().unwrap();
    assert_eq!(machine.wait().unwrap(), Outcome::Stopped);
}

#[test]
fn two_followers_both_see_every_event() {
    let machine = machine(vec![ask(3).await_kick().pio_write(PORT, Size::B1, 0)], &Probe::named("probe"));
    let resumed = [(); 2].map(|()| Arc::<AtomicU32>::default());
    let follow = |mut stream: EventStream, resumed: &Arc<AtomicU32>| {
        let resumed = Arc::clone(resumed);
        std::thread::spawn(move || {
            let mut seen = Vec::new();
            while !matches!(seen.last(), Some(MachineEvent::Ended(_))) {
                seen.extend(stream.next_timeout(Duration::from_secs(60)));
                if seen.last() == Some(&MachineEvent::Resumed) {
                    resumed.fetch_add(1, Ordering::SeqCst);
                }
            }
            seen
        })
    };
    let followers = [follow(machine.events(), &resumed[0]), follow(machine.events(), &resumed[1])];
    machine.start().unwrap();
    // The guest may end at any moment of this.
    let mut times = 0;
    while let Ok(paused) = machine.pause() {
        drop(paused);
        times += 1;
        // No faster than they follow: the log keeps a few hundred events.
        let behind = |seen: &Arc<AtomicU32>| seen.load(Ordering::SeqCst) < times;
        while resumed.iter().any(behind) && machine.outcome().is_none() {
            std::thread::yield_now();
        }
    }
    machine.wait().unwrap();
    let [one, other] = followers.map(|follower| follower.join().unwrap());
    assert_eq!(one, other);
    assert_eq!(one.first(), Some(&MachineEvent::Started));
    assert_eq!(one.last(), Some(&MachineEvent::Ended(Outcome::Shutdown)));
    assert!(one.iter().any(|event| matches!(event, MachineEvent::Device { .. })));
}

#[test]
fn a_requested_pause_is_finished_by_whoever_waits() {
    let probe = Probe::named("probe");
    let machine = machine(vec![Script::new()], &probe);
    machine.start().unwrap();
    let mut events = machine.events();
    let waiter = beside(&machine, |handle| handle.wait().unwrap());
    machine.request_pause();
    while events.next_timeout(Duration::from_secs(60)).unwrap() != MachineEvent::Paused {}
    assert_eq!((machine.state(), probe.count(QUIESCED)), (LifecycleState::Paused, 1));
    machine.resume().unwrap();
    // Where nobody waits, the next one who controls the machine does it.
    machine.stop().unwrap();
    assert_eq!(waiter.join().unwrap(), Outcome::Stopped);
}

#[test]
fn a_requested_pause_is_finished_by_the_next_who_controls_the_machine() {
    let probe = Probe::named("probe");
    let machine = machine(vec![Script::new()], &probe);
    machine.start().unwrap();
    machine.request_pause();
    machine.resume().unwrap();
    assert_eq!(probe.count(QUIESCED), 1);
    assert_eq!(machine.state(), LifecycleState::Running);
}

#[test]
fn a_machine_that_ends_while_a_requested_pause_is_under_way_has_an_outcome() {
    let builder = Machine::builder("test").memory(RamConfig::new(1 << 20));
    let handle = builder.handle();
    let machine = builder
        .on_vcpu_thread(move |_| {
            handle.request_pause();
            // By then the thread that waits for the machine waits for this vCPU.
            std::thread::sleep(Duration::from_millis(200));
            handle.stop();
            Ok(())
        })
        .build(&Scripted::new([Script::new()]))
        .unwrap();
    machine.start().unwrap();
    assert_eq!(machine.wait().unwrap(), Outcome::Stopped);
}

#[test]
fn vcpus_stay_paused_while_something_is_asked_of_control() {
    let vm = Scripted::new([Script::new()]).create_vm(&crate::VmConfig::default()).unwrap();
    let bus = |space| ossature_bus::Bus::new(space).cursor();
    let (pio, mmio) = (bus(ossature_bus::AddressSpace::Pio), bus(ossature_bus::AddressSpace::Mmio));
    let vcpu = vm.create_vcpu(0, crate::Buses::new(pio, mmio)).unwrap();
    let mailbox = Arc::new(Mailbox::new());
    let status = status::Status::default();
    status.set_peers(vec![Peer { mailbox: Arc::clone(&mailbox), kicker: vcpu.kicker() }]);
    let is_paused = || format!("{mailbox:?}").contains("Pause");
    status.request(|requests| requests.reset = true);
    status.go_on();
    assert!(is_paused());
    let _ = status.take_requests();
    status.go_on();
    assert!(!is_paused());
}

#[test]
fn a_handle_of_a_machine_that_is_gone_says_so() {
    let machine = machine(vec![Script::new()], &Probe::named("probe"));
    machine.start().unwrap();
    let handle = machine.handle();
    drop(machine);
    assert_eq!(handle.wait().unwrap(), Outcome::Stopped);
    assert_eq!(handle.pause().unwrap_err().to_string(), "cannot pause a machine that is not there");
    handle.metrics(&mut |scope, _, _| panic!("{scope} is gone"));
}

#[test]
fn e1_a_handler_and_a_timer_that_panic_end_their_machine_and_no_other() {
    let event_loop = EventLoop::new().unwrap();
    let machines =
        ["handler", "timer", "other"].map(|_| machine(vec![Script::new()], &Probe::named("probe")));
    let [first, second, third] = &machines;
    machines.iter().for_each(|machine| machine.start().unwrap());
    let guarded = first.guard(&event_loop, "keys");
    let event = ossature_bus::Event::new().unwrap();
    let _handler = guarded.on_readable(event, |_| panic!("a bug in a handler")).unwrap();
    assert_eq!(
        first.wait_on(&event_loop).unwrap(),
        Outcome::Panicked { part: "keys".to_owned(), message: "a bug in a handler".to_owned() }
    );
    let _timer = second.guard(&event_loop, "clock").after(Duration::ZERO, || panic!("too late")).unwrap();
    assert_eq!(
        second.wait_on(&event_loop).unwrap(),
        Outcome::Panicked { part: "clock".to_owned(), message: "too late".to_owned() }
    );
    // The third one never notices: it has a turn on the same loop that ends it.
    let handle = third.handle();
    let _end = event_loop.after(Duration::ZERO, move || handle.stop()).unwrap();
    assert_eq!(third.wait_on(&event_loop).unwrap(), Outcome::Stopped);
}

#[test]
fn e1_a_device_that_says_it_panicked_ends_the_machine_by_its_name() {
    let probe = Probe::named("disk");
    let machine = machine(vec![Script::new()], &probe);
    machine.start().unwrap();
    let events = probe.assigned.lock().unwrap().as_ref().unwrap().events().clone();
    events.report(DeviceEvent::Panicked { message: "index out of bounds".to_owned() });
    let expected = Outcome::Panicked { part: "disk".to_owned(), message: "index out of bounds".to_owned() };
    assert_eq!(machine.wait().unwrap(), expected);
}

#[test]
fn a_hook_sees_each_thread_and_its_error_ends_the_machine() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let build = |fails: bool| {
        let seen = seen.clone();
        Machine::builder("hooked")
            .cpus(2)
            .memory(RamConfig::new(1 << 20))
            .on_vcpu_thread(move |index| {
                seen.lock().unwrap().push((index, std::thread::current().name().map(str::to_owned)));
                if fails && index == 1 {
                    Err(io::Error::from(io::ErrorKind::PermissionDenied))
                } else {
                    Ok(())
                }
            })
            .build(&Scripted::new([Script::new(), Script::new()]))
            .unwrap()
    };
    let machine = build(false);
    machine.start().unwrap();
    machine.pause().unwrap().resume().unwrap();
    machine.stop().unwrap();
    let mut threads = seen.lock().unwrap().clone();
    threads.sort();
    assert_eq!(threads, [(0, Some("vcpu0:hooked".to_owned())), (1, Some("vcpu1:hooked".to_owned()))]);

    let machine = build(true);
    machine.start().unwrap();
    let outcome = machine.wait().unwrap();
    assert_eq!(outcome.to_string(), "vcpu1 failed: the hook for its thread: permission denied");
}

#[test]
fn a_paused_vcpu_shows_its_registers_and_takes_others() {
    let machine = machine(vec![Script::new(), Script::new()], &Probe::named("probe"));
    machine.start().unwrap();
    let paused = machine.pause().unwrap();
    paused.vcpus().set_registers(1, registers_at(0x1234)).unwrap();
    assert_eq!(paused.vcpus().registers(1).unwrap(), registers_at(0x1234));
    assert_eq!(paused.vcpus().registers(0).unwrap(), Registers::default());
    let state = paused.vcpus().state(1).unwrap();
    paused.vcpus().set_registers(1, Registers::default()).unwrap();
    paused.vcpus().set_state(1, state).unwrap();
    assert_eq!(paused.vcpus().registers(1).unwrap(), registers_at(0x1234));
    let error = paused.vcpus().registers(2).unwrap_err();
    assert_eq!(error.to_string(), "there is no vCPU 2 to reach");
    let handle = paused.clone();
    paused.resume().unwrap();
    assert!(matches!(handle.resume(), Err(LifecycleError::Illegal { .. })));
}

#[test]
fn a_dirty_log_of_a_running_machine_has_what_guest_and_devices_write() {
    use ossature_memory::vm_memory::GuestAddress;
    let probe = Probe::named("probe");
    let script = Script::new().await_interrupt(5).ram_write(GuestAddress(0x5000), b"guest");
    let machine = machine(vec![script.pio_write(PORT, Size::B1, 0)], &probe);
    machine.start().unwrap();
    let mut log = machine.dirty_log().unwrap();
    assert!(machine.dirty_log().is_err(), "one at a time");
    let assigned = probe.assigned.lock().unwrap().clone().unwrap();
    assigned.dma().write(GuestAddress(0x9000), b"device").unwrap();
    assigned.interrupt("irq").unwrap().signal().unwrap();
    machine.wait().unwrap();
    let dirty: Vec<_> = log.take().unwrap().ranges().map(|range| range.start).collect();
    assert_eq!(dirty, [0x5000, 0x9000]);
}

#[test]
fn a_guard_ends_its_own_pause_and_no_later_one() {
    let machine = machine(vec![Script::new()], &Probe::named("probe"));
    machine.start().unwrap();
    let first = machine.pause().unwrap();
    machine.resume().unwrap();
    let second = machine.pause().unwrap();
    drop(first);
    assert_eq!(machine.state(), LifecycleState::Paused);
    drop(second);
    assert_eq!(machine.state(), LifecycleState::Running);
}

#[test]
fn where_a_machine_is_can_be_asked_while_control_is_at_work() {
    let probe = Probe::named("probe");
    let machine = machine(vec![Script::new()], &probe);
    machine.start().unwrap();
    let gate = probe.gate.clone();
    let closed = gate.lock().unwrap();
    let pauser = beside(&machine, |handle| handle.pause().map(Paused::keep));
    while probe.count(QUIESCED) == 0 {
        std::thread::yield_now();
    }
    // The device does not answer yet.
    assert_eq!(machine.state(), LifecycleState::Paused);
    assert_eq!(machine.wait_timeout(Duration::ZERO).unwrap(), None);
    drop(closed);
    pauser.join().unwrap().unwrap();
}
