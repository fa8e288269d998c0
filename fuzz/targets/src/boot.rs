//! Kernel images: ELF, bzImage, and what packs them.

use std::fs::File;
use std::io::Write;

use ossature_boot::x86_64::{self, BootProtocol, BootSpec, Kernel};
use ossature_boot::{ImageSource, MAX_UNPACKED, Platform, RamRange};
use ossature_memory::GuestMmap;
use ossature_memory::vm_memory::GuestAddress;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::Input;

/// RAM of the machine.
const RAM: u64 = 32 << 20;

fn protocol(form: u8) -> BootProtocol {
    [BootProtocol::Auto, BootProtocol::Pvh, BootProtocol::Linux64, BootProtocol::Auto][usize::from(form & 3)]
}

/// Loads an image from memory, a file, or by mapping it, and enters it.
pub fn kernel(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let form = input.u8();
    let image = input.rest();
    let file = (form & 0x0c != 0).then(|| {
        let mut file =
            File::from(memfd_create("ossature-fuzz", MemfdFlags::CLOEXEC).expect("a file in memory"));
        file.write_all(image).expect("room");
        file
    });
    let source = match &file {
        Some(file) if form & 4 != 0 => ImageSource::Mapped(file),
        Some(file) => ImageSource::File(file),
        None => ImageSource::Bytes(image),
    };
    let mem = GuestMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).expect("memory");
    let platform = Platform::new(vec![0], vec![RamRange::new(0, RAM)], Vec::new());
    let mut spec = BootSpec::new(source, "console=ttyS0 quiet");
    spec.protocol = protocol(form);
    let initrd = [0x11; 5000];
    if form & 0x10 != 0 {
        spec.initrd = Some(initrd[..].into());
    }
    let Ok(booted) = x86_64::prepare(&mem, &platform, &spec) else { return };
    assert!(booted.kernel.contains(&booted.cpu.rip), "{booted:x?}");
    assert!(booted.kernel.start >= 1 << 20 && booted.kernel.end <= RAM, "{booted:x?}");
    if let Some(initrd) = &booted.initrd {
        assert!(initrd.end <= RAM && initrd.start >= booted.kernel.end, "{booted:x?}");
    }
    // Segments may overlap, each no longer than the image.
    assert!(booted.loaded.mapped + booted.loaded.copied <= 65536 * RAM, "{booted:x?}");
}

/// Fields of a setup header: where in the image, and what.
const SETUP: [(usize, &[u8]); 13] = [
    (0x1f1, &[1]),
    (0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]),
    (0x202, b"HdrS\x0f\x02"),
    (0x211, &[1]),
    (0x214, &[0, 0, 0x10, 0]),
    (0x22c, &[0xff, 0xff, 0xff, 0x7f]),
    (0x230, &[0, 0, 0x20, 0, 1]),
    (0x236, &[3, 0, 0xff, 7, 0, 0]),
    (0x248, &[0x40, 2, 0, 0]),
    (0x25a, &[0, 1]),
    (0x258, &[0, 0, 0, 1]),
    (0x260, &[0, 0, 0x80, 0]),
    (0x23c, &[0; 4]),
];
/// How the formats begin.
const MAGICS: [&[u8]; 6] = [
    &[0x1f, 0x8b, 8],
    &[0x28, 0xb5, 0x2f, 0xfd],
    &[0xfd, b'7', b'z', b'X', b'Z', 0],
    &[2, 0x21, 0x4c, 0x18],
    &[4, 0x22, 0x4d, 0x18],
    &[],
];

/// Unpacks a file that is packed as a whole, or the payload of a bzImage.
pub fn unpack(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let form = input.u8();
    let mut payload = MAGICS[usize::from(form >> 1) % MAGICS.len()].to_vec();
    payload.extend(input.rest());
    let image = if form & 1 == 0 {
        payload
    } else {
        let mut image = vec![0; 1024 + 0x240];
        let code = (0x240 + payload.len()) as u32;
        for (at, bytes) in SETUP {
            image[at..at + bytes.len()].copy_from_slice(bytes);
        }
        image[0x1f4..0x1f8].copy_from_slice(&code.div_ceil(16).to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend(payload);
        image
    };
    let Ok(kernel) = Kernel::open(image[..].into(), protocol(form >> 4)) else { return };
    if let Some(unpacked) = kernel.unpacked() {
        assert!(unpacked.len() as u64 <= MAX_UNPACKED);
    }
    for segment in kernel.segments() {
        assert!(segment.file_len <= segment.mem_len, "{segment:x?}");
    }
}
