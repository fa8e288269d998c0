//! The transport around a device that does whatever the test wants.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use ossature_bus::state::StateError;
use ossature_bus::testing::TestBoard;
use ossature_bus::{
    Access, BusFault, Device, DeviceError, DeviceEvent, DeviceState, Handover, Metric, MetricVisitor,
    Requires, Size, Syscall,
};
use virtio_bindings::bindings::virtio_mmio as reg;

use super::core::Ring;
use super::status::*;
use crate::features::{EVENT_IDX, INDIRECT_DESC, RING_RESET, VERSION_1};
use crate::testing::{Desc, TestDriver, Transport, on_each_transport};
use crate::{
    Activation, ConfigInterrupt, DedicatedThread, DeviceInfo, DeviceType, Inline, LocalDevice, MmioInterrupt,
    QueueBroken, Removed, Runtime, SharedLoop, Source, Turn, VirtQueue, VirtioMmio, Worker,
};

mod elsewhere;
mod interrupts;
mod panics;
mod pci;
mod slow;
mod state;

/// A feature of the device's own, above the first 64.
const OWN: u128 = 1 << 100;

/// What the test and the device share.
#[derive(Default)]
struct Shared {
    value: AtomicU32,
    resets: AtomicU32,
    finished: AtomicU32,
    features: Mutex<Vec<u128>>,
    /// The queues that came, with their groups.
    started: Mutex<Vec<(usize, u16)>>,
    config: Mutex<Option<ConfigInterrupt>>,
}

/// Three queues in two groups, one field of configuration, and a worker that writes one byte per chain.
struct Sample {
    shared: Arc<Shared>,
    queues: Vec<u16>,
    groups: Vec<Vec<u16>>,
    config_len: u32,
    flaw: Flaw,
}

impl Sample {
    fn new(shared: &Arc<Shared>) -> Self {
        Self {
            shared: shared.clone(),
            queues: vec![256, 64, 16],
            groups: vec![vec![2, 0], vec![1]],
            config_len: 6,
            flaw: Flaw::None,
        }
    }
}

impl LocalDevice for Sample {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new(DeviceType::CONSOLE, &self.queues)
            .with_features(1 << 3 | OWN)
            .with_config(self.config_len)
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        self.groups.clone()
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) {
        let value = self.shared.value.load(Ordering::Relaxed).to_le_bytes();
        for (i, byte) in buf.iter_mut().enumerate() {
            *byte = value.get(i + offset as usize).copied().unwrap_or(0xee);
        }
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        let mut bytes = self.shared.value.load(Ordering::Relaxed).to_le_bytes();
        for (i, byte) in data.iter().enumerate() {
            if let Some(at) = bytes.get_mut(i + offset as usize) {
                *at = *byte;
            }
        }
        self.shared.value.store(u32::from_le_bytes(bytes), Ordering::Relaxed);
    }

    fn worker(&mut self, group: usize, activation: &Activation) -> Result<Box<dyn Worker>, DeviceError> {
        self.shared.features.lock().unwrap().push(activation.features);
        *self.shared.config.lock().unwrap() = Some(activation.config.clone());
        Ok(Box::new(SampleWorker { shared: self.shared.clone(), group, queues: Vec::new(), flaw: self.flaw }))
    }

    fn forget_queue(&mut self, _: u16) {}

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) {
        self.shared.resets.fetch_add(1, Ordering::Relaxed);
        self.shared.value.store(0, Ordering::Relaxed);
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::Stateless)
    }

    fn restore(&mut self, _: Handover) -> Result<(), StateError> {
        Err(StateError::Unsupported { reason: "a sample has none" })
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[Syscall("write")]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        visitor.counter("sample", "A sample.", 1);
    }
}

struct SampleWorker {
    shared: Arc<Shared>,
    group: usize,
    queues: Vec<VirtQueue>,
    flaw: Flaw,
}

