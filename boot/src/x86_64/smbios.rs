//! SMBIOS tables: who made the machine, what it is called, its serial number and UUID (DMTF DSP0134, version 3.7).
//!
//! Guests read them for names in their logs (`DMI: ...`), for licences, and to find out where they run: cloud-init
//! takes its data source from product, serial number or OEM strings, systemd its credentials from OEM strings.

mod error;
mod uuid;

use std::borrow::Cow;

pub use error::SmbiosError;
pub use uuid::{InvalidUuid, Uuid};

/// The entry point, and where the structures begin behind it: on a boundary of 16 bytes.
const ENTRY_POINT: usize = 24;
const STRUCTURES: usize = 32;
const CHECKSUM: usize = 5;
/// The version that the structures follow.
const VERSION: [u8; 3] = [3, 3, 0];

const BIOS: u8 = 0;
const SYSTEM: u8 = 1;
const OEM_STRINGS: u8 = 11;
const END: u8 = 127;

const BIOS_VENDOR: &str = "Ossature";
const BIOS_VERSION: &str = "1";
/// Kernels work around the faults of firmware older than some year: this one is of the year in which these tables
/// first were written.
const BIOS_DATE: &str = "01/01/2026";
/// Characteristics: none is said to be supported.
const NOT_SUPPORTED: u64 = 1 << 3;
/// Second extension byte of the characteristics: the tables describe a virtual machine.
const IS_VIRTUAL: u8 = 1 << 4;
const NO_RELEASE: u8 = 0xff;
const WAKE_UP_POWER_SWITCH: u8 = 6;

/// What a machine says that it is. Strings that are empty are not specified.
///
/// ```
/// use ossature_boot::x86_64::smbios::Smbios;
///
/// let smbios = Smbios::new()
///     .serial("ds=nocloud;s=http://10.0.0.1/")
///     .uuid("e5c1e7a4-6d0e-4a3c-8f0b-1f9f5d2b7c11".parse()?)
///     .oem_string("io.systemd.credential:passwd.hashed-password.root=");
/// assert!(smbios.tables(0xf_8000, 0x7ff0)?.starts_with(b"_SM3_"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smbios {
    manufacturer: Cow<'static, str>,
    product: Cow<'static, str>,
    version: Cow<'static, str>,
    serial: Cow<'static, str>,
    sku: Cow<'static, str>,
    family: Cow<'static, str>,
    uuid: Uuid,
    oem_strings: Vec<Cow<'static, str>>,
}

/// [`Smbios::new`].
impl Default for Smbios {
    fn default() -> Self {
        Self::new()
    }
}

impl Smbios {
    /// A `Virtual Machine` made by `Ossature`, without serial number, UUID and OEM strings.
    pub const fn new() -> Self {
        const NONE: Cow<'static, str> = Cow::Borrowed("");
        Self {
            manufacturer: Cow::Borrowed("Ossature"),
            product: Cow::Borrowed("Virtual Machine"),
            version: NONE,
            serial: NONE,
            sku: NONE,
            family: NONE,
            uuid: Uuid::NIL,
            oem_strings: Vec::new(),
        }
    }

    /// With this manufacturer (Linux: `sys_vendor`).
    #[must_use]
    pub fn manufacturer(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.manufacturer = name.into();
        self
    }

    /// With this product name.
    #[must_use]
    pub fn product(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.product = name.into();
        self
    }

    /// With this version of the product.
    #[must_use]
    pub fn version(mut self, version: impl Into<Cow<'static, str>>) -> Self {
        self.version = version.into();
        self
    }

    /// With this serial number.
    #[must_use]
    pub fn serial(mut self, serial: impl Into<Cow<'static, str>>) -> Self {
        self.serial = serial.into();
        self
    }

    /// With this number by which it is sold.
    #[must_use]
    pub fn sku(mut self, sku: impl Into<Cow<'static, str>>) -> Self {
        self.sku = sku.into();
        self
    }

    /// Of this family of products.
    #[must_use]
    pub fn family(mut self, family: impl Into<Cow<'static, str>>) -> Self {
        self.family = family.into();
        self
    }

    /// With this UUID; [`Uuid::NIL`] means none.
    #[must_use]
    pub fn uuid(mut self, uuid: Uuid) -> Self {
        self.uuid = uuid;
        self
    }

    /// With one more string for programs that know it.
    #[must_use]
    pub fn oem_string(mut self, string: impl Into<Cow<'static, str>>) -> Self {
        self.oem_strings.push(string.into());
        self
    }

