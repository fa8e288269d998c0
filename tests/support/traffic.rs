//! A guest that reads and writes its disk, sends and receives, and prints, all at once and for as long as its host does
//! something with its machine; and the host's part of it.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use ossature::virtio::console::{Console, ConsoleInput, ConsoleOutput};
use ossature::vmm::machine::{Machine, Outcome};
use tempfile::TempDir;
use xtask::tree::Tree;

use super::{Answers, Guest, LIMIT, Tap, Terminal, echo, found_none, log_of};

/// What is written, read, sent and received, again and again.
const DATA: usize = 128 << 10;

/// The guest, which has three devices: a disk with a file system that it mounts, a network card and a console.
pub struct Traffic {
    pub guest: Guest,
    /// Of the disk: ext4.
    pub image: PathBuf,
    /// Of the network card.
    pub tap: Tap,
    /// The file's, and whatever else a test has.
    pub folder: TempDir,
    listener: TcpListener,
    data: Vec<u8>,
    /// The console's ends of two streams.
    console: (UnixStream, UnixStream),
    /// Those of the host's program.
    terminal: (UnixStream, UnixStream),
}

/// What the host does meanwhile.
pub struct Underway {
    done: Arc<AtomicBool>,
    talk: JoinHandle<u64>,
    echo: JoinHandle<u64>,
}

impl Traffic {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("disk");
        Tree::new().write_ext4(&image, 64).unwrap();
        let tap = Tap::new();
        let listener = tap.listen();
        let mut data = vec![0; DATA];
        File::open("/dev/urandom").unwrap().read_exact(&mut data).unwrap();
        let guest = guest(&tap, &listener, &data);
        let (to_console, input) = UnixStream::pair().unwrap();
        let (from_console, output) = UnixStream::pair().unwrap();
        let (console, terminal) = ((input, output), (to_console, from_console));
        Self { guest, image, tap, folder, listener, data, console, terminal }
    }

    /// The console, at the host's program. Another one goes on where this one was.
    pub fn console(&self) -> Console {
        let (input, output) = &self.console;
        Console::new(Some(ConsoleInput::new(input).unwrap()), ConsoleOutput::new(output).unwrap())
    }

    /// Waits until the guest has begun, and has the host do its part from now on.
    pub fn begin(&self, terminal: &Terminal) -> Underway {
        let (listener, data) = (self.listener.try_clone().unwrap(), self.data.clone());
        let echo = thread::spawn(move || echo(&listener, &data));
        terminal.wait_for("traffic\n");
        // A guest has lost what comes before it listens.
        let done = Arc::new(AtomicBool::new(false));
        let (to, from) = (self.terminal.0.try_clone().unwrap(), self.terminal.1.try_clone().unwrap());
        let talk = thread::spawn({
            let done = done.clone();
            move || talk(to, from, &done)
        });
        Underway { done, talk, echo }
    }
}

impl Underway {
    /// Has the guest come to its end, and checks all that it and the host have seen. Returns the answers of the guest, and
    /// that of `hash`, which is the disk's file `/last`.
    pub fn end(self, machine: Machine, terminal: &Terminal, guest: &Guest) -> Answers {
        self.done.store(true, Ordering::Relaxed);
        let outcome = machine.wait_timeout(LIMIT).unwrap();
        assert!(matches!(outcome, Some(Outcome::Shutdown)), "{outcome:?}: {}", terminal.log.text());
        drop(machine);
        let answers = terminal.answers(guest);
        let lines = self.talk.join().unwrap();
        let connections = self.echo.join().unwrap();
        let text = &answers["traffic"];
        println!("{lines} lines, {connections} connections; {text}");
        let rounds = |name: &str| -> u64 {
            let count = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
            count.unwrap_or_else(|| panic!("no count of {name}: {text}"))
        };
        assert_eq!(rounds("net:"), connections, "every connection is seen by both");
        assert!(rounds("disk:") > 0 && connections > 0 && lines > 0, "{text}");
        found_none(&answers["log"]);
        answers
    }
}

/// Writes files to the disk and reads them back, sends data and receives it back, and answers each line of hvc0, until
/// that says "end".
fn guest(tap: &Tap, listener: &TcpListener, data: &[u8]) -> Guest {
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
        mount -t ext4 /dev/vda /mnt
        exec 3<>/dev/hvc0
        stty raw -echo <&3
        disk & net &
        printf 'traffic\n'
        while read -r line; do
            echo "$line"
            [ "$line" != end ] || break
        done <&3 >&3
        touch /run/stop
        wait
        cp /data /mnt/last
        umount /mnt
        [ ! -e /run/wrong ] || {{ cat /run/wrong; false; }}"#
    );
    Guest::new()
        .program("/data", data.to_vec())
        .cmdline(&format!("ossature.ip={}/24", tap.guest))
        .run("traffic", &traffic)
        .run("hash", "sha256sum </data")
        .run("log", &log_of(&["lockup", "I/O error"]))
}

/// Types lines that do not repeat, and checks that each comes back, until `done`; returns how many.
fn talk(mut to: UnixStream, mut from: UnixStream, done: &AtomicBool) -> u64 {
    let mut lines = 0;
    loop {
        let last = done.load(Ordering::Relaxed);
        let mut text: String = (lines..lines + 8).map(|line| format!("line {line}\n")).collect();
        lines += 8;
        if last {
            text += "end\n";
        }
        to.write_all(text.as_bytes()).unwrap();
        let mut back = vec![0; text.len()];
        from.read_exact(&mut back).unwrap();
        assert_eq!(String::from_utf8_lossy(&back), text);
        if last {
            return lines;
        }
    }
}
