//! A network card on a tap: its address, its offloads, and data both ways.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;

use support::{Guest, Tap, accept};
use xtask::process;

const MAC: &str = "02:00:5e:10:20:30";
const SIZE: usize = 64 << 20;
const SOCAT: &str = "/usr/bin/socat";
/// A packet that only segmentation by the other side explains: the tap's MTU is 1500.
const LARGE: usize = 2000;

/// Feature bits of a network device (virtio 1.2, section 5.1.3) that both sides have to agree on: checksums and
/// TCP segmentation by the other side, in both directions; an address; merged receive buffers.
const FEATURES: [usize; 8] = [0, 1, 5, 7, 8, 11, 12, 15];

#[test]
fn data_comes_and_goes_over_a_tap() {
    let tap = Tap::new();
    let listener = tap.listen();
    let port = listener.local_addr().unwrap().port();
    let (host, address) = (&tap.host, &tap.guest);
    let to_guest = tap.capture(&format!("dst host {address} and greater {LARGE}"));
    let from_guest = tap.capture(&format!("src host {address} and greater {LARGE}"));
    let mut guest = Guest::new()
        .args(["--memory", "512M", "--net", &format!("tap={},mac={MAC}", tap.name)])
        .cmdline(&format!("ossature.ip={address}/24"))
        .host_program(SOCAT)
        .run("mac", "cat /sys/class/net/eth0/address")
        .run("features", "cat /sys/class/net/eth0/device/features")
        .run("ping", &format!("ping -c 3 -s 1400 {host}"))
        .run("receive", &format!("nc {host} {port} </dev/null >/dev/shm/data; sha256sum </dev/shm/data"))
        // In pieces that are larger than what goes into a packet, whatever the speed of both sides.
        .run("send", &format!("{SOCAT} -u -b 1048576 OPEN:/dev/shm/data TCP:{host}:{port}"))
        .hold()
        .start();

    let mut data = vec![0; SIZE];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut data).unwrap();
    let (mut stream, peer) = accept(&listener);
    assert_eq!(peer, tap.guest);
    stream.write_all(&data).unwrap();
    drop(stream);
    let (mut stream, _) = accept(&listener);
    let mut back = Vec::with_capacity(SIZE);
    stream.read_to_end(&mut back).unwrap();
    drop(stream);
    assert!(back == data, "{} bytes came back, not those that were sent", back.len());

    let neighbours = guest.while_held(|_| tap.neighbours());
    assert!(neighbours.contains(MAC), "{neighbours}");
    let ended = guest.wait();
    ended.expect(0);
    let answers = ended.answers();
    assert_eq!(&answers["mac"], MAC);
    let features = &answers["features"];
    let missing: Vec<_> = FEATURES.iter().filter(|bit| features.as_bytes()[**bit] != b'1').collect();
    assert!(missing.is_empty(), "features {missing:?} are missing in {features}");
    assert!(answers["ping"].contains("3 packets transmitted, 3 packets received"), "{}", &answers["ping"]);
    assert_eq!(answers["receive"].split_whitespace().next(), Some(&*sha256(&data)));
    for (direction, capture) in [("to", to_guest), ("from", from_guest)] {
        assert!(capture.succeeds(), "no packet of more than {LARGE} bytes {direction} the guest");
    }
}

/// passt connects the guest to a server of its host, without privileges of its own: it gives root up.
#[test]
fn passt_reaches_a_server_without_root() {
    // Something for passt to look like.
    let tap = Tap::new();
    tap.add_default_route();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    // passt becomes nobody.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let (socket, capture) = (folder.path().join("passt"), folder.path().join("net.pcap"));
    let (host, address) = (&tap.host, &tap.guest);
    let mut passt = process::command("passt");
    passt.args(["-f", "-4", "-a", address, "-n", "24", "-g", host, "-i", &tap.name, "-s"]).arg(&socket);
    let mut child = passt.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let said = support::Log::follow(child.stderr.take().unwrap());
    let started = std::time::Instant::now();
    while !socket.exists() {
        assert!(started.elapsed() < support::LIMIT, "passt: {}", said.text());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let net = format!("socket={},mac={MAC},pcap={}", socket.display(), capture.display());
    let guest = Guest::new()
        .args(["--net", &net])
        .cmdline(&format!("ossature.ip={address}/24"))
        .run("features", "cat /sys/class/net/eth0/device/features")
        // passt does not go on with what it sends once the guest has ended its own direction.
        .run(
            "receive",
            &format!(
                "mkfifo /run/open; nc {host} {port} <>/run/open >/dev/shm/data; sha256sum </dev/shm/data"
            ),
        )
        .run("send", &format!("nc {host} {port} </dev/shm/data"))
        .start();
    let mut data = vec![0; 256 << 10];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut data).unwrap();
    let (mut stream, _) = accept(&listener);
    stream.write_all(&data).unwrap();
    drop(stream);
    let mut back = Vec::new();
    accept(&listener).0.read_to_end(&mut back).unwrap();
    assert!(back == data, "{} bytes came back", back.len());
    let ended = guest.wait();
    ended.expect(0);
    let answers = ended.answers();
    assert_eq!(answers["receive"].split_whitespace().next(), Some(&*sha256(&data)));
    assert_eq!(answers["features"].as_bytes()[0], b'0', "no offloads without a header to say so");
    let user = status.lines().find(|line| line.starts_with("Uid:")).unwrap();
    assert!(!user.split_whitespace().skip(1).any(|id| id == "0"), "{user}");
    // The capture is one that others read.
    let tcpdump =
        process::text(process::command("tcpdump").args(["-nqr"]).arg(&capture).args(["tcp"])).unwrap();
    assert!(tcpdump.lines().count() > 100, "{tcpdump}");
    // It ends with its guest, or now.
    let _ = child.kill();
    child.wait().unwrap();
}

fn sha256(data: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(&file, data).unwrap();
    let sum = process::text(process::command("sha256sum").arg(file.path())).unwrap();
    sum.split_whitespace().next().unwrap().to_owned()
}
