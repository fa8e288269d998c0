//! Developer commands: `cargo xtask --help` lists them.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::arch::Arch;
use xtask::demo::Demo;
use xtask::kernels::Flavour;
use xtask::nested::{self, Job, Machine};
use xtask::report::Report;
use xtask::suite::Selection;
use xtask::{Context, Result, demo, fuzz, guest, kernels, packages, report, suite};

/// Developer commands of Ossature.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Subcommand)]
enum Commands {
    /// Run a command, or a shell, in a machine with a full KVM, emulated by QEMU.
    Nested(Nested),
    /// Boot Debian's kernel in the example VMM, to a shell.
    Demo(Demo),
    /// Measure the example VMM beside the floor, QEMU and others: boot, exits, memory, disk, network.
    Report(Report),
    /// The part of `report` that runs where the guests run.
    #[command(hide = true)]
    Measure(report::Measure),
    /// Fuzz with stable Rust and libFuzzer: see docs/testing.md.
    Fuzz(fuzz::Fuzz),
    /// Run every test; the last line counts them.
    Test(Test),
    /// Run a list of tests; called by `test` in the places where they run.
    #[command(hide = true)]
    RunPlan { plan: PathBuf, results: PathBuf, at_a_time: usize, claims: Option<PathBuf> },
    /// Write a guest's initramfs, and say where the kernel for it is.
    Initramfs(Initramfs),
}

#[derive(clap::Args)]
struct Test {
    /// Take this step only.
    #[arg(long, value_name = "STEP", value_parser = clap::builder::PossibleValuesParser::new(suite::STEPS))]
    only: Option<String>,
    /// Take the steps of this architecture only.
    #[arg(long, value_enum)]
    arch: Option<Arch>,
    /// Run only tests whose binary or name contains this; those of examples if there are no others. It is an error if
    /// there are none.
    filter: Option<String>,
}

#[derive(clap::Args)]
struct Initramfs {
    /// What the guest runs before it powers off; without it, it offers a shell.
    #[arg(long, value_name = "CMD")]
    job: Option<String>,
    /// The guest's architecture [default: the host's].
    #[arg(long, value_enum, default_value_t = Arch::HOST, hide_default_value = true)]
    arch: Arch,
    /// The file to write.
    file: PathBuf,
}

#[derive(clap::Args)]
struct Nested {
    #[command(flatten)]
    what: NestedJob,
    /// Let the machine's time be the instructions that it executes.
    #[arg(long)]
    icount: bool,
    /// The machine's architecture [default: the host's]. On another one, Debian's programs for it are at hand instead of the
    /// host's.
    #[arg(long, value_enum, default_value_t = Arch::HOST, hide_default_value = true)]
    arch: Arch,
    /// With `--arch aarch64`: the machine has a GICv2 instead of a GICv3.
    #[arg(long)]
    gic_v2: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct NestedJob {
    /// A shell command to run in the repository's root: it has this command's standard input, output and error, and its
    /// exit code becomes this command's.
    #[arg(long, value_name = "CMD")]
    run: Option<String>,
    /// An interactive shell.
    #[arg(long)]
    shell: bool,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.code)
        }
    }
}

fn run(command: Commands) -> Result<u8> {
    match command {
        Commands::Nested(command) => {
            packages::ensure(if command.arch.is_host() {
                &[packages::NESTED]
            } else {
                packages::NESTED_AARCH64
            })?;
            let mut machine = Machine::of(command.arch)?;
            machine.counts_instructions = command.icount;
            machine.gic_v2 = command.gic_v2;
            match command.what.run {
                Some(script) => {
                    let input = |mut pipe| {
                        // When the pipe is dropped, the job reads the end of its input; it may end before.
                        let _ = io::copy(&mut io::stdin().lock(), &mut pipe);
                    };
                    let streams: &mut [(&str, &mut dyn io::Write)] =
                        &mut [(nested::OUT, &mut io::stdout()), (nested::ERR, &mut io::stderr())];
                    machine.run_streams(&Job::new(script), Some(Box::new(input)), streams)
                }
                None => machine.run_on_terminal(&Job { limit: None, ..Job::new("exec bash -i") }),
            }
        }
        Commands::Demo(demo) => demo::run(&demo),
        Commands::Report(report) => report::run(&report),
        Commands::Fuzz(fuzz) => fuzz::run(&fuzz),
        Commands::Measure(measure) => {
            report::run_measure(&measure)?;
            Ok(0)
        }
        Commands::Test(Test { only, arch, filter }) => suite::run(Selection { only, arch, filter }),
        Commands::RunPlan { plan, results, at_a_time, claims } => {
            suite::plan::run(&plan, &results, at_a_time, claims.as_deref())?;
            Ok(0)
        }
        Commands::Initramfs(Initramfs { job, arch, file }) => {
            packages::ensure(&[packages::GUEST])?;
            let kernel = kernels::fetch_for(arch, Flavour::Cloud)?;
            let mut tree = guest::tree(&kernel)?;
            if let Some(job) = job {
                tree.file("/job", 0o755, job);
            }
            std::fs::write(&file, tree.to_cpio()).context(file.display())?;
            println!("{}\n{}", kernel.vmlinux().display(), kernel.vmlinuz().display());
            Ok(0)
        }
    }
}
