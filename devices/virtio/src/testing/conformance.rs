//! What every device owes a driver, whatever the device does: the rows that guard against a known
//! way to break a VMM carry its number. Each takes a factory of fresh devices.
//!
//! A queue is *eager* if the device takes its chains without anything happening on the host: there, broken
//! rings must be found at once. On the others (receive queues) they must do no harm.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ossature_bus::{Access, BusFault, DeviceEvent, MetricVisitor, Size, State, Syscall};
use virtio_bindings::bindings::virtio_mmio as reg;

use super::{Desc, TestDriver, Used};
use crate::transport::features::{EVENT_IDX, VERSION_1};
use crate::transport::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, NEEDS_RESET};
use crate::{
    DeviceType, QueueBroken, Runtime, RuntimeError, SharedLoop, Start, StartError, VirtioDevice, Worker,
    WorkerHandle,
};

/// Makes fresh devices of one kind.
pub type Factory<'a> = &'a dyn Fn() -> Box<dyn VirtioDevice>;

/// Makes a module of tests, one for each row of the suite: `conformance_tests!(rng, Rng::new)`. The second
/// argument is called without arguments for each device that a test needs.
#[macro_export]
macro_rules! conformance_tests {
    ($name:ident, $factory:expr) => {
        $crate::conformance_tests!($name, $factory; [
            reset_in_mid_flight,
            quiesce_and_resume,
            config_space_is_bounded,
            kicks_before_the_driver_is_ready,
            kick_storm,
            failed_driver_needs_a_reset,
            a1_queue_registers_before_features_ok,
            a1_queue_registers_after_ready,
            a1_queue_registers_after_driver_ok,
            a2_duplicate_heads,
            a3_available_index_jumps,
            a4_hostile_chains,
            a5_queue_select_out_of_range,
            a7_notify_of_no_queue,
            a8_one_descriptor_for_ever,
            a10_used_length_is_bounded,
            a11_unoffered_features,
            a13_all_status_pairs,
            a14_activation_fails_in_the_device,
            a14_activation_fails_in_the_runtime,
            a16_ring_rewritten_while_in_use,
            a18_no_kick_or_interrupt_is_lost,
        ]);
    };
    ($name:ident, $factory:expr; [$($row:ident),* $(,)?]) => {
        mod $name {
            #[allow(unused_imports)] // the factory may name what the surrounding module has
            use super::*;
            $(
                #[test]
                fn $row() {
                    let factory = $factory;
                    $crate::testing::conformance::$row(&|| ::std::boxed::Box::new(factory()));
                }
            )*
        }
    };
}

/// Offers a chain that any device must cope with.
fn probe(driver: &mut TestDriver, queue: u16) {
    driver.request(queue, &[&[0; 16]], &[64]);
}

/// The queues from which the device takes chains at once.
fn eager(factory: Factory) -> Vec<u16> {
    let mut driver = TestDriver::boxed(factory());
    driver.start(0);
    (0..driver.queue_count())
        .filter(|&queue| {
            probe(&mut driver, queue);
            driver.kick(queue);
            driver.used(queue).is_some()
        })
        .collect()
}

/// The device works: each eager queue gives a chain back.
fn works(driver: &mut TestDriver, eager: &[u16]) {
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    for &queue in eager {
        probe(driver, queue);
        driver.kick(queue);
        driver.wait_used(queue);
    }
}

/// The device has said that its driver broke it, once and on every channel.
fn needs_reset(driver: &TestDriver) {
    assert_eq!(driver.status() & (DRIVER_OK | NEEDS_RESET), DRIVER_OK | NEEDS_RESET);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS) & 2, 2);
    assert!(driver.interrupts() > 0);
    assert!(matches!(driver.reports()[..], [DeviceEvent::NeedsReset { .. }]), "{:?}", driver.reports());
}

