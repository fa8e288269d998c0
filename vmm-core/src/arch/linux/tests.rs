use std::io::{Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;

use ossature_boot::RamRange;
use ossature_boot::x86_64::layout;
use ossature_boot::x86_64::smbios::Smbios;
use ossature_memory::vm_memory::{Bytes, GuestAddress};

use super::*;

const LOAD: u64 = 0x100_0000;
const MEMORY: u64 = 32 << 20;

/// A kernel of one instruction.
fn elf() -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    elf.extend([LOAD, 64, 0].into_iter().flat_map(u64::to_le_bytes));
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    elf.extend([120, LOAD, LOAD, 1, 1, 4096].into_iter().flat_map(u64::to_le_bytes));
    elf.push(0xf4);
    elf
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Loads as a machine that was built or reset does, and returns the kernel's byte, the first of the last page of RAM,
/// where the initial RAM disk begins, and the command line.
fn load(linux: &mut Linux) -> Result<(u8, u8, String), PayloadError> {
    let mem = GuestMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
    let platform = Platform::new(vec![0], vec![RamRange::new(0, MEMORY)], Vec::new());
    linux.load(&mem, &platform)?;
    let mut cmdline = vec![0; layout::CMDLINE_SIZE];
    mem.read_slice(&mut cmdline, GuestAddress(layout::CMDLINE)).unwrap();
    let cmdline = String::from_utf8(cmdline).unwrap();
    let byte = |addr| mem.read_obj(GuestAddress(addr)).unwrap();
    Ok((byte(LOAD), byte(MEMORY - 4096), cmdline.trim_end_matches('\0').to_owned()))
}

#[test]
fn kernel_and_initrd_come_from_descriptors_and_are_read_again_wherever_these_stand() {
    let (kernel, initrd) = (file(&elf()), file(b"initrd"));
    let mut positions = [kernel.try_clone().unwrap(), initrd.try_clone().unwrap()];
    let mut linux = Linux::from_file(OwnedFd::from(kernel)).initrd_file(initrd).cmdline("quiet");
    for _ in 0..2 {
        for file in &mut positions {
            file.seek(SeekFrom::Start(7)).unwrap();
        }
        assert_eq!(load(&mut linux).unwrap(), (0xf4, b'i', "pci=off quiet".to_owned()));
        for file in &mut positions {
            assert_eq!(file.stream_position().unwrap(), 7, "others may use the same open file");
        }
    }
}

#[test]
fn a_path_is_opened_once_and_never_again() {
    let folder = tempfile::tempdir().unwrap();
    let (kernel, initrd) = (folder.path().join("kernel"), folder.path().join("initrd"));
    std::fs::write(&kernel, elf()).unwrap();
    std::fs::write(&initrd, b"initrd").unwrap();
    let mut linux = Linux::new(&kernel).initrd(&initrd);
    let first = load(&mut linux).unwrap();
    // What is at the paths now is nobody's business.
    std::fs::remove_file(&kernel).unwrap();
    let other = folder.path().join("other");
    std::fs::write(&other, b"another").unwrap();
    std::fs::rename(&other, &initrd).unwrap();
    assert_eq!(load(&mut linux).unwrap(), first);
}

#[test]
fn g9_a_failure_names_the_file_if_it_has_a_name_and_the_cause() {
    let error = load(&mut Linux::from_file(file(b"\x1f\x8b\x08 not really"))).unwrap_err();
    assert!(
        error.to_string().starts_with("kernel: the kernel cannot be unpacked: its gzip data is corrupt: "),
        "{error}"
    );
    let error = load(&mut Linux::from_file(file(&elf())).initrd("/no/such/initrd")).unwrap_err();
    assert!(error.to_string().starts_with("initrd /no/such/initrd: No such file"), "{error}");
    let error = load(&mut Linux::from_file(file(&elf())).initrd_file(file(b""))).unwrap_err();
    assert_eq!(error.to_string(), "initrd: the initrd is empty");
}

#[test]
fn a5_and_g8_what_the_machine_adds_can_be_left_out() {
    let mut linux = Linux::from_file(file(&elf())).initrd_file(file(b"initrd")).cmdline("quiet");
    linux = linux.complete_cmdline(false).smbios(None);
    assert_eq!(load(&mut linux).unwrap().2, "quiet");
    let error = load(&mut linux.smbios(Smbios::new().serial("a\tb"))).unwrap_err();
    assert!(error.to_string().starts_with("the SMBIOS serial has byte 0x09 at position 1"), "{error}");
}
