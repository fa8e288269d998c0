//! `cargo xtask demo`: Debian's kernel in the example VMM with a disk, a network card, an entropy
//! source and two CPUs, wherever this host can run it.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::frame::Frame;
use crate::host::Kvm;
use crate::kernels::{self, Flavour};
use crate::nested::{Job, Machine};
use crate::process::{self, quote, quote_path};
use crate::{Context, Error, Result, guest, packages, paths, vmm};

/// How long a command given by `--run` may take, with the boots before it.
const LIMIT: Duration = Duration::from_secs(3600);
/// What it calls, but for cargo and the nested machine.
pub const PROGRAMS: &[&str] = &["busybox", "depmod", "lz4", "ip", "mke2fs"];
/// The size of the guest's disk.
const DISK_MIB: u64 = 32;

/// What to show.
#[derive(clap::Args, Clone, Debug)]
pub struct Demo {
    /// Run this command in the guest instead of a shell, print its output only, and exit with its code
    #[arg(long, value_name = "CMD")]
    run: Option<String>,
    /// A kernel to boot instead of Debian's, with the virtio drivers and ext4 built in
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Number of vCPUs
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Guest memory
    #[arg(long, default_value = "512M", value_name = "SIZE[K|M|G]", value_parser = mebibytes)]
    memory: u64,
}

/// Fetches and builds what is missing, and shows it. Returns the exit code.
///
/// # Errors
/// Something is missing that the developer has to install, or the guest ended before its command.
pub fn run(demo: &Demo) -> Result<u8> {
    packages::ensure(&[PROGRAMS, packages::machine()])?;
    let kvm = Kvm::detect();
    eprintln!("{}", kvm.summary());
    vmm::build()?;
    if kvm == Kvm::Full {
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
        let mut child = shell.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("sh")?;
        let mut output = Output::default();
        if let Some(mut stdout) = child.stdout.take() {
            let mut buffer = [0; 16384];
            while let Ok(length @ 1..) = stdout.read(&mut buffer) {
                output.write_all(&buffer[..length]).context("standard output")?;
            }
        }
        child.wait().context("sh")?;
        output.exit_code(folder)
    }

    fn in_nested_machine(&self) -> Result<u8> {
        let mut machine = Machine::new()?;
        let needed = self.memory + 2048;
        machine.memory_mib = machine.memory_mib.max(u32::try_from(needed).unwrap_or(u32::MAX));
        let script = self.prepare(&machine.shared())?;
        if self.run.is_none() {
            return machine.run_on_terminal(&Job { limit: None, ..Job::new(script) });
        }
        let mut output = Output::default();
        machine.run(&Job { limit: Some(LIMIT), ..Job::new(script) }, &mut output, &mut io::stderr())?;
        output.exit_code(&machine.shared())
    }

    /// Puts the guest's files into a folder; returns the script that starts the VMM.
    fn prepare(&self, folder: &Path) -> Result<String> {
        let (kernel, mut tree) = match &self.kernel {
            Some(kernel) => {
                (std::path::absolute(kernel).context(kernel.display())?, guest::tree_without_modules()?)
            }
            None => {
                let kernel = kernels::fetch(Flavour::Cloud)?;
                (kernel.vmlinux(), guest::tree(&kernel)?)
            }
        };
        let disk = folder.join("disk.img");
        tree.file("/etc/profile", 0o644, include_str!("demo/profile.sh"));
        tree.write_ext4(&disk, DISK_MIB)?;
        let mut cmdline = "console=ttyS0 loglevel=3 8250.nr_uarts=1 panic=-1 root=/dev/vda".to_owned();
        cmdline.push_str(" ossature.ip=10.77.0.2/24");
        let mut console = String::new();
        if let Some(job) = &self.run {
            tree.file("/job", 0o755, job.as_str());
            // Nothing but the frame and its content goes through hvc0.
            cmdline.push_str(" ossature.console=hvc0");
            console = format!("--console --serial file={}", quote_path(&log(folder)));
        } else if let Some((rows, columns)) = process::terminal_size() {
            cmdline.push_str(&format!(" ossature.size={rows}x{columns}"));
        }
        let initrd = folder.join("initrd");
        fs::write(&initrd, tree.to_cpio()).context(initrd.display())?;
        let machine = format!(
            "ip tuntap add tap0 mode tap && ip address add 10.77.0.1/24 dev tap0 && ip link set tap0 up && \
             exec {} --kernel {} --initrd {} --cmdline {} --cpus {} --memory {}M \
             --disk path={} --net tap=tap0 {console}",
            quote_path(&vmm::program()),
            quote_path(&kernel),
            quote_path(&initrd),
            quote(&cmdline),
            self.cpus,
            self.memory,
            quote_path(&disk),
        );
        // A network of its own: the tap disturbs nobody, and an ordinary user may make it.
        let user = if process::is_root() { "" } else { "--user --map-root-user" };
        Ok(format!("exec unshare --net {user} sh -c {}", quote(&machine)))
    }
}

/// Where the guest's serial port goes when a command's output has the console.
fn log(folder: &Path) -> PathBuf {
    folder.join("serial.log")
}

/// Takes the console and prints what the command in the guest prints.
#[derive(Default)]
struct Output(Frame);

impl Output {
    fn exit_code(&self, folder: &Path) -> Result<u8> {
        self.0.exit().ok_or_else(|| {
            let log = fs::read(log(folder)).unwrap_or_default();
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
        io::stdout().write_all(&self.0.push(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
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
    fn sizes_have_units() {
        assert_eq!(mebibytes("512M"), Ok(512));
        assert_eq!(mebibytes("2G"), Ok(2048));
        assert_eq!(mebibytes("2048K"), Ok(2));
        for wrong in ["", "512", "M", "1T", "-1M", "1000K", "18446744073709551615G", "1µ"] {
            assert!(mebibytes(wrong).is_err(), "{wrong}");
        }
    }
}
