//! What a wake-up of the I/O thread costs in system calls, counted by strace (Debian's `strace`): a wait that returns,
//! and an interrupt. Nobody reads the doorbell.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

const BATCHES: u32 = 200;

/// The program `benches/wakeups.rs`, which cargo builds with the tests.
fn program() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    here.ancestors().nth(2).unwrap().join("examples/wakeups")
}

/// The calls of the thread `io`, in their order.
fn calls(batches: u32, disk: &[&str]) -> Vec<String> {
    let log = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new("strace")
        .args(["-f", "-qq", "-e", "signal=none", "--decode-pids=comm", "-o"])
        .arg(log.path())
        .arg(program())
        .arg(batches.to_string())
        .args(disk)
        .output()
        .expect("strace does not start: on Debian it is the package `strace`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{}\n", batches * 32));
    let text = fs::read_to_string(log.path()).unwrap();
    let call = |line: &str| {
        // A call that another thread interrupts in the log is on two lines.
        let (_, rest) = line.split_once("<io>")?;
        let (name, _) = rest.trim_start().split_once('(')?;
        (!name.starts_with('<')).then(|| name.to_owned())
    };
    text.lines().filter_map(call).collect()
}

#[test]
fn a_batch_of_requests_costs_one_wait_and_one_interrupt() {
    let none = calls(0, &[]).len();
    let all = calls(BATCHES, &[]);
    let count = |name: &str| all.iter().filter(|call| *call == name).count();
    println!("{} calls of the I/O thread for {BATCHES} batches of 32 requests", all.len() - none);
    assert_eq!(count("write"), BATCHES as usize, "interrupts: {all:?}");
    assert_eq!(count("read"), 0, "somebody reads the doorbell: {all:?}");
    // Where a wait ends before its batch is there, as at the start, it is made once more.
    let spare = 8;
    assert!(all.len() <= none + 2 * BATCHES as usize + spare, "{} and {none} calls: {all:?}", all.len());
}

#[test]
fn a_batch_on_a_file_costs_one_call_of_io_uring_where_it_takes_one_for_each_request() {
    let image = tempfile::NamedTempFile::new().unwrap();
    fs::write(image.path(), vec![1; 1 << 20]).unwrap();
    let path = image.path().to_str().unwrap();
    let count = |calls: &[String], name: &str| calls.iter().filter(|call| *call == name).count();
    let sync = calls(BATCHES, &["sync", path]);
    assert_eq!(count(&sync, "preadv"), 32 * BATCHES as usize);
    let none = calls(0, &["uring", path]).len();
    let uring = calls(BATCHES, &["uring", path]);
    assert_eq!(count(&uring, "preadv"), 0, "io_uring was not used");
    let enters = count(&uring, "io_uring_enter");
    let requests = f64::from(32 * BATCHES);
    println!(
        "per request: {:.3} calls of io_uring, {:.3} of all kinds; {:.3} without it",
        enters as f64 / requests,
        (uring.len() - none) as f64 / requests,
        sync.len() as f64 / requests,
    );
    // One more tries the ring. A turn that finds the next batch there already ends in the middle of it, and takes two calls
    // for that one, and no wait.
    assert!(2 * enters <= 3 * BATCHES as usize + 2, "{enters} calls for {BATCHES} batches");
    // A wait, a submission and an interrupt. The file is in the page cache, so that the submission's own turn finds what
    // was read, and nothing else ends a wait: a few batches may need one more.
    let all = uring.len() - none;
    assert!(2 * all <= 7 * BATCHES as usize, "{all} calls for {BATCHES} batches: {uring:?}");
}
