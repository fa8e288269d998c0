//! The state of a device as its driver sees it, whatever the transport: plain data under one lock.

use std::sync::Arc;

use ossature_bus::{DeviceError, Event, EventSink};
use ossature_memory::Dma;

use super::features::{EVENT_IDX, Features, INDIRECT};
use super::mail::Letter;
use super::status::{self, Step};
use crate::{ConfigInterrupt, QueueConfig, Start, VirtQueue, VirtioDevice, Worker, WorkerHandle};

/// Something for each group that runs: its number comes with it.
pub(super) type ByGroup<T> = Vec<(usize, T)>;

/// A running group of queues.
pub(super) struct Group {
    pub(super) group: usize,
    pub(super) handle: Box<dyn WorkerHandle>,
}

/// Where the queues are.
pub(super) enum Phase {
    /// There are none yet.
    Idle,
    /// With their workers.
    Running(Vec<Group>),
    /// Here, by group, while the machine is quiet.
    Quiet(ByGroup<Vec<VirtQueue>>),
    /// On their way, without the lock. What the guest writes meanwhile, on another vCPU, is dropped.
    Changing,
}

/// What is left to do, without the lock, after the status was written.
pub(super) enum Todo {
    Nothing,
    Start,
    Reset(Vec<Group>),
}

/// One queue's registers. Addresses come in halves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueSetup {
    pub(crate) max: u16,
    pub(crate) size: u32,
    pub(crate) desc: u64,
    pub(crate) avail: u64,
    pub(crate) used: u64,
    pub(crate) ready: bool,
}

impl QueueSetup {
    fn new(max: u16) -> Self {
        Self { max, size: max.into(), desc: 0, avail: 0, used: 0, ready: false }
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
    pub(crate) dma: Dma,
    /// One per queue.
    pub(crate) doorbells: Vec<Arc<Event>>,
    /// The interrupt of all queues.
    pub(crate) interrupt: Arc<Event>,
    /// The configuration-change interrupt.
    pub(crate) config_interrupt: Arc<Event>,
    /// Where the device reports.
    pub(crate) events: EventSink,
}

/// The device and its registers.
pub(crate) struct Core {
    device: Box<dyn VirtioDevice>,
    wires: Wires,
    pub(crate) features: Features,
    pub(crate) status: u8,
    /// The queue that the driver has selected; may be one that does not exist.
    selected: u32,
    queues: Vec<QueueSetup>,
    /// What configuration space reads.
    pub(crate) config: Vec<u8>,
    pub(crate) generation: u32,
    /// A configuration change that the driver has not acknowledged.
    pub(crate) config_changed: bool,
    /// The configuration-change interrupt is to be raised once the guest can read why.
    config_raised: bool,
    phase: Phase,
    needs_resets: u64,
}

impl Core {
    pub(crate) fn new(device: Box<dyn VirtioDevice>, wires: Wires) -> Self {
        let features = Features::new(device.features());
        let queues = device.queues().iter().map(|&max| QueueSetup::new(max)).collect();
        let config = vec![0; device.config_len() as usize];
        Self {
            device,
            wires,
            features,
            status: 0,
            selected: 0,
            queues,
            config,
            generation: 0,
            config_changed: false,
            config_raised: false,
            phase: Phase::Idle,
            needs_resets: 0,
        }
    }

    pub(crate) fn device(&self) -> &dyn VirtioDevice {
        &*self.device
    }

    /// How often the device has needed a reset.
    pub(crate) fn needs_resets(&self) -> u64 {
        self.needs_resets
    }

    /// The selected queue's registers; `None` where there is no such queue.
    pub(crate) fn queue(&self) -> Option<&QueueSetup> {
        self.queues.get(self.selected as usize)
    }

    pub(crate) fn select_queue(&mut self, index: u32) {
        self.selected = index;
    }

    pub(crate) fn select_offered_features(&mut self, select: u32) {
        self.features.select_offered(select);
    }

    pub(crate) fn select_accepted_features(&mut self, select: u32) {
        self.features.select_accepted(select);
    }

    /// The driver accepts features.
    pub(crate) fn accept_features(&mut self, bits: u32) {
        if self.status == status::NEGOTIATING {
            self.features.accept(bits);
        }
    }

