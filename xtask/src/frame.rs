//! The frame in which a guest's job reports on a console: what the console shows before it and
//! after it is not the job's, whatever the firmware, the kernel and the init script print.
//!
//! On the wire: `\x01begin\x01`, what the job printed, `\x01exit=N\x01`. A token behind each first byte tells the marks
//! from whatever else a job prints.

/// What follows the start of the end mark, at its longest: three digits and the closing byte.
const LONGEST_CODE: usize = 4;

/// Takes a console's bytes as they come and tells the job's output apart.
pub struct Frame {
    begin: Vec<u8>,
    end: Vec<u8>,
    pending: Vec<u8>,
    begun: bool,
    exit: Option<u8>,
}

impl Frame {
    /// A frame that has not begun, for a job that does not print marks.
    pub fn new() -> Frame {
        Frame::with_token("")
    }

    /// A frame that has not begun, whose marks carry a token that the job does not print.
    pub fn with_token(token: &str) -> Frame {
        Frame {
            begin: format!("\x01{token}begin\x01").into_bytes(),
            end: format!("\x01{token}exit=").into_bytes(),
            pending: Vec::new(),
            begun: false,
            exit: None,
        }
    }

    /// Takes the next bytes of the console and returns those that the job printed. Holds back what
    /// may turn out to be a mark.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.pending.extend_from_slice(bytes);
        if !self.begun {
            match find(&self.pending, &self.begin) {
                Some(at) => {
                    self.pending.drain(..at + self.begin.len());
                    self.begun = true;
                }
                None => {
                    let keep = self.pending.len().min(self.begin.len() - 1);
                    self.pending.drain(..self.pending.len() - keep);
                }
            }
        }
        if !self.begun || self.exit.is_some() {
            return Vec::new();
        }
        let mut output = 0;
        while let Some(mark) = self.pending[output..].iter().position(|&byte| byte == 1) {
            output += mark;
            match parse_exit(&self.end, &self.pending[output..]) {
                Mark::Exit(code) => {
                    self.exit = Some(code);
                    break;
                }
                Mark::Unclear => break,
                Mark::No => output += 1,
            }
        }
        if self.exit.is_none() && !self.pending[output..].starts_with(b"\x01") {
            output = self.pending.len();
        }
        self.pending.drain(..output).collect()
    }

    /// The job has started.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// The job's exit code, once it has ended.
    pub fn exit(&self) -> Option<u8> {
        self.exit
    }

    /// Tells the output and the exit code apart in a whole log; none if the frame is not complete.
    pub fn parse(log: &[u8]) -> Option<(Vec<u8>, u8)> {
        let mut frame = Frame::new();
        let output = frame.push(log);
        Some((output, frame.exit?))
    }
}

impl Default for Frame {
    fn default() -> Frame {
        Frame::new()
    }
}

enum Mark {
    Exit(u8),
    Unclear,
    No,
}

fn parse_exit(start: &[u8], bytes: &[u8]) -> Mark {
    let Some(rest) = bytes.strip_prefix(start) else {
        return if start.starts_with(bytes) { Mark::Unclear } else { Mark::No };
    };
    match rest.iter().position(|byte| !byte.is_ascii_digit()) {
        None if rest.len() < LONGEST_CODE => Mark::Unclear,
        Some(end) if rest[end] == 1 => {
            let number = std::str::from_utf8(&rest[..end]).ok().and_then(|number| number.parse().ok());
            number.map_or(Mark::No, Mark::Exit)
        }
        _ => Mark::No,
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[u8] = b"SeaBIOS\r\n[    0.1] \x01beg\x01begin\x01one\ntwo\x01exit\x01\x01exit=x\x01\xff\x01exit=42\x01[    9.9] Power down\r\n";
    const OUTPUT: &[u8] = b"one\ntwo\x01exit\x01\x01exit=x\x01\xff";

    #[test]
    fn the_output_is_told_apart_wherever_the_bytes_are_cut() {
        for step in 1..LOG.len() {
            let mut frame = Frame::new();
            let output: Vec<u8> = LOG.chunks(step).flat_map(|chunk| frame.push(chunk)).collect();
            assert_eq!(output, OUTPUT, "in steps of {step}");
            assert_eq!(frame.exit(), Some(42), "in steps of {step}");
        }
    }

    #[test]
    fn output_is_passed_on_before_the_job_ends() {
        let mut frame = Frame::new();
        assert_eq!(frame.push(b"noise\x01begin\x01hello"), b"hello");
        assert!(frame.has_begun());
        assert_eq!(frame.exit(), None);
        assert_eq!(frame.push(b"\x01exit=0"), b"");
        assert_eq!(frame.push(b"\x01"), b"");
        assert_eq!(frame.exit(), Some(0));
        assert_eq!(frame.push(b"[    9.9] Power down"), b"");
    }

    #[test]
    fn x2_a_job_that_prints_marks_does_not_end_a_frame_with_a_token() {
        let mut frame = Frame::with_token("7f3a:");
        let printed = b"\x01begin\x01\x01exit=3\x01\x017f3a:exit\x01";
        let log = [&b"\x01begin\x01\x017f3a:begin\x01"[..], printed, b"\x017f3a:exit=9\x01off"].concat();
        let output: Vec<u8> = log.chunks(5).flat_map(|chunk| frame.push(chunk)).collect();
        assert_eq!(output, printed);
        assert_eq!(frame.exit(), Some(9));
    }

    #[test]
    fn a_log_without_an_end_is_no_result() {
        assert_eq!(Frame::parse(b"\x01begin\x01out"), None);
        assert_eq!(Frame::parse(b"out\x01exit=0\x01"), None);
        assert_eq!(Frame::parse(b"\x01begin\x01out\x01exit=256\x01"), None);
        assert_eq!(Frame::parse(LOG), Some((OUTPUT.to_vec(), 42)));
    }
}
