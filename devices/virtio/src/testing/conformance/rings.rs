//! Rows about rings that break the rules.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Factory, eager, needs_reset, works};
use crate::SharedLoop;
use crate::features::EVENT_IDX;
use crate::testing::{Desc, TestDriver, Used};
use crate::transport::status::NEEDS_RESET;

/// The outcome of breaking an eager queue; on the others, that no harm was done. Then everything works again.
fn breaks(factory: Factory, eager: &[u16], wanted: u128, what: &str, hostile: &dyn Fn(&mut TestDriver, u16)) {
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
        driver.start(u128::MAX);
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
        breaks(factory, &eager, u128::MAX, what, hostile);
    }
    let unwanted = |d: &mut TestDriver, q: u16| {
        d.ring(q).set_desc_at(TABLE, GOOD);
        one(d, q, table(16));
    };
    breaks(factory, &eager, 0, "indirect that was not negotiated", &unwanted);
}

/// One descriptor, offered again and again, takes no more than the ring has room for.
pub fn a8_one_descriptor_for_ever(factory: Factory) {
    let eager = eager(factory);
    for &queue in &eager {
        let mut driver = TestDriver::boxed(factory());
        driver.start(u128::MAX);
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

/// Another vCPU rewrites rings and buffers while the device works on them.
pub fn a16_ring_rewritten_while_in_use(factory: Factory) {
    let eager = eager(factory);
    let runtime = Arc::new(SharedLoop::new("conformance").unwrap());
    let mut driver = TestDriver::with_runtime(factory(), runtime);
    for round in 0..4u64 {
        driver.start(if round % 2 == 0 { u128::MAX } else { 0 });
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
