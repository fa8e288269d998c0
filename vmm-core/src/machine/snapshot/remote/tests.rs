//! Servers and clients at the two ends of a socket, and peers that do not keep to the protocol.

use std::collections::VecDeque;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::thread;

use super::*;

struct Bytes(Vec<u8>);

impl SnapshotSource for Bytes {
    fn size(&mut self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn fetch(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let from = self.0.get(offset as usize..).and_then(|from| from.get(..bytes.len()));
        bytes.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// Of more than is asked for at once, with zeros at the end.
fn bytes() -> Vec<u8> {
    let some = (0..(5 << 20) + 7).map(|n: u32| (n / 3) as u8 | 1);
    some.chain([0; 1000]).collect()
}

fn check(mut remote: impl SnapshotSource) {
    let expected = bytes();
    assert_eq!(remote.size().unwrap(), expected.len() as u64);
    for (offset, len) in [(0, expected.len()), (3, 5), (4 << 20, 1 << 20), (expected.len() - 1000, 1000)] {
        let mut read = vec![0xee; len];
        remote.fetch(offset as u64, &mut read).unwrap();
        assert!(read == expected[offset..offset + len], "{offset:#x}+{len:#x}");
    }
    remote.fetch(3, &mut []).unwrap();
    // Beyond the end: refused, and nothing is asked any more.
    let error = remote.fetch(expected.len() as u64 - 1, &mut [0; 2]).unwrap_err();
    assert_eq!(error.to_string(), "its server cannot read it");
    let error = remote.fetch(0, &mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotConnected);
}

#[test]
fn a_snapshot_is_read_over_unix_and_tcp() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
    let server = thread::spawn(move || serve_snapshot(Bytes(bytes()), listener.accept().unwrap().0));
    check(RemoteSnapshot::unix(folder.path().join("socket")).unwrap());
    assert_eq!(server.join().unwrap().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let server = thread::spawn(move || serve_snapshot(Bytes(bytes()), listener.accept().unwrap().0));
    check(RemoteSnapshot::tcp(addr).unwrap());
    server.join().unwrap().unwrap_err();
    // A client that hangs up is no error.
    let (one, other) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || serve_snapshot(Bytes(bytes()), one));
    drop(RemoteSnapshot::over(other).unwrap());
    server.join().unwrap().unwrap();
}

/// A stream that says what it was told to.
struct Says(VecDeque<u8>);

impl Read for Says {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Write for Says {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn peers_that_speak_otherwise_are_refused() {
    let mut hello = MAGIC.to_vec();
    hello.extend([1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
    for len in 0..hello.len() {
        assert!(RemoteSnapshot::over(Says(hello[..len].to_vec().into())).is_err(), "{len}");
    }
    for at in [0, 7, 8, 11] {
        let mut other = hello.clone();
        other[at] ^= 1;
        assert!(RemoteSnapshot::over(Says(other.into())).is_err(), "{at}");
    }
    for answer in [&[][..], &[0, 0], &[0, 0, 0, 0, 1], &[3, 0, 0, 0, 1, 2], &[2, 0, 0, 0]] {
        let said = [&hello[..], answer].concat();
        let mut remote = RemoteSnapshot::over(Says(said.into())).unwrap();
        assert!(remote.fetch(0, &mut [0; 2]).is_err(), "{answer:?}");
        assert_eq!(remote.fetch(0, &mut [0]).unwrap_err().kind(), io::ErrorKind::NotConnected);
    }
    // One that is silent.
    let (one, mut other) = UnixStream::pair().unwrap();
    other.write_all(&hello).unwrap();
    one.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let mut remote = RemoteSnapshot::over(one).unwrap();
    assert_eq!(remote.fetch(0, &mut [0]).unwrap_err().kind(), io::ErrorKind::TimedOut);
    // A client that asks for more than is served.
    let (mut one, other) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || serve_snapshot(Bytes(bytes()), other));
    one.write_all(&[0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0x20, 0]).unwrap();
    assert_eq!(server.join().unwrap().unwrap_err().kind(), io::ErrorKind::InvalidData);
}

#[test]
fn a_peer_that_sends_byte_by_byte_is_given_up() {
    /// Gives one byte with each call, for ever.
    struct Slow;

    impl Read for Slow {
        fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
            bytes[..1].fill(1);
            Ok(1)
        }
    }

    let mut bytes = [0; 3];
    read_within(&mut Slow, &mut bytes, Duration::from_secs(60)).unwrap();
    assert_eq!(bytes, [1; 3]);
    let error = read_within(&mut Slow, &mut bytes, Duration::ZERO).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    // What has come is taken, however long it took.
    read_within(&mut Slow, &mut bytes[..1], Duration::ZERO).unwrap();
}
