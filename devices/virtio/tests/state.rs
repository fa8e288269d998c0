//! The saved form of these devices, byte by byte: what was saved once can be restored for as long as its version counts
//! as known. `golden/` has the payload of each; they are never changed, a new version gets files of its own.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)] // helpers of tests, too, may panic

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;

use ossature_bus::state::{Handover, SavedState};
use ossature_bus::{DeviceState, Syscall};
use ossature_memory::{Dma, DmaIoError, Segments};
use ossature_virtio::blk::{Blk, NullDisk};
use ossature_virtio::console::{Console, ConsoleOutput};
use ossature_virtio::net::{Net, NetIo, Offloads, Unsent};
use ossature_virtio::testing::TestDriver;
use ossature_virtio::{LocalDevice, Rng, Vsock};

/// The bytes of a golden file: two hexadecimal digits each, and `#` before what is for the reader.
fn golden(text: &str) -> Vec<u8> {
    let digits = text.lines().flat_map(|line| line.split('#').next().unwrap().split_whitespace());
    digits.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    let line = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x} ")).collect::<String>();
    bytes.chunks(16).map(|bytes| line(bytes).trim_end().to_owned() + "\n").collect()
}

/// A network that takes everything and has nothing.
struct Quiet(UnixDatagram);

impl NetIo for Quiet {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn offloads(&self) -> Offloads {
        Offloads::all()
    }

    fn set_offloads(&self, _: Offloads) -> std::io::Result<()> {
        Ok(())
    }

    fn set_active(&self, _: bool) -> std::io::Result<()> {
        Ok(())
    }

    fn is_connected(&self) -> bool {
        true
    }

    fn flush(&self) -> Result<(), Unsent> {
        Ok(())
    }

    fn receive(&self, _: &Dma, _: Segments<'_>) -> Result<usize, DmaIoError> {
        Err(std::io::Error::from(std::io::ErrorKind::WouldBlock).into())
    }

    fn send(&self, _: &Dma, _: &[u8; 12], _: Segments<'_>) -> Result<(), DmaIoError> {
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }
}

fn blk() -> Box<dyn LocalDevice> {
    Box::new(Blk::new(NullDisk::new(0x1234), "golden-disk".parse().unwrap()))
}

fn net() -> Box<dyn LocalDevice> {
    let io = Quiet(UnixDatagram::unbound().unwrap());
    Box::new(Net::new(io, "52:54:00:12:34:56".parse().unwrap()))
}

fn console() -> Box<dyn LocalDevice> {
    let console = Console::new(None, ConsoleOutput::writer(std::io::sink()));
    console.window().resize(132, 50);
    Box::new(console)
}

fn rng() -> Box<dyn LocalDevice> {
    Box::new(Rng::new())
}

fn vsock() -> Box<dyn LocalDevice> {
    Box::new(Vsock::new(0x1234.try_into().unwrap()).unwrap())
}

/// A device, the queue from which it takes chains at once, and its golden file.
type Row = (fn() -> Box<dyn LocalDevice>, u16, &'static str);

const ROWS: [Row; 5] = [
    (blk, 0, include_str!("golden/virtio-blk-3.hex")),
    (net, 1, include_str!("golden/virtio-net-2.hex")),
    (console, 1, include_str!("golden/virtio-console-3.hex")),
    (rng, 0, include_str!("golden/virtio-rng-1.hex")),
    (vsock, 1, include_str!("golden/virtio-vsock-1.hex")),
];

/// What was saved by earlier versions.
const EARLIER: [Row; 5] = [
    (blk, 0, include_str!("golden/virtio-blk-1.hex")),
    (blk, 0, include_str!("golden/virtio-blk-2.hex")),
    (net, 1, include_str!("golden/virtio-net-1.hex")),
    (console, 1, include_str!("golden/virtio-console-1.hex")),
    (console, 1, include_str!("golden/virtio-console-2.hex")),
];

/// A driver that has had three chains served, of which it has seen two, and has offered a fourth.
fn driver(device: Box<dyn LocalDevice>, queue: u16) -> TestDriver {
    let mut driver = TestDriver::boxed(device);
    driver.start(u128::MAX);
    driver.transact(queue, &[&[0; 64]], &[64]);
    driver.transact(queue, &[&[0; 64]], &[64]);
    let next = driver.ring(queue).next_used();
    driver.ring(queue).set_used_event(next);
    driver.request(queue, &[&[0; 64]], &[64]);
    driver.kick(queue);
    driver.request(queue, &[&[0; 64]], &[64]);
    driver
}

#[test]
fn each_devices_payload_is_the_golden_one() {
    for (device, queue, text) in ROWS {
        let mut driver = driver(device(), queue);
        driver.device().quiesce().unwrap();
        let DeviceState::Saved(handover) = driver.device().save().unwrap() else { panic!("no state") };
        let SavedState { kind, version, payload, .. } = &handover.state;
        assert_eq!((&kind[..], *version), ("ossature.virtio-mmio", 1));
        assert!(payload[..] == golden(text), "the bytes have changed:\n{}", hex(payload));
    }
}

#[test]
fn the_golden_ones_are_restored() {
    for (device, queue, text) in ROWS.into_iter().chain(EARLIER) {
        let mut driver = driver(device(), queue);
        driver.device().quiesce().unwrap();
        driver.device().reset().unwrap();
        let state = SavedState::new("ossature.virtio-mmio", 1, golden(text));
        driver.device().restore(Handover::new(state)).unwrap();
        driver.interrupts();
        driver.device().resume().unwrap();
        assert!(driver.interrupts() > 0, "what was pending is not raised again");
        driver.pump();
        assert_eq!(std::iter::from_fn(|| driver.used(queue)).count(), 2);
        driver.transact(queue, &[&[0; 64]], &[64]);
        assert_eq!(driver.reports(), []);
    }
}
