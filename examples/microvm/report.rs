//! What microvm says, and the exit code that it ends with. Printing never fails: there may be nobody who reads.

use std::io::{IsTerminal, Write, stderr};
use std::process::ExitCode;
use std::time::Instant;

use ossature::legacy::Stamp;
use ossature::vmm::machine::{BuildPhase, Machine, Outcome};

/// The exit code when the guest asked for a reset: see the first lines of `main.rs`.
const RESET: u8 = 3;

/// Says something to the user, who may have gone.
pub fn say(text: &str) {
    let mut to = stderr();
    // A terminal that may be raw wants its own carriage returns.
    let lines = if to.is_terminal() { text.replace('\n', "\r\n") + "\r" } else { text.to_owned() };
    let _ = to.write_all(format!("microvm: {lines}\n").as_bytes());
}

/// Says what went wrong.
pub fn failure(text: &str) -> ExitCode {
    say(text);
    ExitCode::FAILURE
}

/// Says how the machine ended, unless it ended well.
pub fn outcome(machine: &Machine, outcome: Outcome) -> ExitCode {
    match outcome {
        Outcome::Crashed(error) => failure(&format!("the guest crashed: {error}")),
        _ if machine.guest_panicked() => failure("the guest's kernel panicked"),
        Outcome::Shutdown | Outcome::Stopped => ExitCode::SUCCESS,
        Outcome::Reset => ExitCode::from(RESET),
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
        run.iter().for_each(|&run| say(&format!("vcpu{index} after {} us", since(run))));
    }
    for Stamp { value, at } in stamps {
        say(&format!("stamp {value} after {} us", at.as_micros()));
    }
}
