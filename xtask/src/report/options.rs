//! What a report measures, and how: the command-line options that both of its parts take.

use std::path::Path;

use super::contender::Contender;
use super::peers;
use crate::arch::Arch;
use crate::measure;

/// What is measured, and how.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Another VMM, or one that is found in PATH with other options, which prints its guest's serial port on standard output; repeatable. The command is split into
    /// words as by a shell and gets what stands in braces; see below
    #[arg(long, value_name = "NAME=COMMAND", value_parser = named_command)]
    vs: Vec<String>,
    /// Leave out the VMMs that are found in PATH: QEMU, Firecracker, Cloud Hypervisor, crosvm
    #[arg(long)]
    alone: bool,
    /// How often each figure is taken; the least counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// A quick look: one run, little I/O, and times that depend on what else the host does
    #[arg(long)]
    pub(super) quick: bool,
    /// Guest memory in MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(64..=65536))]
    pub memory: u32,
    /// Number of vCPUs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub cpus: u32,
    /// Kernel command line [default: a quiet one with the serial port for a console]
    #[arg(long)]
    cmdline: Option<String>,
    /// Starts and boots alone: no I/O, memory and exits
    #[arg(long)]
    pub(crate) boots: bool,
}

fn named_command(text: &str) -> std::result::Result<String, String> {
    Contender::parse(text).map(|_| text.to_owned())
}

impl Options {
    /// One run with little I/O, without other VMMs: shows that each figure can be taken.
    pub(super) fn quick() -> Options {
        Options {
            vs: Vec::new(),
            alone: true,
            runs: 1,
            quick: true,
            memory: 256,
            cpus: 1,
            cmdline: None,
            boots: false,
        }
    }

    /// The kernel command line of guests of an architecture.
    pub(crate) fn cmdline(&self, arch: Arch) -> &str {
        self.cmdline.as_deref().unwrap_or(arch.facts().report_cmdline)
    }

    /// The VMMs for an architecture, ours first. The floor is a program for x86_64, and so is what is mapped.
    pub(crate) fn contenders(&self, arch: Arch, microvm: &Path, floor: &Path) -> Vec<Contender> {
        let [copied, mapped] = Contender::microvm(microvm);
        let mut all = vec![copied];
        if arch == Arch::X86_64 {
            all.extend([mapped, Contender::floor(floor)]);
        }
        let others: Vec<Contender> = self.others().collect();
        if !self.alone {
            let found = peers::found(arch, measure::find_program).into_iter();
            all.extend(found.filter(|peer| others.iter().all(|other| other.name != peer.name)));
        }
        all.extend(others);
        all
    }

    /// Those given with `--vs`.
    pub(super) fn others(&self) -> impl Iterator<Item = Contender> {
        // Each has been parsed before.
        self.vs.iter().filter_map(|text| Contender::parse(text).ok())
    }

    pub(crate) fn runs(&self) -> u32 {
        if self.quick { 1 } else { self.runs }
    }

    pub(crate) fn disk_mib(&self) -> usize {
        if self.quick { 8 } else { 32 }
    }

    pub(crate) fn net_mib(&self) -> usize {
        if self.quick { 2 } else { 16 }
    }

    pub(crate) fn reads(&self) -> usize {
        if self.quick { 256 } else { 2048 }
    }

    /// The same options as words of a command line.
    pub(super) fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        for vs in &self.vs {
            words.extend(["--vs".to_owned(), vs.clone()]);
        }
        for (flag, is_on) in [("--alone", self.alone), ("--quick", self.quick), ("--boots", self.boots)] {
            words.extend(is_on.then(|| flag.to_owned()));
        }
        let values = [
            ("--runs", self.runs.to_string()),
            ("--memory", self.memory.to_string()),
            ("--cpus", self.cpus.to_string()),
        ];
        for (flag, value) in values {
            words.extend([flag.to_owned(), value]);
        }
        words.extend(self.cmdline.as_ref().map(|cmdline| format!("--cmdline={cmdline}")));
        words
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn parse(words: &[&str]) -> std::result::Result<Options, String> {
        let words = ["report"].iter().chain(words);
        Line::try_parse_from(words).map(|line| line.options).map_err(|error| error.to_string())
    }

    #[test]
    fn options_survive_the_way_into_the_nested_machine() {
        let words = [
            "--vs",
            "fc=firecracker --config-file {config}",
            "--alone",
            "--memory",
            "512",
            "--runs=7",
            "--boots",
        ];
        let options = parse(&words).unwrap();
        let again = parse(&options.words().iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
        assert_eq!(format!("{options:?}"), format!("{again:?}"));
        let names: Vec<_> = again
            .contenders(Arch::X86_64, Path::new("m"), Path::new("f"))
            .into_iter()
            .map(|one| one.name)
            .collect();
        assert_eq!(names, ["microvm", "microvm-map", "floor", "fc"]);
        let names: Vec<_> = again.contenders(Arch::Aarch64, Path::new("m"), Path::new("f"));
        assert_eq!(names.into_iter().map(|one| one.name).collect::<Vec<_>>(), ["microvm", "fc"]);
    }

    #[test]
    fn wrong_options_are_named() {
        for (words, named) in [
            (&["--vs", "firecracker"][..], "NAME=COMMAND"),
            (&["--vs", "a=b {kernal}"], "{kernal}"),
            (&["--runs", "0"], "--runs"),
            (&["--memory", "1"], "--memory"),
        ] {
            let error = parse(words).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
