//! Consoles and what else a guest takes for granted: entropy and the time of day.

mod support;

use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use support::{Answers, Guest, LIMIT, Log, Transport};

/// Lines that do not repeat, so that nothing can be lost, doubled or swapped unseen.
fn lines(count: usize) -> String {
    (1..=count).fold(String::new(), |mut text, number| {
        let _ = writeln!(text, "line {number} of {count}");
        text
    })
}

#[test]
fn hvc0_carries_a_console_both_ways() {
    both_ways(Transport::Mmio);
}

#[test]
fn hvc0_carries_a_console_both_ways_on_pci() {
    both_ways(Transport::Pci);
}

fn both_ways(transport: Transport) {
    let mut guest = Guest::new()
        .transport(transport)
        .args(["--console"])
        .cmdline("ossature.console=hvc0")
        .run("console", "tty </proc/self/fd/1; cat /sys/class/tty/hvc0/dev")
        .run("echo", "exec </proc/self/fd/1; printf 'type\\n'; head -n 2000 | tr a-z A-Z")
        .run("rng", "cat /sys/class/misc/hw_random/rng_current; for i in 1 2; do head -c 32 /dev/hwrng | sha256sum; done")
        .start();
    guest.wait_for("type\n");
    guest.type_in(&lines(2000));
    let ended = guest.wait();
    ended.expect(0);
    let answers = ended.answers();
    assert!(answers["console"].starts_with("/dev/hvc0\n"), "{}", &answers["console"]);
    let echo = answers["echo"].split_once("type\n").unwrap().1;
    assert!(echo == lines(2000).to_uppercase().trim_end(), "the echo is not what was typed; {ended}");

    let [device, first, second] = answers["rng"].lines().collect::<Vec<_>>()[..] else { panic!("{ended}") };
    assert!(device.starts_with("virtio_rng"), "{device}");
    assert_ne!(first, second, "entropy does not repeat");
}

#[test]
fn a_serial_port_writes_to_a_file_and_the_clock_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("serial");
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let start = now();
    let mut guest = Guest::new()
        .args(["--serial", &format!("file={}", file.display())])
        .run("rtc", "cat /sys/class/rtc/rtc0/name /sys/class/rtc/rtc0/since_epoch")
        .run("time", "date +%s")
        .run("many", "seq 1 5000")
        .start();
    let names = guest.take_names();
    let ended = guest.wait();
    let end = now();
    ended.expect(0);
    assert_eq!((ended.out.as_str(), ended.err.as_str()), ("", ""));
    let log = fs::read_to_string(&file).unwrap();
    let answers = Answers::parse(&log, &names).unwrap_or_else(|what| panic!("{what}: {log}"));
    let numbers: Vec<String> = (1..=5000).map(|number| number.to_string()).collect();
    assert!(answers["many"] == numbers.join("\n"), "{log}");
    let (name, since_epoch) = answers["rtc"].split_once('\n').unwrap();
    assert!(name.starts_with("rtc_cmos"), "{name}");
    for time in [since_epoch, &answers["time"]] {
        // The clock counts whole seconds.
        let time: u64 = time.parse().unwrap();
        assert!((start - 1..=end + 1).contains(&time), "{time} is not between {start} and {end}");
    }
}

#[test]
fn a_serial_port_on_a_socket_carries_a_console_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serial");
    let mut guest = Guest::new()
        .args(["--serial", &format!("socket={}", path.display())])
        .run("echo", "exec </proc/self/fd/1; printf 'type\\n'; head -n 100 | tr a-z A-Z")
        .start();
    let names = guest.take_names();
    let mut socket = connect(&path);
    let log = Log::follow(socket.try_clone().unwrap());
    assert!(log.wait_for("type\n", LIMIT), "{}", log.text());
    socket.write_all(lines(100).as_bytes()).unwrap();
    let ended = guest.wait();
    ended.expect(0);
    assert_eq!((ended.out.as_str(), ended.err.as_str()), ("", ""));
    assert!(log.wait_for_end(LIMIT), "the socket closes with the VMM");
    let answers = Answers::parse(&log.text(), &names).unwrap_or_else(|what| panic!("{what}: {}", log.text()));
    assert_eq!(answers["echo"].split_once("type\n").unwrap().1, lines(100).to_uppercase().trim_end());
    assert!(!path.exists(), "the socket's file goes with the VMM");
}

/// Connects as soon as the VMM listens, long before the guest prints anything.
fn connect(path: &std::path::Path) -> UnixStream {
    let start = Instant::now();
    loop {
        match UnixStream::connect(path) {
            Ok(socket) => return socket,
            Err(error) if start.elapsed() > LIMIT => panic!("{}: {error}", path.display()),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}
