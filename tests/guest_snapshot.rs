//! `microvm`, saved to a file in the middle of what its guest reads, writes, sends and prints, killed, and restored from the
//! file by another process: nothing is lost, doubled or wrong, on either side.

mod support;

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ossature::vmm::machine::Snapshot;
use rustix::process::Signal;
use support::{Answers, Guest, LIMIT, Log, Tap, Transport, echo, found_none, hash_in_ext4, log_of};
use tempfile::TempDir;
use xtask::process;
use xtask::tree::Tree;
use xtask::vmm;

/// How often a guest is saved, killed and restored; `MOMENTS` asks for more.
const MOMENTS: u32 = 6;
/// Between two of them: long enough for the guest to get something done.
const LONGEST: u64 = 1000;
const DATA: usize = 128 << 10;

/// A VMM that goes on from a snapshot; killed when dropped.
struct Restored {
    child: Child,
    out: Log,
    err: Log,
}

impl Restored {
    fn start(snapshot: &Path, args: &[OsString]) -> Self {
        let mut command = Command::new(vmm::program());
        command.arg("--restore").arg(snapshot).args(args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        Self { child, out: Log::follow(out), err: Log::follow(err) }
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        assert!(self.out.wait_for_end(LIMIT) && self.err.wait_for_end(LIMIT));
    }

    /// Waits until it has ended, which has to be well.
    fn ends(&mut self) {
        assert!(self.err.wait_for_end(LIMIT), "it runs: {}{}", self.out.text(), self.err.text());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}{}", self.out.text(), self.err.text());
        assert!(self.out.wait_for_end(LIMIT));
        assert_eq!(self.err.text(), "");
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// Has `microvm` do something, by its control socket.
fn request(control: &Path, line: &str) -> String {
    let since = Instant::now();
    // It listens once its machine has started.
    let mut stream = loop {
        match UnixStream::connect(control) {
            Ok(stream) => break stream,
            Err(e) => assert!(since.elapsed() < LIMIT, "{}: {e}", control.display()),
        }
        thread::sleep(Duration::from_millis(20));
    };
    writeln!(stream, "{line}").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer.trim_end().to_owned()
}

fn args(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

/// Numbers that depend on a seed only, which is printed: xorshift.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let seed = std::env::var("SEED").map_or_else(|_| now() | 1, |seed| seed.parse().unwrap());
        println!("seed: {seed} (set SEED to have these moments again)");
        Self(seed)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

#[test]
fn d3_a_guest_under_load_is_saved_killed_and_restored_and_nothing_is_lost() {
    under_load(Transport::Mmio);
}

#[test]
fn d3_a_guest_under_load_on_pci_is_saved_killed_and_restored_and_nothing_is_lost() {
    under_load(Transport::Pci);
}

fn under_load(transport: Transport) {
    let mut random = Random::new();
    let files = Files::new();
    let (image, control) = (files.path("disk"), files.path("control"));
    Tree::new().write_ext4(&image, 64).unwrap();
    let tap = Tap::new();
    let listener = tap.listen();
    let mut data = vec![0; DATA];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut data).unwrap();
    let words = [
        ("--disk", format!("path={}", image.display())),
        ("--net", format!("tap={}", tap.name)),
        ("--vsock", format!("cid=77,socket={}", files.text("vsock"))),
        ("--control", files.text("control")),
    ];
    let devices = words.iter().flat_map(|(flag, value)| args(&[flag, value])).collect::<Vec<_>>();
    // A program of the host that takes what guests send, however often it has to be asked.
    let sockets = UnixListener::bind(files.path("vsock_1000")).unwrap();
    thread::spawn(move || {
        for stream in sockets.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            });
        }
    });

    let mut guest = under_load_guest(&tap, &listener, &data)
        .transport(transport)
        .args(&devices)
        .args(["--memory", "192M"])
        .start();
    let names = guest.take_names();
    guest.wait_for("traffic\n");
    let echo = thread::spawn({
        let data = data.clone();
        move || echo(&listener, &data)
    });

    let moments = std::env::var("MOMENTS").map_or(MOMENTS, |n| n.parse().unwrap());
    let (mut text, mut vmm) = (String::new(), None::<Restored>);
    let mut snapshot = PathBuf::new();
    for moment in 0..moments {
        thread::sleep(Duration::from_millis(random.below(LONGEST)));
        let log = || match &vmm {
            Some(vmm) => format!("{}{}", vmm.out.text(), vmm.err.text()),
            None => format!("{}{}", guest.out.text(), guest.err.text()),
        };
        assert_eq!(request(&control, "pause"), "ok", "moment {moment}: {}", log());
        // The last one stays until its machine is gone: each maps the file of its own.
        let next = files.path(&format!("snap{moment}"));
        assert_eq!(request(&control, &format!("snapshot {}", next.display())), "ok", "moment {moment}");
        match &mut vmm {
            Some(vmm) => {
                vmm.kill();
                text += &vmm.out.text();
            }
            None => {
                guest.signal(Signal::KILL);
                guest.wait_for_exit();
                assert!(guest.out.wait_for_end(LIMIT));
                text += &guest.out.text();
            }
        }
        if moment > 0 {
            fs::remove_file(&snapshot).unwrap();
        }
        snapshot = next;
        vmm = Some(Restored::start(&snapshot, &devices));
        // It runs: else the next moment would be this one.
        assert_eq!(request(&control, "pause"), "ok");
        assert_eq!(request(&control, "resume"), "ok");
    }
    let mut vmm = vmm.unwrap();
    assert!(vmm.out.wait_for("disk is at ", LIMIT), "{}{}", vmm.out.text(), vmm.err.text());
    vmm.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    if !vmm.err.wait_for_end(LIMIT / 3) {
        // A connection whose packets have been lost again and again is not tried again for up to two minutes.
        let connections = process::text(process::command("ss").args(["-tino"])).unwrap();
        println!("still at it: {}connections of the host:\n{connections}", vmm.out.text());
        vmm.err.wait_for_end(LIMIT);
    }
    vmm.ends();
    text += &vmm.out.text();

    let answers = Answers::parse(&text, &names).unwrap_or_else(|what| panic!("{what}: {text}"));
    let connections = echo.join().unwrap();
    let traffic = &answers["traffic"];
    println!("{connections} connections; {traffic}");
    let rounds = |name: &str| -> u64 {
        let count = traffic.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        count.unwrap_or_else(|| panic!("no count of {name}: {traffic}"))
    };
    assert_eq!(rounds("net:"), connections, "every connection is seen by both");
    assert!(rounds("disk:") > 0 && connections > 0 && rounds("vsock:") > 0, "{traffic}");
    // Each count is on the console once, in order: nothing is printed twice or never.
    let counted: Vec<u64> =
        text.split("disk is at ").skip(1).filter_map(|rest| rest.split('.').next()?.parse().ok()).collect();
    assert_eq!(counted, (1..=rounds("disk:")).collect::<Vec<_>>());
    found_none(&answers["log"]);
    assert_eq!(hash_in_ext4(&image, "/last"), answers["hash"], "the guest and the host read the same");
}

