//! Saved states: the file that they are kept in, and what each device takes out of one.

use std::time::{Duration, UNIX_EPOCH};

use ossature_bus::state::SavedState;
use ossature_bus::state_file::{self, Architecture, Header, StateFile};
use ossature_bus::testing::TestBoard;
use ossature_bus::{Device, DeviceState, Handover};
use ossature_legacy::{FwCfg, GenerationId, I8042, Rtc, VmGenId};
use ossature_pci::PciBus;
use ossature_virtio::console::{Console, ConsoleOutput};
use ossature_virtio::net::StreamSocket;
use ossature_virtio::testing::{TestDriver, Transport};
use ossature_virtio::{Blk, LocalDevice, Net, Rng, Vsock};

use crate::devices::Flaky;
use crate::{Input, pci};

pub(crate) fn crc32(parts: &[&[u8]]) -> u32 {
    let byte = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ ((crc & 1) * 0xedb8_8320))
    };
    !parts.iter().flat_map(|part| part.iter()).fold(u32::MAX, byte)
}

/// Has the checksums of a file be right, as far as it is one.
pub(crate) fn mend(file: &mut [u8]) -> Option<()> {
    let crc = crc32(&[file.get(..Header::LEN - 4)?]);
    file.get_mut(Header::LEN - 4..Header::LEN)?.copy_from_slice(&crc.to_le_bytes());
    let mut start = Header::LEN;
    loop {
        let mut at = start;
        for _ in 0..2 {
            at += 1 + usize::from(*file.get(at)?);
        }
        at += 2;
        let len = u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?) as usize;
        at += 4;
        let payload = at + 4..at.checked_add(4)?.checked_add(len)?;
        let crc = crc32(&[file.get(start..at)?, file.get(payload.clone())?]);
        file.get_mut(at..at + 4)?.copy_from_slice(&crc.to_le_bytes());
        start = payload.end;
    }
}

/// The file. What is read can be written, and is the same then.
pub fn file(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let form = input.u8();
    let mut file = input.rest().to_vec();
    if form & 1 == 0 {
        let _ = mend(&mut file);
    }
    let Ok(parsed) = StateFile::parse(&file, Architecture::X86_64) else { return };
    let sections: Vec<_> = parsed.iter().collect();
    for (id, state) in &sections {
        assert_eq!(parsed.get(id), Some(*state));
    }
    let mut again = Vec::new();
    state_file::write(&mut again, Architecture::X86_64, &sections).expect("what was read can be written");
    assert_eq!(again.len(), file.len());
    assert_eq!(StateFile::parse(&again, Architecture::X86_64).as_ref(), Ok(&parsed));
}

/// A state of this kind: that of `saved` with some bytes changed, or any.
fn damaged(saved: &SavedState<'_>, input: &mut Input) -> SavedState<'static> {
    let form = input.u8();
    let version = if form & 0x80 != 0 { input.u16() } else { saved.version };
    let mut payload = saved.payload.to_vec();
    if form & 0x40 != 0 {
        payload = input.rest().to_vec();
    } else {
        for _ in 0..form & 7 {
            let at = usize::from(input.u16()) % payload.len().max(1);
            let cut = input.u8();
            let patch = input.bytes(usize::from(cut & 15));
            let end = (at + if cut & 0x40 == 0 { patch.len() } else { usize::from(cut >> 4 & 3) })
                .min(payload.len());
            payload.splice(at.min(end)..end, patch.iter().copied());
        }
    }
    SavedState::new(saved.kind.clone().into_owned(), version, payload)
}

/// Saves a device.
fn saved(device: &mut dyn Device) -> Option<SavedState<'static>> {
    device.quiesce().expect("the device stops");
    match device.save().expect("the device saves") {
        DeviceState::Saved(handover) => Some(handover.state.into_owned()),
        _ => None,
    }
}

/// Restores a device from what its input makes of its own state. What it takes, it saves, and takes again.
fn restore(device: &mut dyn Device, input: &mut Input) -> bool {
    let Some(state) = saved(device) else { return false };
    let state = damaged(&state, input);
    device.reset().expect("the device resets");
    if device.restore(Handover::new(state)).is_err() {
        return false;
    }
    let again = saved(device).expect("it has a state");
    device.reset().expect("the device resets");
    device.restore(Handover::new(again.borrowed())).expect("it restores what it saved");
    let third = saved(device).expect("it has a state");
    assert_eq!(third, again, "what is restored is what was saved");
    true
}

fn virtio(input: &mut Input) -> Box<dyn LocalDevice> {
    match input.below(5) {
        0 => Box::new(Blk::new(Flaky::new(input), "fuzz".parse().expect("an id"))),
        1 => {
            let (one, other) = std::os::unix::net::UnixStream::pair().expect("sockets");
            drop(other);
            let io = StreamSocket::from_fd(one).expect("a socket");
            Box::new(Net::new(io, "52:54:00:12:34:56".parse().expect("an address")))
        }
        2 => Box::new(Console::new(None, ConsoleOutput::writer(std::io::sink()))),
        3 => Box::new(Rng::new()),
        _ => Box::new(Vsock::new(3.try_into().expect("a CID")).expect("a device")),
    }
}

/// Each device.
pub fn devices(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let form = input.u8();
    let alone: Box<dyn Device> = match form & 15 {
        0 => Box::new(Rtc::with_clock("rtc", || UNIX_EPOCH + Duration::from_secs(1 << 30))),
        1 => Box::new(I8042::new("i8042")),
        2 => Box::new(PciBus::new().host("pci")),
        3 => {
            let (mut machine, _) = pci::sample();
            restore(&mut *machine.device, &mut input);
            machine.device.resume().expect("the device goes on");
            return;
        }
        4 => Box::new(FwCfg::new("fw-cfg").file("opt/a", "a").expect("a file")),
        5 => Box::new(VmGenId::new("generation", GenerationId([7; 16])).keep_when_restored()),
        _ => {
            let transport = if form & 0x10 != 0 { Transport::Pci } else { Transport::Mmio };
            ossature_virtio::testing::with(transport, Default::default(), || driven(form, &mut input));
            return;
        }
    };
    let mut device = alone;
    TestBoard::default().attach(&mut *device).expect("the device attaches");
    device.resume().expect("the device goes on");
    restore(&mut *device, &mut input);
    device.resume().expect("the device goes on");
}

fn driven(form: u8, input: &mut Input) {
    let mut driver = TestDriver::boxed(virtio(input));
    if form & 0x20 != 0 {
        driver.start(u128::MAX);
        for queue in 0..driver.queue_count() {
            driver.request(queue, &[&[0; 64]], &[64]);
            if form & 0x40 != 0 {
                driver.kick(queue);
            }
        }
    }
    let restored = restore(driver.device(), input);
    driver.device().resume().expect("the device goes on");
    driver.pump();
    let _ = restored;
    // Whatever it was, a driver begins anew.
    driver.start(u128::MAX);
    assert_eq!(driver.status() & 0x40, 0);
}