/// Offers to, kicks and pumps every queue; how many chains each gave back, in-flight ones included.
fn serve(driver: &mut TestDriver) -> Vec<usize> {
    let queues = driver.queue_count();
    for queue in 0..queues {
        for _ in 0..3 {
            probe(driver, queue);
        }
        driver.kick(queue);
    }
    driver.device().quiesce().unwrap();
    driver.device().resume().unwrap();
    driver.pump();
    (0..queues).map(|queue| std::iter::from_fn(|| driver.used(queue)).count()).collect()
}

/// A reset while chains are with the device: afterwards it leaves guest memory alone, and starts afresh.
pub fn reset_in_mid_flight(factory: Factory) {
    let eager = eager(factory);
    let runtime = Arc::new(SharedLoop::new("conformance").unwrap());
    let mut driver = TestDriver::with_runtime(factory(), runtime);
    for round in 0..20 {
        let wanted = if round % 2 == 0 { u64::MAX } else { 0 };
        let features = driver.start(wanted);
        assert_eq!(features & !driver.offered(), 0);
        let queues = driver.queue_count();
        for queue in 0..queues {
            let chains = driver.ring(queue).size / 2;
            (0..chains).for_each(|_| probe(&mut driver, queue));
            driver.kick_register(queue.into());
        }
        let rings: Vec<_> = (0..queues).map(|queue| driver.ring(queue).clone()).collect();
        driver.reset();
        assert_eq!(driver.status(), 0);
        let used: Vec<_> = rings.iter().map(|ring| ring.used_index()).collect();
        for queue in 0..queues {
            driver.kick_register(queue.into());
            assert_eq!(driver.queue_max(queue).count_ones(), 1);
            assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
        }
        let again: Vec<_> = rings.iter().map(|ring| ring.used_index()).collect();
        assert_eq!(used, again);
    }
    driver.start(0);
    works(&mut driver, &eager);
    driver.device().reset().unwrap();
    assert_eq!(driver.status(), 0);
    driver.start(u64::MAX);
    works(&mut driver, &eager);
    assert_eq!(driver.reports(), []);
}

/// A quiet device touches nothing, and goes on as if it had never been quiet.
pub fn quiesce_and_resume(factory: Factory) {
    for wanted in [0, u64::MAX] {
        let mut plain = TestDriver::boxed(factory());
        let mut paused = TestDriver::boxed(factory());
        plain.device().quiesce().unwrap();
        plain.device().resume().unwrap();
        plain.start(wanted);
        paused.start(wanted);
        assert_eq!(serve(&mut plain), serve(&mut paused));
        paused.device().quiesce().unwrap();
        paused.device().quiesce().unwrap();
        for queue in 0..paused.queue_count() {
            probe(&mut plain, queue);
            plain.kick(queue);
            let before = paused.ring(queue).used_index();
            probe(&mut paused, queue);
            paused.kick(queue);
            assert_eq!(paused.ring(queue).used_index(), before);
        }
        paused.device().resume().unwrap();
        paused.device().resume().unwrap();
        paused.pump();
        plain.device().quiesce().unwrap();
        paused.device().quiesce().unwrap();
        for queue in 0..paused.queue_count() {
            assert_eq!(plain.ring(queue).used_index(), paused.ring(queue).used_index());
        }
        // A machine may be reset while it is quiet.
        paused.device().reset().unwrap();
        assert_eq!(paused.status(), 0);
        paused.start(wanted);
        plain.device().resume().unwrap();
        plain.start(wanted);
        assert_eq!(serve(&mut plain), serve(&mut paused));
        assert_eq!(paused.reports(), []);
    }
}

