//! A Unix stream socket as a serial line: it listens, and has one client at a time.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::PollFlags;

use super::line::{Line, Pollable, Pollables};

pub(crate) struct SocketLine {
    path: PathBuf,
    listener: Arc<UnixListener>,
    client: Option<Arc<UnixStream>>,
}

impl SocketLine {
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { path: path.to_owned(), listener: Arc::new(listener), client: None })
    }

    /// The client, or the one that waits to be it.
    fn client(&mut self) -> io::Result<&UnixStream> {
        if self.client.is_none() {
            let (stream, _) = self.listener.accept()?;
            stream.set_nonblocking(true)?;
            self.client = Some(Arc::new(stream));
        }
        self.client.as_deref().ok_or_else(|| io::ErrorKind::WouldBlock.into())
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
        match self.client()?.read(buf) {
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Err(e),
            Ok(n) if n > 0 => Ok(n),
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
        let fd: (Pollable, _) = match &self.client {
            _ if flags.is_empty() => return Pollables::new(),
            None => (self.listener.clone(), PollFlags::IN),
            Some(client) => (client.clone(), flags),
        };
        vec![fd]
    }

    fn needs_loop(&self) -> bool {
        true
    }

    fn is_terminal(&self) -> bool {
        false
    }
}

impl Drop for SocketLine {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.path);
    }
}
