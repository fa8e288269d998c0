//! How a serial port's bytes move between the line, the UART and the guest: the steps that the port's lock protects.
//!
//! Nothing here waits. The loop watches the line's input until it ends, and its output while some waits for room. A
//! turn leaves input unread for which the guest has no room; the guest's access that makes room wakes the loop.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};

use ossature_bus::{DeviceEvent, EventSink, Interest, LoopHandle, MetricVisitor, Source, Turn};
use rustix::event::PollFlags;

use super::interrupt_line::InterruptLine;
use super::model::{Uart, Written};
use super::registers::{RX_CAPACITY, TYPEAHEAD_CAPACITY};
use crate::backend::line::{Line, Pollable, Pollables};
use crate::escape::{Escape, EscapeFilter};

#[derive(Default)]
struct SerialCounters {
    output: u64,
    output_lost: u64,
    input: u64,
    stalls: u64,
    wakeups: u64,
}

/// Where the port is in its device's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Activity {
    /// Part of no machine.
    Detached,
    /// Attached: the registers are answered, and no byte moves between line and UART.
    Quiet,
    /// Resumed.
    Running,
}

pub(super) struct Transfer<U> {
    pub(super) activity: Activity,
    pub(super) uart: U,
    pub(super) line: Box<dyn Line>,
    /// Where there are escape keys, the line is read before the guest does, so that they work when the guest hangs.
    escape: Option<EscapeFilter>,
    /// Input that has left the line and waits for room in the receiver.
    pub(super) typeahead: VecDeque<u8>,
    /// The line's input has not ended.
    input_open: bool,
    /// The line may have input that is still to be read.
    unread: bool,
    /// The loop has been woken to read it.
    woken: bool,
    /// The port's place on its event loop, if the line needs one, and what is watched there.
    pub(super) on_loop: Option<LoopHandle>,
    watched: Pollables,
    /// Room in the line is waited for.
    stalled: bool,
    /// Handles that wait for room in the receiver.
    pub(super) waiting: usize,
    /// While the port is attached.
    pub(super) interrupt: Option<InterruptLine>,
    pub(super) events: EventSink,
    /// The condition of the line or interrupt has been reported.
    pub(super) reported: bool,
    /// Unless the port is resumed, it does not send the output that waits: nothing has run yet, or it is in a saved
    /// state and another port sends it.
    pub(super) withheld: bool,
    counters: SerialCounters,
}

impl<U: Uart> Transfer<U> {
    pub(super) fn new(uart: U, line: Box<dyn Line>, escape: bool) -> Self {
        let input_open = line.needs_loop();
        Self {
            activity: Activity::Detached,
            uart,
            line,
            escape: escape.then(EscapeFilter::new),
            typeahead: VecDeque::new(),
            input_open,
            unread: true,
            woken: false,
            on_loop: None,
            watched: Pollables::new(),
            stalled: false,
            waiting: 0,
            interrupt: None,
            events: EventSink::discard(),
            reported: false,
            withheld: false,
            counters: SerialCounters::default(),
        }
    }

    /// Returns to the state of a new port, except for the line and the counters.
    pub(super) fn release(&mut self) {
        self.uart.output_taken(self.uart.output_len());
        self.uart.reset();
        self.follow_level();
        self.typeahead.clear();
        self.watched.clear();
        (self.on_loop, self.interrupt, self.events) = (None, None, EventSink::discard());
        (self.unread, self.woken, self.stalled, self.reported, self.withheld) =
            (true, false, false, false, false);
    }

    pub(super) fn resume(&mut self) {
        (self.activity, self.withheld) = (Activity::Running, false);
        // A port without a loop has no turn in which to do this.
        self.send();
        self.feed();
        self.raise();
        if let Some(Err(e)) = self.interrupt.as_mut().map(InterruptLine::renew) {
            self.report("serial interrupt", &e);
        }
        self.wake();
    }

    fn report(&mut self, what: &str, error: &io::Error) {
        if !std::mem::replace(&mut self.reported, true) {
            self.events.report(DeviceEvent::HostError { reason: format!("{what}: {error}") });
        }
    }

    /// Tells the guest of what has changed. To be called after each step.
    fn raise(&mut self) {
        let edge = self.uart.take_edge();
        self.follow(edge);
    }

    /// Sets the level of a level-triggered line to what the registers say. An edge stays due.
    pub(super) fn follow_level(&mut self) {
        self.follow(false);
    }

    fn follow(&mut self, edge: bool) {
        let condition = || self.uart.interrupts();
        if let Some(Err(e)) = self.interrupt.as_mut().map(|line| line.follow(edge, condition)) {
            self.report("serial interrupt", &e);
        }
    }

