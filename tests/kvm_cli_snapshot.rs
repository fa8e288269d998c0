//! `microvm --restore` and `--snapshot-on`: what is refused, with which words and exit code, and what goes on.

mod cli;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cli::{Files, X86_64, kernel, microvm, refuses, run};
use rustix::process::{Pid, Signal, kill_process};

/// Killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let since = Instant::now();
    while !condition() {
        assert!(since.elapsed() < Duration::from_secs(120), "{what} does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Writes a byte to COM1 that is one more each time, and waits for input in between.
fn echo() -> Vec<u8> {
    vec![
        0x66, 0xba, 0xfc, 0x03, 0xb0, 0x03, 0xee, // RTS
        0x66, 0xba, 0xfa, 0x03, 0xb0, 0x07, 0xee, // FIFOs
        0xb1, b'a', // mov cl, 'a'
        0x66, 0xba, 0xfd, 0x03, // L: mov dx, 0x3fd
        0xec, 0xa8, 0x01, 0x74, 0xf7, // in al, dx; test al, 1; jz L
        0x66, 0xba, 0xf8, 0x03, 0xec, // mov dx, 0x3f8; in al, dx
        0x88, 0xc8, 0xee, // mov al, cl; out dx, al
        0xfe, 0xc1, // inc cl
        0xeb, 0xeb, // jmp L
    ]
}

fn request(control: &Path, line: &str) -> String {
    let mut stream = None;
    until("it listens", || {
        stream = UnixStream::connect(control).ok();
        stream.is_some()
    });
    let mut stream = stream.unwrap();
    writeln!(stream, "{line}").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer.trim_end().to_owned()
}

fn start(args: &[&str]) -> Running {
    let mut command = Command::new(microvm());
    command
        .args(args)
        .args(["--log", "off"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Running(command.spawn().unwrap())
}

/// Types a byte, and returns the guest's answer.
fn answer(vmm: &mut Running) -> u8 {
    vmm.0.stdin.as_mut().unwrap().write_all(b".").unwrap();
    let mut byte = [0];
    std::io::Read::read_exact(vmm.0.stdout.as_mut().unwrap(), &mut byte).unwrap();
    byte[0]
}

#[test]
fn c1_flags_of_snapshots_that_make_no_sense_are_wrong_usage() {
    refuses(&["--kernel", "k", "--snapshot-to", "f"], 2, &["--snapshot-on"]);
    refuses(&["--kernel", "k", "--snapshot-on", "USR1"], 2, &["--snapshot-to"]);
    refuses(&["--kernel", "k", "--snapshot-to", "f", "--snapshot-on", "KILL"], 2, &["--snapshot-on", "USR1"]);
    refuses(&["--restore", "f", "--on-reset", "restart"], 2, &["--on-reset restart", "--kernel"]);
    refuses(&["--restore", "f", "--kernel", "k", "--map-kernel"], 2, &["--map-kernel", "--restore"]);
    refuses(&["--kernel", "k", "--on-demand"], 2, &["--restore"]);
}

#[test]
fn c3_files_that_are_no_snapshots_are_named() {
    let files = Files::new();
    refuses(&["--restore", "/no/such/file"], 1, &["--restore /no/such/file: ", "No such file"]);
    refuses(&["--restore", "/dev/null"], 1, &["--restore /dev/null: it is no snapshot"]);
    let text = files.with("text", b"OSSASNA");
    refuses(&["--restore", &text], 1, &[&text, "it is no snapshot"]);
    let cut = files.with("cut", b"OSSASNAP\x01\0");
    refuses(&["--restore", &cut], 1, &[&cut, "truncated: 10 bytes"]);
    let mut newer = b"OSSASNAP\x09\0".to_vec();
    newer.resize(100, 0);
    let newer = files.with("newer", &newer);
    refuses(&["--restore", &newer], 1, &[&newer, "version 9 of the format; known are versions up to 3"]);
}

#[test]
fn a_machine_goes_on_from_its_file_and_what_does_not_fit_is_said_in_flags() {
    let files = Files::new();
    let path = |name: &str| files.0.path().join(name).to_str().unwrap().to_owned();
    let guest = files.with("guest", &kernel(X86_64, &echo()));
    let disk = files.with("disk", &[0; 4096]);
    let (control, snapshot) = (path("control"), path("with space.snap"));
    let disk = format!("path={disk},id=data");
    let args = ["--kernel", &guest, "--boot", "linux", "--memory", "16M", "--disk", &disk];
    let mut vmm = start(
        &[&args[..], &["--control", &control, "--snapshot-to", &snapshot, "--snapshot-on", "SIGUSR2"]]
            .concat(),
    );
    let control = Path::new(&control);
    assert_eq!((answer(&mut vmm), answer(&mut vmm)), (b'a', b'b'));
    assert_eq!(
        request(control, "snapshot"),
        request(control, "snapshot "),
        "without a path it is no request"
    );
    assert!(request(control, "snapshot /no/such/folder/f").starts_with("error: /no/such/folder/f: "));
    let taken = request(control, &format!("snapshot {guest}"));
    assert!(taken.contains("it exists and is something else"), "{taken}");
    assert!(request(control, "snapshot-live /no/such/folder/f").starts_with("error: /no/such/folder/f: "));
    assert_eq!(
        request(control, "working-set f"),
        "error: its memory does not come on demand: use --on-demand"
    );
    let warned = request(control, &format!("snapshot {snapshot}"));
    assert!(warned.starts_with("ok. ") && warned.contains("changes its disks"), "{warned}");
    assert_eq!(request(control, "pause"), "ok");
    assert_eq!(request(control, &format!("snapshot {snapshot}")), "ok");
    assert_eq!(request(control, "resume"), "ok");
    // On a signal, too, and the guest goes on.
    assert_eq!(answer(&mut vmm), b'c');
    kill_process(Pid::from_child(&vmm.0), Signal::USR2).unwrap();
    let mut said = String::new();
    let mut err = BufReader::new(vmm.0.stderr.take().unwrap());
    until("it says so", || err.read_line(&mut said).unwrap() > 0 && said.contains("with space.snap written"));
    assert!(said.contains("changes its disks"), "{said}");
    assert_eq!(answer(&mut vmm), b'd');
    drop(vmm);

    // What does not fit: by flag, and with the exit code of wrong usage.
    let restore = ["--restore", snapshot.as_str()];
    refuses(&restore, 2, &[&snapshot, "missing: data (--disk path=FILE,id=data)"]);
    let disk_only = [&restore[..], &["--disk", &disk]].concat();
    let with = |more: &[&str], code, parts: &[&str]| refuses(&[&disk_only[..], more].concat(), code, parts);
    with(&["--cpus", "2"], 2, &["--cpus 2", "has 1"]);
    with(&["--memory", "32M"], 2, &["--memory", "16777216 bytes"]);
    with(&["--transport", "pci"], 2, &["--transport", "has mmio"]);
    with(&["--serial", "none"], 2, &["missing: com1 (--serial)"]);
    with(&["--vsock", &format!("cid=3,socket={}", path("vsock"))], 2, &["too much: vsock (--vsock)"]);
    let larger = files.with("larger", &[0; 8192]);
    let other = format!("path={larger},id=data");
    refuses(
        &[&restore[..], &["--disk", &other]].concat(),
        1,
        &[&snapshot, "\"data\"", "sectors of the disk"],
    );

    // What fits: with the least to type, on another file of the same size, and in memory of another kind.
    let copy = files.with("copy", &[0; 4096]);
    let copy = format!("path={copy},id=data");
    let same = ["--cpus", "1", "--memory", "16M", "--transport", "mmio", "--shared-memory"];
    for more in [&["--disk", &disk][..], &["--disk", &copy], &[&["--disk", &disk], &same[..]].concat()] {
        let mut again = start(&[&restore[..], more].concat());
        assert_eq!((answer(&mut again), answer(&mut again)), (b'd', b'e'), "{more:?}");
    }

    // Damage is found before there is a machine.
    let mut bytes = fs::read(&snapshot).unwrap();
    bytes[200] ^= 1;
    let damaged = files.with("damaged", &bytes);
    refuses(&["--restore", &damaged, "--disk", &disk], 1, &[&damaged, "damaged"]);
    let left: Vec<_> =
        fs::read_dir(files.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".part")), "{left:?}");
}

#[test]
fn a_machine_goes_on_by_its_key_and_by_no_other() {
    let files = Files::new();
    let path = |name: &str| files.0.path().join(name).to_str().unwrap().to_owned();
    let guest = files.with("guest", &kernel(X86_64, &echo()));
    let (key, other, short) =
        (files.with("key", &[7; 32]), files.with("other", &[8; 32]), files.with("short", &[7; 31]));
    let (control, snapshot) = (path("control"), path("guest.snap"));
    let args = ["--kernel", &guest, "--boot", "linux", "--memory", "16M", "--snapshot-key"];
    refuses(&[&args[..], &["/no/such/key"]].concat(), 1, &["--snapshot-key /no/such/key: ", "No such file"]);
    refuses(&[&args[..], &[&short]].concat(), 1, &[&short, "a key has 32 bytes, and this is 31 bytes"]);
    let mut vmm = start(&[&args[..], &[&key, "--control", &control]].concat());
    assert_eq!(answer(&mut vmm), b'a');
    assert_eq!(request(Path::new(&control), &format!("snapshot {snapshot}")), "ok");
    drop(vmm);

    let restore = ["--restore", snapshot.as_str()];
    refuses(&restore, 2, &[&snapshot, "it was saved with key", "--snapshot-key"]);
    refuses(&[&restore[..], &["--snapshot-key", &other]].concat(), 1, &[&snapshot, "it was saved with key"]);
    let plain = path("plain.snap");
    for more in [&[][..], &["--on-demand"]] {
        let with_key = ["--snapshot-key", key.as_str(), "--control", &control];
        let mut again = start(&[&restore[..], &with_key, more].concat());
        assert_eq!((answer(&mut again), answer(&mut again)), (b'b', b'c'), "{more:?}");
    }
    let mut bytes = fs::read(&snapshot).unwrap();
    bytes[200] ^= 1;
    let changed = files.with("changed", &bytes);
    let with_key = ["--restore", &changed, "--snapshot-key", &key];
    refuses(&with_key, 1, &[&changed, "not what was saved with this key"]);

    // The example says so, too, and checks it.
    let example = |args: &[&str]| run(Command::new(cli::example("snapshot")).args(args));
    let listed = Command::new(cli::example("snapshot")).args(["list", &snapshot]).output().unwrap();
    let text = String::from_utf8(listed.stdout).unwrap();
    assert!(text.contains("tree: of key ") && text.contains("ossature.tree"), "{text}");
    let (code, text) = example(&["check", &snapshot]);
    assert!(code == 1 && text.contains("it was saved with key"), "{text}");
    let (code, text) = example(&["--key", &key, "merge", &snapshot, &plain]);
    assert_eq!(code, 0, "{text}");
    let (code, text) = example(&["--key", &key, "check", &plain]);
    assert_eq!(code, 0, "{text}");
}

#[test]
fn the_example_shows_all_of_it() {
    let (code, text) = run(&mut Command::new(cli::example("snapshot")));
    assert_eq!(code, 0, "{text}");
    let files = Files::new();
    let none = files.with("none", b"x");
    for word in ["list", "check", "restore"] {
        let (code, text) = run(Command::new(cli::example("snapshot")).args([word, &none]));
        assert_eq!(code, 1, "{text}");
        assert!(text.contains("no snapshot"), "{text}");
    }
    let (code, text) = run(Command::new(cli::example("snapshot")).arg("merge"));
    assert_eq!((code, text.contains("usage: ")), (2, true), "{text}");
}
