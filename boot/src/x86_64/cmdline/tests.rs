use super::*;
use crate::platform::Node;

fn platform(nodes: &[(NodeKind, u16)]) -> Platform {
    let node = |&(kind, base)| Node::new("node", kind, vec![NodeRange::Io { base, len: 8 }], Vec::new());
    Platform::new(vec![0], Vec::new(), nodes.iter().map(node).collect())
}

#[test]
fn a5_each_part_comes_from_what_the_machine_has() {
    use NodeKind::{I8042, PciHost, Rtc, Serial16550};
    for (nodes, expected) in [
        (&[][..], "pci=off"),
        (&[(Rtc, 0x70)], "pci=off"),
        (&[(Serial16550, 0x3f8)], "pci=off 8250.nr_uarts=1"),
        (&[(Serial16550, 0x2f8)], "pci=off 8250.nr_uarts=2"),
        (&[(Serial16550, 0x3e8), (Serial16550, 0x3f8)], "pci=off 8250.nr_uarts=3"),
        (&[(Serial16550, 0x1000), (Serial16550, 0x1008)], "pci=off 8250.nr_uarts=2"),
        (&[(I8042, 0x60)], "pci=off i8042.noaux"),
        (&[(PciHost, 0xcf8)], ""),
    ] {
        assert_eq!(complete("", &platform(nodes)), expected);
    }
}

#[test]
fn a5_the_users_words_come_last_and_win() {
    let platform = platform(&[(NodeKind::Serial16550, 0x3f8)]);
    assert_eq!(complete("console=ttyS0 quiet", &platform), "pci=off 8250.nr_uarts=1 console=ttyS0 quiet");
    assert_eq!(complete("8250.nr_uarts=4 -- x", &platform), "pci=off 8250.nr_uarts=4 -- x");
    assert_eq!(complete("pci=conf1 8250.nr_uarts=1", &platform), "pci=conf1 8250.nr_uarts=1");
    assert_eq!(complete("nopci=off", &platform), "pci=off 8250.nr_uarts=1 nopci=off");
}

#[test]
fn errors_count_in_the_users_part_and_name_what_is_added() {
    let platform = platform(&[(NodeKind::Serial16550, 0x3f8)]);
    let told = |given: &str, limit| {
        let checked = check(&complete(given, &platform), given, limit);
        checked.map_err(|error| error.to_string()).err().unwrap_or_default()
    };
    assert_eq!(
        told("a\0", 100),
        "the command line has byte 0x00 at position 1; only printable ASCII is possible"
    );
    assert_eq!(
        told("quiet", 28),
        "the command line has 29 bytes with `pci=off 8250.nr_uarts=1`, which the machine adds; this kernel takes at most 28"
    );
    assert_eq!(told("quiet", 29), "");
    assert_eq!(
        told("", 22),
        "the command line has 23 bytes with `pci=off 8250.nr_uarts=1`, which the machine adds; this \
         kernel takes at most 22"
    );
    assert_eq!(told("", 23), "");
    // Nothing is added.
    assert_eq!(
        told("pci=off 8250.nr_uarts=1", 22),
        "the command line has 23 bytes; this kernel takes at most 22"
    );
}
