//! What a serial port's vCPUs, its thread and its handles share: the UART, the line, and how bytes move
//! between them.
//!
//! Everything happens under one lock, and nothing waits under it. The thread waits without the lock, for
//! what [`Inner::watch`] has asked for; whoever changes the answer wakes it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ossature_bus::{Access, BusFault, DeviceEvent, Effect, Event, EventSink, MetricVisitor, Mmio};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};

use crate::register;

use super::escape::{Escape, EscapeFilter};
use super::line::{FdLine, Line, Watch, poll};
use super::uart::{RX_CAPACITY, Uart, Written};

/// Input that waits for the guest while the escape keys are listened for: as much as a terminal keeps.
pub(super) const TYPEAHEAD_CAPACITY: usize = 4096;

#[derive(Default)]
struct Counters {
    output: u64,
    output_lost: u64,
    input: u64,
    input_lost: u64,
    stalls: u64,
    wakeups: u64,
}

pub(super) struct Inner {
    uart: Uart,
    line: Box<dyn Line>,
    /// Reads the line before the guest does, so that the keys work when the guest hangs.
    escape: Option<EscapeFilter>,
    typeahead: VecDeque<u8>,
    /// The line's input has not ended.
    input_open: bool,
    /// The thread waits for the line's input, or for room in the line.
    watched: (bool, bool),
    /// Handles that wait for room in the receiver.
    waiting: usize,
    irq: Option<Arc<Event>>,
    events: EventSink,
    /// The condition of the line or interrupt has been reported.
    reported: bool,
    paused: bool,
    stop: bool,
    counters: Counters,
}

