//! What Linux has to complain of.

/// What is left of Linux's warnings (`dmesg -r`) without the `known` ones, and without those of the emulator's processor,
/// which come under any VMM.
pub fn complaints<'a>(warnings: &'a str, known: &[&str]) -> Vec<&'a str> {
    let (mut inside, mut left) = (false, Vec::new());
    let mut lines = warnings.lines().peekable();
    while let Some(line) = lines.next() {
        let emulator = |next: &&str| next.contains("XSAVE consistency problem");
        inside |= line.ends_with("[ cut here ]------------") && lines.peek().is_some_and(emulator);
        let expected =
            inside || line.contains("] CPUID[0d, ") || known.iter().any(|known| line.ends_with(known));
        inside &= !line.contains("[ end trace ");
        if !expected {
            left.push(line);
        }
    }
    left
}

/// The same, where more vCPUs than the emulator has processors make its guest slow.
pub fn complaints_if_slow<'a>(warnings: &'a str, known: &[&str]) -> Vec<&'a str> {
    let mut left = complaints(warnings, known);
    left.retain(|line| !line.contains("] hrtimer: interrupt took "));
    left
}
