//! What Linux has to complain of.

/// What is left of Linux's warnings (`dmesg -r`) without the `known` ones, and without those of an emulated processor, of its
/// features and of how slow it is, which come under any VMM.
pub fn complaints<'a>(warnings: &'a str, known: &[&str]) -> Vec<&'a str> {
    let (mut inside, mut left) = (false, Vec::new());
    let mut lines = warnings.lines().peekable();
    while let Some(line) = lines.next() {
        let emulator = |next: &&str| next.contains("XSAVE consistency problem");
        inside |= line.ends_with("[ cut here ]------------") && lines.peek().is_some_and(emulator);
        let emulated = ["] CPUID[0d, ", "] hrtimer: interrupt took "];
        let expected = inside
            || emulated.iter().any(|part| line.contains(part))
            || known.iter().any(|known| line.ends_with(known));
        inside &= !line.contains("[ end trace ");
        if !expected {
            left.push(line);
        }
    }
    left
}
