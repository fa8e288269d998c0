use std::io::{Read, pipe};

use super::*;

const USER: Messages = Messages::new("vmm");

#[test]
fn e3_a_terminal_in_raw_mode_gets_its_carriage_returns() {
    assert_eq!(USER.line("two\nlines", false), "vmm: two\nlines\n");
    assert_eq!(USER.line("two\nlines", true), "vmm: two\r\nlines\r\n");
}

#[test]
fn e3_what_nobody_reads_is_dropped() {
    let (read, write) = pipe().unwrap();
    drop(read);
    write_or_drop(&write, b"nobody\n");
}

#[test]
fn e3_a_full_pipe_takes_what_it_has_room_for_and_nobody_waits() {
    let (mut read, write) = pipe().unwrap();
    let line = USER.line("x".repeat(1000), false);
    // More than any pipe takes by default.
    for _ in 0..2000 {
        write_or_drop(&write, line.as_bytes());
    }
    drop(write);
    let mut text = String::new();
    read.read_to_string(&mut text).unwrap();
    assert!(text.starts_with(&line), "{} bytes", text.len());
    assert!(text.len() < 2000 * line.len());
}