/// Configuration space ends where the device says, for every width and direction.
pub fn config_space_is_bounded(factory: Factory) {
    let len = u64::from(factory().config_len());
    let mut expected = vec![0; len as usize];
    factory().read_config(0, &mut expected);
    let driver = TestDriver::boxed(factory());
    driver.add_status(ACKNOWLEDGE);
    driver.add_status(DRIVER);
    let port = driver.port();
    let base = u64::from(reg::VIRTIO_MMIO_CONFIG);
    for size in [Size::B1, Size::B2, Size::B4, Size::B8] {
        for offset in (0..4096 - base).chain([u64::MAX - base, u64::MAX - base - 7]) {
            let at = Access { offset: base + offset, size };
            let fault = if offset >= len {
                Some(BusFault::Unmapped)
            } else if offset % size.bytes() != 0 {
                Some(BusFault::Alignment)
            } else if offset + size.bytes() > len {
                Some(BusFault::Crosses)
            } else {
                None
            };
            let value = expected.iter().skip(offset as usize).take(size.bytes() as usize).rev();
            let value = value.fold(0, |value, byte| value << 8 | u64::from(*byte));
            assert_eq!(port.read(at), fault.map_or(Ok(value), Err), "{at:?}");
        }
    }
    for size in [Size::B1, Size::B2, Size::B4, Size::B8] {
        for offset in 0..4096 - base {
            let inside = offset % size.bytes() == 0 && offset + size.bytes() <= len;
            let wrote = port.write(Access { offset: base + offset, size }, u64::MAX);
            assert_eq!(wrote.is_ok(), inside);
        }
    }
    driver.pump();
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER);
}

/// Kicks in every status do nothing but wake.
pub fn kicks_before_the_driver_is_ready(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    for bits in [0, ACKNOWLEDGE, DRIVER] {
        driver.add_status(bits);
        (0..4).for_each(|queue| driver.kick_register(queue));
    }
    let queues = driver.queue_count();
    driver.negotiate(0);
    for queue in 0..queues {
        assert!(driver.set_up_queue(queue, 4));
        probe(&mut driver, queue);
        driver.kick_register(queue.into());
        assert_eq!(driver.ring(queue).used_index(), 0);
    }
    driver.add_status(DRIVER_OK);
    driver.pump();
    // Those chains were kicked for too early, and are served all the same.
    for &queue in &eager {
        assert!(driver.used(queue).is_some());
    }
    works(&mut driver, &eager);
}

/// Thousands of kicks for nothing raise nothing and change nothing.
pub fn kick_storm(factory: Factory) {
    let eager = eager(factory);
    for wanted in [0, u64::MAX] {
        let mut driver = TestDriver::boxed(factory());
        driver.start(wanted);
        driver.pump();
        driver.interrupts();
        for _ in 0..2000 {
            for queue in 0..driver.queue_count() {
                driver.kick_register(queue.into());
            }
        }
        assert_eq!(driver.interrupts(), 0);
        for queue in 0..driver.queue_count() {
            assert_eq!(driver.ring(queue).used_index(), 0);
        }
        works(&mut driver, &eager);
    }
}

/// FAILED stays until the reset.
pub fn failed_driver_needs_a_reset(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    driver.negotiate(0);
    driver.add_status(FAILED);
    driver.add_status(DRIVER_OK);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | FAILED);
    driver.write(reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE.into());
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | FAILED);
    driver.start(0);
    works(&mut driver, &eager);
}

const QUEUE_REGISTERS: [u32; 7] = [
    reg::VIRTIO_MMIO_QUEUE_NUM,
    reg::VIRTIO_MMIO_QUEUE_DESC_LOW,
    reg::VIRTIO_MMIO_QUEUE_DESC_HIGH,
    reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
    reg::VIRTIO_MMIO_QUEUE_USED_LOW,
    reg::VIRTIO_MMIO_QUEUE_USED_HIGH,
];

/// Writes each register of every queue with what makes a ring impossible, and QueueReady with `ready`.
fn scribble(driver: &TestDriver, ready: &[u32]) {
    for queue in 0..driver.queue_count() {
        driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue.into());
        for value in [u32::MAX, 3, 0x7fff_fff1] {
            QUEUE_REGISTERS.iter().for_each(|&register| driver.write(register, value));
        }
        ready.iter().for_each(|&value| driver.write(reg::VIRTIO_MMIO_QUEUE_READY, value));
    }
}