/// What a device can get wrong, for the suite to find.
#[derive(Clone, Copy, PartialEq)]
enum Flaw {
    None,
    /// It goes on with a broken queue.
    Deaf,
    /// It sleeps without asking for a kick.
    Careless,
    /// It drops what it holds when it is paused.
    Forgetful,
}

impl Worker for SampleWorker {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn add_queue(&mut self, queue: VirtQueue) {
        self.shared.started.lock().unwrap().push((self.group, queue.index()));
        self.queues.push(queue);
    }

    fn remove_queue(&mut self, index: u16) -> Removed {
        let at = self.queues.iter().position(|queue| queue.index() == index);
        let mut queue = at.map(|at| self.queues.swap_remove(at));
        if self.flaw == Flaw::Forgetful {
            queue.iter_mut().for_each(|queue| drop(queue.pop()));
        }
        queue.into()
    }

    fn turn(&mut self, token: u16) -> Result<Turn, QueueBroken> {
        let Some(queue) = self.queues.iter_mut().find(|queue| queue.index() == token) else {
            return Ok(Turn::Sleep);
        };
        match serve(queue, self.flaw) {
            Err(_) if self.flaw == Flaw::Deaf => Ok(Turn::Sleep),
            turn => turn,
        }
    }
}

impl Drop for SampleWorker {
    fn drop(&mut self) {
        self.shared.finished.fetch_add(1, Ordering::Relaxed);
    }
}

fn serve(queue: &mut VirtQueue, flaw: Flaw) -> Result<Turn, QueueBroken> {
    while let Some(chain) = queue.pop()? {
        queue.complete(chain, 1)?;
    }
    queue.flush()?;
    let more = flaw != Flaw::Careless && queue.enable_kicks()?;
    Ok(if more { Turn::Again } else { Turn::Sleep })
}

fn sample() -> (Arc<Shared>, TestDriver) {
    let shared = Arc::default();
    let driver = TestDriver::new(Sample::new(&shared));
    (shared, driver)
}

crate::conformance_tests!(conformance, || Sample::new(&Arc::default()));

/// The suite's rows that a flaw must not pass.
macro_rules! found {
    ($($flaw:ident by $row:ident as $name:ident),* $(,)?) => {$(
        #[test]
        #[should_panic]
        fn $name() {
            let device = || Sample { flaw: Flaw::$flaw, ..Sample::new(&Arc::default()) };
            crate::testing::conformance::$row(&|| Box::new(device()));
        }
    )*};
}

found! {
    Deaf by a3_available_index_jumps as the_suite_finds_a_device_deaf_to_jumps,
    Deaf by a4_hostile_chains as the_suite_finds_a_device_deaf_to_chains,
    Careless by a18_no_kick_or_interrupt_is_lost as the_suite_finds_a_careless_device,
    Forgetful by a18_no_kick_or_interrupt_is_lost as the_suite_finds_a_forgetful_device,
}

#[test]
fn it_asks_for_a_page_a_line_and_doorbells() {
    let device = |interrupt| {
        let sample = Box::new(Sample::new(&Arc::default()));
        VirtioMmio::new("one", sample, Arc::new(DedicatedThread)).with_interrupt(interrupt)
    };
    let doorbells = |requires: &Requires| -> Vec<_> {
        requires.registers[0].doorbells.iter().map(|d| (d.offset, d.size, d.value)).collect()
    };
    let kicks = [0, 1, 2].map(|queue| (0x50, Size::B4, Some(queue)));
    let exact = device(MmioInterrupt::Exact).requires();
    assert_eq!((exact.registers.len(), exact.interrupts.len()), (1, 1));
    let registers = &exact.registers[0];
    assert_eq!((registers.size, registers.align, registers.page), (4096, 4096, true));
    assert_eq!(doorbells(&exact), kicks);
    assert_eq!(exact.interrupts[0], ossature_bus::InterruptRequest::edge("irq"));
    let always = device(MmioInterrupt::AlwaysSet).requires();
    assert_eq!(doorbells(&always), [&kicks[..], &[(0x64, Size::B4, Some(1))]].concat());
    assert_eq!(always.interrupts, exact.interrupts);
    let shared = device(MmioInterrupt::SharedLine).requires();
    assert_eq!(doorbells(&shared), kicks);
    assert_eq!(shared.interrupts[0], ossature_bus::InterruptRequest::level("irq"));
    let device = device(MmioInterrupt::Exact);
    assert_eq!((device.id(), device.syscalls()), ("one", &[Syscall("write")][..]));
}

