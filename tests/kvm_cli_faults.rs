//! What `microvm` does when it is used as people use things: the rows of the list of faults that need no Linux.

mod cli;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use cli::{Files, X86_64, example, kernel, microvm, refuses, run};
use ossature::vmm::Kvm;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::tcgetattr;

/// How long a slow machine may take for anything.
const LIMIT: Duration = Duration::from_secs(120);

#[track_caller]
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < end, "{what} never happened");
        thread::sleep(Duration::from_millis(10));
    }
}

/// mov dx, PORT; mov al, VALUE; out dx, al
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// Power off by ACPI, and no more.
fn power_off() -> Vec<u8> {
    [out(0x600, 0x34), vec![0xf4]].concat()
}

/// Ask the keyboard controller for a reset, and no more.
fn reset() -> Vec<u8> {
    [out(0x64, 0xfe), vec![0xf4]].concat()
}

/// Ready the serial port (RTS, FIFOs), print `r`, wait for a byte, print `g`, power off.
fn waits() -> Vec<u8> {
    // mov dx, 0x3fd; in al, dx; test al, 1; jz to the in
    let wait = vec![0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb];
    [out(0x3fc, 3), out(0x3fa, 7), out(0x3f8, b'r'), wait, out(0x3f8, b'g'), power_off()].concat()
}

/// Print `count` bytes, power off.
fn prints(count: u32) -> Vec<u8> {
    let mut code = vec![0xb9]; // mov ecx, count
    code.extend(count.to_le_bytes());
    code.extend(out(0x3f8, b'x'));
    code.extend([0xff, 0xc9, 0x75, 0xf5]); // dec ecx; jnz to the out's mov
    code.extend(power_off());
    code
}

fn guest(files: &Files, code: &[u8]) -> String {
    files.with("guest", &kernel(X86_64, code))
}

fn command(kernel: &str, args: &[&str]) -> Command {
    let mut command = Command::new(microvm());
    command.args(["--memory", "16M", "--log", "error", "--kernel", kernel]).args(args).stdin(Stdio::null());
    command
}

/// Runs a guest of a few instructions to its end.
#[track_caller]
fn ends(code: &[u8], args: &[&str], expected: i32) -> String {
    let files = Files::new();
    let (code, text) = run(&mut command(&guest(&files, code), args));
    assert_eq!(code, expected, "{args:?}: {text}");
    text
}

#[test]
fn c1_flags_are_on_or_off_and_nothing_is_overwritten_silently() {
    let files = Files::new();
    let image = files.with("image", &[0; 4096]);
    let disk = |options: &str| format!("path={image}{options}");
    let refused = |options: &str, parts: &[&str]| {
        refuses(&["--kernel", "k", "--disk", &disk(options)], 2, parts);
    };
    refused(",readonly=maybe", &["readonly", "on, off, true or false", "maybe"]);
    refused(",readonly=", &["readonly is missing its value"]);
    refused(",readonly,readonly=off", &["readonly is there twice"]);
    refused(",path=other", &["path is there twice"]);
    refused(",", &["unknown key"]);
    refuses(&["--kernel", "k", "--kernel", "l"], 2, &["--kernel", "multiple times"]);
    refuses(&["--kernel", "k", "--console", "--console"], 2, &["--console", "multiple times"]);
    refuses(&["--kernel", "k", "--net", "tap=a,tap=b"], 2, &["tap is there twice"]);

    // Two disks share a file only if neither writes: what a flag means shows in that.
    let guest = guest(&files, &power_off());
    let both =
        |one: &str, other: &str| run(&mut command(&guest, &["--disk", &disk(one), "--disk", &disk(other)])).0;
    assert_eq!(both(",readonly", ",readonly=on"), 0);
    assert_eq!(both(",readonly=true", ",readonly=on,id=two"), 0);
    assert_eq!(both(",readonly", ",readonly=off"), 1);
    assert_eq!(both(",readonly=false", ",readonly"), 1);
}

