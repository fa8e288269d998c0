//! What microvm says, and the exit code that it ends with.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;
use std::time::Instant;

use log::LevelFilter;
use ossature::bus::{DeviceEvent, EventLoop};
use ossature::legacy::Stamp;
use ossature::memory::RamError;
use ossature::vmm::machine::{
    BuildError, BuildErrors, BuildPhase, EventReporter, FollowedEvents, Machine, MachineEvent, Outcome,
    Severity,
};
use ossature::vmm::program::Messages;
use ossature::vmm::{VmError, error_chain};

use crate::args::Args;
use crate::{Result, snapshot};

/// The user, who may have gone, or may not read: nobody waits for that, as signals are blocked that would end the wait.
pub const USER: Messages = Messages::new("microvm");

/// The exit code for wrong usage.
const USAGE: u8 = 2;
/// The exit code when the guest asked for a reset: see the first lines of `main.rs`.
const RESET: u8 = 3;

/// Tells what happens to the machine while it runs, as it happens, for as long as the result lives. A machine with a disk
/// that waits for the host pauses.
pub fn events(here: &EventLoop, machine: &Machine, level: LevelFilter) -> Result<FollowedEvents> {
    let mut reporter = match level {
        LevelFilter::Off => None,
        LevelFilter::Error => Some(EventReporter::new(Severity::Error)),
        LevelFilter::Warn => Some(EventReporter::new(Severity::Warning)),
        _ => Some(EventReporter::new(Severity::Info)),
    };
    let handle = machine.handle();
    Ok(machine.events().follow_on(here, move |event| {
        if let MachineEvent::Device { event: DeviceEvent::Stalled { .. }, .. } = event {
            handle.request_pause();
        }
        if let Some(reporter) = &mut reporter {
            reporter.report(&event, |line| USER.say_or_drop(line));
        }
    })?)
}

/// Something on the command line that this machine, or this host, cannot be.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Usage {}

/// What is wrong with a machine that cannot be built: in the words of the command line where that is the reason.
pub fn not_built(args: &Args, errors: BuildErrors) -> Box<dyn Error> {
    let usage = errors.errors().iter().find_map(|error| match error {
        BuildError::TooManyCpus { cpus, max } => {
            let given = if args.numa.is_empty() { "--cpus" } else { "--numa cpus of all nodes" };
            Some(format!("{given} {cpus}: this host's KVM has at most {max} for a machine"))
        }
        BuildError::Numa(error) => Some(format!("--numa: {error}")),
        BuildError::Ram(error @ (RamError::Unaligned { .. } | RamError::AddressSpace { .. })) => {
            let given = if args.numa.is_empty() { "--memory" } else { "--numa memory of all nodes" };
            Some(format!("{given}: {error}"))
        }
        BuildError::Vm(error @ VmError::VcpuNumber { .. }) => Some(format!("--numa: {error}")),
        BuildError::DuplicateId { id } | BuildError::ReservedId { id } => Some(format!(
            "--disk id={id}: something else in the machine has this id; give the disk another one"
        )),
        BuildError::Snapshot(error) => snapshot::usage(args, error),
        _ => None,
    });
    match (usage, &args.restore) {
        (Some(text), _) => Usage(text).into(),
        (None, Some(path)) if errors.errors().iter().any(|e| matches!(e, BuildError::Snapshot(_))) => {
            format!("--restore {}: {errors}", path.display()).into()
        }
        (None, _) => errors.into(),
    }
}

/// Says why there is no machine, or no more of it.
pub fn error(error: &(dyn Error + 'static)) -> ExitCode {
    let code = failure(&error_chain(error));
    if error.is::<Usage>() { ExitCode::from(USAGE) } else { code }
}

/// Says what went wrong.
pub fn failure(text: &str) -> ExitCode {
    USER.say_or_drop(text);
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
        USER.say_or_drop(format!("{name} from {} to {} us", since(start), since(end)));
    }
    for (index, run) in machine.first_runs().into_iter().enumerate() {
        run.iter().for_each(|&run| USER.say_or_drop(format!("vcpu{index} after {} us", since(run))));
    }
    for Stamp { value, at } in stamps {
        USER.say_or_drop(format!("stamp {value} after {} us", at.as_micros()));
    }
}
