//! Boots guests with the example VMM `microvm`, lets them run shell commands, and hands back what each of them
//! printed and how the VMM ended.
// Each test binary uses a part of this.
#![allow(dead_code, unused_imports)]

#[cfg(target_arch = "aarch64")]
#[path = "arch/aarch64.rs"]
mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "arch/x86_64.rs"]
mod arch;
mod complaints;
pub mod control;
pub mod devices;
mod log;
mod machine;
pub mod qemu;
mod running;
mod tap;
mod tools;
mod traffic;
mod transport;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use xtask::arch::Arch;
use xtask::guest::Common;
use xtask::kernels::{self, Flavour, Kernel};
pub use xtask::stamp;
use xtask::tree::Tree;
use xtask::{guest, process, vmm};

pub use arch::{ACPI, BY_LOADER, EARLY, FIRST_WORDS, FORKS, LAMP, NO_SERIAL_PORT, PCI, RTC, TURNS};
pub use complaints::{complaints, found_none, log_of};
pub use log::Log;
pub use machine::Terminal;
pub use running::{Answers, Ended, Running};
pub use tap::{Tap, accept, echo};
pub use traffic::{Traffic, Underway};
pub use transport::{Transport, Virtio};

/// What any wait may take, the boot included: far more than an emulated processor needs.
pub const LIMIT: Duration = Duration::from_secs(180);

/// A file of this length, without contents.
pub fn sparse(folder: &Path, name: &str, len: u64) -> PathBuf {
    let path = folder.join(name);
    File::create(&path).unwrap().set_len(len).unwrap();
    path
}

/// The SHA-256 of what a shell command of the host prints, as `sha256sum` prints it of a pipe.
pub fn hash_of(command: &str) -> String {
    process::text(process::command("sh").args(["-c", &format!("{command} | sha256sum")]))
        .unwrap()
        .trim()
        .to_owned()
}

/// The same of a file or block device of the host.
pub fn hash(file: &Path) -> String {
    hash_of(&format!("cat {}", process::quote_path(file)))
}

/// Checks an ext4 file system that nobody uses, and returns the SHA-256 of one of its files.
pub fn hash_in_ext4(image: &Path, file: &str) -> String {
    process::output(process::command("e2fsck").args(["-f", "-n"]).arg(image)).unwrap();
    let image = process::quote_path(image);
    hash_of(&format!("PATH=$PATH:/usr/sbin:/sbin debugfs -R 'cat {file}' {image} 2>/dev/null"))
}

/// Around the name of a command that is about to run.
const BEGIN: char = '\u{2}';
/// Around the exit code of a command that has run.
const END: char = '\u{3}';

/// Debian's cloud kernel, which the test runner has fetched.
pub fn kernel() -> Kernel {
    kernels::cached(Flavour::Cloud).expect("the kernel is fetched before guests run: cargo xtask test")
}

/// Debian's generic kernel, which has drivers that the cloud kernel lacks.
pub fn generic_kernel() -> Kernel {
    kernels::cached(Flavour::Generic).expect("the kernel of the nested machine is fetched before guests run")
}

/// A guest to be: the VMM's command line, and what the guest runs before it powers off.
pub struct Guest {
    program: PathBuf,
    kernel: PathBuf,
    /// What it has its modules of.
    debian: Kernel,
    cmdline: String,
    args: Vec<OsString>,
    script: String,
    names: Vec<String>,
    files: Vec<(String, Vec<u8>)>,
    modules: Vec<&'static str>,
    /// The first process, if it is not the one that runs the commands.
    init: Option<String>,
    folder: TempDir,
}

impl Guest {
    /// Debian's kernel as ELF file, and otherwise what the VMM has by default.
    pub fn new() -> Self {
        Self::on(kernel())
    }

