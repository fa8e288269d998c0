//! The nested machine: QEMU emulates a PC with AMD's virtualization or an Arm machine with EL2, Debian's kernel runs KVM on
//! it, and a job runs there that sees the host's files. This is how guests with stock kernels are tested on hosts whose
//! processor offers no virtualization.
//!
//! The job sees the host's root folder as it is, or another architecture's Debian and the repository at its path; what it
//! writes stays in the machine's memory and ends with it, but for [`Machine::shared`].

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::arch::Arch;
use crate::follow::Follow;
use crate::kernels::{self, Flavour, Kernel};
use crate::process::{command, quote, quote_path, stty, terminal_size};
use crate::{Context, Error, Result, guest, paths, port};

/// What Debian's generic kernel has as modules and the nested machine needs.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "9p",
    "9pnet_virtio",
    "overlay",
    "tun",
    "loop",
    "ext4",
    "vhost_net",
    "vhost_vsock",
];

/// Where the host's programs do not run, the packages of those that jobs call.
const PACKAGES: &[&str] = &[
    "busybox-static",
    "e2fsprogs",
    "iproute2",
    "kmod",
    "lz4",
    "mount",
    "pciutils",
    "socat",
    "strace",
    "tcpdump",
];

/// Environment of the calling process that jobs see too.
const PASSED_ON: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "TERM",
    "RUST_BACKTRACE",
    "RUST_LOG",
    "CARGO_TARGET_DIR",
    // Of tests at random moments: which, and how many.
    "SEED",
    "MOMENTS",
];

/// The job's standard output, in the shared folder.
pub const OUT: &str = "out";
/// The job's standard error, in the shared folder.
pub const ERR: &str = "err";
/// What machines have in common, in the shared folder of each.
pub const COMMON: &str = "common";
/// Where a job's input comes in.
const INPUT_PORT: &str = "/dev/vport0p1";
/// QEMU's standard input and output are the job's terminal.
const CONSOLE: [&str; 2] = ["-device", "virtconsole,chardev=job"];

/// Writes a job's standard input, on a thread of its own.
pub type Input = Box<dyn FnOnce(ChildStdin) + Send>;

/// What a nested machine does.
#[derive(Clone, Debug)]
pub struct Job {
    /// A script for `/bin/sh`.
    pub script: String,
    /// Where the script starts.
    pub folder: PathBuf,
    /// When the machine is turned off at the latest; never, if none.
    pub limit: Option<Duration>,
    /// When it is turned off because the job has printed nothing for so long; never, if none.
    pub silence: Option<Duration>,
}

impl Job {
    /// A job in the repository's root folder that may take an hour.
    pub fn new(script: impl Into<String>) -> Job {
        Job {
            script: script.into(),
            folder: paths::root(),
            limit: Some(Duration::from_secs(3600)),
            silence: None,
        }
    }
}

/// Fetches what machines of an architecture are made of, before several threads do so at the same time.
///
/// # Errors
/// It cannot be fetched.
pub fn prepare(arch: Arch) -> Result<()> {
    parts(arch, &[]).map(drop)
}

/// Fetches what machines of an architecture are made of: their kernel, and the root folder, which is empty where it is the
/// host's.
fn parts(arch: Arch, more: &[&str]) -> Result<(Kernel, PathBuf)> {
    let mut root = PathBuf::new();
    if !arch.is_host() {
        root = port::userland(arch, PACKAGES, more)?;
        // Of the initial RAM disk.
        port::busybox(arch)?;
    }
    Ok((kernels::fetch_for(arch, Flavour::Generic)?, root))
}

/// A machine that is turned on for each job. Machines are independent of each other: several may run
/// at the same time.
#[derive(Debug)]
pub struct Machine {
    /// RAM in MiB; the host gives only what is touched.
    pub memory_mib: u32,
    /// The machine's time is the number of instructions that it executes, one nanosecond each: figures repeat,
    /// whatever else the host does. Waits for the host's files advance it, so read them first.
    pub counts_instructions: bool,
    /// Says on standard error how the boot gets on.
    pub progress: bool,
    /// An Arm machine's interrupt controller is a GICv2, as small boards have one: its KVM offers guests no other.
    pub gic_v2: bool,
    /// A folder of the host that jobs may write to beside [`Machine::shared`], and that other machines may have too: [`COMMON`] in
    /// that one.
    pub common: Option<PathBuf>,
    arch: Arch,
    kernel: PathBuf,
    folder: PathBuf,
}

