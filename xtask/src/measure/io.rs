//! Disk and network of a guest: its own times and interrupts, and what they cost the host.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use super::child::Child;
use super::{LIMIT, Measure, TAP, kernel, pairs};
use crate::report::contender::Part;
use crate::{Context, Result};

/// The host kernel's counters at one moment.
struct Counters {
    exits: BTreeMap<String, u64>,
    calls: Option<u64>,
    packets: u64,
}

impl Measure<'_> {
    /// The first of several runs counts system calls, which slows them down; the others take times.
    pub(super) fn io(&mut self, index: usize) -> Result<()> {
        if !self.takes_part(index, Part::Whole) {
            return Ok(());
        }
        let is_first = self.figures.contenders.get(index).is_some_and(|measured| !measured.has("io"));
        let counter = if is_first { kernel::CallCounter::start() } else { None };
        let timed = !is_first || self.options.runs() == 1;

        let listener = TcpListener::bind("10.77.0.1:0").context("listening for the guest")?;
        let port = listener.local_addr().context("listening for the guest")?.port();
        let size = self.options.net_mib() << 20;
        // It ends with its guest, or with this process.
        thread::spawn(move || listener.accept().and_then(|(guest, _)| serve(guest, size)));
        let (disk, net, reads) = (self.options.disk_mib(), self.options.net_mib(), self.options.reads());
        let words = self
            .rooted_command(index, &format!("io disk_mib={disk} net_mib={net} reads={reads} port={port}"))?;
        let mut child = Child::start(&words, LIMIT)?;
        for _ in 0..6 {
            let (begin, _) = child.line(|line| line.starts_with("@@begin "))?;
            let name = begin.split_whitespace().nth(1).unwrap_or_default().to_owned();
            let before = counters(&child, counter.as_ref());
            child.line(str::is_empty)?;
            let after = counters(&child, counter.as_ref());
            let (end, _) = child.line(|line| line.starts_with("@@end "))?;
            let guest = pairs(&end);
            let of_guest = |key: &str| guest.get(key).copied().unwrap_or_default();
            if timed {
                self.add(index, &format!("{name}.s"), of_guest("ns") / 1e9);
            }
            let operations = if name.starts_with("net") {
                (after.packets - before.packets) as f64
            } else {
                of_guest("operations")
            };
            self.add(index, &format!("{name}.operations"), operations);
            self.add(index, &format!("{name}.interrupts"), of_guest("interrupts") / operations);
            for (kind, value) in &after.exits {
                let value = value.saturating_sub(before.exits.get(kind).copied().unwrap_or_default());
                self.add(index, &format!("{name}.exits.{kind}"), value as f64 / operations);
            }
            if let (Some(after), Some(before)) = (after.calls, before.calls) {
                self.add(index, &format!("{name}.calls"), after.saturating_sub(before) as f64 / operations);
            }
        }
        child.wait()?;
        self.add(index, "io", 1.0);
        Ok(())
    }
}

fn counters(child: &Child, counter: Option<&kernel::CallCounter>) -> Counters {
    let exits = kernel::kvm_statistics(child.id());
    let calls = counter.map(|counter| {
        let tasks = fs::read_dir(format!("/proc/{}/task", child.id())).into_iter().flatten().flatten();
        let threads: Vec<u32> =
            tasks.filter_map(|task| task.file_name().to_string_lossy().parse().ok()).collect();
        let counts = counter.counts();
        counts.iter().filter(|((thread, _), _)| threads.contains(thread)).map(|(_, count)| count).sum()
    });
    let packets = ["rx_packets", "tx_packets"].map(|name| {
        let file = format!("/sys/class/net/{TAP}/statistics/{name}");
        fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    });
    Counters { exits, calls, packets: packets.iter().sum() }
}

/// The guest's peer: takes `size` bytes and acknowledges them, then sends as many when it is told to.
fn serve(mut guest: TcpStream, size: usize) -> std::io::Result<()> {
    let mut block = vec![0; 256 << 10];
    let mut left = size;
    while left > 0 {
        match guest.read(&mut block)? {
            0 => return Ok(()),
            length => left = left.saturating_sub(length),
        }
    }
    guest.write_all(b".")?;
    guest.read_exact(&mut [0])?;
    for _ in 0..size / block.len() {
        guest.write_all(&block)?;
    }
    // Until the guest hangs up.
    guest.read(&mut block).map(drop)
}
