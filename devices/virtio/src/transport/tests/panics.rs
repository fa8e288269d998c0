//! Row E1: code of a device panics, wherever it is called.

use super::*;

/// Where the device's code panics, once.
#[derive(Clone, Copy, PartialEq, Debug)]
enum At {
    ReadConfig,
    WriteConfig,
    AddQueue,
    RemoveQueue,
    Turn,
    Drop,
    Reset,
    Save,
}

struct Flaky {
    at: At,
    armed: Arc<AtomicBool>,
}

impl Flaky {
    fn go(&self, at: At) {
        if at == self.at && self.armed.swap(false, Ordering::Relaxed) {
            panic!("this panic is part of the test");
        }
    }
}

impl LocalDevice for Flaky {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new(DeviceType::CONSOLE, &[16, 16]).with_config(4)
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        vec![vec![0, 1]]
    }

    fn read_config(&self, _: u32, _: &mut [u8]) {
        self.go(At::ReadConfig);
    }

    fn write_config(&mut self, _: u32, _: &[u8]) {
        self.go(At::WriteConfig);
    }

    fn worker(&mut self, _: usize, _: &Activation) -> Result<Box<dyn Worker>, DeviceError> {
        let flaky = Self { at: self.at, armed: self.armed.clone() };
        Ok(Box::new(FlakyWorker { flaky, queues: Vec::new() }))
    }

    fn forget_queue(&mut self, _: u16) {}

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) {
        self.go(At::Reset);
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        self.go(At::Save);
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

struct FlakyWorker {
    flaky: Flaky,
    queues: Vec<VirtQueue>,
}

impl Worker for FlakyWorker {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn add_queue(&mut self, queue: VirtQueue) {
        self.flaky.go(At::AddQueue);
        self.queues.push(queue);
    }

    fn remove_queue(&mut self, index: u16) -> Removed {
        self.flaky.go(At::RemoveQueue);
        let at = self.queues.iter().position(|queue| queue.index() == index);
        at.map(|at| self.queues.swap_remove(at)).into()
    }

    fn turn(&mut self, token: u16) -> Result<Turn, QueueBroken> {
        self.flaky.go(At::Turn);
        let queue = self.queues.iter_mut().find(|queue| queue.index() == token);
        queue.map_or(Ok(Turn::Sleep), |queue| serve(queue, Flaw::None))
    }
}

impl Drop for FlakyWorker {
    fn drop(&mut self) {
        self.flaky.go(At::Drop);
    }
}

fn panics(driver: &TestDriver) -> usize {
    driver.reports().iter().filter(|event| matches!(event, DeviceEvent::Panicked { .. })).count()
}

#[test]
fn e1_a_panic_anywhere_is_a_failure_of_the_device_and_of_nothing_else() {
    on_each_transport(|| {
        let runtime: Arc<SharedLoop> = Arc::new(SharedLoop::new("virtio").unwrap());
        let mut other = TestDriver::with_runtime(Box::new(Sample::new(&Arc::default())), runtime.clone());
        other.start(0);
        for at in [
            At::ReadConfig,
            At::WriteConfig,
            At::AddQueue,
            At::RemoveQueue,
            At::Turn,
            At::Drop,
            At::Reset,
            At::Save,
        ] {
            let armed = Arc::new(AtomicBool::new(false));
            let device = Flaky { at, armed: armed.clone() };
            let mut driver = TestDriver::with_runtime(Box::new(device), runtime.clone());
            driver.start(u128::MAX);
            armed.store(true, Ordering::Relaxed);
            driver.registers().set_config(Access { offset: 0, size: Size::B1 }, 1).unwrap();
            driver.kick_register(0);
            while at == At::Turn && armed.load(Ordering::Relaxed) {
                thread::yield_now();
            }
            driver.reset_queue(0);
            driver.set_up_queue(0, 16);
            let quiet = driver.device().quiesce();
            let saved = driver.device().save();
            let resumed = driver.device().resume();
            let reset = driver.try_reset_machine();
            assert!(!armed.load(Ordering::Relaxed), "nothing panicked in {at:?}");
            // Its host side can be stopped and started all the same; what cannot be done is an error.
            assert!(quiet.is_ok() && resumed.is_ok(), "{at:?}: {quiet:?} {resumed:?}");
            assert_eq!((saved.is_err(), reset.is_err()), (at == At::Save, at == At::Reset), "{at:?}");
            // Who drops a worker does not care for what it says.
            assert_eq!(panics(&driver), usize::from(at != At::Drop), "{at:?}");
            driver.start(u128::MAX);
            assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK, "{at:?}");
            assert_eq!(driver.transact(0, &[b"x"], &[4]).0.len, 1);
            assert_eq!(driver.transact(1, &[b"x"], &[4]).0.len, 1);
            assert_eq!(other.transact(0, &[b"x"], &[4]).0.len, 1);
        }
        assert_eq!(other.reports(), []);
    });
}
