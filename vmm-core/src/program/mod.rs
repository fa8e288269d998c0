//! For a VMM that is a process of its own: what a command line VMM needs around its machine. A VMM that is part of a
//! larger program, which has its own ways, uses none of it.
//!
//! - [`Signals`] heeds the signals to the process: power button, stop, terminal and job control.
//!   [`block_io_signals`] makes errors of the signals that the kernel sends for I/O.
//! - [`Messages`] tells the user things on standard error; printing neither fails nor waits for a reader.
//! - [`KeyValues`] takes arguments apart that describe a device, `path=disk.img,readonly`; [`parse_size`] knows `512M`,
//!   [`parse_rate`] `100M/s+1G`.
//! - [`inherited_descriptor`] takes a descriptor that was open when the program began.
//! - [`share_one_heap`] spares the heaps of threads that allocate next to nothing; [`raise_descriptor_limit`] makes room for
//!   thousands of connections.
//!
//! Beside them: [`Failure`](crate::Failure) for errors that `main` returns, and
//! [`EventReporter`](crate::machine::EventReporter) for lines about what happens to a machine.

#[allow(unsafe_code)] // takes a number for a descriptor
mod descriptor;
#[allow(unsafe_code)] // one call of the C library
mod heap;
mod key_values;
#[allow(unsafe_code)] // two calls of the C library
mod limits;
mod messages;
mod rate;
mod signals;
mod size;

pub use descriptor::inherited_descriptor;
pub use heap::share_one_heap;
pub use key_values::{KeyValueError, KeyValues};
pub use limits::raise_descriptor_limit;
pub use messages::Messages;
pub use rate::{RateError, parse_rate};
pub use signals::{HeededSignals, Signals, block_io_signals};
pub use size::{SizeError, parse_size};
