//! Where everything of the transport is: in configuration space, and in the BAR.

use std::sync::Arc;

use ossature_bus::{DoorbellRequest, Size};
use ossature_pci::{Bar, Capability, FunctionInfo, MsixLayout};

use super::KICK;
use super::window::Window;
use crate::{DeviceInfo, DeviceType};

const VENDOR: u16 = 0x1af4;
/// The device id of type 0.
const FIRST_DEVICE: u16 = 0x1040;
/// Types above have no device id.
pub(super) const MAX_TYPE: u32 = 0x3f;
/// 1 or above: not transitional.
const REVISION: u8 = 1;

/// The one BAR, and its size.
pub(super) const BAR: u8 = 0;
const BAR_LEN: u64 = 0x8000;

/// The common configuration, up to and with queue_reset.
pub(super) const COMMON: u64 = 0;
pub(super) const COMMON_LEN: u64 = 60;
pub(super) const ISR: u64 = 0x80;
const ISR_LEN: u32 = 1;
pub(super) const CONFIG: u64 = 0x100;
/// Bytes for the device's configuration space.
pub(super) const CONFIG_ROOM: u32 = (NOTIFY - CONFIG) as u32;
/// A doorbell for each queue.
pub(super) const NOTIFY: u64 = 0x1000;
pub(super) const NOTIFY_STEP: u64 = 4;
const PENDING: u32 = 0x2000;
const TABLE: u32 = 0x4000;
/// What the table has room for, but for the vector of the configuration.
pub(super) const MAX_QUEUES: u16 = ((BAR_LEN - TABLE as u64) / 16 - 1) as u16;

/// Types of the transport's capabilities (4.1.4).
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// A capability that says where a structure is in the BAR.
fn capability(kind: u8, offset: u32, len: u32, more: &[u8]) -> Capability {
    let [kind, bar, id] = [kind, BAR, 0];
    let place = [&[kind, bar, id, 0, 0][..], &offset.to_le_bytes(), &len.to_le_bytes(), more].concat();
    Capability::vendor(&place)
}

/// The capability by which the BAR is reached through configuration space: BAR, offset, length and data can be written.
fn window() -> Capability {
    let writable = [&[0, 0, 0xff, 0, 0, 0][..], &[0xff; 12]].concat();
    capability(PCI_CFG, 0, 0, &[0; 4]).writable(writable).with_port(Arc::new(Window))
}

/// Class, subclass and programming interface of a type.
fn class(device_type: DeviceType) -> u32 {
    match device_type {
        DeviceType::NET => 0x0002_0000,
        // A file system (26) is storage as well.
        DeviceType::BLOCK | DeviceType(26) => 0x0001_8000,
        DeviceType::CONSOLE | DeviceType::VSOCK => 0x0007_8000,
        _ => 0x00ff_0000,
    }
}

/// The function that a device is.
pub(super) fn function(info: &DeviceInfo) -> FunctionInfo {
    let queues = u16::try_from(info.queues.len()).unwrap_or(u16::MAX).min(MAX_QUEUES);
    let id = FIRST_DEVICE | (info.device_type.0 & MAX_TYPE) as u16;
    let doorbell =
        |queue: u16| DoorbellRequest::new((KICK, queue), NOTIFY + u64::from(queue) * NOTIFY_STEP, Size::B2);
    let bar = (0..queues).map(doorbell).fold(Bar::memory64(BAR, BAR_LEN), Bar::doorbell);
    let notify_len = u32::from(queues) * NOTIFY_STEP as u32;
    let function = FunctionInfo::new(VENDOR, id, class(info.device_type))
        .revision(REVISION)
        .subsystem(VENDOR, id)
        .bar(bar)
        .msix(MsixLayout::new(queues + 1, BAR, TABLE, PENDING))
        .capability(capability(COMMON_CFG, COMMON as u32, COMMON_LEN as u32, &[]))
        .capability(capability(NOTIFY_CFG, NOTIFY as u32, notify_len, &(NOTIFY_STEP as u32).to_le_bytes()))
        .capability(capability(ISR_CFG, ISR as u32, ISR_LEN, &[]));
    let function = match info.config_len {
        0 => function,
        len => function.capability(capability(DEVICE_CFG, CONFIG as u32, len, &[])),
    };
    function.capability(window())
}
