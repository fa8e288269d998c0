//! A tap of the host's kernel with a network of its own.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use xtask::process;

use super::{LIMIT, Log};

/// A tap that goes with the test.
pub struct Tap {
    pub name: String,
    /// The host's address on it.
    pub host: String,
    /// The guest's, of 24 bits, or 28 if the tap has a number.
    pub guest: String,
}

impl Tap {
    pub fn new() -> Self {
        Self::numbered(0, &[])
    }

    /// Another tap of the same test, with more words for what makes it, such as `multi_queue`. There may be ten.
    pub fn numbered(number: u8, words: &[&str]) -> Self {
        // Tests may run side by side, each in a process of its own.
        let id = std::process::id();
        let [.., high, low] = id.to_be_bytes();
        let net = format!("10.{}.{low}", high | 0x80);
        let [host, guest] = [1, 2].map(|end| format!("{net}.{}", 16 * number + end));
        let name = if number == 0 { format!("ot{id}") } else { format!("ot{id}.{number}") };
        let tap = Self { name, host, guest };
        ip(&[&["tuntap", "add", "mode", "tap", "name", &tap.name], words].concat());
        let bits = if words.is_empty() && number == 0 { 24 } else { 28 };
        ip(&["address", "add", &format!("{}/{bits}", tap.host), "dev", &tap.name]);
        ip(&["link", "set", &tap.name, "up"]);
        tap
    }

    /// Waits for connections of the guest on a port of the host.
    pub fn listen(&self) -> TcpListener {
        TcpListener::bind((self.host.as_str(), 0)).unwrap()
    }

    /// Sends what goes nowhere else to this network. It goes with the tap.
    pub fn add_default_route(&self) {
        ip(&["route", "add", "default", "via", &self.guest, "dev", &self.name]);
    }

    /// Sets something of the interface, such as `mtu 9000`.
    pub fn set(&self, words: &[&str]) {
        ip(&[&["link", "set", "dev", &self.name], words].concat());
    }

    /// The addresses that the host has learnt.
    pub fn neighbours(&self) -> String {
        ip(&["neighbour", "show", "dev", &self.name])
    }

    /// Waits in the background for a packet that the filter (see pcap-filter(7)) lets through.
    pub fn capture(&self, filter: &str) -> Capture {
        let mut tcpdump = process::command("tcpdump");
        // As root: not every system has the user that it would become.
        tcpdump.args(["-Z", "root", "-i", &self.name, "-n", "-c", "1", filter]);
        let mut child = tcpdump.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let said = Log::follow(child.stderr.take().unwrap());
        assert!(said.wait_for("listening on", LIMIT), "tcpdump: {}", said.text());
        Capture { child, said }
    }
}

/// The guest's next connection, and the address it comes from.
pub fn accept(listener: &TcpListener) -> (TcpStream, String) {
    let limit = Timespec { tv_sec: LIMIT.as_secs() as i64, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ready, 1, "the guest does not connect");
    let (stream, peer) = listener.accept().unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.set_write_timeout(Some(LIMIT)).unwrap();
    (stream, peer.ip().to_string())
}

/// Sends back what the guest sends, connection by connection, until one brings nothing; returns how many brought `data`.
pub fn echo(listener: &TcpListener, data: &[u8]) -> u64 {
    let mut connections = 0;
    loop {
        // However long that takes: the guest's clock does not run while the machine is paused.
        let (mut stream, _) = listener.accept().unwrap();
        let mut received = Vec::with_capacity(data.len());
        stream.read_to_end(&mut received).unwrap();
        if received.is_empty() {
            return connections;
        }
        assert!(received == data, "{} bytes came, not those that were sent", received.len());
        stream.write_all(&received).unwrap();
        connections += 1;
    }
}

/// A capture that ends with the first packet.
pub struct Capture {
    child: Child,
    said: Log,
}

impl Capture {
    /// Returns true if there is such a packet.
    pub fn succeeds(mut self) -> bool {
        self.said.wait_for_end(LIMIT) && self.child.wait().unwrap().success()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // Nothing is left to do if it has gone.
        let _ = process::output(process::command("ip").args(["link", "delete", &self.name]));
    }
}

fn ip(arguments: &[&str]) -> String {
    process::text(process::command("ip").args(arguments)).unwrap()
}
