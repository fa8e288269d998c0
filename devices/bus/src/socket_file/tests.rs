use std::os::unix::net::UnixStream;

use tempfile::TempDir;

use super::*;

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("serial");
    (folder, path)
}

fn refusal(path: &Path) -> String {
    let error = SocketFile::bind(path).expect_err("the path is taken");
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    error.to_string()
}

#[test]
fn t8_what_a_killed_process_has_left_is_replaced() {
    let (_folder, path) = folder();
    // The listener is gone, and its file is not.
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let line = SocketFile::bind(&path).unwrap();
    UnixStream::connect(&path).unwrap();
    drop(line);
    assert!(!path.exists());
}

#[test]
fn t8_a_socket_that_somebody_listens_on_stays_and_is_named() {
    let (_folder, path) = folder();
    let other = UnixListener::bind(&path).unwrap();
    assert_eq!(refusal(&path), "another process listens on this socket");
    // Nor does anybody wait for one that has no time.
    let mut waiting = Vec::new();
    loop {
        let client = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )
        .unwrap();
        match rustix::net::connect(&client, &SocketAddrUnix::new(&path).unwrap()) {
            Ok(()) => waiting.push(client),
            Err(e) => break assert_eq!(e, Errno::AGAIN),
        }
    }
    assert_eq!(refusal(&path), "another process listens on this socket");
    drop(other);
    SocketFile::bind(&path).unwrap();
}

#[test]
fn t8_a_file_that_is_no_socket_is_left_alone() {
    let (_folder, path) = folder();
    fs::write(&path, "mine").unwrap();
    assert_eq!(refusal(&path), "there is a file of this name, and it is not a socket");
    assert_eq!(fs::read(&path).unwrap(), b"mine");
}

#[test]
fn t8_two_that_replace_at_once_do_not_take_each_other_for_a_leftover() {
    let (folder, path) = folder();
    drop(UnixListener::bind(&path).unwrap());
    let other = File::open(folder.path()).unwrap();
    rustix::fs::flock(&other, FlockOperation::LockExclusive).unwrap();
    assert_eq!(refusal(&path), "another process is making a socket there");
    // Not even where there is nothing yet: the other one may be between bind and listen.
    let new = path.with_extension("new");
    assert_eq!(refusal(&new), "another process is making a socket there");
    assert!(!new.exists());
    // It is waited for.
    let path_too = path.clone();
    let waiting = thread::spawn(move || SocketFile::bind_within(&path_too, Duration::from_secs(60)).unwrap());
    drop(other);
    let _bound = waiting.join().unwrap();
    UnixStream::connect(&path).unwrap();
}

#[test]
fn t8_of_many_that_want_one_path_one_gets_it_and_keeps_it() {
    for _ in 0..20 {
        let (_folder, path) = folder();
        drop(UnixListener::bind(&path).unwrap());
        let bind = || SocketFile::bind_within(&path, Duration::from_secs(60));
        let bound: Vec<_> = thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(bind)).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert_eq!(bound.iter().filter(|bound| bound.is_ok()).count(), 1);
        UnixStream::connect(&path).unwrap();
    }
}

#[test]
fn t8_a_folder_that_is_not_there_is_the_error_of_the_socket() {
    let (_folder, path) = folder();
    let error = SocketFile::bind(path.join("serial")).expect_err("there is no such folder");
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn t8_the_end_of_one_does_not_remove_the_socket_of_another() {
    let (_folder, path) = folder();
    let line = SocketFile::bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let other = SocketFile::bind(&path).unwrap();
    drop(line);
    UnixStream::connect(&path).unwrap();
    drop(other);
    assert!(!path.exists());
}
