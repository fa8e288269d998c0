//! Other VMMs that take part if they are installed, each as its documentation recommends it for a fast boot.

use std::path::PathBuf;

use super::contender::{Contender, Part};
use crate::arch::Arch;

/// A VMM that the report knows.
struct Peer {
    name: &'static str,
    program: &'static str,
    about: &'static str,
    arguments: &'static str,
    part: Part,
    /// Words of the kernel command line that it cannot have.
    without: &'static [&'static str],
    /// What it has in addition.
    with: &'static [&'static str],
}

/// <https://www.qemu.org/docs/master/system/i386/microvm.html>: no option ROMs, PIT or PIC. The page switches the serial
/// port and the clock off as well; the first prints what is measured, and without the second Debian's kernel waits.
macro_rules! qemu {
    ($kernel:literal) => {
        concat!(
            "-M microvm,accel=kvm,x-option-roms=off,pit=off,pic=off,rtc=on,isa-serial=on -cpu host -m {memory}M \
             -smp {cpus} -nodefaults -no-user-config -display none -no-reboot -serial stdio -initrd {initrd} \
             -append {cmdline} -drive id=disk,file={disk},format=raw,if=none \
             -device virtio-blk-device,drive=disk -netdev tap,id=net,ifname={tap},script=no,downscript=no \
             -device virtio-net-device,netdev=net -device virtio-rng-device -kernel ",
            $kernel
        )
    };
}

/// <https://www.qemu.org/docs/master/system/arm/virt.html>: no firmware and no ACPI tables, which a kernel that is given does
/// not read, no ITS, and devices on MMIO.
const AARCH64: &[Peer] = &[Peer {
    name: "qemu",
    program: "qemu-system-aarch64",
    about: "QEMU's virt without firmware, ACPI and ITS, its devices on MMIO",
    arguments: "-M virt,accel=kvm,gic-version=3,acpi=off,its=off -cpu host -m {memory}M -smp {cpus} -nodefaults \
                -no-user-config -display none -no-reboot -serial stdio -initrd {initrd} -append {cmdline} \
                -drive id=disk,file={disk},format=raw,if=none -device virtio-blk-device,drive=disk \
                -netdev tap,id=net,ifname={tap},script=no,downscript=no -device virtio-net-device,netdev=net \
                -device virtio-rng-device -kernel {kernel}",
    part: Part::Whole,
    without: &[],
    with: &[],
}];

const X86_64: &[Peer] = &[
    Peer {
        name: "qemu",
        program: "qemu-system-x86_64",
        about: "QEMU's microvm without option ROMs, PIT and PIC, with the bzImage that its users give it",
        arguments: qemu!("{bzimage}"),
        part: Part::Whole,
        without: &[],
        with: &[],
    },
    Peer {
        name: "qemu-elf",
        program: "qemu-system-x86_64",
        about: "the same with the ELF file that microvm gets",
        arguments: qemu!("{kernel}"),
        part: Part::Boots,
        without: &[],
        with: &[],
    },
    // docs/prod-host-setup.md and docs/getting-started.md there. It has no way to power off, only to reset.
    Peer {
        name: "firecracker",
        program: "firecracker",
        about: "Firecracker without its API, with its default filters",
        arguments: "--no-api --config-file {config}",
        part: Part::Whole,
        without: &[],
        with: &["reboot=k", "report_end=reboot"],
    },
    // The README there. Its devices are on PCI.
    Peer {
        name: "cloud-hypervisor",
        program: "cloud-hypervisor",
        about: "Cloud Hypervisor, its devices on PCI, with its default filters",
        arguments: "--kernel {kernel} --initramfs {initrd} --cmdline {cmdline} --cpus boot={cpus} --memory size={memory}M \
                    --disk path={disk} --net tap={tap} --rng src=/dev/urandom --serial tty --console off",
        part: Part::Whole,
        without: &["pci=off"],
        with: &[],
    },
    // https://crosvm.dev/book/running_crosvm. Its devices are on PCI.
    Peer {
        name: "crosvm",
        program: "crosvm",
        about: "crosvm, its devices on PCI, each in its sandbox as by default",
        arguments: "run --initrd {initrd} --params {cmdline} --cpus {cpus} --mem {memory} --block path={disk} \
                    --net tap-name={tap} --serial type=stdout,hardware=serial,num=1 {kernel}",
        part: Part::Whole,
        without: &["pci=off"],
        with: &[],
    },
];

/// Those of an architecture whose program `find` knows.
pub fn found(arch: Arch, find: impl Fn(&str) -> Option<PathBuf>) -> Vec<Contender> {
    let peers = match arch {
        Arch::X86_64 => X86_64,
        Arch::Aarch64 => AARCH64,
    };
    peers
        .iter()
        .filter_map(|peer| {
            let program = find(peer.program)?;
            let mut contender = Contender::built_in(
                peer.name,
                peer.about,
                &program.to_string_lossy(),
                peer.arguments,
                peer.part,
            );
            contender.without = peer.without;
            contender.with = peer.with;
            Some(contender)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::contender::Guest;
    use super::*;
    use crate::{measure, paths};

    fn guest() -> Guest {
        Guest {
            folder: PathBuf::from("/run/g"),
            cmdline: "console=ttyS0 pci=off quiet".to_owned(),
            memory: 256,
            cpus: 2,
            tap: "tap0".to_owned(),
        }
    }

    #[test]
    fn x6_every_vmm_in_the_search_path_takes_part_and_no_other() {
        // A stand-in of this name.
        let folder = paths::target().join(format!("xtask-tests/{}-path", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let program = folder.join("cloud-hypervisor");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let contenders =
            found(Arch::X86_64, |name| measure::find_program_in(name, &folder.to_string_lossy()));
        std::fs::remove_dir_all(&folder).unwrap();
        let [one] = &contenders[..] else { panic!("{contenders:?}") };
        assert_eq!(one.name, "cloud-hypervisor");
        let command = one.command(&guest());
        assert_eq!(command[0], program.to_string_lossy());
        assert!(command.contains(&"console=ttyS0 quiet".to_owned()), "{command:?}");
        assert!(found(Arch::X86_64, |_| None).is_empty());
    }

    #[test]
    fn x5_each_command_names_only_what_there_is_and_has_its_documented_options() {
        let all = found(Arch::X86_64, |name| Some(PathBuf::from("/bin").join(name)));
        let names: Vec<_> = all.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["qemu", "qemu-elf", "firecracker", "cloud-hypervisor", "crosvm"]);
        let command = |index: usize| all[index].command(&guest()).join(" ");
        for index in 0..all.len() {
            assert!(!command(index).contains(['{', '}']), "{}", command(index));
        }
        for option in ["x-option-roms=off", "pit=off", "pic=off", "rtc=on"] {
            assert!(command(0).contains(option) && command(1).contains(option), "{option}");
        }
        assert!(command(0).contains("/run/g/bzimage") && command(1).contains("/run/g/kernel"));
        let arm = found(Arch::Aarch64, |name| Some(PathBuf::from("/bin").join(name)));
        let words = arm[0].command(&guest()).join(" ");
        assert!(words.contains("-M virt,accel=kvm") && !words.contains(['{', '}']), "{words}");
        let boot = all[2].guest(&guest()).firecracker_config();
        assert!(boot.contains("console=ttyS0 pci=off quiet reboot=k report_end=reboot"), "{boot}");
    }
}
