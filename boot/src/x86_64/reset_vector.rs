//! The code at the reset vector, in place of a firmware.
//!
//! An operating system that finds no other way to reset a PC enters the firmware there, in real mode. Linux does on
//! every machine with hardware-reduced ACPI and no EFI (`efi_reboot_required` in `drivers/firmware/efi/reboot.c`): it
//! then uses neither the FADT's reset register nor the keyboard controller.

use ossature_memory::GuestMmap;
use vm_memory::{Bytes, GuestAddress};

use super::acpi::reset_register;
use super::error::BootError;
use super::layout;
use crate::platform::Platform;

/// Writes code that resets the machine, if it has a port for that.
pub(super) fn write(mem: &GuestMmap, platform: &Platform) -> Result<(), BootError> {
    let Some((port, value)) = reset_register(platform) else { return Ok(()) };
    let at = layout::RESET_VECTOR;
    mem.write_slice(&code(port, value), GuestAddress(at)).map_err(|_| BootError::not_ram(at))
}

/// `mov dx, port; mov al, value; out dx, al`, and a halt that no interrupt ends.
fn code(port: u16, value: u8) -> [u8; 10] {
    let [low, high] = port.to_le_bytes();
    [0xba, low, high, 0xb0, value, 0xee, 0xfa, 0xf4, 0xeb, 0xfd]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_fits_below_the_first_mib() {
        assert_eq!(code(0x602, 1), [0xba, 0x02, 0x06, 0xb0, 0x01, 0xee, 0xfa, 0xf4, 0xeb, 0xfd]);
        assert!(layout::RESET_VECTOR + code(0, 0).len() as u64 <= layout::HIGH_RAM);
    }
}
