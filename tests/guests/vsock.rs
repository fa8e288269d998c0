//! `vsock call|serve PORT COUNT LENGTH`: as many connections at once with programs of the host, each with data of its own.
//! What `tests/guest_vsock.rs` runs inside of its guest.
//!
//! Whoever connects sends bytes and ends its direction; the other side answers with their sum and ends its own.

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// The host, and any address of ours.
const HOST: u32 = 2;
const ANY: u32 = u32::MAX;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, port, count, length] = &arguments[..] else {
        return Err("give what, port, count, length".into());
    };
    let (port, count, length) = (port.parse()?, count.parse()?, length.parse()?);
    more_descriptors()?;
    match &**what {
        "call" => call(port, count, length)?,
        "serve" => serve(port, count)?,
        _ => return Err("give call or serve".into()),
    }
    println!("done");
    Ok(())
}

/// The bytes of the connection with this number.
fn data(number: u64, length: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// FNV-1a.
fn sum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn call(port: u32, count: u64, length: usize) -> Result<()> {
    let streams: io::Result<Vec<_>> = (0..count).map(|_| connect(port)).collect();
    let mut streams = streams?;
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&data(number as u64, length))?;
        stream.shutdown(Shutdown::Write)?;
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        if answer != sum(&data(number as u64, length)).to_le_bytes() {
            return Err(format!("connection {number}: the sum is {answer:x?}").into());
        }
    }
    Ok(())
}

fn serve(port: u32, count: u64) -> Result<()> {
    let socket = socket()?;
    let address = address(ANY, port);
    // SAFETY: the address outlives the calls.
    unsafe {
        check(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as _))?;
        check(libc::listen(socket.as_raw_fd(), count as _))?;
    }
    for _ in 0..count {
        // SAFETY: no address is asked for; the descriptor is ours.
        let mut stream = unsafe {
            let fd = check(libc::accept(socket.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut()))?;
            TcpStream::from(OwnedFd::from_raw_fd(fd))
        };
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes)?;
        stream.write_all(&sum(&bytes).to_le_bytes())?;
        stream.shutdown(Shutdown::Write)?;
    }
    Ok(())
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn socket() -> io::Result<OwnedFd> {
    // SAFETY: the descriptor is ours.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0))?)) }
}

fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
    // SAFETY: zeros are an address.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    (address.svm_family, address.svm_cid, address.svm_port) = (libc::AF_VSOCK as _, cid, port);
    address
}

/// A stream: the standard library's type for TCP does with any stream socket what is asked of it here.
fn connect(port: u32) -> io::Result<TcpStream> {
    let (socket, address) = (socket()?, address(HOST, port));
    // SAFETY: the address outlives the call.
    check(unsafe {
        libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as _)
    })?;
    Ok(socket.into())
}

fn more_descriptors() -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: 4096, rlim_max: 4096 };
    // SAFETY: the limit outlives the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }).map(drop)
}
