//! What a serial port's vCPUs, its turns on an event loop and its handles share: the UART, the line, and how bytes
//! move between them.
//!
//! Everything happens under one lock, and nothing waits under it. The loop watches the line's input until it ends,
//! and its output while some waits for room. A turn leaves input unread for which the guest has no room; the
//! guest's access that makes room wakes the loop.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ossature_bus::state::{SavedState, StateError};
use ossature_bus::{
    Access, BusFault, DeviceEvent, Effect, Event, EventSink, Handler, Interest, LoopHandle, MetricVisitor,
    Mmio, Source, Turn,
};
use rustix::event::{PollFd, PollFlags};

use crate::register;

use super::escape::{Escape, EscapeFilter};
use super::line::{FdLine, Line, Pollable, Watch, poll};
use super::state::SerialState;
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
    /// The line may have input that is still to be read.
    unread: bool,
    /// The loop has been woken to read it.
    woken: bool,
    /// The port's place on its event loop, if the line needs one, and what is watched there.
    on_loop: Option<LoopHandle>,
    watched: Watch,
    /// Room in the line is waited for.
    stalled: bool,
    /// Handles that wait for room in the receiver.
    waiting: usize,
    irq: Option<Arc<Event>>,
    events: EventSink,
    /// The condition of the line or interrupt has been reported.
    reported: bool,
    paused: bool,
    /// The output that waits is in a saved state: unless the port is resumed, somebody else sends it.
    saved: bool,
    stop: bool,
    counters: Counters,
}

pub(super) struct Shared {
    inner: Mutex<Inner>,
    room: Condvar,
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

    /// Gives the port a turn.
    fn wake(&self) {
        if let Some(on_loop) = &self.on_loop {
            on_loop.wake(0);
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
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.unread = false,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
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

    /// One turn on the loop.
    fn turn(&mut self) -> (Vec<Escape>, Turn) {
        if self.paused || self.stop {
            return (Vec::new(), Turn::Sleep);
        }
        self.counters.wakeups += 1;
        (self.unread, self.woken) = (true, false);
        self.send();
        let keys = self.take_input();
        self.raise();
        self.rewatch();
        (keys, if self.unread && self.wants_input() { Turn::Again } else { Turn::Sleep })
    }

    /// Has the loop watch what there is to wait for now.
    fn rewatch(&mut self) {
        let Some(on_loop) = self.on_loop.clone() else { return };
        self.stalled = !self.uart.output().is_empty();
        let wanted = self.line.watch(self.input_open, self.stalled);
        // What is watched is open, so that equal numbers mean the same file.
        let before = std::mem::take(&mut self.watched);
        for (file, _) in
            before.iter().filter(|(file, _)| !wanted.iter().any(|(other, _)| fd(other) == fd(file)))
        {
            on_loop.forget(fd(file));
        }
        let new = |(file, flags): &&(_, PollFlags)| {
            !before.iter().any(|(f, was)| fd(f) == fd(file) && was == flags)
        };
        for (file, flags) in wanted.iter().filter(new) {
            let source = Source { token: 0, fd: fd(file), interest: interest(*flags) };
            match on_loop.watch(source) {
                // A file that is always ready, such as /dev/zero: it is read until it ends.
                Err(e) if e.source.kind() != io::ErrorKind::PermissionDenied => {
                    self.report("serial line", &e.source);
                }
                _ => {}
            }
        }
        self.watched = wanted;
    }
}

fn fd(file: &Pollable) -> RawFd {
    file.as_fd().as_raw_fd()
}

fn interest(flags: PollFlags) -> Interest {
    match (flags.contains(PollFlags::IN), flags.contains(PollFlags::OUT)) {
        (true, true) => Interest::Both,
        (false, true) => Interest::Writable,
        _ => Interest::Readable,
    }
}

/// The port on its event loop.
pub(super) struct OnLoop {
    pub(super) shared: Arc<Shared>,
    pub(super) on_key: Box<dyn FnMut(Escape) + Send>,
}

impl std::fmt::Debug for OnLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnLoop")
    }
}

impl Handler for OnLoop {
    fn sources(&self) -> Vec<Source> {
        // They change: see `rewatch`.
        Vec::new()
    }

    fn turn(&mut self, _: u16) -> Turn {
        let (keys, turn) = self.shared.lock().turn();
        // Without the lock: the keys may do anything.
        keys.into_iter().for_each(&mut self.on_key);
        turn
    }
}

