//! A Unix stream socket as a serial line: one that listens, and has one client at a time, or one client alone.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use ossature_bus::SocketFile;
use rustix::event::PollFlags;

use super::line::{Line, Pollable, Pollables};

pub(crate) struct SocketLine {
    /// The socket's file, if it was made for this line.
    _file: Option<SocketFile>,
    /// Where clients come from, if there is more than one.
    listener: Option<Arc<UnixListener>>,
    client: Option<Arc<UnixStream>>,
}

impl SocketLine {
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        let (listener, file) = SocketFile::bind(path)?;
        Self::listening(listener, Some(file))
    }

    /// On a socket that listens already.
    pub(crate) fn open(listener: UnixListener) -> io::Result<Self> {
        Self::listening(listener, None)
    }

    fn listening(listener: UnixListener, file: Option<SocketFile>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { _file: file, listener: Some(Arc::new(listener)), client: None })
    }

    pub(crate) fn connected(client: UnixStream) -> io::Result<Self> {
        client.set_nonblocking(true)?;
        Ok(Self { _file: None, listener: None, client: Some(Arc::new(client)) })
    }

    /// The client, or the one that waits to be it.
    fn client(&mut self) -> io::Result<&UnixStream> {
        if let (None, Some(listener)) = (&self.client, &self.listener) {
            let (stream, _) = listener.accept()?;
            stream.set_nonblocking(true)?;
            self.client = Some(Arc::new(stream));
        }
        self.client.as_deref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Line for SocketLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Ok(mut client) = self.client() else { return Err(io::ErrorKind::NotConnected.into()) };
        let result = client.write(bytes);
        if matches!(&result, Err(e) if !matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted))
        {
            // It has gone; so is what was for it.
            self.client = None;
            return Err(io::ErrorKind::NotConnected.into());
        }
        result
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.client.is_none() && self.listener.is_none() {
            return Ok(0);
        }
        match self.client()?.read(buf) {
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Err(e),
            Ok(n) if n > 0 => Ok(n),
            // No other comes; it may still take output.
            _ if self.listener.is_none() => Ok(0),
            // The end of a client is not the end of the line.
            _ => {
                self.client = None;
                Err(io::ErrorKind::WouldBlock.into())
            }
        }
    }

    fn watch(&self, input: bool, output: bool) -> Pollables {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, input);
        flags.set(PollFlags::OUT, output);
        match (&self.client, &self.listener) {
            _ if flags.is_empty() => Pollables::new(),
            (Some(client), _) => vec![(client.clone() as Pollable, flags)],
            (None, Some(listener)) => vec![(listener.clone(), PollFlags::IN)],
            (None, None) => Pollables::new(),
        }
    }

    fn needs_loop(&self) -> bool {
        true
    }

    fn is_terminal(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
