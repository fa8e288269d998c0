//! The clock's registers (Motorola MC146818A data sheet).

pub(super) const INDEX: u8 = 0;

pub(super) const SECONDS: u8 = 0x00;
pub(super) const SECONDS_ALARM: u8 = 0x01;
pub(super) const MINUTES: u8 = 0x02;
pub(super) const MINUTES_ALARM: u8 = 0x03;
pub(super) const HOURS: u8 = 0x04;
pub(super) const HOURS_ALARM: u8 = 0x05;
pub(super) const WEEKDAY: u8 = 0x06;
pub(super) const DAY: u8 = 0x07;
pub(super) const MONTH: u8 = 0x08;
pub(super) const YEAR: u8 = 0x09;
pub(super) const STATUS_A: u8 = 0x0a;
pub(super) const STATUS_B: u8 = 0x0b;
pub(super) const STATUS_C: u8 = 0x0c;
pub(super) const STATUS_D: u8 = 0x0d;
pub(super) const CENTURY: u8 = 0x32;
pub(super) const CMOS_SIZE: usize = 128;

/// Update in progress.
pub(super) const A_UIP: u8 = 1 << 7;
/// 32.768 kHz time base, 1.024 kHz periodic rate: what every BIOS leaves there.
pub(super) const A_DEFAULT: u8 = 0x26;
/// The rate of the periodic interrupt.
pub(super) const A_RATE: u8 = 0x0f;
/// From here on, an alarm register matches any time.
pub(super) const ANY_TIME: u8 = 0xc0;
/// The guest sets the clock: updates stop.
pub(super) const B_SET: u8 = 1 << 7;
/// Enables the periodic interrupt.
pub(super) const B_PERIODIC: u8 = 1 << 6;
/// Enables the alarm's interrupt.
pub(super) const B_ALARM: u8 = 1 << 5;
/// Enables the interrupt at the end of each update.
pub(super) const B_UPDATE: u8 = 1 << 4;
/// The square wave, which leads nowhere.
pub(super) const B_ABSENT: u8 = 1 << 3;
/// Numbers are binary, not BCD.
pub(super) const B_BINARY: u8 = 1 << 2;
/// Hours are 0 to 23, not 1 to 12 with PM in bit 7.
pub(super) const B_24H: u8 = 1 << 1;
/// An enabled interrupt is pending.
pub(super) const C_PENDING: u8 = 1 << 7;
/// A period, an alarm or an update has ended since the register was last read: each in its enable's bit of register B.
pub(super) const C_FLAGS: u8 = B_PERIODIC | B_ALARM | B_UPDATE;
/// RAM and time are valid.
pub(super) const D_VALID: u8 = 1 << 7;