#[test]
fn identification_reads_as_specified() {
    let (_, driver) = sample();
    assert_eq!(driver.read(reg::VIRTIO_MMIO_DEVICE_ID), 3);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_VENDOR_ID).to_le_bytes(), *b"OSSA");
    assert_eq!(driver.read(reg::VIRTIO_MMIO_SHM_LEN_LOW), u32::MAX);
    assert_eq!(driver.offered(), 1 << 3 | OWN | VERSION_1 | EVENT_IDX | INDIRECT_DESC | RING_RESET);
    assert_eq!((driver.queue_max(0), driver.queue_max(1), driver.queue_max(2)), (256, 64, 16));
}

#[test]
fn registers_have_one_width_and_one_direction() {
    let (_, driver) = sample();
    let port = driver.port();
    for offset in (0..0x100u64).chain([0x101, 0x1000, u64::MAX]) {
        for size in [Size::B1, Size::B2, Size::B8] {
            let at = Access { offset, size };
            if offset < 0x100 {
                assert_eq!(port.read(at), Err(BusFault::Width));
                assert_eq!(port.write(at, 0), Err(BusFault::Width));
            }
        }
        let at = Access { offset, size: Size::B4 };
        if offset % 4 != 0 && offset < 0x100 {
            assert_eq!(port.read(at), Err(BusFault::Alignment));
        }
        let (read, wrote) = (port.read(at), port.write(at, 0));
        assert_eq!(read == Err(BusFault::WriteOnly), wrote.is_ok() && read.is_err(), "{offset:#x}");
        assert_eq!(wrote == Err(BusFault::ReadOnly), read.is_ok() && wrote.is_err(), "{offset:#x}");
    }
}

#[test]
fn workers_get_the_queues_that_are_enabled() {
    let (shared, mut driver) = sample();
    driver.negotiate(OWN);
    assert!(driver.set_up_queue(2, 16));
    driver.add_status(DRIVER_OK);
    assert_eq!(*shared.started.lock().unwrap(), [(0, 2)]);
    assert_eq!(*shared.features.lock().unwrap(), [OWN | VERSION_1]);
    driver.start(0);
    assert_eq!(shared.started.lock().unwrap()[1..], [(0, 0), (1, 1), (0, 2)]);
    assert_eq!(shared.finished.load(Ordering::Relaxed), 1);
}

/// The bare-metal driver of rows G1 to G3, write by write.
#[test]
fn a_driver_that_is_not_linux_sees_what_the_specification_says() {
    let device = crate::Blk::new(crate::blk::NullDisk::new(16), crate::blk::DiskId::default());
    let driver = TestDriver::new(device);
    let set = |writes: &[(u32, u32)]| writes.iter().for_each(|&(at, value)| driver.write(at, value));
    let seen = |at| driver.read(at);
    set(&[(0x70, 0), (0x70, 3)]);
    assert_eq!(seen(0x70), 3, "a");
    set(&[(0x70, 0), (0x70, 1), (0x70, 3)]);
    assert_eq!(seen(0x70), 3, "b");
    set(&[(0x24, 0), (0x20, 0), (0x24, 1), (0x20, 1), (0x70, 11)]);
    assert_eq!(seen(0x70), 0xb, "c");
    set(&[(0x30, 0), (0x38, 16), (0x80, 0x200_0000), (0x84, 0), (0x90, 0x200_1000), (0x94, 0)]);
    set(&[(0xa0, 0x200_2000), (0xa4, 0), (0x44, 1)]);
    assert_eq!(seen(0x44), 1, "d");
    set(&[(0x44, 0)]);
    assert_eq!(seen(0x44), 0, "e");
    set(&[(0x44, 1), (0x70, 15)]);
    assert_eq!(seen(0x70), 0xf, "f");
    assert_eq!(seen(0x60), 0, "g");
    set(&[(0x44, 0)]);
    assert_eq!(seen(0x44), 0, "h");
    set(&[(0x64, 1)]);
    assert_eq!(seen(0x60), 0, "i");
    assert_eq!(driver.reports(), []);
}

