//! Requests on the control socket of `microvm`.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::LIMIT;

/// Asks for something; it has to be done.
#[track_caller]
pub fn ask(socket: &Path, request: &str) {
    let answer = answer(socket, request);
    assert!(answer.starts_with("ok"), "{request}: {answer}");
}

/// Asks for something again and again until it is done.
#[track_caller]
pub fn ask_until_done(socket: &Path, request: &str) {
    until(|| answer(socket, request).starts_with("ok").then_some(()), request);
}

/// What is answered.
#[track_caller]
pub fn answer(socket: &Path, request: &str) -> String {
    // The VMM makes it when it starts.
    let mut stream = until(|| UnixStream::connect(socket).ok(), "the control socket");
    writeln!(stream, "{request}").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    answer
}

#[track_caller]
fn until<T>(mut found: impl FnMut() -> Option<T>, what: &str) -> T {
    let limit = Instant::now() + LIMIT;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < limit, "{what}");
        sleep(Duration::from_millis(50));
    }
}
