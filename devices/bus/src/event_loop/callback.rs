//! A function as a handler: called each time a descriptor has become readable.

use std::os::fd::AsRawFd;

use super::handler::{Handler, Interest, Source, Turn};

/// See [`EventLoop::on_readable`](crate::EventLoop::on_readable).
pub(super) struct OnReadable<T, F> {
    file: T,
    f: F,
}

impl<T, F> OnReadable<T, F> {
    pub(super) fn new(file: T, f: F) -> Self {
        Self { file, f }
    }
}

impl<T: AsRawFd + Send, F: FnMut(&mut T) + Send> Handler for OnReadable<T, F> {
    fn sources(&self) -> Vec<Source> {
        vec![Source { token: 0, fd: self.file.as_raw_fd(), interest: Interest::Readable }]
    }

    fn turn(&mut self, _: u16) -> Turn {
        (self.f)(&mut self.file);
        Turn::Sleep
    }
}
