//! What test binaries print: their list of tests, and the summary of a run.

/// What the summary of a run starts with.
const SUMMARY: &str = "test result: ";

/// The tests in the output of `--list --format terse`.
pub fn names(list: &str) -> Vec<String> {
    list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

/// How many tests did what, of one or more runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Passed.
    pub passed: usize,
    /// Failed.
    pub failed: usize,
    /// Ignored.
    pub ignored: usize,
}

/// Adds up the summary lines ("test result: ok. 1 passed; ...") of a log.
pub fn counts(log: &str) -> Counts {
    let mut sum = Counts::default();
    for line in log.lines().filter_map(|line| line.strip_prefix(SUMMARY)) {
        for part in line.split([';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(Ok(number)), Some(what)) = (words.next().map(str::parse::<usize>), words.next()) else {
                continue;
            };
            match what {
                "passed" => sum.passed += number,
                "failed" => sum.failed += number,
                "ignored" => sum.ignored += number,
                _ => {}
            }
        }
    }
    sum
}

/// The names of tests that have passed, in the output of a run.
pub fn passed(log: &str) -> impl Iterator<Item = &str> {
    let lines = log.lines().filter_map(|line| line.strip_prefix("test ")?.strip_suffix(" ... ok"));
    lines.map(|name| name.strip_suffix(" - should panic").unwrap_or(name))
}

/// The last summary of a log: a test that starts its own binary again, in a namespace say, has those
/// of the inner runs before it.
pub fn last_counts(log: &str) -> Counts {
    log.lines().rfind(|line| line.starts_with(SUMMARY)).map(counts).unwrap_or_default()
}

/// Returns true if a run came to its end, whatever came of it.
pub fn has_summary(log: &str) -> bool {
    log.lines().any(|line| line.starts_with(SUMMARY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_holds_tests_only() {
        let list = "a::b: test\nbench_it: benchmark\nsrc/lib.rs - x (line 3): test\n\n2 tests, 1 benchmark\n";
        assert_eq!(names(list), ["a::b", "src/lib.rs - x (line 3)"]);
    }

    #[test]
    fn tests_that_passed_are_named() {
        let log = "running 3 tests\ntest a::b ... ok\ntest c ... FAILED\ntest d - should panic ... ok\n\
            test e ... ignored\ntest result: FAILED. 2 passed; 1 failed\n";
        assert_eq!(passed(log).collect::<Vec<_>>(), ["a::b", "d"]);
    }

    #[test]
    fn summaries_are_added_up() {
        let log = "running 3 tests\ntest a ... ok\n\
            test result: FAILED. 12 passed; 1 failed; 2 ignored; 0 measured; 7 filtered out; finished in 0.01s\n\
            test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s\n";
        assert_eq!(counts(log), Counts { passed: 15, failed: 1, ignored: 2 });
        assert_eq!(last_counts(log), Counts { passed: 3, failed: 0, ignored: 0 });
        assert_eq!(last_counts(""), Counts::default());
        assert!(has_summary(log) && !has_summary("running 3 tests\ntest a ... ok\ntest b ... "));
        assert_eq!(counts("error: no such option"), Counts::default());
    }
}
