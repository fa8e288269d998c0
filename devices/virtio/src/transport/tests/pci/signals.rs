//! Vectors, and the ISR status where there is none.

use super::*;
use crate::{QueueSetup, QueueState};

#[test]
fn queues_may_share_a_vector_or_have_none() {
    let (_, rig) = sample_rig();
    rig.enable_msix(4);
    rig.negotiate(0);
    let (mut one, mut two) = (rig.set_up(0, 16, 2), rig.set_up(1, 16, 2));
    let mut three = rig.set_up(2, 16, NO_VECTOR);
    rig.go();
    rig.request(0, &mut one);
    assert_eq!(rig.all_sent(), [None, None, Some(0x42), None]);
    rig.request(1, &mut two);
    assert_eq!(rig.all_sent(), [None, None, Some(0x42), None]);
    assert_eq!(rig.get(ISR, Size::B1), 0);
    rig.request(2, &mut three);
    assert_eq!((rig.all_sent(), rig.get(ISR, Size::B1)), ([None; 4], 1));
}

#[test]
fn without_msix_the_isr_status_tells() {
    let (shared, rig) = sample_rig();
    rig.negotiate(0);
    rig.set(16, Size::B2, 0);
    let (mut ring, _other) = (rig.set_up(0, 16, 1), rig.set_up(1, 16, 2));
    rig.go();
    rig.request(0, &mut ring);
    assert_eq!((rig.get(ISR, Size::B1), rig.get(ISR, Size::B1)), (1, 0));
    shared.config.lock().unwrap().clone().unwrap().raise();
    rig.request(0, &mut ring);
    assert_eq!((rig.get(ISR, Size::B1), rig.get(ISR, Size::B1)), (3, 0));
    rig.request(0, &mut ring);
    rig.set_status(0);
    assert_eq!(rig.get(ISR, Size::B1), 0, "a reset forgets it");
}

#[test]
fn a_configuration_change_has_a_vector_of_its_own() {
    let (shared, rig) = sample_rig();
    rig.enable_msix(4);
    rig.negotiate(0);
    rig.set(16, Size::B2, 3);
    rig.set_up(1, 16, 1);
    rig.go();
    let config = shared.config.lock().unwrap().clone().unwrap();
    config.raise();
    assert_eq!((rig.all_sent(), rig.get(ISR, Size::B1)), ([None, None, None, Some(0x43)], 2));
    rig.set(16, Size::B2, NO_VECTOR);
    config.raise();
    assert_eq!((rig.all_sent(), rig.get(ISR, Size::B1)), ([None; 4], 2));
}

#[test]
fn a_masked_vector_is_pending_until_it_is_unmasked() {
    let (_, rig) = sample_rig();
    rig.enable_msix(4);
    rig.negotiate(0);
    let mut ring = rig.set_up(0, 16, 1);
    rig.go();
    rig.set(TABLE + 16 + 12, Size::B4, 1);
    rig.request(0, &mut ring);
    assert_eq!((rig.sent(1), rig.get(0x2000, Size::B8)), (None, 2));
    rig.set(TABLE + 16 + 12, Size::B4, 0);
    assert_eq!((rig.sent(1), rig.get(0x2000, Size::B8)), (Some(0x41), 0));
}

#[test]
fn a_vector_that_changes_while_the_queue_runs_loses_no_interrupt() {
    let (_, rig) = sample_rig();
    rig.enable_msix(4);
    rig.negotiate(0);
    let mut ring = rig.set_up(0, 16, 1);
    rig.go();
    rig.request(0, &mut ring);
    assert_eq!(rig.sent(1), Some(0x41));
    rig.set(VECTOR, Size::B2, 2);
    assert_eq!(rig.sent(2), Some(0x42), "for what the old one may have been signalled");
    rig.request(0, &mut ring);
    assert_eq!(rig.all_sent(), [None, None, Some(0x42), None]);
    rig.set(VECTOR, Size::B2, 2);
    assert_eq!(rig.all_sent(), [None; 4], "nothing has changed");
    rig.set(VECTOR, Size::B2, NO_VECTOR);
    assert_eq!(rig.get(ISR, Size::B1), 1);
}

/// A device whose queues are served by somebody who signals an event that it was given.
#[derive(Clone, Default)]
struct Kernel {
    events: Arc<Mutex<Vec<Option<Arc<Event>>>>>,
    states: Arc<Mutex<Vec<QueueState>>>,
}

impl VirtioDevice for Kernel {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new(DeviceType::NET, &[16])
    }
    fn read_config(&self, _: u32, _: &mut [u8]) {}
    fn write_config(&mut self, _: u32, _: &[u8]) {}
    fn activate(&mut self, _: Activation) -> Result<(), DeviceError> {
        Ok(())
    }
    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), DeviceError> {
        self.events.lock().unwrap().push(setup.interrupt.event().cloned());
        self.states.lock().unwrap().push(setup.state);
        Ok(())
    }
    fn stop_queue(&mut self, _: u16) -> Result<QueueState, DeviceError> {
        Ok(self.states.lock().unwrap().last().unwrap().from_index(5))
    }
    fn forget_queue(&mut self, _: u16) {}
    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn reset(&mut self) {}
    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::Stateless)
    }
    fn restore(&mut self, _: Handover) -> Result<(), StateError> {
        Err(StateError::Unsupported { reason: "there is none" })
    }
    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }
    fn metrics(&self, _: &mut dyn MetricVisitor) {}
}

#[test]
fn the_event_of_a_vector_is_handed_out_and_asked_for_again_when_the_vector_changes() {
    let kernel = Kernel::default();
    let rig = Rig::elsewhere(kernel.clone());
    let event = |start: usize| kernel.events.lock().unwrap()[start].clone();
    rig.enable_msix(2);
    rig.negotiate(0);
    rig.set_up(0, 16, 1);
    rig.go();
    event(0).unwrap().signal().unwrap();
    assert_eq!((rig.sent(0), rig.sent(1)), (None, Some(0x41)));
    rig.set(VECTOR, Size::B2, 0);
    assert_eq!(kernel.events.lock().unwrap().len(), 2, "it was started again");
    assert_eq!(kernel.states.lock().unwrap()[1].next_avail, 5, "where it had stopped");
    assert_eq!(rig.sent(0), Some(0x40));
    event(1).unwrap().signal().unwrap();
    assert_eq!((rig.sent(0), rig.sent(1)), (Some(0x40), None));
    // Without a vector each signal has to be noted.
    rig.set(VECTOR, Size::B2, NO_VECTOR);
    assert!(event(2).is_none());
    rig.set(VECTOR, Size::B2, 1);
    assert_eq!(kernel.events.lock().unwrap().len(), 3, "it signals through us, and need not be asked");
    assert_eq!(rig.sent(1), Some(0x41));
}
