//! What a transport saves of a device: all that its driver has set up, and the device's own state within. One format for
//! all transports, each with a kind and what only it has.

use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};
use ossature_bus::{DeviceError, DeviceState, Handover};

use super::core::{Core, Queue};
use super::negotiation::Features;
use super::status::{self, DRIVER_OK, FEATURES_OK};
use super::{Transport, View};
use crate::features::VERSION_1;
use crate::{DeviceInfo, QueueState, queue};

const VERSION: u16 = 1;

/// Bit of the interrupt causes, on each transport: the configuration has changed.
const CONFIG_CHANGE: u32 = 2;

const DEVICE_TYPE: Field = Field::new(1, "device type");
const OFFERED: Field = Field::new(2, "offered features");
const ACCEPTED: Field = Field::new(3, "accepted features");
const ACCEPTED_BEYOND: Field = Field::new(4, "accepted features beyond 127");
const OFFERED_SELECT: Field = Field::new(5, "offered features selector");
const ACCEPTED_SELECT: Field = Field::new(6, "accepted features selector");
const STATUS: Field = Field::new(7, "status");
const QUEUE_SELECT: Field = Field::new(8, "queue selector");
const GENERATION: Field = Field::new(9, "configuration generation");
const INTERRUPT: Field = Field::new(10, "interrupt status");
const QUEUES: Field = Field::new(11, "queues");
const DEVICE: Field = Field::new(12, "device");

const QUEUE_MAX: Field = Field::new(1, "largest size of a queue");
const QUEUE_SIZE: Field = Field::new(2, "size of a queue");
const QUEUE_READY: Field = Field::new(3, "readiness of a queue");
const QUEUE_DESC: Field = Field::new(4, "descriptor table of a queue");
const QUEUE_AVAIL: Field = Field::new(5, "available ring of a queue");
const QUEUE_USED: Field = Field::new(6, "used ring of a queue");
const QUEUE_NEXT_AVAIL: Field = Field::new(7, "next available index of a queue");
const QUEUE_NEXT_USED: Field = Field::new(8, "next used index of a queue");

const INNER_KIND: Field = Field::new(1, "kind of the device");
const INNER_VERSION: Field = Field::new(2, "version of the device");
const INNER_PAYLOAD: Field = Field::new(3, "payload of the device");

/// Bytes of a kind, and of a device's own payload, at most.
const MAX_KIND: usize = 255;
const MAX_PAYLOAD: usize = 8 << 20;

/// What only one transport saves: fields with tags from 13 on.
pub(super) trait Own: Sized {
    /// The kind of the transport's states.
    const KIND: &'static str;
    /// Writes the fields.
    fn save(&self, fields: &mut Encoder);
    /// Reads them.
    fn read(fields: &mut Decoder<'_>) -> Result<Self, StateError>;
}

/// All that a driver has set up.
struct TransportState {
    features: Features,
    status: u8,
    selected: u32,
    generation: u32,
    /// Interrupt causes that the driver has not acknowledged.
    pending: u32,
    queues: Vec<Queue>,
}

impl TransportState {
    fn save<T: Own>(
        &self,
        info: &DeviceInfo,
        device: Option<&SavedState<'_>>,
        own: &T,
    ) -> SavedState<'static> {
        let Self { features, status, selected, generation, pending, queues } = self;
        let mut fields = Encoder::new(T::KIND, VERSION);
        fields
            .u32(DEVICE_TYPE, info.device_type.0)
            .bytes(OFFERED, &features.offered.to_le_bytes())
            .bytes(ACCEPTED, &features.accepted.to_le_bytes())
            .bool(ACCEPTED_BEYOND, features.beyond)
            .u32(OFFERED_SELECT, features.offered_select)
            .u32(ACCEPTED_SELECT, features.accepted_select)
            .u8(STATUS, *status)
            .u32(QUEUE_SELECT, *selected)
            .u32(GENERATION, *generation)
            .u32(INTERRUPT, *pending)
            .list(QUEUES, queues, |fields, queue| {
                let QueueState { size, ready, desc, avail, used, next_avail, next_used } = queue.state;
                fields
                    .u16(QUEUE_MAX, queue.max)
                    .u16(QUEUE_SIZE, size)
                    .bool(QUEUE_READY, ready)
                    .u64(QUEUE_DESC, desc)
                    .u64(QUEUE_AVAIL, avail)
                    .u64(QUEUE_USED, used)
                    .u16(QUEUE_NEXT_AVAIL, next_avail)
                    .u16(QUEUE_NEXT_USED, next_used);
            });
        if let Some(device) = device {
            write_nested(&mut fields, DEVICE, device);
        }
        own.save(&mut fields);
        fields.finish()
    }

