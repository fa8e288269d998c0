//! Network cards and sockets that the host's kernel serves (vhost): data both ways on either transport, pauses in the
//! middle of it, reboots, and devices that come and go.

mod support;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use support::{Guest, LIMIT, Running, Tap, Transport, accept};
use tempfile::TempDir;
use xtask::process;

const SOCAT: &str = "/usr/bin/socat";
const CID: u32 = 77;
const SIZE: usize = 4 << 20;
/// Pauses while data flows.
const PAUSES: usize = 4;

fn data(folder: &TempDir, size: usize) -> (Vec<u8>, String) {
    let mut data = vec![0; size];
    File::open("/dev/urandom").unwrap().read_exact(&mut data).unwrap();
    let file = folder.path().join("data");
    fs::write(&file, &data).unwrap();
    (data, support::hash_of(&format!("cat {}", process::quote_path(&file))))
}

fn hash_of_file(path: &Path) -> String {
    support::hash_of(&format!("cat {}", process::quote_path(path)))
}

/// Asks for something on the control socket; it has to be done.
fn ask(socket: &Path, request: &str) {
    // The VMM makes it when it starts.
    let since = Instant::now();
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(e) => assert!(since.elapsed() < LIMIT, "{}: {e}", socket.display()),
        }
        thread::sleep(Duration::from_millis(50));
    };
    writeln!(stream, "{request}").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    assert!(answer.starts_with("ok"), "{request}: {answer}");
}

fn pause_and_resume(control: &Path) {
    ask(control, "pause");
    ask(control, "resume");
}

/// The vhost devices that this process has open.
fn vhost_devices(guest: &Running) -> usize {
    let descriptors = fs::read_dir(format!("/proc/{}/fd", guest.pid())).unwrap().flatten();
    let files = descriptors.filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    files.filter(|file| file.to_string_lossy().starts_with("/dev/vhost-")).count()
}