    /// Sends what waits, as far as the line takes it now.
    pub(super) fn send(&mut self) {
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

    /// How much more input may wait. What the guest throws out of the receiver unread joins the typeahead, so both count.
    fn capacity_left(&self) -> usize {
        TYPEAHEAD_CAPACITY.saturating_sub(self.typeahead.len().saturating_add(self.uart.unread()))
    }

    /// How much input from the line there is room for: in the receiver, or before it where there are escape keys.
    fn input_room(&self) -> usize {
        match self.escape {
            _ if !self.input_open => 0,
            Some(_) => self.capacity_left(),
            None => self.direct_room(),
        }
    }

    /// How much input there is room for in the receiver, behind what waits for it.
    fn direct_room(&self) -> usize {
        if self.typeahead.is_empty() { self.uart.rx_room().min(self.capacity_left()) } else { 0 }
    }

    /// Takes input from the line, as much as there is room for, and returns the escape keys in it.
    fn take_input(&mut self) -> Vec<Escape> {
        let mut keys = Vec::new();
        let mut buf = [0; RX_CAPACITY];
        // A turn takes at most what the receiver holds: a fast source leaves the lock to the vCPUs.
        let room = self.input_room().min(RX_CAPACITY);
        let Some(space) = buf.get_mut(..room).filter(|space| !space.is_empty()) else { return keys };
        match self.line.read(space) {
            Ok(0) => self.input_open = false,
            Ok(n) => {
                for byte in space.iter().take(n) {
                    let (byte, key) = match &mut self.escape {
                        Some(filter) => filter.push(*byte),
                        None => (Some(*byte), None),
                    };
                    self.typeahead.extend(byte);
                    keys.extend(key);
                }
                self.feed();
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
        if !self.typeahead.is_empty() {
            let n = self.uart.receive(self.typeahead.make_contiguous());
            self.typeahead.drain(..n);
            self.counters.input += n as u64;
        }
    }

    /// Puts what the guest threw out of the receiver back before the rest of the input. A driver resets its FIFO when it
    /// opens the port, after it has said that it listens; for the guest it is a line that was a little slower.
    fn take_back(&mut self) {
        let thrown = self.uart.take_thrown();
        self.counters.input = self.counters.input.saturating_sub(thrown.len() as u64);
        thrown.iter().rev().for_each(|byte| self.typeahead.push_front(*byte));
    }

    /// Does what the guest's access allows to: sends, and wakes the loop for input. Returns true if handles wait for the
    /// room that there is in the receiver now.
    pub(super) fn after_guest(&mut self, written: Written) -> bool {
        if written == Written::Overflow {
            self.counters.output_lost += 1;
        }
        if written == Written::Thrown {
            self.take_back();
            // The guest sees the receiver empty. What it does next, or a turn, fills it again.
            self.wake();
        } else if self.uart.rx_is_empty() && !self.typeahead.is_empty() {
            self.feed();
        }
        self.raise();
        // A burst is sent with its last byte, or when the guest looks at the port again, as its interrupt makes it.
        // Behind output that waits for room, it is the loop's turn.
        let burst = written == Written::Sent && self.uart.in_burst();
        let running = self.activity == Activity::Running;
        if !self.stalled && !burst && running && self.uart.output_len() > 0 {
            self.send();
            self.raise();
            if self.uart.output_len() > 0 {
                self.counters.stalls += 1;
                self.rewatch();
            }
        }
        let drained = running && self.uart.rx_is_empty() && self.uart.rx_room() > 0;
        if drained && self.unread && !self.woken && self.input_room() > 0 {
            self.woken = true;
            self.wake();
        }
        drained && self.waiting > 0
    }

    /// Puts the first bytes of `input` into the receiver and returns how many it took.
    pub(super) fn receive(&mut self, input: &[u8]) -> usize {
        if self.activity != Activity::Running {
            return 0;
        }
        self.feed();
        let room = self.direct_room().min(input.len());
        let n = self.uart.receive(input.get(..room).unwrap_or_default());
        self.counters.input += n as u64;
        self.raise();
        n
    }

    /// One turn on the loop.
    pub(super) fn turn(&mut self) -> (Vec<Escape>, Turn) {
        if self.activity != Activity::Running {
            return (Vec::new(), Turn::Sleep);
        }
        self.counters.wakeups += 1;
        (self.unread, self.woken) = (true, false);
        self.feed();
        // Input first: it may show that who would take the output has gone.
        let keys = self.take_input();
        self.send();
        self.raise();
        self.rewatch();
        (keys, if self.unread && self.input_room() > 0 { Turn::Again } else { Turn::Sleep })
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

    pub(super) fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        let c = &self.counters;
        visitor.counter("output_bytes", "Bytes from the guest that the line took.", c.output);
        visitor.counter("output_lost_bytes", "Bytes from the guest that nobody took.", c.output_lost);
        visitor.counter("input_bytes", "Bytes that the guest was given.", c.input);
        visitor.counter("output_stalls", "Times that output began to wait for the line.", c.stalls);
        visitor.counter("wakeups", "The port's turns on its event loop.", c.wakeups);
        visitor.gauge(
            "output_waiting_bytes",
            "Bytes from the guest that wait for the line.",
            self.uart.output_len() as u64,
        );
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

#[cfg(test)]
mod tests;