#[test]
fn c1_any_path_can_be_written() {
    let files = Files::new();
    let guest = guest(&files, &power_off());
    for name in [&b"a,b"[..], b",", b"a,,b=c,", b"readonly", b"\xff\xfe", b" "] {
        let path = files.0.path().join(OsStr::from_bytes(name));
        fs::write(&path, [0; 4096]).unwrap();
        let escaped: Vec<u8> = path
            .as_os_str()
            .as_bytes()
            .iter()
            .flat_map(|&b| if b == b',' { vec![b, b] } else { vec![b] })
            .collect();
        let disk = [b"path=", &escaped[..], b",readonly"].concat();
        let (code, text) = run(command(&guest, &["--disk"]).arg(OsStr::from_bytes(&disk)));
        assert_eq!(code, 0, "{path:?}: {text}");
    }
    let log = files.0.path().join(OsStr::from_bytes(b"log,=\xff"));
    let serial = [b"file=", log.as_os_str().as_bytes()].concat();
    let (code, text) = run(command(&guest, &["--serial"]).arg(OsStr::from_bytes(&serial)));
    assert!(code == 0 && log.exists(), "{text}");
}

#[test]
fn c2_many_disks_share_interrupt_lines() {
    let files = Files::new();
    let guest = guest(&files, &power_off());
    let disks: Vec<String> = (0..64)
        .flat_map(|n| ["--disk".to_owned(), format!("path={}", files.with(&format!("d{n}"), &[0; 512]))])
        .collect();
    let disks: Vec<&str> = disks.iter().map(String::as_str).collect();
    for count in [1, 16, 64] {
        let (code, text) = run(&mut command(&guest, &disks[..2 * count]));
        assert_eq!((code, text.as_str()), (0, ""), "{count} disks");
    }
}

#[test]
fn c5_one_line_warns_of_a_kvm_that_emulates_guests() {
    let files = Files::new();
    let guest = guest(&files, &power_off());
    let (code, text) = run(command(&guest, &[]).args(["--console"]));
    assert_eq!((code, text.as_str()), (0, ""), "errors alone are to be told");
    let mut warns = Command::new(microvm());
    let (code, text) = run(warns.args(["--memory", "16M", "--kernel", &guest]));
    assert_eq!(code, 0, "{text}");
    match Kvm::open().unwrap().emulation().unwrap() {
        Some(_) => {
            assert!(text.starts_with("microvm: warning: this host's KVM emulates"), "{text}");
            assert_eq!(text.lines().count(), 1, "{text}");
        }
        None => assert_eq!(text, ""),
    }
}

/// One end of a pipe that nobody reads.
fn broken_pipe() -> Stdio {
    let (read, write) = std::io::pipe().unwrap();
    drop(read);
    write.into()
}

#[test]
fn e3_printing_to_nobody_is_no_panic_and_the_exit_code_is_right() {
    let code = |command: &mut Command| command.stdin(Stdio::null()).status().unwrap().code();
    let files = Files::new();
    let (off, resets) = (guest(&files, &power_off()), files.with("reset", &kernel(X86_64, &reset())));
    for (kernel, expected) in [("/nonexistent", 1), (off.as_str(), 0), (resets.as_str(), 3)] {
        let mut command = command(kernel, &["--boot-timer"]);
        assert_eq!(code(command.stdout(broken_pipe()).stderr(broken_pipe())), Some(expected), "{kernel}");
    }
    let usage = code(Command::new(microvm()).arg("--bogus").stdout(broken_pipe()).stderr(broken_pipe()));
    assert_eq!(usage, Some(2));
    assert_eq!(code(Command::new(microvm()).arg("--help").stdout(broken_pipe())), Some(0));
    for name in ["embed", "custom_device"] {
        let code = code(Command::new(example(name)).stdout(broken_pipe()).stderr(broken_pipe()));
        assert_eq!(code, Some(1), "{name}");
    }
}

#[test]
fn e3_a_last_message_to_a_pipe_that_nobody_reads_does_not_hang() {
    let files = Files::new();
    let guest = guest(&files, &[0x0f, 0x0b]);
    let (_reader, writer) = std::io::pipe().unwrap();
    // Full: with a description of its own that does not wait.
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&writer));
    let mut filler: File = open(&path, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()).unwrap().into();
    for piece in [&[0; 4096][..], &[0]] {
        while filler.write(piece).is_ok() {}
    }
    for (args, code) in [(&["--boot-timer"][..], 1), (&["--cpus", "100000"], 2), (&["--initrd", "/none"], 1)]
    {
        let mut command = command(&guest, args);
        let mut running =
            Running(command.stdout(Stdio::null()).stderr(writer.try_clone().unwrap()).spawn().unwrap());
        assert_eq!(running.wait().code(), Some(code), "{args:?}");
    }
}

/// Runs with no file larger than a few KiB.
fn limited(kernel: &str, args: &[&str]) -> (i32, String) {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -f 2 && exec \"$0\" \"$@\""]).arg(microvm());
    run(command.args(["--memory", "16M", "--log", "error", "--kernel", kernel]).args(args))
}

