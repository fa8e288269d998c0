//! What a program of the host says before its connection begins: `CONNECT port\n`.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::net::{RecvFlags, recv};

use super::packet::Kind;

/// Longer than any text that is right.
const MAX_TEXT: usize = 32;

/// What has come so far.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// The beginning of what may be right.
    Part,
    /// The guest's port that is wanted.
    Port(u32),
    /// No such text, or the end.
    Nonsense,
}

/// Takes the text off the socket, and nothing of what follows it.
pub(super) fn hear(socket: BorrowedFd<'_>, kind: Kind) -> Heard {
    let mut text = [0; MAX_TEXT];
    let text = match look(socket, &mut text, RecvFlags::PEEK) {
        Ok(0) => return Heard::Nonsense,
        Ok(len) => text.get(..len).unwrap_or_default(),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Heard::Part,
        Err(_) => return Heard::Nonsense,
    };
    let Some(end) = text.iter().position(|byte| *byte == b'\n') else {
        let may_go_on = kind == Kind::Stream && text.len() < MAX_TEXT && may_begin(text);
        return if may_go_on { Heard::Part } else { Heard::Nonsense };
    };
    let Some(port) = text.get(..end).and_then(parse) else { return Heard::Nonsense };
    // A message is taken as a whole, with whatever follows in it.
    let mut taken = [0; MAX_TEXT];
    let taken = taken.get_mut(..=end).unwrap_or_default();
    match look(socket, taken, RecvFlags::empty()) {
        Ok(len) if len == end + 1 => Heard::Port(port),
        _ => Heard::Nonsense,
    }
}

fn look(socket: BorrowedFd<'_>, to: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
    loop {
        match recv(socket, &mut *to, flags | RecvFlags::DONTWAIT) {
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
            Ok((len, _)) => return Ok(len),
        }
    }
}

const WORD: &[u8] = b"CONNECT ";

fn may_begin(text: &[u8]) -> bool {
    let len = text.len().min(WORD.len());
    let begins =
        text.get(..len).zip(WORD.get(..len)).is_some_and(|(text, word)| text.eq_ignore_ascii_case(word));
    begins && text.iter().skip(WORD.len()).all(|byte| byte.is_ascii_digit() || *byte == b' ')
}

/// The port of a line.
fn parse(line: &[u8]) -> Option<u32> {
    let (word, port) = line.split_at_checked(WORD.len())?;
    let port = port.trim_ascii();
    let right = word.eq_ignore_ascii_case(WORD) && !port.is_empty() && port.iter().all(u8::is_ascii_digit);
    if !right {
        return None;
    }
    std::str::from_utf8(port).ok()?.parse().ok()
}

/// What the program reads when the guest has accepted.
pub(super) fn answer(port: u32) -> String {
    format!("OK {port}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b2_only_the_text_itself_names_a_port() {
        for (text, port) in [
            (&b"CONNECT 52"[..], Some(52)),
            (b"connect 52 ", Some(52)),
            (b"CONNECT 4294967295", Some(u32::MAX)),
            (b"CONNECT 4294967296", None),
            (b"CONNECT -1", None),
            (b"CONNECT +1", None),
            (b"CONNECT ", None),
            (b"CONNECT", None),
            (b"CONNECT5", None),
            (b"CONNECT 5 5", None),
            (b"CONNECT 5\r", Some(5)),
            (b"GET / HTTP/1.1", None),
            (b"CONNECT \xff", None),
            (b"", None),
        ] {
            assert_eq!(parse(text), port, "{:?}", text.escape_ascii().to_string());
        }
    }

    #[test]
    fn b2_a_text_that_cannot_become_right_is_known_at_once() {
        assert!([&b"C"[..], b"CONNECT", b"CONNECT ", b"connect 12"].iter().all(|text| may_begin(text)));
        assert!(![&b"X"[..], b"CONNECTX", b"CONNECT x", b"CONNECT 1x"].iter().any(|text| may_begin(text)));
    }
}
