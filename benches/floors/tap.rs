//! Floor: the least that moves packets between a tap and memory, one with each call, and 32 with each call by io_uring. Needs
//! root; makes its tap in a network namespace of its own. Prints calls for each packet, and the median of the ratios of
//! times taken in turns.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};

/// A virtio-net header and a whole frame.
const HEADER: usize = 12;
const PACKET: usize = HEADER + 1514;
const BATCH: usize = 32;
/// Packets in a turn; the tap's queue has room for them.
const TURN: usize = 8 * BATCH;

fn check(result: libc::c_int) -> libc::c_int {
    assert!(result >= 0, "{}", io::Error::last_os_error());
    result
}

/// A tap that is up, and a socket that puts frames into its queue.
fn tap() -> (File, OwnedFd) {
    // SAFETY: calls with values, or with structures that outlive them and are all that their numbers say.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNET));
        let tun =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
        let tun = tun.unwrap();
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        check(libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request));
        let header = HEADER as libc::c_int;
        check(libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const header));

        let socket = OwnedFd::from_raw_fd(check(libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0)));
        request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request));
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = check(libc::if_nametoindex(request.ifr_name.as_ptr()) as libc::c_int);
        let len = size_of_val(&address) as libc::socklen_t;
        check(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len));
        (tun, socket)
    }
}

/// Calls and time of one turn.
type Turn = (usize, Duration);

/// A packet with each call; reads until there is none.
fn single(tap: RawFd, buffers: &mut [[u8; PACKET]], send: bool) -> Turn {
    let (start, mut calls) = (Instant::now(), 0);
    loop {
        let buffer = buffers[calls % BATCH].as_mut_ptr().cast();
        // SAFETY: the buffer has as many bytes.
        let moved =
            unsafe { if send { libc::write(tap, buffer, PACKET) } else { libc::read(tap, buffer, PACKET) } };
        calls += 1;
        if moved < 0 || (send && calls == TURN) {
            return (calls, start.elapsed());
        }
        // The host adds a few packets of its own.
        assert!(!send || moved as usize == PACKET);
    }
}

/// A batch with each call; reads until there are fewer.
fn batched(ring: &mut IoUring, tap: RawFd, buffers: &mut [[u8; PACKET]], send: bool) -> Turn {
    let (start, mut calls) = (Instant::now(), 0);
    loop {
        for buffer in &mut *buffers {
            let (fd, at, len) = (types::Fd(tap), buffer.as_mut_ptr(), PACKET as u32);
            let entry = if send {
                opcode::Write::new(fd, at, len).offset(u64::MAX).rw_flags(libc::RWF_NOWAIT).build()
            } else {
                opcode::Read::new(fd, at, len).offset(u64::MAX).rw_flags(libc::RWF_NOWAIT).build()
            };
            // SAFETY: the buffer lives until the call below has seen all entries complete.
            unsafe { ring.submission().push(&entry).unwrap() };
        }
        ring.submit_and_wait(BATCH).unwrap();
        calls += 1;
        let moved = ring.completion().filter(|entry| entry.result() > 0).count();
        if moved < BATCH || (send && calls == TURN / BATCH) {
            return (calls, start.elapsed());
        }
    }
}

fn main() {
    let (tap, socket) = tap();
    let fd = tap.as_raw_fd();
    let mut ring = IoUring::new(BATCH as u32).unwrap();
    // To everybody, of a type for experiments: the host's stack drops it.
    let mut packet = [0; PACKET];
    packet[HEADER..HEADER + 6].fill(0xff);
    packet[HEADER + 12..HEADER + 14].copy_from_slice(&[0x88, 0xb5]);
    let mut buffers = vec![packet; BATCH];
    let fill = || {
        for _ in 0..TURN {
            let frame = &packet[HEADER..];
            // SAFETY: the frame has as many bytes.
            let sent = unsafe { libc::send(socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
            assert_eq!(sent as usize, frame.len());
        }
    };
    for (name, send) in [("sent", true), ("received", false)] {
        let (mut ratios, mut calls) = (Vec::new(), [0, 0]);
        for _ in 0..41 {
            if !send {
                fill();
            }
            let (one, time) = single(fd, &mut buffers, send);
            if !send {
                fill();
            }
            let (many, less) = batched(&mut ring, fd, &mut buffers, send);
            calls = [one, many];
            ratios.push(less.as_secs_f64() / time.as_secs_f64());
        }
        ratios.sort_by(f64::total_cmp);
        let [one, many] = calls.map(|calls| calls as f64 / TURN as f64);
        println!(
            "packets {name}: {one:.3} calls each, by io_uring {many:.3}; that takes {:.2} of the time (quartiles {:.2}, {:.2})",
            ratios[20], ratios[10], ratios[30]
        );
    }
}