pub(super) struct Shared {
    inner: Mutex<Inner>,
    room: Condvar,
    wake: OwnedFd,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl Inner {
    fn report(&mut self, what: &str, error: &io::Error) {
        if !std::mem::replace(&mut self.reported, true) {
            self.events.report(DeviceEvent::HostError { reason: format!("{what}: {error}") });
        }
    }

    fn raise(&mut self) {
        if !self.uart.take_edge() {
            return;
        }
        if let Some(Err(e)) = self.irq.as_ref().map(|irq| irq.signal()) {
            self.report("serial interrupt", &e);
        }
    }

    /// Sends what waits, as far as the line takes it now.
    fn send(&mut self) {
        loop {
            let output = self.uart.output();
            if output.is_empty() {
                return;
            }
            let len = output.len();
            match self.line.write(output) {
                Ok(n) if n > 0 => {
                    let n = n.min(len);
                    self.counters.output += n as u64;
                    self.uart.output_taken(n);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                failed => {
                    let error = failed.err().unwrap_or_else(|| io::ErrorKind::WriteZero.into());
                    self.counters.output_lost += len as u64;
                    self.uart.output_taken(len);
                    if error.kind() != io::ErrorKind::NotConnected {
                        self.report("serial output", &error);
                    }
                }
            }
        }
    }

    fn wants_input(&self) -> bool {
        self.input_open && (self.escape.is_some() || self.uart.rx_room() > 0)
    }

    /// Takes input from the line, as much as there is room for, and returns the escape keys in it.
    fn take_input(&mut self) -> Vec<Escape> {
        let mut keys = Vec::new();
        let mut buf = [0; RX_CAPACITY];
        // A turn takes at most what the receiver holds: a fast source leaves the lock to the vCPUs.
        let room = if self.escape.is_some() { RX_CAPACITY } else { self.uart.rx_room() };
        let Some(space) = buf.get_mut(..room).filter(|_| self.wants_input()) else { return keys };
        match self.line.read(space) {
            Ok(0) => self.input_open = false,
            Ok(n) => {
                let bytes = space.get(..n).unwrap_or_default();
                match &mut self.escape {
                    None => {
                        self.counters.input += self.uart.receive(bytes) as u64;
                    }
                    Some(filter) => {
                        for byte in bytes {
                            let (byte, key) = filter.push(*byte);
                            keys.extend(key);
                            if let Some(byte) = byte {
                                if self.typeahead.len() < TYPEAHEAD_CAPACITY {
                                    self.typeahead.push_back(byte);
                                } else {
                                    self.counters.input_lost += 1;
                                }
                            }
                        }
                        self.feed();
                    }
                }
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(e) => {
                self.input_open = false;
                self.report("serial input", &e);
            }
        }
        keys
    }

    /// Moves what waits for the guest into the receiver.
    fn feed(&mut self) {
        let n = self.uart.receive(self.typeahead.as_slices().0);
        self.typeahead.drain(..n);
        self.counters.input += n as u64;
    }

    /// One turn of the thread.
    fn turn(&mut self) -> Vec<Escape> {
        self.counters.wakeups += 1;
        self.send();
        let keys = self.take_input();
        self.raise();
        keys
    }

    fn wants(&self) -> (bool, bool) {
        if self.paused { (false, false) } else { (self.wants_input(), !self.uart.output().is_empty()) }
    }

    fn watch(&mut self) -> Watch {
        self.watched = self.wants();
        self.line.watch(self.watched.0, self.watched.1)
    }
}

impl Shared {
    pub(super) fn new(line: Box<dyn Line>, escape: bool) -> io::Result<Self> {
        let input_open = line.needs_thread();
        Ok(Self {
            inner: Mutex::new(Inner {
                uart: Uart::new(),
                line,
                escape: escape.then(EscapeFilter::new),
                typeahead: VecDeque::new(),
                input_open,
                watched: (false, false),
                waiting: 0,
                irq: None,
                events: EventSink::discard(),
                reported: false,
                paused: false,
                stop: false,
                counters: Counters::default(),
            }),
            room: Condvar::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread. The count cannot be full: the thread takes it at each turn.
    fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Wakes those who wait for what the guest has just made possible.
    fn after_guest(&self, inner: &mut Inner) {
        if inner.uart.rx_is_empty() && !inner.typeahead.is_empty() {
            inner.feed();
        }
        inner.raise();
        let (input, output) = inner.wants();
        let drained = inner.uart.rx_is_empty() && inner.uart.rx_room() > 0;
        if drained && inner.waiting > 0 {
            self.room.notify_all();
        }
        // The thread that waits for neither is woken once: `watched` says that it will look.
        let wake = (output && !inner.watched.1, input && drained && !inner.watched.0);
        if wake.0 || wake.1 {
            inner.watched.0 |= wake.1;
            inner.watched.1 |= wake.0;
            inner.counters.stalls += u64::from(wake.0);
            self.wake();
        }
    }

    pub(super) fn attach(&self, irq: Option<Arc<Event>>, events: EventSink) {
        let mut inner = self.lock();
        inner.irq = irq;
        inner.events = events;
    }

    /// The thread's life: waits, moves bytes, calls `on_key` without the lock.
    pub(super) fn run(&self, mut on_key: impl FnMut(Escape)) {
        let mut count = [0; 8];
        loop {
            let watch = {
                let mut inner = self.lock();
                if inner.stop {
                    return;
                }
                inner.watch()
            };
            let mut fds = vec![PollFd::new(&self.wake, PollFlags::IN)];
            fds.extend(watch.fds.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(fd.as_fd(), *flags)));
            if let Err(e) = poll(&mut fds, watch.retry) {
                self.lock().report("serial poll", &e);
                return;
            }
            if fds.first().is_some_and(|wake| !wake.revents().is_empty()) {
                let _ = rustix::io::read(&self.wake, &mut count);
            }
            let keys = {
                let mut inner = self.lock();
                if inner.paused || inner.stop {
                    continue;
                }
                inner.turn()
            };
            keys.into_iter().for_each(&mut on_key);
        }
    }

    /// After this the thread touches neither the UART nor the line.
    pub(super) fn pause(&self) {
        let mut inner = self.lock();
        inner.send();
        inner.paused = true;
    }

    pub(super) fn resume(&self) {
        self.lock().paused = false;
        self.room.notify_all();
        self.wake();
    }

    pub(super) fn reset(&self) {
        let mut inner = self.lock();
        inner.uart.reset();
        inner.reported = false;
    }

    /// Gives the line up to `grace` to take what the guest has sent, then ends the thread's run.
    pub(super) fn stop(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        loop {
            let mut inner = self.lock();
            inner.send();
            let left = deadline.saturating_duration_since(Instant::now());
            let watch = inner.line.watch(false, true);
            if inner.uart.output().is_empty() || left.is_zero() || watch.fds.is_empty() {
                inner.stop = true;
                break;
            }
            drop(inner);
            let fds = watch.fds.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(fd.as_fd(), *flags));
            let _ = poll(&mut fds.collect::<Vec<_>>(), Some(left));
        }
        self.room.notify_all();
        self.wake();
    }

    /// Closes the line: handles and the bus may keep the port's registers for longer.
    pub(super) fn close(&self) {
        self.lock().line = Box::new(FdLine { input: None, output: None });
    }

    /// Puts the first bytes of `input` into the receiver and returns how many it took.
    pub(super) fn receive(&self, input: &[u8]) -> usize {
        let mut inner = self.lock();
        Self::receive_locked(&mut inner, input)
    }

    fn receive_locked(inner: &mut Inner, input: &[u8]) -> usize {
        if inner.paused || inner.stop {
            return 0;
        }
        let n = inner.uart.receive(input);
        inner.counters.input += n as u64;
        inner.raise();
        n
    }

    /// Waits until the receiver has taken all of `input`; `BrokenPipe` once the device is gone.
    pub(super) fn receive_all(&self, mut input: &[u8]) -> io::Result<()> {
        let mut inner = self.lock();
        loop {
            let n = Self::receive_locked(&mut inner, input);
            input = input.get(n..).unwrap_or_default();
            if input.is_empty() {
                return Ok(());
            }
            if inner.stop {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            inner.waiting += 1;
            inner = self.room.wait(inner).unwrap_or_else(PoisonError::into_inner);
            inner.waiting -= 1;
        }
    }

    pub(super) fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        let inner = self.lock();
        let c = &inner.counters;
        visitor.counter("output_bytes", c.output);
        visitor.counter("output_lost_bytes", c.output_lost);
        visitor.counter("input_bytes", c.input);
        visitor.counter("input_lost_bytes", c.input_lost);
        visitor.counter("output_stalls", c.stalls);
        visitor.counter("thread_wakeups", c.wakeups);
        visitor.gauge("output_waiting_bytes", inner.uart.output_len() as u64);
    }
}

impl Mmio for Shared {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        let offset = register::byte(at, 8)?;
        let mut inner = self.lock();
        let value = inner.uart.read(offset);
        self.after_guest(&mut inner);
        Ok(value.into())
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        let offset = register::byte(at, 8)?;
        let mut inner = self.lock();
        match inner.uart.write(offset, value as u8) {
            Written::Register => {}
            // Behind other output, it is the thread's turn to send it.
            Written::Sent if inner.uart.output_len() == 1 => inner.send(),
            Written::Sent => {}
            Written::Overflow => inner.counters.output_lost += 1,
        }
        self.after_guest(&mut inner);
        Ok(Effect::None)
    }
}
