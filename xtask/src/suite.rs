//! Every test of the workspace, each in the environment that it belongs to, and one line of counts
//! at the end. A test that a binary lists and that ran in no environment makes the suite fail.

mod aarch64;
mod binaries;
mod checks;
mod consumer;
mod emulation;
mod environment;
mod examples;
mod libtest;
mod links;
mod lock_file;
pub mod plan;
mod targets;

use std::process::Stdio;
use std::thread;
use std::time::Instant;

use binaries::Test;
use environment::Environment;
pub use environment::runner;
use plan::Entry;
use targets::Targets;

use crate::arch::Arch;
use crate::host::Kvm;
use crate::kernels::{self, Flavour};
use crate::{Error, Result, bare_metal, foreign, guest, nested, packages, paths, process, report, vmm};

/// The names of all steps, in the order they are taken.
pub const STEPS: &[&str] = &[
    "rustfmt",
    "clippy",
    "doc",
    "deny",
    "examples",
    "aarch64",
    "unit",
    "doctest",
    "loom",
    "kvm",
    "bench",
    "consumer",
    "guest",
    "report",
    "aarch64-unit",
    "aarch64-kvm",
    "aarch64-guest",
    "aarch64-gic-v2",
    "aarch64-instructions",
];

/// What the names of the steps for aarch64 start with. The others are for the host's architecture.
const AARCH64: &str = "aarch64";

/// Those that run tests of the workspace.
const LISTED: &[&str] = &["unit", "kvm", "bench", "guest"];

/// The targets of tests that take minutes.
const LONG: &[&str] = &["instructions", "kvm_board"];

/// What a step's checks and tests call, but for cargo and the nested machine.
pub fn programs(step: &str) -> &'static [&'static str] {
    match step {
        "unit" => &["dmidecode", "dtc", "iasl", "ip", "mke2fs", "qemu-img", "strace", "tshark", "valgrind"],
        "kvm" => &["ip", "strace"],
        "report" => report::PROGRAMS,
        "guest" => &[
            "btrfs", "busybox", "depmod", "dmsetup", "fio", "ip", "lspci", "lz4", "mke2fs", "mkfs.xfs",
            "passt", "qemu-img", "socat", "tcpdump",
        ],
        "aarch64-unit" | "aarch64-instructions" | "aarch64-kvm" | "aarch64-guest" | "aarch64-gic-v2" => {
            packages::CROSS_TESTS
        }
        _ => &[],
    }
}

/// What a developer wants to see only; the default leaves out nothing.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// The only step to take.
    pub only: Option<String>,
    /// Only the steps of this architecture.
    pub arch: Option<Arch>,
    /// Only tests whose binary or name contains this, and no checks.
    pub filter: Option<String>,
}

impl Selection {
    fn takes(&self, step: &str) -> bool {
        let arch = if step.starts_with(AARCH64) { Arch::Aarch64 } else { Arch::HOST };
        self.only.as_ref().is_none_or(|only| only == step) && self.arch.is_none_or(|only| only == arch)
    }

    fn takes_test(&self, test: &Test) -> bool {
        let contains = |filter: &String| test.name.contains(filter) || test.binary.id.contains(filter);
        self.filter.as_ref().is_none_or(contains)
    }
}

/// Takes every step that is selected, and prints the counts as the last line. Returns the exit code.
///
/// # Errors
/// Something is missing that the developer has to install.
pub fn run(selection: Selection) -> Result<u8> {
    let steps = STEPS.iter().filter(|step| selection.takes(step));
    let guests = ["guest", "report"].iter().any(|step| selection.takes(step));
    let machine = if guests { packages::machine() } else { &[] };
    let programs: Vec<&[&str]> = steps.map(|step| programs(step)).chain([machine]).collect();
    packages::ensure(&programs)?;
    let mut suite = Suite { selection, ..Suite::default() };
    for check in checks::BEFORE {
        suite.check(*check);
    }
    suite.check(("aarch64", aarch64::check));
    let tests = suite.list();
    suite.tests("unit", Environment::Hidden, &tests);
    suite.doctests();
    suite.loom();
    suite.tests("kvm", Environment::Own, &tests);
    suite.tests("bench", Environment::Own, &tests);
    suite.consumer();
    suite.guests(&tests);
    suite.aarch64();
    suite.finish()
}

