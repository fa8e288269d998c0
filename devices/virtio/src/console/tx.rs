//! Output of the guest.

use std::io;

use ossature_bus::EventSink;
use ossature_memory::{Dma, Segments};

use super::counters::Counters;
use super::end::End;
use super::port::Port;
use crate::{QueueBroken, Turn, VirtQueue};

/// Buffers that a turn writes out at most.
const TURN_BUFFERS: u32 = 32;
/// Bytes after which a turn goes no further.
const TURN_BYTES: u64 = 64 << 10;

/// Writes buffers out until none is left, the output has no room, or the budget is used up. Returns true beside the turn
/// unless none is left. A buffer of which some is not yet written stays with the driver. Where nobody takes output, it is
/// dropped, or stays.
pub(super) fn run(
    queue: &mut VirtQueue,
    port: &mut Port,
    counters: &Counters,
    events: &EventSink,
) -> Result<(Turn, bool), QueueBroken> {
    let (mut buffers, mut bytes) = (0, 0);
    queue.disable_kicks()?;
    let (turn, unfinished) = loop {
        if buffers >= TURN_BUFFERS || bytes >= TURN_BYTES {
            break (Turn::Again, true);
        }
        let taken = port.end.takes_output() && !port.cut;
        if !taken && !port.cut && port.hold {
            // Who comes wakes the worker.
            break (Turn::Sleep, true);
        }
        let Some(chain) = queue.pop()? else {
            queue.flush()?;
            if queue.enable_kicks()? {
                continue;
            }
            break (Turn::Sleep, false);
        };
        let buffer = Segments::from(chain.readable());
        let rest = buffer.skip(port.state.written);
        if !taken {
            counters.tx_dropped_bytes.add(rest.len());
            (port.state.written, port.cut) = (0, false);
            queue.complete(chain, 0)?;
            buffers += 1;
            continue;
        }
        let (written, result) = write_out(queue.dma(), rest.take(TURN_BYTES - bytes), &mut port.end);
        counters.tx_bytes.add(written);
        bytes += written;
        let stalled = match result {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => true,
            Err(e) if e.kind() == io::ErrorKind::NotConnected && !port.end.takes_output() => {
                // It has gone in the middle of a buffer, or before it. Another one may be there.
                port.state.written += written;
                port.cut = port.state.written > 0;
                queue.unpop(chain);
                break (Turn::Again, true);
            }
            Err(error) => {
                counters.host_errors.note(events, "write the output", &error);
                counters.tx_dropped_bytes.add(rest.len() - written);
                port.state.written = 0;
                queue.complete(chain, 0)?;
                buffers += 1;
                continue;
            }
            Ok(()) => false,
        };
        if written == rest.len() {
            port.state.written = 0;
            queue.complete(chain, 0)?;
            buffers += 1;
        } else {
            port.state.written += written;
            queue.unpop(chain);
        }
        if stalled {
            counters.tx_stalls.add(1);
            // What cannot be watched is asked again.
            break (if port.end.is_watched() { Turn::Sleep } else { Turn::Again }, true);
        }
    };
    queue.flush()?;
    if let Some(error) = (bytes > 0).then(|| port.end.flush().err()).flatten() {
        counters.host_errors.note(events, "write the output", &error);
    }
    Ok((turn, unfinished))
}

/// Writes guest memory out; returns how much of it, and why it was not all.
fn write_out(mem: &Dma, bytes: Segments<'_>, output: &mut End) -> (u64, io::Result<()>) {
    let mut piece = [0; 4096];
    let mut rest = bytes;
    let mut result = Ok(());
    while !rest.is_empty() && result.is_ok() {
        let gathered = mem.gather(rest, &mut piece).map_err(io::Error::other);
        result = gathered.and_then(|len| match output.write(piece.get(..len).unwrap_or_default()) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                rest = rest.skip(n as u64);
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(e) => Err(e),
        });
    }
    (bytes.len() - rest.len(), result)
}
