//! What was measured, and which rows the report makes of it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::{Error, Result};

/// Everything that one report measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    /// The VMMs, ours first.
    pub contenders: Vec<Measured>,
    /// What went wrong, one line or more each.
    pub failures: Vec<String>,
    /// Seconds from the exec of our VMM to its first `KVM_RUN`, in the run that `boot_timer` is from.
    pub exec_to_run: Option<f64>,
    /// What our VMM printed about its start.
    pub boot_timer: String,
    /// What has been measured already, if this is not all.
    pub done: Vec<String>,
    /// The files that the VMMs open.
    pub files: Vec<String>,
}

/// The figures of one VMM: each metric's values, in the order in which they were taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// Its name.
    pub name: String,
    /// What it is.
    pub about: String,
    /// How it was started.
    pub command: String,
    /// By metric.
    pub values: BTreeMap<String, Vec<f64>>,
}

impl Measured {
    /// Nothing measured yet.
    pub fn new(name: &str) -> Measured {
        Measured { name: name.to_owned(), ..Measured::default() }
    }

    /// Adds a value of a metric.
    pub fn add(&mut self, metric: &str, value: f64) {
        // Nothing was done per operation where there was no operation.
        if value.is_finite() {
            self.values.entry(metric.to_owned()).or_default().push(value);
        }
    }

    /// Returns true if a metric has a value.
    pub fn has(&self, metric: &str) -> bool {
        self.values.contains_key(metric)
    }

    /// The least of a metric's values: what disturbs a measurement only ever adds to it.
    pub fn least(&self, metric: &str) -> Option<f64> {
        self.values.get(metric)?.iter().copied().min_by(f64::total_cmp)
    }
}

impl Figures {
    /// Takes the values of a metric over from other figures, by the VMMs' names.
    pub fn add(&mut self, metric: &str, from: &Figures) {
        for measured in &mut self.contenders {
            let same = from.contenders.iter().find(|other| other.name == measured.name);
            let values = same.and_then(|other| other.values.get(metric));
            values.into_iter().flatten().for_each(|value| measured.add(metric, *value));
        }
        self.failures.extend(from.failures.iter().cloned());
    }

    /// As JSON, for programs.
    pub fn to_json(&self) -> Value {
        let contenders: Vec<Value> = self
            .contenders
            .iter()
            .map(|one| json!({ "name": one.name, "about": one.about, "command": one.command, "values": one.values }))
            .collect();
        json!({
            "contenders": contenders,
            "failures": self.failures,
            "exec_to_run": self.exec_to_run,
            "boot_timer": self.boot_timer,
            "done": self.done,
            "files": self.files,
        })
    }

    /// From what [`to_json`](Self::to_json) made.
    ///
    /// # Errors
    /// It is something else.
    pub fn from_json(text: &str) -> Result<Figures> {
        let wrong = |what: &str| Error::new(format!("figures: {what}"));
        let all: Value = serde_json::from_str(text).map_err(|error| wrong(&error.to_string()))?;
        let contender = |value: &Value| -> Option<Measured> {
            let numbers = |values: &Value| -> Option<Vec<f64>> {
                values.as_array()?.iter().map(Value::as_f64).collect()
            };
            let values = value["values"].as_object()?.iter();
            let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
            Some(Measured {
                name: value["name"].as_str()?.to_owned(),
                about: text("about"),
                command: text("command"),
                values: values
                    .map(|(name, values)| Some((name.clone(), numbers(values)?)))
                    .collect::<Option<_>>()?,
            })
        };
        let contenders = all["contenders"].as_array().into_iter().flatten().map(contender);
        let lines = |name: &str| -> Vec<String> {
            all[name]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|line| line.as_str().map(str::to_owned))
                .collect()
        };
        Ok(Figures {
            contenders: contenders
                .collect::<Option<_>>()
                .ok_or_else(|| wrong("a VMM's values are missing"))?,
            failures: lines("failures"),
            exec_to_run: all["exec_to_run"].as_f64(),
            boot_timer: all["boot_timer"].as_str().unwrap_or_default().to_owned(),
            done: lines("done"),
            files: lines("files"),
        })
    }
}

