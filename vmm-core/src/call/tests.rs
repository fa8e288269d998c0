use std::cell::Cell;

use super::*;

#[test]
fn d7_interrupted_ioctls_are_done_again() {
    let calls = Cell::new(0);
    let result = retry(|| {
        calls.set(calls.get() + 1);
        if calls.get() < 4 { Err(errno::Error::new(libc::EINTR)) } else { Ok(7) }
    });
    assert_eq!((result, calls.get()), (Ok(7), 4));
    assert_eq!(retry(|| Err::<(), _>(errno::Error::new(libc::ENOMEM))), Err(errno::Error::new(libc::ENOMEM)));
}
