//! `cargo xtask report`: boots, exits, memory and I/O of our example VMM beside the floor, QEMU and whatever else is
//! given, in one run in which all of them take turns.
//!
//! By default everything runs in the nested machine, whose time is the number of instructions executed: the figures
//! are the same whatever else the host does. What is measured: [`figures::GROUPS`].

pub mod contender;
pub mod figures;
mod html;
pub mod options;
mod peers;
mod table;
mod timeline;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::arch::Arch;
use crate::host::Kvm;
use crate::kernels::{self, Flavour};
use crate::measure::Scope;
use crate::nested::{Job, Machine};
use crate::process::{self, quote, quote_path};
use crate::{Context, Error, Result, cross, guest, measure, packages, paths, stamp, suite, vmm};
use contender::PLACEHOLDERS;
use figures::Figures;
use options::Options;
use timeline::Timeline;

/// What it calls, but for cargo, the other VMMs and the nested machine.
pub const PROGRAMS: &[&str] = &["busybox", "depmod", "lz4", "ip", "strace"];
/// What another architecture's nested machine has for it: the VMMs.
const PEERS: &[&str] = &["qemu-system-arm"];
/// How long the nested machine may say nothing: several times what the longest step takes on a busy host.
const SILENCE: Duration = Duration::from_secs(300);
/// How often the nested machine is started for one report.
const ATTEMPTS: usize = 4;

/// What the guests load, in this order: their devices' drivers.
const MODULES: &[&str] = &["virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net", "virtio_rng"];