/// Queue registers stay as they are before the features are settled.
pub fn a1_queue_registers_before_features_ok(factory: Factory) {
    let mut driver = TestDriver::boxed(factory());
    let queues = driver.queue_count();
    for bits in [0, ACKNOWLEDGE, DRIVER] {
        driver.add_status(bits);
        scribble(&driver, &[1]);
        for queue in 0..queues {
            assert_ne!(driver.queue_max(queue), 0);
            assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
        }
    }
    assert!(driver.accept(VERSION_1));
    // With the values after a reset (the largest size, addresses of 0) a queue is possible.
    for queue in 0..queues {
        driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue.into());
        driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 1);
    }
    // With the scribbled ones it is not.
    for queue in 0..queues {
        driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue.into());
        driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    }
    scribble(&driver, &[1]);
    for queue in 0..queues {
        driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue.into());
        assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    }
}

/// Queue registers stay as they are once a queue is enabled.
pub fn a1_queue_registers_after_ready(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    driver.negotiate(0);
    for queue in 0..driver.queue_count() {
        assert!(driver.set_up_queue(queue, 4));
    }
    scribble(&driver, &[]);
    driver.add_status(DRIVER_OK);
    works(&mut driver, &eager);
}

/// Queue registers stay as they are while the driver runs.
pub fn a1_queue_registers_after_driver_ok(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    driver.start(0);
    scribble(&driver, &[0, 1, 0]);
    for queue in 0..driver.queue_count() {
        driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue.into());
        assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 1);
    }
    works(&mut driver, &eager);
    driver.device().quiesce().unwrap();
    driver.device().resume().unwrap();
    works(&mut driver, &eager);
}

/// The outcome of breaking an eager queue; on the others, that no harm was done. Then everything works again.
fn breaks(factory: Factory, eager: &[u16], wanted: u64, what: &str, hostile: &dyn Fn(&mut TestDriver, u16)) {
    let queues = TestDriver::boxed(factory()).queue_count();
    for queue in 0..queues {
        let mut driver = TestDriver::boxed(factory());
        driver.start(wanted);
        driver.pump();
        driver.interrupts();
        hostile(&mut driver, queue);
        driver.kick_register(queue.into());
        driver.kick_register(queue.into());
        if eager.contains(&queue) || driver.status() & NEEDS_RESET != 0 {
            needs_reset(&driver);
        } else {
            assert_eq!(driver.reports(), [], "{what} on queue {queue}");
        }
        assert_eq!(driver.ring(queue).used_index(), 0, "{what} on queue {queue}");
        // Broken stays broken, also across a pause, and says so only once.
        driver.device().quiesce().unwrap();
        driver.device().resume().unwrap();
        driver.pump();
        assert!(driver.reports().len() <= 1, "{what} on queue {queue}");
        assert_eq!(driver.ring(queue).used_index(), 0, "{what} on queue {queue}");
        driver.start(wanted);
        works(&mut driver, eager);
    }
}

/// A head that is offered twice is given back once for each offer, or breaks the queue.
pub fn a2_duplicate_heads(factory: Factory) {
    let eager = eager(factory);
    for &queue in &eager {
        let mut driver = TestDriver::boxed(factory());
        driver.start(u64::MAX);
        let segment = driver.buffer(64);
        driver.ring(queue).set_desc(3, Desc::writable(segment));
        driver.ring(queue).publish(3);
        driver.ring(queue).publish(3);
        driver.kick_register(queue.into());
        driver.device().quiesce().unwrap();
        match driver.ring(queue).used_index() {
            2 => assert_eq!(driver.status() & NEEDS_RESET, 0),
            used => assert!(used <= 1 && driver.status() & NEEDS_RESET != 0, "{used} used"),
        }
        driver.device().resume().unwrap();
        driver.start(0);
        works(&mut driver, &eager);
    }
}

