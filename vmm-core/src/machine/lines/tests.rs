use super::*;
use crate::scripted::{Script, Scripted};
use crate::{Buses, Hypervisor, Step, VmConfig};
use ossature_bus::{AddressSpace, Bus};

#[test]
fn a_message_of_a_device_that_was_removed_is_not_connected_again() {
    let vm = Scripted::new([Script::new()]).create_vm(&VmConfig::default()).unwrap();
    let vm: Arc<dyn Vm> = Arc::from(vm);
    let message = Message::new(&vm, Arc::new(Event::new().unwrap()));
    message.set_masked(false).unwrap();
    assert!(lock(&message.state).connected.is_some());
    message.disconnect();
    message.set_masked(false).unwrap();
    let state = lock(&message.state);
    assert!(state.connected.is_none() && state.route.is_none());
}

#[test]
fn an_edge_of_a_rare_line_is_a_call_and_waits_for_the_guest() {
    let scripted = Scripted::new([Script::new().await_interrupt(9).expect_line(9, false).halt()]);
    let vm: Arc<dyn Vm> = Arc::from(scripted.create_vm(&VmConfig::default()).unwrap());
    let interrupt = Lines::default().called(&vm, 9).unwrap();
    assert!(interrupt.event().is_none() && interrupt.resample().is_none());
    let buses = Buses::new(Bus::new(AddressSpace::Pio).cursor(), Bus::new(AddressSpace::Mmio).cursor());
    let mut vcpu = vm.create_vcpu(0, buses).unwrap();
    interrupt.assert().unwrap();
    interrupt.deassert().unwrap();
    assert_eq!(vcpu.run_once().unwrap(), Step::Halted);
    drop((vcpu, vm));
    // A device may outlive its machine.
    interrupt.signal().unwrap();
}

#[test]
fn a_rare_line_needs_interrupt_controllers_as_every_other_does() {
    let config = VmConfig::default().irqchip(crate::Irqchip::None);
    let vm: Arc<dyn Vm> = Arc::from(Scripted::new([Script::new()]).create_vm(&config).unwrap());
    assert!(matches!(Lines::default().called(&vm, 9), Err(VmError::NoIrqchip { gsi: 9 })));
}