/// How a number is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Seconds.
    Seconds,
    /// Bytes.
    Bytes,
    /// A whole number.
    Count,
    /// A number for each operation.
    Each,
}

impl Unit {
    /// The number in this unit.
    pub fn show(self, value: f64) -> String {
        match self {
            Unit::Seconds if value < 0.1 => format!("{:.2} ms", value * 1e3),
            Unit::Seconds => format!("{value:.3} s"),
            Unit::Bytes if value >= 10.0 * 1024.0 * 1024.0 => format!("{:.1} MiB", value / 1024.0 / 1024.0),
            Unit::Bytes => format!("{:.0} KiB", value / 1024.0),
            Unit::Count => format!("{value:.0}"),
            Unit::Each => format!("{value:.3}"),
        }
    }
}

/// What a row's numbers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Less is better.
    Less,
    /// Neither more nor less is better: it explains other rows.
    Neither,
}

/// A row of the report.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// Which [metric](Measured::values) it shows.
    pub metric: &'static str,
    /// What the report calls it.
    pub title: &'static str,
    /// How its numbers are shown.
    pub unit: Unit,
    /// What they say.
    pub direction: Direction,
}

/// Rows that belong together, and how they are taken.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// What they are about.
    pub title: &'static str,
    /// How they are taken.
    pub how: &'static str,
    /// The rows.
    pub rows: &'static [Row],
}

const fn row(metric: &'static str, title: &'static str, unit: Unit) -> Row {
    Row { metric, title, unit, direction: Direction::Less }
}

/// A row in which neither more nor less is better.
const fn context(metric: &'static str, title: &'static str, unit: Unit) -> Row {
    Row { metric, title, unit, direction: Direction::Neither }
}

/// The metric that is taken on the host even if all others are taken in the nested machine.
pub const NATIVE: &str = "native-first-run";

