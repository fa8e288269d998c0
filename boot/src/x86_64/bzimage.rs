//! bzImage kernels: the setup header of the Linux/x86 boot protocol.
//!
//! `Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header" and "64-bit Boot Protocol".

use std::ops::Range;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::error::KernelError;
use crate::load::LoadSegment;

/// Offset of the setup header in a bzImage and in the zero page.
pub(crate) const SETUP_HEADER: usize = 0x1f1;
pub(crate) const MAGIC: [u8; 4] = *b"HdrS";
const MAGIC_OFFSET: usize = 0x202;
/// Distance of the 64-bit entry point from the start of the protected-mode code.
const ENTRY_64: u64 = 0x200;
const SECTOR: u64 = 512;
const VERSION_PAYLOAD: u16 = 0x0208;
const VERSION_64: u16 = 0x020c;
const LOADED_HIGH: u8 = 1 << 0;
const KERNEL_64: u16 = 1 << 0;

/// The setup header; the fields' names are the protocol's.
#[derive(Clone, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct SetupHeader {
    pub setup_sects: u8,
    pub root_flags: U16,
    pub syssize: U32,
    pub ram_size: U16,
    pub vid_mode: U16,
    pub root_dev: U16,
    pub boot_flag: U16,
    pub jump: [u8; 2],
    pub header: [u8; 4],
    pub version: U16,
    pub realmode_swtch: U32,
    pub start_sys_seg: U16,
    pub kernel_version: U16,
    pub type_of_loader: u8,
    pub loadflags: u8,
    pub setup_move_size: U16,
    pub code32_start: U32,
    pub ramdisk_image: U32,
    pub ramdisk_size: U32,
    pub bootsect_kludge: U32,
    pub heap_end_ptr: U16,
    pub ext_loader_ver: u8,
    pub ext_loader_type: u8,
    pub cmd_line_ptr: U32,
    pub initrd_addr_max: U32,
    pub kernel_alignment: U32,
    pub relocatable_kernel: u8,
    pub min_alignment: u8,
    pub xloadflags: U16,
    pub cmdline_size: U32,
    pub hardware_subarch: U32,
    pub hardware_subarch_data: U64,
    pub payload_offset: U32,
    pub payload_length: U32,
    pub setup_data: U64,
    pub pref_address: U64,
    pub init_size: U32,
    pub handover_offset: U32,
    pub kernel_info_offset: U32,
}

/// Returns true if an image that starts with `head` is a bzImage.
pub(crate) fn has_magic(head: &[u8]) -> bool {
    head.get(MAGIC_OFFSET..).is_some_and(|rest| rest.starts_with(&MAGIC))
}

/// A bzImage with a valid setup header.
#[derive(Clone, Debug)]
pub(crate) struct BzImage {
    /// The header, zero after the end that the image gives for it.
    pub header: SetupHeader,
    /// The protected-mode code, as a range of the file.
    code: Range<u64>,
}

impl BzImage {
    /// Parses an image of `len` bytes whose first bytes are `head`; [`has_magic`] holds.
    pub fn parse(len: u64, head: &[u8]) -> Result<Self, KernelError> {
        // The header ends where the jump over it lands: two bytes after 0x200, plus the jump's distance.
        let end = MAGIC_OFFSET + usize::from(head.get(0x201).copied().unwrap_or_default());
        let mut header = SetupHeader::default();
        let size = (end - SETUP_HEADER).min(size_of::<SetupHeader>());
        let truncated = KernelError::Truncated { what: "the setup header", needs: end as u64, has: len };
        let found = head.get(SETUP_HEADER..).and_then(|rest| rest.get(..size)).ok_or(truncated)?;
        header.as_mut_bytes().get_mut(..size).unwrap_or_default().copy_from_slice(found);

        // Without a payload, the code before a kernel has to run first; a zImage lies where boot tables do.
        if header.version < VERSION_PAYLOAD || header.loadflags & LOADED_HIGH == 0 {
            return Err(KernelError::NeedsRealMode { version: header.version.get() });
        }
        let sectors = if header.setup_sects == 0 { 4 } else { header.setup_sects };
        let start = (u64::from(sectors) + 1) * SECTOR;
        if start + ENTRY_64 >= len {
            return Err(KernelError::Truncated {
                what: "the setup code",
                needs: start + ENTRY_64 + 1,
                has: len,
            });
        }
        Ok(Self { header, code: start..len })
    }

    /// One of which only the header is left: as many of its bytes as there are, zero after them.
    pub fn loaded(bytes: &[u8]) -> Self {
        let mut header = SetupHeader::default();
        for (to, from) in header.as_mut_bytes().iter_mut().zip(bytes) {
            *to = *from;
        }
        Self { header, code: 0..0 }
    }

    /// The compressed kernel, as a range of the file.
    pub fn payload(&self) -> Result<Range<u64>, KernelError> {
        let start = self.code.start + u64::from(self.header.payload_offset.get());
        let end = start + u64::from(self.header.payload_length.get());
        if end > self.code.end {
            return Err(KernelError::Truncated { what: "the payload", needs: end, has: self.code.end });
        }
        Ok(start..end)
    }

    /// Where the image is loaded to unpack itself, with the memory that it needs for that, and its 64-bit
    /// entry point.
    pub fn segment(&self) -> Result<(LoadSegment, u64), KernelError> {
        let header = &self.header;
        if header.version < VERSION_64 || header.xloadflags.get() & KERNEL_64 == 0 {
            return Err(KernelError::NoLinux64Entry { version: header.version.get() });
        }
        let invalid = |field, value| Err(KernelError::InvalidBzImage { field, value });
        let file_len = self.code.end - self.code.start;
        // syssize may be rounded up, but not by more than a unit; less is a signature after the code.
        let declared = u64::from(header.syssize.get()) * 16;
        if declared > file_len.next_multiple_of(16) {
            let needs = self.code.start + declared;
            return Err(KernelError::Truncated { what: "the kernel", needs, has: self.code.end });
        }
        let align = u64::from(header.kernel_alignment.get());
        if !align.is_power_of_two() {
            return invalid("kernel_alignment", align);
        }
        // The address that it prefers needs no relocation, and none of our machines has it taken.
        let guest_addr = header.pref_address.get();
        if !guest_addr.is_multiple_of(align) || guest_addr > u64::from(u32::MAX) {
            return invalid("pref_address", guest_addr);
        }
        let mem_len = u64::from(header.init_size.get());
        if mem_len < file_len {
            return invalid("init_size", mem_len);
        }
        let segment = LoadSegment { file_offset: self.code.start, file_len, guest_addr, mem_len };
        Ok((segment, guest_addr + ENTRY_64))
    }
}

#[cfg(test)]
mod tests;
