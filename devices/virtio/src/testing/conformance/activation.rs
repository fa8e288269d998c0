//! Rows about a device that cannot start.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ossature_bus::state::StateError;
use ossature_bus::{DeviceError, DeviceEvent, DeviceState, Handover, MetricVisitor, Syscall};

use super::{Factory, eager, needs_reset, probe, works};
use crate::testing::TestDriver;
use crate::transport::status::{DRIVER_OK, NEEDS_RESET};
use crate::{
    Activation, DeviceInfo, Failure, LocalDevice, QueueBroken, Removed, Runtime, SharedLoop, Source, Turn,
    VirtQueue, Worker, WorkerHandle,
};

/// What is given instead of a worker, the first time.
type Refusal = fn() -> Result<Box<dyn Worker>, DeviceError>;

/// A device whose queues do not start, the first time.
struct Refusing {
    device: Box<dyn LocalDevice>,
    refused: AtomicBool,
    refuse: Refusal,
}

impl LocalDevice for Refusing {
    fn info(&self) -> DeviceInfo {
        self.device.info()
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        self.device.groups()
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) {
        self.device.read_config(offset, buf);
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    fn worker(&mut self, group: usize, activation: &Activation) -> Result<Box<dyn Worker>, DeviceError> {
        if !self.refused.swap(true, Ordering::Relaxed) {
            return (self.refuse)();
        }
        self.device.worker(group, activation)
    }

    fn forget_queue(&mut self, _: u16) {}

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.device.quiesce()
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.device.resume()
    }

    fn reset(&mut self) {
        self.device.reset();
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        self.device.save()
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        self.device.restore(handover)
    }

    fn syscalls(&self) -> &'static [Syscall] {
        self.device.syscalls()
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        self.device.metrics(visitor);
    }
}

fn activation_failed(driver: &mut TestDriver, eager: &[u16]) {
    driver.start_live(0);
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
    let refuse = || Err(DeviceError::new("not today"));
    let refusing = Refusing { device: factory(), refused: AtomicBool::new(false), refuse };
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
        failed: Box<dyn FnOnce(Failure) + Send>,
    ) -> Result<Box<dyn WorkerHandle>, DeviceError> {
        if !self.refused.swap(true, Ordering::Relaxed) {
            return Err(DeviceError::new("full"));
        }
        self.runtime.spawn(name, worker, failed)
    }
}

/// As above, where the runtime is the one that cannot.
pub fn a14_activation_fails_in_the_runtime(factory: Factory) {
    let eager = eager(factory);
    let runtime =
        RefusingRuntime { runtime: SharedLoop::new("conformance").unwrap(), refused: AtomicBool::new(false) };
    activation_failed(&mut TestDriver::with_runtime(factory(), Arc::new(runtime)), &eager);
}

/// A worker that takes its queues, and panics in its first turn.
struct Bomb(Vec<VirtQueue>);

impl Worker for Bomb {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn add_queue(&mut self, queue: VirtQueue) {
        self.0.push(queue);
    }

    fn remove_queue(&mut self, _: u16) -> Removed {
        self.0.pop().into()
    }

    fn turn(&mut self, _: u16) -> Result<Turn, QueueBroken> {
        panic!("this panic is part of the test")
    }
}

/// A device whose worker, or whose code that makes one, panics needs a reset and says so once; others on the same
/// thread go on, and after the reset it works.
pub fn e1_a_panic_fails_the_device_alone(factory: Factory) {
    let eager = eager(factory);
    let refusals: [Refusal; 2] =
        [|| Ok(Box::new(Bomb(Vec::new()))), || panic!("this panic is part of the test")];
    let runtime = Arc::new(SharedLoop::new("conformance").unwrap());
    let mut other = TestDriver::with_runtime(factory(), runtime.clone());
    other.start(0);
    for refuse in refusals {
        let device = Refusing { device: factory(), refused: AtomicBool::new(false), refuse };
        let mut driver = TestDriver::with_runtime(Box::new(device), runtime.clone());
        driver.start_live(0);
        // The worker has its first turn on its own thread.
        driver.wait_interrupt();
        while driver.reports().is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(driver.status() & (DRIVER_OK | NEEDS_RESET), DRIVER_OK | NEEDS_RESET);
        let message = "this panic is part of the test".to_owned();
        assert_eq!(driver.reports(), [DeviceEvent::Panicked { message }]);
        works(&mut other, &eager);
        driver.device().quiesce().unwrap();
        driver.device().resume().unwrap();
        driver.start(0);
        works(&mut driver, &eager);
        assert_eq!(driver.reports().len(), 1);
    }
}