/// An available index that jumps breaks the queue, and is not processed for ever.
pub fn a3_available_index_jumps(factory: Factory) {
    let eager = eager(factory);
    for wanted in [0, EVENT_IDX] {
        for index in [257, 300, 32768, 65535] {
            let jump = |driver: &mut TestDriver, queue| {
                let size = driver.ring(queue).size;
                driver.ring(queue).set_avail_index(if index == 257 { size + 1 } else { index });
            };
            breaks(factory, &eager, wanted, "a jump", &jump);
        }
    }
}

/// Every malformed chain breaks the queue before anything of it is used.
pub fn a4_hostile_chains(factory: Factory) {
    type Case = (&'static str, fn(&mut TestDriver, u16));
    const BUFFER: u64 = 33 << 20;
    const TABLE: u64 = 34 << 20;
    const GOOD: Desc = Desc { addr: BUFFER, len: 16, flags: 0, next: 0 };
    const END: u64 = 64 << 20;
    fn next(to: u16) -> Desc {
        Desc { flags: Desc::NEXT, next: to, ..GOOD }
    }
    fn table(len: u32) -> Desc {
        Desc { addr: TABLE, len, flags: Desc::INDIRECT, next: 0 }
    }
    fn one(driver: &mut TestDriver, queue: u16, desc: Desc) {
        driver.ring(queue).set_desc(0, desc);
        driver.ring(queue).set_desc(1, GOOD);
        driver.ring(queue).publish(0);
    }
    let cases: &[Case] = &[
        ("next loops to itself", |d, q| one(d, q, next(0))),
        ("next loops", |d, q| {
            d.ring(q).set_desc(1, next(2));
            d.ring(q).set_desc(2, next(1));
            d.ring(q).publish(1);
        }),
        ("next outside the table", |d, q| {
            let size = d.ring(q).size;
            one(d, q, next(size));
        }),
        ("head outside the table", |d, q| {
            let size = d.ring(q).size;
            d.ring(q).publish(size);
        }),
        ("longer than the queue", |d, q| {
            let size = d.ring(q).size;
            (0..size).for_each(|i| d.ring(q).set_desc(i, next((i + 1) % size)));
            d.ring(q).publish(0);
        }),
        ("indirect in indirect", |d, q| {
            d.ring(q).set_desc_at(TABLE, table(16));
            one(d, q, table(16));
        }),
        ("indirect with next", |d, q| {
            d.ring(q).set_desc_at(TABLE, GOOD);
            one(d, q, Desc { flags: Desc::INDIRECT | Desc::NEXT, next: 1, ..table(16) });
        }),
        ("indirect of length 0", |d, q| one(d, q, table(0))),
        ("indirect of length 24", |d, q| one(d, q, table(24))),
        ("indirect that is huge", |d, q| one(d, q, table(!15))),
        ("indirect outside RAM", |d, q| one(d, q, Desc { addr: END - 16, ..table(32) })),
        ("indirect that loops", |d, q| {
            d.ring(q).set_desc_at(TABLE, next(0));
            one(d, q, table(16));
        }),
        ("indirect next outside its table", |d, q| {
            d.ring(q).set_desc_at(TABLE, next(1));
            one(d, q, table(16));
        }),
        ("read after write", |d, q| one(d, q, Desc { flags: Desc::WRITE | Desc::NEXT, next: 1, ..GOOD })),
        ("zero length", |d, q| one(d, q, Desc { len: 0, ..GOOD })),
        ("zero length, writable", |d, q| one(d, q, Desc { len: 0, flags: Desc::WRITE, ..GOOD })),
        ("address and length wrap", |d, q| one(d, q, Desc { addr: u64::MAX - 7, ..GOOD })),
        ("across the end of RAM", |d, q| one(d, q, Desc { addr: END - 8, ..GOOD })),
        ("across a hole", |d, q| one(d, q, Desc { len: u32::MAX, ..GOOD })),
        ("outside RAM", |d, q| one(d, q, Desc { addr: END, flags: Desc::WRITE, ..GOOD })),
    ];
    let eager = eager(factory);
    for (what, hostile) in cases {
        breaks(factory, &eager, u64::MAX, what, hostile);
    }
    let unwanted = |d: &mut TestDriver, q: u16| {
        d.ring(q).set_desc_at(TABLE, GOOD);
        one(d, q, table(16));
    };
    breaks(factory, &eager, 0, "indirect that was not negotiated", &unwanted);
}

/// A selected queue that does not exist reads as nothing and takes nothing.
pub fn a5_queue_select_out_of_range(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    driver.negotiate(0);
    let queues = driver.queue_count();
    for queue in 0..queues {
        assert!(driver.set_up_queue(queue, 4));
    }
    for select in [u32::from(queues), 0xffff, 0x1_0000, u32::MAX] {
        driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, select);
        assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
        QUEUE_REGISTERS.iter().for_each(|&register| driver.write(register, u32::MAX));
        driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    }
    driver.add_status(DRIVER_OK);
    works(&mut driver, &eager);
}