/// Writes files and reads them back, sends data over TCP and receives it back, sends data to a program of the host, and
/// prints, until a line is typed.
fn under_load_guest(tap: &Tap, listener: &TcpListener, data: &[u8]) -> Guest {
    let (host, port) = (&tap.host, listener.local_addr().unwrap().port());
    let traffic = format!(
        r#"sum=$(sha256sum </data)
        right() {{ [ "$2" = "$sum" ] || echo "$1: wrong: $2" >>/run/wrong; }}
        disk() {{
            n=0
            until [ -e /run/stop ]; do
                n=$((n + 1))
                dd if=/data of=/mnt/$((n % 8)) bs=16k conv=fsync 2>/dev/null
                echo 3 >/proc/sys/vm/drop_caches
                right disk "$(sha256sum </mnt/$((n % 8)))"
                echo "disk is at $n."
            done
            echo "disk: $n"
        }}
        net() {{
            n=0
            until [ -e /run/stop ]; do
                right net "$(nc {host} {port} </data | sha256sum)"
                n=$((n + 1))
            done
            nc {host} {port} </dev/null
            echo "net: $n"
        }}
        sockets() {{
            n=0
            until [ -e /run/stop ]; do
                # A connection ends with the process of its other side.
                /vsock call 1000 1 65536 >/dev/null 2>&1 || :
                n=$((n + 1))
            done
            echo "vsock: $n"
        }}
        mount -t ext4 /dev/vda /mnt
        printf 'traffic\n'
        disk & net & sockets &
        read -r line </dev/console
        touch /run/stop
        wait
        cp /data /mnt/last
        umount /mnt
        [ ! -e /run/wrong ] || {{ cat /run/wrong; false; }}"#
    );
    Guest::new()
        .program("/data", data.to_vec())
        .example("vsock")
        .cmdline(&format!("ossature.ip={}/24", tap.guest))
        .run("traffic", &traffic)
        .run("hash", "sha256sum </data")
        // The last is of clocks that do not go on.
        .run("log", &log_of(&["lockup", "I/O error", "unstable"]))
}

