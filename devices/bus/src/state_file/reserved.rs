//! The ids that a machine uses itself.

/// Ids that are reserved as they are.
const WHOLE: [&str; 6] = ["board", "interrupts", "kvm", "machine", "memory", "vm"];

/// Ids that are reserved alone and with a number behind them.
const NUMBERED: [&str; 2] = ["cpu", "vcpu"];

/// What else the machine may need once.
const PREFIX: &str = "ossature.";

/// Returns true if a machine uses `id` itself, as the name of a section of its state or of a group of its metrics, or
/// may do so in a later release. No device may have such an id:
///
/// - `board`, `interrupts`, `kvm`, `machine`, `memory`, `vm`;
/// - `cpu` and `vcpu`, alone or with decimal digits behind them;
/// - whatever begins with `ossature.`, and the empty id.
///
/// ```
/// use ossature_bus::state_file::is_reserved_id;
///
/// assert!(is_reserved_id("vcpu12") && is_reserved_id("kvm"));
/// assert!(!is_reserved_id("vcpu-monitor") && !is_reserved_id("net0"));
/// ```
pub fn is_reserved_id(id: &str) -> bool {
    let is_number = |rest: &str| rest.bytes().all(|byte| byte.is_ascii_digit());
    id.is_empty()
        || WHOLE.contains(&id)
        || NUMBERED.iter().any(|name| id.strip_prefix(name).is_some_and(is_number))
        || id.starts_with(PREFIX)
}
