//! `cargo xtask demo`: Debian's kernel in the example VMM with a disk, a network card, an entropy
//! source and two CPUs, wherever this host can run it.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::arch::Arch;
use crate::follow::Follow;
use crate::frame::Frame;
use crate::host::Kvm;
use crate::kernels::{self, Flavour};
use crate::nested::{ERR, Input, Job, Machine, OUT};
use crate::process::{self, quote, quote_path};
use crate::{Context, Error, Result, guest, packages, paths, vmm};

/// How long a command given by `--run` may take, with the boots before it.
const LIMIT: Duration = Duration::from_secs(3600);
/// What it calls, but for cargo and the nested machine.
pub const PROGRAMS: &[&str] = &["busybox", "depmod", "lz4", "ip", "mke2fs"];
/// The guest's serial port while a command's output has the console.
const SERIAL: &str = "serial";
/// How much of the input goes to the guest at once.
const BLOCK: usize = 32 << 10;
/// The size of the guest's disk.
const DISK_MIB: u64 = 32;

/// What to show.
#[derive(clap::Args, Clone, Debug)]
pub struct Demo {
    /// Run this command in the guest instead of a shell: it has this command's standard input, output and error, and its
    /// exit code becomes this command's
    #[arg(long, value_name = "CMD")]
    run: Option<String>,
    /// A kernel to boot instead of Debian's, with the virtio drivers and ext4 built in
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// The guest's architecture [default: the host's]. With aarch64 on another host, all runs in a nested machine
    #[arg(long, value_enum, default_value_t = Arch::HOST, hide_default_value = true)]
    arch: Arch,
    /// Number of vCPUs
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Guest memory
    #[arg(long, default_value = "512M", value_name = "SIZE[K|M|G]", value_parser = mebibytes)]
    memory: u64,
    /// Where the guest finds its virtio devices: mmio or pci
    #[arg(long, default_value = "mmio", value_parser = ["mmio", "pci"])]
    transport: String,
    /// Tells the guest's marks on its consoles from what its command prints.
    #[arg(skip = token())]
    token: String,
}

/// Fetches and builds what is missing, and shows it. Returns the exit code.
///
/// # Errors
/// Something is missing that the developer has to install, or the guest ended before its command.
pub fn run(demo: &Demo) -> Result<u8> {
    let kvm = Kvm::detect();
    match (demo.arch, demo.arch.is_host()) {
        (_, true) => {
            packages::ensure(&[PROGRAMS, packages::machine()])?;
            if demo.says_progress() {
                eprintln!("{}", kvm.summary());
            }
        }
        (Arch::Aarch64, false) => packages::ensure(&[&[PROGRAMS], packages::NESTED_AARCH64].concat())?,
        (Arch::X86_64, false) => {
            return Err(Error::needs_developer(
                "--arch x86_64: guests of x86_64 run on hosts of x86_64 only",
            ));
        }
    }
    vmm::build_for(demo.arch, !demo.says_progress())?;
    if kvm == Kvm::Full && demo.arch.is_host() {
        let folder = paths::target().join("demo").join(std::process::id().to_string());
        fs::create_dir_all(&folder).context(folder.display())?;
        let code = demo.on_host(&folder);
        fs::remove_dir_all(&folder).context(folder.display())?;
        code
    } else {
        demo.in_nested_machine()
    }
}

