//! Which targets a selection of tests needs built.

use super::environment::Environment;
use super::{LISTED, Selection};

/// Kinds of targets that can hold tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets {
    /// The steps whose test binaries are built.
    steps: Vec<&'static str>,
    /// Examples too, which may have tests of their own.
    examples: bool,
}

impl Targets {
    /// What to build, one after the other until a selected test is found: with a filter, the examples come only after
    /// everything else.
    pub fn of(selection: &Selection) -> Vec<Targets> {
        let steps: Vec<&str> = LISTED.iter().copied().filter(|step| selection.takes(step)).collect();
        let with_examples = Targets { examples: steps.contains(&"unit"), steps };
        let without = Targets { examples: false, ..with_examples.clone() };
        match &selection.filter {
            Some(_) if with_examples.examples => vec![without, with_examples],
            _ => vec![with_examples],
        }
    }

    /// The words that choose them for `cargo test`, out of all integration tests and benches by name.
    pub fn words(&self, tests: &[String], benches: &[String]) -> Vec<String> {
        let has = |step| self.steps.contains(&step);
        let mut words = Vec::new();
        if has("unit") {
            words.extend(["--lib", "--bins"].map(str::to_owned));
        }
        for name in tests.iter().filter(|name| has(Environment::of(name).step())) {
            words.extend(["--test".to_owned(), name.clone()]);
        }
        // By name: `--benches` would build every library too.
        for name in benches.iter().filter(|_| has("bench")) {
            words.extend(["--bench".to_owned(), name.clone()]);
        }
        words.extend(self.examples.then(|| "--examples".to_owned()));
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(only: Option<&str>, filter: Option<&str>) -> Vec<String> {
        let selection =
            Selection { only: only.map(str::to_owned), filter: filter.map(str::to_owned), arch: None };
        let tests = ["guest_boot", "kvm_run", "wakeups"].map(str::to_owned);
        Targets::of(&selection)
            .iter()
            .map(|targets| targets.words(&tests, &["bus".to_owned()]).join(" "))
            .collect()
    }

    #[test]
    fn x3_a_step_builds_what_it_runs() {
        let unit = "--lib --bins --test wakeups";
        assert_eq!(words(Some("unit"), Some("queue")), [unit.to_owned(), format!("{unit} --examples")]);
        assert_eq!(words(Some("unit"), None), [format!("{unit} --examples")]);
        assert_eq!(words(Some("kvm"), Some("queue")), ["--test kvm_run"]);
        assert_eq!(words(Some("guest"), None), ["--test guest_boot"]);
        assert_eq!(words(Some("bench"), Some("bus")), ["--bench bus"]);
        let all = "--lib --bins --test guest_boot --test kvm_run --test wakeups --bench bus --examples";
        assert_eq!(words(None, None), [all]);
    }
}
