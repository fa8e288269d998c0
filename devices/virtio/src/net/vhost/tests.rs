//! With real taps, in a network namespace, and a vhost device without a kernel.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use ossature_bus::DeviceEvent;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MQ;

use super::*;
use crate::testing::TestDriver;
use crate::vhost::testing::Fake;
use crate::{Inline, MmioInterrupt, VirtioMmio};

const INSIDE: &str = "OSSATURE_TEST_STAGE";
const DEVICE_NEEDS_RESET: u8 = 64;

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().expect("ip, of iproute2");
    assert!(status.success(), "ip {args}");
}

#[test]
fn cards_on_taps() {
    if std::env::var_os(INSIDE).is_some() {
        ip("tuntap add mode tap name tap0");
        ip("tuntap add mode tap name many multi_queue");
        packets_both_ways();
        queues_in_use();
        the_link();
        what_the_kernel_refuses();
        return;
    }
    let mut unshare = Command::new("unshare");
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        unshare.arg("--map-root-user");
    }
    unshare.arg("--net").arg(std::env::current_exe().unwrap());
    let test = ["--exact", "net::vhost::tests::cards_on_taps", "--nocapture"];
    assert!(unshare.args(test).env(INSIDE, "inside").status().unwrap().success());
}

struct Rig {
    driver: TestDriver,
    /// One for each pair.
    fakes: Vec<Fake>,
    inline: Inline,
    link: LinkHandle,
}

fn device(taps: Vec<Tap>, fakes: &[Fake], inline: &Inline) -> (Box<VirtioMmio>, LinkHandle) {
    let pairs = taps.into_iter().zip(fakes).map(|(tap, fake)| Ok((tap, Vhost::new(fake.clone())?)));
    let card = VhostNet::with_vhost(pairs, "52:54:00:12:34:56".parse().unwrap()).unwrap();
    let link = card.link();
    let device = card.with_mtu("1400".parse().unwrap()).on("net0", Arc::new(inline.clone()));
    (Box::new(VirtioMmio::from_device("net0", device)), link)
}

impl Rig {
    fn new(taps: Vec<Tap>, interrupt: MmioInterrupt) -> Self {
        let fakes: Vec<_> = taps.iter().map(|_| Fake::default()).collect();
        let inline = Inline::new().unwrap();
        let (device, link) = device(taps, &fakes, &inline);
        let driver = TestDriver::attach(Box::new(device.with_interrupt(interrupt)));
        Self { driver, fakes, inline, link }
    }

    fn one() -> Self {
        Self::new(vec![Tap::open("tap0").unwrap()], MmioInterrupt::Exact)
    }

    fn start(&mut self) -> u128 {
        let features = self.driver.start(u128::MAX);
        self.inline.pump().unwrap();
        features
    }

    /// A packet each way on a pair.
    fn exchange(&mut self, pair: u16) {
        let fake = self.fakes[usize::from(pair)].clone();
        let [rx, tx] = [2 * pair, 2 * pair + 1];
        self.driver.interrupts();
        for queue in [rx, tx] {
            let next = self.driver.ring(queue).next_used();
            self.driver.ring(queue).set_used_event(next);
        }
        let sent = self.driver.request(tx, &[&[7; 60]], &[]);
        self.driver.kick(tx);
        let buffer = self.driver.request(rx, &[], &[1526]);
        self.driver.kick(rx);
        assert_eq!((fake.serve(1, &[]), fake.serve(0, b"a packet")), (1, 1));
        self.inline.pump().unwrap();
        assert!(self.driver.interrupts() > 0, "nobody interrupts the guest");
        assert_eq!(self.driver.used(tx).unwrap().head, u32::from(sent.head));
        assert_eq!(self.driver.used(rx).unwrap().len, 8);
        assert_eq!(self.driver.bytes(&buffer.writable)[..8], *b"a packet");
    }

    /// The answer to a command.
    fn command(&mut self, words: &[u8]) -> u8 {
        let control = 2 * self.fakes.len() as u16;
        let answer = self.driver.request(control, &[words], &[1]);
        self.driver.kick(control);
        self.inline.pump().unwrap();
        self.driver.used(control).unwrap();
        self.driver.bytes(&answer.writable)[0]
    }

    /// Which rings of all pairs run.
    fn running(&self) -> Vec<bool> {
        self.fakes.iter().flat_map(|fake| [fake.runs(0), fake.runs(1)]).collect()
    }
}

