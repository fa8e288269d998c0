//! Watching machines from threads of one's own: events by a poller that is not Ossature's, and counters.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::thread;

use ossature::vmm::machine::{MachineEvent, MachineHandle};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Follows all events of machines until each has ended; returns them, machine by machine.
pub fn follow(machines: &[MachineHandle]) -> io::Result<Vec<Vec<MachineEvent>>> {
    let epoll = Epoll::new()?;
    let mut streams = Vec::new();
    for (number, machine) in (0..).zip(machines) {
        let stream = machine.events().pollable()?;
        epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), EpollEvent::new(EventSet::IN, number))?;
        streams.push(stream);
    }
    let mut seen = vec![Vec::new(); machines.len()];
    let mut running = machines.len();
    let mut ready = [EpollEvent::default(); 8];
    while running > 0 {
        let count = epoll.wait(-1, &mut ready)?;
        for event in &ready[..count] {
            let number = event.data() as usize;
            while let Some(event) = streams[number].try_next() {
                running -= usize::from(matches!(event, MachineEvent::Ended(_)));
                seen[number].push(event);
            }
        }
    }
    Ok(seen)
}

/// A machine's counters, as `scope.name`.
pub fn counters(machine: &MachineHandle) -> BTreeMap<String, u64> {
    let mut counters = BTreeMap::new();
    machine.metrics(&mut |scope, metric, value| {
        counters.insert(format!("{scope}.{}", metric.name), value);
    });
    counters
}

/// Reads the counters of a machine again and again, until `name` is at least `least`; returns them.
pub fn until(machine: &MachineHandle, name: &str, least: u64) -> BTreeMap<String, u64> {
    loop {
        let counters = counters(machine);
        if counters.get(name).is_some_and(|value| *value >= least) {
            return counters;
        }
        thread::yield_now();
    }
}
