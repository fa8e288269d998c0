//! What a network card has done since it was made.

use ossature_bus::MetricVisitor;

use crate::counter::{Counter, HostErrors};

/// Of one pair of queues, whose worker counts.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) rx_packets: Counter,
    pub(super) rx_bytes: Counter,
    pub(super) rx_dropped: Counter,
    pub(super) rx_filtered: Counter,
    pub(super) tx_packets: Counter,
    pub(super) tx_bytes: Counter,
    pub(super) tx_dropped: Counter,
    pub(super) host_errors: HostErrors,
}

/// Of the control queue.
#[derive(Debug, Default)]
pub(super) struct ControlCounters {
    pub(super) commands: Counter,
    pub(super) refused: Counter,
    pub(super) host_errors: HostErrors,
}

/// Shows what all pairs have counted.
pub(super) fn show<'a>(
    pairs: impl Iterator<Item = &'a Counters> + Clone,
    control: &ControlCounters,
    visitor: &mut dyn MetricVisitor,
) {
    let sum = |of: fn(&Counters) -> u64| pairs.clone().map(of).fold(0, u64::wrapping_add);
    let mut show = |name, help, of: fn(&Counters) -> u64| visitor.counter(name, help, sum(of));
    show("rx_packets", "Packets that the guest was given.", |c| c.rx_packets.get());
    show("rx_bytes", "Bytes in packets that the guest was given.", |c| c.rx_bytes.get());
    show("rx_dropped_packets", "Packets for the guest that were dropped.", |c| c.rx_dropped.get());
    show("rx_filtered_packets", "Packets that the guest has filtered out.", |c| c.rx_filtered.get());
    show("tx_packets", "Packets from the guest that were sent.", |c| c.tx_packets.get());
    show("tx_bytes", "Bytes in packets from the guest that were sent.", |c| c.tx_bytes.get());
    show("tx_dropped_packets", "Packets from the guest that were dropped.", |c| c.tx_dropped.get());
    show_control(sum(|c| c.host_errors.get()), control, visitor);
}

/// Shows what a control queue has counted, and the host's errors with those `beside` it.
pub(super) fn show_control(beside: u64, control: &ControlCounters, visitor: &mut dyn MetricVisitor) {
    visitor.counter(
        "control_commands",
        "Commands of the driver that were carried out.",
        control.commands.get(),
    );
    visitor.counter(
        "control_refused_commands",
        "Commands of the driver that were refused.",
        control.refused.get(),
    );
    let errors = beside.wrapping_add(control.host_errors.get());
    visitor.counter("host_errors", "Failures of the host that the device met.", errors);
}