/// Longer than a guest takes for a round of its loop, in its own time.
const DOWN: Duration = Duration::from_secs(30);

#[test]
fn a_guest_is_saved_on_a_signal_and_goes_on_here_and_in_two_others() {
    let files = Files::new();
    let snapshot = files.path("guest.snap");
    let script = r#"printf 'counting\n'
        (read -r line </dev/console; touch /run/stop) &
        n=0
        until [ -e /run/stop ]; do
            n=$((n + 1))
            read -r uptime rest </proc/uptime
            echo "at $n uptime $uptime."
            usleep 50000
        done
        echo "counted $n""#;
    let mut guest = Guest::new()
        .args(["--memory", "128M", "--snapshot-on", "USR1", "--snapshot-to"])
        .args([&snapshot])
        .run("count", script)
        .run("log", &log_of(&["lockup"]))
        .start();
    let names = guest.take_names();
    guest.wait_for("at 10 ");
    guest.signal(Signal::USR1);
    assert!(guest.err.wait_for("guest.snap written\n", LIMIT), "{}{}", guest.out.text(), guest.err.text());
    let last = |text: &str| -> u64 {
        let lines = text.rsplit("at ");
        lines.into_iter().find_map(|line| line.split(" uptime").next()?.parse().ok()).unwrap()
    };
    let at = last(&guest.out.text());
    guest.wait_for(&format!("at {} ", at + 10));
    guest.type_in("\n");
    let ended = guest.wait();
    ended.expect(0);
    assert!(ended.out.contains(&format!("counted {}", last(&ended.out))), "{ended}");

    // As if the host had been busy with something else.
    thread::sleep(DOWN);
    let mut machines = [(); 2].map(|()| Restored::start(&snapshot, &[]));
    let mut goes_on = Vec::new();
    for machine in &machines {
        assert!(machine.out.wait_for("uptime", LIMIT), "{}", machine.err.text());
    }
    for machine in &mut machines {
        assert!(machine.out.wait_for(&format!("at {} ", at + 5), LIMIT), "{}", machine.out.text());
        machine.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        machine.ends();
        let text = machine.out.text();
        // What was on its way when the guest was saved, and the first line that is new.
        let number = |text: &str| text.strip_prefix("at ")?.split(" uptime").next()?.parse::<u64>().ok();
        let line = text.split_inclusive('\n').next().unwrap();
        let fragment = if number(line).is_some() { "" } else { line };
        let next = number(&text[fragment.len()..]).unwrap_or_else(|| panic!("no line is next: {text}"));
        let place = ended.out.find(&format!("at {next} ")).unwrap();
        let before = ended.out[..place].strip_suffix(fragment);
        let whole = format!("{}{text}", before.expect("the same bytes were on their way here"));
        goes_on.push((fragment.to_owned(), next));
        let answers = Answers::parse(&whole, &names).unwrap_or_else(|what| panic!("{what}: {whole}"));
        // Not that its TSC is stable: an emulated host takes milliseconds from writing the clock to writing the TSC.
        found_none(&answers["log"]);
        let uptimes = answers["count"].split("uptime ").skip(1);
        let uptime = |rest: &str| rest.split_whitespace().next()?.trim_end_matches('.').parse().ok();
        let uptimes: Vec<f64> = uptimes.filter_map(uptime).collect();
        assert!(uptimes.len() > 10, "{}", &answers["count"]);
        let gap = uptimes.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
        assert!(
            gap < DOWN.as_secs_f64() && uptimes.is_sorted(),
            "its clock has jumped by {gap} s: {uptimes:?}"
        );
    }
    assert_eq!(goes_on[0], goes_on[1], "both go on where the guest was saved");
    // What they were restored from is as it was.
    Snapshot::open(&snapshot).unwrap().verify_memory().unwrap();
}

