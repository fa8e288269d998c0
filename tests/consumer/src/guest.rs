//! A guest without an operating system, in real mode for KVM and as a script: has its text shouted by the virtio
//! device, prints the answer, then powers off or spins.

use ossature::boot::{NodeRange, Platform};
use ossature::bus::Size;
use ossature::memory::GuestMmap;
use ossature::vmm::Registers;
use ossature::vmm::machine::PayloadError;
use ossature::vmm::scripted::Script;
use vm_memory::{Bytes, GuestAddress};

use crate::{printer, shout};

const CODE: u16 = 0x1000;
const DESCRIPTORS: u16 = 0x2000;
const AVAILABLE: u16 = 0x2100;
const USED: u16 = 0x2200;
pub const REQUEST: u16 = 0x3000;
pub const ANSWER: u16 = 0x3100;
/// What a guest that spins counts in, 16 bits.
pub const COUNTER: GuestAddress = GuestAddress(0x3400);

/// Entries of the queue.
const QUEUE: u16 = 8;

/// Registers of the transport (virtio 1.2, 4.2.2).
const DRIVER_FEATURES: u16 = 0x20;
const DRIVER_FEATURES_SEL: u16 = 0x24;
const QUEUE_NUM: u16 = 0x38;
const QUEUE_READY: u16 = 0x44;
const QUEUE_NOTIFY: u16 = 0x50;
const STATUS: u16 = 0x70;
const QUEUE_DESC: u16 = 0x80;
const QUEUE_DRIVER: u16 = 0x90;
const QUEUE_DEVICE: u16 = 0xa0;

/// What a driver writes, in this order, from finding the device to its first kick. RAM is below 4 GiB.
const DRIVER: [(u16, u32); 11] = [
    (STATUS, 3),
    (DRIVER_FEATURES_SEL, 1),
    (DRIVER_FEATURES, 1), // VIRTIO_F_VERSION_1, bit 32
    (STATUS, 11),
    (QUEUE_NUM, QUEUE as u32),
    (QUEUE_DESC, DESCRIPTORS as u32),
    (QUEUE_DRIVER, AVAILABLE as u32),
    (QUEUE_DEVICE, USED as u32),
    (QUEUE_READY, 1),
    (STATUS, 15),
    (QUEUE_NOTIFY, 0),
];

/// What the guest does when it has printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    PowerOff,
    Spin,
}

/// A guest that has `text` shouted.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    pub text: &'static str,
    pub then: Then,
}

/// Where the device `id` is: the start of its registers, and its interrupt.
pub fn place(platform: &Platform, id: &str) -> Option<(u64, u32)> {
    let node = platform.nodes.iter().find(|node| node.id == id)?;
    let interrupt = node.interrupts.first()?.number;
    let base = node.ranges.iter().find_map(|range| match range {
        NodeRange::Memory { base, .. } => Some(*base),
        _ => None,
    })?;
    Some((base, interrupt))
}

/// A part of a request: where it is, its length, and whether the device writes it.
pub type Part = (u16, u32, bool);

/// Puts a ring with one request in it into memory.
pub fn put_request(memory: &GuestMmap, parts: &[Part]) -> Result<(), PayloadError> {
    let at = |address: u16| GuestAddress(address.into());
    for (slot, (address, len, writes)) in (0u16..).zip(parts) {
        let is_last = usize::from(slot) + 1 == parts.len();
        let flags = u16::from(!is_last) | if *writes { 2 } else { 0 };
        let mut bytes = u64::from(*address).to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend((slot + 1).to_le_bytes());
        memory.write_slice(&bytes, at(DESCRIPTORS + 16 * slot))?;
    }
    // Flags, index, the first entry.
    memory.write_slice(&[0, 0, 1, 0, 0, 0], at(AVAILABLE))?;
    memory.write_slice(&[0; 4], at(USED))?;
    Ok(())
}

/// Puts code into memory; the vCPU that starts there has the registers of a device at `base`.
pub fn put_code(memory: &GuestMmap, code: &[u8], base: u64) -> Result<Registers, PayloadError> {
    memory.write_slice(code, GuestAddress(CODE.into()))?;
    let mut registers = Registers::real_mode(CODE);
    registers.fs.base = base;
    Ok(registers)
}

/// Code of a driver that has the request answered.
pub fn driver() -> Vec<u8> {
    let mut code = Vec::new();
    for (register, value) in DRIVER {
        code.extend([0x64, 0x66, 0xc7, 0x06]); // mov dword fs:[register], value
        code.extend(register.to_le_bytes());
        code.extend(value.to_le_bytes());
    }
    code.push(0xa1); // poll: mov ax, [the used ring's index]
    code.extend((USED + 2).to_le_bytes());
    code.extend([0x85, 0xc0, 0x74, 0xf9]); // test ax, ax; jz poll
    code
}

/// Code that sends `len` bytes of the answer to a port.
pub fn send_answer(port: u16, len: u16) -> Vec<u8> {
    let mut code = vec![0xba]; // mov dx, port
    code.extend(port.to_le_bytes());
    code.push(0xbe); // mov si, ANSWER
    code.extend(ANSWER.to_le_bytes());
    code.push(0xb9); // mov cx, len
    code.extend(len.to_le_bytes());
    code.extend([0xf3, 0x6e]); // rep outsb
    code
}

impl Guest {
    /// Puts the ring, with one request in it, and the code into memory.
    pub fn load(&self, memory: &GuestMmap, platform: &Platform) -> Result<Registers, PayloadError> {
        let (base, _) =
            place(platform, shout::ID).ok_or("the guest is not told of the device that it drives")?;
        let len = self.text.len() as u32;
        put_request(memory, &[(REQUEST, len, false), (ANSWER, len, true)])?;
        memory.write_slice(self.text.as_bytes(), GuestAddress(REQUEST.into()))?;
        put_code(memory, &self.code(), base)
    }

    fn code(&self) -> Vec<u8> {
        let mut code = driver();
        code.extend(send_answer(printer::PORT, self.text.len() as u16));
        match self.then {
            Then::PowerOff => code.extend([0xb0, printer::END, 0xee, 0xf4]), // mov al, END; out dx, al; hlt
            Then::Spin => {
                code.extend([0xff, 0x06]); // inc word [COUNTER]
                code.extend((COUNTER.0 as u16).to_le_bytes());
                code.extend([0xeb, 0xfa]); // jmp to it
            }
        }
        code
    }

    /// The same for a machine without KVM, with the shouter in this [`place`].
    pub fn script(&self, (base, interrupt): (u64, u32)) -> Script {
        let answer = self.text.to_ascii_uppercase();
        let mut script = Script::new();
        for (register, value) in DRIVER {
            script = script.mmio_write(base + u64::from(register), Size::B4, value.into());
        }
        script = script
            .await_interrupt(interrupt)
            .ram_expect(GuestAddress((USED + 2).into()), &[1, 0])
            .ram_expect(GuestAddress(ANSWER.into()), answer.as_bytes())
            .pio_write_bytes(printer::PORT, answer.as_bytes());
        match self.then {
            Then::PowerOff => script.pio_write(printer::PORT, Size::B1, printer::END.into()),
            Then::Spin => script.ram_write(COUNTER, &[1, 0]).await_kick(),
        }
    }
}