    /// Reads what a device like `info` can have saved, the device's own state, and the transport's.
    fn restore<T: Own>(
        state: &SavedState<'_>,
        info: &DeviceInfo,
    ) -> Result<(Self, Option<SavedState<'static>>, T), StateError> {
        let mut fields = Decoder::new(state, T::KIND, 1..=VERSION)?;
        if fields.u32(DEVICE_TYPE)? != info.device_type.0 {
            return Err(inconsistent("device type", "the device is of another"));
        }
        let features = Features {
            offered: u128::from_le_bytes(fields.array(OFFERED)?),
            accepted: u128::from_le_bytes(fields.array(ACCEPTED)?),
            beyond: fields.bool(ACCEPTED_BEYOND)?,
            offered_select: fields.u32(OFFERED_SELECT)?,
            accepted_select: fields.u32(ACCEPTED_SELECT)?,
        };
        let status = fields.u8_where(STATUS, status::is_reachable)?;
        let selected = fields.u32(QUEUE_SELECT)?;
        let generation = fields.u32(GENERATION)?;
        let pending = fields.u32(INTERRUPT)?;
        let queues = fields.list(QUEUES, info.queues.len(), read_queue)?;
        let device = fields.optional(DEVICE, read_nested)?;
        let own = T::read(&mut fields)?;
        fields.finish()?;
        Ok((Self { features, status, selected, generation, pending, queues }, device, own))
    }

    /// Fails if these are not registers of a device like `info` whose `check` finds its queues in RAM.
    fn check(
        &self,
        info: &DeviceInfo,
        check: impl Fn(u16, &Queue) -> Result<(), queue::QueueSetupError>,
    ) -> Result<(), StateError> {
        let Self { features, status, pending, queues, .. } = self;
        let has = |bits: u8| status & bits == bits;
        let all = Features::new(info.features).offered;
        if features.offered & !all != 0 || features.offered & VERSION_1 == 0 {
            return Err(inconsistent("offered features", "the device does not offer all of them"));
        }
        if !has(status::NEGOTIATING) && (features.accepted != 0 || features.beyond) {
            return Err(inconsistent("accepted features", "no driver was there to accept any"));
        }
        if has(FEATURES_OK) && features.negotiated().is_none() {
            return Err(inconsistent("accepted features", "they were not offered, or lack VERSION_1"));
        }
        if *pending > 3 {
            return Err(StateError::Value { field: "interrupt status", value: (*pending).into() });
        }
        if !has(DRIVER_OK) && *pending != 0 {
            return Err(inconsistent("interrupt status", "the driver was not ready for interrupts"));
        }
        // One that came to be saved had fewer queues, if its driver knows of fewer features.
        let fewer = features.offered != all && queues.len() < info.queues.len();
        if !queues.iter().map(|queue| &queue.max).eq(info.queues.iter().take(queues.len()))
            || queues.len() != info.queues.len() && !fewer
        {
            return Err(inconsistent("queues", "the device has others"));
        }
        for (index, queue) in (0..).zip(queues) {
            let QueueState { ready, next_avail, next_used, .. } = queue.state;
            if ready && !has(FEATURES_OK) {
                return Err(inconsistent("readiness of a queue", "no features were negotiated"));
            }
            if !(ready && has(DRIVER_OK)) && (next_avail, next_used) != (0, 0) {
                return Err(inconsistent("next available index of a queue", "it never ran"));
            }
            if ready && check(index, queue).is_err() {
                return Err(inconsistent("queues", "a ready queue is none, or not in RAM"));
            }
        }
        Ok(())
    }
}

pub(super) fn inconsistent(field: &'static str, reason: &'static str) -> StateError {
    StateError::Inconsistent { field, reason }
}

fn read_queue(fields: &mut Decoder<'_>) -> Result<Queue, StateError> {
    let mut queue = Queue::new(fields.u16(QUEUE_MAX)?);
    queue.state = QueueState {
        size: fields.u16(QUEUE_SIZE)?,
        ready: fields.bool(QUEUE_READY)?,
        desc: fields.u64(QUEUE_DESC)?,
        avail: fields.u64(QUEUE_AVAIL)?,
        used: fields.u64(QUEUE_USED)?,
        next_avail: fields.u16(QUEUE_NEXT_AVAIL)?,
        next_used: fields.u16(QUEUE_NEXT_USED)?,
    };
    Ok(queue)
}