/// A kick for a queue that does not exist wakes nobody.
pub fn a7_notify_of_no_queue(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    driver.start(0);
    let queues = driver.queue_count();
    for queue in [u32::from(queues), u32::from(queues) + 1, 0xffff, 0x1_0000, u32::MAX] {
        driver.kick_register(queue);
    }
    assert_eq!(driver.interrupts(), 0);
    works(&mut driver, &eager);
}

/// One descriptor, offered again and again, takes no more than the ring has room for.
pub fn a8_one_descriptor_for_ever(factory: Factory) {
    let eager = eager(factory);
    for &queue in &eager {
        let mut driver = TestDriver::boxed(factory());
        driver.start(u64::MAX);
        let segment = driver.buffer(64);
        driver.ring(queue).set_desc(0, Desc::writable(segment));
        for _ in 0..4 {
            let size = driver.ring(queue).size;
            (0..size).for_each(|_| driver.ring(queue).publish(0));
            driver.kick_register(queue.into());
            assert!(driver.ring(queue).used_index() <= driver.ring(queue).avail_index());
        }
        driver.device().quiesce().unwrap();
        driver.start(0);
        driver.device().resume().unwrap();
        works(&mut driver, &eager);
    }
}

/// The device never says that it wrote more than there was room for.
pub fn a10_used_length_is_bounded(factory: Factory) {
    for queue in eager(factory) {
        let mut driver = TestDriver::boxed(factory());
        driver.start(0);
        for (readable, writable) in [(16, 0), (0, 1), (0, 64), (16, 1), (1, 1), (4096, 4096), (16, 100_000)] {
            let readable = vec![0; readable];
            let readable: &[&[u8]] = if readable.is_empty() { &[] } else { &[&readable] };
            let lengths: &[u32] = if writable == 0 { &[] } else { &[writable] };
            driver.request(queue, readable, lengths);
            driver.kick(queue);
            let Used { len, .. } = driver.wait_used(queue);
            assert!(len <= writable, "{len} of {writable}");
        }
    }
}

/// A driver that accepts what was not offered, or does not accept version 1, gets no FEATURES_OK.
pub fn a11_unoffered_features(factory: Factory) {
    let mut driver = TestDriver::boxed(factory());
    let offered = driver.offered();
    assert_ne!(offered & VERSION_1, 0);
    driver.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_DEVICE_FEATURES), 0);
    let begin = |driver: &mut TestDriver| {
        driver.reset();
        driver.add_status(ACKNOWLEDGE);
        driver.add_status(DRIVER);
    };
    for bit in (0..64).map(|bit| 1u64 << bit) {
        begin(&mut driver);
        assert_eq!(driver.accept(VERSION_1 | bit), offered & bit != 0, "{bit:#x}");
    }
    for select in [2, 3, u32::MAX] {
        for bit in 0..32 {
            begin(&mut driver);
            driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, 1 << bit);
            assert!(!driver.accept(VERSION_1), "bit {bit} of window {select:#x}");
        }
    }
    begin(&mut driver);
    assert!(!driver.accept(offered & !VERSION_1));
    // A refusal can be mended, an agreement cannot be changed.
    assert!(driver.accept(offered));
    driver.accept(u64::MAX);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    driver.add_status(DRIVER_OK);
    assert_eq!(driver.status() & NEEDS_RESET, 0);
}

