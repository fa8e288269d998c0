#![allow(clippy::reversed_empty_ranges)]

use super::*;
use crate::platform::{NodeKind, Trigger};

/// A root bus with and one without ports, with these windows.
fn hosts(windows: &[std::ops::RangeInclusive<u64>]) -> [Node; 2] {
    let memory = |base, len| NodeRange::Memory { base, len };
    let io = |base, len| NodeRange::Io { base, len };
    let ecam = memory(0xd010_0000, 1 << 20);
    [vec![ecam, io(0xcf8, 8), io(0xc000, 16)], vec![ecam, memory(0xd000_4000, 16)]].map(|ranges| {
        let interrupts = vec![NodeInterrupt::new(6, Trigger::Edge)];
        Node::new("pci", NodeKind::PciHost, ranges, interrupts).with_windows(windows.to_vec())
    })
}

#[test]
fn windows_have_lengths() {
    for window in [5..=3, 0..=u64::MAX, 1..=0, u64::MAX..=0] {
        for host in hosts(&[0xe000_0000..=0xefff_ffff, window.clone()]) {
            let error = PciHost::new(&host).err().unwrap();
            let needs = "windows that are not empty and not all of memory";
            assert_eq!(error.to_string(), format!("device `pci` (PciHost) needs {needs}"), "{window:?}");
        }
    }
    for window in [0..=0, 1..=u64::MAX, 0..=u64::MAX - 1, 0..=0xffff_ffff, 1..=0xffff_ffff] {
        for host in hosts(std::slice::from_ref(&window)) {
            let len = (window.end() - window.start() + 1).to_le_bytes();
            let bytes = PciHost::new(&host).unwrap().windows().0;
            let len = if bytes.len() > 60 { &len[..] } else { &len[..4] };
            assert!(bytes.ends_with(len), "{window:x?}: {bytes:x?}");
        }
    }
}
