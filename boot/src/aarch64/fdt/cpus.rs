//! Processors, how they belong together, and their caches.

use std::collections::BTreeSet;
use std::iter::repeat_n;

use vm_fdt::FdtWriter;

use super::{FdtError, numa_node};
use crate::caches::Cache;
use crate::platform::Platform;

/// The handles of processors and caches begin here: there are fewer of each than fit between.
const FIRST_CPU: u32 = 0x1000;
const SHARED_CACHES: u32 = 0x1000_0000;
const OWN_CACHES: u32 = 0x2000_0000;
/// More caches than a processor has.
const MAX_CACHES: u32 = 8;

pub(super) fn write(tree: &mut FdtWriter, platform: &Platform) -> Result<(), FdtError> {
    let ids = &platform.cpus;
    if ids.is_empty() {
        return Err(FdtError::NoCpu);
    }
    platform.caches.as_ref().map_or(Ok(()), |caches| caches.check())?;
    let cpus = tree.begin_node("cpus")?;
    tree.property_u32("#address-cells", 1)?;
    tree.property_u32("#size-cells", 0)?;
    let mut nodes = platform.numa.iter().flat_map(|numa| numa.of_cpus());
    let packages = platform.packages();
    let package_of = (0..).zip(&packages).flat_map(|(package, &cores)| repeat_n(package, cores));
    let mut known = BTreeSet::new();
    for ((index, &id), package) in (0..).zip(ids).zip(package_of) {
        if !known.insert(id) {
            return Err(FdtError::DuplicateCpu { id });
        }
        let cpu = tree.begin_node(&format!("cpu@{id:x}"))?;
        tree.property_string("device_type", "cpu")?;
        tree.property_string("compatible", "arm,armv8")?;
        tree.property_u32("reg", id)?;
        tree.property_string("enable-method", "psci")?;
        tree.property_phandle(FIRST_CPU + index)?;
        numa_node(tree, nodes.next())?;
        own_caches(tree, platform, index, package)?;
        tree.end_node(cpu)?;
    }
    if let Some(caches) = &platform.caches {
        let first = 2 + caches.own.len() as u32;
        for package in (0..).take(packages.len()) {
            behind(tree, &caches.shared, (first, package), (shared_caches(package), None))?;
        }
    }
    // Cores of packages, with one thread each, as on x86_64.
    let map = tree.begin_node("cpu-map")?;
    let mut handles = FIRST_CPU..;
    for (package, &cores) in packages.iter().enumerate() {
        let socket = tree.begin_node(&format!("socket{package}"))?;
        let cluster = tree.begin_node("cluster0")?;
        for (index, handle) in (0..cores).zip(handles.by_ref()) {
            let core = tree.begin_node(&format!("core{index}"))?;
            tree.property_u32("cpu", handle)?;
            tree.end_node(core)?;
        }
        tree.end_node(cluster)?;
        tree.end_node(socket)?;
    }
    tree.end_node(map)?;
    Ok(tree.end_node(cpus)?)
}

/// The handle of the first cache that the cores of a package share.
fn shared_caches(package: u32) -> u32 {
    SHARED_CACHES + package * MAX_CACHES
}

/// The caches that the processor `index` of a package, whose node is open, has for itself.
fn own_caches(tree: &mut FdtWriter, platform: &Platform, index: u32, package: u32) -> Result<(), FdtError> {
    let Some(caches) = &platform.caches else { return Ok(()) };
    cache(tree, "d-", &caches.data)?;
    cache(tree, "i-", &caches.instruction)?;
    let shared = (!caches.shared.is_empty()).then_some(shared_caches(package));
    let handle = OWN_CACHES + index * MAX_CACHES;
    if let Some(next) = if caches.own.is_empty() { shared } else { Some(handle) } {
        tree.property_u32("next-level-cache", next)?;
    }
    behind(tree, &caches.own, (2, 0), (handle, shared))
}

/// The nodes of caches from the level `first` on, with handles from `handle` on, each behind the one before, and `last` behind
/// them. Those of packages behind the first are told apart by their names.
fn behind(
    tree: &mut FdtWriter,
    caches: &[Cache],
    (first, package): (u32, u32),
    (handle, last): (u32, Option<u32>),
) -> Result<(), FdtError> {
    for ((level, handle), (left, found)) in (first..).zip(handle..).zip((0..caches.len()).rev().zip(caches)) {
        let of = if package > 0 { format!("-{package}") } else { String::new() };
        let node = tree.begin_node(&format!("l{level}-cache{of}"))?;
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