    /// The entry point and, behind it, all structures, for the guest-physical address `base`: a multiple of 16. At most
    /// `room` bytes.
    ///
    /// # Errors
    /// A string that is not printable ASCII, an OEM string that is empty, or more of them than there is room for.
    pub fn tables(&self, base: u64, room: u64) -> Result<Vec<u8>, SmbiosError> {
        let mut tables = Structures::new();
        tables.add(BIOS, |bios| {
            bios.string("BIOS vendor", BIOS_VENDOR)?.string("BIOS version", BIOS_VERSION)?;
            bios.bytes(&[0; 2]).string("BIOS date", BIOS_DATE)?;
            // No ROM; no system or embedded controller firmware with a release of its own.
            bios.bytes(&[0]).bytes(&NOT_SUPPORTED.to_le_bytes()).bytes(&[0, IS_VIRTUAL]);
            bios.bytes(&[NO_RELEASE; 4]).bytes(&[0; 2]);
            Ok(())
        })?;
        tables.add(SYSTEM, |system| {
            system.string("manufacturer", &self.manufacturer)?.string("product", &self.product)?;
            system.string("version", &self.version)?.string("serial", &self.serial)?;
            system.bytes(&self.uuid.on_the_wire()).bytes(&[WAKE_UP_POWER_SWITCH]);
            system.string("sku", &self.sku)?.string("family", &self.family)?;
            Ok(())
        })?;
        if !self.oem_strings.is_empty() {
            let count = self.oem_strings.len();
            let number = u8::try_from(count).map_err(|_| SmbiosError::TooManyOemStrings { count })?;
            tables.add(OEM_STRINGS, |oem| {
                oem.bytes(&[number]);
                for string in &self.oem_strings {
                    if string.is_empty() {
                        return Err(SmbiosError::EmptyOemString);
                    }
                    oem.append("OEM string", string)?;
                }
                Ok(())
            })?;
        }
        tables.add(END, |_| Ok(()))?;
        tables.finish(base, room)
    }
}

/// The structures so far, behind room for the entry point.
struct Structures {
    bytes: Vec<u8>,
    handle: u16,
}

impl Structures {
    fn new() -> Self {
        let mut bytes = Vec::with_capacity(512);
        bytes.resize(STRUCTURES, 0);
        Self { bytes, handle: 0 }
    }

    /// Appends a structure whose formatted area after the header, and whose strings, `fill` adds.
    fn add(
        &mut self,
        kind: u8,
        fill: impl FnOnce(&mut Structure) -> Result<(), SmbiosError>,
    ) -> Result<(), SmbiosError> {
        let [low, high] = self.handle.to_le_bytes();
        let mut structure = Structure { area: vec![kind, 0, low, high], strings: Vec::new(), count: 0 };
        fill(&mut structure)?;
        let Structure { mut area, mut strings, .. } = structure;
        let len = area.len() as u8;
        if let Some(field) = area.get_mut(1) {
            *field = len;
        }
        // Each string has ended with a zero; one more ends the set, and two an empty one.
        strings.resize((strings.len() + 1).max(2), 0);
        self.bytes.append(&mut area);
        self.bytes.append(&mut strings);
        self.handle += 1;
        Ok(())
    }

    fn finish(mut self, base: u64, room: u64) -> Result<Vec<u8>, SmbiosError> {
        let len = self.bytes.len() as u64;
        if len > room {
            return Err(SmbiosError::TooLarge { len, room });
        }
        let size = (self.bytes.len() - STRUCTURES) as u32;
        let [major, minor, docrev] = VERSION;
        let mut entry = [0; ENTRY_POINT];
        entry[..5].copy_from_slice(b"_SM3_");
        entry[6..12].copy_from_slice(&[ENTRY_POINT as u8, major, minor, docrev, 1, 0]);
        entry[12..16].copy_from_slice(&size.to_le_bytes());
        entry[16..].copy_from_slice(&(base + STRUCTURES as u64).to_le_bytes());
        entry[CHECKSUM] = entry.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte)).wrapping_neg();
        self.bytes.splice(..ENTRY_POINT, entry);
        Ok(self.bytes)
    }
}

/// A structure in the making: its formatted area, and the strings that this refers to by their number.
struct Structure {
    area: Vec<u8>,
    strings: Vec<u8>,
    count: u8,
}

impl Structure {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.area.extend_from_slice(bytes);
        self
    }

    /// A field that is a string: its number, or 0 if it is empty.
    fn string(&mut self, field: &'static str, string: &str) -> Result<&mut Self, SmbiosError> {
        let number = if string.is_empty() { 0 } else { self.append(field, string)? };
        Ok(self.bytes(&[number]))
    }

    fn append(&mut self, field: &'static str, string: &str) -> Result<u8, SmbiosError> {
        if let Some((position, byte)) =
            string.bytes().enumerate().find(|(_, byte)| !matches!(byte, b' '..=b'~'))
        {
            return Err(SmbiosError::InvalidByte { field, byte, position });
        }
        self.strings.extend_from_slice(string.as_bytes());
        self.strings.push(0);
        self.count += 1;
        Ok(self.count)
    }
}

#[cfg(test)]
mod tests;
