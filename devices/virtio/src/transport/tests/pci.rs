//! The PCI transport, write by write.

mod hostile;
mod registers;
mod signals;
mod state;

use ossature_bus::{Effect, Event, MsiMessage};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, Segment};
use ossature_pci::{PciBus, PciHost};

use super::*;
use crate::testing::{GuestRing, guest_ram};
use crate::{VirtioDevice, VirtioPci};

/// Offsets in the BAR.
const COMMON: u64 = 0;
const STATUS: u64 = 20;
const SELECT: u64 = 22;
const SIZE: u64 = 24;
const VECTOR: u64 = 26;
const ENABLE: u64 = 28;
const RESET: u64 = 58;
const ISR: u64 = 0x80;
const CONFIG: u64 = 0x100;
const NOTIFY: u64 = 0x1000;
const TABLE: u64 = 0x4000;
const BAR_LEN: u64 = 0x8000;

const NO_VECTOR: u64 = 0xffff;

/// A device in a slot of a bus, as its driver reaches it.
struct Rig {
    host: PciHost,
    host_board: TestBoard,
    device: VirtioPci,
    board: TestBoard,
    inline: Inline,
    dma: Dma,
}

impl Rig {
    fn new(device: impl LocalDevice + 'static) -> Self {
        Self::on(guest_ram(&[(0, 4 << 20)]), |runtime, bus| {
            VirtioPci::new("one", Box::new(device), Arc::new(runtime.clone()), bus)
        })
    }

    fn elsewhere(device: impl VirtioDevice + 'static) -> Self {
        Self::on(guest_ram(&[(0, 4 << 20)]), |_, bus| VirtioPci::from_device("one", Box::new(device), bus))
    }

    /// The device on a bus of its own, attached.
    fn attached(dma: Dma, make: impl FnOnce(&Inline, &PciBus) -> VirtioPci) -> Self {
        let (bus, inline) = (PciBus::new(), Inline::new().unwrap());
        let (mut host, mut host_board) = (bus.host("pci"), TestBoard::default());
        host_board.attach(&mut host).unwrap();
        let mut board = TestBoard::with_ram(dma.clone());
        let mut device = make(&inline, &bus);
        board.attach(&mut device).unwrap();
        Self { host, host_board, device, board, inline, dma }
    }

    fn on(dma: Dma, make: impl FnOnce(&Inline, &PciBus) -> VirtioPci) -> Self {
        let mut rig = Self::attached(dma, make);
        rig.host.resume().unwrap();
        rig.device.resume().unwrap();
        rig
    }

    fn space(&self, offset: u64, size: Size) -> u64 {
        let at = Access { offset: 1 << 15 | offset, size };
        self.host_board.port("ecam").unwrap().read(at).unwrap()
    }

    fn set_space(&self, offset: u64, size: Size, value: u64) {
        let at = Access { offset: 1 << 15 | offset, size };
        let effect = self.host_board.port("ecam").unwrap().write(at, value).unwrap();
        self.board.carry_out(effect);
    }

    fn port(&self) -> Arc<dyn ossature_bus::Mmio> {
        self.board.port(("bar", 0)).unwrap()
    }

    fn get(&self, offset: u64, size: Size) -> u64 {
        self.port().read(Access { offset, size }).unwrap()
    }

    fn set(&self, offset: u64, size: Size, value: u64) {
        assert_eq!(self.port().write(Access { offset, size }, value), Ok(Effect::None));
    }

    fn status(&self) -> u64 {
        self.get(STATUS, Size::B1)
    }

    fn set_status(&self, status: u8) {
        self.set(STATUS, Size::B1, status.into());
    }

    /// Enables MSI-X with a message of its own for each of `vectors` vectors.
    fn enable_msix(&self, vectors: u64) {
        for vector in 0..vectors {
            let entry = TABLE + 16 * vector;
            self.set(entry, Size::B4, 0xfee0_0000);
            self.set(entry + 8, Size::B4, 0x40 + vector);
            self.set(entry + 12, Size::B4, 0);
        }
        self.set_space(0x42, Size::B2, 1 << 15);
    }

    /// Up to FEATURES_OK with all of these features that are offered.
    fn negotiate(&self, wanted: u128) {
        for status in [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
            self.set_status(status);
        }
        for window in 0..4u64 {
            self.set(0, Size::B4, window);
            let offered = self.get(4, Size::B4);
            self.set(8, Size::B4, window);
            let bits = (wanted | VERSION_1) >> (32 * window) & u128::from(offered);
            self.set(12, Size::B4, bits as u64);
        }
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        assert_eq!(self.status(), u64::from(ACKNOWLEDGE | DRIVER | FEATURES_OK));
    }

    /// Sets up a queue with this vector.
    fn set_up(&self, queue: u64, size: u16, vector: u64) -> GuestRing {
        let ring = GuestRing::new(self.dma.clone(), 0x10_0000 * (queue + 1), size, 0);
        self.set(SELECT, Size::B2, queue);
        self.set(SIZE, Size::B2, size.into());
        self.set(VECTOR, Size::B2, vector);
        for (offset, addr) in [(32, ring.desc), (40, ring.avail), (48, ring.used)] {
            self.set(offset, Size::B4, addr & 0xffff_ffff);
            self.set(offset + 4, Size::B4, addr >> 32);
        }
        self.set(ENABLE, Size::B2, 1);
        assert_eq!(self.get(ENABLE, Size::B2), 1);
        ring
    }

    fn go(&self) {
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// Offers a buffer, kicks, and lets the worker run.
    fn request(&self, queue: u64, ring: &mut GuestRing) {
        let buffer = Segment { addr: GuestAddress(0x1000), len: 16 };
        ring.offer(0, &[Desc::writable(buffer)]);
        self.set(NOTIFY + 4 * queue, Size::B2, queue);
        self.inline.pump().unwrap();
        assert_eq!(ring.take_used().map(|used| used.len), Some(1));
    }

    fn sent(&self, vector: usize) -> Option<u32> {
        self.board.take_message("msix", vector).map(|message: MsiMessage| message.data)
    }

    /// What has been sent by each of four vectors.
    fn all_sent(&self) -> [Option<u32>; 4] {
        [0, 1, 2, 3].map(|vector| self.sent(vector))
    }

    fn saved(&mut self) -> Handover<'static> {
        self.device.quiesce().unwrap();
        match self.device.save().unwrap() {
            DeviceState::Saved(handover) => handover,
            other => panic!("{other:?}"),
        }
    }
}

fn sample_rig() -> (Arc<Shared>, Rig) {
    let shared = Arc::default();
    let rig = Rig::new(Sample::new(&shared));
    (shared, rig)
}

/// The capabilities: offset and id.
fn capabilities(rig: &Rig) -> Vec<(u64, u64)> {
    let mut list = Vec::new();
    let mut at = rig.space(0x34, Size::B1);
    while at != 0 {
        list.push((at, rig.space(at, Size::B1)));
        at = rig.space(at + 1, Size::B1);
    }
    list
}

/// The virtio capability of a kind.
fn capability(rig: &Rig, kind: u64) -> Option<u64> {
    let list = capabilities(rig);
    let of_kind = |at: u64| rig.space(at + 3, Size::B1) == kind;
    list.into_iter().find(|&(at, id)| id == 9 && of_kind(at)).map(|(at, _)| at)
}
