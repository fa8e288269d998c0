//! Real-time clocks: a PC's MC146818 with its CMOS RAM, Arm's PL031.

mod alarm;
mod calendar;
mod clock;
mod device;
mod moment;
mod pl031;
mod registers;
mod state;

pub use device::RealTimeClock;

/// A battery-backed clock (Motorola MC146818A data sheet; the century at 0x32 as in the ACPI FADT) at I/O ports
/// 0x70 and 0x71, with 128 bytes of CMOS RAM, all zero at first.
///
/// It shows the host's UTC, plus what the guest has set it off by. It is never seen in the middle of an update:
/// UIP stays clear, and reading register A takes a snapshot that the reads after it see.
///
/// Its interrupt 8 is raised by the periodic rate (2 to 8192 Hz), the alarm and the end of an update, as far as the
/// guest enables them: once, until the guest reads register C. While none is enabled or one is pending, no timer of the
/// host runs. What happens while the machine is paused counts once when it goes on.
///
/// Saved are RAM, registers and how far the guest has set the clock off the host's, not the time: once restored, it
/// shows the host's time as it is then, off by as much; an alarm that has passed in the meantime is raised. The battery
/// lasts.
pub type Rtc = RealTimeClock<clock::Clock>;

/// A clock with registers in a page of memory: seconds since 1970 in 32 bits, by the host's UTC plus what the guest has set
/// it off by, and an alarm, which raises an edge interrupt when the clock reaches the match register.
///
/// While the alarm is masked or pending, no timer of the host runs. What happens while the machine is paused counts once
/// when it goes on. Saved are the registers and how far the guest has set the clock off the host's, as of an
/// [`Rtc`]: once restored, it shows the host's time as it is then, off by as much; an alarm that has passed in
/// the meantime is raised. The battery lasts.
pub type Pl031 = RealTimeClock<pl031::Counter>;

#[cfg(test)]
mod tests;