impl Demo {
    fn on_host(&self, folder: &Path) -> Result<u8> {
        let script = self.prepare(folder)?;
        let mut shell = process::command("sh");
        shell.arg("-c").arg(script);
        if self.run.is_none() {
            let status = shell.status().context("sh")?;
            return Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1));
        }
        let (mut out, mut err, input) = self.streams();
        let out_file = folder.join(OUT);
        let mut followed = [Follow::new(&out_file, &mut out)?, Follow::new(&folder.join(SERIAL), &mut err)?];
        let stdout = fs::File::options().append(true).open(&out_file).context(out_file.display())?;
        let mut child = shell.stdin(Stdio::piped()).stdout(stdout).spawn().context("sh")?;
        if let Some(pipe) = child.stdin.take() {
            thread::spawn(move || input(pipe));
        }
        loop {
            let over = child.try_wait().context("sh")?.is_some();
            for stream in &mut followed {
                if let Err(error) = stream.pass_on() {
                    child.kill().and_then(|()| child.wait()).context("sh")?;
                    return Err(Error::new(format!("passing on what the command prints: {error}")));
                }
            }
            if over {
                return out.exit_code(folder);
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn in_nested_machine(&self) -> Result<u8> {
        let mut machine = Machine::of(self.arch)?;
        machine.progress = self.says_progress();
        let needed = self.memory + 2048;
        machine.memory_mib = machine.memory_mib.max(u32::try_from(needed).unwrap_or(u32::MAX));
        let script = self.prepare(&machine.shared())?;
        if self.run.is_none() {
            return machine.run_on_terminal(&Job { limit: None, ..Job::new(script) });
        }
        let (mut out, mut err, input) = self.streams();
        let job = Job { limit: Some(LIMIT), ..Job::new(script) };
        let streams: &mut [(&str, &mut dyn Write)] =
            &mut [(OUT, &mut out), (SERIAL, &mut err), (ERR, &mut io::stderr())];
        machine.run_streams(&job, Some(input), streams)?;
        out.exit_code(&machine.shared())
    }

    /// Progress does not go into a file that the output of the guest's command is to go to.
    fn says_progress(&self) -> bool {
        self.run.is_none() || io::stderr().is_terminal()
    }

    /// What takes the guest's two consoles, and what writes its input once its command runs.
    fn streams(&self) -> (Output, Output, Input) {
        let (begun, has_begun) = mpsc::channel();
        let out =
            Output { frame: Frame::with_token(&self.token), to: Box::new(io::stdout()), begun: Some(begun) };
        let err = Output { frame: Frame::with_token(&self.token), to: Box::new(io::stderr()), begun: None };
        let input = move |mut pipe: ChildStdin| {
            if has_begun.recv().is_ok() {
                // It fails when the guest has ended: then nobody misses the rest.
                let _ = feed(&mut io::stdin().lock(), &mut pipe);
            }
        };
        (out, err, Box::new(input))
    }

    /// Puts the guest's files into a folder; returns the script that starts the VMM.
    fn prepare(&self, folder: &Path) -> Result<String> {
        let (kernel, mut tree) = match &self.kernel {
            Some(kernel) => (
                std::path::absolute(kernel).context(kernel.display())?,
                guest::tree_without_modules_for(self.arch)?,
            ),
            None => {
                let kernel = kernels::fetch_for(self.arch, Flavour::Cloud)?;
                (kernel.vmlinux(), guest::tree(&kernel)?)
            }
        };
        let disk = folder.join("disk.img");
        tree.file("/etc/profile", 0o644, include_str!("demo/profile.sh"));
        tree.write_ext4(&disk, DISK_MIB)?;
        let facts = self.arch.facts();
        let mut cmdline =
            format!("console={0} loglevel=3 panic=-1 root=/dev/vda ossature.serial={0}", facts.console);
        cmdline.push_str(" ossature.ip=10.77.0.2/24");
        let mut console = String::new();
        if let Some(job) = &self.run {
            tree.file("/job", 0o755, job.as_str());
            // Nothing but the frames and their content goes through hvc0.
            cmdline.push_str(&format!(" ossature.console=hvc0 ossature.streams={}", self.token));
            console = format!("--console --serial file={}", quote_path(&folder.join(SERIAL)));
        } else if let Some((rows, columns)) = process::terminal_size() {
            cmdline.push_str(&format!(" ossature.size={rows}x{columns}"));
        }
        let initrd = folder.join("initrd");
        fs::write(&initrd, tree.to_cpio()).context(initrd.display())?;
        let machine = format!(
            "ip tuntap add mode tap dev tap0 && ip address add 10.77.0.1/24 dev tap0 && ip link set tap0 up && \
             exec {} --kernel {} --initrd {} --cmdline {} --cpus {} --memory {}M \
             --transport {} --disk path={} --net tap=tap0 {console}",
            quote_path(&vmm::program_for(self.arch)),
            quote_path(&kernel),
            quote_path(&initrd),
            quote(&cmdline),
            self.cpus,
            self.memory,
            self.transport,
            quote_path(&disk),
        );
        // A network of its own: the tap disturbs nobody, and an ordinary user may make it.
        let user = if process::is_root() { "" } else { "--user --map-root-user" };
        Ok(format!("exec unshare --net {user} sh -c {}", quote(&machine)))
    }
}

/// The input that `main.sh` of the guest expects: blocks behind their lengths, and a length of 0.
fn feed(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
    let mut buffer = vec![0; BLOCK];
    loop {
        let length = match from.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // What cannot be read ends as well.
            other => other.unwrap_or(0),
        };
        writeln!(to, "{length}")?;
        to.write_all(&buffer[..length])?;
        to.flush()?;
        if length == 0 {
            return Ok(());
        }
    }
}