#[test]
fn a_snapshot_for_which_there_is_no_room_leaves_nothing_and_the_guest_goes_on() {
    let files = Files::new();
    let (control, small) = (files.path("control"), files.path("small"));
    fs::create_dir(&small).unwrap();
    let path = small.to_str().unwrap();
    process::output(process::command("mount").args(["-t", "tmpfs", "-o", "size=1M", "none", path])).unwrap();
    let mut guest =
        Guest::new().args(["--memory", "128M", "--control", &files.text("control")]).hold().start();
    let answer = guest.while_held(|_| request(&control, &format!("snapshot {path}/guest.snap")));
    let left = fs::read_dir(&small).unwrap().count();
    process::output(process::command("umount").arg(path)).unwrap();
    assert!(answer.starts_with("error: ") && answer.contains("No space left"), "{answer}");
    assert_eq!(left, 0, "files are left");
    guest.wait().expect(0);
}

/// Rewrites files in memory and reads them back on two vCPUs, and prints a count, until a line is typed.
const REWRITES: &str = r#"sum() { sha256sum <$1 | cut -c1-64; }
    work() {
        n=0
        until [ -e /run/stop ]; do
            n=$((n + 1))
            { echo "$1 $n"; head -c 3000000 /data; } >/run/$1.$((n % 4))
            sum /run/$1.$((n % 4)) >/run/$1.$((n % 4)).sum
            before=$(((n + 1) % 4))
            [ ! -e /run/$1.$before ] || [ "$(sum /run/$1.$before)" = "$(cat /run/$1.$before.sum)" ] || echo "$1: wrong at $n" >>/run/wrong
            echo "$1 is at $n."
        done
    }
    printf 'working\n'
    work a & work b &
    read -r line </dev/console
    touch /run/stop
    wait
    [ ! -e /run/wrong ] || { cat /run/wrong; false; }"#;

#[test]
fn a_guest_under_load_is_saved_while_it_runs_and_goes_on_with_memory_on_demand() {
    let files = Files::new();
    let control = files.path("control");
    let mut data = vec![0; 3 << 20];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut data).unwrap();
    let mut guest = Guest::new()
        .program("/data", data)
        .args(["--memory", "256M", "--cpus", "2", "--control", &files.text("control")])
        .run("work", REWRITES)
        .run("log", &log_of(&["lockup", "BUG"]))
        .start();
    let names = guest.take_names();
    guest.wait_for("a is at 3.");
    for n in 0..2 {
        let answer = request(&control, &format!("snapshot-live {}", files.text(&format!("snap{n}"))));
        println!("{answer}");
        assert!(answer.starts_with("ok. The guest was paused for "), "{answer}");
        let more = guest.out.text().matches(" is at ").count() + 3;
        let since = Instant::now();
        while guest.out.text().matches(" is at ").count() < more {
            assert!(since.elapsed() < LIMIT, "it does not go on: {}", guest.out.text());
            thread::sleep(Duration::from_millis(20));
        }
    }
    guest.type_in("\n");
    let ended = guest.wait();
    ended.expect(0);
    let check = |text: &str| {
        let answers = Answers::parse(text, &names).unwrap_or_else(|what| panic!("{what}: {text}"));
        found_none(&answers["log"]);
    };
    check(&ended.out);

    // They go on where the guest was, the first time and again, with their memory on demand.
    for n in 0..2 {
        let snapshot = files.path(&format!("snap{n}"));
        Snapshot::open(&snapshot).unwrap().verify_memory().unwrap();
        let mut faults = Vec::new();
        for _ in 0..2 {
            let flags = args(&["--on-demand", "--control", &files.text("control")]);
            let mut vmm = Restored::start(&snapshot, &flags);
            let since = Instant::now();
            while vmm.out.text().matches(" is at ").count() < 6 {
                let text = || format!("{}{}", vmm.out.text(), vmm.err.text());
                assert!(since.elapsed() < LIMIT, "it does not go on: {}", text());
                thread::sleep(Duration::from_millis(20));
            }
            let set = format!("working-set {}", files.text(&format!("snap{n}.ws")));
            let answer = request(&control, &set);
            println!("snapshot {n}: {answer}");
            let count = answer.strip_suffix(" faults").and_then(|rest| rest.rsplit(' ').next()?.parse().ok());
            faults.push(count.unwrap_or_else(|| panic!("{answer}")));
            vmm.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
            vmm.ends();
            // Its console from its boot on: what came before is the first guest's.
            let text = vmm.out.text();
            assert!(!text.contains("wrong at") && text.contains(" is at "), "{text}");
        }
        let [lazy, prefetched]: [u64; 2] = faults.try_into().unwrap();
        assert!(lazy > 10 && prefetched < lazy / 2, "{lazy} faults, and {prefetched} with the working set");
    }
}
