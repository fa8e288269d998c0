//! The registers of both virtio transports, in any order and width, with rings wherever they come to lie.

use std::sync::Arc;

use ossature_bus::testing::TestBoard;
use ossature_bus::{Access, Device, DeviceEvent, Effect, Handover, Size};
use ossature_memory::vm_memory::GuestAddress;
use ossature_pci::PciBus;
use ossature_virtio::testing::{TestDriver, guest_ram};
use ossature_virtio::{Blk, Inline, VirtioPci};

use crate::Input;
use crate::devices::Flaky;
use crate::pci::{Machine, access};

/// Steps of one input.
const STEPS: usize = 128;
/// Offsets of the MMIO transport's registers.
const REGISTERS: [u64; 30] = [
    0, 4, 8, 0xc, 0x10, 0x14, 0x20, 0x24, 0x30, 0x34, 0x38, 0x44, 0x50, 0x60, 0x64, 0x70, 0x80, 0x84, 0x90,
    0x94, 0xa0, 0xa4, 0xac, 0xb0, 0xb8, 0xc0, 0xfc, 0x100, 0x108, 0x120,
];

/// Writes to a driver's memory close to where rings are likely to be.
fn poke(dma: &ossature_memory::Dma, input: &mut Input) {
    let at =
        [0x1000, 0x2000, 0x10_0000, 0x20_0000][input.below(4) as usize] + u64::from(input.u16() % 0x1000);
    let len = usize::from(input.u8() % 33);
    // Rings of a driver are RAM.
    dma.write(GuestAddress(at), input.bytes(len)).expect("RAM");
}

fn no_panic(reports: &[DeviceEvent], resets: usize) {
    for report in reports {
        assert!(!matches!(report, DeviceEvent::Panicked { .. }), "{report}");
    }
    assert!(reports.len() <= 8 * (2 + resets), "a flood of reports: {reports:?}");
}

/// The MMIO transport.
pub fn mmio(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let device = Blk::new(Flaky::new(&mut input), "fuzz".parse().expect("an id")).with_queues(2);
    let mut driver = TestDriver::new(device);
    if input.flag() {
        driver.start(u128::MAX);
    }
    let port = driver.port();
    let mut resets = 0;
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let op = input.u8();
        let register = match input.u8() {
            register @ 0..0xe0 => REGISTERS[usize::from(register) % REGISTERS.len()],
            _ => input.number(),
        };
        let size = if op & 0x30 == 0x30 {
            [Size::B1, Size::B2, Size::B4, Size::B8][usize::from(op >> 6)]
        } else {
            Size::B4
        };
        let at = Access { offset: register, size };
        match op & 7 {
            0..=3 => {
                let value = input.number();
                // A reset, whoever asks.
                resets += usize::from(register == 0x70 && value & 0xff == 0);
                if let Ok(effect) = port.write(at, value) {
                    assert_eq!(effect, Effect::None);
                }
            }
            4 => {
                if let Ok(value) = port.read(at) {
                    assert!(value <= size.mask(), "{value:#x} at {at:?}");
                }
            }
            5 => poke(driver.dma(), &mut input),
            6 => driver.doorbell(u16::from(op >> 3 & 1)).signal().expect("an event"),
            _ if op & 8 != 0 => {
                driver.save_and_restore();
                // It resets the device on the way.
                resets += 1;
            }
            _ => driver.pump(),
        }
        // The page that a guest reads says what the registers do.
        for register in [0, 4, 8, 0xc, 0x10, 0x34, 0x44, 0x70, 0xfc] {
            driver.read(register);
        }
        assert_eq!(driver.status() & !0xcf, 0, "{:#x}", driver.status());
        no_panic(&driver.reports(), resets);
    }
    driver.pump();
    // Whatever was done to it, it works after a reset.
    driver.start(u128::MAX);
    let (used, _) = driver.transact(0, &[&[8; 4], &[0; 12]], &[20, 1]);
    assert!(used.len <= 21);
}

/// The PCI transport, with its function's configuration space.
pub fn pci(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let inline = Inline::new().expect("an event loop");
    let device = Box::new(Blk::new(Flaky::new(&mut input), "fuzz".parse().expect("an id")).with_queues(2));
    let bus = PciBus::new();
    let device = VirtioPci::new("blk", device, Arc::new(inline.clone()), &bus);
    let board = TestBoard::with_ram(guest_ram(&[(0, 4 << 20)]));
    let mut machine = Machine::new(board, bus, Box::new(device));
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let op = input.u8();
        match op & 7 {
            0 | 1 => machine.config(&mut input),
            2 => poke(machine.board.dma(), &mut input),
            3 => {
                for queue in 0..2u16 {
                    machine.board.doorbell(("kick", queue)).expect("a doorbell").signal().expect("an event");
                }
            }
            4 if op & 0xf0 == 0 => {
                machine.device.quiesce().expect("the device stops");
                if let ossature_bus::DeviceState::Saved(handover) =
                    machine.device.save().expect("the device saves")
                {
                    let state = handover.state.into_owned();
                    machine.device.reset().expect("the device resets");
                    machine.device.restore(Handover::new(state)).expect("the device restores what it saved");
                    machine.board.carry_out(Effect::Remap(ossature_bus::RangeId(0)));
                }
                machine.device.resume().expect("the device goes on");
            }
            _ => {
                let at = access(&mut input);
                machine.bar(at, op & 8 != 0, input.number());
            }
        }
        inline.pump().expect("the event loop");
        machine.check();
        no_panic(&machine.board.reports(), STEPS);
    }
}
