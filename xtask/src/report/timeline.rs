//! Our VMM's way from exec to its guest, from what `microvm --boot-timer` prints, and as trace events that
//! <https://ui.perfetto.dev> and `chrome://tracing` show.

use serde_json::{Value, json};

use super::figures::Figures;

/// Something with a length, in microseconds since the exec.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// What was done.
    pub name: String,
    /// When it began.
    pub start: f64,
    /// When it was done.
    pub end: f64,
}

/// What happened when, in microseconds since the exec.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    /// What the VMM did, in order.
    pub spans: Vec<Span>,
    /// First entries of vCPUs, and stamps of the guest.
    pub instants: Vec<(String, f64)>,
}

/// What the stamps of the report's guest mean.
fn stamp(value: &str) -> String {
    match value {
        "1" => "guest: init".to_owned(),
        "2" => "guest: drivers loaded".to_owned(),
        other => format!("guest: stamp {other}"),
    }
}

impl Timeline {
    /// Reads the VMM's lines, which count from the start of its `main`. `exec_to_run`, in seconds, says how much
    /// earlier the exec was; without it, the timeline begins with `main`.
    pub fn parse(boot_timer: &str, exec_to_run: Option<f64>) -> Timeline {
        let mut timeline = Timeline::default();
        for line in boot_timer.lines().filter_map(|line| line.trim_end().strip_prefix("microvm: ")) {
            let Some(line) = line.strip_suffix(" us") else { continue };
            if let Some((name, at)) = line.split_once(" after ") {
                let Ok(at) = at.parse() else { continue };
                let name = match name.strip_prefix("stamp ") {
                    Some(value) => stamp(value),
                    None => format!("first KVM_RUN of {name}"),
                };
                timeline.instants.push((name, at));
            } else if let Some((name, times)) = line.split_once(" from ") {
                let Some((start, end)) = times.split_once(" to ") else { continue };
                let (Ok(start), Ok(end)) = (start.parse(), end.parse()) else { continue };
                timeline.spans.push(Span { name: name.to_owned(), start, end });
            }
        }
        let first_run = timeline.instants.first().map(|(_, at)| *at);
        let before_main = match (exec_to_run, first_run) {
            (Some(since_exec), Some(since_main)) => (since_exec * 1e6 - since_main).max(0.0),
            _ => 0.0,
        };
        for span in &mut timeline.spans {
            span.start += before_main;
            span.end += before_main;
        }
        for (_, at) in &mut timeline.instants {
            *at += before_main;
        }
        if let Some(first) = timeline.spans.first().map(|span| span.start) {
            let before = [("exec", 0.0, before_main), ("arguments, opening devices", before_main, first)];
            let before = before.map(|(name, start, end)| Span { name: name.to_owned(), start, end });
            timeline.spans.splice(0..0, before.into_iter().filter(|span| span.end > span.start));
        }
        timeline
    }

    /// A JSON array of trace events ("Trace Event Format": complete events, instants, names).
    pub fn to_trace(&self) -> Value {
        let name = |kind: &str, thread: u32, name: &str| json!({ "ph": "M", "pid": 1, "tid": thread, "name": kind, "args": { "name": name } });
        let mut events = vec![
            name("process_name", 1, "microvm"),
            name("thread_name", 1, "VMM"),
            name("thread_name", 2, "guest"),
        ];
        events.extend(self.spans.iter().map(|span| {
            json!({ "ph": "X", "pid": 1, "tid": 1, "name": span.name, "ts": span.start, "dur": span.end - span.start })
        }));
        events.extend(
            self.instants
                .iter()
                .map(|(name, at)| json!({ "ph": "i", "s": "p", "pid": 1, "tid": 2, "name": name, "ts": at })),
        );
        // The guest's time between two of its instants.
        events.extend(self.instants.windows(2).filter_map(|two| match two {
            [(_, start), (name, end)] => Some(
                json!({ "ph": "X", "pid": 1, "tid": 2, "name": format!("to {name}"), "ts": start, "dur": end - start }),
            ),
            _ => None,
        }));
        Value::Array(events)
    }

    /// Which run it is of, and why its figures are not those of the table.
    pub fn about(&self, figures: &Figures) -> String {
        let of_table = figures.contenders.first().and_then(|ours| ours.least("first-run"));
        let of_table =
            of_table.map(|time| format!(" ({} s)", (time * 1e6).round() / 1e6)).unwrap_or_default();
        let own =
            self.instants.first().map(|(_, at)| format!(" ({} s)", at.round() / 1e6)).unwrap_or_default();
        format!(
            "The quickest of the runs with --boot-timer, whose guest stamps and loads its drivers: its first \
             KVM_RUN{own} has the timer's own work before it, and the table's is of others{of_table}"
        )
    }

    /// As lines for people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for span in &self.spans {
            out.push_str(&format!(
                "  {:>12.0} us  {} ({:.0} us)\n",
                span.start,
                span.name,
                span.end - span.start
            ));
        }
        for (name, at) in &self.instants {
            out.push_str(&format!("  {at:>12.0} us  {name}\n"));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTED: &str = "microvm: layout from 300 to 400 us\r\nmicrovm: payload from 400 to 900 us\n\
        microvm: vcpu0 after 1000 us\nmicrovm: stamp 1 after 50000 us\nsomething else after 3 us\n\
        microvm: nonsense from x to y us\nmicrovm: broken after  us\n";

    #[test]
    fn everything_counts_from_the_exec() {
        let timeline = Timeline::parse(PRINTED, Some(0.0012));
        let spans: Vec<_> = timeline
            .spans
            .iter()
            .map(|span| (span.name.as_str(), span.start.round(), span.end.round()))
            .collect();
        let expected = [
            ("exec", 0.0, 200.0),
            ("arguments, opening devices", 200.0, 500.0),
            ("layout", 500.0, 600.0),
            ("payload", 600.0, 1100.0),
        ];
        assert_eq!(spans, expected);
        let instants: Vec<_> =
            timeline.instants.iter().map(|(name, at)| (name.as_str(), at.round())).collect();
        assert_eq!(instants, [("first KVM_RUN of vcpu0", 1200.0), ("guest: init", 50200.0)]);
    }

    #[test]
    fn without_the_exec_it_counts_from_main() {
        let timeline = Timeline::parse(PRINTED, None);
        assert_eq!(timeline.spans[0].name, "arguments, opening devices");
        assert_eq!(timeline.instants[0].1, 1000.0);
        assert_eq!(Timeline::parse("", Some(1.0)), Timeline::default());
    }

    #[test]
    fn trace_events_are_whole() {
        let trace = Timeline::parse(PRINTED, Some(0.0012)).to_trace();
        let events = trace.as_array().unwrap();
        for event in events {
            let kind = event["ph"].as_str().unwrap();
            assert!(
                event["name"].is_string() && event["pid"].is_number() && event["tid"].is_number(),
                "{event}"
            );
            assert!(kind == "M" || event["ts"].as_f64().is_some_and(|ts| ts >= 0.0), "{event}");
            assert!(kind != "X" || event["dur"].as_f64().is_some_and(|dur| dur >= 0.0), "{event}");
        }
        let named = |name: &str| events.iter().any(|event| event["name"] == name);
        assert!(named("payload") && named("first KVM_RUN of vcpu0") && named("guest: init"));
    }
}