#[test]
fn a13_features_are_accepted_in_one_status_only() {
    on_each_transport(|| {
        let (shared, mut driver) = sample();
        let accept = |driver: &TestDriver, bits: u32| {
            driver.registers().set_driver_features(0, bits);
        };
        // Before there is a driver: had these been taken, the negotiation would fail.
        accept(&driver, u32::MAX);
        driver.add_status(ACKNOWLEDGE);
        accept(&driver, u32::MAX);
        driver.add_status(DRIVER);
        driver.registers().set_driver_features(1, (VERSION_1 >> 32) as u32);
        driver.add_status(FEATURES_OK);
        assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
        accept(&driver, 1 << 3);
        assert!(driver.set_up_queue(1, 64));
        driver.add_status(DRIVER_OK);
        accept(&driver, u32::MAX);
        driver.device().quiesce().unwrap();
        driver.device().resume().unwrap();
        assert_eq!(*shared.features.lock().unwrap(), [VERSION_1, VERSION_1]);
    });
}

#[test]
fn a_driver_without_queues_is_fine() {
    on_each_transport(|| {
        let (shared, mut driver) = sample();
        driver.negotiate(0);
        driver.add_status(DRIVER_OK);
        assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
        assert!(shared.started.lock().unwrap().is_empty());
    });
}

#[test]
fn a_queue_that_cannot_be_stays_disabled() {
    on_each_transport(|| {
        let (_, mut driver) = sample();
        let transport = driver.transport();
        let mut enables = |size: u32, flaw: Option<(Ring, u64)>| {
            driver.negotiate(0);
            driver.registers().select_queue(1);
            driver.registers().set_queue_size(size);
            for (ring, addr) in
                [(Ring::Desc, 0x1000), (Ring::Avail, 0x2000), (Ring::Used, 0x3000)].into_iter().chain(flaw)
            {
                driver.registers().set_queue_address(ring, addr);
            }
            driver.enable_queue(1)
        };
        assert!(enables(64, None));
        for size in [0, 63, 128] {
            assert!(!enables(size, None), "{size} entries");
        }
        for flaw in [
            (Ring::Desc, 8),
            (Ring::Avail, 1),
            (Ring::Used, 2),
            (Ring::Desc, 9 << 32),
            (Ring::Used, u64::from(u32::MAX) << 32),
        ] {
            assert!(!enables(64, Some(flaw)), "{flaw:x?}");
        }
        assert!(enables(64, None));
        // The MMIO transport's register is wider than a size.
        assert!(transport == Transport::Pci || !enables(0x1_0040, None));
    });
}

