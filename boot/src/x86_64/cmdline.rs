//! What the machine adds to a kernel's command line.

use crate::cmdline::CmdlineError;
use crate::platform::{NodeKind, NodeRange, Platform};

/// Where PCs have their first four serial ports, by their number in Linux.
const UARTS: [u16; 4] = [0x3f8, 0x2f8, 0x3e8, 0x2e8];

/// What Linux is better told than left to find out on this platform, as words of a command line:
///
/// - `pci=off` without a PCI root bus: Linux probes for one at I/O ports.
/// - `8250.nr_uarts=N` with serial ports: no more of them are probed than there are.
/// - `i8042.noaux` with an i8042, which has a keyboard and no port for a mouse: Linux warns of one that the ACPI tables
///   do not have.
///
/// ```
/// use ossature_boot::{Node, NodeInterrupt, NodeKind, NodeRange, Platform, Trigger, x86_64};
/// let ports = vec![NodeRange::Io { base: 0x3f8, len: 8 }];
/// let com1 = Node::new("com1", NodeKind::Serial16550, ports, vec![NodeInterrupt::new(4, Trigger::Edge)]);
/// let platform = Platform::new(vec![0], Vec::new(), vec![com1]);
/// assert_eq!(x86_64::machine_words(&platform), ["pci=off", "8250.nr_uarts=1"]);
/// ```
pub fn machine_words(platform: &Platform) -> Vec<String> {
    let of_kind = |kind| platform.nodes.iter().filter(move |node| node.kind == kind);
    let mut words = Vec::new();
    if of_kind(NodeKind::PciHost).next().is_none() {
        words.push("pci=off".to_owned());
    }
    // Linux numbers those at the usual places by these, and the others from the first free number on.
    let numbers = of_kind(NodeKind::Serial16550).enumerate().map(|(index, node)| {
        let base = node.ranges.first().and_then(|range| match *range {
            NodeRange::Io { base, .. } => UARTS.iter().position(|&usual| usual == base),
            NodeRange::Memory { .. } => None,
        });
        base.unwrap_or_default().max(index)
    });
    if let Some(last) = numbers.max() {
        words.push(format!("8250.nr_uarts={}", last + 1));
    }
    if of_kind(NodeKind::I8042).next().is_some() {
        words.push("i8042.noaux".to_owned());
    }
    words
}

/// `cmdline` with [`machine_words`] before it, except those whose parameter it sets itself.
pub(super) fn complete(cmdline: &str, platform: &Platform) -> String {
    fn parameter(word: &str) -> &str {
        word.split('=').next().unwrap_or_default()
    }
    let is_set = |word: &String| cmdline.split(' ').any(|given| parameter(given) == parameter(word));
    let mut words = machine_words(platform);
    words.retain(|word| !is_set(word));
    if !cmdline.is_empty() {
        words.push(cmdline.to_owned());
    }
    words.join(" ")
}

/// Checks what [`complete`] has made of `given` against a kernel that takes `limit` bytes. What is wrong with `given` is told as
/// it was given.
pub(super) fn check(complete: &str, given: &str, limit: usize) -> Result<(), CmdlineError> {
    let added = complete.strip_suffix(given).unwrap_or_default().trim_end();
    if added.is_empty() {
        return crate::cmdline::check(given, limit);
    }
    crate::cmdline::check(given, usize::MAX)?;
    let (len, added) = (complete.len(), added.to_owned());
    if len > limit { Err(CmdlineError::TooLongCompleted { len, added, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
