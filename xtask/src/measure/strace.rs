//! What a log of `strace -f` tells: system calls before the guest runs, and the files that a program opens.

use std::collections::BTreeSet;

/// System calls before the first `KVM_RUN`, of all threads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// All of them.
    pub all: u32,
    /// Those that are ioctls.
    pub ioctls: u32,
}

/// Counts the calls that begin before the first `KVM_RUN`; none if there is no `KVM_RUN`.
pub fn before_first_run(log: &str) -> Option<Calls> {
    let mut calls = Calls::default();
    for call in log.lines().filter_map(call) {
        if call.contains("KVM_RUN") {
            return Some(calls);
        }
        calls.all += 1;
        calls.ioctls += u32::from(call.starts_with("ioctl("));
    }
    None
}

/// The files that were opened or executed, by absolute path.
pub fn files(log: &str) -> BTreeSet<String> {
    log.lines()
        .filter_map(call)
        .filter(|call| ["open(", "openat(", "execve("].iter().any(|name| call.starts_with(name)))
        .filter(|call| !call.contains(" = -1 "))
        .filter_map(|call| call.split('"').nth(1))
        .filter(|path| path.starts_with('/'))
        .map(str::to_owned)
        .collect()
}

/// Seconds from the last `execve` before the first `KVM_RUN` to that, in a log with times (`-ttt`).
pub fn exec_to_run(log: &str) -> Option<f64> {
    let mut exec = None;
    for line in log.lines() {
        // "123 1700000000.123456 ioctl(...", where the first number is the thread's.
        let mut words = line.split_whitespace();
        let (Some(time), Some(call)) = (words.nth(1), words.next()) else { continue };
        let time: Option<f64> = time.parse().ok();
        if call.starts_with("execve(") {
            exec = time;
        } else if call.starts_with("ioctl(") && line.contains("KVM_RUN") {
            return Some(time? - exec?);
        }
    }
    None
}

/// The call that begins on a line: not the rest of one that was interrupted, a signal or an exit.
fn call(line: &str) -> Option<&str> {
    // "123   openat(...", where the number is the thread's; strace leaves it out while there is only one.
    let line = line.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
    let name = line.split('(').next()?;
    let is_call = !name.is_empty()
        && name.len() < line.len()
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    is_call.then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"100   execve("/bin/vmm", ["vmm"], 0x7ffd /* 20 vars */) = 0
100   openat(AT_FDCWD, "/etc/ld.so.cache", O_RDONLY|O_CLOEXEC) = 3
100   openat(AT_FDCWD, "/missing", O_RDONLY) = -1 ENOENT (No such file or directory)
100   openat(AT_FDCWD, "relative", O_RDONLY) = 4
100   ioctl(5, KVM_CREATE_VM, 0 <unfinished ...>
101   futex(0x7f, FUTEX_WAIT, 2, NULL <unfinished ...>
100   <... ioctl resumed>) = 6
101   --- SIGUSR1 {si_signo=SIGUSR1} ---
101   ioctl(7, KVM_RUN, 0 <unfinished ...>
100   write(1, "x", 1) = 1
100   +++ exited with 0 +++
"#;

    #[test]
    fn calls_are_counted_where_they_begin_up_to_the_first_run() {
        assert_eq!(before_first_run(LOG), Some(Calls { all: 6, ioctls: 1 }));
        assert_eq!(before_first_run("1 read(0, \"\", 1) = 0\n"), None);
    }

    #[test]
    fn a_start_counts_from_the_exec_of_the_vmm_itself() {
        let log = "9 10.000000 execve(\"/bin/chroot\", [\"KVM_RUN\"], 0x7f /* 2 vars */) = 0\n\
                   9 10.250000 execve(\"/bin/vmm\", [\"vmm\"], 0x7f /* 2 vars */) = 0\n\
                   9 10.500000 ioctl(3, KVM_CREATE_VM, 0) = 4\n\
                   11 11.000000 ioctl(5, KVM_RUN, 0 <unfinished ...>\n12 12.0 ioctl(6, KVM_RUN, 0) = 0\n";
        assert_eq!(exec_to_run(log), Some(0.75));
        assert_eq!(exec_to_run("9 10.0 execve(\"/bin/vmm\") = 0\n9 10"), None);
    }

    #[test]
    fn files_are_those_that_were_there() {
        let files: Vec<_> = files(LOG).into_iter().collect();
        assert_eq!(files, ["/bin/vmm", "/etc/ld.so.cache"]);
    }
}
