//! The clock's registers (Motorola MC146818A data sheet).

pub(super) const INDEX: u8 = 0;

pub(super) const SECONDS: u8 = 0x00;
pub(super) const MINUTES: u8 = 0x02;
pub(super) const HOURS: u8 = 0x04;
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
/// The guest sets the clock: updates stop.
pub(super) const B_SET: u8 = 1 << 7;
/// Interrupt enables (periodic, alarm, update) and the square wave, which this clock does not have.
pub(super) const B_ABSENT: u8 = 0x78;
/// Numbers are binary, not BCD.
pub(super) const B_BINARY: u8 = 1 << 2;
/// Hours are 0 to 23, not 1 to 12 with PM in bit 7.
pub(super) const B_24H: u8 = 1 << 1;
/// An update has ended since the register was last read.
pub(super) const C_UPDATED: u8 = 1 << 4;
/// RAM and time are valid.
pub(super) const D_VALID: u8 = 1 << 7;