/// What the specification makes of a status write, in prose: one step of the order, or giving up, or a reset.
fn expected_status(from: u8, to: u8) -> u8 {
    let order = [0, ACKNOWLEDGE, DRIVER | ACKNOWLEDGE, 0b1011, 0b1111];
    let to = to & !NEEDS_RESET | if to == NEEDS_RESET { NEEDS_RESET } else { 0 };
    let position = order.iter().position(|&status| status == from);
    match position {
        _ if to == 0 => 0,
        Some(_) if to == from | FAILED => to,
        Some(at) if order.get(at + 1) == Some(&to) => to,
        _ => from,
    }
}

/// All pairs of status writes end where the specification says.
pub fn a13_all_status_pairs(factory: Factory) {
    let driver = TestDriver::boxed(factory());
    let write = |value: u8| driver.write(reg::VIRTIO_MMIO_STATUS, value.into());
    // The features are right, so that only the order matters.
    let accept = || {
        driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, (VERSION_1 >> 32) as u32);
    };
    let order: [&[u8]; 5] = [&[], &[1], &[1, 3], &[1, 3, 11], &[1, 3, 11, 15]];
    for first in 0..=255 {
        for second in 0..=255 {
            write(0);
            write(first);
            write(second);
            assert_eq!(
                driver.status(),
                expected_status(expected_status(0, first), second),
                "{first} {second}"
            );
        }
    }
    for path in order {
        for written in 0..=255 {
            write(0);
            for &step in path {
                write(step);
                accept();
            }
            let from = path.last().copied().unwrap_or(0);
            assert_eq!(driver.status(), from);
            write(written);
            assert_eq!(driver.status(), expected_status(from, written), "{from} {written}");
        }
    }
    driver.pump();
}

/// A device whose queues do not start, the first time.
struct Refusing {
    device: Box<dyn VirtioDevice>,
    refused: AtomicBool,
}

impl VirtioDevice for Refusing {
    fn device_type(&self) -> DeviceType {
        self.device.device_type()
    }

    fn features(&self) -> u64 {
        self.device.features()
    }

    fn queues(&self) -> &[u16] {
        self.device.queues()
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        self.device.groups()
    }

    fn config_len(&self) -> u32 {
        self.device.config_len()
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) {
        self.device.read_config(offset, buf);
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    fn start(&mut self, group: usize, start: Start) -> Result<Box<dyn Worker>, StartError> {
        if !self.refused.swap(true, Ordering::Relaxed) {
            return Err(StartError { reason: "not today".to_owned(), source: None });
        }
        self.device.start(group, start)
    }

    fn reset(&mut self) {
        self.device.reset();
    }

    fn state(&self) -> State {
        self.device.state()
    }

    fn syscalls(&self) -> &'static [Syscall] {
        self.device.syscalls()
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        self.device.metrics(visitor);
    }
}

fn activation_failed(driver: &mut TestDriver, eager: &[u16]) {
    driver.start(0);
    needs_reset(driver);
    for queue in 0..driver.queue_count() {
        probe(driver, queue);
        driver.kick_register(queue.into());
        assert_eq!(driver.ring(queue).used_index(), 0);
    }
    driver.start(0);
    works(driver, eager);
    assert_eq!(driver.reports().len(), 1);
}

/// A device that cannot start says so, and can after a reset.
pub fn a14_activation_fails_in_the_device(factory: Factory) {
    let eager = eager(factory);
    let refusing = Refusing { device: factory(), refused: AtomicBool::new(false) };
    activation_failed(&mut TestDriver::new(refusing), &eager);
}

/// A runtime that refuses workers, the first time.
struct RefusingRuntime {
    runtime: SharedLoop,
    refused: AtomicBool,
}

