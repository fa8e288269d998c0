//! What a device counts and measures.

/// How a metric's value changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MetricKind {
    /// It only grows, such as requests or bytes, until its device or machine is new.
    Counter,
    /// It goes up and down, such as requests in flight.
    Gauge,
}

/// What a metric's value is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MetricUnit {
    /// A number of something, which the metric's name says.
    Count,
    /// Bytes.
    Bytes,
    /// Nanoseconds.
    Nanoseconds,
    /// Cycles of the host's processor.
    Cycles,
    /// 0 for false, 1 for true.
    Boolean,
    /// Something else, which the metric's name says.
    Other,
}

/// What a value is about, for whatever shows it to people or to a monitoring system. The same for the metric's life.
///
/// ```
/// use ossature_bus::{Metric, MetricKind, MetricUnit};
///
/// let metric = Metric::counter("read_bytes", "Bytes that the guest has read.");
/// assert_eq!((metric.kind, metric.unit), (MetricKind::Counter, MetricUnit::Bytes));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Metric<'a> {
    /// Unique among the metrics of its device: lower case, digits and underscores, with what is counted at its end.
    pub name: &'a str,
    /// How the value changes.
    pub kind: MetricKind,
    /// What the value is measured in.
    pub unit: MetricUnit,
    /// What it means, in a sentence; empty if nobody has said.
    pub help: &'a str,
}

impl<'a> Metric<'a> {
    /// A number that only grows.
    pub fn counter(name: &'a str, help: &'a str) -> Self {
        Self::new(name, MetricKind::Counter, help)
    }

    /// A number that goes up and down.
    pub fn gauge(name: &'a str, help: &'a str) -> Self {
        Self::new(name, MetricKind::Gauge, help)
    }

    /// A metric of bytes if its name ends with `bytes`, of nanoseconds if it ends with `ns`, and otherwise a count.
    fn new(name: &'a str, kind: MetricKind, help: &'a str) -> Self {
        let unit = match name.rsplit('_').next() {
            Some("bytes") => MetricUnit::Bytes,
            Some("ns") => MetricUnit::Nanoseconds,
            _ => MetricUnit::Count,
        };
        Self { name, kind, unit, help }
    }

    /// The same metric in another unit.
    #[must_use]
    pub fn with_unit(self, unit: MetricUnit) -> Self {
        Self { unit, ..self }
    }
}

/// Receives a device's metrics.
pub trait MetricVisitor {
    /// Takes a value.
    fn metric(&mut self, metric: &Metric<'_>, value: u64);
}

impl dyn MetricVisitor + '_ {
    /// Shows a number that only grows: see [`Metric::counter`].
    pub fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.metric(&Metric::counter(name, help), value);
    }

    /// Shows a number that goes up and down: see [`Metric::gauge`].
    pub fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.metric(&Metric::gauge(name, help), value);
    }
}
