//! Rows about a device that cannot start.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ossature_bus::{MetricVisitor, State, Syscall};

use super::{Factory, eager, needs_reset, probe, works};
use crate::testing::TestDriver;
use crate::{
    DeviceType, QueueBroken, Runtime, RuntimeError, SharedLoop, Start, StartError, VirtioDevice, Worker,
    WorkerHandle,
};

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