fn packets_both_ways() {
    for interrupt in [MmioInterrupt::Exact, MmioInterrupt::AlwaysSet] {
        let mut rig = Rig::new(vec![Tap::open("tap0").unwrap()], interrupt);
        let features = rig.start();
        assert_eq!(features & FILTERS, 0, "nobody filters");
        assert_eq!(features & KERNELS, KERNELS);
        assert_eq!(rig.fakes[0].told().features, 1 << 15 | 1 << 28 | 1 << 29 | 1 << 32);
        assert_eq!(rig.driver.config::<2>(10), 1400u16.to_le_bytes());
        for round in 1..=3 {
            rig.exchange(0);
            rig.driver.device().quiesce().unwrap();
            assert_eq!(rig.running(), [false; 2]);
            rig.fakes[0].calls();
            // Offered while nothing runs.
            rig.driver.request(1, &[&[7; 60]], &[]);
            rig.driver.device().resume().unwrap();
            let calls = rig.fakes[0].calls();
            assert!(calls.contains(&format!("ring 1: 256 {}", 2 * round - 1)), "{calls:?}");
            assert_eq!(rig.fakes[0].serve(1, &[]), 1);
            rig.inline.pump().unwrap();
            rig.driver.used(1).unwrap();
        }
        rig.driver.reset_queue(0);
        assert_eq!(rig.running(), [false, true]);
        assert!(rig.driver.set_up_queue_at(16 << 20, 0, 64));
        rig.exchange(0);
        assert_eq!(rig.command(&[3, 0]), 0, "the control queue is served: the guest has announced itself");
        // To another process, say.
        let (fakes, inline) = (vec![Fake::default()], Inline::new().unwrap());
        rig.driver.device().quiesce().unwrap();
        rig.driver.device().resume().unwrap();
        ip("tuntap add mode tap name tap1");
        let (other, link) = device(vec![Tap::open("tap1").unwrap()], &fakes, &inline);
        assert!(rig.driver.move_to_device(Box::new(other.with_interrupt(interrupt))));
        assert_eq!(rig.running(), [false; 2]);
        (rig.fakes, rig.inline, rig.link) = (fakes, inline, link);
        rig.exchange(0);
        rig.driver.reset_machine();
        assert_eq!(rig.running(), [false; 2]);
        rig.start();
        rig.exchange(0);
        assert_eq!(rig.driver.reports(), []);
        drop(rig);
        ip("link delete tap1");
    }
}

/// The kernel serves the pairs that the driver uses.
fn queues_in_use() {
    let pairs = |pairs: u16| [&[4, 0][..], &pairs.to_le_bytes()].concat();
    let mut rig = Rig::new(Tap::open_queues("many", 3).unwrap(), MmioInterrupt::Exact);
    assert_ne!(rig.start() & 1 << VIRTIO_NET_F_MQ, 0);
    assert_eq!(rig.running(), [true, true, false, false, false, false]);
    for used in [3, 2, 1, 2, 3] {
        assert_eq!(rig.command(&pairs(used)), 0);
        let expected: Vec<_> = (0..6).map(|ring| ring < 2 * used).collect();
        assert_eq!(rig.running(), expected);
        (0..used).for_each(|pair| rig.exchange(pair));
        rig.driver.device().quiesce().unwrap();
        assert_eq!(rig.running(), [false; 6]);
        rig.driver.device().resume().unwrap();
        assert_eq!(rig.running(), expected);
    }
    assert_eq!(rig.command(&pairs(4)), 1);
    // What the kernel refuses is the command's failure.
    rig.command(&pairs(1));
    rig.fakes[1].told().refuse = Some(("tap 0: true", libc::EBADFD));
    assert_eq!(rig.command(&pairs(2)), 1);
    assert_eq!(rig.running()[2..], [false; 4]);
    rig.fakes[1].told().refuse = None;
    assert_eq!(rig.command(&pairs(2)), 0);
    rig.exchange(1);
}

fn the_link() {
    let mut rig = Rig::one();
    rig.start();
    let status = |rig: &Rig| rig.driver.config::<2>(6)[0];
    for _ in 0..2 {
        rig.link.set_link(false);
        assert_eq!((rig.running(), status(&rig)), (vec![false; 2], 0));
        rig.driver.device().quiesce().unwrap();
        rig.driver.device().resume().unwrap();
        assert_eq!(rig.running(), [false; 2]);
        rig.link.set_link(true);
        assert_eq!((rig.running(), status(&rig)), (vec![true; 2], 1));
        rig.exchange(0);
    }
    rig.link.set_link(false);
    rig.driver.reset_machine();
    rig.start();
    assert_eq!((rig.running(), status(&rig)), (vec![false; 2], 0));
    rig.fakes[0].told().refuse = Some(("tap", libc::EBADFD));
    rig.link.set_link(true);
    assert!(matches!(&*rig.driver.reports(), [DeviceEvent::HostError { .. }]), "{:?}", rig.driver.reports());
    // There is a handle, and no card.
    let link = rig.link.clone();
    drop(rig);
    link.set_link(true);
}

fn what_the_kernel_refuses() {
    for request in ["features", "memory", "ring", "kick", "call", "error", "tap 1: true"] {
        let mut rig = Rig::one();
        rig.fakes[0].told().refuse = Some((request, libc::EFAULT));
        rig.driver.start_live(u128::MAX);
        assert_ne!(rig.driver.status() & DEVICE_NEEDS_RESET, 0, "{request}");
        assert_eq!(rig.running(), [false; 2], "{request}");
        rig.fakes[0].told().refuse = None;
        rig.driver.reset_machine();
        rig.start();
        rig.exchange(0);
    }
    let mut rig = Rig::one();
    rig.start();
    rig.fakes[0].fail(0);
    rig.inline.pump().unwrap();
    let [DeviceEvent::NeedsReset { reason }] = &*rig.driver.reports() else { panic!("nobody is told") };
    assert_eq!(reason, "the host's kernel (vhost) cannot make sense of ring 0");
    rig.driver.reset_machine();
    rig.start();
    rig.exchange(0);
    let error = VhostNet::with_vhost(std::iter::empty(), Mac::derived("x")).unwrap_err();
    assert_eq!(error.to_string(), "0 pairs of queues; a network card has 1 to 64");
}
