//! A socket device whose packets are parsed by the published crate `virtio-vsock`: what a driver sends comes back.

use std::collections::VecDeque;
use std::sync::Arc;

use ::virtio_queue::{Queue, QueueOwnedT, QueueT};
use ossature_memory::GuestMmap;
use ossature_memory::vm_memory::Bytes;
use ossature_virtio::testing::TestDriver;
use ossature_virtio::{DeviceInfo, DeviceType, LocalDevice, Source};
use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};

use crate::virtio_queue::{HandlerError, QueueDevice, QueueHandler, Queues};

const RX: u16 = 0;
const TX: u16 = 1;
const OP_RW: u16 = 5;
const MAX_DATA: u32 = 64 << 10;
const MAX_PENDING: usize = 64;

struct Packet {
    src: (u64, u32),
    dst: (u64, u32),
    op: u16,
    data: Vec<u8>,
}

#[derive(Default)]
struct Echo {
    pending: VecDeque<Packet>,
}

impl Echo {
    fn receive(&mut self, queue: &mut Queue, memory: &GuestMmap) -> Result<(), HandlerError> {
        while let Some(mut chain) = queue.iter(memory)?.next() {
            if let Ok(packet) = VsockPacket::from_tx_virtq_chain(memory, &mut chain, MAX_DATA) {
                let mut data = vec![0; packet.len() as usize];
                if let Some(slice) = packet.data_slice() {
                    slice.read_slice(&mut data, 0)?;
                }
                let src = (packet.src_cid(), packet.src_port());
                let dst = (packet.dst_cid(), packet.dst_port());
                if self.pending.len() < MAX_PENDING {
                    self.pending.push_back(Packet { src, dst, op: packet.op(), data });
                }
            }
            queue.add_used(memory, chain.head_index(), 0)?;
        }
        Ok(())
    }

    fn send(&mut self, queue: &mut Queue, memory: &GuestMmap) -> Result<(), HandlerError> {
        while let Some(echo) = self.pending.front() {
            let Some(mut chain) = queue.iter(memory)?.next() else { break };
            let mut used = 0;
            if let Ok(mut packet) = VsockPacket::from_rx_virtq_chain(memory, &mut chain, MAX_DATA) {
                let room = packet.data_slice().map_or(0, |slice| slice.len()).min(echo.data.len());
                packet.set_header_from_raw(&[0; PKT_HEADER_SIZE])?;
                packet.set_src_cid(echo.dst.0).set_src_port(echo.dst.1);
                packet.set_dst_cid(echo.src.0).set_dst_port(echo.src.1);
                packet.set_op(echo.op).set_len(room as u32);
                if let Some(slice) = packet.data_slice() {
                    slice.write_slice(&echo.data[..room], 0)?;
                }
                used = (PKT_HEADER_SIZE + room) as u32;
            }
            self.pending.pop_front();
            queue.add_used(memory, chain.head_index(), used)?;
        }
        Ok(())
    }
}

impl QueueHandler for Echo {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn process(&mut self, _: u16, queues: &mut Queues, memory: &Arc<GuestMmap>) -> Result<(), HandlerError> {
        if let Some(queue) = queues.get(TX) {
            self.receive(queue, memory)?;
        }
        queues.get(RX).map_or(Ok(()), |queue| self.send(queue, memory))
    }

    fn stop_queue(&mut self, _: u16, _: &mut Queue, _: &Arc<GuestMmap>) -> Result<(), HandlerError> {
        Ok(())
    }
}

fn device() -> impl LocalDevice {
    let info = DeviceInfo::new(DeviceType(19), &[64, 64, 16]);
    QueueDevice::new(info, |_| Ok(Echo::default())).with_config(&3u64.to_le_bytes())
}

fn header(len: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(3u64.to_le_bytes());
    bytes.extend(2u64.to_le_bytes());
    bytes.extend([1000, 2000, len].into_iter().flat_map(u32::to_le_bytes));
    bytes.extend([1, OP_RW].into_iter().flat_map(u16::to_le_bytes));
    bytes.resize(PKT_HEADER_SIZE, 0);
    bytes
}

#[test]
fn packets_come_back() {
    let mut driver = TestDriver::new(device());
    assert_eq!(driver.config::<8>(0), 3u64.to_le_bytes());
    for features in [0, u128::MAX] {
        driver.start(features);
        let mut room = Vec::new();
        for _ in 0..4 {
            room.push(driver.request(RX, &[], &[PKT_HEADER_SIZE as u32, 100]));
            // Newer drivers use a single buffer, and what they have negotiated.
            let single = [PKT_HEADER_SIZE as u32 + 100];
            room.push(match features {
                0 => driver.request(RX, &[], &single),
                _ => driver.request_indirect(RX, &[], &single),
            });
        }
        driver.kick(RX);
        assert_eq!(driver.used(RX), None);
        for (number, room) in room.iter().enumerate() {
            let text = format!("packet {number}").into_bytes();
            driver.request(TX, &[&header(text.len() as u32), &text], &[]);
            driver.kick(TX);
            assert_eq!(driver.wait_used(TX).len, 0);
            let used = driver.used(RX).unwrap();
            assert_eq!((used.head, used.len as usize), (room.head.into(), PKT_HEADER_SIZE + text.len()));
            let got = driver.bytes(&room.writable);
            assert_eq!(&got[PKT_HEADER_SIZE..][..text.len()], &text);
            assert_eq!((&got[..8], &got[8..16]), (&2u64.to_le_bytes()[..], &3u64.to_le_bytes()[..]));
        }
        assert_eq!(driver.reports(), []);
    }
}

ossature_virtio::conformance_tests!(conformance, device);
