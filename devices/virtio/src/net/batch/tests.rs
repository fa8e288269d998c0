use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

use super::*;

/// With and without io_uring.
fn engines() -> [Batch; 2] {
    [Engine::Untried, Engine::Forbidden].map(|engine| Batch { engine, ..Batch::default() })
}

fn pair() -> (UnixDatagram, UnixDatagram) {
    let (ours, other) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    other.set_nonblocking(true).unwrap();
    (ours, other)
}

fn packet(number: u8) -> Vec<u8> {
    vec![number; 100 + usize::from(number)]
}

#[test]
fn copies_are_sent_in_their_order_with_and_without_io_uring() {
    for mut batch in engines() {
        let (ours, other) = pair();
        for round in 0..3 {
            let count = [8, 1, 5][round];
            for number in 0..count {
                let packet = packet(number);
                batch.place(packet.len()).copy_from_slice(&packet);
                batch.push(packet.len());
            }
            assert_eq!(batch.waiting(), usize::from(count));
            let mut sent = Vec::new();
            batch.send(ours.as_fd(), |(len, result)| sent.push((len, result.is_ok())));
            assert_eq!(sent, (0..count).map(|number| (packet(number).len(), true)).collect::<Vec<_>>());
            assert_eq!(batch.waiting(), 0);
            let mut buf = [0; 1000];
            for number in 0..count {
                let len = other.recv(&mut buf).unwrap();
                assert!(buf[..len] == packet(number));
            }
        }
    }
}

#[test]
fn each_packet_that_is_lost_is_told() {
    for mut batch in engines() {
        let (ours, other) = pair();
        drop(other);
        for number in 0..3 {
            let len = batch.place(packet(number).len()).len();
            batch.push(len);
        }
        let mut lost = Vec::new();
        batch.send(ours.as_fd(), |(len, result)| {
            lost.push((len, result.unwrap_err().raw_os_error().unwrap()))
        });
        assert_eq!(lost.iter().map(|(len, _)| *len).collect::<Vec<_>>(), [100, 101, 102]);
        assert!(
            lost.iter().all(|(_, error)| [libc::ECONNREFUSED, libc::EPIPE, libc::ENOTCONN].contains(error))
        );
    }
}

#[test]
fn a_burst_is_read_ahead_and_its_end_is_seen() {
    for mut batch in engines() {
        let forbidden = matches!(batch.engine, Engine::Forbidden);
        let (ours, other) = pair();
        let mut came = 0;
        let mut dry = false;
        for number in 0..8 {
            other.send(&packet(number)).unwrap();
        }
        while !dry {
            match batch.next(ours.as_fd()) {
                Some(Ok(got)) => {
                    assert!(got == packet(came) && !forbidden);
                    came += 1;
                }
                Some(Err(e)) => {
                    assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
                    dry = true;
                }
                None => {
                    let mut buf = [0; 1000];
                    match ours.recv(&mut buf) {
                        Ok(len) => {
                            assert!(buf[..len] == packet(came));
                            batch.was_read(len);
                            came += 1;
                        }
                        Err(_) => {
                            batch.is_dry();
                            dry = true;
                        }
                    }
                }
            }
        }
        assert_eq!(came, 8);
    }
}

#[test]
fn long_packets_are_not_copied() {
    let (ours, _other) = pair();
    let mut batch = Batch::default();
    for _ in 0..100 {
        batch.was_read(SMALL + 1);
        assert!(batch.next(ours.as_fd()).is_none());
    }
}

#[test]
fn a_descriptor_that_may_wait_is_used_without_io_uring() {
    // A terminal makes no promise, as taps do not before Linux 6.4.
    let terminal = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY);
    let terminal = terminal.unwrap();
    rustix::pty::grantpt(&terminal).unwrap();
    rustix::pty::unlockpt(&terminal).unwrap();
    let mut batch = Batch::default();
    for _ in 0..3 {
        let len = batch.place(1).len();
        batch.push(len);
    }
    let mut sent = 0;
    batch.send(terminal.as_fd(), |(_, result)| sent += u32::from(result.is_ok()));
    assert_eq!(sent, 3);
    assert!(matches!(batch.engine, Engine::Forbidden));
    batch.was_read(1);
    batch.was_read(1);
    assert!(batch.next(terminal.as_fd()).is_none());
}