/// Takes a console and passes on what the command in the guest prints.
struct Output {
    frame: Frame,
    to: Box<dyn Write>,
    /// Told when the command begins.
    begun: Option<mpsc::Sender<()>>,
}

impl Output {
    fn exit_code(&self, folder: &Path) -> Result<u8> {
        self.frame.exit().ok_or_else(|| {
            let log = fs::read(folder.join(SERIAL)).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            Error::new(format!(
                "the guest ended before its command did; its serial port:\n{}",
                log.trim_end()
            ))
        })
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.to.write_all(&self.frame.push(bytes))?;
        if self.frame.has_begun() {
            if let Some(begun) = self.begun.take() {
                // Who waits for it may have ended.
                let _ = begun.send(());
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Something that no command prints by chance.
fn token() -> String {
    format!("{:016x}:", RandomState::new().hash_one(std::process::id()))
}

fn mebibytes(text: &str) -> std::result::Result<u64, String> {
    let wrong = || "a number with M or G, such as 512M".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    match unit {
        "K" if number.is_multiple_of(1024) => Ok(number / 1024),
        "M" => Ok(number),
        "G" => number.checked_mul(1024).ok_or_else(wrong),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x2_input_is_in_blocks_of_any_bytes_and_ends() {
        let mut fed = Vec::new();
        feed(&mut &b"a\x01x\0\n"[..], &mut fed).unwrap();
        assert_eq!(fed, b"5\na\x01x\0\n0\n");
        let mut fed = Vec::new();
        feed(&mut &vec![7; BLOCK + 1][..], &mut fed).unwrap();
        let expected = [format!("{BLOCK}\n").as_bytes(), &[7; BLOCK], b"1\n\x070\n"].concat();
        assert!(fed == expected);
    }

    #[test]
    fn x2_the_input_waits_until_the_command_begins() {
        let (begun, has_begun) = mpsc::channel();
        let mut out = Output { frame: Frame::with_token("t"), to: Box::new(io::sink()), begun: Some(begun) };
        out.write_all(b"Linux\x01begin\x01").unwrap();
        assert!(has_begun.try_recv().is_err());
        out.write_all(b"\x01tbegin\x01").unwrap();
        assert!(has_begun.try_recv().is_ok());
    }

    #[test]
    fn sizes_have_units() {
        assert_eq!(mebibytes("512M"), Ok(512));
        assert_eq!(mebibytes("2G"), Ok(2048));
        assert_eq!(mebibytes("2048K"), Ok(2));
        for wrong in ["", "512", "M", "1T", "-1M", "1000K", "18446744073709551615G", "1µ"] {
            assert!(mebibytes(wrong).is_err(), "{wrong}");
        }
    }
}