/// The step that runs a test.
fn step_of(test: &Test) -> &'static str {
    if test.binary.is_bench { "bench" } else { Environment::of(&test.binary.target).step() }
}

#[derive(Default)]
struct Suite {
    selection: Selection,
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<String>,
}

impl Suite {
    /// Takes a step, unless the selection leaves it out: says its name, what came of it and how long
    /// it took. A step that cannot be taken counts as a failure of its name.
    fn step(&mut self, name: &str, what: impl FnOnce(&mut Suite) -> Result<()>) {
        if !self.selection.takes(name) {
            return;
        }
        println!("{name} ...");
        let start = Instant::now();
        let before = (self.passed, self.failed.len(), self.skipped.len());
        if let Err(error) = what(self) {
            println!("  {error}");
            self.failed.push(name.to_owned());
        }
        let passed = self.passed - before.0;
        let failed = self.failed.len() - before.1;
        let skipped = self.skipped.len() - before.2;
        let seconds = start.elapsed().as_secs_f32();
        println!("{name}: {passed} passed, {failed} failed, {skipped} skipped in {seconds:.1} s");
    }

    /// A check counts as one test.
    fn check(&mut self, (name, check): checks::Check) {
        if self.selection.filter.is_some() {
            return;
        }
        self.step(name, |suite| {
            check()?;
            suite.passed += 1;
            Ok(())
        });
    }

    /// Builds what can hold tests of the selected steps, and lists them.
    fn list(&mut self) -> Vec<Test> {
        if !LISTED.iter().any(|step| self.selection.takes(step)) {
            return Vec::new();
        }
        println!("building tests ...");
        let start = Instant::now();
        let tests = self.build().unwrap_or_else(|error| {
            println!("  {error}");
            self.failed.push("build".to_owned());
            Vec::new()
        });
        println!("{} tests are listed after {:.1} s", tests.len(), start.elapsed().as_secs_f32());
        tests
    }

    fn build(&self) -> Result<Vec<Test>> {
        let [tests, benches] = ["test", "bench"].map(|kind| binaries::target_names(kind, &[]));
        let (test_targets, bench_targets) = (tests?, benches?);
        let listed = |targets: &Targets| -> Result<Vec<Test>> {
            let words = targets.words(&test_targets, &bench_targets);
            let words: Vec<&str> =
                ["--workspace"].into_iter().chain(words.iter().map(String::as_str)).collect();
            binaries::all_tests(&binaries::build(&words)?)
        };
        let mut tests = Vec::new();
        for targets in Targets::of(&self.selection) {
            tests = listed(&targets)?;
            if self.selected(&tests).next().is_some() {
                break;
            }
        }
        // As tests, examples have names of their own; as programs, these tests start them.
        if self.selected(&tests).any(|test| test.binary.starts_examples) {
            // Of the whole workspace, as the tests: what they stand on is built once.
            let mut examples = process::command("cargo");
            process::run(examples.args(["build", "--workspace", "--examples"]).current_dir(paths::root()))?;
        }
        Ok(tests)
    }

