//! Devices behind PCI, as an unmodified kernel finds them.

mod support;

use std::fs::File;

use support::{Guest, NO_SERIAL_PORT, PCI, Tap, Transport, complaints};
use xtask::process;

/// What each function says of itself.
struct Function<'a>(&'a str);

impl Function<'_> {
    fn has(&self, what: &str) -> bool {
        self.0.contains(what)
    }
}

#[test]
fn lspci_shows_every_device_and_linux_has_nothing_to_complain_of() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let tap = Tap::new();
    let lspci = process::text(process::command("sh").args(["-c", "command -v lspci"])).unwrap();
    let answers = Guest::new()
        .transport(Transport::Pci)
        .args(["--console", "--cpus", "2", "--net", &format!("tap={}", tap.name)])
        .disk(&image, "")
        .cmdline("ossature.console=hvc0")
        .host_program(lspci.trim())
        .run("cmdline", "cat /proc/cmdline")
        .run("lspci", &format!("{} -nvv", lspci.trim()))
        .run("interrupts", "cat /proc/interrupts")
        .run("iomem", "cat /proc/iomem")
        .run("warnings", "dmesg -r | grep -E '^<[0-4]>' || true")
        .run("pci", "dmesg | grep -iE 'pci|virtio'")
        .boot();
    assert!(!answers["cmdline"].contains("pci="), "{}", &answers["cmdline"]);
    assert_eq!(complaints(&answers["warnings"], &NO_SERIAL_PORT), [""; 0], "{}", &answers["pci"]);

    let functions: Vec<Function> = answers["lspci"].split("\n\n").map(Function).collect();
    let bridges = functions.iter().filter(|function| function.has(" 0600: "));
    assert_eq!(bridges.count(), 1, "{}", &answers["lspci"]);
    // Network, block, console, entropy.
    for id in ["1af4:1041", "1af4:1042", "1af4:1043", "1af4:1044"] {
        let Some(function) = functions.iter().find(|function| function.has(id)) else {
            panic!("no {id}: {}", &answers["lspci"])
        };
        for what in [
            "Kernel driver in use: virtio-pci",
            "MSI-X: Enable+",
            "VirtIO: CommonCfg",
            "VirtIO: Notify",
            "VirtIO: ISR",
            "Mem+ BusMaster+",
        ] {
            assert!(function.has(what), "{id} has no {what}: {}", function.0);
        }
        // Debian 12's lspci has no name for the capability by which configuration space reaches into BARs.
        let known = function.0.replace("VirtIO: <unknown>", "");
        for what in ["access denied", "<?>", "unknown", "[disabled]", "[virtual]", "unassigned"] {
            assert!(!known.contains(what), "{id} has {what}: {known}");
        }
    }
    // A vector of its own for the disk's queue and for each direction of the card.
    for vector in ["virtio0-", "input.0", "output.0", "req.0"] {
        assert!(answers["interrupts"].contains(vector), "no {vector}: {}", &answers["interrupts"]);
    }
    for line in answers["interrupts"].lines().filter(|line| line.contains("virtio")) {
        assert!(line.contains("MSI"), "{line}");
    }
    for what in PCI.into_iter().chain(["virtio-pci-modern"]) {
        assert!(answers["iomem"].contains(what), "no {what}: {}", &answers["iomem"]);
    }
}
