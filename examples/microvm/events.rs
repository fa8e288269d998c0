//! What happens to the machine while it runs, told as it happens: one line for each condition.

use std::time::{Duration, Instant};

use log::{Level, LevelFilter};
use ossature::bus::{DeviceEvent, EventLoop, Handler, Hosted};
use ossature::vmm::machine::{Machine, MachineEvent, PollableEvents};

use crate::Result;
use crate::report::say;

/// For this long a line is not told again, and no more than so many lines are: a guest can have its devices fail as often
/// as it likes.
const PERIOD: Duration = Duration::from_secs(60);
const LINES: usize = 32;

/// Tells the machine's events, for as long as the result lives.
pub fn tell(here: &EventLoop, machine: &Machine, level: LevelFilter) -> Result<Hosted<impl Handler + use<>>> {
    let (mut since, mut told, mut untold) = (Instant::now(), Vec::new(), 0_u64);
    Ok(here.on_readable(machine.events().pollable()?, move |events: &mut PollableEvents| {
        while let Some(event) = events.try_next() {
            if level_of(&event) > level {
                continue;
            }
            if since.elapsed() >= PERIOD {
                (since, told) = (Instant::now(), Vec::new());
                if std::mem::take(&mut untold) > 0 {
                    say("there were more events, like those before or too many to tell");
                }
            }
            let line = event.to_string();
            if told.len() < LINES && !told.contains(&line) {
                say(&line);
                told.push(line);
            } else {
                untold += 1;
            }
        }
    })?)
}

/// How much an event matters to the user.
fn level_of(event: &MachineEvent) -> Level {
    match event {
        MachineEvent::Device { event: DeviceEvent::HostError { .. }, .. } => Level::Error,
        // The outcome says it.
        MachineEvent::Device { event: DeviceEvent::Panicked { .. }, .. } => Level::Info,
        MachineEvent::Device { .. } => Level::Warn,
        _ => Level::Info,
    }
}
