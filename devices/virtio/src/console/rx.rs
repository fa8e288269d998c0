//! Input to the guest.

use ossature_bus::EventSink;

use super::counters::Counters;
use super::end::End;
use crate::{QueueBroken, Turn, VirtQueue};

/// Buffers that a turn fills at most.
const TURN_BUFFERS: u32 = 32;

/// Fills buffers until no input waits, no buffer is left, or the budget is used up.
pub(super) fn run(
    queue: &mut VirtQueue,
    input: Option<&mut End>,
    counters: &Counters,
    events: &EventSink,
) -> Result<Turn, QueueBroken> {
    // Without input that waits we need no buffers, and no kick that tells of some.
    queue.disable_kicks()?;
    let Some(input) = input else { return Ok(Turn::Sleep) };
    for _ in 0..TURN_BUFFERS {
        if !input.ready() {
            queue.flush()?;
            return Ok(Turn::Sleep);
        }
        let Some(chain) = queue.pop()? else {
            queue.flush()?;
            if queue.enable_kicks()? {
                continue;
            }
            return Ok(Turn::Sleep);
        };
        if chain.writable_len() == 0 {
            queue.complete(chain, 0)?;
            continue;
        }
        match input.read(queue.dma(), chain.writable().into()) {
            Ok(n) if n > 0 => {
                counters.rx_bytes.add(n as u64);
                queue.complete(chain, u32::try_from(n).unwrap_or(u32::MAX))?;
            }
            nothing => {
                queue.unpop(chain);
                if let Err(error) = nothing {
                    counters.host_errors.note(events, "read the input", &error);
                }
            }
        }
    }
    queue.flush()?;
    Ok(Turn::Again)
}
