//! Registers in orders that no driver of ours has to take, but that the specification allows (virtio 1.2, 4.2.2): each is
//! written, and checked for what it reads then. The device is an entropy source.

use core::cell::UnsafeCell;
use core::sync::atomic::{Ordering, fence};

const DRIVER_FEATURES: usize = 0x20;
const DRIVER_FEATURES_SEL: usize = 0x24;
const QUEUE_SEL: usize = 0x30;
const QUEUE_NUM: usize = 0x38;
const QUEUE_READY: usize = 0x44;
const QUEUE_NOTIFY: usize = 0x50;
const INTERRUPT_STATUS: usize = 0x60;
const INTERRUPT_ACK: usize = 0x64;
const STATUS: usize = 0x70;
const QUEUE_DESC: usize = 0x80;
const QUEUE_DRIVER: usize = 0x90;
const QUEUE_DEVICE: usize = 0xa0;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const USED_BUFFER: u32 = 1;
/// The device writes to the buffer.
const WRITE: u16 = 2;

const SIZE: u16 = 8;
const LEN: usize = 64;

/// A queue and its only buffer.
#[repr(C, align(4096))]
struct Queue {
    descriptors: [(u64, u32, u16, u16); SIZE as usize],
    available: [u16; 2 + SIZE as usize + 1],
    used: [u32; 1 + 2 * SIZE as usize + 1],
    buffer: [u8; LEN],
}

const EMPTY: Queue = Queue {
    descriptors: [(0, 0, 0, 0); SIZE as usize],
    available: [0; 2 + SIZE as usize + 1],
    used: [0; 1 + 2 * SIZE as usize + 1],
    buffer: [0; LEN],
};

struct Memory(UnsafeCell<Queue>);

// SAFETY: there is one processor, and one check at a time.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new(EMPTY));

/// Registers at an address.
struct Device(usize);

impl Device {
    fn read(&self, register: usize) -> u32 {
        // SAFETY: registers are there for as long as the machine lives.
        unsafe { ((self.0 + register) as *const u32).read_volatile() }
    }

    fn write(&self, register: usize, value: u32) {
        // SAFETY: as for `read`; the device reaches no memory but `MEMORY`.
        unsafe { ((self.0 + register) as *mut u32).write_volatile(value) }
    }

    /// Writes a status and returns what it reads then.
    fn status(&self, status: u32) -> u32 {
        self.write(STATUS, status);
        self.read(STATUS)
    }

    /// An empty queue for the device, which is not told that it is ready.
    fn set_up_queue(&self) {
        let queue = MEMORY.0.get();
        // SAFETY: the queue is not ready: nobody else looks at it.
        unsafe { queue.write_volatile(EMPTY) };
        self.write(QUEUE_SEL, 0);
        self.write(QUEUE_NUM, SIZE.into());
        // SAFETY: only addresses are taken.
        let parts = unsafe {
            let queue = &raw mut *queue;
            [
                (QUEUE_DESC, &raw mut (*queue).descriptors as usize),
                (QUEUE_DRIVER, &raw mut (*queue).available as usize),
                (QUEUE_DEVICE, &raw mut (*queue).used as usize),
            ]
        };
        for (register, address) in parts {
            self.write(register, address as u32);
            self.write(register + 4, 0);
        }
    }

    /// Asks for entropy in a queue that is empty and ready, and waits for it.
    fn request(&self) {
        let queue = MEMORY.0.get();
        // SAFETY: memory that this program and the device share, through volatile accesses.
        unsafe {
            let buffer = &raw mut (*queue).buffer as u64;
            (&raw mut (*queue).descriptors[0]).write_volatile((buffer, LEN as u32, WRITE, 0));
            (&raw mut (*queue).available[1]).write_volatile(1);
            fence(Ordering::SeqCst);
            self.write(QUEUE_NOTIFY, 0);
            // The index is the upper half of the first word.
            while (&raw const (*queue).used[0]).read_volatile() >> 16 == 0 {
                core::hint::spin_loop();
            }
        }
    }

    /// The interrupt status, once it is not 0: the used buffer comes before it.
    fn interrupt_status(&self) -> u32 {
        loop {
            match self.read(INTERRUPT_STATUS) {
                0 => core::hint::spin_loop(),
                status => return status,
            }
        }
    }
}

/// Takes the device whose registers are at `start` through its life. The error says what does not hold.
pub fn check(start: usize) -> Result<(), &'static str> {
    let device = Device(start);
    let check = |what, holds| if holds { Ok(()) } else { Err(what) };
    check("status 0 after a reset", device.status(0) == 0)?;
    let found = ACKNOWLEDGE | DRIVER;
    check("G1: ACKNOWLEDGE and DRIVER in one write", device.status(found) == found)?;
    check("status 0 after a reset in between", device.status(0) == 0)?;
    check("ACKNOWLEDGE", device.status(ACKNOWLEDGE) == ACKNOWLEDGE)?;
    check("DRIVER", device.status(found) == found)?;
    for (half, features) in [(0, 0), (1, 1)] {
        device.write(DRIVER_FEATURES_SEL, half);
        device.write(DRIVER_FEATURES, features);
    }
    let negotiated = found | FEATURES_OK;
    check("FEATURES_OK with VERSION_1", device.status(negotiated) == negotiated)?;

    device.set_up_queue();
    device.write(QUEUE_READY, 1);
    check("a queue is ready", device.read(QUEUE_READY) == 1)?;
    device.write(QUEUE_READY, 0);
    check("G2: a queue is not ready before DRIVER_OK", device.read(QUEUE_READY) == 0)?;
    device.write(QUEUE_READY, 1);
    let running = negotiated | DRIVER_OK;
    check("DRIVER_OK", device.status(running) == running)?;
    check("G3: nothing has happened", device.read(INTERRUPT_STATUS) == 0)?;
    device.request();
    check("a buffer was used", device.interrupt_status() == USED_BUFFER)?;
    device.write(INTERRUPT_ACK, USED_BUFFER);
    check("G3: acknowledged", device.read(INTERRUPT_STATUS) == 0)?;

    device.write(QUEUE_READY, 0);
    check("G2: a queue is not ready after DRIVER_OK", device.read(QUEUE_READY) == 0)?;
    check("G2: the driver is still ready", device.read(STATUS) == running)?;
    device.set_up_queue();
    device.write(QUEUE_READY, 1);
    check("G2: a queue is ready again", device.read(QUEUE_READY) == 1)?;
    device.request();
    check("G2: it works again", device.interrupt_status() == USED_BUFFER)?;
    device.write(INTERRUPT_ACK, USED_BUFFER);
    check("G3: acknowledged again", device.read(INTERRUPT_STATUS) == 0)?;
    check("status 0 after the last reset", device.status(0) == 0)
}