    /// The selected queue while it may be changed: after FEATURES_OK, before DRIVER_OK.
    fn queue_in_setup(&mut self) -> Option<&mut QueueSetup> {
        let changing = matches!(self.phase, Phase::Changing);
        let open = self.status == status::SETTING_UP && !changing;
        self.queues.get_mut(self.selected as usize).filter(|_| open)
    }

    /// Sets the selected queue's size.
    pub(crate) fn set_queue_size(&mut self, size: u32) {
        if let Some(queue) = self.queue_in_setup().filter(|queue| !queue.ready) {
            queue.size = size;
        }
    }

    /// Sets a half of one of the selected queue's addresses.
    pub(crate) fn set_queue_address(&mut self, ring: Ring, high: bool, half: u32) {
        let Some(queue) = self.queue_in_setup().filter(|queue| !queue.ready) else { return };
        let addr = match ring {
            Ring::Desc => &mut queue.desc,
            Ring::Avail => &mut queue.avail,
            Ring::Used => &mut queue.used,
        };
        *addr = match high {
            false => *addr & !0xffff_ffff | u64::from(half),
            true => *addr & 0xffff_ffff | u64::from(half) << 32,
        };
    }

    /// Enables or disables the selected queue. One whose registers describe no queue stays disabled.
    pub(crate) fn set_queue_ready(&mut self, ready: bool) {
        let config = self.queue_config(self.selected as usize);
        let sound = config.is_some_and(|config| config.check(&self.wires.dma).is_ok());
        if let Some(queue) = self.queue_in_setup() {
            queue.ready = ready && sound;
        }
    }

    fn queue_config(&self, index: usize) -> Option<QueueConfig> {
        let QueueSetup { max, size, desc, avail, used, ready: _ } = *self.queues.get(index)?;
        let features = self.features.negotiated()?;
        Some(QueueConfig {
            index: u16::try_from(index).ok()?,
            max_size: max,
            size: u16::try_from(size).ok()?,
            desc,
            avail,
            used,
            event_idx: features & EVENT_IDX != 0,
            indirect: features & INDIRECT != 0,
            start: 0,
        })
    }

    /// Writes configuration space, if a driver is there; false where the range is not in it.
    pub(crate) fn write_config(&mut self, offset: u32, data: &[u8]) -> bool {
        let len = u32::try_from(data.len()).ok();
        let end = len.and_then(|len| offset.checked_add(len));
        if end.is_none_or(|end| end > self.device.config_len()) {
            return false;
        }
        if self.status & status::DRIVER != 0 && self.status & status::FAILED == 0 {
            self.device.write_config(offset, data);
            self.refresh();
        }
        true
    }

    /// Reads configuration space from the device.
    pub(super) fn refresh(&mut self) {
        self.device.read_config(0, &mut self.config);
    }

    /// The driver acknowledges a configuration change.
    pub(crate) fn acknowledge_config(&mut self) {
        self.config_changed = false;
    }

    pub(super) fn set_phase(&mut self, phase: Phase) {
        self.phase = phase;
    }

    pub(super) fn write_status(&mut self, value: u8) -> Todo {
        if matches!(self.phase, Phase::Changing) {
            return Todo::Nothing;
        }
        match status::step(self.status, value) {
            Step::Ignore => Todo::Nothing,
            Step::Note => {
                self.status |= value & !status::NEEDS_RESET;
                Todo::Nothing
            }
            Step::CheckFeatures => {
                if self.features.negotiated().is_some() {
                    self.status |= status::FEATURES_OK;
                }
                Todo::Nothing
            }
            Step::Start => {
                self.phase = Phase::Changing;
                Todo::Start
            }
            Step::Reset => Todo::Reset(self.begin_reset()),
        }
    }

    pub(super) fn begin_reset(&mut self) -> Vec<Group> {
        match std::mem::replace(&mut self.phase, Phase::Changing) {
            Phase::Running(groups) => groups,
            Phase::Idle | Phase::Quiet(_) | Phase::Changing => Vec::new(),
        }
    }

    pub(super) fn begin_quiesce(&mut self) -> Option<Vec<Group>> {
        match std::mem::replace(&mut self.phase, Phase::Changing) {
            Phase::Running(groups) => Some(groups),
            other => {
                self.phase = other;
                None
            }
        }
    }

