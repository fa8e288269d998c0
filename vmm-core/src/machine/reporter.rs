//! Lines about what happens to a machine, as few as a user wants to read.

use std::time::{Duration, Instant};

use super::events::{MachineEvent, Severity};

/// For this long a line is not said again.
const PERIOD: Duration = Duration::from_secs(60);
/// The most lines that are said in that time.
const LINES: usize = 32;

/// Says a machine's events to a user: one line for each condition, with the device and what is wrong with it. A guest can
/// have its devices fail as often as it likes, so each line is said once in a minute, and at most 32 are; that there were
/// more is said afterwards. Take events up to [`MachineEvent::Ended`], or once more when the machine has ended: what
/// failed last may be why.
///
/// ```
/// use ossature_bus::DeviceEvent;
/// use ossature_core::machine::{EventReporter, MachineEvent, Severity};
///
/// let mut reporter = EventReporter::new(Severity::Warning);
/// let mut lines = Vec::new();
/// // With a machine: `while let Some(event) = events.try_next()`, whenever its `PollableEvents` are readable.
/// let full = DeviceEvent::HostError { reason: "output: no space left".to_owned() };
/// let full = MachineEvent::Device { id: "disk0".to_owned(), event: full };
/// for event in [MachineEvent::Started, full.clone(), full] {
///     reporter.report(&event, |line| lines.push(line.to_owned()));
/// }
/// assert_eq!(lines, ["device \"disk0\": output: no space left"]);
/// ```
#[derive(Clone, Debug)]
pub struct EventReporter {
    least: Severity,
    /// The beginning of the period, and what was said in it.
    since: Instant,
    said: Vec<String>,
    /// Set if there was more.
    more: bool,
}

impl EventReporter {
    /// Says what is at least this severe.
    pub fn new(least: Severity) -> Self {
        Self { least, since: Instant::now(), said: Vec::new(), more: false }
    }

    /// Says the event, if it is to be said. `say` must not wait for a reader if it is called on an event loop: see
    /// [`say_or_drop`](crate::program::Messages::say_or_drop).
    pub fn report(&mut self, event: &MachineEvent, say: impl FnMut(&str)) {
        self.report_at(Instant::now(), event, say);
    }

    fn report_at(&mut self, now: Instant, event: &MachineEvent, mut say: impl FnMut(&str)) {
        if event.severity() < self.least {
            return;
        }
        if now.saturating_duration_since(self.since) >= PERIOD {
            self.since = now;
            self.said.clear();
            if std::mem::take(&mut self.more) {
                say("there were more events, like those before or too many to tell");
            }
        }
        let line = event.to_string();
        if self.said.len() < LINES && !self.said.contains(&line) {
            say(&line);
            self.said.push(line);
        } else {
            self.more = true;
        }
    }
}

#[cfg(test)]
mod tests;
