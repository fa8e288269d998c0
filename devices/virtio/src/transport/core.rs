//! The state of a device as its driver sees it, whatever the transport: plain data under one lock.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_bus::{DeviceError, DeviceEvent, Event, Interrupt, Panic};
use ossature_memory::Dma;

use super::mail::{Letter, Mailbox};
use super::negotiation::Features;
use super::status::{self, Request};
use crate::features::RING_RESET;
use crate::{Activation, DeviceInfo, Failure, QueueState, VirtioDevice, queue};

/// A device, which its transport and whoever made both share. Its lock comes after the core's.
pub(crate) type Shared = Arc<Mutex<Box<dyn VirtioDevice>>>;

/// Locks `device`, also after a panic: it is told of one as a failure, and reset.
pub(crate) fn lock(device: &Shared) -> MutexGuard<'_, Box<dyn VirtioDevice>> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One queue's registers.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    pub(crate) max: u16,
    /// While it runs, how it started.
    pub(crate) state: QueueState,
    pub(super) running: bool,
}

impl Queue {
    pub(super) fn new(max: u16) -> Self {
        Self { max, state: QueueState::new(max), running: false }
    }

    pub(super) fn is_running(&self) -> bool {
        self.running
    }
}

/// One of the address registers of a queue.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ring {
    Desc,
    Avail,
    Used,
}

/// How the device reaches guest and machine: fixed when it is attached.
pub(crate) struct Wires {
    /// One per queue.
    pub(crate) doorbells: Vec<Arc<Event>>,
    /// One per queue.
    pub(crate) interrupts: Vec<Interrupt>,
    /// The configuration-change interrupt.
    pub(crate) config_interrupt: Interrupt,
}

/// What becomes known under the lock and is told when it is released.
#[derive(Debug, Default)]
pub(super) struct Reports {
    pub(super) events: Vec<DeviceEvent>,
    /// Told until the driver's reset.
    panicked: bool,
    /// Told until the machine's reset.
    ignored: bool,
}

/// What has happened to the device since it was attached.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// How often the device has needed a reset.
    pub(crate) needs_resets: u64,
    /// Register writes that a driver may not make.
    pub(crate) ignored_writes: u64,
}

/// The device and its registers.
pub(crate) struct Core {
    device: Shared,
    pub(super) info: DeviceInfo,
    pub(super) wires: Wires,
    /// What the device is activated with, but for the features.
    pub(super) activation: Activation,
    mail: Arc<Mailbox>,
    pub(crate) features: Features,
    pub(crate) status: u8,
    /// The queue that the driver has selected; may be one that does not exist.
    pub(super) selected: u32,
    pub(super) queues: Vec<Queue>,
    /// What configuration space reads.
    pub(crate) config: Vec<u8>,
    pub(crate) generation: u32,
    /// The configuration-change interrupt is to be raised once the guest can read why.
    config_raised: bool,
    /// No queue runs, and the device holds nothing.
    pub(super) quiet: bool,
    /// The device knows of its driver.
    pub(super) active: bool,
    /// The device belongs to another machine, or none.
    gone: bool,
    pub(super) reports: Reports,
    pub(crate) counts: Counts,
}

impl Core {
    pub(super) fn new(device: Shared, wires: Wires, activation: Activation, mail: Arc<Mailbox>) -> Self {
        let info = lock(&device).info();
        let mut core = Self {
            features: Features::new(info.features),
            queues: info.queues.iter().map(|&max| Queue::new(max)).collect(),
            config: vec![0; info.config_len as usize],
            device,
            info,
            wires,
            activation,
            mail,
            status: 0,
            selected: 0,
            generation: 0,
            config_raised: false,
            quiet: true,
            active: false,
            gone: false,
            reports: Reports::default(),
            counts: Counts::default(),
        };
        core.refresh();
        core
    }

    /// Calls the device. Its panic is a failure of the device, and an error.
    pub(super) fn call<R>(
        &mut self,
        f: impl FnOnce(&mut dyn VirtioDevice) -> Result<R, DeviceError>,
    ) -> Result<R, DeviceError> {
        let device = Arc::clone(&self.device);
        Panic::catch(|| f(&mut **lock(&device))).unwrap_or_else(|Panic { message, .. }| {
            let error = DeviceError::new(format!("the device panicked: {message}"));
            self.fail(Failure::Panicked { message });
            Err(error)
        })
    }

    /// The device's view of guest RAM as it is now.
    pub(super) fn dma(&mut self) -> Dma {
        self.activation.dma.refresh();
        self.activation.dma.clone()
    }

    /// The selected queue's registers; `None` where there is no such queue.
    pub(crate) fn queue(&self) -> Option<&Queue> {
        self.queues.get(self.selected as usize)
    }

