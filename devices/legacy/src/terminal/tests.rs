use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::LocalModes;

use super::*;

/// A terminal, and the end that keeps it alive.
fn terminal() -> (OwnedFd, OwnedFd) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let path = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let slave = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    (slave.into(), master)
}

fn is_raw(fd: &OwnedFd) -> bool {
    let modes = tcgetattr(fd).unwrap().local_modes;
    assert_eq!(modes.contains(LocalModes::ECHO), modes.contains(LocalModes::ICANON));
    assert_eq!(modes.contains(LocalModes::ECHO), modes.contains(LocalModes::ISIG));
    !modes.contains(LocalModes::ECHO)
}

#[test]
fn raw_until_dropped() {
    let (slave, _master) = terminal();
    assert!(!is_raw(&slave));
    let guard = RawTerminal::new(&slave).unwrap().unwrap();
    assert!(is_raw(&slave));
    drop(guard);
    assert!(!is_raw(&slave));
}

#[test]
fn restored_early_often_and_raw_again() {
    let (slave, _master) = terminal();
    let guard = RawTerminal::new(&slave).unwrap().unwrap();
    guard.restore();
    guard.restore();
    assert!(!is_raw(&slave));
    guard.raw().unwrap();
    assert!(is_raw(&slave));
    guard.restore();
    drop(guard);
    assert!(!is_raw(&slave));
}

#[test]
fn a_file_is_not_a_terminal() {
    assert!(RawTerminal::new(tempfile::tempfile().unwrap()).unwrap().is_none());
}

#[test]
fn a_terminal_that_has_gone_is_nobodys_concern() {
    let (slave, master) = terminal();
    let guard = RawTerminal::new(&slave).unwrap().unwrap();
    drop(master);
    guard.restore();
    assert!(guard.raw().is_err());
}

#[test]
fn t5_a_terminal_has_a_window_and_a_file_has_none() {
    let (slave, master) = terminal();
    assert_eq!(window_size(&slave), Some((0, 0)));
    let size = rustix::termios::Winsize { ws_row: 50, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&master, size).unwrap();
    assert_eq!(window_size(&slave), Some((132, 50)));
    assert_eq!(window_size(tempfile::tempfile().unwrap()), None);
}