    /// The tests that the selection runs.
    fn selected<'a>(&self, tests: &'a [Test]) -> impl Iterator<Item = &'a Test> {
        tests.iter().filter(|test| self.selection.takes(step_of(test)) && self.selection.takes_test(test))
    }

    /// Runs those of `tests` that belong to the step, and first those for which the others would be waited for at the end.
    fn tests(&mut self, step: &str, environment: Environment, tests: &[Test]) {
        let mut tests: Vec<&Test> = tests.iter().filter(|test| step_of(test) == step).collect();
        tests.sort_by_key(|test| !LONG.contains(&test.binary.target.as_str()));
        self.step(step, |suite| suite.run_tests(environment, &tests));
    }

    fn run_tests(&mut self, environment: Environment, tests: &[&Test]) -> Result<()> {
        let selected = tests.iter().copied().filter(|test| self.selection.takes_test(test));
        let (ignored, tests): (Vec<&Test>, Vec<&Test>) = selected.partition(|test| test.ignored);
        for test in ignored {
            println!("  ignored: {} {}", test.binary.id, test.name);
            self.skipped.push(shown(test));
        }
        if tests.is_empty() {
            return Ok(());
        }
        if environment == Environment::Full {
            prepare_guests()?;
        }
        let entries: Vec<Entry> = tests.iter().map(|test| Entry::new(test, environment.limit())).collect();
        self.count(&tests, environment.run(&entries)?);
        Ok(())
    }

    fn count(&mut self, tests: &[&Test], outcomes: Vec<Option<bool>>) {
        for (test, outcome) in tests.iter().zip(outcomes) {
            match outcome {
                Some(true) => self.passed += 1,
                Some(false) => self.failed.push(shown(test)),
                None => {
                    println!("  ran in no environment: {} {}", test.binary.id, test.name);
                    self.skipped.push(shown(test));
                }
            }
        }
    }

    fn doctests(&mut self) {
        let filter = self.selection.filter.clone();
        self.step("doctest", |suite| {
            let mut cargo = process::command("cargo");
            cargo.args(["test", "--doc", "--workspace", "--no-fail-fast", "--quiet"]);
            if let Some(filter) = filter {
                cargo.args(["--", &filter]);
            }
            let output = cargo.current_dir(paths::root()).stderr(Stdio::inherit()).output();
            let output = output.map_err(|error| Error::new(format!("cargo test --doc: {error}")))?;
            let said = String::from_utf8_lossy(&output.stdout);
            let counts = libtest::counts(&said);
            suite.passed += counts.passed;
            suite.failed.extend((0..counts.failed).map(|_| "a documentation test".to_owned()));
            suite.skipped.extend((0..counts.ignored).map(|_| "a documentation test".to_owned()));
            if output.status.success() && counts.ignored == 0 {
                return Ok(());
            }
            println!("{}", said.trim_end());
            // Failed tests are counted; without one, the tests themselves did not compile.
            if counts.failed + counts.ignored > 0 {
                Ok(())
            } else {
                Err(Error::new(output.status.to_string()))
            }
        });
    }

    /// A VMM that is built from the packaged crates, outside of the workspace, and its tests.
    fn consumer(&mut self) {
        self.step("consumer", |suite| {
            let tests = binaries::all_tests(&consumer::build()?)?;
            suite.passed += usize::from(suite.selection.filter.is_none());
            for environment in [Environment::Hidden, Environment::Own] {
                let here = |test: &&Test| Environment::of(&test.binary.target) == environment;
                let tests: Vec<&Test> = tests.iter().filter(here).collect();
                if tests.is_empty() {
                    return Err(Error::new(format!("the consumer has no test for {environment:?}")));
                }
                suite.run_tests(environment, &tests)?;
            }
            Ok(())
        });
    }

    /// The whole-machine tests, and beside them the check of the report, which leaves a core to others most of the time.
    fn guests(&mut self, tests: &[Test]) {
        let (report, check) = checks::REPORT;
        let takes = self.selection.filter.is_none() && self.selection.takes(report);
        // Both build, and fetch the same things: not at the same time.
        let both = takes && self.selection.takes("guest");
        let before = if both { prepare_guests() } else { Ok(()) };
        thread::scope(|scope| {
            let reporting = takes.then(|| before.map(|()| scope.spawn(check)));
            self.tests("guest", Environment::Full, tests);
            let Some(reporting) = reporting else { return };
            self.step(report, |suite| {
                joined(reporting?, "the report")?;
                suite.passed += 1;
                Ok(())
            });
        });
    }

    fn loom(&mut self) {
        self.step("loom", |suite| {
            let tests = loom_tests(Arch::HOST)?;
            suite.run_tests(Environment::Hidden, &tests.iter().collect::<Vec<_>>())
        });
    }

    /// Prints the counts. To have run nothing is no success.
    fn finish(&self) -> Result<u8> {
        for (what, names) in [("failed", &self.failed), ("skipped", &self.skipped)] {
            for name in names {
                println!("{what}: {name}");
            }
        }
        let (passed, failed, skipped) = (self.passed, self.failed.len(), self.skipped.len());
        if let Some(filter) = self.selection.filter.as_ref().filter(|_| passed + failed + skipped == 0) {
            let step =
                self.selection.only.as_ref().map(|step| format!("the step {step} has ")).unwrap_or_default();
            let what = "no test whose binary or name contains";
            return Err(Error::needs_developer(format!("nothing matches: {step}{what} {filter:?}")));
        }
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        Ok(u8::from(failed + skipped > 0))
    }
}

