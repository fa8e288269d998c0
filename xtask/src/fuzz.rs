//! The fuzz targets, built with coverage by stable Rust and run by libFuzzer.

use std::fs;
use std::path::PathBuf;

use crate::{Context, Error, Result, paths, process};

/// What has the compiler count edges and comparisons as libFuzzer expects it.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";
/// The only target triple: with one, build scripts are built without [`COVERAGE`].
const TRIPLE: &str = "x86_64-unknown-linux-gnu";
/// The longest input that is tried, in bytes, and memory that an input may take, in MiB.
const LIMITS: [&str; 4] = ["-max_len=1024", "-rss_limit_mb=3000", "-timeout=20", "-print_final_stats=1"];

/// How long to fuzz what.
#[derive(clap::Args)]
pub struct Fuzz {
    /// The target; without one, all of them, one after the other.
    target: Option<String>,
    /// Seconds for each target.
    #[arg(long, default_value_t = 60, value_name = "N")]
    seconds: u64,
    /// Put what is new into the committed corpus, as few small inputs as have the same coverage.
    #[arg(long)]
    keep: bool,
}

/// The manifest of the programs.
pub fn manifest() -> PathBuf {
    paths::root().join("fuzz/Cargo.toml")
}

fn target_folder() -> PathBuf {
    paths::target().join("fuzz")
}

/// The names of all targets: each has a program.
fn targets() -> Result<Vec<String>> {
    let programs = paths::root().join("fuzz/fuzz_targets");
    let mut names: Vec<String> = fs::read_dir(&programs)
        .context(programs.display())?
        .flatten()
        .filter_map(|entry| Some(entry.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// Fuzzes. New inputs go to the target folder, and what makes a target fail to `fuzz/artifacts`.
///
/// # Errors
/// There is no such target, it does not compile, or it has failed.
pub fn run(fuzz: &Fuzz) -> Result<u8> {
    let all = targets()?;
    let chosen: Vec<&String> =
        all.iter().filter(|name| fuzz.target.as_ref().is_none_or(|wanted| wanted == *name)).collect();
    if chosen.is_empty() {
        let reason = format!("there is no fuzz target of this name: give one of {}", all.join(", "));
        return Err(Error::needs_developer(reason));
    }
    let mut cargo = process::command("cargo");
    cargo.args(["build", "--release", "--target", TRIPLE, "--manifest-path"]).arg(manifest());
    cargo.arg("--target-dir").arg(target_folder()).env("RUSTFLAGS", COVERAGE);
    process::run(cargo.current_dir(paths::root()))?;
    for name in chosen {
        fuzz_target(name, fuzz)?;
    }
    Ok(0)
}

fn fuzz_target(name: &str, fuzz: &Fuzz) -> Result<()> {
    let corpus = paths::root().join("fuzz/corpus").join(name);
    let found = target_folder().join("corpus").join(name);
    let artifacts = paths::root().join("fuzz/artifacts").join(name);
    for folder in [&corpus, &found, &artifacts] {
        fs::create_dir_all(folder).context(folder.display())?;
    }
    let program = || process::command(target_folder().join(TRIPLE).join("release").join(name));
    println!("fuzzing {name} for {} s ...", fuzz.seconds);
    let mut run = program();
    run.args([&found, &corpus]).args(LIMITS).arg(format!("-max_total_time={}", fuzz.seconds));
    run.arg(format!("-artifact_prefix={}/", artifacts.display()));
    process::run(&mut run)?;
    if fuzz.keep {
        process::run(program().arg("-merge=1").args(LIMITS).args([&corpus, &found]))?;
    }
    Ok(())
}