    /// The same with this kernel of Debian's.
    pub fn on(debian: Kernel) -> Self {
        Self {
            program: vmm::program(),
            kernel: debian.vmlinux(),
            debian,
            // The kernel's tests of its cryptography are not about its machine, and take a tenth of a boot.
            cmdline: format!("console={} cryptomgr.notests quiet panic=-1", Arch::HOST.facts().console),
            args: Vec::new(),
            script: String::new(),
            names: Vec::new(),
            files: Vec::new(),
            modules: Vec::new(),
            init: None,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// Another VMM that has the flags for kernel, initial RAM disk and command line.
    pub fn vmm(self, program: PathBuf) -> Self {
        Self { program, ..self }
    }

    /// Another kernel.
    pub fn kernel(self, kernel: PathBuf) -> Self {
        Self { kernel, ..self }
    }

    /// Adds to the VMM's command line.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Adds to the kernel's command line.
    pub fn cmdline(mut self, words: &str) -> Self {
        self.cmdline = format!("{} {words}", self.cmdline);
        self
    }

    /// Has the VMM take requests on this socket while it runs.
    pub fn control(self, socket: &Path) -> Self {
        self.args(["--control".as_ref(), socket.as_os_str()])
    }

    /// Adds a disk, with options such as `,readonly`.
    pub fn disk(self, image: &Path, options: &str) -> Self {
        let disk = format!("path={}{options}", image.display());
        self.args(["--disk", &disk])
    }

    /// Puts a program into the guest.
    pub fn program(mut self, path: &str, data: Vec<u8>) -> Self {
        self.files.push((path.to_owned(), data));
        self
    }

    /// Puts an example of this package into the guest as `/NAME`, with the libraries that it needs; cargo builds it with
    /// the tests.
    pub fn example(self, name: &str) -> Self {
        let here = std::env::current_exe().unwrap();
        let program = here.ancestors().nth(2).unwrap().join("examples").join(name);
        self.dynamic(&program, &format!("/{name}"))
    }

    /// Puts a program of the host's into the guest, at the same place, with the libraries that it needs.
    pub fn host_program(self, path: &str) -> Self {
        self.dynamic(Path::new(path), path)
    }

    fn dynamic(self, program: &Path, to: &str) -> Self {
        let guest = self.program(to, fs::read(program).unwrap());
        tools::libraries(program)
            .iter()
            .fold(guest, |guest, library| guest.program(library, fs::read(library).unwrap()))
    }

    /// Loads more of the kernel's modules, and what they need.
    pub fn modules(mut self, names: &[&'static str]) -> Self {
        self.modules.extend(names);
        self
    }

    /// Runs shell commands in the guest, and keeps what they print under `name`. They have to succeed: a
    /// failure that the test expects is written `! command`.
    pub fn run(mut self, name: &str, commands: &str) -> Self {
        let (begin, end) = (BEGIN as u32, END as u32);
        self.script += &format!("printf '\\{begin:03o}{name}\\{begin:03o}'\n(\nset -e\n{commands}\n) 2>&1\n");
        self.script += &format!("printf '\\{end:03o}%d\\{end:03o}' $?\n");
        self.names.push(name.to_owned());
        self
    }

    /// Runs a shell script as the guest's first and only one, where the drivers of virtio disks are all that is loaded: a boot
    /// takes a third of the time. It must not end.
    pub fn init(mut self, script: &str) -> Self {
        self.init = Some(format!(
            "#!/bin/busybox sh
            export PATH=/bin
            mount -t devtmpfs dev /dev
            read -r modules </etc/modules
            modprobe -a $modules
            {script}"
        ));
        self
    }

    /// The guest prints `ready` and goes on when a line is typed on its console.
    pub fn hold(mut self) -> Self {
        self.script += "printf 'ready\\n'\nread -r line </dev/console\n";
        self
    }

    /// The kernel's command line.
    pub fn command_line(&self) -> &str {
        &self.cmdline
    }

    /// An initramfs that runs the guest's commands.
    pub fn initrd(&self) -> PathBuf {
        let common = |common| fs::read(guest::archive(&self.debian, common)).unwrap();
        let mut own = Tree::new();
        let mut archives = match &self.init {
            Some(init) => {
                own.file("/init", 0o755, init.as_str());
                common(Common::Disks)
            }
            None if self.modules.is_empty() => common(Common::Guest),
            None => guest::tree_with_modules(&self.debian, &self.modules).unwrap().to_cpio(),
        };
        own.file("/job", 0o755, self.script.as_str());
        for (path, data) in &self.files {
            own.file(path, 0o755, data.as_slice());
        }
        archives.extend(own.to_cpio());
        let initrd = self.folder.path().join("initrd");
        fs::write(&initrd, archives).unwrap();
        initrd
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--kernel").arg(&self.kernel).arg("--initrd").arg(self.initrd());
        command.arg("--cmdline").arg(&self.cmdline).args(&self.args);
        command
    }

    /// Starts the VMM with a pipe for each of its streams.
    pub fn start(self) -> Running {
        self.start_through(|output| output)
    }

    /// The same, where the VMM's standard output is read through what `through` makes of it.
    pub fn start_through<R: Read + Send + 'static>(self, through: impl FnOnce(ChildStdout) -> R) -> Running {
        let mut command = self.command();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Running::new(child, Box::new(input), Log::follow(through(output)), self.names, self.folder)
    }

    /// Starts the VMM on `terminal`, a pseudo-terminal whose other side is `user`.
    pub fn start_on(self, terminal: &File, user: File) -> Running {
        let mut command = self.command();
        command.stdin(terminal.try_clone().unwrap()).stdout(terminal.try_clone().unwrap());
        let child = command.stderr(Stdio::piped()).spawn().unwrap();
        let output = Log::follow(user.try_clone().unwrap());
        Running::new(child, Box::new(user), output, self.names, self.folder)
    }

    /// Starts the VMM and waits until it ends, which has to be as it is when a guest has powered off: with exit
    /// code 0 and nothing to complain about.
    pub fn boot(self) -> Answers {
        let ended = self.start().wait();
        ended.expect(0);
        assert_eq!(ended.err, "", "{ended}");
        ended.answers()
    }
}
