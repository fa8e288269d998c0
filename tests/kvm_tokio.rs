//! The example `tokio`, as a user sees it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

#[test]
fn a1_machines_under_tokio_end_by_themselves_by_their_time_limit_and_when_asked() {
    let exe = std::env::current_exe().unwrap();
    let example = exe.ancestors().nth(2).unwrap().join("examples/tokio");
    let mut child = Command::new(&example).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut said = Vec::new();
    // Until each has said its word, and two have ended; the third goes on for ever.
    let first = [
        "short: hello",
        "server: hello",
        "short: the guest powered off",
        "stuck: its time is up",
        "stuck: the machine was stopped",
    ];
    while !first.iter().all(|line| said.iter().any(|other| line == other)) {
        said.push(lines.next().unwrap_or_else(|| panic!("it ended: {said:#?}")));
    }
    assert!(said.iter().any(|line| line == "short: serial.output_bytes = 6 (Counter)"), "{said:#?}");
    assert!(child.try_wait().unwrap().is_none());

    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let rest: Vec<String> = lines.collect();
    assert!(rest.iter().any(|line| line == "server: serial.input_bytes = 1 (Counter)"), "{rest:#?}");
    assert_eq!(rest.last().unwrap(), "server: the guest powered off");
    assert!(child.wait().unwrap().success());
}
