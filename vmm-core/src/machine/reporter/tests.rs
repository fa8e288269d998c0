use ossature_bus::DeviceEvent;

use super::*;

fn failure(reason: impl Into<String>) -> MachineEvent {
    MachineEvent::Device { id: "disk0".to_owned(), event: DeviceEvent::HostError { reason: reason.into() } }
}

/// What is said about events, each after so many seconds.
fn lines(reporter: &mut EventReporter, events: &[(u64, MachineEvent)]) -> Vec<String> {
    let (start, mut lines) = (reporter.since, Vec::new());
    for (seconds, event) in events {
        let now = start + Duration::from_secs(*seconds);
        reporter.report_at(now, event, |line| lines.push(line.to_owned()));
    }
    lines
}

#[test]
fn e4_what_is_less_severe_is_not_said() {
    let ignored = DeviceEvent::Ignored { reason: "a request".to_owned() };
    let ignored = MachineEvent::Device { id: "net0".to_owned(), event: ignored };
    let panicked = DeviceEvent::Panicked { message: "oops".to_owned() };
    let panicked = MachineEvent::Device { id: "rng".to_owned(), event: panicked };
    let events = [MachineEvent::Started, ignored, failure("full"), panicked].map(|event| (0, event));
    for (least, expected) in [
        (Severity::Error, &["disk0"][..]),
        (Severity::Warning, &["net0", "disk0"]),
        (Severity::Info, &["started", "net0", "disk0", "rng"]),
    ] {
        let lines = lines(&mut EventReporter::new(least), &events);
        assert_eq!(lines.len(), expected.len(), "{lines:?}");
        assert!(lines.iter().zip(expected).all(|(line, part)| line.contains(part)), "{lines:?}");
    }
}

#[test]
fn e4_a_condition_is_one_line_and_is_said_again_after_a_minute() {
    let mut reporter = EventReporter::new(Severity::Error);
    let events = [0, 1, 59, 60, 61].map(|seconds| (seconds, failure("full")));
    let full = "device \"disk0\": full";
    let more = "there were more events, like those before or too many to tell";
    assert_eq!(lines(&mut reporter, &events), [full, more, full]);
}

#[test]
fn e4_a_guest_that_causes_many_conditions_is_cut_short() {
    let mut reporter = EventReporter::new(Severity::Error);
    let events: Vec<_> = (0..100).map(|number| (0, failure(format!("sector {number}")))).collect();
    let said = lines(&mut reporter, &events);
    assert_eq!(said.len(), LINES);
    assert!(said[LINES - 1].ends_with("sector 31"), "{said:?}");
    // Nothing that the guest did stays in memory.
    assert_eq!(reporter.said.len(), LINES);
    // Silence is not reported.
    let later = lines(&mut EventReporter::new(Severity::Error), &[(0, failure("a")), (100, failure("b"))]);
    assert_eq!(later.len(), 2, "{later:?}");
}
