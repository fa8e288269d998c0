//! A bare-metal guest: drives virtio-mmio devices with the unmodified `virtio-drivers` crate, prints a line for each
//! beginning and result on the first serial port, and powers off.
//!
//! The kernel command line says what there is: `blk=ADDRESS,SIZE` (hexadecimal, of the registers), and likewise
//! `net=`, `console=` and `rng=`; `guest=` and `host=` are IPv4 addresses for the network. Each device is driven, its
//! driver dropped, and driven by a second one. The registers of `registers=` are written without a driver.
#![no_std]
#![no_main]

extern crate alloc;

mod devices;
mod memory;
mod registers;
mod serial;
mod start;

use core::ffi::CStr;
use core::net::Ipv4Addr;
use core::panic::PanicInfo;
use core::ptr::NonNull;

use serial::println;
use virtio_drivers::transport::mmio::{MmioTransport, VirtIOHeader};

/// Offset of the command line's address in the PVH start info.
const CMDLINE: usize = 24;

/// Called in 64-bit mode with the address of the PVH start info.
#[unsafe(no_mangle)]
extern "C" fn guest_main(start_info: *const u8) -> ! {
    // SAFETY: the PVH protocol: the start info is there, and names a text that ends with a NUL.
    let cmdline = unsafe {
        let address = start_info.add(CMDLINE).cast::<u64>().read_unaligned();
        CStr::from_ptr(address as *const core::ffi::c_char)
    };
    let cmdline = cmdline.to_str().expect("a command line of ASCII");
    for round in 1..=2 {
        for (name, value) in cmdline.split(' ').filter_map(|word| word.split_once('=')) {
            if name == "registers" {
                match registers::check(registers_at(value).0) {
                    Ok(()) => println!("registers {round}: ok"),
                    Err(what) => println!("registers {round}: not so: {what}"),
                }
            }
            if !["blk", "net", "console", "rng"].contains(&name) {
                continue;
            }
            println!("{name} {round}: begins");
            let result = match name {
                "blk" => devices::blk(transport(value), round),
                "net" => devices::net(transport(value), address(cmdline, "guest"), address(cmdline, "host")),
                "console" => devices::console(transport(value)),
                _ => devices::rng(transport(value)),
            };
            match result {
                Ok(()) => println!("{name} {round}: ok"),
                Err(failure) => println!("{name} {round}: {failure:?}"),
            }
        }
    }
    println!("done");
    start::power_off()
}

/// Address and size in `ADDRESS,SIZE`.
fn registers_at(place: &str) -> (usize, usize) {
    let number = |text: &str| usize::from_str_radix(text.trim_start_matches("0x"), 16).ok();
    let place = place.split_once(',').and_then(|(start, size)| Some((number(start)?, number(size)?)));
    place.expect("ADDRESS,SIZE in hexadecimal")
}

/// The transport whose registers are at `ADDRESS,SIZE`.
fn transport(place: &str) -> MmioTransport<'static> {
    let (start, size) = registers_at(place);
    let header = NonNull::new(start as *mut VirtIOHeader).expect("registers are not at address 0");
    // SAFETY: registers are there for as long as the machine lives, and nobody else uses them.
    unsafe { MmioTransport::new(header, size) }.expect("a virtio-mmio device")
}

/// The IPv4 address that the command line gives for `name`.
fn address(cmdline: &str, name: &str) -> Ipv4Addr {
    let words = cmdline.split(' ').filter_map(|word| word.split_once('='));
    let found = words.filter(|(found, _)| *found == name).find_map(|(_, value)| value.parse().ok());
    found.expect("an IPv4 address for each side of the network")
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    println!("{info}");
    start::power_off()
}