impl Runtime for RefusingRuntime {
    fn spawn(
        &self,
        name: &str,
        worker: Box<dyn Worker>,
        broken: Box<dyn FnOnce(QueueBroken) + Send>,
    ) -> Result<Box<dyn WorkerHandle>, RuntimeError> {
        if !self.refused.swap(true, Ordering::Relaxed) {
            return Err(RuntimeError { reason: "full".to_owned(), source: None });
        }
        self.runtime.spawn(name, worker, broken)
    }
}

/// As above, where the runtime is the one that cannot.
pub fn a14_activation_fails_in_the_runtime(factory: Factory) {
    let eager = eager(factory);
    let runtime =
        RefusingRuntime { runtime: SharedLoop::new("conformance").unwrap(), refused: AtomicBool::new(false) };
    activation_failed(&mut TestDriver::with_runtime(factory(), Arc::new(runtime)), &eager);
}

/// Another vCPU rewrites rings and buffers while the device works on them.
pub fn a16_ring_rewritten_while_in_use(factory: Factory) {
    let eager = eager(factory);
    let runtime = Arc::new(SharedLoop::new("conformance").unwrap());
    let mut driver = TestDriver::with_runtime(factory(), runtime);
    for round in 0..4u64 {
        driver.start(if round % 2 == 0 { u64::MAX } else { 0 });
        let rings: Vec<_> = (0..driver.queue_count()).map(|queue| driver.ring(queue).clone()).collect();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut seed = round + 1;
                let mut random = || {
                    seed =
                        seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    seed >> 33
                };
                while !stop.load(Ordering::Relaxed) {
                    for ring in &rings {
                        let addr =
                            if random() % 64 == 0 { random() << 8 } else { (33 << 20) + random() % 4096 };
                        let (len, flags) = (random() as u32 % 600, (random() % 8) as u16 & !Desc::INDIRECT);
                        let next = random() as u16 % ring.size;
                        ring.set_desc(random() as u16 % ring.size, Desc { addr, len, flags, next });
                    }
                }
            });
            for _ in 0..200 {
                for queue in 0..rings.len() as u16 {
                    let ring = driver.ring(queue);
                    let head = ring.avail_index() % ring.size;
                    ring.publish(head);
                    driver.kick_register(queue.into());
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        driver.reset();
    }
    driver.start(0);
    works(&mut driver, &eager);
}

/// Chains that are offered around a pause are served, and their interrupt comes, with and without EVENT_IDX.
pub fn a18_no_kick_or_interrupt_is_lost(factory: Factory) {
    let eager = eager(factory);
    for wanted in [0, EVENT_IDX] {
        for &queue in &eager {
            let mut driver = TestDriver::boxed(factory());
            driver.start(wanted);
            works(&mut driver, &eager);
            for _ in 0..3 {
                // Kicked, and paused before anybody took the turn.
                let segment = driver.buffer(64);
                let next = driver.ring(queue).next_used();
                driver.ring(queue).set_used_event(next);
                driver.interrupts();
                let head = driver.offer(queue, &[Desc::writable(segment)]);
                driver.doorbell(queue).signal().unwrap();
                driver.device().quiesce().unwrap();
                driver.device().resume().unwrap();
                driver.pump();
                assert_eq!(driver.used(queue).map(|used| used.head), Some(head.into()));
                assert!(driver.interrupts() > 0);
                // Offered and kicked while it was quiet, where the doorbell is taken by nobody.
                driver.device().quiesce().unwrap();
                let next = driver.ring(queue).next_used();
                driver.ring(queue).set_used_event(next);
                let head = driver.offer(queue, &[Desc::writable(segment)]);
                driver.kick(queue);
                driver.doorbell(queue).take().unwrap();
                driver.device().resume().unwrap();
                driver.pump();
                assert_eq!(driver.used(queue).map(|used| used.head), Some(head.into()));
                assert!(driver.interrupts() > 0);
                works(&mut driver, &eager);
            }
        }
    }
}
