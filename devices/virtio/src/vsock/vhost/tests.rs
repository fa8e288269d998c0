use crate::testing::TestDriver;
use crate::vhost::testing::{Fake, OFFERED};
use crate::{Inline, MmioInterrupt, VirtioMmio};
use ossature_bus::DeviceEvent;

use super::*;

const DEVICE_NEEDS_RESET: u8 = 64;
const SIZE: [&str; 2] = ["ring 0: 256 0", "ring 1: 256 0"];

struct Rig {
    driver: TestDriver,
    fake: Fake,
    inline: Inline,
}

fn device(fake: &Fake, inline: &Inline) -> Box<VirtioMmio> {
    let cid = 77.try_into().unwrap();
    let device = VhostVsock::with_vhost(cid, Vhost::new(fake.clone()).unwrap()).unwrap();
    let device = device.on("vsock", Arc::new(inline.clone())).unwrap();
    Box::new(VirtioMmio::from_device("vsock", device))
}

impl Rig {
    fn new(interrupt: MmioInterrupt) -> Self {
        let (fake, inline) = (Fake::default(), Inline::new().unwrap());
        let driver = TestDriver::attach(Box::new(device(&fake, &inline).with_interrupt(interrupt)));
        Self { driver, fake, inline }
    }

    fn start(&mut self) -> u128 {
        let features = self.driver.start(u128::MAX);
        self.inline.pump().unwrap();
        features
    }

    /// A packet each way.
    fn exchange(&mut self) {
        self.driver.interrupts();
        for queue in [0, 1] {
            let next = self.driver.ring(queue).next_used();
            self.driver.ring(queue).set_used_event(next);
        }
        let sent = self.driver.request(1, &[&[7; 44]], &[]);
        self.driver.kick(1);
        let buffer = self.driver.request(0, &[], &[64]);
        self.driver.kick(0);
        assert_eq!((self.fake.serve(1, &[]), self.fake.serve(0, b"a packet")), (1, 1));
        self.inline.pump().unwrap();
        let interrupted = self.driver.interrupts() > 0 || self.driver.is_asserted();
        assert!(interrupted, "nobody interrupts the guest");
        self.driver.acknowledge();
        assert_eq!(self.driver.used(1).unwrap().head, u32::from(sent.head));
        assert_eq!(self.driver.used(0).unwrap().len, 8);
        assert_eq!(self.driver.bytes(&buffer.writable)[..8], *b"a packet");
    }
}

#[test]
fn packets_go_both_ways_through_pauses_and_resets() {
    for interrupt in [MmioInterrupt::Exact, MmioInterrupt::AlwaysSet, MmioInterrupt::SharedLine] {
        let mut rig = Rig::new(interrupt);
        assert_eq!(rig.fake.calls(), ["owner", "cid 77"]);
        let features = rig.start();
        assert_eq!(features & 3, 3, "streams and packets");
        let told = rig.fake.told().features;
        assert_eq!(told & !OFFERED, 2);
        assert_eq!(u128::from(told), features & !1 & !crate::features::RING_RESET);
        let calls = rig.fake.calls();
        assert!(SIZE.iter().all(|size| calls.contains(&(*size).to_owned())), "{calls:?}");
        assert_eq!(calls.last().unwrap(), "running true");
        assert_eq!(rig.driver.config::<8>(0), 77u64.to_le_bytes());
        for round in 1..=3 {
            rig.exchange();
            rig.driver.device().quiesce().unwrap();
            assert!(!rig.fake.runs(0) && !rig.fake.runs(1));
            rig.fake.calls();
            rig.driver.device().resume().unwrap();
            let calls = rig.fake.calls();
            assert!(calls.contains(&format!("ring 0: 256 {round}")), "{calls:?}");
            assert!(!calls.iter().any(|call| call.starts_with("cid")), "it is the guest's already");
        }
        rig.driver.reset_machine();
        assert!(!rig.fake.runs(0) && !rig.fake.runs(1));
        rig.start();
        rig.exchange();
        assert_eq!(rig.driver.reports(), []);
    }
}

#[test]
fn what_is_offered_while_nothing_runs_is_served_afterwards() {
    let mut rig = Rig::new(MmioInterrupt::Exact);
    rig.start();
    rig.driver.device().quiesce().unwrap();
    rig.driver.request(1, &[&[7; 44]], &[]);
    rig.driver.device().resume().unwrap();
    assert_eq!(rig.fake.serve(1, &[]), 1);
    // A queue alone: the kernel runs both or none.
    rig.driver.reset_queue(0);
    assert!(!rig.fake.runs(1));
    assert!(rig.driver.set_up_queue_at(16 << 20, 0, 64));
    assert!(rig.fake.runs(0) && rig.fake.runs(1));
    rig.inline.pump().unwrap();
    rig.driver.used(1).unwrap();
    rig.exchange();
}

#[test]
fn a_guest_that_was_restored_is_told_that_its_connections_are_gone() {
    let mut rig = Rig::new(MmioInterrupt::Exact);
    rig.start();
    rig.exchange();
    let event = rig.driver.request(2, &[], &[4]);
    rig.driver.kick(2);
    rig.inline.pump().unwrap();
    assert!(rig.driver.used(2).is_none());
    let (fake, inline) = (Fake::default(), Inline::new().unwrap());
    assert!(rig.driver.move_to_device(device(&fake, &inline)));
    assert!(!rig.fake.runs(0) && fake.runs(0) && fake.runs(1));
    assert!(fake.calls().contains(&"ring 1: 256 1".to_owned()));
    (rig.fake, rig.inline) = (fake, inline);
    rig.inline.pump().unwrap();
    assert_eq!(rig.driver.used(2).unwrap().len, 4);
    assert_eq!(rig.driver.bytes(&event.writable), [0; 4], "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET");
    rig.exchange();
}

#[test]
fn a_ring_that_the_kernel_cannot_make_sense_of_is_told() {
    let mut rig = Rig::new(MmioInterrupt::Exact);
    rig.start();
    rig.fake.fail(1);
    rig.inline.pump().unwrap();
    assert_ne!(rig.driver.status() & DEVICE_NEEDS_RESET, 0);
    let [DeviceEvent::NeedsReset { reason }] = &*rig.driver.reports() else { panic!() };
    assert_eq!(reason, "the host's kernel (vhost) cannot make sense of ring 1");
    rig.driver.reset_machine();
    rig.start();
    rig.exchange();
}

#[test]
fn what_the_kernel_refuses_is_told() {
    let fake = Fake::default();
    fake.told().refuse = Some(("cid", libc::EADDRINUSE));
    let cid = 77.try_into().unwrap();
    let device = VhostVsock::with_vhost(cid, Vhost::new(fake.clone()).unwrap()).unwrap();
    let mut device = device.on("vsock", Arc::new(Inline::new().unwrap())).unwrap();
    let error = device.resume().unwrap_err().to_string();
    assert!(error.starts_with("the guest's CID 77 in use by another guest of this host"), "{error}");
    fake.told().refuse = None;
    device.resume().unwrap();

    for request in ["features", "memory", "ring", "kick", "call", "error", "running true"] {
        let mut rig = Rig::new(MmioInterrupt::Exact);
        rig.fake.told().refuse = Some((request, libc::EFAULT));
        rig.driver.start_live(u128::MAX);
        assert_ne!(rig.driver.status() & DEVICE_NEEDS_RESET, 0, "{request}");
        rig.fake.told().refuse = None;
        rig.driver.reset_machine();
        rig.start();
        rig.exchange();
    }
}
