//! Consoles and what else a guest takes for granted: entropy and the time of day.

mod support;

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use support::{Answers, Guest, LIMIT, Log, RTC, Transport, hash_of};

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
    assert!(name.starts_with(RTC), "{name}");
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

/// So many bytes that do not repeat.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[test]
fn named_ports_carry_data_both_ways_and_a_client_reconnects() {
    const LEN: usize = 1_000_000;
    let folder = tempfile::tempdir().unwrap();
    let socket = |name: &str| folder.path().join(name);
    let port = |name: &str| format!("name={name},socket={}", socket(name).display());
    let guest = Guest::new()
        .args(["--port", &port("org.example.echo"), "--port", &port("hash")])
        // What udev does.
        .run("names", "mkdir /dev/virtio-ports; for port in /sys/class/virtio-ports/*; do ln -s ../${port##*/} /dev/virtio-ports/$(cat $port/name); done; ls -1 /dev/virtio-ports")
        .run("ports", &format!(
            "hash() {{ head -c {LEN} | sha256sum; }}
            (exec <>/dev/virtio-ports/hash; hash >/tmp/hash; cat /tmp/hash >&0) &
            exec 5<>/dev/virtio-ports/org.example.echo
            for client in 1 2; do
                rm -f /tmp/got; left={LEN}
                # A port without a client reads as one at its end.
                while [ $left -gt 0 ]; do
                    head -c $left <&5 >>/tmp/got; left=$(({LEN} - $(stat -c %s /tmp/got)))
                    [ $left = 0 ] || sleep 1
                done
                sha256sum </tmp/got
                cat /tmp/got >&5
            done
            wait"
        ))
        .start();
    // The client of the other port comes first, and is served meanwhile.
    let (data, file) = (noise(3, LEN), socket("data"));
    fs::write(&file, &data).unwrap();
    let hash_client = {
        let path = socket("hash");
        thread::spawn(move || {
            let mut client = connect(&path);
            client.write_all(&data).unwrap();
            let mut hash = vec![0; 64];
            client.read_exact(&mut hash).unwrap();
            String::from_utf8(hash).unwrap()
        })
    };
    for seed in [1, 2] {
        let sent = noise(seed, LEN);
        let mut client = connect(&socket("org.example.echo"));
        client.write_all(&sent).unwrap();
        let mut echo = vec![0; LEN];
        client.read_exact(&mut echo).unwrap();
        assert!(echo == sent, "client {seed} got something else back");
    }
    let hash = hash_client.join().unwrap();
    assert!(hash_of(&format!("cat {}", file.display())).starts_with(&hash), "{hash}");
    let ended = guest.wait();
    ended.expect(0);
    let answers = ended.answers();
    assert_eq!(&answers["names"], "hash\norg.example.echo");
    for (line, seed) in answers["ports"].lines().zip([1, 2]) {
        fs::write(&file, noise(seed, LEN)).unwrap();
        assert_eq!(line, hash_of(&format!("cat {}", file.display())));
    }
    assert_eq!(answers["ports"].lines().count(), 2);
    assert!(!socket("hash").exists() && !socket("org.example.echo").exists());
}

#[test]
fn b5_a_guest_draws_no_more_entropy_than_it_may() {
    let drawn = "time() { read -r up rest </proc/uptime; echo $up; }; time; dd if=/dev/hwrng of=/dev/null bs=1024 count=80 iflag=fullblock status=none; time";
    let answers = Guest::new().args(["--rng", "limit=16K/s"]).run("drawn", drawn).boot();
    let times: Vec<f64> = answers["drawn"].lines().map(|time| time.parse().unwrap()).collect();
    // 80 KiB at 16 KiB a second, of which the bucket and the driver may have had some before.
    assert!(times[1] - times[0] >= 4.0, "{times:?}");
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
