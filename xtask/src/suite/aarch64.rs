//! The checks that the workspace compiles for aarch64, and the tests that run in user emulation and in nested machines of it.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use super::binaries::{self, Test};
use super::consumer;
use super::emulation;
use super::environment::{self, Environment, Lines, Nested};
use super::plan::Entry;
use super::{Selection, Suite, joined, loom_tests, prepare_kernels};
use crate::arch::Arch;
use crate::nested::{self, Job, Machine};
use crate::{Error, Result, cross, paths, process, vmm};

/// What of the facade's benches, floors and tests compiles for it too, beside the whole-machine tests that run there.
const FACADE: &[&str] = &[
    "--package=ossature",
    "--package=ossature-measured",
    "--test=instructions",
    "--bench=machine",
    "--example=instructions",
    "--example=floor_machine",
    "--example=floor_exits",
];

/// The package whose examples all are for both architectures.
const EXAMPLES: &str = "ossature-examples";

/// The packages whose tests run there too: in user emulation, and what needs more of a kernel than that has in a nested machine.
const UNIT: &[&str] = &[
    "ossature-memory",
    "ossature-bus",
    "ossature-legacy",
    "ossature-pci",
    "ossature-block",
    "ossature-virtio",
    "ossature-boot",
    "ossature-core",
    "ossature-rust-vmm",
    "ossature-fuzz",
];

/// Of their tests, by a part of their names, thousands that take emulation minutes and that no architecture changes. They run
/// where a filter asks for them.
const SELDOM: &str = "conformance";

/// How the names of tests begin that never end in user emulation.
const NOT_EMULATED: &str = "machine::snapshot::live::";

/// The packages whose bare-metal guests run there too, on the KVM of that machine.
const KVM: &[&str] = &["ossature-core"];

/// Tests that cannot pass in the nested machine, or show nothing more there, and why.
const NOT_THERE: &[(&str, &str)] = &[
    ("a_bzimage_is_loaded_too_and_a_reset_ends_the_vmm_with_an_exit_code_of_its_own", BZIMAGE),
    ("a_guest_under_load_is_saved_while_it_runs_and_goes_on_with_memory_on_demand", WRITE_PROTECTION),
    ("a_kernel_that_panics", PORTS),
    ("t6_a_triple_fault_that_resets_the_machine", TRIPLE_FAULT),
    ("a_triple_fault", TRIPLE_FAULT),
    ("ctrl_alt_del_reboots", PORTS),
    ("forks_of_a_debian_guest_under_load_on_pci_have_nothing_in_common", FORKS_ON_PCI),
    ("the_boot_timer_prints_phases_and_stamps_what_the_guest_writes", PORTS),
    (
        "machine::snapshot::live::tests::a_device_that_has_work_when_it_goes_on_waits_for_the_copy_and_not_for_ever",
        WRITE_PROTECTION,
    ),
    (
        "machine::snapshot::live::tests::a_file_that_cannot_be_written_leaves_the_guest_as_it_was",
        WRITE_PROTECTION,
    ),
    ("machine::snapshot::live::tests::a_machine_that_ends_meanwhile_leaves_nothing", WRITE_PROTECTION),
    (
        "machine::snapshot::live::tests::memory_that_cannot_be_protected_is_refused_by_name_and_memory_on_demand_comes_first",
        WRITE_PROTECTION,
    ),
    (
        "machine::snapshot::live::tests::the_image_is_the_memory_of_the_pause_whatever_is_written_since",
        WRITE_PROTECTION,
    ),
    ("machine::snapshot::tree::tests::a_live_snapshot_has_a_tree", WRITE_PROTECTION),
    ("net::tap::tests::taps_of_the_kernel", BURSTS),
    ("passt_reaches_a_server_without_root", PASST),
    ("qcow2::tests::commit_writes_into_the_base_and_empties_the_overlay", QEMU_IMG),
    ("qcow2::tests::exchange::a_chain_of_qemu_is_read_to_its_end", QEMU_IMG),
    ("qcow2::tests::hostile::d4_a_header_that_a_guest_writes_into_its_raw_disk_is_data", QEMU_IMG),
    ("qcow2::tests::hostile::d5_chains_end_and_their_memory_is_bounded", QEMU_IMG),
    ("qcow2::tests::model::a_chain_is_an_array_of_bytes", QEMU_IMG),
    (
        "qcow2::tests::power::what_was_flushed_survives_a_power_cut_at_any_point_whatever_else_is_lost",
        QEMU_IMG,
    ),
    ("qcow2::tests::rebase_keeps_the_contents", QEMU_IMG),
    ("qcow2::tests::resize_gains_zeros_whatever_was_there_before", QEMU_IMG),
    ("sync_past_the_page_cache_ends_as_the_model_does", DIRECT),
    ("uring_past_the_page_cache_ends_as_the_model_does", DIRECT),
    ("userfault::tests::a_write_to_a_protected_page_waits", WRITE_PROTECTION),
    ("userfault::tests::held_pages_are_written_before_they_are_gone", WRITE_PROTECTION),
    ("userfault::tests::memory_whose_faults_cannot_be_served_is_refused_by_name", WRITE_PROTECTION),
];
/// Of whole-machine tests: what they look at is x86_64's.
const PORTS: &str = "there are no I/O ports: no pvpanic, keyboard controller, boot timer";
const BZIMAGE: &str = "kernels of this architecture are no bzImages";
const FORKS_ON_PCI: &str = "on PCI, states go on in `guest_snapshot` and `guest_state`";
const TRIPLE_FAULT: &str = "no exception ends a processor of this architecture";
const BURSTS: &str = "with Debian's Linux 6.1, packets of a tap go one by one";
const DIRECT: &str = "the machine's folder for files that go is in memory, which is its own page cache";
const QEMU_IMG: &str =
    "files behind others are opened by openat2, which user emulation lacks, and made by the host's qemu-img";
