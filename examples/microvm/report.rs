//! What microvm says, and the exit code that it ends with. Printing never fails: there may be nobody who reads.

use std::io::{Write, stderr};
use std::process::ExitCode;
use std::time::Instant;

use ossature::legacy::Stamp;
use ossature::vmm::error_chain;
use ossature::vmm::machine::{BuildPhase, Machine, Outcome};

/// Says something to the user, who may have gone.
pub fn say(text: &str) {
    let _ = stderr().write_all(format!("microvm: {text}\n").as_bytes());
}

/// As [`say`], while the terminal is raw: it wants its own carriage returns.
pub fn in_raw_terminal(text: &str) {
    let _ = stderr().write_all(format!("\r\n{text}\r\n").as_bytes());
}

/// Says what went wrong.
pub fn failure(text: &str) -> ExitCode {
    say(text);
    ExitCode::FAILURE
}

/// Says how the machine ended, unless it ended well.
pub fn outcome(machine: &Machine, outcome: Outcome) -> ExitCode {
    match outcome {
        Outcome::Crashed(error) => failure(&format!("the guest crashed: {}", error_chain(&*error))),
        _ if machine.guest_panicked() => failure("the guest's kernel panicked"),
        Outcome::Shutdown | Outcome::Reset | Outcome::Stopped => ExitCode::SUCCESS,
        other => failure(&format!("the machine ended: {other}")),
    }
}

/// Says what building the machine took, when its vCPUs first ran, and what the guest wrote to the boot timer.
pub fn times(machine: &Machine, started: Instant, stamps: Vec<Stamp>) {
    let since = |instant: Instant| instant.saturating_duration_since(started).as_micros();
    for BuildPhase { name, start, end } in machine.phases() {
        say(&format!("{name} from {} to {} us", since(start), since(end)));
    }
    for (index, run) in machine.first_runs().into_iter().enumerate() {
        if let Some(run) = run {
            say(&format!("vcpu{index} after {} us", since(run)));
        }
    }
    for Stamp { value, at } in stamps {
        say(&format!("stamp {value} after {} us", at.as_micros()));
    }
}
