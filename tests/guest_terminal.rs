//! The guest's consoles on pipes and terminals: what is typed or pasted arrives whole, what is printed leaves whole, and
//! neither keeps the VMM from anything else. Named after the faults that they are about.

mod support;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ChildStdout;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::ioctl_fionread;
use rustix::pipe::fcntl_setpipe_size;
use rustix::process::Signal;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use support::{Guest, LIMIT};

/// The last words of a guest that powers off: some 19 KB.
const LINES: usize = 4_000;
/// What a pipe holds that nobody reads: the least that Linux gives one.
const PIPE: usize = 4096;

/// Where the guest's console is.
#[derive(Clone, Copy, PartialEq)]
enum On {
    Serial,
    Hvc0,
}

impl On {
    fn guest(self) -> Guest {
        match self {
            Self::Serial => Guest::new(),
            Self::Hvc0 => Guest::new().args(["--console"]).cmdline("ossature.console=hvc0"),
        }
    }
}

/// A terminal of this size, and its user's side.
fn terminal(rows: u16, columns: u16) -> (File, File) {
    let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&user).and_then(|()| unlockpt(&user)).unwrap();
    let terminal = ioctl_tiocgptpeer(&user, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    resize(&user, rows, columns);
    (terminal.into(), user.into())
}

fn resize(user: impl AsFd, ws_row: u16, ws_col: u16) {
    tcsetwinsize(user, Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}

/// Pastes 20,000 bytes in lines while the guest runs `cat >f` on its console, in a terminal's usual mode.
fn paste(on: On, on_terminal: bool) {
    let guest = on.guest().run(
        "paste",
        "exec </proc/self/fd/1; stty sane -echo; printf 'type\\n'; cat >/run/f; stty raw -echo; sha256sum </run/f; wc -c </run/f",
    );
    let (terminal, user) = terminal(24, 80);
    let mut guest = if on_terminal { guest.start_on(&terminal, user) } else { guest.start() };
    drop(terminal);
    guest.wait_for("type\r\n");
    let text: String =
        (0..400).map(|n| format!("{n:04} 0123456789 abcdefghijklmnopqrstuvwxyz ABCDEF\n")).collect();
    assert_eq!(text.len(), 20_000);
    // Ctrl-D at the start of a line is the end of the file.
    guest.type_in(&text);
    guest.type_in("\u{4}");
    let ended = guest.wait();
    ended.expect(0);
    let hash = support::hash_of(
        "seq 0 399 | while read n; do printf '%04d 0123456789 abcdefghijklmnopqrstuvwxyz ABCDEF\\n' $n; done",
    );
    let answers = ended.answers();
    let answer = answers["paste"].split_once("type\r\n").unwrap().1.replace('\r', "");
    assert_eq!(answer, format!("{hash}\n20000"));
}

#[test]
fn t1_what_is_pasted_through_a_pipe_arrives_whole_on_serial() {
    paste(On::Serial, false);
}

#[test]
fn t1_what_is_pasted_through_a_pipe_arrives_whole_on_hvc0() {
    paste(On::Hvc0, false);
}

#[test]
fn t1_what_is_pasted_on_a_terminal_arrives_whole_on_serial() {
    paste(On::Serial, true);
}

#[test]
fn t1_what_is_pasted_on_a_terminal_arrives_whole_on_hvc0() {
    paste(On::Hvc0, true);
}

/// Input that is there before the guest boots, with the bytes of an escape key in it.
fn early(on: On) {
    let mut guest =
        on.guest().run("early", "exec </proc/self/fd/1; read -r line; eval \"$line\" | od -An -c").start();
    guest.type_in("echo A$((40+2))B'\u{1}x'\n");
    let ended = guest.wait();
    ended.expect(0);
    let answer = ended.answers()["early"].split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(answer, "A 4 2 B 001 x \\n");
}

#[test]
fn t2_t3_a_pipes_input_waits_until_the_guest_listens_and_is_all_data_on_serial() {
    early(On::Serial);
}

#[test]
fn t2_t3_a_pipes_input_waits_until_the_guest_listens_and_is_all_data_on_hvc0() {
    early(On::Hvc0);
}

#[test]
fn t5_the_guest_knows_the_size_of_the_terminal_and_its_changes() {
    let (terminal, user) = terminal(50, 132);
    let guest = On::Hvc0.guest().run(
        "size",
        "exec </proc/self/fd/1; stty size; printf 'ready\\n'; while [ \"$(stty size)\" = '50 132' ]; do sleep 0.1; done; stty size",
    );
    let guest = guest.start_on(&terminal, user.try_clone().unwrap());
    guest.wait_for("ready\n");
    resize(&user, 33, 101);
    // The kernel sends it to those whose controlling terminal it is.
    guest.signal(Signal::WINCH);
    drop((terminal, user));
    let ended = guest.wait();
    ended.expect(0);
    assert_eq!(ended.answers()["size"].replace('\r', ""), "50 132\nready\n33 101");
}

/// Standard output that nobody reads until it is allowed.
struct Gate {
    stream: ChildStdout,
    opened: Receiver<()>,
    open: bool,
}

impl Read for Gate {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !self.open {
            self.open = self.opened.recv().is_ok();
        }
        self.stream.read(buf)
    }
}

/// A guest that prints many lines into a pipe that nobody reads, once the pipe is full.
fn unread(on: On) -> (support::Running, Sender<()>) {
    let (open, opened) = channel();
    let (give, pipe) = channel::<OwnedFd>();
    let guest = on.guest().run("many", &format!("seq 1 {LINES}")).start_through(move |stream| {
        assert_eq!(fcntl_setpipe_size(&stream, PIPE).unwrap(), PIPE);
        give.send(stream.as_fd().try_clone_to_owned().unwrap()).unwrap();
        Gate { stream, opened, open: false }
    });
    let pipe = pipe.recv().unwrap();
    let start = Instant::now();
    // Writes of several bytes may not fill it to the last one.
    while ioctl_fionread(&pipe).unwrap() < PIPE as u64 * 60_000 / 65_536 {
        assert!(
            start.elapsed() < LIMIT,
            "{} bytes in the pipe; {}",
            ioctl_fionread(&pipe).unwrap(),
            guest.err.text()
        );
        thread::sleep(Duration::from_millis(20));
    }
    (guest, open)
}

/// Everything that was printed arrives, once it is read.
fn nothing_is_lost(on: On) {
    let (guest, open) = unread(on);
    open.send(()).unwrap();
    let ended = guest.wait();
    ended.expect(0);
    let wanted: Vec<String> = (1..=LINES).map(|line| line.to_string()).collect();
    assert!(ended.answers()["many"] == wanted.join("\n"), "{ended}");
    assert_eq!(ended.err, "");
}

#[test]
fn e2_nothing_is_lost_of_what_a_full_pipe_had_no_room_for_on_hvc0() {
    nothing_is_lost(On::Hvc0);
}

#[test]
fn e2_nothing_is_lost_of_what_a_full_pipe_had_no_room_for_on_serial() {
    nothing_is_lost(On::Serial);
}

#[test]
fn e2_signals_are_heeded_while_nobody_reads_the_output() {
    for on in [On::Hvc0, On::Serial] {
        let (guest, open) = unread(on);
        // The guest waits for its output, so it does not heed the power button: the second one ends the machine.
        guest.signal(Signal::TERM);
        guest.signal(Signal::TERM);
        guest.wait_for_exit();
        open.send(()).unwrap();
        guest.wait().expect(0);
    }
}
