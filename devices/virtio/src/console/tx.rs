//! Output of the guest.

use std::io::{self, Write};

use ossature_bus::EventSink;
use ossature_memory::{Dma, Segments};

use super::counters::Counters;
use crate::{QueueBroken, Turn, VirtQueue};

/// Buffers that a turn writes out at most.
const TURN_BUFFERS: u32 = 32;
/// Bytes after which a turn takes no further buffer, and after which a single buffer is cut.
const TURN_BYTES: u64 = 64 << 10;

/// Writes buffers out until none is left or the budget is used up.
pub(super) fn run(
    queue: &mut VirtQueue,
    output: &mut dyn Write,
    counters: &Counters,
    events: &EventSink,
) -> Result<Turn, QueueBroken> {
    let mut buffers = 0;
    let mut bytes = 0;
    queue.disable_kicks()?;
    let turn = loop {
        if let Some(chain) = queue.pop()? {
            bytes += write_out(queue.dma(), chain.readable().into(), output, counters, events);
            queue.complete(chain, 0)?;
            buffers += 1;
            if buffers >= TURN_BUFFERS || bytes >= TURN_BYTES {
                queue.flush()?;
                break Turn::Again;
            }
        } else {
            queue.flush()?;
            if !queue.enable_kicks()? {
                break Turn::Sleep;
            }
        }
    };
    if let Some(error) = (bytes > 0).then(|| output.flush().err()).flatten() {
        failed(&error, counters, events);
    }
    Ok(turn)
}

/// Writes one buffer out; returns the bytes that were tried.
fn write_out(
    mem: &Dma,
    buffer: Segments<'_>,
    output: &mut dyn Write,
    counters: &Counters,
    events: &EventSink,
) -> u64 {
    let mut piece = [0; 4096];
    let mut rest = buffer.take(TURN_BYTES);
    let mut taken = 0;
    while let Some(piece) = mem.gather(rest, &mut piece).ok().and_then(|n| piece.get(..n)) {
        let written = write_piece(piece, output, counters, events);
        taken += written as u64;
        rest = rest.skip(piece.len() as u64);
        if piece.is_empty() || written < piece.len() {
            break;
        }
    }
    counters.tx_bytes.add(taken);
    counters.tx_dropped_bytes.add(buffer.len() - taken);
    buffer.take(TURN_BYTES).len() - rest.len()
}

/// Writes as much of `piece` as the output takes now.
fn write_piece(piece: &[u8], output: &mut dyn Write, counters: &Counters, events: &EventSink) -> usize {
    let mut done = 0;
    while let Some(rest) = piece.get(done..).filter(|rest| !rest.is_empty()) {
        match output.write(rest) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => {
                failed(&e, counters, events);
                break;
            }
        }
    }
    done.min(piece.len())
}

/// An output that takes nothing just now has not failed.
fn failed(error: &io::Error, counters: &Counters, events: &EventSink) {
    if error.kind() != io::ErrorKind::WouldBlock {
        counters.host_errors.note(events, "write the output", error);
    }
}
