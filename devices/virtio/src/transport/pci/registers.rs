//! The registers of the PCI transport as vCPUs reach them (virtio 1.2, 4.1.4).

use std::sync::Arc;

use ossature_bus::{Access, BusFault, Effect, Event, Mmio, Size};

use super::super::core::{Core, Ring};
use super::PciTransport;
use super::layout::{COMMON_LEN, CONFIG, ISR, NOTIFY, NOTIFY_STEP};
use super::view::{check, reg};

/// What the driver writes to enable or to reset a queue.
const ON: u64 = 1;

/// The BAR, but for MSI-X.
pub(super) struct BarPort {
    transport: Arc<PciTransport>,
    doorbells: Vec<Arc<Event>>,
    config_len: u64,
}

/// Which structure an access is to, with the offset in there.
enum Place {
    Common(Access),
    Isr,
    Config(Access),
    Notify(u64),
}

impl BarPort {
    pub(super) fn new(transport: Arc<PciTransport>, doorbells: Vec<Arc<Event>>, config_len: u32) -> Self {
        Self { transport, doorbells, config_len: config_len.into() }
    }

    fn place(&self, at: Access) -> Result<Place, BusFault> {
        let inside = |start| Access { offset: at.offset - start, size: at.size };
        match at.offset {
            offset if offset >= NOTIFY => Ok(Place::Notify(offset - NOTIFY)),
            offset if offset >= CONFIG => {
                check(inside(CONFIG), self.config_len).map(|()| Place::Config(inside(CONFIG)))
            }
            ISR if at.size == Size::B1 => Ok(Place::Isr),
            ISR => Err(BusFault::Width),
            _ => check(at, COMMON_LEN).map(|()| Place::Common(at)),
        }
    }

    /// Writes a field of the common configuration. Each has one width, and addresses are written in halves as well.
    fn write_common(&self, at: Access, value: u64) -> Result<(), BusFault> {
        let word = value as u32;
        let with = |f: &mut dyn FnMut(&mut Core)| self.transport.with(f);
        let signals = self.transport.view().signals();
        match (at.offset, at.size) {
            (reg::OFFERED_SELECT, Size::B4) => with(&mut |core| core.select_offered_features(word)),
            (reg::ACCEPTED_SELECT, Size::B4) => with(&mut |core| core.select_accepted_features(word)),
            (reg::ACCEPTED, Size::B4) => with(&mut |core| core.accept_features(word)),
            (reg::CONFIG_VECTOR, Size::B2) => with(&mut |_| signals.set_config_vector(value as u16)),
            (reg::STATUS, Size::B1) => with(&mut |core| {
                core.write_status(value as u8);
                if value == 0 {
                    signals.forget_vectors();
                }
            }),
            (reg::QUEUE_SELECT, Size::B2) => with(&mut |core| core.select_queue(word)),
            (reg::QUEUE_SIZE, Size::B2) => with(&mut |core| core.set_queue_size(word)),
            (reg::QUEUE_VECTOR, Size::B2) => with(&mut |core| self.set_queue_vector(core, value as u16)),
            // A driver may not write 0 (4.1.4.3.2); one that does stops the queue, as on the MMIO transport.
            (reg::QUEUE_ENABLE, Size::B2) => with(&mut |core| core.set_queue_ready(value & ON != 0)),
            (reg::QUEUE_RESET, Size::B2) if value == ON => with(&mut |core| {
                // For another vCPU that looks meanwhile.
                self.transport.view().show_resetting();
                if core.reset_queue() {
                    signals.set_queue_vector(core.selected, super::signals::NO_VECTOR);
                }
            }),
            (reg::QUEUE_RESET, Size::B2) => {}
            (reg::QUEUE_DESC..reg::QUEUE_NOTIFY_DATA, Size::B4 | Size::B8) => {
                with(&mut |core| set_address(core, at, value))
            }
            (
                reg::OFFERED | reg::QUEUES | reg::GENERATION | reg::QUEUE_NOTIFY | reg::QUEUE_NOTIFY_DATA,
                _,
            ) => return Err(BusFault::ReadOnly),
            _ => return Err(BusFault::Width),
        }
        Ok(())
    }

    /// Whatever was signalled before with the old vector was meant for the driver: it is told again.
    fn set_queue_vector(&self, core: &mut Core, vector: u16) {
        let (signals, queue) = (self.transport.view().signals(), core.selected);
        let before = signals.queue_vector(queue);
        let restart = signals.set_queue_vector(queue, vector);
        if restart {
            core.restart_queue(queue as u16);
        }
        if before != signals.queue_vector(queue) && core.queue().is_some_and(|queue| queue.is_running()) {
            signals.signal_queue(queue);
        }
    }
}

/// The driver writes one of the selected queue's addresses, or half of it.
fn set_address(core: &mut Core, at: Access, value: u64) {
    let ring = match at.offset {
        reg::QUEUE_DESC..reg::QUEUE_AVAIL => Ring::Desc,
        reg::QUEUE_AVAIL..reg::QUEUE_USED => Ring::Avail,
        _ => Ring::Used,
    };
    let high = !at.offset.is_multiple_of(8);
    core.set_queue_address(ring, high, value as u32);
    if at.size == Size::B8 {
        core.set_queue_address(ring, true, (value >> 32) as u32);
    }
}

impl Mmio for BarPort {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        let registers = self.transport.view();
        match self.place(at)? {
            Place::Common(at) => registers.common(at),
            Place::Isr => Ok(registers.signals().acknowledge().into()),
            Place::Config(at) => registers.config(at),
            Place::Notify(offset) if offset < self.doorbells.len() as u64 * NOTIFY_STEP => {
                Err(BusFault::WriteOnly)
            }
            Place::Notify(_) => Err(BusFault::Unmapped),
        }
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        match self.place(at)? {
            Place::Common(at) => self.write_common(at, value)?,
            Place::Isr => return Err(BusFault::ReadOnly),
            Place::Config(at) => {
                let bytes = value.to_le_bytes();
                let data = bytes.get(..at.size.bytes() as usize).unwrap_or_default();
                self.transport.with(|core| core.write_config(at.offset as u32, data));
            }
            // Without an exit where the machine has connected the doorbells, and like there: any value.
            Place::Notify(offset) => {
                let doorbell =
                    self.doorbells.get((offset / NOTIFY_STEP) as usize).ok_or(BusFault::Unmapped)?;
                if !offset.is_multiple_of(NOTIFY_STEP) {
                    return Err(BusFault::Alignment);
                }
                // Our event cannot fail.
                let _ = doorbell.signal();
            }
        }
        Ok(Effect::None)
    }
}