/// The report's rows.
pub const GROUPS: &[Group] = &[
    Group {
        title: "Boot",
        how: "from the fork of the VMM to the line that the guest's first process prints on its serial port, and to the \
              end of the VMM, when the guest has powered off at once; less what a program takes that does nothing. The \
              guest's own time is what it spends in guest mode or halted, by KVM's trace events, in a run of its own; \
              with more than one vCPU it is not taken. The VMM's own share, its host kernel's work included, is the \
              difference. The first KVM_RUN is by trace events of exec and ioctl. Where time is counted in instructions, \
              each iteration of a string instruction (rep movs, rep stos) counts as one: copying a kernel seems \
              dearer, beside other work, than it is on a processor; the native row shows that",
        rows: &[
            row("init", "exec to guest init", Unit::Seconds),
            row("end", "exec to the end of the VMM", Unit::Seconds),
            context("guest", "of this, the guest's own time", Unit::Seconds),
            row("share", "the VMM's own share", Unit::Seconds),
            row("first-run", "exec to first KVM_RUN", Unit::Seconds),
            row(NATIVE, "the same on the host, by the clock", Unit::Seconds),
        ],
    },
    Group {
        title: "Start",
        how: "strace -f: calls of all threads that begin before the first KVM_RUN does",
        rows: &[
            row("calls", "system calls before first KVM_RUN", Unit::Count),
            row("ioctls", "of these, ioctls", Unit::Count),
        ],
    },
    Group {
        title: "Footprint",
        how: "/proc/PID/smaps of a VMM whose guest has loaded its drivers and sleeps; guest RAM left out unless said",
        rows: &[
            row("written", "private memory, written", Unit::Bytes),
            row("private", "private memory, with pages of files", Unit::Bytes),
            row("resident", "resident, guest RAM included", Unit::Bytes),
            row("threads", "threads", Unit::Count),
            row("binary", "program file, without libraries", Unit::Bytes),
        ],
    },
    Group {
        title: "Exits until init",
        how: "KVM's statistics in debugfs when the guest's first process prints its line",
        rows: &[
            row("exits.exits", "all exits", Unit::Count),
            row("exits.io_exits", "port I/O, to the VMM", Unit::Count),
            row("exits.mmio_exits", "MMIO, to the VMM", Unit::Count),
            row("exits.halt_exits", "halts", Unit::Count),
            row("exits.irq_exits", "host interrupts", Unit::Count),
            row("exits.pf_taken", "page faults on guest memory", Unit::Count),
            row("exits.insn_emulation", "instructions emulated", Unit::Count),
        ],
    },
    Group {
        title: "Disk",
        how: "direct I/O of a program in the guest; requests of 1 MiB, and random reads of 4 KiB with 1 and 32 at a \
              time; exits and interrupts by KVM and the guest, calls by the trace event of system calls, per request \
              of the program",
        rows: &[
            row("disk-read.s", "sequential read", Unit::Seconds),
            row("disk-write.s", "sequential write", Unit::Seconds),
            row("disk-random-1.s", "random reads, 1 at a time", Unit::Seconds),
            row("disk-random-1.exits.exits", "exits per read", Unit::Each),
            row("disk-random-1.interrupts", "interrupts per read", Unit::Each),
            row("disk-random-1.calls", "system calls per read", Unit::Each),
            row("disk-random-32.s", "random reads, 32 at a time", Unit::Seconds),
            row("disk-random-32.exits.exits", "exits per read", Unit::Each),
            row("disk-random-32.interrupts", "interrupts per read", Unit::Each),
            row("disk-random-32.calls", "system calls per read", Unit::Each),
        ],
    },
    Group {
        title: "Network",
        how: "TCP between the guest and the host over a tap; packets are those that the tap counts, both ways",
        rows: &[
            row("net-send.s", "guest to host", Unit::Seconds),
            context("net-send.operations", "packets, of any size", Unit::Count),
            row("net-send.exits.exits", "exits per packet", Unit::Each),
            row("net-send.calls", "system calls per packet", Unit::Each),
            row("net-receive.s", "host to guest", Unit::Seconds),
            context("net-receive.operations", "packets, of any size", Unit::Count),
            row("net-receive.exits.exits", "exits per packet", Unit::Each),
            row("net-receive.calls", "system calls per packet", Unit::Each),
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_holds_everything() {
        let mut ours = Measured::new("ours");
        (ours.about, ours.command) = ("it".to_owned(), "/bin/it --fast".to_owned());
        ours.add("init", 2.5);
        ours.add("init", 1.5);
        ours.add("calls", f64::NAN);
        let figures = Figures {
            contenders: vec![ours, Measured::new("other")],
            failures: vec!["other: \"broken\"".to_owned()],
            exec_to_run: Some(0.25),
            boot_timer: "microvm: layout from 1 to 2 us\n".to_owned(),
            done: vec!["boot of ours, run 1".to_owned()],
            files: vec!["/bin/ours".to_owned()],
        };
        assert_eq!(Figures::from_json(&figures.to_json().to_string()).unwrap(), figures);
        assert_eq!(figures.contenders[0].least("init"), Some(1.5));
        assert!(!figures.contenders[0].has("calls"));
    }

    #[test]
    fn what_is_not_figures_is_refused() {
        for text in [
            "",
            "{",
            r#"{"contenders": [{"name": "a"}]}"#,
            r#"{"contenders": [{"name": "a", "values": {"x": "y"}}]}"#,
        ] {
            assert!(Figures::from_json(text).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_have_fitting_units() {
        assert_eq!(Unit::Seconds.show(1.5), "1.500 s");
        assert_eq!(Unit::Seconds.show(0.0125), "12.50 ms");
        assert_eq!(Unit::Bytes.show(240.0 * 1024.0), "240 KiB");
        assert_eq!(Unit::Bytes.show(64.0 * 1024.0 * 1024.0), "64.0 MiB");
        assert_eq!(Unit::Count.show(214.0), "214");
        assert_eq!(Unit::Each.show(0.03125), "0.031");
    }
}
