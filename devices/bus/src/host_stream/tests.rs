use std::io::PipeReader;
use std::os::unix::net::UnixStream;

use super::*;

const WOULD_BLOCK: io::ErrorKind = io::ErrorKind::WouldBlock;

fn is_blocking(fd: impl AsFd) -> bool {
    !rustix::fs::fcntl_getfl(fd).unwrap().contains(OFlags::NONBLOCK)
}

/// Writes until the stream takes nothing more; returns what it took.
fn fill(stream: &HostStream) -> Vec<u8> {
    // A page at a time, so that no room is left for less.
    let bytes: Vec<u8> = (0..4096).map(|n| (n % 251) as u8).collect();
    let mut taken = Vec::new();
    loop {
        match stream.write(&bytes) {
            Ok(n) => taken.extend(&bytes[..n]),
            Err(e) => break assert_eq!(e.kind(), WOULD_BLOCK),
        }
    }
    assert!(!taken.is_empty());
    taken
}

#[test]
fn e2_a_full_stream_takes_nothing_and_its_descriptor_stays_blocking_for_others() {
    let (mut reader, writer) = io::pipe().unwrap();
    let output = HostStream::output(&writer).unwrap();
    let mut taken = fill(&output);
    assert!(is_blocking(&writer) && is_blocking(&reader));
    assert!(!output.is_ready(Interest::Writable).unwrap());
    // It goes on where it was as soon as there is room.
    let mut read = vec![0; 8192];
    let n = reader.read(&mut read).unwrap();
    read.truncate(n);
    assert!(output.is_ready(Interest::Writable).unwrap());
    taken.extend(fill(&output));
    drop((output, writer));
    reader.read_to_end(&mut read).unwrap();
    assert!(read == taken, "{} of {} bytes", read.len(), taken.len());
}

#[test]
fn e2_a_pipe_that_others_made_non_blocking_and_fill_loses_nothing_of_ours() {
    let (mut reader, writer) = io::pipe().unwrap();
    let other = HostStream::owned(writer.try_clone().unwrap().into()).unwrap();
    let output = HostStream::output(&writer).unwrap();
    let others = fill(&other).len();
    assert_eq!(output.write(b"ours").unwrap_err().kind(), WOULD_BLOCK);
    let mut read = vec![0; others];
    reader.read_exact(&mut read).unwrap();
    assert_eq!(output.write(b"ours").unwrap(), 4);
    drop((output, other, writer));
    read.clear();
    reader.read_to_end(&mut read).unwrap();
    assert_eq!(read, b"ours");
}

#[test]
fn e2_a_socket_is_left_blocking_and_does_not_make_anyone_wait() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let output = HostStream::output(&ours).unwrap();
    fill(&output);
    assert!(is_blocking(&ours));
    let input = HostStream::input(&ours).unwrap();
    assert_eq!(input.read(&mut [0; 8]).unwrap_err().kind(), WOULD_BLOCK);
    drop(theirs);
    // No signal either.
    assert_eq!(output.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn e2_what_cannot_be_opened_again_is_asked_first() {
    let (mut reader, writer) = io::pipe().unwrap();
    let ask = |file: OwnedFd| HostStream::of(file.into(), Way::Ask).unwrap();
    let output = ask(writer.into());
    let taken = fill(&output);
    let mut read = vec![0; taken.len()];
    reader.read_exact(&mut read).unwrap();
    assert!(read == taken);
    let input = ask(reader.into());
    assert_eq!(input.read(&mut read).unwrap_err().kind(), WOULD_BLOCK);
    output.write(b"x").unwrap();
    assert_eq!(input.read(&mut read).unwrap(), 1);
    drop(output);
    assert_eq!(input.read(&mut read).unwrap(), 0);
}

#[test]
fn files_are_never_waited_for_and_keep_the_position_that_they_share() {
    let path = std::env::temp_dir().join(format!("ossature-host-stream-{}", std::process::id()));
    let mut file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.write_all(b"shell ").unwrap();
    let output = HostStream::output(&file).unwrap();
    assert!(!output.is_watchable() && !output.is_terminal());
    assert_eq!(output.write(b"guest ").unwrap(), 6);
    file.write_all(b"shell").unwrap();
    assert_eq!(std::os::unix::fs::FileExt::read_at(&file, &mut [0; 32], 0).unwrap(), 17);
    let null = HostStream::output(File::options().write(true).open("/dev/null").unwrap()).unwrap();
    assert!(!null.is_watchable());
    assert_eq!(null.write(b"gone").unwrap(), 4);
}

#[test]
fn terminals_are_told_from_pipes() {
    let master =
        rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, rustix::pty::OpenptFlags::RDWR).unwrap();
    let terminal = HostStream::input(&slave).unwrap();
    assert!(terminal.is_terminal() && terminal.is_watchable());
    assert!(is_blocking(&slave));
    assert_eq!(terminal.read(&mut [0; 8]).unwrap_err().kind(), WOULD_BLOCK);
    let (reader, _writer): (PipeReader, _) = io::pipe().unwrap();
    assert!(!HostStream::input(&reader).unwrap().is_terminal());
}
