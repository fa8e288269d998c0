//! Requests that failed on the host and are kept until the device pauses and resumes.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ossature_bus::state::{Decoder, Encoder, Field, StateError};
use ossature_bus::{DeviceEvent, EventSink};
use ossature_memory::DmaIoError;

use super::limits::QUEUE_SIZE;
use super::request::Kind;

const QUEUE: Field = Field::new(1, "queue");
const HEADS: Field = Field::new(2, "heads");

/// What becomes of a request that fails because of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnHostError {
    /// The driver gets an error, and the VMM a [`HostError`](DeviceEvent::HostError).
    #[default]
    Report,
    /// The request is kept, and the VMM gets a [`Stalled`](DeviceEvent::Stalled): it pauses the machine, sees to the host and
    /// resumes, which tries the request again. The driver notices nothing but the time.
    Hold,
    /// The same if the host's disk or its user's quota is full; other failures are reported.
    HoldIfFull,
}

impl OnHostError {
    /// Returns true if a request of this kind is kept. A flush never is: what the host has lost stays lost, and the next
    /// flush would not tell.
    fn holds(self, kind: Kind, error: &DmaIoError) -> bool {
        let DmaIoError::Io(error) = error else { return false };
        kind != Kind::Flush
            && match self {
                Self::Report => false,
                Self::Hold => true,
                Self::HoldIfFull => {
                    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
                }
            }
    }
}

/// What is kept of a device.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// The VMM knows of it.
    told: AtomicBool,
    /// While its queue does not run: the heads of chains, by queue.
    heads: Mutex<BTreeMap<u16, Vec<u16>>>,
}

impl Held {
    /// Returns true if a request that failed so is kept. The VMM is told, once until the device resumes.
    pub fn takes(&self, on_error: OnHostError, events: &EventSink, kind: Kind, error: &DmaIoError) -> bool {
        let holds = on_error.holds(kind, error);
        if holds && !self.told.swap(true, Ordering::Relaxed) {
            events.report(DeviceEvent::Stalled { reason: format!("cannot {}: {error}", kind.action()) });
        }
        holds
    }

    /// The device goes on, and tries again.
    pub fn resume(&self) {
        self.told.store(false, Ordering::Relaxed);
    }

    fn heads(&self) -> MutexGuard<'_, BTreeMap<u16, Vec<u16>>> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A queue stops while these are kept.
    pub fn put(&self, queue: u16, heads: Vec<u16>) {
        if !heads.is_empty() {
            self.heads().insert(queue, heads);
        }
    }

    /// Those of a queue that starts, or that is set up anew.
    pub fn take(&self, queue: u16) -> Vec<u16> {
        self.heads().remove(&queue).unwrap_or_default()
    }

    /// Returns true if some are kept while their queue does not run.
    pub fn waits(&self) -> bool {
        !self.heads().is_empty()
    }

    /// No driver waits for them. The VMM is not told again before the device resumes: guests reset devices as often as they
    /// like.
    pub fn clear(&self) {
        self.heads().clear();
    }

    pub fn save(&self, fields: &mut Encoder, field: Field) {
        fields.list(field, &*self.heads(), |fields, (queue, heads)| {
            let bytes: Vec<u8> = heads.iter().flat_map(|head| head.to_le_bytes()).collect();
            fields.u16(QUEUE, *queue).bytes(HEADS, &bytes);
        });
    }

    /// What [`save`](Self::save) wrote of a device with so many queues. Whether a queue has such heads in flight is seen when
    /// it starts.
    pub fn read(
        fields: &mut Decoder<'_>,
        field: Field,
        queues: u16,
    ) -> Result<Vec<(u16, Vec<u16>)>, StateError> {
        fields.list(field, queues.into(), |fields| {
            let queue = fields.u16(QUEUE)?;
            let bytes = fields.bytes(HEADS, 2 * usize::from(QUEUE_SIZE))?;
            if queue >= queues {
                return Err(StateError::Inconsistent { field: "queue", reason: "the device has fewer" });
            }
            let heads =
                bytes.chunks_exact(2).map(|head| head.iter().rev().fold(0, |n, b| n << 8 | u16::from(*b)));
            Ok((queue, heads.collect()))
        })
    }

    pub fn restore(&self, heads: Vec<(u16, Vec<u16>)>) {
        self.clear();
        self.heads().extend(heads);
    }
}
