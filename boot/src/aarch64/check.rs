//! What has to be true of a machine whichever tables tell its guest of it.

use super::SHARED;
use crate::acpi::lines::Lines;
use crate::platform::{Node, NodeKind, NodeRange, Platform, PlatformError};

/// How many shared peripheral interrupts there are.
const SHARED_COUNT: u32 = 988;
/// The bits of a processor's id: its affinity, of which tables and the interrupt controller know three levels.
const AFFINITY: u32 = 0x00ff_ffff;

/// The interrupts of a machine that does not contradict itself. What a node lacks is for those to say who describe it.
pub(super) fn check(platform: &Platform) -> Result<Lines<'_>, PlatformError> {
    if let Some(&id) = platform.cpus.iter().find(|&&id| id & !AFFINITY != 0) {
        return Err(PlatformError::CpuId { id });
    }
    let mut taken = Vec::with_capacity(platform.ram.len() + platform.nodes.len());
    for ram in &platform.ram {
        if !is_range(ram.base, ram.len) {
            return Err(PlatformError::Ram { base: ram.base, len: ram.len });
        }
        taken.push((ram.base, None));
    }
    for node in &platform.nodes {
        check_node(node, &mut taken)?;
    }
    taken.sort_by_key(|(base, _)| *base);
    for (&(base, first), &(other, second)) in taken.iter().zip(taken.iter().skip(1)) {
        if base == other {
            let name =
                |by: Option<&Node>| by.map_or("RAM".to_owned(), |node| format!("device `{}`", node.id));
            return Err(PlatformError::SameAddress { base, first: name(first), second: name(second) });
        }
    }
    Lines::new(platform, SHARED)
}

/// What begins at each address: a node, or RAM.
type Taken<'a> = Vec<(u64, Option<&'a Node>)>;

fn check_node<'a>(node: &'a Node, taken: &mut Taken<'a>) -> Result<(), PlatformError> {
    let bad = |needs| Err(PlatformError::BadNode { id: node.id.clone(), kind: node.kind, needs });
    if node.interrupts.iter().any(|interrupt| interrupt.number >= SHARED_COUNT) {
        return bad("shared peripheral interrupts: 0 to 987");
    }
    let (ranges, interrupts) = match node.kind {
        NodeKind::Hidden => return Ok(()),
        NodeKind::VirtioMmio | NodeKind::Pl011 | NodeKind::Pl031 | NodeKind::VmGenId => (1, 1),
        NodeKind::FwCfg | NodeKind::GicV3Its => (1, 0),
        NodeKind::GicV2 | NodeKind::GicV3 => (2, 0),
        NodeKind::PciHost => (2, 1),
        NodeKind::PowerButton => (0, 1),
        NodeKind::PmuV3 => (0, 0),
        // Of those that there are on other machines only.
        _ => (usize::MAX, usize::MAX),
    };
    if node.ranges.len() > ranges || node.interrupts.len() > interrupts {
        return bad("no more ranges and interrupts than guests can be told of");
    }
    for range in &node.ranges {
        let &NodeRange::Memory { base, len } = range else { continue };
        if !is_range(base, len) {
            return bad("memory ranges that are not empty and do not wrap");
        }
        taken.push((base, Some(node)));
    }
    if node.kind == NodeKind::VmGenId && !node.has_generation() {
        return bad("16 bytes at a multiple of 8");
    }
    Ok(())
}

fn is_range(base: u64, len: u64) -> bool {
    len.checked_sub(1).is_some_and(|rest| base.checked_add(rest).is_some())
}

#[cfg(test)]
mod tests;
