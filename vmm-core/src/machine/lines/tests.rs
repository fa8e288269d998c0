use super::*;
use crate::scripted::{Script, Scripted};
use crate::{Hypervisor, VmConfig};

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
