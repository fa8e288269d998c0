//! The host kernel's own counters: KVM's statistics, and system calls and events through tracefs. For root only;
//! without them, the rows that need them stay empty.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::process;

const TRACING: &str = "/sys/kernel/tracing";

/// Mounts debugfs and tracefs where nobody has yet.
pub fn mount() {
    for (kind, place) in [("debugfs", "/sys/kernel/debug"), ("tracefs", TRACING)] {
        let is_mounted = fs::read_dir(place).is_ok_and(|mut entries| entries.next().is_some());
        if !is_mounted {
            // Not root: see above.
            let _ = process::output(process::command("mount").args(["-t", kind, kind, place]));
        }
    }
}

/// KVM's statistics of the machine that a process runs, by name.
pub fn kvm_statistics(pid: u32) -> BTreeMap<String, u64> {
    let of_process = format!("{pid}-");
    let machines = fs::read_dir("/sys/kernel/debug/kvm").into_iter().flatten().flatten();
    let folder = machines
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&of_process)));
    let Some(folder) = folder else { return BTreeMap::new() };
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    files
        .filter_map(|entry| {
            let value = fs::read_to_string(entry.path()).ok()?.trim().parse().ok()?;
            Some((entry.file_name().into_string().ok()?, value))
        })
        .collect()
}

/// Counts system calls by process while it lives.
#[derive(Debug)]
pub struct CallCounter(PathBuf);

impl CallCounter {
    /// Begins to count, unless this is not allowed.
    pub fn start() -> Option<CallCounter> {
        let folder = Path::new(TRACING).join("events/raw_syscalls/sys_enter");
        fs::write(folder.join("trigger"), "hist:keys=common_pid,id").ok()?;
        Some(CallCounter(folder))
    }

    /// How often each thread has called each system call: (thread, number) and count.
    pub fn counts(&self) -> BTreeMap<(u32, u32), u64> {
        histogram(&fs::read_to_string(self.0.join("hist")).unwrap_or_default())
    }
}

impl Drop for CallCounter {
    fn drop(&mut self) {
        // It stays on until somebody else turns it off.
        let _ = fs::write(self.0.join("trigger"), "!hist:keys=common_pid,id");
    }
}

/// `{ common_pid:        101, id:         16 } hitcount:         12`
fn histogram(text: &str) -> BTreeMap<(u32, u32), u64> {
    let entry = |line: &str| {
        let mut numbers = line.split(|c: char| !c.is_ascii_digit()).filter(|word| !word.is_empty());
        let mut number = || numbers.next()?.parse::<u64>().ok();
        let (thread, id, count) = (number()?, number()?, number()?);
        Some(((u32::try_from(thread).ok()?, u32::try_from(id).ok()?), count))
    };
    text.lines().filter(|line| line.starts_with("{ common_pid:")).filter_map(entry).collect()
}

/// Records the next `execve` events and the first `KVM_RUN`.
#[derive(Debug)]
pub struct Recorder(());

impl Recorder {
    const EVENTS: [&str; 2] = ["sched/sched_process_exec", "syscalls/sys_enter_ioctl"];
    /// Only this ioctl, and only the first: later ones would push it out.
    const RUN: &str = "cmd == 0xae80";

    /// Begins, unless this is not allowed.
    pub fn start() -> Option<Recorder> {
        let recorder = Recorder(());
        write("trace_clock", "mono")?;
        write("trace", "")?;
        write("tracing_on", "1")?;
        write("events/syscalls/sys_enter_ioctl/filter", Self::RUN)?;
        write("events/syscalls/sys_enter_ioctl/trigger", &format!("traceoff:1 if {}", Self::RUN))?;
        for event in Self::EVENTS {
            write(&format!("events/{event}/enable"), "1")?;
        }
        Some(recorder)
    }

    /// True if it has come to the first `KVM_RUN`.
    pub fn has_run(&self) -> bool {
        fs::read_to_string(Path::new(TRACING).join("tracing_on")).is_ok_and(|text| text.trim() == "0")
    }

    /// Seconds from a process's `execve` to the first `KVM_RUN`.
    pub fn exec_to_run(&self, pid: u32) -> Option<f64> {
        let text = fs::read_to_string(Path::new(TRACING).join("trace")).ok()?;
        exec_to_run(&text, pid)
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        for event in Self::EVENTS {
            write(&format!("events/{event}/enable"), "0");
        }
        write("events/syscalls/sys_enter_ioctl/trigger", "!traceoff");
        write("events/syscalls/sys_enter_ioctl/filter", "0");
        write("tracing_on", "1");
    }
}

/// Records each entry into a guest and each exit of the VMMs that this process starts.
#[derive(Debug)]
pub struct GuestTime {
    /// The size of the kernel's buffer before, in KiB.
    buffer: String,
}

impl GuestTime {
    const EVENTS: [&str; 2] = ["kvm/kvm_entry", "kvm/kvm_exit"];
    /// Enough for the exits of a boot with a firmware, in KiB.
    const BUFFER: &str = "65536";

    /// Begins, unless this is not allowed.
    pub fn start() -> Option<GuestTime> {
        let buffer = fs::read_to_string(Path::new(TRACING).join("buffer_size_kb")).ok()?;
        // "7 (expanded: 1408)", before anybody has used it.
        let buffer = buffer.rsplit([' ', ':']).next()?.trim_end().trim_end_matches(')').to_owned();
        let tracer = GuestTime { buffer };
        write("trace_clock", "mono")?;
        write("buffer_size_kb", Self::BUFFER)?;
        write("trace", "")?;
        write("options/event-fork", "1")?;
        write("set_event_pid", &std::process::id().to_string())?;
        write("tracing_on", "1")?;
        for event in Self::EVENTS {
            write(&format!("events/{event}/enable"), "1")?;
        }
        Some(tracer)
    }