impl Shared {
    pub(super) fn new(line: Box<dyn Line>, escape: bool) -> Self {
        let input_open = line.needs_loop();
        Self {
            inner: Mutex::new(Inner {
                uart: Uart::new(),
                line,
                escape: escape.then(EscapeFilter::new),
                typeahead: VecDeque::new(),
                input_open,
                unread: true,
                woken: false,
                on_loop: None,
                watched: Watch::new(),
                stalled: false,
                waiting: 0,
                irq: None,
                events: EventSink::discard(),
                reported: false,
                paused: false,
                saved: false,
                stop: false,
                counters: Counters::default(),
            }),
            room: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what the guest's access allows to, and wakes those who wait for what it has just made possible.
    fn after_guest(&self, inner: &mut Inner, written: Written) {
        if inner.uart.rx_is_empty() && !inner.typeahead.is_empty() {
            inner.feed();
        }
        inner.raise();
        // A burst is sent with its last byte, or when the guest looks at the port again, as its interrupt makes it.
        // Behind output that waits for room, it is the loop's turn.
        let burst = written == Written::Sent && inner.uart.in_burst();
        let sends = !inner.stalled && !burst && !inner.paused;
        if sends {
            inner.send();
            inner.raise();
        }
        let drained = inner.uart.rx_is_empty() && inner.uart.rx_room() > 0;
        if drained && inner.waiting > 0 {
            self.room.notify_all();
        }
        if sends && !inner.uart.output().is_empty() {
            inner.counters.stalls += 1;
            inner.rewatch();
        }
        if drained && inner.unread && !inner.woken && inner.wants_input() {
            inner.woken = true;
            inner.wake();
        }
    }

    pub(super) fn attach(&self, irq: Option<Arc<Event>>, events: EventSink) {
        let mut inner = self.lock();
        inner.irq = irq;
        inner.events = events;
    }

    /// The port has its turns through `on_loop` from now on.
    pub(super) fn hosted(&self, on_loop: LoopHandle) {
        let mut inner = self.lock();
        inner.on_loop = Some(on_loop);
        inner.rewatch();
        inner.wake();
    }

    /// After this no turn touches the UART or the line.
    pub(super) fn pause(&self) {
        let mut inner = self.lock();
        // A port that is paused already may have its output in a saved state.
        if !inner.paused {
            inner.send();
            inner.paused = true;
        }
    }

    pub(super) fn resume(&self) {
        let mut inner = self.lock();
        (inner.paused, inner.saved) = (false, false);
        // A port without a loop has no turn in which to do this.
        inner.send();
        inner.feed();
        inner.raise();
        inner.wake();
        self.room.notify_all();
    }

    /// The state of a port that is paused.
    pub(super) fn state(&self) -> SavedState<'static> {
        let mut inner = self.lock();
        inner.saved = inner.paused;
        SerialState { uart: inner.uart.state(), typeahead: inner.typeahead.iter().copied().collect() }.save()
    }

    /// Takes over a state, and is paused.
    pub(super) fn restore(&self, state: &SavedState<'_>) -> Result<(), StateError> {
        let SerialState { uart, typeahead } = SerialState::load(state)?;
        let uart = Uart::restored(uart)?;
        let mut inner = self.lock();
        inner.uart = uart;
        inner.typeahead = typeahead.into();
        (inner.paused, inner.saved) = (true, true);
        Ok(())
    }

    pub(super) fn reset(&self) {
        let mut inner = self.lock();
        inner.uart.reset();
        inner.reported = false;
    }

    /// Gives the line up to `grace` to take what the guest has sent, then ends the port's work.
    pub(super) fn stop(&self, grace: Duration) {
        let deadline = Instant::now() + grace;
        loop {
            let mut inner = self.lock();
            if !inner.saved {
                inner.send();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let watch = inner.line.watch(false, true);
            let done = inner.saved || inner.uart.output().is_empty();
            if done || left.is_zero() || watch.is_empty() {
                inner.stop = true;
                break;
            }
            drop(inner);
            let fds = watch.iter().map(|(fd, flags)| PollFd::from_borrowed_fd(fd.as_fd(), *flags));
            let _ = poll(&mut fds.collect::<Vec<_>>(), Some(left));
        }
        self.room.notify_all();
    }

    /// Closes the line: handles and the bus may keep the port's registers for longer.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        inner.watched.clear();
        inner.line = Box::new(FdLine { input: None, output: None });
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
        visitor.counter("wakeups", c.wakeups);
        visitor.gauge("output_waiting_bytes", inner.uart.output_len() as u64);
    }
}

impl Mmio for Shared {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        let offset = register::byte(at, 8)?;
        let mut inner = self.lock();
        let value = inner.uart.read(offset);
        self.after_guest(&mut inner, Written::Register);
        Ok(value.into())
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        let offset = register::byte(at, 8)?;
        let mut inner = self.lock();
        let written = inner.uart.write(offset, value as u8);
        if written == Written::Overflow {
            inner.counters.output_lost += 1;
        }
        self.after_guest(&mut inner, written);
        Ok(Effect::None)
    }
}