impl Machine {
    /// Fetches what the machine is made of and gives it a folder of its own below `target/nested`.
    ///
    /// # Errors
    /// The kernel cannot be fetched, or the folder cannot be written.
    pub fn new() -> Result<Machine> {
        Self::of(Arch::HOST)
    }

    /// The same of an architecture. On another one than the host's, a job finds that Debian's programs, and of the host's
    /// files the repository and the target folder.
    ///
    /// # Errors
    /// As [`Machine::new`].
    pub fn of(arch: Arch) -> Result<Machine> {
        Self::with(arch, &[])
    }

    /// The same with more of Debian's packages, where they are not the host's.
    ///
    /// # Errors
    /// As [`Machine::new`].
    pub fn with(arch: Arch, more: &[&str]) -> Result<Machine> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let (kernel, root) = parts(arch, more)?;
        let all = paths::target().join("nested");
        remove_leftovers(&all);
        let name = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let folder = all.join(name);
        let machine = Machine {
            memory_mib: 6144,
            counts_instructions: false,
            progress: true,
            gic_v2: false,
            common: None,
            arch,
            kernel: kernel.vmlinux(),
            folder,
        };
        let shared = machine.shared();
        fs::create_dir_all(&shared).context(shared.display())?;
        let mut tree = guest::busybox_tree_for(arch)?;
        let modules = [MODULES, arch.facts().nested_modules].concat();
        guest::add_modules(&mut tree, &kernel, &modules, without_signature)?;
        tree.file("/root-folder", 0o644, root.to_string_lossy().into_owned());
        let (repository, target) = (paths::root(), paths::target());
        let both = [&repository, &target].map(|folder| folder.to_string_lossy().into_owned() + "\n");
        let folders = &both[..if target.starts_with(&repository) { 1 } else { 2 }];
        tree.file("/host-folders", 0o644, if arch.is_host() { String::new() } else { folders.concat() });
        tree.file("/shared-folder", 0o644, shared.to_string_lossy().into_owned());
        tree.file("/init", 0o755, include_str!("nested/init.sh"));
        fs::write(machine.initrd(), tree.to_cpio()).context(machine.initrd().display())?;
        Ok(machine)
    }

    /// Its architecture.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// A folder that jobs may write to and that the host sees at once; it has the same path in the
    /// machine. It goes when the machine is dropped.
    pub fn shared(&self) -> PathBuf {
        self.folder.join("shared")
    }

    /// Runs a job with nothing on its standard input, passes on byte by byte what it prints, and
    /// returns its exit code.
    ///
    /// # Errors
    /// The machine does not come up, or the job takes too long.
    pub fn run(&self, job: &Job, out: &mut dyn Write, err: &mut dyn Write) -> Result<u8> {
        self.run_streams(job, None, &mut [(OUT, out), (ERR, err)])
    }

    /// Like [`run`](Self::run), with an input for the job, and passes on these files of the shared folder: what the job
    /// prints is in [`OUT`] and [`ERR`].
    ///
    /// # Errors
    /// As [`Machine::run`].
    pub fn run_streams(
        &self,
        job: &Job,
        input: Option<Input>,
        streams: &mut [(&str, &mut dyn Write)],
    ) -> Result<u8> {
        // Files of the shared folder: no byte is lost when the machine goes off, and a console is slow.
        let [out, err] = [OUT, ERR].map(|name| quote_path(&self.shared().join(name)));
        let from = if input.is_some() { INPUT_PORT } else { "/dev/null" };
        self.prepare(job, &format!("exec <{from} >{out} 2>{err}"))?;
        let mut followed = Vec::new();
        for (name, to) in streams {
            followed.push(Follow::new(&self.shared().join(name), &mut **to)?);
        }
        let mut qemu = self.qemu();
        match input {
            // A port and no console: nothing echoes, and no byte means anything.
            Some(_) => qemu
                .args(["-chardev", "null,id=console", "-device", "virtconsole,nr=0,chardev=console"])
                .args(["-device", "virtserialport,nr=1,chardev=job"])
                .stdin(Stdio::piped()),
            None => qemu.args(CONSOLE).stdin(Stdio::null()),
        };
        let mut child = qemu.stdout(Stdio::null()).spawn().context("qemu")?;
        if let (Some(input), Some(pipe)) = (input, child.stdin.take()) {
            thread::spawn(move || input(pipe));
        }
        self.attend(&mut child, job, &mut followed)?;
        self.exit_code()
    }

    /// Runs a job on the developer's terminal and returns its exit code.
    ///
    /// # Errors
    /// As [`Machine::run`].
    pub fn run_on_terminal(&self, job: &Job) -> Result<u8> {
        let terminal = Terminal::remember();
        let size = terminal_size().map(|(rows, columns)| format!("stty rows {rows} cols {columns}"));
        self.prepare(job, &size.unwrap_or_default())?;
        let mut child = self.qemu().args(CONSOLE).spawn().context("qemu")?;
        let attended = self.attend(&mut child, job, &mut []);
        drop(terminal);
        attended?;
        self.exit_code()
    }

    fn initrd(&self) -> PathBuf {
        self.folder.join("initrd")
    }

    fn console_log(&self) -> PathBuf {
        self.folder.join("console.log")
    }

    fn prepare(&self, job: &Job, before: &str) -> Result<()> {
        let shared = self.shared();
        for name in ["up", "exit", OUT, ERR] {
            let old = shared.join(name);
            if old.exists() {
                fs::remove_file(&old).context(old.display())?;
            }
        }
        let variable = |name: &&str| Some(format!("export {name}={}\n", quote(&std::env::var(name).ok()?)));
        let variables: String = PASSED_ON.iter().filter_map(variable).collect();
        let folder = quote_path(&job.folder);
        let text = format!("{before}\n{variables}cd {folder} || exit\n{}\n", job.script);
        let file = shared.join("job");
        fs::write(&file, text).context(file.display())
    }

    fn qemu(&self) -> Command {
        let share = |path: &Path, tag: &str, more: &str| {
            let path = path.to_string_lossy().replace(',', ",,");
            format!("local,path={path},mount_tag={tag},security_model=none,{more}")
        };
        let facts = self.arch.facts();
        // A periodic tick: where the emulator loses an interrupt of the timer, the next one comes by itself. A timer that
        // is set anew after each interrupt would be silent for ever, and a guest that spins would never be left.
        let (clock, sooner) =
            if self.counts_instructions { ("", "") } else { ("nohz=off highres=off", facts.sooner) };
        // setpriv: the machine does not outlive this process, however that ends.
        let mut qemu = command("setpriv");
        qemu.args(["--pdeathsig", "TERM"])
            .args(facts.qemu)
            .args(["-cpu", &format!("{}{sooner}", facts.cpu)])
            .args(["-nodefaults", "-no-user-config", "-accel", "tcg,thread=single"])
            // One CPU: with two, the emulator now and then loses an interrupt between them, and guests with
            // more than one vCPU stand still for ever, in any VMM. Two machines side by side use two cores.
            .args(["-smp", "1", "-m", &format!("{}M", self.memory_mib)])
            .args(["-display", "none", "-vga", "none", "-nic", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(self.initrd())
            .arg("-append")
            .arg(format!("{} quiet panic=-1 {clock}", facts.nested_cmdline))
            .arg("-serial")
            .arg(format!("file:{}", self.console_log().to_string_lossy().replace(',', ",,")))
            .args(["-device", "virtio-serial-pci", "-chardev", "stdio,id=job,signal=off"])
            .args(["-virtfs", &share(Path::new("/"), "host", "readonly=on,multidevs=remap")])
            .args(["-virtfs", &share(&self.shared(), "shared", "multidevs=remap")]);
        if let Some(common) = &self.common {
            qemu.args(["-virtfs", &share(common, COMMON, "multidevs=remap")]);
        }
        if self.arch == Arch::Aarch64 {
            qemu.args(["-machine", if self.gic_v2 { "gic-version=2" } else { "gic-version=3" }]);
        }
        if self.counts_instructions {
            qemu.args(["-icount", "shift=0,sleep=off"]);
        }
        qemu
    }

    /// Waits for the machine to turn itself off.
    fn attend(&self, child: &mut Child, job: &Job, streams: &mut [Follow]) -> Result<()> {
        let start = Instant::now();
        let mut heard = start;
        let mut up = false;
        if self.progress {
            eprintln!("nested machine: booting");
        }
        loop {
            let over = child.try_wait().context("qemu")?.is_some();
            if !up && self.shared().join("up").exists() {
                up = true;
                if self.progress {
                    eprintln!("nested machine: up after {:.1} s", start.elapsed().as_secs_f32());
                }
            }
            for stream in &mut *streams {
                match stream.pass_on() {
                    Ok(true) => heard = Instant::now(),
                    Ok(false) => {}
                    // As a process that writes to a pipe which nobody reads.
                    Err(error) => {
                        child.kill().and_then(|()| child.wait()).context("qemu")?;
                        return Err(Error::new(format!("passing on what the job prints: {error}")));
                    }
                }
            }
            if over {
                return Ok(());
            }
            let late = job.limit.filter(|limit| start.elapsed() > *limit);
            if let Some(limit) = late.or(job.silence.filter(|silence| heard.elapsed() > *silence)) {
                child.kill().and_then(|()| child.wait()).context("qemu")?;
                let (what, seconds) = (if late.is_some() { "" } else { " of silence" }, limit.as_secs());
                return Err(Error::new(format!("the nested machine was turned off after {seconds} s{what}")));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn exit_code(&self) -> Result<u8> {
        let code = fs::read_to_string(self.shared().join("exit")).ok();
        code.and_then(|code| code.trim().parse().ok()).ok_or_else(|| {
            let log = fs::read(self.console_log()).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            let lines: Vec<&str> = log.lines().collect();
            let end = lines[lines.len().saturating_sub(30)..].join("\n");
            Error::new(format!("the nested machine ended before its job did; its console:\n{end}"))
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // What cannot be removed goes with the next machine's leftovers.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The state of the developer's terminal, put back when this is dropped.
struct Terminal(Option<String>);

impl Terminal {
    fn remember() -> Terminal {
        Terminal(stty("-g"))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Some(state) = &self.0 {
            stty(state);
        }
    }
}

/// Removes the folders of machines whose process was killed.
fn remove_leftovers(all: &Path) {
    let Ok(entries) = fs::read_dir(all) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(owner).exists() {
            // A folder that stays does no harm.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Checking signatures takes the emulated processor a third of the boot, and these modules come
/// straight from the package.
fn without_signature(module: &[u8]) -> &[u8] {
    // Laid out as: module, signature, 12 bytes that end in the signature's length, magic
    // (include/linux/module_signature.h).
    const MAGIC: &[u8] = b"~Module signature appended~\n";
    let stripped = || {
        let rest = module.strip_suffix(MAGIC)?;
        let (rest, length) = rest.split_last_chunk::<4>()?;
        let total = 8 + u32::from_be_bytes(*length) as usize;
        rest.get(..rest.len().checked_sub(total)?)
    };
    stripped().unwrap_or(module)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_goes_and_the_module_stays() {
        let mut signed = b"module".to_vec();
        signed.extend_from_slice(b"signature");
        signed.extend_from_slice(&[0; 8]);
        signed.extend_from_slice(&9_u32.to_be_bytes());
        signed.extend_from_slice(b"~Module signature appended~\n");
        assert_eq!(without_signature(&signed), b"module");
        assert_eq!(without_signature(b"module"), b"module");
        signed[23] = 255;
        assert_eq!(without_signature(&signed), &signed[..]);
    }
}
