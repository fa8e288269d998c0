//! The processor's performance monitors count, if there are any and perf_event_open(2) lets us.

use perf_event::Builder;
use perf_event::events::Hardware;

/// Does what is counted, and returns the number of instructions as a column.
pub fn around(counted: impl FnOnce()) -> String {
    let Ok(mut counter) = Builder::new(Hardware::INSTRUCTIONS).build() else {
        counted();
        return String::new();
    };
    counter.enable().unwrap();
    counted();
    counter.disable().unwrap();
    format!("\t{}", counter.read().unwrap())
}
