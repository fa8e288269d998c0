//! In-place reset, and states that are saved and restored.

use ossature_memory::vm_memory::{Bytes, GuestAddress};

use super::*;

/// Puts a byte into memory and counts how often it did.
fn payload(loads: Arc<AtomicU32>) -> impl Payload {
    move |memory: &ossature_memory::GuestMmap, _: &ossature_boot::Platform| {
        let nth = loads.fetch_add(1, Ordering::SeqCst) + 1;
        memory.write_obj(nth as u8, GuestAddress(0x1000))?;
        Ok(registers_at(0x1000))
    }
}

fn restarting(script: Script, probe: &Probe, loads: &Arc<AtomicU32>) -> Machine {
    Machine::builder("reset")
        .memory(RamConfig::new(1 << 20))
        .payload(payload(loads.clone()))
        .device(probe.clone())
        .on_reset(OnReset::Restart)
        .build(&Scripted::new([script]))
        .unwrap()
}

#[test]
fn a_guest_that_resets_starts_again_in_the_same_machine_as_often_as_it_likes() {
    let (probe, loads) = (Probe::named("probe"), Arc::default());
    let mut script = Script::new();
    for life in 1..=20u8 {
        script = script
            .ram_expect(GuestAddress(0x1000), &[life, 0])
            .ram_write(GuestAddress(0x1001), &[0xaa])
            .pio_write(PORT, Size::B1, if life == 20 { 0 } else { 1 });
    }
    let machine = restarting(script, &probe, &loads);
    machine.start().unwrap();
    assert_eq!(machine.wait().unwrap(), Outcome::Shutdown);
    assert_eq!((loads.load(Ordering::SeqCst), probe.count(RESET)), (20, 19));
    let resets = events(&machine).into_iter().filter(|event| *event == MachineEvent::Reset).count();
    assert_eq!(resets, 19);
}

#[test]
fn a_guest_that_resets_is_served_by_the_one_who_runs_the_loop() {
    let (probe, loads) = (Probe::named("probe"), Arc::default());
    let script = Script::new().pio_write(PORT, Size::B1, 1).pio_write(PORT, Size::B1, 0);
    let machine = restarting(script, &probe, &loads);
    machine.start().unwrap();
    assert_eq!(machine.wait_on(&EventLoop::new().unwrap()).unwrap(), Outcome::Shutdown);
    assert_eq!(loads.load(Ordering::SeqCst), 2);
}

#[test]
fn the_owner_resets_a_running_and_a_paused_machine() {
    let (probe, loads) = (Probe::named("probe"), Arc::default());
    let machine = restarting(Script::new(), &probe, &loads);
    assert!(matches!(machine.reset(), Err(LifecycleError::Illegal { state: LifecycleState::Created, .. })));
    machine.start().unwrap();
    machine.reset().unwrap();
    assert_eq!(machine.state(), LifecycleState::Running);
    let paused = machine.pause().unwrap();
    machine.ram().dma().write(GuestAddress(0x2000), b"left").unwrap();
    paused.vcpus().set_registers(0, Registers::default()).unwrap();
    paused.reset().unwrap();
    assert_eq!(paused.state(), LifecycleState::Paused);
    assert_eq!(paused.vcpus().registers(0).unwrap(), registers_at(0x1000));
    assert_eq!(machine.ram().dma().read_obj::<u32>(GuestAddress(0x2000)).unwrap(), 0);
    assert_eq!(machine.ram().dma().read_obj::<u8>(GuestAddress(0x1000)).unwrap(), 3);
}

#[test]
fn a_saved_machine_is_what_it_was_after_a_reset_and_a_restore() {
    let probe = Probe::named("probe");
    let machine = machine(vec![ask(3)], &probe);
    machine.start().unwrap();
    let mut events = machine.events();
    while !matches!(events.next_timeout(Duration::from_secs(60)).unwrap(), MachineEvent::Device { .. }) {}
    let paused = machine.pause().unwrap();
    let state = paused.save().unwrap();
    assert_eq!(state.devices().map(|(id, _)| id).collect::<Vec<_>>(), ["probe"]);
    paused.reset().unwrap();
    probe.counts[READS].store(0, Ordering::SeqCst);
    paused.restore(state).unwrap();
    assert_eq!(probe.count(READS), 1);
}

#[test]
fn d2_a_state_of_another_machine_is_refused_by_name_and_changes_nothing() {
    let probe = Probe::named("probe");
    let machine = machine(vec![Script::new()], &probe);
    let other = Machine::builder("other")
        .memory(RamConfig::new(1 << 20))
        .device(Probe::named("stranger"))
        .build(&Scripted::new([Script::new()]))
        .unwrap();
    machine.start().unwrap();
    other.start().unwrap();
    let paused = machine.pause().unwrap();
    let state = other.pause().unwrap().save().unwrap();
    let error = paused.restore(state).unwrap_err();
    assert_eq!(error.to_string(), "device \"probe\" has no state there");
    paused.resume().unwrap();
}

#[test]
fn a_device_that_cannot_be_saved_is_named() {
    let probe = Probe { refuses: Some("save"), ..Probe::named("probe") };
    let machine = machine(vec![Script::new()], &probe);
    machine.start().unwrap();
    let error = machine.pause().unwrap().save().unwrap_err();
    assert_eq!(error.to_string(), "device \"probe\" cannot be saved: a stubborn probe");
}
