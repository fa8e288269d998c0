//! A VMM that runs: what its guest prints, and when.

use std::io::Read;
use std::process::{self, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::{Context, Error, Result};

/// How much of what a VMM says is kept.
const KEPT: usize = 1 << 20;

/// What a reader found.
enum Said {
    Out(Vec<u8>, Instant),
    Err(Vec<u8>),
}

/// What came of waiting for more.
enum Received {
    Some(Duration),
    End,
    TooMuch,
    TooLate,
}

/// A VMM with its guest's serial port on its standard output. Dropping it kills it.
pub struct Child {
    child: process::Child,
    started: Instant,
    limit: Instant,
    said: Receiver<Said>,
    out: Vec<u8>,
    err: Vec<u8>,
    /// Up to where `out` has been looked through.
    looked: usize,
}

impl Child {
    /// Starts a program; the clock begins just before.
    pub fn start(words: &[String], limit: Duration) -> Result<Child> {
        let (program, arguments) = words.split_first().ok_or_else(|| Error::new("no command"))?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = command.spawn().context(program)?;
        let (sender, said) = mpsc::channel();
        if let Some(mut out) = child.stdout.take() {
            let sender = sender.clone();
            thread::spawn(move || {
                read(&mut out, |bytes| sender.send(Said::Out(bytes.to_vec(), Instant::now())).is_ok())
            });
        }
        if let Some(mut err) = child.stderr.take() {
            thread::spawn(move || read(&mut err, |bytes| sender.send(Said::Err(bytes.to_vec())).is_ok()));
        }
        let (out, err) = Default::default();
        Ok(Child { child, started, limit: started + limit, said, out, err, looked: 0 })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the next line that begins with `mark`, and tells how long after the start it came.
    pub fn wait_for(&mut self, mark: &str) -> Result<Duration> {
        self.line(|line| line.starts_with(mark)).map(|(_, at)| at)
    }

    /// Waits for the next line that is as wanted.
    pub fn line(&mut self, wanted: impl Fn(&str) -> bool) -> Result<(String, Duration)> {
        let mut at = self.started.elapsed();
        loop {
            while let Some(end) = self.out[self.looked..].iter().position(|byte| *byte == b'\n') {
                let line = &self.out[self.looked..self.looked + end];
                let line = String::from_utf8_lossy(line).trim_end_matches('\r').to_owned();
                self.looked += end + 1;
                if let Some(why) = line.strip_prefix("@@failed ") {
                    return Err(Error::new(format!("its guest failed: {why}")));
                }
                if wanted(&line) {
                    return Ok((line, at));
                }
            }
            match self.receive()? {
                Some(when) => at = when,
                None => return Err(Error::new(format!("it ended too early\n{}", self.said()))),
            }
        }
    }

    /// Takes in what was said next; none at the end.
    fn receive(&mut self) -> Result<Option<Duration>> {
        match self.receive_until(self.limit) {
            Received::Some(at) => Ok(Some(at)),
            Received::End => Ok(None),
            Received::TooMuch => Err(Error::new("it printed more than anybody would read")),
            Received::TooLate => Err(Error::new(format!(
                "it took longer than {:?}\n{}",
                self.limit - self.started,
                self.said()
            ))),
        }
    }

    fn receive_until(&mut self, limit: Instant) -> Received {
        match self.said.recv_timeout(limit.saturating_duration_since(Instant::now())) {
            Ok(Said::Out(bytes, when)) => {
                self.out.extend(bytes);
                if self.out.len() > KEPT { Received::TooMuch } else { Received::Some(when - self.started) }
            }
            Ok(Said::Err(bytes)) => {
                let room = KEPT.saturating_sub(self.err.len()).min(bytes.len());
                self.err.extend(&bytes[..room]);
                Received::Some(self.started.elapsed())
            }
            Err(RecvTimeoutError::Disconnected) => Received::End,
            Err(RecvTimeoutError::Timeout) => Received::TooLate,
        }
    }

    /// Like [`wait`](Self::wait), but kills a program that takes longer than this: none.
    pub fn wait_at_most(&mut self, limit: Duration) -> Result<Option<Duration>> {
        let limit = Instant::now() + limit;
        loop {
            match self.receive_until(limit) {
                Received::Some(_) => {}
                Received::End => return self.wait().map(Some),
                Received::TooMuch | Received::TooLate => return self.kill().map(|()| None),
            }
        }
    }

    /// Waits for the end, and tells how long after the start it was.
    pub fn wait(&mut self) -> Result<Duration> {
        while self.receive()?.is_some() {}
        self.child.wait().context("waiting for a VMM")?;
        Ok(self.started.elapsed())
    }

    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("waiting for a VMM")?.is_some())
    }

    pub fn kill(&mut self) -> Result<()> {
        // It may have ended by itself.
        let _ = self.child.kill();
        self.wait().map(drop)
    }

    /// The end of what it said on both channels.
    pub fn said(&self) -> String {
        let text = format!("{}{}", String::from_utf8_lossy(&self.err), String::from_utf8_lossy(&self.out));
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(from: &mut dyn Read, mut take: impl FnMut(&[u8]) -> bool) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if !take(&buffer[..length]) {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Child {
        let words = ["sh", "-c", script].map(str::to_owned);
        Child::start(&words, Duration::from_secs(60)).unwrap()
    }

    #[test]
    fn marks_are_found_in_their_order() {
        let mut child = shell("echo noise; printf '@@a 1\\r\\n@@b'; echo ' x=2'");
        let first = child.wait_for("@@a").unwrap();
        let (line, second) = child.line(|line| line.starts_with("@@b")).unwrap();
        assert_eq!(line, "@@b x=2");
        assert!(second >= first);
        assert!(child.wait().unwrap() >= second);
    }

    #[test]
    fn an_end_without_the_mark_tells_what_was_said() {
        let error = shell("echo out; echo broken >&2").wait_for("@@a").unwrap_err();
        assert!(error.message.contains("broken") && error.message.contains("out"), "{error}");
        let error = shell("echo @@failed no disk").wait_for("@@a").unwrap_err();
        assert!(error.message.contains("no disk"), "{error}");
    }

    #[test]
    fn what_does_not_end_is_killed() {
        assert_eq!(shell("exec sleep 1000").wait_at_most(Duration::ZERO).unwrap(), None);
        assert!(shell("true").wait_at_most(Duration::from_secs(60)).unwrap().is_some());
    }
}
