//! `rtc update|alarm|periodic`: waits for interrupts of the real-time clock. What `tests/guest_clock.rs` runs inside of its
//! guest. The first two are what `hwclock` and `rtcwake` ask of `/dev/rtc0`. The third turns the clock's own periodic
//! interrupt on at its ports, because Linux makes that of its `/dev/rtc0` with timers of its own.

use std::error::Error;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;

/// `RTC_UIE_ON`, `RTC_UIE_OFF`, `RTC_AIE_ON` of `linux/rtc.h`.
const UPDATES_ON: u64 = 0x7003;
const UPDATES_OFF: u64 = 0x7004;
const ALARM_ON: u64 = 0x7001;
/// `RTC_ALM_SET` and `RTC_RD_TIME`, of a `struct rtc_time` of 36 bytes.
const SET_ALARM: u64 = 0x4024_7007;
const READ_TIME: u64 = 0x8024_7009;
/// What a read of the device says of an interrupt's kind.
const WAS_UPDATE: u64 = 0x10;
const WAS_ALARM: u64 = 0x20;

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("update") => update(),
        Some("alarm") => alarm(),
        Some("periodic") => ports::periodic(),
        _ => Err("give update, alarm or periodic".into()),
    }
}

fn control(clock: &File, request: u64, argument: *mut [i32; 9]) -> Result<(), std::io::Error> {
    // SAFETY: each request takes nothing, or a `struct rtc_time`: nine ints.
    match unsafe { libc::ioctl(clock.as_raw_fd(), request, argument) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Waits for an interrupt of this kind.
fn wait(clock: &mut File, kind: u64) -> Result<(), Box<dyn Error>> {
    let mut data = [0; 8];
    clock.read_exact(&mut data)?;
    match u64::from_le_bytes(data) {
        data if data & kind != 0 => Ok(()),
        data => Err(format!("{data:#x} is no interrupt of kind {kind:#x}").into()),
    }
}

fn update() -> Result<(), Box<dyn Error>> {
    let mut clock = File::open("/dev/rtc0")?;
    control(&clock, UPDATES_ON, std::ptr::null_mut())?;
    for _ in 0..2 {
        wait(&mut clock, WAS_UPDATE)?;
    }
    control(&clock, UPDATES_OFF, std::ptr::null_mut())?;
    println!("updates");
    Ok(())
}

fn alarm() -> Result<(), Box<dyn Error>> {
    let mut clock = File::open("/dev/rtc0")?;
    // Seconds, minutes, hours first. A time that has passed by the time that it is set would be tomorrow's.
    let mut time = [0; 9];
    control(&clock, READ_TIME, &mut time)?;
    let second = time[2] * 3600 + time[1] * 60 + time[0] + 10;
    (time[0], time[1], time[2]) = (second % 60, second / 60 % 60, second / 3600 % 24);
    control(&clock, SET_ALARM, &mut time)?;
    control(&clock, ALARM_ON, std::ptr::null_mut())?;
    wait(&mut clock, WAS_ALARM)?;
    println!("alarm");
    Ok(())
}

#[cfg(target_arch = "x86_64")]
mod ports {
    use std::arch::asm;
    use std::error::Error;
    use std::fs;

    pub fn periodic() -> Result<(), Box<dyn Error>> {
        // SAFETY: the ports are the clock's, and Linux uses them under a lock for moments only.
        if unsafe { libc::ioperm(0x70, 2, 1) } != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        let before = interrupts()?;
        let modes = register(0x0b, None);
        register(0x0b, Some(modes | 0x40));
        register(0x0c, None);
        while interrupts()? < before + 20 {
            std::thread::yield_now();
        }
        register(0x0b, Some(modes));
        println!("periods");
        Ok(())
    }

    /// How many interrupts Linux has counted for the clock.
    fn interrupts() -> Result<u64, Box<dyn Error>> {
        let all = fs::read_to_string("/proc/interrupts")?;
        let line = all.lines().find(|line| line.ends_with("rtc0")).ok_or("no interrupt is called rtc0")?;
        let count = line.split_whitespace().nth(1).ok_or("no count")?;
        Ok(count.parse()?)
    }

    /// Reads a register of the clock, or writes it.
    fn register(index: u8, value: Option<u8>) -> u8 {
        let mut data = value.unwrap_or_default();
        // SAFETY: ioperm has given the ports to this process.
        unsafe {
            asm!("out 0x70, al", in("al") index);
            match value {
                Some(value) => asm!("out 0x71, al", in("al") value),
                None => asm!("in al, 0x71", out("al") data),
            }
        }
        data
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod ports {
    pub fn periodic() -> Result<(), Box<dyn std::error::Error>> {
        Err("this processor has no I/O ports".into())
    }
}
