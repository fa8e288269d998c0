//! The controller's registers, and how much waits behind them.

/// Answers that wait for the guest. More than one is only there if the guest does not read them.
pub(super) const ANSWER_CAPACITY: usize = 16;

pub(super) const STATUS_OUTPUT: u8 = 1 << 0;
pub(super) const STATUS_SYSTEM: u8 = 1 << 2;
pub(super) const STATUS_COMMAND: u8 = 1 << 3;
/// The keyboard is not locked.
pub(super) const STATUS_UNLOCKED: u8 = 1 << 4;
pub(super) const STATUS_AUX: u8 = 1 << 5;
pub(super) const STATUS_TIMEOUT: u8 = 1 << 6;

pub(super) const CONFIG_KEYBOARD_IRQ: u8 = 1 << 0;
pub(super) const CONFIG_SYSTEM: u8 = 1 << 2;
pub(super) const CONFIG_KEYBOARD_OFF: u8 = 1 << 4;
pub(super) const CONFIG_AUX_OFF: u8 = 1 << 5;
pub(super) const CONFIG_TRANSLATE: u8 = 1 << 6;
/// Bits 3 and 7 are reserved.
pub(super) const CONFIG_MASK: u8 = 0x77;
/// As firmware leaves it.
pub(super) const CONFIG_DEFAULT: u8 = CONFIG_KEYBOARD_IRQ | CONFIG_SYSTEM | CONFIG_AUX_OFF | CONFIG_TRANSLATE;

/// Output port: bit 0 low resets the machine, bit 1 is the A20 gate (always open), bit 4 the output buffer.
pub(super) const OUTPUT_PORT_RUN: u8 = 1 << 0;
pub(super) const OUTPUT_PORT_A20: u8 = 1 << 1;
pub(super) const OUTPUT_PORT_FULL: u8 = 1 << 4;

/// The answer of a device that is not there.
pub(super) const NO_ANSWER: u8 = 0xfe;

/// The status bits that come with a byte for the guest: the keyboard's or the controller's, or what stands for a
/// mouse that is not there.
pub(super) const OUTPUT_STATUS: [u8; 2] = [0, STATUS_AUX | STATUS_TIMEOUT];

/// Bytes of the keyboard that wait for the controller. A keyboard has 16; what comes on top is lost.
pub(super) const KEYBOARD_CAPACITY: usize = 16;