    /// The queues that their driver has enabled.
    pub(super) fn ready_queues(&self) -> Vec<u16> {
        (0..).zip(&self.queues).filter(|(_, queue)| queue.state.ready).map(|(index, _)| index).collect()
    }

    pub(crate) fn select_queue(&mut self, index: u32) {
        self.selected = index;
    }

    pub(crate) fn select_offered_features(&mut self, select: u32) {
        self.features.offered_select = select;
    }

    pub(crate) fn select_accepted_features(&mut self, select: u32) {
        self.features.accepted_select = select;
    }

    /// The driver accepts features.
    pub(crate) fn accept_features(&mut self, bits: u32) {
        if self.status == status::NEGOTIATING {
            self.features.accept(bits);
        } else {
            self.ignore("the driver's features");
        }
    }

    /// The selected queue, if it exists, and the driver has got as far as FEATURES_OK.
    fn selected_queue(&mut self) -> Option<&mut Queue> {
        let known = self.status & (status::FEATURES_OK | status::FAILED) == status::FEATURES_OK;
        self.queues.get_mut(self.selected as usize).filter(|_| known)
    }

    /// The same while it may be set up.
    fn queue_in_setup(&mut self) -> Option<&mut Queue> {
        self.selected_queue().filter(|queue| !queue.state.ready)
    }

    /// Sets the selected queue's size.
    pub(crate) fn set_queue_size(&mut self, size: u32) {
        match self.queue_in_setup() {
            // One that cannot be described is none.
            Some(queue) => queue.state.size = u16::try_from(size).unwrap_or(0),
            None => self.ignore("a queue's size"),
        }
    }

    /// Sets a half of one of the selected queue's addresses.
    pub(crate) fn set_queue_address(&mut self, ring: Ring, high: bool, half: u32) {
        let Some(queue) = self.queue_in_setup() else { return self.ignore("a queue's address") };
        let addr = match ring {
            Ring::Desc => &mut queue.state.desc,
            Ring::Avail => &mut queue.state.avail,
            Ring::Used => &mut queue.state.used,
        };
        *addr = match high {
            false => *addr & !0xffff_ffff | u64::from(half),
            true => *addr & 0xffff_ffff | u64::from(half) << 32,
        };
    }

    /// Enables or disables the selected queue (4.2.2.2), whether or not the others run. One whose registers describe no
    /// queue stays disabled.
    pub(crate) fn set_queue_ready(&mut self, ready: bool) {
        let (selected, dma) = (self.selected as u16, self.dma());
        let broken = self.status & status::NEEDS_RESET != 0;
        // Linux disables the queues of a device that it has reset, when it suspends or lets go of it.
        if !ready && self.queues.get(self.selected as usize).is_some_and(|queue| !queue.state.ready) {
            return;
        }
        let Some(queue) = self.selected_queue() else { return self.ignore("a queue's readiness") };
        match (queue.state.ready, ready) {
            (false, true) => {
                let state = QueueState { ready: true, ..queue.state };
                if broken || queue::check(selected, queue.max, &state, &dma).is_err() {
                    return self.ignore("the readiness of a queue that cannot be");
                }
                queue.state = state.from_index(0);
                if self.runs() {
                    let started = self.start();
                    self.note(started);
                }
            }
            (true, false) => {
                self.drop_queue(selected);
                if let Some(queue) = self.selected_queue() {
                    queue.state = queue.state.lost();
                }
            }
            (false, false) | (true, true) => {}
        }
    }

    /// Has a queue that runs start again, from where it is.
    pub(super) fn restart_queue(&mut self, index: u16) {
        if self.queues.get(usize::from(index)).is_some_and(|queue| queue.running) {
            let stopped = self.stop_queue(index);
            let started = stopped.and_then(|()| self.start());
            self.note(started);
        }
    }

    /// Stops a queue for good.
    fn drop_queue(&mut self, index: u16) {
        let stopped = self.stop_queue(index);
        self.note(stopped);
        let forgotten = self.call(|device| {
            device.forget_queue(index);
            Ok(())
        });
        self.note(forgotten);
    }

    /// Resets the selected queue alone (2.6.1): when this returns, nothing of it is in flight. Returns false if it may not
    /// be reset.
    pub(crate) fn reset_queue(&mut self) -> bool {
        let negotiated = self.features.negotiated().unwrap_or_default() & RING_RESET != 0;
        let selected = self.selected as u16;
        if !negotiated || self.selected_queue().is_none() {
            self.ignore("a queue's reset");
            return false;
        }
        self.drop_queue(selected);
        if let Some(queue) = self.selected_queue() {
            *queue = Queue::new(queue.max);
        }
        true
    }