/// Appends the state of a part, with its own kind and version.
pub(super) fn write_nested(fields: &mut Encoder, field: Field, state: &SavedState<'_>) {
    let SavedState { kind, version, payload, .. } = state;
    fields.nested(field, |fields| {
        fields.bytes(INNER_KIND, kind.as_bytes()).u16(INNER_VERSION, *version).bytes(INNER_PAYLOAD, payload);
    });
}

/// Reads it.
pub(super) fn read_nested(fields: &mut Decoder<'_>, field: Field) -> Result<SavedState<'static>, StateError> {
    fields.nested(field, |fields| {
        let kind = String::from_utf8(fields.bytes(INNER_KIND, MAX_KIND)?.to_vec());
        let kind = kind.map_err(|_| inconsistent("kind of the device", "it is not text"))?;
        let version = fields.u16(INNER_VERSION)?;
        Ok(SavedState::new(kind, version, fields.bytes(INNER_PAYLOAD, MAX_PAYLOAD)?.to_vec()))
    })
}

impl Core {
    fn save<T: Own>(&mut self, pending: u32, own: &T) -> Result<DeviceState, DeviceError> {
        if !self.quiet {
            return Err(DeviceError::new("a device that is not quiet cannot be saved"));
        }
        let (state, descriptors) = match self.call(|device| device.save())? {
            DeviceState::Stateless => (None, Vec::new()),
            DeviceState::Saved(Handover { state, descriptors, .. }) => (Some(state), descriptors),
            unsupported => return Ok(unsupported),
        };
        let registers = TransportState {
            features: self.features.clone(),
            status: self.status,
            selected: self.selected,
            generation: self.generation,
            pending,
            queues: self.queues.clone(),
        };
        let mut handover = Handover::new(registers.save(&self.info, state.as_ref(), own));
        handover.descriptors = descriptors;
        Ok(DeviceState::Saved(handover))
    }

    fn restore<T: Own, R>(
        &mut self,
        handover: Handover,
        check: impl FnOnce(T) -> Result<R, StateError>,
    ) -> Result<(u32, R), StateError> {
        if !self.quiet {
            return Err(StateError::Unsupported { reason: "it is not quiet" });
        }
        let (registers, device, own) = TransportState::restore::<T>(&handover.state, &self.info)?;
        let dma = self.dma();
        registers.check(&self.info, |index, queue| queue::check(index, queue.max, &queue.state, &dma))?;
        let own = check(own)?;
        let to_clone = handover.to_clone;
        // The device checks its own state, and takes it over as the first of all.
        let restored = match device {
            Some(state) => {
                let mut inner = Handover::new(state);
                inner.descriptors = handover.descriptors;
                inner.to_clone = to_clone;
                self.call(|device| Ok(device.restore(inner)))
            }
            None => self.call(|device| match device.save()? {
                DeviceState::Stateless => {
                    device.reset();
                    Ok(Ok(()))
                }
                _ => Ok(Err(StateError::Missing { field: "device" })),
            }),
        };
        restored.map_err(|_| StateError::Unsupported { reason: "the device failed" })??;
        self.forget_driver();
        let TransportState { features, status, selected, mut generation, mut pending, queues } = registers;
        // What the guest reads of it may be another clone's.
        if to_clone && self.call(|device| Ok(!device.identities().is_empty())).unwrap_or_default() {
            generation = generation.wrapping_add(1);
            if status & DRIVER_OK != 0 {
                pending |= CONFIG_CHANGE;
            }
        }
        self.features = features;
        self.status = status;
        self.selected = selected;
        self.generation = generation;
        let absent = self.info.queues.iter().skip(queues.len()).map(|max| Queue::new(*max));
        self.queues = queues.into_iter().chain(absent).collect();
        Ok((pending, own))
    }
}

impl<V: View + 'static> Transport<V> {
    /// The device's state, where the driver has not acknowledged the interrupt causes `pending`.
    pub(super) fn save<T: Own>(&self, pending: u32, own: &T) -> Result<DeviceState, DeviceError> {
        self.with(|core| core.save(pending, own))
    }

    /// Takes a state over, if it passes `check` too; returns the interrupt causes that the driver has not acknowledged,
    /// and what `check` has made of the transport's own part.
    pub(super) fn restore<T: Own, R>(
        &self,
        handover: Handover,
        check: impl FnOnce(T) -> Result<R, StateError>,
    ) -> Result<(u32, R), StateError> {
        self.with(|core| core.restore(handover, check))
    }
}