/// `cargo xtask report`
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = placeholders_help())]
pub struct Report {
    /// What is measured, and how.
    #[command(flatten)]
    pub options: Options,
    /// Measure as root on this host's own KVM, in seconds, instead of in an emulated machine that counts instructions
    #[arg(long)]
    host: bool,
    /// The architecture of the nested machine and its guests [default: the host's]
    #[arg(long, value_enum, default_value_t = Arch::HOST, hide_default_value = true)]
    arch: Arch,
    /// Where report.html, timeline.json and figures.json go [default: target/report]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// `xtask measure`: the part of the report that runs where the guests run.
#[derive(clap::Args, Clone, Debug)]
pub struct Measure {
    #[command(flatten)]
    options: Options,
    /// The folder with kernel, guest and VMMs.
    #[arg(long)]
    input: PathBuf,
    /// Where the figures go.
    #[arg(long)]
    output: PathBuf,
    /// Take the starts by the clock alone.
    #[arg(long)]
    native: bool,
}

fn placeholders_help() -> String {
    let width = PLACEHOLDERS.iter().map(|(name, _)| name.len() + 2).max().unwrap_or_default();
    let lines =
        PLACEHOLDERS.iter().map(|(name, what)| format!("  {:<width$}  {what}\n", format!("{{{name}}}")));
    format!(
        "In the command of --vs:\n{}\nSuch as: --vs fc='firecracker --no-api --config-file {{config}}'",
        lines.collect::<String>()
    )
}

/// Takes the figures, prints the table and writes the files. Returns the exit code: 1 if a VMM failed.
///
/// # Errors
/// Something is missing that the developer has to install, or nothing could be measured.
pub fn run(report: &Report) -> Result<u8> {
    let arch = report.arch;
    if !arch.is_host() && (report.host || report.options.quick) {
        return Err(Error::needs_developer(
            "--arch is of the nested machine that counts: leave --host and --quick out",
        ));
    }
    if arch.is_host() {
        let machine = if report.host { &[] } else { packages::NESTED };
        packages::ensure(&[PROGRAMS, machine])?;
    } else {
        packages::ensure(packages::NESTED_AARCH64)?;
    }
    let contenders = report.options.contenders(arch, Path::new("/"), Path::new("/"));
    let names: Vec<String> = contenders.into_iter().map(|one| one.name).collect();
    if let Some(twice) =
        names.iter().enumerate().find_map(|(at, name)| names[..at].contains(name).then_some(name))
    {
        return Err(Error::needs_developer(format!("two VMMs have the name {twice}: give --vs another")));
    }
    // Of another architecture, the nested machine's programs are not here.
    for contender in report.options.others().filter(|_| arch.is_host()) {
        let program = contender.words.first().map(String::as_str).unwrap_or_default();
        if measure::find_program(program).is_none() {
            return Err(Error::needs_developer(format!(
                "--vs {}: there is no program {program}",
                contender.name
            )));
        }
    }
    let kvm = Kvm::detect();
    if report.host && kvm != Kvm::Full {
        let message = "guests with stock kernels do not run on this host's KVM: leave --host out";
        return Err(Error::needs_developer(message));
    }
    let folder = match &report.out {
        Some(folder) => std::path::absolute(folder).context(folder.display())?,
        None if arch.is_host() => paths::target().join("report"),
        None => paths::target().join(format!("report-{}", arch.facts().debian)),
    };
    let input = folder.join("input");
    prepare(&input, arch)?;
    let (figures, place) = if report.host {
        (on_host(&report.options, &input, Scope::All)?, "on this host's KVM, in seconds")
    } else if report.options.quick {
        (nested(report, &input, false)?, "in the nested machine, by the host's clock")
    } else {
        let place = "in the nested machine, where a nanosecond is an instruction executed, of the VMM, the host's \
                     kernel and the guest, and an iteration of rep movs is an instruction too";
        let mut figures = nested(report, &input, true)?;
        if arch.is_host() && !matches!(kvm, Kvm::Missing(_)) {
            add_native(&mut figures, &report.options, &input);
        }
        (figures, place)
    };

    let about = format!(
        "Taken {place}; all VMMs in turn, in a root folder in memory; {} CPU(s), {} MiB, kernel command line {:?}; the \
         least of {} run(s).",
        report.options.cpus,
        report.options.memory,
        report.options.cmdline(arch),
        report.options.runs()
    );
    let timeline = Timeline::parse(&figures.boot_timer, figures.exec_to_run);
    println!("{about}\n\n{}", table::text(&figures));
    if !figures.boot_timer.is_empty() {
        println!("From exec to the guest, microvm. {}\n{}", timeline.about(&figures), timeline.text());
    }
    let write = |name: &str, text: String| {
        let file = folder.join(name);
        fs::write(&file, text).context(file.display())?;
        println!("{}", file.display());
        Ok(())
    };
    write("report.html", html::page(&figures, &timeline, &about))?;
    write("timeline.json", timeline.to_trace().to_string())?;
    write("figures.json", figures.to_json().to_string())?;
    for failure in &figures.failures {
        eprintln!("failed: {failure}");
    }
    Ok(u8::from(!figures.failures.is_empty()))
}

/// Takes a quick report without other VMMs, and looks for a figure in each row.
///
/// # Errors
/// A row or a file is not as it should be.
pub fn check() -> Result<()> {
    let folder = paths::target().join("xtask-tests/report");
    if run(&Report { options: Options::quick(), host: false, arch: Arch::HOST, out: Some(folder.clone()) })?
        != 0
    {
        return Err(Error::new("a VMM failed: see above"));
    }
    let read = |name: &str| fs::read_to_string(folder.join(name)).context(name);
    let figures = Figures::from_json(&read("figures.json")?)?;
    let has = |name: &str, metric: &str| {
        figures.contenders.iter().any(|measured| measured.name == name && measured.has(metric))
    };
    let rows = figures::GROUPS.iter().flat_map(|group| group.rows);
    let of_floor = ["first-run", "calls", "ioctls", "binary"].map(|metric| ("floor", metric));
    let rows = rows.filter(|row| row.metric != figures::NATIVE).map(|row| ("microvm", row.metric));
    for (name, metric) in rows.chain(of_floor) {
        if !has(name, metric) {
            return Err(Error::new(format!("the report has no figure {metric} of {name}")));
        }
    }
    let timeline = read("timeline.json")?;
    for event in ["exec", "payload", "first KVM_RUN of vcpu0", "guest: drivers loaded"] {
        if !timeline.contains(&format!("\"{event}\"")) {
            return Err(Error::new(format!("timeline.json does not tell of {event:?}")));
        }
    }
    Ok(())
}

/// Runs `xtask measure`.
///
/// # Errors
/// As [`measure::run`].
pub fn run_measure(measure: &Measure) -> Result<()> {
    let scope = if measure.native { Scope::Native } else { Scope::All };
    measure::run(&measure.options, &measure.input, &measure.output, scope)
}

/// Builds what is measured and what its guests run.
fn prepare(folder: &Path, arch: Arch) -> Result<()> {
    fs::create_dir_all(folder).context(folder.display())?;
    vmm::build_for(arch, false)?;
    let floor = if arch == Arch::X86_64 { Some(vmm::build_floor()?) } else { None };
    let kernel = kernels::fetch_for(arch, Flavour::Cloud)?;
    let program = folder.join("guest");
    let mut rustc = process::command(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc
        .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "panic=abort"])
        .args(["-C", "strip=symbols", "--target", arch.facts().target])
        .args((!arch.is_host()).then_some(["-C", "linker=aarch64-linux-gnu-gcc"]).into_iter().flatten())
        .arg("-o")
        .arg(&program)
        .arg(paths::root().join("xtask/src/bin/report-guest.rs"));
    process::run(&mut rustc)?;

