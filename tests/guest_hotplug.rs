//! Devices come and go on PCI while the guest runs and works, and its ACPI tells it.

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use support::control::{answer, ask};
use support::{ACPI, Guest, LIMIT, Running, TURNS, Transport, log_of};

const BLOCK: u64 = 4096;

/// A guest on PCI whose first disk is busy from beginning to end.
fn busy_guest(folder: &Path, job: &str) -> Running {
    let image = folder.join("load");
    File::create(&image).unwrap().set_len(16 << 20).unwrap();
    let load = "while :; do dd if=/dev/vda of=/dev/null bs=64k iflag=direct 2>/dev/null; done & load=$!";
    let guest = Guest::new().args(["--transport", "pci", "--cpus", "2"]).disk(&image, "");
    let guest = guest.args(ACPI).control(&folder.join("control"));
    let job = format!("echo the job begins\n{job}");
    let running = guest.run("job", &format!("{load}\n{job}\nkill $load")).run("log", &log()).start();
    running.wait_for("the job begins");
    running
}

/// What the guest's kernel says of its first device.
const FIRST_DEVICE: &str = "virtio-pci";
/// What it is not to say from then on.
const ALARMS: [&str; 5] = ["BUG", "WARNING", "Oops", "blocked for more", "timed out"];

fn log() -> String {
    log_of(&[&[FIRST_DEVICE], &ALARMS[..]].concat())
}

/// What the guest's kernel said while devices came and went.
fn expect_calm(log: &str) {
    // Before its first device it warns of what an emulated processor has.
    let log = log.get(log.find(FIRST_DEVICE).unwrap()..).unwrap();
    for word in ALARMS {
        assert!(!log.contains(word), "{word}: {log}");
    }
}

#[test]
fn disks_come_and_go_under_load_and_nothing_that_was_completed_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    // Blocks are written one after the other, each durable before it is counted, until the disk is gone: then dd makes a
    // file of its name. Linux makes the name of a new disk before the disk can be opened.
    let job = format!(
        "for i in $(seq 1 {TURNS}); do\n\
         until dd if=/dev/vdb of=/dev/null bs={BLOCK} count=1 2>/dev/null; do sleep 0.05; done\n\
         n=0; while printf '%08d' $n | dd of=/dev/vdb bs={BLOCK} seek=$n conv=notrunc,fsync 2>/run/dd && \
         [ -b /dev/vdb ]; do n=$((n + 1)); echo \"turn $i wrote $n\"; [ $n -lt 200 ] || break; done\n\
         echo \"turn $i ends: $(head -n 1 /run/dd)\"\n\
         until [ ! -b /dev/vdb ]; do sleep 0.05; done\n\
         [ ! -f /dev/vdb ] || rm /dev/vdb\n\
         echo \"turn $i ended after $n\"\n\
         done"
    );
    let running = busy_guest(folder.path(), &job);
    let control = folder.path().join("control");
    let mut images = Vec::new();
    for turn in 1..=TURNS {
        let image = folder.path().join(format!("disk{turn}"));
        File::create(&image).unwrap().set_len(1 << 20).unwrap();
        ask(&control, &format!("add disk path={},id=plug", image.display()));
        running.wait_for(&format!("turn {turn} wrote 2"));
        ask(&control, "remove plug");
        running.wait_for(&format!("turn {turn} ended after"));
        images.push(image);
    }
    let ended = running.wait();
    ended.expect(0);
    let answers = ended.answers();
    for (turn, image) in (1..).zip(images) {
        let text = &answers["job"];
        let counted = text.split(&format!("turn {turn} ended after ")).nth(1).unwrap();
        let counted: u64 = counted.split_whitespace().next().unwrap().parse().unwrap();
        assert!(counted >= 2);
        let file = File::open(&image).unwrap();
        for n in 0..counted {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, n * BLOCK).unwrap();
            assert_eq!(bytes, format!("{n:08}").as_bytes(), "turn {turn}");
        }
    }
    expect_calm(&answers["log"]);
}

