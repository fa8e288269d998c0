//! What Linux has to complain of.

/// What each kernel says first: where it is found, the log was read.
const FIRST: &str = "Linux version ";

/// A guest's command that prints the lines of its kernel's log with one of these words, and the first. To print all of them keeps an
/// emulated serial port busy for as long as a boot or two.
pub fn log_of(words: &[&str]) -> String {
    let words: String = [FIRST].iter().chain(words).map(|word| format!(" -e '{word}'")).collect();
    format!("dmesg | grep -F{words}")
}

/// Checks what [`log_of`] has printed: that the log was read, and none of the words is in it.
#[track_caller]
pub fn found_none(log: &str) {
    assert!(log.contains(FIRST) && log.lines().count() == 1, "{log}");
}

/// Of the emulator, in a line of their own: its processor's features, and that it has been away for milliseconds.
const EMULATOR: &[&str] = &["] CPUID[0d, ", "] hrtimer: interrupt took "];

/// What is left of Linux's warnings (`dmesg -r`) without the `known` ones, and without those of the emulator, which come under
/// any VMM: of its processor, and of how slow that is.
pub fn complaints<'a>(warnings: &'a str, known: &[&str]) -> Vec<&'a str> {
    let (mut inside, mut left) = (false, Vec::new());
    let mut lines = warnings.lines().peekable();
    while let Some(line) = lines.next() {
        let emulator = |next: &&str| next.contains("XSAVE consistency problem");
        inside |= line.ends_with("[ cut here ]------------") && lines.peek().is_some_and(emulator);
        let expected = inside
            || EMULATOR.iter().any(|words| line.contains(words))
            || known.iter().any(|known| line.ends_with(known));
        inside &= !line.contains("[ end trace ");
        if !expected {
            left.push(line);
        }
    }
    left
}