#[test]
fn e4_e5_a_serial_file_at_its_limit_is_one_line_and_no_death() {
    let files = Files::new();
    let guest = guest(&files, &prints(6000));
    let log = files.0.path().join("log");
    let (code, text) = limited(&guest, &["--serial", &format!("file={}", log.display())]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    for part in ["microvm: device \"com1\"", "output", "File too large"] {
        assert!(text.contains(part), "{part:?} is not in {text:?}");
    }
    let written = fs::metadata(&log).unwrap().len();
    assert!((1024..=2048).contains(&written), "{written}");
}

#[test]
fn e4_a_full_device_is_one_line_with_its_name() {
    let text = ends(&prints(200), &["--serial", "file=/dev/full"], 0);
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("device \"com1\"") && text.contains("No space left on device"), "{text}");
}

#[test]
fn e5_shared_memory_above_the_limit_is_a_clear_error() {
    let files = Files::new();
    let (code, text) = limited(&guest(&files, &power_off()), &["--shared-memory"]);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("guest memory of 16 MiB") && text.contains("(ulimit -f)"), "{text}");
}

#[test]
fn t6_a_triple_fault_is_a_crash_or_a_reset() {
    let ud2 = [0x0f, 0x0b];
    for args in [&[][..], &["--on-triple-fault", "crash"]] {
        let text = ends(&ud2, args, 1);
        assert!(text.contains("the guest crashed") && text.contains("triple fault"), "{text}");
    }
    assert_eq!(ends(&ud2, &["--on-triple-fault", "reset"], 3), "");
    // The registers are there for those who want them.
    let files = Files::new();
    let mut tells = Command::new(microvm());
    tells.args(["--memory", "16M", "--log", "info", "--on-triple-fault", "reset", "--kernel"]);
    let (code, told) = run(tells.arg(guest(&files, &ud2)));
    assert_eq!(code, 3, "{told}");
    assert!(told.contains("triple fault") && told.contains("rip"), "{told}");
    refuses(
        &["--kernel", "k", "--on-triple-fault", "again"],
        2,
        &["--on-triple-fault <reset|crash>", "again"],
    );
}

#[test]
fn t7_g10_the_exit_code_tells_a_reset_from_the_guests_power_off() {
    assert_eq!(ends(&power_off(), &[], 0), "");
    assert_eq!(ends(&reset(), &[], 3), "");
    assert_eq!(ends(&reset(), &["--on-reset", "exit"], 3), "");
}

/// A VMM that is killed at the end of the test, whatever happens.
struct Running(Child);

impl Running {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// A line of its status, as the kernel shows it.
    fn status(&self, name: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    }

    fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        until("the end", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn t4_what_was_ignored_at_the_start_stays_ignored() {
    let files = Files::new();
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP INT USR1 && exec \"$0\" \"$@\""]).arg(microvm());
    command.args(["--memory", "16M", "--kernel", &guest(&files, &waits())]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut running = Running(child);
    let mut byte = [0];
    output.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"r", "the guest runs, and the VMM heeds its signals");
    for signal in [Signal::HUP, Signal::INT, Signal::USR1] {
        running.signal(signal);
        // It has been taken, and nothing came of it.
        until("the signal", || u64::from_str_radix(&running.status("ShdPnd:"), 16).unwrap() == 0);
    }
    input.write_all(b"x").unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), running.wait().code()), ("g", Some(0)), "the guest went on to its own end");
}

/// `microvm` with its serial port on a terminal, and the terminal.
fn on_terminal(guest: &str) -> (Running, File, File, PathBuf) {
    started_on_terminal(command(guest, &[]))
}

fn started_on_terminal(mut command: Command) -> (Running, File, File, PathBuf) {
    let mut user: File = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap().into();
    grantpt(&user).and_then(|()| unlockpt(&user)).unwrap();
    let path = PathBuf::from(ptsname(&user, Vec::new()).unwrap().into_string().unwrap());
    let terminal: File = open(&path, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap().into();
    command.stdin(terminal.try_clone().unwrap()).stdout(terminal.try_clone().unwrap());
    let running = Running(command.spawn().unwrap());
    let mut byte = [0];
    user.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"r");
    (running, terminal, user, path)
}

fn modes(terminal: &File) -> String {
    let modes = tcgetattr(terminal).unwrap();
    format!(
        "{:?} {:?} {:?} {:?}",
        modes.input_modes, modes.output_modes, modes.local_modes, modes.control_modes
    )
}

