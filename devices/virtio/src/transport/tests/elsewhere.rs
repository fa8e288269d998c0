//! A device whose queues are served elsewhere, as a vhost front end's are: it passes setups on and gets states back, and
//! never touches a ring.

use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use ossature_bus::Event;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::*;
use crate::{QueueSetup, QueueState, VirtioDevice};

/// What serves one queue in what would be another process: a thread.
struct Backend {
    stop: Arc<Event>,
    thread: JoinHandle<QueueState>,
}

impl Backend {
    fn start(setup: QueueSetup) -> Self {
        let stop = Arc::new(Event::new().unwrap());
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let doorbell = setup.doorbell.clone();
            let mut queue = setup.build().unwrap();
            let epoll = Epoll::new().unwrap();
            for event in [&doorbell, &stopped] {
                let interest = EpollEvent::new(EventSet::IN, 0);
                epoll.ctl(ControlOperation::Add, event.as_raw_fd(), interest).unwrap();
            }
            while stopped.take().unwrap() == 0 {
                doorbell.take().unwrap();
                while let Ok(Turn::Again) = serve(&mut queue, Flaw::None) {}
                let _ = epoll.wait(-1, &mut [EpollEvent::default()]);
            }
            queue.into_state()
        });
        Self { stop, thread }
    }

    fn stop(self) -> QueueState {
        self.stop.signal().unwrap();
        self.thread.join().unwrap()
    }
}

#[derive(Default)]
struct FrontEnd {
    activated: Arc<Mutex<Vec<u128>>>,
    backends: Vec<(u16, Backend)>,
}

impl VirtioDevice for FrontEnd {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new(DeviceType::CONSOLE, &[64, 16])
    }

    fn read_config(&self, _: u32, _: &mut [u8]) {}

    fn write_config(&mut self, _: u32, _: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.activated.lock().unwrap().push(activation.features);
        Ok(())
    }

    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), DeviceError> {
        assert!(setup.state.ready && setup.max_size == [64, 16][usize::from(setup.index)]);
        self.backends.push((setup.index, Backend::start(setup)));
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Result<QueueState, DeviceError> {
        let at = self.backends.iter().position(|(other, _)| *other == index).unwrap();
        Ok(self.backends.swap_remove(at).1.stop())
    }

    fn forget_queue(&mut self, _: u16) {}

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) {
        assert!(self.backends.is_empty(), "a queue runs");
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
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

fn plugged(activated: &Arc<Mutex<Vec<u128>>>) -> Box<VirtioMmio> {
    let device = FrontEnd { activated: activated.clone(), backends: Vec::new() };
    Box::new(VirtioMmio::from_device("far", Box::new(device)))
}

#[test]
fn queues_may_be_served_elsewhere() {
    let activated = Arc::default();
    let mut driver = TestDriver::attach(plugged(&activated));
    for (round, wanted) in [0, u128::MAX, EVENT_IDX].into_iter().enumerate() {
        driver.start(wanted);
        for i in 0..200u64 {
            let queue = (i % 2) as u16;
            assert_eq!(driver.transact(queue, &[b"abc"], &[4]).0.len, 1);
            match i % 50 {
                7 => {
                    driver.device().quiesce().unwrap();
                    driver.device().resume().unwrap();
                }
                17 if wanted == u128::MAX => {
                    driver.reset_queue(queue);
                    assert!(driver.set_up_queue_at((16 + i % 8) << 20, queue, 16));
                }
                27 => assert!(driver.move_to_device(plugged(&activated))),
                37 => driver.save_and_restore(),
                _ => {}
            }
        }
        assert_eq!(driver.reports(), [], "round {round}");
    }
    assert!(activated.lock().unwrap().contains(&(VERSION_1 | EVENT_IDX)));
}