const PASST: &str = "a program of the host's, with another architecture's libraries";
const WRITE_PROTECTION: &str =
    "userfaultfd protects pages from writes on arm64 from Linux 6.10 on; Debian's is 6.1";

/// The whole-machine tests that run there too, by binary. The others look at what only x86_64 has, or at what no architecture
/// changes.
const GUEST: &[&str] = &[
    "guest_aarch64",
    "guest_console",
    "guest_disk",
    "guest_fork",
    "guest_hotplug",
    "guest_net",
    "guest_numa",
    "guest_pci",
    "guest_power",
    "guest_reset",
    "guest_rust_vmm",
    "guest_snapshot",
    "guest_state",
    "guest_vsock",
];

/// Of both, those that run once more where the interrupt controller is a GICv2. Others do if they are asked for.
const GIC_V2: &[&str] = &[
    "a_line_that_is_asserted_is_part_of_the_state",
    "four_processors_and_a_device_tree",
    "the_gic_is_reset_and_restored",
];

/// The step that counts instructions.
const INSTRUCTIONS: &str = "aarch64-instructions";

/// Where they run.
const NESTED: Nested = Nested { arch: Arch::Aarch64, gic_v2: false };

/// How long all tests of a binary may take in the nested machine.
const LIMIT: Duration = Duration::from_secs(1800);

impl Suite {
    /// The steps that run tests in the nested machine.
    pub(super) fn aarch64(&mut self) {
        if Arch::Aarch64.is_host() {
            return;
        }
        thread::scope(|scope| {
            // For minutes on one core, beside what the others do. Not while they fetch the same things.
            let takes = self.selection.takes(INSTRUCTIONS);
            let tests = takes.then(|| instruction_tests(&self.selection));
            let counting = tests.map(|tests| scope.spawn(move || count_instructions(tests?)));
            self.tests_in_machines();
            self.step(INSTRUCTIONS, |suite| {
                let counting = counting.ok_or_else(|| Error::new("it was not begun"))?;
                let (tests, outcomes) = joined(counting, "the counting")?;
                suite.count(&tests.iter().collect::<Vec<_>>(), outcomes);
                Ok(())
            });
        });
    }