    /// Writes configuration space, if a driver is there.
    pub(crate) fn write_config(&mut self, offset: u32, data: &[u8]) {
        if self.gone || self.status & status::DRIVER == 0 || self.status & status::FAILED != 0 {
            return self.ignore("configuration space");
        }
        // The transport has checked the bounds.
        let written = self.call(|device| {
            device.write_config(offset, data);
            Ok(())
        });
        self.note(written);
        self.refresh();
    }

    /// Reads configuration space from the device.
    pub(super) fn refresh(&mut self) {
        let mut config = std::mem::take(&mut self.config);
        let read = self.call(|device| {
            device.read_config(0, &mut config);
            Ok(())
        });
        self.config = config;
        self.note(read);
    }

    /// The driver writes the status register.
    pub(crate) fn write_status(&mut self, value: u8) {
        if self.gone {
            return;
        }
        match status::request(self.status, value) {
            Request::Nothing => {}
            Request::Refused => self.ignore(&format!("status {value:#x} after {:#x}", self.status)),
            Request::Reset => {
                if let Err(e) = self.reset() {
                    self.reports.events.push(DeviceEvent::HostError { reason: e.to_string() });
                }
            }
            Request::Advance(to) => self.advance(to),
        }
    }

    fn advance(&mut self, to: u8) {
        for step in status::STEPS {
            if to & !self.status & step == 0 {
                continue;
            }
            if step == status::FEATURES_OK && self.features.negotiated().is_none() {
                self.ignore("FEATURES_OK for features that the device cannot work with");
                break;
            }
            self.status |= step;
            if step == status::DRIVER_OK && self.runs() {
                let started = self.start();
                self.note(started);
            }
        }
        self.status |= to & status::FAILED;
    }

    /// Returns true if it has left its place.
    pub(super) fn is_gone(&self) -> bool {
        self.gone
    }

    /// Returns true if queues that are ready run.
    pub(super) fn runs(&self) -> bool {
        self.status & status::DRIVER_OK != 0 && !self.quiet && !self.gone
    }

    /// Counts a write that no driver may make, and tells of the first.
    fn ignore(&mut self, what: &str) {
        self.counts.ignored_writes += 1;
        if !std::mem::replace(&mut self.reports.ignored, true) {
            let reason = format!("the driver may not write this now: {what}");
            self.reports.events.push(DeviceEvent::Ignored { reason });
        }
    }

    /// What the driver asked for failed: the device needs a reset.
    fn note(&mut self, result: Result<(), DeviceError>) {
        if let Err(e) = result {
            self.fail(Failure::NeedsReset { reason: e.to_string() });
        }
    }

    /// The device cannot go on. Told once until the reset, and a panic once more.
    pub(super) fn fail(&mut self, failure: Failure) {
        let known = self.status & status::NEEDS_RESET != 0;
        let news = match failure {
            Failure::NeedsReset { reason } => (!known).then_some(DeviceEvent::NeedsReset { reason }),
            Failure::Panicked { message } => {
                let told = std::mem::replace(&mut self.reports.panicked, true);
                (!told).then_some(DeviceEvent::Panicked { message })
            }
        };
        self.reports.events.extend(news);
        if !known {
            self.status |= status::NEEDS_RESET;
            self.counts.needs_resets += 1;
            self.announce();
        }
    }

    /// Notes a configuration change, for an interrupt as soon as the guest can read it (2.1.2).
    fn announce(&mut self) {
        self.config_raised |= self.status & status::DRIVER_OK != 0;
    }

    /// Takes in what workers had to say.
    pub(super) fn read_mail(&mut self) {
        let Letter { broken, panicked, config } = self.mail.take();
        if config {
            // A driver that reads across the change sees the generation move.
            self.generation = self.generation.wrapping_add(1);
            self.refresh();
            self.announce();
        }
        for failure in panicked.into_iter().chain(broken) {
            self.fail(failure);
        }
    }

    /// Raises the configuration-change interrupt if there is one to raise.
    pub(super) fn raise(&mut self) {
        if std::mem::take(&mut self.config_raised) {
            // As in `VirtQueue::flush`: nobody is left to tell.
            let _ = self.wires.config_interrupt.signal();
        }
    }

    /// Forgets all that a driver did; no queue runs.
    pub(super) fn forget_driver(&mut self) {
        // From workers that are no more.
        drop(self.mail.take());
        self.features.reset();
        self.status = 0;
        self.selected = 0;
        for queue in &mut self.queues {
            *queue = Queue::new(queue.max);
        }
        self.config_raised = false;
        self.active = false;
        self.reports.panicked = false;
        self.refresh();
    }

    /// The machine has been reset: what was told may be told again.
    pub(super) fn forget_reports(&mut self) {
        self.reports.ignored = false;
    }

    /// The device leaves: what the guest may still write no longer reaches it.
    pub(super) fn let_go(&mut self) {
        self.gone = true;
    }
}
