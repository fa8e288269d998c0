//! Developer commands: `cargo xtask --help` lists them.

use std::io;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::nested::{Job, Machine};
use xtask::{Result, packages};

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
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Nested {
    /// A shell command to run in the repository's root; its exit code becomes this command's.
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
        Commands::Nested(nested) => {
            packages::ensure()?;
            let machine = Machine::new()?;
            match nested.run {
                Some(script) => machine.run(&Job::new(script), &mut io::stdout(), &mut io::stderr()),
                None => machine.run_on_terminal(&Job { limit: None, ..Job::new("exec bash -i") }),
            }
        }
    }
}