    fn tests_in_machines(&mut self) {
        self.step("aarch64-unit", |suite| {
            let unit = list_of(UNIT, Environment::Hidden)?;
            let tests = [unit, loom_tests(Arch::Aarch64)?].concat();
            let all = suite.selection.filter.is_some();
            let selected =
                |test: &&Test| suite.selection.takes_test(test) && (all || !test.name.contains(SELDOM));
            let mut left: Vec<&Test> = tests.iter().filter(selected).collect();
            let can = |test: &&Test| !test.name.starts_with(NOT_EMULATED);
            let emulated: Vec<&Test> = left.iter().copied().filter(can).collect();
            let passed = emulation::passed(&emulated)?;
            suite.passed += passed.len();
            left.retain(|test| !passed.contains(test) && !is_not_there(test));
            suite.run_whole(&left)
        });
        self.step("aarch64-kvm", |suite| {
            let tests = list_of(KVM, Environment::Own)?;
            let tests = suite.chosen(&tests);
            suite.run_each(&tests, Environment::Own, NESTED)
        });
        self.step("aarch64-guest", |suite| {
            let tests = guest_tests()?;
            let tests = suite.chosen(&tests);
            suite.run_each(&tests, Environment::Full, NESTED)
        });
        self.step("aarch64-gic-v2", |suite| {
            let tests = [list_of(KVM, Environment::Own)?, guest_tests()?].concat();
            let mut tests = suite.chosen(&tests);
            let every = suite.selection.filter.is_some();
            tests.retain(|test| every || GIC_V2.contains(&test.name.as_str()));
            if !every && tests.len() != GIC_V2.len() {
                return Err(Error::new(format!("not all of these tests are there: {GIC_V2:?}")));
            }
            suite.run_each(&tests, Environment::Full, Nested { gic_v2: true, ..NESTED })
        });
    }

    /// Runs each test in a process of its own.
    fn run_each(&mut self, tests: &[&Test], environment: Environment, nested: Nested) -> Result<()> {
        let entries: Vec<Entry> = tests.iter().map(|test| Entry::new(test, environment.limit())).collect();
        let outcomes = in_machines(&entries, |entries| environment::in_nested_machines(nested, entries))?;
        self.count(tests, outcomes);
        Ok(())
    }

    /// The tests that the selection runs, without those that cannot pass there.
    fn chosen<'a>(&mut self, tests: &'a [Test]) -> Vec<&'a Test> {
        let possible = |test: &&Test| !is_not_there(test);
        tests.iter().filter(|test| self.selection.takes_test(test)).filter(possible).collect()
    }

    /// Runs tests, those of each binary in one process, as it is done on a slow processor. Where one fails, each has one of its
    /// own.
    fn run_whole(&mut self, tests: &[&Test]) -> Result<()> {
        let mut again: Vec<&Test> = Vec::new();
        let parts: Vec<&[&Test]> =
            tests.chunk_by(|one, other| one.binary.file == other.binary.file).collect();
        let entries: Vec<Entry> = parts.iter().filter_map(|part| Entry::several(part, LIMIT)).collect();
        let outcomes =
            in_machines(&entries, |entries| environment::once_in_nested_machines(NESTED, entries))?;
        for (part, outcome) in parts.into_iter().zip(outcomes) {
            match outcome {
                Some(true) => self.passed += part.len(),
                _ => again.extend(part.iter().copied()),
            }
        }
        self.run_each(&again, Environment::Hidden, NESTED)
    }
}

/// Returns true if the test is one of [`NOT_THERE`].
fn is_not_there(test: &Test) -> bool {
    NOT_THERE.iter().any(|(name, _)| *name == test.name)
}

/// The tests of [`INSTRUCTIONS`] that are selected. Fetches what they run in.
fn instruction_tests(selection: &Selection) -> Result<Vec<Test>> {
    let mut tests = list(&["--test", "instructions"])?;
    tests.retain(|test| selection.takes_test(test));
    nested::prepare(Arch::Aarch64)?;
    Ok(tests)
}

/// The tests, and what became of each.
fn count_instructions(tests: Vec<Test>) -> Result<(Vec<Test>, Vec<Option<bool>>)> {
    let start = Instant::now();
    let outcomes = tests.iter().map(|test| passes_counting(test).map(Some)).collect::<Result<_>>()?;
    println!("  {INSTRUCTIONS}: counted in {:.1} s", start.elapsed().as_secs_f32());
    Ok((tests, outcomes))
}

