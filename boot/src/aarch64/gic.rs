//! The interrupt controller of a platform.

use crate::platform::{Node, NodeKind, Platform};

/// As many processors as a GICv2 has interfaces for.
pub(super) const GIC_V2_CPUS: usize = 8;

/// The one interrupt controller, or how many there are.
pub(super) fn only(platform: &Platform) -> Result<&Node, usize> {
    let gics = || platform.nodes.iter().filter(|node| is_gic(node.kind));
    match (gics().next(), gics().count()) {
        (Some(gic), 1) => Ok(gic),
        (_, found) => Err(found),
    }
}

/// Returns true if it is an interrupt controller, of whatever version.
pub(super) fn is_gic(kind: NodeKind) -> bool {
    matches!(kind, NodeKind::GicV2 | NodeKind::GicV3)
}