#[test]
fn network_cards_and_sockets_come_and_go_under_load() {
    let folder = tempfile::tempdir().unwrap();
    let drivers = "/sys/bus/virtio/drivers";
    let [net, vsock] = ["virtio_net", "*vsock*"].map(|driver| format!("has {drivers}/{driver}/virtio*"));
    // The shell itself looks: a process takes the emulator as long as what is waited for.
    let job = format!(
        "has() {{ [ -e $1 ]; }}\n\
         for i in $(seq 1 {TURNS}); do\n\
         until {net} && {vsock}; do sleep 0.05; done\n\
         ip link set eth0 up; read -r address </sys/class/net/eth0/address; echo \"turn $i: $address\"\n\
         until ! {net} && ! {vsock}; do sleep 0.05; done\n\
         echo \"turn $i: gone\"\n\
         done"
    );
    let running = busy_guest(folder.path(), &job);
    let control = folder.path().join("control");
    let network = folder.path().join("network");
    let listener = UnixListener::bind(&network).unwrap();
    for turn in 1..=TURNS {
        ask(&control, &format!("add net socket={},mac=52:54:00:00:00:{turn:02x}", network.display()));
        let (peer, _) = listener.accept().unwrap();
        let sockets = folder.path().join("vsock");
        ask(&control, &format!("add vsock cid={},socket={}", turn + 2, sockets.display()));
        running.wait_for(&format!("turn {turn}: 52:54:00:00:00:{turn:02x}"));
        assert!(sockets.exists());
        ask(&control, &format!("remove net{}", turn - 1));
        ask(&control, "remove vsock");
        drop(peer);
        assert!(!sockets.exists(), "the device has gone with its socket");
        running.wait_for(&format!("turn {turn}: gone"));
    }
    let ended = running.wait();
    ended.expect(0);
    expect_calm(&ended.answers()["log"]);
}

#[test]
fn a_disk_that_the_guest_ejects_unasked_is_forgotten_and_its_name_is_free() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    File::create(&image).unwrap().set_len(1 << 20).unwrap();
    let job = "for turn in 1 2; do
        until [ -b /dev/vdb ]; do sleep 0.05; done
        until [ $(cat /sys/block/vdb/size) = $((2048 + turn * 2048)) ]; do sleep 0.05; done
        function=$(basename $(readlink -f /sys/block/vdb/device/..))
        for slot in /sys/bus/pci/slots/*; do
            read -r address <$slot/address
            [ $address != ${function%.*} ] || echo 0 >$slot/power
        done
        until [ ! -b /dev/vdb ]; do sleep 0.05; done
        done";
    let control = folder.path().join("control");
    let load = folder.path().join("first");
    File::create(&load).unwrap().set_len(1 << 20).unwrap();
    let guest = Guest::new().transport(Transport::Pci).args(ACPI).control(&control).disk(&load, "");
    let running = guest.run("begins", "echo the job begins").run("job", job).run("log", &log()).start();
    running.wait_for("the job begins");
    let add = format!("add disk path={},id=plug", image.display());
    for turn in 1..=2 {
        ask(&control, &add);
        ask(&control, &format!("resize plug {}M", 1 + turn));
        // When the guest has ejected it.
        let limit = Instant::now() + LIMIT;
        let answer = loop {
            let answer = answer(&control, &format!("resize plug {}M", 1 + turn));
            if !answer.starts_with("ok") {
                break answer;
            }
            assert!(Instant::now() < limit, "{}", running.out.text());
            sleep(Duration::from_millis(50));
        };
        assert!(answer.contains("there is no disk \"plug\""), "{answer}");
    }
    let ended = running.wait();
    ended.expect(0);
    expect_calm(&ended.answers()["log"]);
}

#[test]
fn what_cannot_be_done_is_answered_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut running = {
        let guest = Guest::new().control(&folder.path().join("control"));
        guest.hold().start()
    };
    let control = folder.path().join("control");
    running.while_held(|_| {
        for (request, part) in [
            ("add disk path=d", "--transport pci"),
            ("add disk colour=red", "colour"),
            ("remove rng", "--transport pci"),
            ("resize nobody 1M", "no disk \"nobody\""),
            ("resize nobody huge", "such as 512M"),
            ("sing", "is no request"),
            ("", "is no request"),
        ] {
            let answer = answer(&control, request);
            assert!(answer.starts_with("error: ") && answer.contains(part), "{request}: {answer}");
        }
        for request in ["pause", "resume"] {
            ask(&control, request);
        }
    });
    running.wait().expect(0);
    assert!(!control.exists());
}
