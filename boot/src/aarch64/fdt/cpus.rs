//! Processors, how they belong together, and their caches.

use std::collections::BTreeSet;

use vm_fdt::FdtWriter;

use super::FdtError;
use crate::caches::Cache;
use crate::platform::Platform;

/// The handles of processors and caches begin here: there are fewer of each than fit between.
const FIRST_CPU: u32 = 0x1000;
const SHARED_CACHES: u32 = 0x1000_0000;
const OWN_CACHES: u32 = 0x2000_0000;
/// More caches than a processor has.
const MAX_OWN: u32 = 8;

pub(super) fn write(tree: &mut FdtWriter, platform: &Platform) -> Result<(), FdtError> {
    let ids = &platform.cpus;
    if ids.is_empty() {
        return Err(FdtError::NoCpu);
    }
    platform.caches.as_ref().map_or(Ok(()), |caches| caches.check())?;
    let cpus = tree.begin_node("cpus")?;
    tree.property_u32("#address-cells", 1)?;
    tree.property_u32("#size-cells", 0)?;
    let mut known = BTreeSet::new();
    for (index, &id) in (0..).zip(ids) {
        if !known.insert(id) {
            return Err(FdtError::DuplicateCpu { id });
        }
        let cpu = tree.begin_node(&format!("cpu@{id:x}"))?;
        tree.property_string("device_type", "cpu")?;
        tree.property_string("compatible", "arm,armv8")?;
        tree.property_u32("reg", id)?;
        tree.property_string("enable-method", "psci")?;
        tree.property_phandle(FIRST_CPU + index)?;
        own_caches(tree, platform, index)?;
        tree.end_node(cpu)?;
    }
    if let Some(caches) = &platform.caches {
        let first = 2 + caches.own.len() as u32;
        behind(tree, &caches.shared, first, (SHARED_CACHES, None))?;
    }
    // Cores of one package, with one thread each, as on x86_64.
    let map = tree.begin_node("cpu-map")?;
    let package = tree.begin_node("socket0")?;
    let cluster = tree.begin_node("cluster0")?;
    for (index, _) in (0..).zip(ids) {
        let core = tree.begin_node(&format!("core{index}"))?;
        tree.property_u32("cpu", FIRST_CPU + index)?;
        tree.end_node(core)?;
    }
    for node in [cluster, package, map] {
        tree.end_node(node)?;
    }
    Ok(tree.end_node(cpus)?)
}

/// The caches that the processor `index`, whose node is open, has for itself.
fn own_caches(tree: &mut FdtWriter, platform: &Platform, index: u32) -> Result<(), FdtError> {
    let Some(caches) = &platform.caches else { return Ok(()) };
    cache(tree, "d-", &caches.data)?;
    cache(tree, "i-", &caches.instruction)?;
    let shared = (!caches.shared.is_empty()).then_some(SHARED_CACHES);
    let handle = OWN_CACHES + index * MAX_OWN;
    if let Some(next) = if caches.own.is_empty() { shared } else { Some(handle) } {
        tree.property_u32("next-level-cache", next)?;
    }
    behind(tree, &caches.own, 2, (handle, shared))
}

/// The nodes of caches from the level `first` on, with handles from `handle` on, each behind the one before, and `last` behind
/// them.
fn behind(
    tree: &mut FdtWriter,
    caches: &[Cache],
    first: u32,
    (handle, last): (u32, Option<u32>),
) -> Result<(), FdtError> {
    for ((level, handle), (left, found)) in (first..).zip(handle..).zip((0..caches.len()).rev().zip(caches)) {
        let node = tree.begin_node(&format!("l{level}-cache"))?;
        tree.property_string("compatible", "cache")?;
        tree.property_u32("cache-level", level)?;
        tree.property_null("cache-unified")?;
        cache(tree, "", found)?;
        tree.property_phandle(handle)?;
        if let Some(next) = if left > 0 { Some(handle + 1) } else { last } {
            tree.property_u32("next-level-cache", next)?;
        }
        tree.end_node(node)?;
    }
    Ok(())
}

/// The properties of a cache.
fn cache(tree: &mut FdtWriter, kind: &str, cache: &Cache) -> Result<(), FdtError> {
    tree.property_u32(&format!("{kind}cache-size"), cache.size)?;
    if let Some((line_size, sets)) = cache.lines {
        tree.property_u32(&format!("{kind}cache-line-size"), line_size)?;
        tree.property_u32(&format!("{kind}cache-sets"), sets)?;
    }
    Ok(())
}
