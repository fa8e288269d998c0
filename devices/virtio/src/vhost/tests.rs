use std::fs::File;

use ossature_bus::Event;
use ossature_memory::{DirtyLog, DirtyLogError, Ram, RamConfig};

use super::*;
use crate::{Activation, Inline};

#[test]
fn a_driver_that_is_not_there_is_named_with_its_module() {
    let error = Kernel::open("/dev/no-vhost", "vhost_no").map(drop).unwrap_err();
    assert_eq!(error.to_string(), "/dev/no-vhost does not exist; load the kernel module vhost_no");
    let error = Vhost::new(Kernel::from_fd(File::open("/dev/null").unwrap().into())).map(drop).unwrap_err();
    assert!(error.to_string().starts_with("vhost: VHOST_GET_FEATURES: "), "{error}");
}

#[test]
fn no_dirty_log_and_no_driver_at_once() {
    let ram = Ram::new(&RamConfig::new(1 << 20)).unwrap();
    let mut vhost = Vhost::new(testing::Fake::default()).unwrap();
    let inline = Inline::new().unwrap();
    let activation = Activation::new(u128::MAX, ram.dma());
    let log = DirtyLog::start(&ram).unwrap();
    let error = vhost.activate(&activation, 0, ("v", 3, &inline)).unwrap_err();
    assert_eq!(error.to_string(), "vhost: the dirty pages of this guest's memory are already logged");
    drop(log);
    vhost.activate(&activation, 0, ("v", 3, &inline)).unwrap();
    assert_eq!(DirtyLog::start(&ram).unwrap_err(), DirtyLogError::Unlogged);
    vhost.deactivate();
    DirtyLog::start(&ram).unwrap();
}

#[test]
fn a_queue_that_is_none_is_not_given_to_the_kernel() {
    let ram = Ram::new(&RamConfig::new(1 << 20)).unwrap();
    let fake = testing::Fake::default();
    let mut vhost = Vhost::new(fake.clone()).unwrap();
    let inline = Inline::new().unwrap();
    let setup = |state| {
        let event = || std::sync::Arc::new(Event::new().unwrap());
        crate::QueueSetup::new(0, state, ram.dma(), event(), event().into())
    };
    let good = crate::QueueState::new(256).at(0x1000, 0x2000, 0x3000);
    assert!(vhost.set_up(0, setup(good)).is_err(), "no driver is there");
    vhost.activate(&Activation::new(0, ram.dma()), 0, ("v", 3, &inline)).unwrap();
    fake.calls();
    let mut ahead = good;
    ahead.next_avail = 257;
    for bad in [good.at(0x1000, 0x2000, 0xf_fc00), crate::QueueState::new(0).at(0, 0, 0), ahead] {
        vhost.set_up(0, setup(bad)).unwrap_err();
    }
    vhost.set_up(2, setup(good)).unwrap_err();
    vhost.take_down(0).unwrap_err();
    assert_eq!(fake.calls(), [""; 0]);
    assert!(!vhost.is_set_up(0) && !vhost.is_set_up(2));
    vhost.set_up(0, setup(good)).unwrap();
    assert!(vhost.is_set_up(0) && !vhost.is_set_up(1));
    // The guest writes over an index of the ring.
    let used = ossature_memory::vm_memory::GuestAddress(0x3002);
    ram.dma().write_obj(used, 1000u16).unwrap();
    assert!(!vhost.take_down(0).unwrap().ready);
}
