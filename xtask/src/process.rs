//! Running other programs, with errors that name the command and show what it said.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{Context, Error, Result};

/// A command whose search path includes the administrator's folders, which an ordinary user's
/// `PATH` leaves out on Debian (`depmod`, `mke2fs`, `ip`).
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("PATH", search_path());
    command
}

/// The search path of [`command`].
pub fn search_path() -> OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/local/sbin:/usr/sbin:/sbin");
    path
}

/// Runs to the end with the developer's terminal.
///
/// # Errors
/// The program cannot be started, or reports a failure.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().context(shown(command))?;
    if status.success() { Ok(()) } else { Err(Error::new(format!("{}: {status}", shown(command)))) }
}

/// Runs to the end and returns standard output.
///
/// # Errors
/// The program cannot be started, or reports a failure: then the error carries what it said.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.stdin(Stdio::null()).output().context(shown(command))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(format!("{}: {}\n{}", shown(command), output.status, said.trim_end())))
}

/// Like [`output`], as text.
///
/// # Errors
/// As [`output`].
pub fn text(command: &mut Command) -> Result<String> {
    output(command).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The effective user is root.
pub fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Quotes one word for a POSIX shell.
pub fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Quotes a path for a POSIX shell.
pub fn quote_path(path: &Path) -> String {
    quote(&path.to_string_lossy())
}

/// Asks about or changes the terminal on standard input; none if it is not one.
pub fn stty(argument: &str) -> Option<String> {
    let output = Command::new("stty").arg(argument).stdin(Stdio::inherit()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Rows and columns of the terminal on standard input; none if it is not one or does not know.
pub fn terminal_size() -> Option<(u16, u16)> {
    let size = stty("size")?;
    let (rows, columns) = size.split_once(' ')?;
    Some((rows.parse().ok()?, columns.parse().ok()?)).filter(|&(rows, columns)| rows > 0 && columns > 0)
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| quote(&word.to_string_lossy())));
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quoted_word_survives_the_shell() {
        for word in ["plain", "", "two words", "it's", "$HOME `id` \\ \"", "a\nb"] {
            let echoed = text(command("sh").arg("-c").arg(format!("printf %s {}", quote(word)))).unwrap();
            assert_eq!(echoed, word);
        }
    }

    #[test]
    fn a_failure_carries_what_the_program_said() {
        let error = output(command("sh").args(["-c", "echo broken >&2; exit 3"])).unwrap_err();
        assert!(error.message.contains("broken"), "{error}");
        assert!(error.message.contains('3'), "{error}");
    }
}
