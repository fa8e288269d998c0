//! Finds the descriptor on which an event manager waits.
//!
//! event-manager 0.4 keeps it to itself, and nobody can wait for a manager together with anything else without it. The
//! kernel tells: /proc/self/fdinfo lists what each epoll(7) instance watches, with the data that were given for it. A
//! descriptor that the manager is made to watch, with data that nobody else has, thus leads to the manager's own one.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::os::fd::{AsRawFd, RawFd};

use ossature_bus::Event;

use super::{EventManager, EventSet, Events, HandlerError, MutEventSubscriber, SubscriberId, SubscriberOps};

/// Where the kernel describes this process's descriptors, one file for each.
const DESCRIPTORS: &str = "/proc/self/fdinfo";

/// The descriptor of `manager`, which has a subscriber with this id.
pub(super) fn find<S: MutEventSubscriber>(
    manager: &mut EventManager<S>,
    id: SubscriberId,
) -> Result<RawFd, HandlerError> {
    let mark = Event::new().map_err(HandlerError::Mark)?;
    // Seeded by the system: nobody else's data are the same.
    let data = RandomState::new().build_hasher().finish() as u32;
    let watched = Events::with_data(&mark, data, EventSet::IN);
    let mut ops = manager.event_ops(id)?;
    ops.add(watched)?;
    let found = search(mark.as_raw_fd(), watched.epoll_event().data());
    ops.remove(watched)?;
    found
}

/// The epoll instance that watches `target` with `data`.
fn search(target: RawFd, data: u64) -> Result<RawFd, HandlerError> {
    for entry in fs::read_dir(DESCRIPTORS).map_err(HandlerError::Proc)? {
        let path = entry.map_err(HandlerError::Proc)?.path();
        let fd = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        // Descriptors of other threads come and go.
        let (Some(fd), Ok(info)) = (fd, fs::read_to_string(&path)) else { continue };
        if info.lines().any(|line| is_watch(line, target, data)) {
            return Ok(fd);
        }
    }
    Err(HandlerError::Descriptor)
}

/// Returns true for a line such as `tfd:       10 events:       19 data: 500000000a  pos:0 ino:e sdev:e`.
fn is_watch(line: &str, target: RawFd, data: u64) -> bool {
    let mut words = line.split_whitespace();
    let mut follows = |name: &str| words.by_ref().find(|word| *word == name).and_then(|_| words.next());
    let is_target = follows("tfd:").and_then(|fd| fd.parse().ok()) == Some(target);
    is_target && follows("data:").and_then(|data| u64::from_str_radix(data, 16).ok()) == Some(data)
}
