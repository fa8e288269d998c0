//! Floor: the least that brings a Linux kernel to its first instruction on a machine with a disk, a network card,
//! an entropy source and a serial port: `floor_boot VMLINUX DISK TAP`.
//!
//! The kernel is entered by PVH, its segments are mapped and not copied; the devices have their memory slots,
//! interrupts and doorbells, and nobody behind them. It ends with the first `KVM_RUN`, which comes back at once.

#[path = "machine.rs"]
mod machine;

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use kvm_bindings::{kvm_ioeventfd, kvm_regs, kvm_sregs};
use machine::{Host, Machine, segment};

const RAM: usize = 128 << 20;
const START_INFO: usize = 0x1000;
const MEMORY_MAP: usize = 0x2000;

/// The devices' registers; each driver's kicks: one for each queue, and the acknowledgement of interrupts.
const VIRTIO: [(u64, u64); 3] = [(0xd000_0000, 1), (0xd000_1000, 1), (0xd000_2000, 2)];

fn main() {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [kernel, disk, tap] = &arguments[..] else { panic!("floor_boot VMLINUX DISK TAP") };
    let _disk = OpenOptions::new().read(true).write(true).open(disk).expect(disk);
    let _tap = open_tap(tap);

    let host = Host::open();
    let doorbells: Vec<_> = VIRTIO.iter().flat_map(|&(base, queues)| kicks(base, queues)).collect();
    let pages = VIRTIO.map(|(base, _)| base);
    // The serial port, the clock, the power button, and one for each virtio device.
    let mut machine = host.machine(RAM, &[4, 8, 9, 5, 6, 7], &doorbells, &pages);
    let entry = load(&File::open(kernel).expect(kernel), &mut machine);
    start_info(&mut machine);
    enter(&machine, entry);
    machine.vcpu.set_kvm_immediate_exit(1);
    assert_eq!(machine.vcpu.run().unwrap_err().errno(), libc::EINTR);
}

fn kicks(base: u64, queues: u64) -> impl Iterator<Item = kvm_ioeventfd> {
    // QueueNotify with the queue's number; InterruptACK with the used-buffer bit (virtio 1.2, 4.2.2).
    let notify = (0..queues).map(move |queue| (base + 0x50, queue));
    notify.chain([(base + 0x64, 1)]).map(|(addr, datamatch)| kvm_ioeventfd {
        datamatch,
        addr,
        len: 4,
        flags: 1,
        ..Default::default()
    })
}

fn open_tap(name: &str) -> File {
    let tap = OpenOptions::new().read(true).write(true).open("/dev/net/tun").expect("/dev/net/tun");
    // struct ifreq: a name, and IFF_TAP, IFF_NO_PI, IFF_VNET_HDR.
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&0x5002u16.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes a struct ifreq.
    assert_eq!(unsafe { libc::ioctl(tap.as_raw_fd(), 0x4004_54ca, request.as_mut_ptr()) }, 0, "tap {name}");
    let header: i32 = 12;
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    assert_eq!(unsafe { libc::ioctl(tap.as_raw_fd(), 0x4004_54d8, &header) }, 0);
    tap
}

/// Maps the kernel's segments over guest memory, copy on write; returns its PVH entry point.
fn load(kernel: &File, machine: &mut Machine) -> u64 {
    let mut head = [0; 1024];
    kernel.read_exact_at(&mut head, 0).unwrap();
    let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
    let mut entry = 0;
    for header in (0..head[56]).map(|index| number(32) as usize + 56 * usize::from(index)) {
        let [offset, _, physical, in_file] = [8, 16, 24, 32].map(|field| number(header + field));
        match head[header] {
            1 => map(kernel, machine, offset, physical as usize, in_file as usize),
            4 => entry = pvh_note(kernel, offset, in_file as usize),
            _ => {}
        }
    }
    entry
}

fn map(kernel: &File, machine: &mut Machine, offset: u64, at: usize, len: usize) {
    let (rw, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_FIXED);
    assert!(at + len <= machine.ram.len);
    // SAFETY: the place is inside RAM, which nobody refers to.
    let mapped = unsafe {
        let place = machine.ram.base.as_ptr().add(at).cast();
        libc::mmap(place, len, rw, flags, kernel.as_raw_fd(), offset as libc::off_t)
    };
    assert_ne!(mapped, libc::MAP_FAILED);
    // What the last page of the file has behind the segment is the file's; the kernel wants zeros there.
    let tail = len.next_multiple_of(4096) - len;
    machine.ram.write(at + len, &[0; 4096][..tail]);
}

/// The note's owner is "Xen", its type 18 (XEN_ELFNOTE_PHYS32_ENTRY).
fn pvh_note(kernel: &File, offset: u64, len: usize) -> u64 {
    let mut notes = vec![0; len];
    kernel.read_exact_at(&mut notes, offset).unwrap();
    let wanted = b"\x12\0\0\0Xen\0";
    let at = notes.windows(8).position(|bytes| bytes == wanted).expect("a PVH note") + 8;
    u32::from_le_bytes(notes[at..at + 4].try_into().unwrap()).into()
}

/// `hvm_start_info` with a memory map of two ranges (Xen's arch-x86/hvm/start_info.h).
fn start_info(machine: &mut Machine) {
    let map = [[0, 0x9_f000, 1], [0x10_0000, RAM as u64 - 0x10_0000, 1]];
    let info = [0x1_336e_c578, 0, 0, 0, 0, MEMORY_MAP as u64, map.len() as u64];
    let bytes = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    machine.ram.write(START_INFO, &bytes(&info));
    machine.ram.write(MEMORY_MAP, &bytes(map.as_flattened()));
}

/// 32-bit protected mode without paging, as PVH enters.
fn enter(machine: &Machine, entry: u64) {
    let data = segment(3, 0x18, 0, u32::MAX, true);
    let mut tr = segment(11, 0x20, 0, 0x67, false);
    tr.s = 0;
    let sregs = kvm_sregs {
        cs: segment(11, 0x10, 0, u32::MAX, true),
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr,
        cr0: 0x11,
        apic_base: 0xfee0_0900,
        ..Default::default()
    };
    machine.vcpu.set_sregs(&sregs).unwrap();
    let regs = kvm_regs { rbx: START_INFO as u64, rip: entry, rflags: 2, ..Default::default() };
    machine.vcpu.set_regs(&regs).unwrap();
}
