//! From the PVH entry point (32-bit protected mode without paging, `ebx` = start info) to 64-bit Rust, with memory
//! below 4 GiB mapped to itself; and the end of the machine.

use core::arch::{asm, global_asm};

global_asm!(
    r#"
    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18 /* sizes of name and descriptor; XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long pvh_start

    .section .text.pvh_start, "ax"
    .globl pvh_start
    .code32
pvh_start:
    cld
    movl $stack_top, %esp
    movl %ebx, %edi
    /* The tables' upper halves are zero: nothing lies above 4 GiB. */
    movl $pointers + 3, pml4
    xorl %ecx, %ecx
    movl $directories + 3, %eax
1:  movl %eax, pointers(, %ecx, 8)
    addl $4096, %eax
    incl %ecx
    cmpl $4, %ecx
    jne 1b
    xorl %ecx, %ecx
    movl $0x83, %eax /* present, writable, 2 MiB */
2:  movl %eax, directories(, %ecx, 8)
    addl $0x200000, %eax
    incl %ecx
    cmpl $2048, %ecx
    jne 2b
    movl $pml4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x620, %eax /* PAE, OSFXSR, OSXMMEXCPT */
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax /* LME */
    wrmsr
    movl %cr0, %eax
    andl $~0x4, %eax /* no EM */
    orl $0x80000002, %eax /* PG, MP */
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $long_mode

    .code64
long_mode:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %ebp, %ebp
    movl %edi, %edi
    call guest_main
    ud2

    .section .rodata.gdt, "a"
    .balign 8
gdt:
    .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
    .word 23
    .long gdt

    .section .bss.start, "aw", @nobits
    .balign 4096
pml4:
    .skip 4096
pointers:
    .skip 4096
directories:
    .skip 4 * 4096
    .skip 256 << 10
stack_top:
    "#,
    options(att_syntax)
);

/// Writes a byte to an I/O port.
pub fn outb(port: u16, value: u8) {
    // SAFETY: the ports that this program knows do not touch memory.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) }
}

/// Reads a byte from an I/O port.
pub fn inb(port: u16) -> u8 {
    let value;
    // SAFETY: as for outb.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) }
    value
}

/// Enters S5 by the sleep control register (ACPI 6.5, 4.8.3.7).
pub fn power_off() -> ! {
    const SLEEP_CONTROL: u16 = 0x600;
    const S5: u8 = 1 << 5 | 5 << 2;
    outb(SLEEP_CONTROL, S5);
    loop {
        // SAFETY: nothing happens until the machine ends.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

/// What the compiler calls, and what a libc would have.
mod memory_functions {
    use core::arch::asm;

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe { asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _) }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        if (to as usize).wrapping_sub(from as usize) >= len {
            // SAFETY: the caller's, and copying upwards does not overwrite what is still to be read.
            return unsafe { memcpy(to, from, len) };
        }
        let (last_to, last_from) = (to.wrapping_add(len - 1), from.wrapping_add(len - 1));
        // SAFETY: the caller's, and copying downwards does not overwrite what is still to be read.
        unsafe {
            asm!("std", "rep movsb", "cld", inout("rcx") len => _, inout("rdi") last_to => _, inout("rsi") last_from => _);
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe { asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") value as u8) }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
        for at in 0..len {
            // SAFETY: the caller's. Volatile, so that this is not made a call of itself.
            let (left, right) = unsafe { (left.add(at).read_volatile(), right.add(at).read_volatile()) };
            if left != right {
                return i32::from(left) - i32::from(right);
            }
        }
        0
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, len: usize) -> i32 {
        // SAFETY: the caller's.
        unsafe { memcmp(left, right, len) }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn strlen(text: *const u8) -> usize {
        let mut len = 0;
        // SAFETY: the caller's. Volatile, so that this is not made a call of itself.
        while unsafe { text.add(len).read_volatile() } != 0 {
            len += 1;
        }
        len
    }
}
