//! `depth DISK DEPTH ROUNDS`: reads 4 KiB from each of DEPTH places of a disk at once, past the page cache, and again when
//! all have arrived (io_submit(2), io_getevents(2)). The load of `tests/guest_depth.rs`, inside of its guest.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::ptr;

const LEN: usize = 4096;
/// `IOCB_CMD_PREAD`
const PREAD: u16 = 0;

#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Buffer([u8; LEN]);

/// `struct io_event`
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Event {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

fn check(result: libc::c_long) -> libc::c_long {
    assert!(result >= 0, "{}", io::Error::last_os_error());
    result
}

fn main() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [disk, depth, rounds] = &args[..] else { panic!("depth DISK DEPTH ROUNDS") };
    let (depth, rounds): (usize, u32) = (depth.parse().unwrap(), rounds.parse().unwrap());
    let disk = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(disk).unwrap();

    let mut context: libc::c_ulong = 0;
    // SAFETY: the kernel writes the context.
    check(unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut context) });
    let mut buffers = vec![Buffer([0; LEN]); depth];
    let mut events = vec![Event::default(); depth];
    let request = |(at, buffer): (usize, &mut Buffer)| {
        // SAFETY: a request whose fields are all 0 is one.
        let mut request: libc::iocb = unsafe { std::mem::zeroed() };
        request.aio_lio_opcode = PREAD;
        request.aio_fildes = disk.as_raw_fd() as u32;
        request.aio_buf = ptr::from_mut(buffer) as u64;
        request.aio_nbytes = LEN as u64;
        // Not in a row: neighbours would become one request.
        request.aio_offset = (at * 16 * LEN) as i64;
        request
    };
    let mut requests: Vec<_> = buffers.iter_mut().enumerate().map(request).collect();
    let mut list: Vec<*mut libc::iocb> = requests.iter_mut().map(ptr::from_mut).collect();
    for _ in 0..rounds {
        // SAFETY: the requests, and the buffers that they name, live until all have arrived, which is waited for.
        let submitted =
            check(unsafe { libc::syscall(libc::SYS_io_submit, context, depth, list.as_mut_ptr()) });
        assert_eq!(submitted as usize, depth);
        let none = ptr::null_mut::<libc::timespec>();
        // SAFETY: the kernel writes at most as many events as there is room for.
        let arrived = check(unsafe {
            libc::syscall(libc::SYS_io_getevents, context, depth, depth, events.as_mut_ptr(), none)
        });
        assert_eq!(arrived as usize, depth);
        assert!(events.iter().all(|event| event.result == LEN as i64), "a read failed");
    }
}