#[test]
fn the_used_buffer_bit_may_be_always_set_and_acknowledged_for_nothing() {
    let device = Sample::new(&Arc::default());
    let mut driver = TestDriver::with_interrupt(device, MmioInterrupt::AlwaysSet);
    driver.negotiate(0);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    driver.start(0);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    driver.write(reg::VIRTIO_MMIO_INTERRUPT_ACK, 1);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    driver.reset();
    assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn a_configuration_change_is_seen_with_a_new_generation_and_acknowledged() {
    on_each_transport(|| {
        let (shared, mut driver) = sample();
        driver.start(0);
        let config = shared.config.lock().unwrap().clone().unwrap();
        let generation = driver.generation();
        shared.value.store(0x0403_0201, Ordering::Relaxed);
        assert_eq!(driver.config::<4>(0), [0; 4]);
        config.raise();
        assert_eq!(driver.config::<6>(0), [1, 2, 3, 4, 0xee, 0xee]);
        assert_ne!(driver.generation(), generation);
        assert!(driver.registers().take_config_interrupt());
        driver.acknowledge();
        assert_eq!(driver.registers().pending(), 0);
        // Without a driver there is a new generation, and no interrupt (2.5.2).
        driver.reset();
        let generation = driver.generation();
        config.raise();
        assert_ne!(driver.generation(), generation);
        assert_eq!((driver.interrupts(), driver.registers().pending()), (0, 0));
    });
}

#[test]
fn a_driver_writes_configuration_only_when_it_is_there() {
    on_each_transport(|| {
        let (shared, mut driver) = sample();
        let at = Access { offset: 1, size: Size::B1 };
        driver.registers().set_config(at, 7).unwrap();
        assert_eq!(shared.value.load(Ordering::Relaxed), 0);
        driver.start(0);
        driver.registers().set_config(at, 7).unwrap();
        assert_eq!(driver.config::<4>(0), [0, 7, 0, 0]);
        driver.reset();
        assert_eq!(driver.config::<4>(0), [0; 4]);
    });
}

#[test]
fn every_reset_reaches_the_device_after_its_workers() {
    on_each_transport(|| {
        let (shared, mut driver) = sample();
        driver.start(0);
        driver.reset();
        // The first reset is the one before the start.
        assert_eq!((shared.resets.load(Ordering::Relaxed), shared.finished.load(Ordering::Relaxed)), (2, 2));
    });
}

#[test]
fn a_needed_reset_is_counted() {
    on_each_transport(|| {
        struct Counters(Vec<(String, u64)>);
        impl MetricVisitor for Counters {
            fn metric(&mut self, metric: &Metric<'_>, value: u64) {
                self.0.push((metric.name.to_owned(), value));
            }
        }
        let (_, mut driver) = sample();
        for round in 1..=3 {
            driver.start(0);
            driver.ring(1).set_avail_index(9999);
            driver.ring(2).set_avail_index(9999);
            driver.kick(1);
            driver.kick(2);
            let mut counters = Counters(Vec::new());
            driver.device().metrics(&mut counters);
            let expected = [("needs_resets", round), ("ignored_writes", 0), ("sample", 1)];
            assert_eq!(counters.0, expected.map(|(name, value)| (name.to_owned(), value)));
            assert_eq!(driver.reports().len() as u64, round);
        }
    });
}

#[test]
fn a_broken_queue_leaves_the_other_groups_alone() {
    on_each_transport(|| {
        let (_, mut driver) = sample();
        driver.start(0);
        driver.ring(1).set_avail_index(9999);
        driver.kick(1);
        assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET);
        assert_eq!(driver.transact(0, &[b"x"], &[4]).0.len, 1);
        assert!(
            matches!(&driver.reports()[..], [DeviceEvent::NeedsReset { reason }] if reason.contains("9999"))
        );
    });
}

