//! The devices of a machine that is forked or restored.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use ossature::block::NullDisk;
use ossature::bus::Device;
use ossature::legacy::{GenerationId, Serial, SerialPort, VmGenId, backend};
use ossature::virtio::net::{Mac, Net, StreamSocket};
use ossature::virtio::vsock::{Cid, Vsock};
use ossature::virtio::{Blk, LocalDevice, SharedLoop, VirtioMmio};

/// A disk, a network card, vsock, a serial port and a generation ID, whose identities this number makes; and what is at
/// the other end of the card.
pub fn devices(number: u64, io: &Arc<SharedLoop>) -> (Vec<Box<dyn Device>>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mac = Mac::new([0x52, 0x54, 0, (number >> 16) as u8, (number >> 8) as u8, number as u8]).unwrap();
    let virtio = |id: &str, device: Box<dyn LocalDevice>| -> Box<dyn Device> {
        Box::new(VirtioMmio::new(id, device, io.clone()))
    };
    let devices: Vec<Box<dyn Device>> = vec![
        Box::new(Serial::new("serial", SerialPort::COM1, backend::none())),
        Box::new(VmGenId::new("generation", GenerationId::random().unwrap())),
        virtio("disk", Box::new(Blk::new(NullDisk::new(1 << 20), "disk".parse().unwrap()))),
        virtio("net", Box::new(Net::new(StreamSocket::from_fd(ours).unwrap(), mac))),
        virtio("vsock", Box::new(Vsock::new(Cid::try_from(number + 3).unwrap()).unwrap())),
    ];
    (devices, theirs)
}
