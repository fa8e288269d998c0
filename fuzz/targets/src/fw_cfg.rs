//! A firmware configuration device, at ports and in memory: accesses of any width, requests for DMA from and to anywhere,
//! contents that change meanwhile.

use std::sync::Arc;

use ossature_bus::testing::TestBoard;
use ossature_bus::{Access, Device, DeviceState, Effect, Handover, Mmio, Size};
use ossature_legacy::FwCfg;
use ossature_memory::Dma;
use ossature_memory::vm_memory::GuestAddress;
use ossature_virtio::testing::guest_ram;

use crate::Input;

const STEPS: usize = 64;
const RAM: usize = 0x2000;
const HIGH: u64 = 1 << 32;
const NAMES: [&str; 3] = ["opt/a", "opt/b", "opt/folder/c"];

const ERROR: u32 = 1;
const READ: u32 = 1 << 1;
const SELECT: u32 = 1 << 3;

struct Guest {
    port: Arc<dyn Mmio>,
    dma: Dma,
    in_memory: bool,
}

impl Guest {
    fn write(&self, offset: u64, size: Size, value: u64) {
        if let Ok(effect) = self.port.write(Access { offset, size }, value & size.mask()) {
            assert_eq!(effect, Effect::None);
        }
    }

    fn select(&self, selector: u16) {
        match self.in_memory {
            false => self.write(0, Size::B2, selector.into()),
            true => self.write(8, Size::B2, selector.swap_bytes().into()),
        }
    }

    fn data(&self) -> u8 {
        let offset = u64::from(!self.in_memory);
        self.port.read(Access { offset, size: Size::B1 }).expect("data") as u8
    }

    fn ram(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.dma.read(GuestAddress(at), &mut bytes).expect("RAM");
        bytes
    }

    fn all(&self) -> Vec<u8> {
        [self.ram(0, RAM), self.ram(HIGH, RAM)].concat()
    }

    /// A request that lies in RAM is answered, and one that is refused has moved nothing.
    fn transfer(&self, at: u64, control: u32, length: u32, address: u64) {
        let mut request = [control.to_be_bytes(), length.to_be_bytes()].concat();
        request.extend_from_slice(&address.to_be_bytes());
        let in_ram = self.dma.write(GuestAddress(at), &request).is_ok();
        let before = self.all();
        let register = if self.in_memory { 16 } else { 4 };
        self.write(register, Size::B4, u64::from(((at >> 32) as u32).swap_bytes()));
        self.write(register + 4, Size::B4, u64::from((at as u32).swap_bytes()));
        if !in_ram {
            assert!(self.all() == before);
            return;
        }
        let answer = self.ram(at, 4);
        let answer = u32::from_be_bytes(answer.try_into().expect("four bytes"));
        assert!(answer == 0 || answer == ERROR, "{answer:#x}");
        if answer == ERROR {
            self.dma.write(GuestAddress(at), &control.to_be_bytes()).expect("RAM");
            assert!(self.all() == before, "a request that was refused has moved something");
        } else if control & (SELECT | READ) == SELECT | READ {
            // Both ways bring the same, but for where the answer is.
            let bytes = self.ram(address, length as usize);
            self.select((control >> 16) as u16);
            for (index, byte) in (0..).zip(bytes) {
                let (place, read) = (address + index, self.data());
                assert!(read == byte || (at..at + 4).contains(&place), "{place:#x}");
            }
        }
    }
}

/// An address that is likely to be in or close to RAM.
fn address(input: &mut Input) -> u64 {
    let at = match input.below(4) {
        0 => u64::from(input.u16()),
        1 => HIGH + u64::from(input.u16()),
        2 => [0, HIGH][input.below(2) as usize] + (RAM as u64) - input.below(32),
        _ => return input.number(),
    };
    if input.flag() { at % RAM as u64 } else { at }
}

pub fn run(bytes: &[u8]) {
    play(bytes, false);
    play(bytes, true);
}

fn play(bytes: &[u8], in_memory: bool) {
    let new = if in_memory { FwCfg::in_memory } else { FwCfg::new };
    let ends = if in_memory { 32 } else { 16 };
    let mut input = Input::new(bytes);
    let make = |input: &mut Input| {
        let len = usize::from(input.u8());
        NAMES.iter().fold(new("fw-cfg"), |device, name| device.file(*name, input.bytes(len)).expect("a file"))
    };
    let mut device = make(&mut input);
    let files = device.files();
    let dma = guest_ram(&[(0, RAM), (HIGH, RAM)]);
    let mut board = TestBoard::with_ram(dma.clone());
    board.attach(&mut device).expect("the device attaches");
    device.resume().expect("the device goes on");
    let guest = Guest { port: board.port("registers").expect("registers"), dma, in_memory };
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let op = input.u8();
        let size = [Size::B1, Size::B2, Size::B4, Size::B8][usize::from(op >> 6)];
        match op & 7 {
            0 => guest.write(input.below(ends), size, input.number()),
            1 => {
                let at = Access { offset: input.below(ends), size };
                if let Ok(value) = guest.port.read(at) {
                    assert!(value <= size.mask(), "{value:#x} at {at:?}");
                }
            }
            2 => guest.select((input.u8() & 0x3f).into()),
            3 => {
                let name = NAMES[input.below(3) as usize];
                let len = usize::from(input.u8());
                files.set(name, input.bytes(len)).expect("contents");
            }
            4 => {
                device.quiesce().expect("the device stops");
                let DeviceState::Saved(handover) = device.save().expect("the device saves") else {
                    panic!("the device has a state");
                };
                device.reset().expect("the device resets");
                device
                    .restore(Handover::new(handover.state.into_owned()))
                    .expect("it restores what it saved");
                device.resume().expect("the device goes on");
            }
            _ => {
                let control = u32::from(input.u8() & 0x3f) << 16 | u32::from(input.u8() & 0x3f);
                let length = if op & 8 != 0 { input.number() as u32 } else { input.u8().into() };
                let (at, to) = (address(&mut input), address(&mut input));
                guest.transfer(at, control, length, to);
            }
        }
    }
    guest.select(0);
    assert_eq!([(); 5].map(|()| guest.data()), *b"QEMU\0");
}