#[test]
fn interrupts_and_kicks_work_across_threads() {
    on_each_transport(|| {
        let runtimes: [Arc<dyn Runtime>; 2] =
            [Arc::new(SharedLoop::new("virtio").unwrap()), Arc::new(DedicatedThread)];
        for runtime in runtimes {
            for features in [0, u128::MAX] {
                let device = Sample::new(&Arc::default());
                let mut driver = TestDriver::with_runtime(Box::new(device), runtime.clone());
                driver.start(features);
                // More than the ring indices can count, over queues of 16, 64 and 256.
                for i in 0..3000u32 {
                    let queue = (i % 3) as u16;
                    let used = if features != 0 && i % 2 == 0 {
                        driver.request_indirect(queue, &[b"abc"], &[4, 4]);
                        driver.kick(queue);
                        driver.wait_used(queue)
                    } else {
                        driver.transact(queue, &[b"abc"], &[4, 4]).0
                    };
                    assert_eq!(used.len, 1);
                }
                assert_eq!(driver.reports(), []);
            }
        }
    });
}

#[test]
fn a18_pauses_at_any_moment_lose_nothing() {
    on_each_transport(|| {
        let runtimes: [Arc<dyn Runtime>; 2] =
            [Arc::new(SharedLoop::new("virtio").unwrap()), Arc::new(DedicatedThread)];
        for runtime in runtimes {
            for features in [0, EVENT_IDX] {
                let device = Sample::new(&Arc::default());
                let mut driver = TestDriver::with_runtime(Box::new(device), runtime.clone());
                driver.start(features);
                for round in 0..200u64 {
                    let offered = 1 + round % 5;
                    for i in 0..offered {
                        driver.request(1, &[], &[4]);
                        driver.kick(1);
                        // The worker is anywhere in its turn.
                        if i == round % 3 {
                            driver.device().quiesce().unwrap();
                            driver.device().resume().unwrap();
                        }
                    }
                    for _ in 0..offered {
                        driver.wait_used(1);
                    }
                }
                assert_eq!(driver.reports(), []);
            }
        }
    });
}

#[test]
fn a_reset_meets_a_breaking_worker() {
    on_each_transport(|| {
        let runtime = Arc::new(SharedLoop::new("virtio").unwrap());
        let shared: Arc<Shared> = Arc::default();
        let mut driver = TestDriver::with_runtime(Box::new(Sample::new(&shared)), runtime);
        for _ in 0..300 {
            driver.start(0);
            driver.ring(0).set_avail_index(9999);
            driver.ring(1).set_avail_index(9999);
            driver.kick_register(0);
            driver.kick_register(1);
            driver.reset();
            // What the worker had to say belongs to the past.
            assert_eq!(driver.status(), 0);
        }
        driver.start(0);
        assert_eq!(driver.status() & NEEDS_RESET, 0);
        assert_eq!(driver.transact(0, &[b"x"], &[4]).0.len, 1);
    });
}

#[test]
fn vcpus_workers_and_the_host_meet_without_deadlock() {
    on_each_transport(|| {
        let runtime = Arc::new(SharedLoop::new("virtio").unwrap());
        let shared: Arc<Shared> = Arc::default();
        let mut driver = TestDriver::with_runtime(Box::new(Sample::new(&shared)), runtime);
        driver.start(0);
        let config = shared.config.lock().unwrap().clone().unwrap();
        let (registers, stop) = (driver.registers().clone(), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    shared.value.fetch_add(1, Ordering::Relaxed);
                    config.raise();
                }
            });
            // Another vCPU that writes every register there is, status 0 included.
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for value in 0..3 {
                        registers.scribble(value);
                    }
                }
            });
            for _ in 0..500 {
                for status in [0, 1, 3, 11, 15] {
                    driver.write_status(status);
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        // No letter was left unread.
        assert_eq!(driver.config::<4>(0), shared.value.load(Ordering::Relaxed).to_le_bytes());
        driver.start(0);
        assert_eq!(driver.transact(0, &[b"x"], &[4]).0.len, 1);
    });
}

#[test]
fn a_dropped_device_finishes_its_workers() {
    on_each_transport(|| {
        let shared: Arc<Shared> = Arc::default();
        let runtime = Arc::new(SharedLoop::new("virtio").unwrap());
        let mut driver = TestDriver::with_runtime(Box::new(Sample::new(&shared)), runtime);
        driver.start(0);
        drop(driver);
        assert_eq!(shared.finished.load(Ordering::Relaxed), 2);
    });
}