/// The modes of a terminal that nobody has changed.
fn fresh_modes() -> String {
    let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&user).and_then(|()| unlockpt(&user)).unwrap();
    let path = ptsname(&user, Vec::new()).unwrap().into_string().unwrap();
    modes(&open(Path::new(&path), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap().into())
}

#[test]
fn t4_signals_that_end_the_process_leave_the_terminal_as_it_was() {
    let files = Files::new();
    let guest = guest(&files, &waits());
    let deadly = [Signal::ABORT, Signal::USR1, Signal::USR2, Signal::ALARM, Signal::VTALARM, Signal::XCPU];
    for signal in deadly.into_iter().chain([Signal::INT, Signal::HUP, Signal::QUIT]) {
        let (mut running, terminal, _user, _) = on_terminal(&guest);
        assert_ne!(modes(&terminal), fresh_modes(), "the guest has the terminal");
        running.signal(signal);
        let status = running.wait();
        assert_eq!(modes(&terminal), fresh_modes(), "{signal:?}");
        match status.signal() {
            Some(number) => assert_eq!(number, signal.as_raw()),
            None => assert!(!deadly.contains(&signal) && status.code() == Some(0), "{signal:?}: {status}"),
        }
    }
}

#[test]
fn t4_a_vmm_of_other_parts_leaves_its_terminal_as_it_was() {
    let files = Files::new();
    let guest = guest(&files, &waits());
    for signal in [Signal::TERM, Signal::INT, Signal::USR1] {
        let mut command = Command::new(example("rust_vmm"));
        command.args(["--memory", "16", "--kernel", &guest]);
        let (mut running, terminal, _user, _) = started_on_terminal(command);
        assert_ne!(modes(&terminal), fresh_modes(), "the guest has the terminal");
        running.signal(signal);
        if signal == Signal::TERM {
            // The guest does not listen to its power button: it is asked once, and then stopped.
            until("the press", || u64::from_str_radix(&running.status("ShdPnd:"), 16).unwrap() == 0);
            running.signal(signal);
        }
        let status = running.wait();
        assert_eq!(modes(&terminal), fresh_modes(), "{signal:?}: {status}");
        let expected = if signal == Signal::USR1 { Err(signal.as_raw()) } else { Ok(0) };
        assert_eq!(status.signal().map_or(Ok(status.code().unwrap_or(-1)), Err), expected, "{signal:?}");
    }
}

#[test]
fn t4_a_process_that_is_stopped_gives_the_terminal_back_meanwhile() {
    let files = Files::new();
    let (mut running, terminal, mut user, _) = on_terminal(&guest(&files, &waits()));
    let raw = modes(&terminal);
    for _ in 0..2 {
        running.signal(Signal::TSTP);
        until("the stop", || running.status("State:").starts_with('T'));
        assert_eq!(modes(&terminal), fresh_modes());
        running.signal(Signal::CONT);
        until("raw mode", || modes(&terminal) == raw);
    }
    user.write_all(b"x").unwrap();
    assert_eq!(running.wait().code(), Some(0));
    assert_eq!(modes(&terminal), fresh_modes());
}

#[test]
fn t8_the_socket_of_a_killed_vmm_is_replaced_and_a_live_one_named() {
    let files = Files::new();
    let guest = guest(&files, &waits());
    let socket = files.0.path().join("socket");
    let serial = format!("socket={}", socket.display());
    let start = || Running(command(&guest, &["--serial", &serial]).spawn().unwrap());
    let first = start();
    until("the socket", || UnixStream::connect(&socket).is_ok());
    let (code, text) = run(&mut command(&guest, &["--serial", &serial]));
    assert_eq!(code, 1, "{text}");
    assert!(text.contains(&serial) && text.contains("another process listens on this socket"), "{text}");
    drop(first);
    assert!(socket.exists(), "what is killed leaves its socket");
    // A signal that ends the process by itself ends it after its files.
    for signal in [Signal::TERM, Signal::USR1] {
        let mut next = start();
        until("the next one's socket", || UnixStream::connect(&socket).is_ok());
        // From when on it heeds signals, it does not say: until then, they end it.
        until("heeding", || u64::from_str_radix(&next.status("SigBlk:"), 16).unwrap() & 1 << 14 != 0);
        next.signal(signal);
        // Two of a kind that wait are one.
        until("the first", || u64::from_str_radix(&next.status("ShdPnd:"), 16).unwrap() & 1 << 14 == 0);
        next.signal(signal);
        next.wait();
        assert!(!socket.exists(), "{signal:?} leaves nothing behind");
    }
}
