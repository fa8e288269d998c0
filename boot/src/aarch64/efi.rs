//! What an EFI firmware would have left to the kernel's EFI stub, and the stub to the kernel (`Documentation/arm/uefi.rst`;
//! UEFI 2.10, 4.3 and 7.2): the way by which kernels of arm64 find ACPI tables.
//!
//! A system table with the place of the ACPI tables, and a memory map. No services remain that the kernel could call.

use std::ops::Range;

use crate::platform::RamRange;

/// Where things that the device tree's `/chosen` names are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Efi {
    /// Address of the system table.
    pub(super) system_table: u64,
    /// The memory map.
    pub(super) memory_map: Range<u64>,
}

/// Bytes of a descriptor in the memory map, and its version.
pub(super) const DESCRIPTOR: u32 = 40;
pub(super) const DESCRIPTOR_VERSION: u32 = 1;
/// What the stub found out about secure boot (`enum efi_secureboot_mode`).
pub(super) const SECURE_BOOT_DISABLED: u32 = 2;

const SIGNATURE: &[u8; 8] = b"IBI SYST";
/// Of the specification, and of this firmware.
const REVISION: u32 = 2 << 16 | 80;
const FIRMWARE_REVISION: u32 = 1;
const VENDOR: &str = "Ossature";
/// Bytes that a kernel reads of the vendor's name.
const VENDOR_LEN: usize = 200;
const SYSTEM_TABLE: usize = 120;
const CRC: usize = 16;
const CONFIGURATION: usize = 24;

/// GUIDs as they lie in memory.
const ACPI_20: [u8; 16] = guid(0x8868_e871, 0xe4f1, 0x11d3, 0xbc22_0080_c73c_8881);
const RT_PROPERTIES: [u8; 16] = guid(0xeb66_918a, 0x7eef, 0x402a, 0x842e_931d_21c3_8ae9);
/// Linux's own, of its stub: what the kernel notes for the one that it starts by kexec, such as the tables of the GIC.
const LINUX_MEMRESERVE: [u8; 16] = guid(0x888e_b0c6, 0x8ede, 0x4ff5, 0xa8f0_9aee_5cb9_77c2);
const CONFIGURATIONS: usize = 3;

/// Version 1, 8 bytes long, and which services can be called: none.
const NO_SERVICES: [u8; 8] = [1, 0, 8, 0, 0, 0, 0, 0];
/// No entries, no room for any, and no next table.
const NOTHING_RESERVED: [u8; 16] = [0; 16];

// Kinds of memory, and that it is ordinary memory, with any cache.
const LOADER_DATA: u32 = 2;
const CONVENTIONAL: u32 = 7;
const ACPI_RECLAIM: u32 = 9;
const ANY_CACHE: u64 = 0xf;
const PAGE: u64 = 4096;

const fn guid(a: u32, b: u16, c: u16, rest: u64) -> [u8; 16] {
    let ([a, b, c, d], [e, f], [g, h]) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    let [i, j, k, l, m, n, o, p] = rest.to_be_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// The ranges of the memory map. All of `tables` stays what it is; what lies before belongs to the stub.
fn memory_map(ram: &[RamRange], tables: &Range<u64>) -> Vec<(u32, Range<u64>)> {
    let mut map = Vec::new();
    for ram in ram {
        let end = ram.base.saturating_add(ram.len) / PAGE * PAGE;
        let start = ram.base.checked_next_multiple_of(PAGE).unwrap_or(end).min(end);
        if (start..end).contains(&tables.start) {
            map.push((LOADER_DATA, start..tables.start));
            map.push((ACPI_RECLAIM, tables.clone()));
            map.push((CONVENTIONAL, tables.end..end));
        } else {
            map.push((CONVENTIONAL, start..end));
        }
    }
    map.retain(|(_, range)| !range.is_empty());
    map
}

/// Where everything is that [`write()`](Self::write) writes.
pub(super) struct Layout {
    base: u64,
    map: Vec<(u32, Range<u64>)>,
}

impl Layout {
    /// From the start of `tables` on, which are whole pages of the machine's first RAM.
    pub(super) fn new(ram: &[RamRange], tables: &Range<u64>) -> Self {
        Self { base: tables.start, map: memory_map(ram, tables) }
    }

    fn at(&self, offset: usize) -> u64 {
        self.base.saturating_add(offset as u64)
    }

    const VENDOR: usize = SYSTEM_TABLE + CONFIGURATIONS * CONFIGURATION;
    const SERVICES: usize = Self::VENDOR + VENDOR_LEN;
    const RESERVED: usize = Self::SERVICES + NO_SERVICES.len();
    const MAP: usize = Self::RESERVED + NOTHING_RESERVED.len();

    /// Bytes that it takes.
    pub(super) fn len(&self) -> u64 {
        (Self::MAP + self.map.len() * DESCRIPTOR as usize) as u64
    }

    /// What the device tree names.
    pub(super) fn efi(&self) -> Efi {
        Efi { system_table: self.base, memory_map: self.at(Self::MAP)..self.base.saturating_add(self.len()) }
    }

    /// The bytes, for ACPI tables at `rsdp`.
    pub(super) fn write(&self, rsdp: u64) -> Vec<u8> {
        let mut out = self.system_table();
        let configurations = [
            (ACPI_20, rsdp),
            (RT_PROPERTIES, self.at(Self::SERVICES)),
            (LINUX_MEMRESERVE, self.at(Self::RESERVED)),
        ];
        for (guid, at) in configurations {
            out.extend(guid);
            out.extend(at.to_le_bytes());
        }
        out.extend(VENDOR.encode_utf16().flat_map(u16::to_le_bytes));
        out.resize(Self::SERVICES, 0);
        out.extend(NO_SERVICES);
        out.extend(NOTHING_RESERVED);
        for (kind, range) in &self.map {
            out.extend(u64::from(*kind).to_le_bytes());
            let virt = 0;
            for field in [range.start, virt, (range.end - range.start) / PAGE, ANY_CACHE] {
                out.extend(field.to_le_bytes());
            }
        }
        out
    }

    fn system_table(&self) -> Vec<u8> {
        let mut out = SIGNATURE.to_vec();
        let (crc, reserved) = (0, 0);
        for field in [REVISION, SYSTEM_TABLE as u32, crc, reserved] {
            out.extend(field.to_le_bytes());
        }
        out.extend(self.at(Self::VENDOR).to_le_bytes());
        out.extend(u64::from(FIRMWARE_REVISION).to_le_bytes());
        // Handles and protocols of the three consoles, services of the run time and of the boot.
        out.extend([0; 8 * 8]);
        out.extend((CONFIGURATIONS as u64).to_le_bytes());
        out.extend(self.at(SYSTEM_TABLE).to_le_bytes());
        debug_assert_eq!(out.len(), SYSTEM_TABLE);
        let crc = crc32fast::hash(&out);
        if let Some(field) = out.get_mut(CRC..CRC + 4) {
            field.copy_from_slice(&crc.to_le_bytes());
        }
        out
    }
}

#[cfg(test)]
mod tests;