fn attach(device: Sample, change: impl FnOnce(&mut Requires)) -> Result<(), String> {
    let mut device = VirtioMmio::new("odd", Box::new(device), Arc::new(Inline::new().unwrap()));
    let mut requires = device.requires();
    change(&mut requires);
    let assigned = TestBoard::default().assign(&requires);
    let attached = device.attach(assigned).and_then(|_| device.resume());
    attached.map_err(|e| e.to_string())
}

#[test]
fn an_impossible_device_or_machine_is_refused_by_name() {
    let new = || Sample::new(&Arc::default());
    assert_eq!(attach(new(), |_| ()), Ok(()));
    assert_eq!(attach(Sample { config_len: 0xf00, ..new() }, |_| ()), Ok(()));
    let refusals = [
        (attach(new(), |a| a.registers[0].page = false), "odd: needs a register page"),
        (attach(new(), |a| a.interrupts.clear()), r#"odd: the machine gave no interrupt "irq""#),
        (
            attach(new(), |a| a.registers[0].doorbells.truncate(2)),
            r#"odd: the machine gave no doorbell "kick2""#,
        ),
        (
            attach(Sample { config_len: 0xf01, ..new() }, |_| ()),
            "odd: 3841 bytes of configuration space, there is room for 3840",
        ),
        (
            attach(Sample { queues: vec![256, 64, 15], ..new() }, |_| ()),
            "odd: a queue of 15: sizes are powers of two up to 32768",
        ),
        (
            attach(Sample { groups: vec![vec![0, 1], vec![1]], ..new() }, |_| ()),
            "each of 3 queues has to be in one group, they are [0, 1, 1]",
        ),
    ];
    for (result, reason) in refusals {
        assert_eq!(result, Err(reason.to_owned()));
    }
}

#[test]
fn a_device_that_is_not_attached_says_so() {
    let device = Sample::new(&Arc::default());
    let mut device = VirtioMmio::new("loose", Box::new(device), Arc::new(DedicatedThread));
    for result in [device.quiesce(), device.resume(), device.reset(), device.detach()] {
        assert_eq!(result.unwrap_err().to_string(), "loose is not attached to a machine");
    }
}

#[test]
fn hostile_chains_break_one_queue_however_they_come() {
    let (_, mut driver) = sample();
    driver.start(u128::MAX);
    driver.offer(0, &[Desc { addr: u64::MAX, len: 1, flags: 0, next: 0 }]);
    driver.kick(0);
    assert!(
        matches!(&driver.reports()[..], [DeviceEvent::NeedsReset { reason }] if reason.contains("not RAM"))
    );
}

#[test]
fn a_device_that_has_left_does_not_touch_the_registers_of_the_one_in_its_place() {
    let runtime: Arc<dyn Runtime> = Arc::new(Inline::new().unwrap());
    let device = || VirtioMmio::new("one", Box::new(crate::Rng::new()), runtime.clone());
    let (mut old, mut new) = (device(), device());
    let mut board = ossature_bus::testing::TestBoard::default();
    let assigned = board.assign(&old.requires());
    let port = || assigned.registers("registers").unwrap().port().unwrap();
    let status = Access { offset: 0x70, size: Size::B4 };
    old.attach(assigned.clone()).unwrap();
    old.resume().unwrap();
    let _ = port().write(status, 3).unwrap();
    old.quiesce().unwrap();
    let DeviceState::Saved(state) = old.save().unwrap() else { panic!("no state") };
    new.attach(assigned.clone()).unwrap();
    new.restore(state).unwrap();
    new.resume().unwrap();
    assert_eq!(port().read(status), Ok(3));
    old.detach().unwrap();
    assert_eq!(port().read(status), Ok(3));
}
