//! A tap of the host's kernel with a network of its own.

use std::fs;
use std::net::TcpListener;

use xtask::process;

/// A tap that goes with the test.
pub struct Tap {
    pub name: String,
    /// The host's address on it.
    pub host: String,
    /// The guest's, of 24 bits.
    pub guest: String,
}

impl Tap {
    pub fn new() -> Self {
        // Tests may run side by side, each in a process of its own.
        let id = std::process::id();
        let [.., high, low] = id.to_be_bytes();
        let net = format!("10.{}.{low}", high | 0x80);
        let (host, guest) = (format!("{net}.1"), format!("{net}.2"));
        let tap = Self { name: format!("ot{id}"), host, guest };
        ip(&["tuntap", "add", "mode", "tap", "name", &tap.name]);
        ip(&["address", "add", &format!("{}/24", tap.host), "dev", &tap.name]);
        ip(&["link", "set", &tap.name, "up"]);
        tap
    }

    /// Waits for connections of the guest on a port of the host.
    pub fn listen(&self) -> TcpListener {
        TcpListener::bind((self.host.as_str(), 0)).unwrap()
    }

    /// The addresses that the host has learnt.
    pub fn neighbours(&self) -> String {
        ip(&["neighbour", "show", "dev", &self.name])
    }

    /// One of the interface's counters.
    pub fn statistic(&self, name: &str) -> u64 {
        let file = format!("/sys/class/net/{}/statistics/{name}", self.name);
        fs::read_to_string(file).unwrap().trim().parse().unwrap()
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