/// Runs a test in a nested machine whose processor counts its instructions, on a program that is built here: there is no cargo.
fn passes_counting(test: &Test) -> Result<bool> {
    let program = cross::build_optimized(Arch::Aarch64, "ossature-measured", "instructions")?;
    let mut machine = Machine::of(Arch::Aarch64)?;
    machine.counts_instructions = true;
    let [program, file] = [&program, &test.binary.file].map(|path| process::quote_path(path));
    let test = process::quote(&test.name);
    let script = format!(
        "INSTRUCTIONS_PROGRAM={program} {file} --exact {test} >/tmp/counted; code=$?; cat /tmp/counted
        grep -q '^test result: ok. 1 passed; 0 failed; 0 ignored' /tmp/counted && exit $code"
    );
    let job = Job::new(script);
    Ok(machine.run(&job, &mut Lines::new(io::stdout()), &mut Lines::new(io::stderr()))? == 0)
}

type Outcomes = Result<Vec<Option<bool>>>;

fn in_machines(entries: &[Entry], run: impl FnOnce(&[Entry]) -> Outcomes) -> Outcomes {
    if entries.is_empty() {
        return Ok(Vec::new());
    }
    cross::build(Arch::Aarch64, &["--package", "xtask"])?;
    run(entries)
}

/// Builds what guests run on and the whole-machine tests, and lists these.
fn guest_tests() -> Result<Vec<Test>> {
    // The last two run in guests.
    vmm::build_for_tests(Arch::Aarch64, &["--example", "vsock", "--example", "clone"])?;
    prepare_kernels(Arch::Aarch64)?;
    list(&GUEST.iter().flat_map(|binary| ["--test", binary]).collect::<Vec<_>>())
}

/// Builds the test binaries of packages that belong to the environment, and lists their tests.
fn list_of(packages: &[&str], environment: Environment) -> Result<Vec<Test>> {
    let targets = binaries::target_names("test", packages)?;
    let here = targets.iter().filter(|target| Environment::of(target) == environment);
    let mut words: Vec<&str> = here.flat_map(|target| ["--test", target]).collect();
    if environment == Environment::Hidden {
        // The suite's own are of the machine that runs it.
        words.extend(["--lib", "--exclude", "xtask"]);
    }
    let mut tests = list(&words)?;
    tests.retain(|test| packages.contains(&test.binary.package()));
    Ok(tests)
}

/// Builds test binaries and lists their tests. Of the whole workspace, as all that is built for emulators: with the same
/// features in each step, what they have in common is compiled once.
fn list(targets: &[&str]) -> Result<Vec<Test>> {
    binaries::all_tests(&binaries::build_for(Arch::Aarch64, &[&["--workspace"], targets].concat(), "")?)
}

/// Checks all libraries and programs, the examples, the tests that are not x86's, the crates as they are published, and their
/// documentation. Has a target folder of its own, so that the other steps find theirs as
/// they left it.
pub fn check() -> Result<()> {
    let cargo = |what: &[&str]| {
        let mut cargo = process::command("cargo");
        cargo.args(what).arg("--target-dir").arg(paths::target().join("aarch64"));
        cross::set_up(&mut cargo, Arch::Aarch64, "-D warnings")?;
        process::run(cargo.current_dir(paths::root()))
    };
    let examples = binaries::target_names("example", &[EXAMPLES])?;
    let examples: Vec<&str> = examples.iter().flat_map(|name| ["--example", name]).collect();
    cargo(&[&["check", "--package", EXAMPLES], FACADE, &examples].concat())?;
    let packages = UNIT.iter().chain(&["xtask"]);
    let tests = packages.flat_map(|package| ["--package", package]);
    cargo(&["check", "--all-targets"].into_iter().chain(tests).collect::<Vec<_>>())?;
    let published = [&["--workspace"], consumer::NOT_PUBLISHED].concat();
    cargo(&[&["doc", "--all-features", "--no-deps", "--quiet"][..], &published].concat())?;
    let packages = consumer::package()?;
    let packages = packages.words();
    cargo(&["check", "--quiet"].into_iter().chain(packages.iter().map(String::as_str)).collect::<Vec<_>>())
}