/// Bytes of this process that have gone through system calls.
fn bytes_through(guest: &Running) -> u64 {
    let io = guest.proc("io");
    let of = |name: &str| {
        let line = io.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    of("rchar:") + of("wchar:")
}

#[test]
fn data_comes_and_goes_through_pauses_by_vhost_net() {
    net(Transport::Mmio);
}

#[test]
fn data_comes_and_goes_through_pauses_by_vhost_net_on_pci() {
    net(Transport::Pci);
}

fn net(transport: Transport) {
    let tap = Tap::new();
    let listener = tap.listen();
    let (host, port) = (&tap.host, listener.local_addr().unwrap().port());
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control");
    let (data, hash) = data(&folder, SIZE);
    let mut guest = Guest::new()
        .transport(transport)
        .args(["--net", &format!("tap={},vhost=on", tap.name)])
        .args(["--control".as_ref(), control.as_os_str()])
        .cmdline(&format!("ossature.ip={}/24", tap.guest))
        .run("ping", &format!("ping -c 3 -s 1400 {host}"))
        .run("receive", &format!("nc {host} {port} </dev/null >/dev/shm/data; sha256sum </dev/shm/data"))
        .run("send", &format!("nc {host} {port} </dev/shm/data"))
        .run(
            "link",
            &format!(
                "wait='until [ $(cat /sys/class/net/eth0/carrier)'
                echo cable is in; eval \"$wait = 0 ]; do sleep 0.1; done\"
                ! ping -c 1 -W 1 {host} >/dev/null; echo nothing arrives
                eval \"$wait = 1 ]; do sleep 0.1; done\"; nc {host} {port} </dev/null"
            ),
        )
        .hold()
        .start();
    let (mut stream, _) = accept(&listener);
    let before = bytes_through(&guest);
    for part in data.chunks(SIZE / PAUSES) {
        stream.write_all(part).unwrap();
        pause_and_resume(&control);
    }
    drop(stream);
    let (mut stream, _) = accept(&listener);
    let mut back = Vec::new();
    while back.len() < SIZE {
        let part = (&mut stream).take((SIZE / PAUSES) as u64).read_to_end(&mut back).unwrap();
        assert!(part > 0, "{} bytes came back", back.len());
        pause_and_resume(&control);
    }
    drop(stream);
    assert!(back == data, "not the bytes that were sent");
    let through = bytes_through(&guest) - before;
    assert!(through < SIZE as u64 / 4, "{through} bytes have passed through the VMM");
    guest.wait_for("cable is in");
    ask(&control, "link net0 down");
    guest.wait_for("nothing arrives");
    ask(&control, "link net0 up");
    accept(&listener).0.write_all(b"data over the link").unwrap();
    guest.while_held(|guest| assert_eq!(vhost_devices(guest), 1));
    let ended = guest.wait();
    ended.expect(0);
    assert_eq!(ended.err, "");
    let answers = ended.answers();
    assert!(answers["ping"].contains("3 packets transmitted, 3 packets received"), "{}", &answers["ping"]);
    assert_eq!(&answers["receive"], hash);
    assert!(answers["link"].ends_with("data over the link"), "{}", &answers["link"]);
}

/// Receives what the guest sends to a port of the host.
fn vsock_server(port: u32, to: &Path) -> Child {
    let mut server = process::command(SOCAT);
    server.args(["-u", &format!("VSOCK-LISTEN:{port}")]).arg(format!("CREATE:{}", to.display()));
    server.spawn().unwrap()
}

/// Sends a file to a port of the guest, as soon as the guest listens there.
fn vsock_send(port: u32, from: &Path) {
    let since = Instant::now();
    loop {
        let mut client = process::command(SOCAT);
        client.arg("-u").arg(format!("OPEN:{}", from.display()));
        client.arg(format!("VSOCK-CONNECT:{CID}:{port}")).stderr(Stdio::null());
        if client.status().unwrap().success() {
            return;
        }
        assert!(since.elapsed() < LIMIT, "the guest does not listen at {port}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn socat_on_either_side_of_vhost_vsock() {
    vsock(Transport::Mmio);
}

#[test]
fn socat_on_either_side_of_vhost_vsock_on_pci() {
    vsock(Transport::Pci);
}

fn vsock(transport: Transport) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (control, from_guest) = (path("control"), path("from-guest"));
    let (_, hash) = data(&folder, SIZE);
    let mut server = vsock_server(1000, &from_guest);
    let mut guest = Guest::new()
        .transport(transport)
        .args(["--vsock", &format!("cid={CID},vhost")])
        .args(["--control".as_ref(), control.as_os_str()])
        .host_program(SOCAT)
        .run("made", &format!("head -c {SIZE} /dev/urandom >/dev/shm/data; sha256sum </dev/shm/data"))
        .run("call", &format!("{SOCAT} -u OPEN:/dev/shm/data VSOCK-CONNECT:2:1000"))
        .run("refused", &format!("! {SOCAT} -u OPEN:/dev/null VSOCK-CONNECT:2:1001"))
        .run("serve", &format!("{SOCAT} -u VSOCK-LISTEN:2000 CREATE:/dev/shm/got; sha256sum </dev/shm/got"))
        .hold()
        .start();
    // However long both ways take.
    thread::scope(|scope| {
        let (both_ways, done) = mpsc::channel::<()>();
        scope.spawn(move || {
            loop {
                pause_and_resume(&control);
                match done.recv_timeout(Duration::from_millis(300)) {
                    Err(RecvTimeoutError::Timeout) => (),
                    _ => return,
                }
            }
        });
        assert!(server.wait().unwrap().success());
        vsock_send(2000, &path("data"));
        drop(both_ways);
    });
    guest.while_held(|_| ());
    let ended = guest.wait();
    ended.expect(0);
    assert_eq!(ended.err, "");
    let answers = ended.answers();
    assert_eq!(&answers["made"], hash_of_file(&from_guest));
    assert_eq!(&answers["serve"], hash);
}

#[test]
fn a_guest_that_reboots_has_its_devices_again() {
    const STARTS: usize = 3;
    let tap = Tap::new();
    let listener = tap.listen();
    let (host, port) = (&tap.host, listener.local_addr().unwrap().port());
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    fs::write(&image, [0; 4096]).unwrap();
    let (data, hash) = data(&folder, 256 << 10);
    let job = format!(
        "n=$(($(head -c 1 /dev/vda | tr '\\0' 0) + 1))
        printf $n | dd of=/dev/vda conv=notrunc,fsync 2>/dev/null
        nc {host} {port} </dev/null | sha256sum
        {SOCAT} -u VSOCK-LISTEN:2000 STDOUT | sha256sum
        [ $n = {STARTS} ] || reboot -f"
    );
    let guest = Guest::new()
        .disk(&image, "")
        .args(["--net", &format!("tap={},vhost", tap.name), "--vsock", &format!("cid={CID},vhost")])
        .args(["--on-reset", "restart"])
        .cmdline(&format!("ossature.ip={}/24", tap.guest))
        .host_program(SOCAT)
        .run("job", &job)
        .start();
    for _ in 0..STARTS {
        accept(&listener).0.write_all(&data).unwrap();
        vsock_send(2000, &folder.path().join("data"));
    }
    let ended = guest.wait();
    ended.expect(0);
    assert_eq!(ended.err, "");
    assert_eq!(ended.out.matches(&hash).count(), 2 * STARTS, "{ended}");
}

#[test]
fn devices_come_and_go() {
    const TIMES: usize = 4;
    let tap = Tap::new();
    let listener = tap.listen();
    let (host, port) = (&tap.host, listener.local_addr().unwrap().port());
    let folder = tempfile::tempdir().unwrap();
    let control = folder.path().join("control");
    let (data, hash) = data(&folder, 256 << 10);
    let drivers = "/sys/bus/virtio/drivers";
    let has = |driver: &str| format!("ls {drivers}/{driver} | grep -q ^virtio");
    let (net, vsock) = (has("virtio_net"), has("*vsock*"));
    let job = format!(
        "echo the job begins
        for i in $(seq 1 {TIMES}); do
            until {net} && {vsock}; do sleep 0.05; done
            ip address add {}/24 dev eth0; ip link set eth0 up
            nc {host} {port} </dev/null | sha256sum
            {SOCAT} -u VSOCK-LISTEN:2000 STDOUT | sha256sum
            ping -f {host} >/dev/null 2>&1 &
            echo \"turn $i\"
            while {net} || {vsock}; do sleep 0.05; done
            kill $! || true
        done",
        tap.guest
    );
    let guest = Guest::new()
        .args(["--transport", "pci", "--cpus", "2"])
        .args(["--control".as_ref(), control.as_os_str()])
        .host_program(SOCAT)
        .run("job", &job)
        // Linux warns of what an emulated processor has, too.
        .run(
            "log",
            "dmesg | grep -E 'BUG|WARNING|Oops|blocked for more' | grep -v -i -e spectre -e xstate.c || true",
        )
        .start();
    guest.wait_for("the job begins");
    for turn in 1..=TIMES {
        ask(&control, &format!("add net tap={},vhost", tap.name));
        ask(&control, &format!("add vsock cid={CID},vhost"));
        accept(&listener).0.write_all(&data).unwrap();
        vsock_send(2000, &folder.path().join("data"));
        guest.wait_for(&format!("turn {turn}"));
        assert_eq!(vhost_devices(&guest), 2);
        ask(&control, &format!("remove net{}", turn - 1));
        ask(&control, "remove vsock");
        assert_eq!(vhost_devices(&guest), 0);
    }
    let ended = guest.wait();
    ended.expect(0);
    assert_eq!(ended.err, "");
    let answers = ended.answers();
    assert_eq!(answers["job"].matches(&hash).count(), 2 * TIMES, "{}", &answers["job"]);
    assert_eq!(&answers["log"], "");
}