    let mut tree = guest::busybox_tree_for(arch)?;
    tree.copy("/init", &program)?;
    for value in if arch == Arch::X86_64 { &[1, 2][..] } else { &[] } {
        tree.file(&format!("/bin/stamp-{value}"), 0o755, stamp::program(*value));
    }
    guest::add_modules(&mut tree, &kernel, MODULES, |module| module)?;
    let initrd = folder.join("initrd");
    fs::write(&initrd, tree.to_cpio()).context(initrd.display())?;
    let copies =
        [(kernel.vmlinux(), "kernel"), (kernel.vmlinuz(), "bzimage"), (vmm::program_for(arch), "microvm")];
    for (from, name) in copies.into_iter().chain(floor.map(|floor| (floor, "floor"))) {
        fs::copy(&from, folder.join(name)).context(from.display())?;
    }
    Ok(())
}

/// Measures in namespaces of its own, on this host.
fn on_host(options: &Options, input: &Path, scope: Scope) -> Result<Figures> {
    let (name, flags): (&str, &[&str]) = match scope {
        Scope::All => ("figures.json", &[]),
        // The tap disturbs nobody, and an ordinary user may make it.
        Scope::Native if process::is_root() => ("native.json", &["--net"]),
        Scope::Native => ("native.json", &["--net", "--user", "--map-root-user"]),
    };
    let output = input.join(name);
    if output.exists() {
        fs::remove_file(&output).context(output.display())?;
    }
    let own = std::env::current_exe().context("the path of this program")?;
    let mut measure = process::command("unshare");
    measure
        .arg("--mount")
        .args(flags)
        .arg(own)
        .arg("measure")
        .arg("--input")
        .arg(input)
        .arg("--output")
        .arg(&output);
    measure.args((scope == Scope::Native).then_some("--native")).args(options.words());
    process::run(&mut measure)?;
    read(&output)
}

/// Adds the starts by the clock on this host's KVM, whether or not that runs stock kernels.
fn add_native(figures: &mut Figures, options: &Options, input: &Path) {
    match on_host(options, input, Scope::Native) {
        Ok(native) => figures.add(figures::NATIVE, &native),
        Err(error) => eprintln!("report: no starts by the clock on this host: {error}"),
    }
}

fn read(figures: &Path) -> Result<Figures> {
    Figures::from_json(&fs::read_to_string(figures).context(figures.display())?)
}

fn nested(report: &Report, input: &Path, counts_instructions: bool) -> Result<Figures> {
    let mut machine =
        if report.arch.is_host() { Machine::new()? } else { Machine::with(report.arch, PEERS)? };
    machine.counts_instructions = counts_instructions;
    let needed = report.options.memory + 4096;
    machine.memory_mib = machine.memory_mib.max(needed);
    if !report.arch.is_host() {
        cross::build(report.arch, &["--package", "xtask"])?;
    }
    let own = suite::runner(report.arch)?;
    let output = machine.shared().join("figures.json");
    let words: Vec<String> = report.options.words().iter().map(|word| quote(word)).collect();
    // From memory: the host's files take time to read.
    let script = format!(
        "cp {} /dev/shm/xtask && exec unshare --mount /dev/shm/xtask measure --input {} --output {} {}",
        quote_path(&own),
        quote_path(input),
        quote_path(&output),
        words.join(" "),
    );
    let job = Job { limit: None, silence: Some(SILENCE), ..Job::new(script) };
    // The emulator stands still now and then: what is measured by then stays.
    for _ in 0..ATTEMPTS {
        match machine.run(&job, &mut io::stdout(), &mut io::stderr()) {
            Ok(0) => return read(&output),
            Ok(code) => return Err(Error::new(format!("measuring in the nested machine ended with {code}"))),
            Err(error) => eprintln!("report: {error}; going on in a new one"),
        }
    }
    Err(Error::new(format!("the nested machine stood still {ATTEMPTS} times")))
}
