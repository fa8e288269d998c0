//! A VMM that runs a guest, and what is left of it when it has ended.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::fs::{self, DirEntry};
use std::io::Write;
use std::ops::Index;
use std::process::{Child, ExitStatus};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use xtask::frame::Frame;

use super::{BEGIN, END, LIMIT, Log};

/// A running VMM; killed when dropped.
pub struct Running {
    child: Child,
    input: Box<dyn Write>,
    /// The guest's console, unless that is elsewhere.
    pub out: Log,
    /// What the VMM says.
    pub err: Log,
    names: Vec<String>,
    folder: TempDir,
}

impl Running {
    pub(super) fn new(
        mut child: Child,
        input: Box<dyn Write>,
        out: Log,
        names: Vec<String>,
        folder: TempDir,
    ) -> Self {
        let err = Log::follow(child.stderr.take().unwrap());
        Self { child, input, out, err, names, folder }
    }

    /// Waits until the guest has printed this.
    pub fn wait_for(&self, text: &str) {
        assert!(self.out.wait_for(text, LIMIT), "no {text:?}; {}", self.logs());
    }

    /// Types on standard input.
    pub fn type_in(&mut self, text: &str) {
        self.input.write_all(text.as_bytes()).and_then(|()| self.input.flush()).unwrap();
    }

    /// The names of the commands, for a test that finds the guest's console elsewhere.
    pub fn take_names(&mut self) -> Vec<String> {
        std::mem::take(&mut self.names)
    }

    /// Does something while the guest is held (see `Guest::hold`), and lets it go on.
    pub fn while_held<T>(&mut self, what: impl FnOnce(&Self) -> T) -> T {
        self.wait_for("ready\n");
        let result = what(self);
        self.type_in("\n");
        result
    }

    /// A file of the VMM's folder below /proc.
    pub fn proc(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap()
    }

    /// The names of the VMM's threads, by their ids.
    pub fn threads(&self) -> BTreeMap<String, String> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let thread = |task: &DirEntry| {
            let name = fs::read_to_string(task.path().join("comm")).unwrap();
            (task.file_name().into_string().unwrap(), name.trim_end().to_owned())
        };
        tasks.map(|task| thread(&task.unwrap())).collect()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits until the VMM has ended.
    pub fn wait(mut self) -> Ended {
        self.wait_for_exit();
        assert!(self.out.wait_for_end(LIMIT), "standard output outlives the VMM; {}", self.logs());
        let status = self.child.wait().unwrap();
        Ended { status, out: self.out.text(), err: self.err.text(), names: std::mem::take(&mut self.names) }
    }

    /// Waits until the VMM's process is gone.
    pub fn wait_for_exit(&self) {
        // Standard error is a pipe that only the VMM has: it ends with the process.
        assert!(self.err.wait_for_end(LIMIT), "still running; {}", self.logs());
    }

    fn logs(&self) -> String {
        format!("standard output:\n{}\nstandard error:\n{}", self.out.text(), self.err.text())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill().and_then(|()| self.child.wait());
        if std::thread::panicking() {
            eprintln!("The guest has said:\n{}\nThe VMM has said:\n{}", self.out.text(), self.err.text());
        }
    }
}

/// How a VMM ended and what it printed.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub out: String,
    pub err: String,
    names: Vec<String>,
}

impl Ended {
    /// Checks the exit code.
    pub fn expect(&self, code: i32) {
        assert_eq!(self.status.code(), Some(code), "{self}");
    }

    /// What the guest's commands printed; all of them have run and succeeded.
    pub fn answers(&self) -> Answers {
        Answers::parse(&self.out, &self.names).unwrap_or_else(|what| panic!("{what}; {self}"))
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, standard output:\n{}\nstandard error:\n{}", self.status, self.out, self.err)
    }
}

/// What the guest's commands printed, by their names and without the last newline.
#[derive(Debug)]
pub struct Answers(HashMap<String, String>);

impl Answers {
    /// Takes the answers out of what a console brought, wherever it was.
    pub fn parse(console: &str, names: &[String]) -> Result<Self, String> {
        let (output, _) = Frame::parse(console.as_bytes()).ok_or("the guest's job did not end")?;
        let output = String::from_utf8_lossy(&output);
        let mut answers = HashMap::new();
        for name in names {
            let begin = format!("{BEGIN}{name}{BEGIN}");
            let rest = output.split_once(&begin).ok_or(format!("{name} did not run"))?.1;
            let (said, rest) = rest.split_once(END).ok_or(format!("{name} did not end"))?;
            if !rest.starts_with(&format!("0{END}")) {
                return Err(format!("{name} failed: {said}"));
            }
            answers.insert(name.clone(), said.trim_end_matches('\n').to_owned());
        }
        Ok(Self(answers))
    }
}

impl Index<&str> for Answers {
    type Output = str;

    fn index(&self, name: &str) -> &str {
        self.0.get(name).unwrap_or_else(|| panic!("no command is called {name}"))
    }
}