/// What came of a thread's work. To have panicked is a failure, too.
fn joined<T>(work: thread::ScopedJoinHandle<Result<T>>, what: &str) -> Result<T> {
    work.join().unwrap_or_else(|_| Err(Error::new(format!("{what} panicked"))))
}

/// Builds and fetches what whole-machine tests run.
fn prepare_guests() -> Result<()> {
    vmm::build_for_tests(Arch::HOST, &[])?;
    bare_metal::build()?;
    prepare_kernels(Arch::HOST)?;
    foreign::fetch()?;
    if Kvm::detect() == Kvm::Full { Ok(()) } else { nested::prepare(Arch::HOST) }
}

/// Fetches the kernels that guests of an architecture have, and makes what such guests have in common.
fn prepare_kernels(arch: Arch) -> Result<()> {
    for flavour in [Flavour::Cloud, Flavour::Generic] {
        guest::write_archives(&kernels::fetch_for(arch, flavour)?)?;
    }
    Ok(())
}

/// The models that loom explores: a build of its own, in which they replace the lock-free code's atomics.
fn loom_tests(arch: Arch) -> Result<Vec<Test>> {
    let folder = paths::target().join("loom");
    let arguments = ["-p", "ossature-bus", "--lib", "--target-dir", &folder.to_string_lossy()];
    let binaries = binaries::build_for(arch, &arguments, "--cfg loom")?;
    let mut tests = binaries::all_tests(&binaries)?;
    // The others are those that the unit step has run.
    tests.retain(|test| test.name.contains("loom_"));
    if tests.is_empty() { Err(Error::new("no loom model was built")) } else { Ok(tests) }
}

fn shown(test: &Test) -> String {
    format!("{} {}", test.binary.id, test.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x3_a_filter_that_nothing_matches_is_wrong_usage() {
        let selection = |only: Option<&str>, filter: Option<&str>| Selection {
            only: only.map(str::to_owned),
            filter: filter.map(str::to_owned),
            arch: None,
        };
        let suite = |selection, passed| Suite { selection, passed, ..Suite::default() };
        let error = suite(selection(Some("unit"), Some("zzzz")), 0).finish().unwrap_err();
        assert_eq!(error.code, 2);
        assert!(error.message.contains("unit") && error.message.contains("zzzz"), "{error}");
        assert_eq!(suite(selection(None, Some("zzzz")), 0).finish().unwrap_err().code, 2);
        assert_eq!(suite(selection(None, Some("found")), 1).finish().unwrap(), 0);
        let failed = Suite { failed: vec!["build".to_owned()], ..suite(selection(None, Some("zzzz")), 0) };
        assert_eq!(failed.finish().unwrap(), 1);
    }
}
