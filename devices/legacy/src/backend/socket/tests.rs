use super::*;

#[test]
fn a_line_whose_only_client_has_gone_is_at_its_end_and_has_not_failed() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut line = SocketLine::connected(theirs).unwrap();
    drop(ours);
    // What is written finds out first.
    assert_eq!(line.write(b"out").unwrap_err().kind(), io::ErrorKind::NotConnected);
    assert_eq!(line.read(&mut [0; 8]).unwrap(), 0);
}