    /// Whether there is something to start again.
    pub(super) fn begin_resume(&mut self) -> bool {
        matches!(self.phase, Phase::Quiet(_))
    }

    /// Makes the workers of all groups that have queues: those that were quiet, or new ones.
    pub(super) fn start_groups(
        &mut self,
        config: &ConfigInterrupt,
    ) -> Result<ByGroup<Box<dyn Worker>>, DeviceError> {
        let groups = match std::mem::replace(&mut self.phase, Phase::Changing) {
            Phase::Quiet(groups) => groups,
            _ => self.build_queues()?,
        };
        let features = self.features.negotiated().unwrap_or_default();
        let mut workers = Vec::with_capacity(groups.len());
        for (group, queues) in groups {
            let (mem, events) = (self.wires.dma.clone(), self.wires.events.clone());
            let start = Start { features, mem, queues, config: config.clone(), events };
            let worker = self.device.start(group, start).map_err(|e| DeviceError {
                reason: format!("queue group {group} cannot start: {e}"),
                source: e.source,
            })?;
            workers.push((group, worker));
        }
        Ok(workers)
    }

    fn build_queues(&self) -> Result<ByGroup<Vec<VirtQueue>>, DeviceError> {
        let mut groups = Vec::new();
        for (group, mut members) in self.device.groups().into_iter().enumerate() {
            members.sort_unstable();
            let mut queues = Vec::with_capacity(members.len());
            for index in members.into_iter().map(usize::from) {
                if !self.queues.get(index).is_some_and(|queue| queue.ready) {
                    continue;
                }
                let wrong = || format!("queue {index} cannot start");
                let wires = &self.wires;
                let (Some(config), Some(doorbell)) = (self.queue_config(index), wires.doorbells.get(index))
                else {
                    return Err(DeviceError { reason: wrong(), source: None });
                };
                let queue = config
                    .build(wires.dma.clone(), doorbell.clone(), wires.interrupt.clone())
                    .map_err(|e| DeviceError { reason: format!("{}: {e}", wrong()), source: None })?;
                queues.push(queue);
            }
            if !queues.is_empty() {
                groups.push((group, queues));
            }
        }
        Ok(groups)
    }

    /// All groups run (or none, where one could not).
    pub(super) fn started(&mut self, groups: Vec<Group>) {
        self.phase = Phase::Running(groups);
        self.status |= status::DRIVER_OK;
        if self.status & status::NEEDS_RESET != 0 {
            // A worker broke before the driver could be told.
            self.announce();
        }
    }

    /// Notes a configuration change, for an interrupt as soon as the guest can read it (2.1.2).
    fn announce(&mut self) {
        if self.status & status::DRIVER_OK != 0 {
            self.config_changed = true;
            self.config_raised = true;
        }
    }

    /// Takes in what workers had to say. The reason for a reset, if that is news.
    pub(super) fn read_mail(&mut self, letter: Letter) -> Option<String> {
        let Letter { broken, config } = letter;
        if config {
            // A driver that reads across the change sees the generation move.
            self.generation = self.generation.wrapping_add(1);
            self.refresh();
        }
        let news = broken.filter(|_| self.status & status::NEEDS_RESET == 0);
        if news.is_some() {
            self.status |= status::NEEDS_RESET;
            self.needs_resets += 1;
        }
        if config || news.is_some() {
            self.announce();
        }
        news
    }

    /// Raises the configuration-change interrupt if there is one to raise.
    pub(super) fn raise(&mut self) {
        if std::mem::take(&mut self.config_raised) {
            // As in `VirtQueue::flush`: our event cannot fail.
            let _ = self.wires.config_interrupt.signal();
        }
    }

    /// Back to the state before any driver came; no worker is left.
    pub(super) fn reset(&mut self) {
        let Self {
            device,
            wires: _,
            features,
            status,
            selected,
            queues,
            config: _,
            generation: _,
            config_changed,
            config_raised,
            phase,
            needs_resets: _,
        } = self;
        device.reset();
        features.reset();
        *status = 0;
        *selected = 0;
        for queue in queues {
            *queue = QueueSetup::new(queue.max);
        }
        *config_changed = false;
        *config_raised = false;
        *phase = Phase::Idle;
        self.refresh();
    }
}
