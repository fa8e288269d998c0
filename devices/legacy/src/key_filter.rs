//! A terminal's input without the escape keys, for a device that reads from a descriptor.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use ossature_bus::{EventLoop, Handler, Hosted, Interest, Source, Turn, WatchError};

use crate::backend::line::Fd;
use crate::escape::{Escape, EscapeFilter};

/// How much of the input one turn takes.
const PIECE: usize = 4096;

/// Passes input on to a device that reads from a descriptor, such as a virtio console, without the escape keys (see
/// [`EscapeFilter`]). They work even when the guest does not read: what the device's descriptor has no room for is
/// dropped, as a terminal does. The end of the input is the end of what the device reads.
pub struct KeyFilter {
    input: Fd,
    /// Gone once the input has ended.
    guest: Option<UnixStream>,
    filter: EscapeFilter,
    on_key: Box<dyn FnMut(Escape) + Send>,
}

impl KeyFilter {
    /// Takes a descriptor that other processes may share, such as standard input, and calls `on_key` for each escape
    /// key, on the thread that runs the loop. If it panics, the filter and the input end, and the loop's
    /// [`on_panic`](EventLoop::on_panic) hook is told. Returns the filter and the descriptor for the device.
    pub fn new(input: impl AsFd, on_key: impl FnMut(Escape) + Send + 'static) -> io::Result<(Self, OwnedFd)> {
        let input = Fd::shared(input.as_fd(), false)?;
        let (guest, device) = UnixStream::pair()?;
        guest.set_nonblocking(true)?;
        let this = Self { input, guest: Some(guest), filter: EscapeFilter::new(), on_key: Box::new(on_key) };
        Ok((this, device.into()))
    }

    /// Has its turns on `event_loop` for as long as the result lives.
    pub fn on(self, event_loop: &EventLoop) -> Result<Hosted<Self>, WatchError> {
        let fd = self.fd();
        let hosted = event_loop.host(self)?;
        match hosted.handle().watch(Source { token: 0, fd, interest: Interest::Readable }) {
            // A file that is always ready: read until it ends.
            Err(e) if e.source.kind() != io::ErrorKind::PermissionDenied => return Err(e),
            _ => hosted.handle().wake(0),
        }
        Ok(hosted)
    }

    fn fd(&self) -> RawFd {
        self.input.as_fd().as_raw_fd()
    }

    /// Sends a piece of the input at once: a socket has room for a few hundred writes, however short they are.
    fn send(&mut self, piece: &mut Vec<u8>) {
        if let Some(guest) = self.guest.as_mut().filter(|_| !piece.is_empty()) {
            // What there is no room for is dropped.
            let _ = guest.write(piece);
        }
        piece.clear();
    }
}

impl Handler for KeyFilter {
    fn sources(&self) -> Vec<Source> {
        // See `on`: not every file can be watched.
        Vec::new()
    }

    fn turn(&mut self, _: u16) -> Turn {
        if self.guest.is_none() {
            return Turn::Sleep;
        }
        let mut buffer = [0; PIECE];
        let length = match self.input.read(&mut buffer) {
            Ok(length @ 1..) => length,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Turn::Again,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Turn::Sleep,
            _ => {
                self.guest = None;
                return Turn::Sleep;
            }
        };
        let mut piece = Vec::new();
        for &byte in buffer.iter().take(length) {
            let (byte, key) = self.filter.push(byte);
            piece.extend(byte);
            if let Some(key) = key {
                self.send(&mut piece);
                (self.on_key)(key);
            }
        }
        self.send(&mut piece);
        Turn::Again
    }
}

impl std::fmt::Debug for KeyFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyFilter")
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn escape_keys_are_taken_out_of_the_input_and_the_rest_goes_on_to_its_end() {
        let (mut user, input) = UnixStream::pair().unwrap();
        let (keys, pressed) = channel();
        let (filter, device) = KeyFilter::new(input, move |key| keys.send(key).unwrap()).unwrap();
        let event_loop = EventLoop::new().unwrap();
        let _filter = filter.on(&event_loop).unwrap();
        user.write_all(b"a\x01hb\x01\x01c").unwrap();
        while event_loop.pass().unwrap() {}
        assert_eq!(pressed.try_recv(), Ok(Escape::Help));
        assert!(pressed.try_recv().is_err());
        user.write_all(b"d").unwrap();
        drop(user);
        while event_loop.pass().unwrap() {}
        let mut rest = Vec::new();
        File::from(device).read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"ab\x01cd");
    }

    #[test]
    fn a_file_that_cannot_be_watched_is_read_to_its_end() {
        let (filter, device) = KeyFilter::new(File::open("/dev/null").unwrap(), |_| ()).unwrap();
        let event_loop = EventLoop::new().unwrap();
        let _filter = filter.on(&event_loop).unwrap();
        while event_loop.pass().unwrap() {}
        assert_eq!(File::from(device).read(&mut [0; 8]).unwrap(), 0);
    }

    /// Runs the filter over a file to its end; gives what the device reads, and the keys.
    fn filtered(input: &[u8], read: bool) -> (Vec<u8>, Vec<Escape>) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(input).unwrap();
        let (keys, pressed) = channel();
        let input = File::open(file.path()).unwrap();
        let (filter, device) = KeyFilter::new(input, move |key| keys.send(key).unwrap()).unwrap();
        let event_loop = EventLoop::new().unwrap();
        let hosted = filter.on(&event_loop).unwrap();
        while event_loop.pass().unwrap() {}
        drop(hosted);
        let mut rest = Vec::new();
        if read {
            File::from(device).read_to_end(&mut rest).unwrap();
        }
        (rest, pressed.iter().collect())
    }

    #[test]
    fn what_is_pasted_waits_for_the_guest() {
        let pasted: Vec<u8> = (0..64 << 10).map(|n| b'a' + (n % 23) as u8).collect();
        let (rest, keys) = filtered(&[&pasted[..], b"\x01h"].concat(), true);
        assert_eq!(keys, [Escape::Help]);
        assert!(rest == pasted, "{} of {} bytes", rest.len(), pasted.len());
    }

    #[test]
    fn b3_input_that_nobody_reads_is_dropped_and_the_keys_still_work() {
        let endless = [&vec![b'x'; 1 << 20][..], b"\x01x"].concat();
        assert_eq!(filtered(&endless, false).1, [Escape::Quit]);
    }

    #[test]
    fn e1_a_callback_that_panics_ends_the_filter_and_not_the_loop() {
        let (mut user, input) = UnixStream::pair().unwrap();
        let (filter, device) = KeyFilter::new(input, |_| panic!("the key's code is wrong")).unwrap();
        let (tell, told) = channel();
        let event_loop = EventLoop::new().unwrap().on_panic(move |panic| tell.send(panic.message).unwrap());
        let _filter = filter.on(&event_loop).unwrap();
        let (mut other_user, input) = UnixStream::pair().unwrap();
        let (other, other_device) = KeyFilter::new(input, |_| ()).unwrap();
        let _other = other.on(&event_loop).unwrap();
        user.write_all(b"a\x01h").unwrap();
        other_user.write_all(b"b").unwrap();
        while event_loop.pass().unwrap() {}
        assert_eq!(told.try_recv().unwrap(), "the key's code is wrong");
        let mut got = [0; 2];
        assert_eq!(File::from(other_device).read(&mut got).unwrap(), 1);
        assert_eq!(got[0], b'b');
        // What came before the key arrives, then the end.
        let mut rest = Vec::new();
        File::from(device).read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"a");
    }
}
