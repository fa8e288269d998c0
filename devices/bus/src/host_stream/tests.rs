use std::fs::File;
use std::io::{PipeReader, Read, Write};
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
    let ask = |file: OwnedFd| {
        let kind = kind(file.as_fd()).unwrap();
        HostStream::asked(Held::Own(file), kind).unwrap()
    };
    let output = ask(writer.into());
    let taken = fill(&output);
    assert_eq!(taken.len(), rustix::pipe::fcntl_getpipe_size(&reader).unwrap(), "full, a page at a time");
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
}

#[test]
fn devices_that_have_their_answer_at_once_are_never_waited_for() {
    for (device, reads) in [("/dev/null", 0), ("/dev/zero", 4)] {
        let file = File::options().read(true).write(true).open(device).unwrap();
        let (input, output) = (HostStream::input(&file).unwrap(), HostStream::output(&file).unwrap());
        for stream in [&input, &output] {
            assert!(!stream.is_watchable() && !stream.is_terminal() && stream.way == Way::Plain, "{device}");
        }
        assert_eq!(output.write(b"gone").unwrap(), 4, "{device}");
        assert_eq!(input.read(&mut [1; 4]).unwrap(), reads, "{device}");
    }
}

#[test]
fn the_standard_streams_are_the_process_s_and_stay_open() {
    for (stream, fd) in [(HostStream::stdin(), 0), (HostStream::stdout(), 1)] {
        let stream = stream.unwrap();
        // A pipe or a terminal is opened once more; whatever it is, the process keeps its own.
        let own = stream._given.as_ref().unwrap_or(&stream.file).as_fd().as_raw_fd();
        assert_eq!(own, fd);
        drop(stream);
        assert!(
            rustix::io::fcntl_getfd(io::stdin()).is_ok() && rustix::io::fcntl_getfd(io::stdout()).is_ok()
        );
    }
}

/// Both ends of a new pseudo-terminal, which is raw.
fn pty() -> (OwnedFd, OwnedFd) {
    let master =
        rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, rustix::pty::OpenptFlags::RDWR).unwrap();
    let mut termios = rustix::termios::tcgetattr(&slave).unwrap();
    termios.make_raw();
    rustix::termios::tcsetattr(&slave, rustix::termios::OptionalActions::Now, &termios).unwrap();
    (master, slave)
}

/// Waits until the stream can be read or written.
fn wait(stream: &HostStream, flags: PollFlags) {
    rustix::event::poll(&mut [PollFd::new(stream, flags)], None).unwrap();
}

/// Writes all of it.
fn send(stream: &HostStream, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        wait(stream, PollFlags::OUT);
        bytes = &bytes[stream.write(bytes).unwrap()..];
    }
}

/// Reads so many bytes.
fn receive(stream: &HostStream, len: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < len {
        wait(stream, PollFlags::IN);
        let mut buf = [0; 64];
        let n = stream.read(&mut buf).unwrap();
        assert_ne!(n, 0, "the end");
        got.extend(&buf[..n]);
    }
    got
}

#[test]
fn e2_the_main_end_of_a_pseudo_terminal_is_that_one_and_no_new_one() {
    let (master, slave) = pty();
    let (output, input) = (HostStream::output(&master).unwrap(), HostStream::input(&master).unwrap());
    assert!(is_blocking(&master));
    assert_eq!(input.read(&mut [0; 8]).unwrap_err().kind(), WOULD_BLOCK);
    let user = HostStream::input(&slave).unwrap();
    send(&output, b"to the user");
    assert_eq!(receive(&user, 11), b"to the user");
    send(&HostStream::output(&slave).unwrap(), b"to the guest");
    assert_eq!(receive(&input, 12), b"to the guest");
    // With a description of its own it takes more than a byte at a time.
    let owned = HostStream::owned(master).unwrap();
    assert_eq!(owned.write(b"all at once").unwrap(), 11);
    assert_eq!(receive(&user, 11), b"all at once");
}

#[test]
fn e2_a_fifo_that_is_open_for_both_directions_does_not_end_with_its_first_writer() {
    let path = std::env::temp_dir().join(format!("ossature-host-stream-fifo-{}", std::process::id()));
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, mode, 0).unwrap();
    let both = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let input = HostStream::input(&both).unwrap();
    drop(both);
    for text in [b"first", b"other"] {
        let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
        writer.write_all(text).unwrap();
        drop(writer);
        assert_eq!(receive(&input, 5), text);
        assert_eq!(input.read(&mut [0; 8]).unwrap_err().kind(), WOULD_BLOCK);
    }
    // Nor does its output fail for want of a reader.
    let both = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let output = HostStream::output(&both).unwrap();
    drop((both, input));
    std::fs::remove_file(&path).unwrap();
    assert_eq!(output.write(b"kept").unwrap(), 4);
}

#[test]
fn e2_a_pipe_without_a_description_of_its_own_takes_what_surely_fits() {
    // Pieces that share pages and pieces that do not: a write that did not fit would wait for ever.
    for piece in [1, 1000, 2049, 4095, 4096, 10_000] {
        let (mut reader, writer) = io::pipe().unwrap();
        let output = HostStream::asked(Held::Own(writer.into()), Kind::Fifo).unwrap();
        let bytes = vec![b'x'; piece];
        let mut taken = 0;
        for _ in 0..3 {
            let before = taken;
            while output.is_ready(Interest::Writable).unwrap() {
                let n = output.write(&bytes).unwrap();
                assert_eq!(n, piece.min(PIPE_BUF));
                taken += n;
            }
            assert_eq!(output.write(&bytes).unwrap_err().kind(), WOULD_BLOCK);
            assert!(taken > before);
            let mut read = vec![0; 5000.min(taken)];
            reader.read_exact(&mut read).unwrap();
        }
    }
}

#[test]
fn an_owned_socket_raises_no_signal() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let output = HostStream::owned(ours.into()).unwrap();
    assert_eq!(output.way, Way::Socket);
    drop(theirs);
    assert_eq!(output.write(b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn terminals_are_told_from_pipes() {
    let (_master, slave) = pty();
    let terminal = HostStream::input(&slave).unwrap();
    assert!(terminal.is_terminal() && terminal.is_watchable());
    assert!(is_blocking(&slave));
    assert_eq!(terminal.read(&mut [0; 8]).unwrap_err().kind(), WOULD_BLOCK);
    let (reader, _writer): (PipeReader, _) = io::pipe().unwrap();
    assert!(!HostStream::input(&reader).unwrap().is_terminal());
}