    /// Seconds that the guest has spent in guest mode or halted; none if not all of it was recorded.
    pub fn read(&self) -> Option<f64> {
        guest_time(&fs::read_to_string(Path::new(TRACING).join("trace")).ok()?)
    }
}

impl Drop for GuestTime {
    fn drop(&mut self) {
        for event in Self::EVENTS {
            write(&format!("events/{event}/enable"), "0");
        }
        write("set_event_pid", "");
        write("options/event-fork", "0");
        write("trace", "");
        write("buffer_size_kb", &self.buffer);
    }
}

/// Lines such as `vcpu0-103 [000] d..1. 12.345678: kvm_exit: vcpu 0 reason hlt rip 0xffffffff81000000`.
fn guest_time(trace: &str) -> Option<f64> {
    let mut entered: BTreeMap<&str, f64> = BTreeMap::new();
    let (mut time, mut any) = (0.0, false);
    for line in trace.lines() {
        if let Some((_, counts)) = line.split_once("entries-in-buffer/entries-written: ") {
            let (kept, written) = counts.split_whitespace().next()?.split_once('/')?;
            if kept != written {
                return None;
            }
        }
        let Some((before, event)) = line.split_once(": kvm_") else { continue };
        let (Some(thread), Some(at)) = (
            before.split_once(" [").map(|(thread, _)| thread.trim()),
            before.split_whitespace().next_back().and_then(|word| word.parse::<f64>().ok()),
        ) else {
            continue;
        };
        if event.starts_with("entry:") {
            // After a halt it has not ceased to be the guest's.
            entered.entry(thread).or_insert(at);
        } else if event.starts_with("exit:") && !event.to_ascii_lowercase().contains("reason hlt") {
            if let Some(entry) = entered.remove(thread) {
                time += at - entry;
                any = true;
            }
        }
    }
    any.then_some(time)
}

fn write(file: &str, text: &str) -> Option<()> {
    fs::write(Path::new(TRACING).join(file), text).ok()
}

/// Lines such as `vmm-101 [000] ..... 12.345678: sched_process_exec: filename=/bin/vmm pid=101 old_pid=101`.
fn exec_to_run(trace: &str, pid: u32) -> Option<f64> {
    let pid = format!("pid={pid}");
    let time = |line: &str, event: &str| {
        let before = line.split_once(event)?.0.trim_end().strip_suffix(':')?;
        before.split_whitespace().next_back()?.parse::<f64>().ok()
    };
    // The last: the same process has been the program that changed the root folder.
    let exec = trace
        .lines()
        .filter(|line| line.split_whitespace().any(|word| word == pid))
        .filter_map(|line| time(line, "sched_process_exec:"))
        .next_back()?;
    let run = trace.lines().find_map(|line| time(line, "sys_ioctl("))?;
    Some(run - exec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_has_threads_and_calls() {
        let text = "# event histogram\n#\n\n{ common_pid:        101, id:         16 } hitcount:         12\n\
                    { common_pid:        102, id:          1 } hitcount:          3\n\nTotals:\n    Hits: 15\n";
        assert_eq!(histogram(text), BTreeMap::from([((101, 16), 12), ((102, 1), 3)]));
    }

    #[test]
    fn x5_a_guests_own_time_is_that_in_guest_mode_and_in_halts() {
        let trace = "# tracer: nop\n#\n# entries-in-buffer/entries-written: 8/8   #P:1\n#\n\
            CPU 0/KVM-103 [000] d..1.    12.000000: kvm_entry: vcpu 0, rip 0xfff0\n\
            CPU 0/KVM-103 [000] d..1.    12.250000: kvm_exit: vcpu 0 reason io rip 0xfff0 info1 0x1\n\
            CPU 0/KVM-103 [000] d..1.    13.000000: kvm_entry: vcpu 0, rip 0xfff2\n\
            CPU 0/KVM-103 [000] d..1.    13.125000: kvm_exit: vcpu 0 reason hlt rip 0xfff2\n\
            CPU 0/KVM-103 [000] d..1.    14.000000: kvm_entry: vcpu 0, rip 0xfff4\n\
            CPU 0/KVM-103 [000] d..1.    14.500000: kvm_exit: vcpu 0 reason shutdown rip 0xfff4\n";
        assert_eq!(guest_time(trace), Some(0.25 + 1.5));
        assert_eq!(guest_time(&trace.replace("8/8", "8/9")), None);
        assert_eq!(guest_time("# entries-in-buffer/entries-written: 0/0   #P:1\n"), None);
    }

    #[test]
    fn times_of_events_are_found() {
        let trace = "# tracer: nop\n\
            strace-100 [000] .....    11.000000: sched_process_exec: filename=/bin/a pid=100 old_pid=100\n\
            vmm-101 [000] .....    12.125000: sched_process_exec: filename=/bin/chroot pid=101 old_pid=101\n\
            vmm-101 [000] .....    12.250000: sched_process_exec: filename=/bin/vmm pid=101 old_pid=101\n\
            vcpu0-103 [000] .....    12.500000: sys_ioctl(fd: 5, cmd: ae80, arg: 0)\n";
        assert_eq!(exec_to_run(trace, 101), Some(0.25));
        assert_eq!(exec_to_run(trace, 10), None);
    }
}
