use std::fs::File;
use std::io::Read;
use std::sync::mpsc::{Receiver, channel};

use ossature_bus::LoopThread;

use super::*;
use crate::testing::terminal;

/// A filter on a terminal, its user, the device's end, and the keys.
fn filter() -> (KeyFilter, File, File, Receiver<Escape>) {
    let (user, terminal) = terminal();
    let (keys, pressed) = channel();
    let (filter, device) = KeyFilter::new(terminal, move |key| keys.send(key).unwrap()).unwrap().unwrap();
    (filter, user, device.into(), pressed)
}

fn read(device: &mut File, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    device.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn escape_keys_are_taken_out_of_the_input_and_the_rest_goes_on_to_its_end() {
    let (filter, mut user, mut device, pressed) = filter();
    let thread = LoopThread::start("keys").unwrap();
    let _filter = filter.on(thread.event_loop()).unwrap();
    user.write_all(b"a\x01hb\x01\x01c").unwrap();
    assert_eq!(read(&mut device, 4), b"ab\x01c");
    assert_eq!(pressed.recv(), Ok(Escape::Help));
    assert!(pressed.try_recv().is_err());
    user.write_all(b"d").unwrap();
    assert_eq!(read(&mut device, 1), b"d");
    drop(user);
    assert_eq!(device.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn t2_there_are_no_escape_keys_without_a_terminal() {
    let (socket, _other) = UnixStream::pair().unwrap();
    let (pipe, _writer) = io::pipe().unwrap();
    let file = File::open("/dev/null").unwrap();
    let inputs: [OwnedFd; 3] = [socket.into(), pipe.into(), file.into()];
    for input in inputs {
        assert!(KeyFilter::new(input, |_| ()).unwrap().is_none());
    }
}

#[test]
fn t1_what_is_pasted_stays_in_the_terminal_until_the_guest_reads() {
    let (filter, mut user, mut device, pressed) = filter();
    let thread = LoopThread::start("keys").unwrap();
    let _filter = filter.on(thread.event_loop()).unwrap();
    let pasted: Vec<u8> = (0..200_000).map(|n| b'a' + (n % 23) as u8).collect();
    let text = pasted.clone();
    let typist = std::thread::spawn(move || {
        user.write_all(&text).unwrap();
        user.write_all(b"\x01h").unwrap();
        user
    });
    assert!(read(&mut device, pasted.len()) == pasted);
    let _user = typist.join().unwrap();
    assert_eq!(pressed.recv(), Ok(Escape::Help));
}

#[test]
fn t1_the_keys_work_though_nobody_reads_and_nothing_is_lost() {
    let (filter, mut user, mut device, pressed) = filter();
    let thread = LoopThread::start("keys").unwrap();
    let _filter = filter.on(thread.event_loop()).unwrap();
    // Key by key, as they are typed: each is a piece of its own.
    let typed: Vec<u8> = (0..2000).map(|n| b'a' + (n % 23) as u8).collect();
    for key in &typed {
        user.write_all(&[*key]).unwrap();
    }
    user.write_all(b"\x01x").unwrap();
    assert_eq!(pressed.recv(), Ok(Escape::Quit));
    assert!(read(&mut device, typed.len()) == typed);
}

#[test]
fn a_device_that_is_gone_leaves_the_keys() {
    let (filter, mut user, device, pressed) = filter();
    let thread = LoopThread::start("keys").unwrap();
    let _filter = filter.on(thread.event_loop()).unwrap();
    drop(device);
    for _ in 0..10 {
        user.write_all(&[b'x'; 1000]).unwrap();
    }
    user.write_all(b"\x01x").unwrap();
    assert_eq!(pressed.recv(), Ok(Escape::Quit));
}

#[test]
fn e1_a_callback_that_panics_ends_the_filter_and_not_the_loop() {
    let (mut user, terminal) = terminal();
    let (filter, device) = KeyFilter::new(terminal, |_| panic!("the key's code is wrong")).unwrap().unwrap();
    let (tell, told) = channel();
    let thread = LoopThread::start("keys").unwrap();
    let hooked = thread.event_loop().on_panic(move |panic| tell.send(panic.message).unwrap());
    let _filter = filter.on(&hooked).unwrap();
    let (other, mut other_user, mut other_device, _keys) = self::filter();
    let _other = other.on(thread.event_loop()).unwrap();
    let mut device = File::from(device);
    user.write_all(b"a").unwrap();
    assert_eq!(read(&mut device, 1), b"a");
    user.write_all(b"\x01h").unwrap();
    other_user.write_all(b"b").unwrap();
    assert_eq!(told.recv().unwrap(), "the key's code is wrong");
    assert_eq!(read(&mut other_device, 1), b"b");
    assert_eq!(device.read(&mut [0; 8]).unwrap(), 0);
}
