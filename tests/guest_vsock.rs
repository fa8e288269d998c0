//! A socket device: streams and messages both ways between the guest and programs of the host.

mod support;

use std::fs;
use std::io::{BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Instant;

use ossature::vmm::program::raise_descriptor_limit;
use support::{Guest, LIMIT};
use tempfile::TempDir;
use xtask::process;

/// Connections at once, and the bytes of each.
const COUNT: u64 = 1000;
const LENGTH: usize = 6000;
const SOCAT: &str = "/usr/bin/socat";
const SIZE: usize = 4 << 20;

/// Where the sockets are.
struct Sockets(TempDir);

impl Sockets {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn args(&self) -> [String; 2] {
        ["--vsock".to_owned(), format!("cid=77,socket={}", self.path("vm").display())]
    }

    /// Connects to the guest's `port` as soon as the guest listens there.
    fn connect(&self, port: u32) -> UnixStream {
        let since = Instant::now();
        loop {
            assert!(since.elapsed() < LIMIT, "the guest does not listen at {port}");
            // The machine listens, whatever its guest does: there was a connection from it.
            let mut stream = UnixStream::connect(self.path("vm")).unwrap();
            if stream.write_all(format!("CONNECT {port}\n").as_bytes()).is_ok() {
                // Byte by byte: what follows belongs to the connection.
                let answer: Vec<u8> = BufReader::with_capacity(1, &mut stream)
                    .bytes()
                    .map_while(Result::ok)
                    .take_while(|byte| *byte != b'\n')
                    .collect();
                if answer.starts_with(b"OK ") {
                    return stream;
                }
            }
            thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

fn sum_of_file(path: &Path) -> String {
    support::hash_of(&format!("cat {}", process::quote_path(path)))
}

/// The same bytes as the guest's program makes.
fn data(number: u64) -> Vec<u8> {
    (0..LENGTH as u64).map(|at| (number.wrapping_mul(31).wrapping_add(at * at / 7)) as u8).collect()
}

fn sum(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn a_thousand_connections_each_way_with_a_sum_of_each() {
    // Here is the programs' end of each connection.
    raise_descriptor_limit().unwrap();
    let sockets = Sockets::new();
    let listener = UnixListener::bind(sockets.path("vm_1000")).unwrap();
    let guest = Guest::new()
        .args(sockets.args())
        .example("vsock")
        .run("call", &format!("/vsock call 1000 {COUNT} {LENGTH}"))
        .run("serve", &format!("/vsock serve 2000 {COUNT} 0"))
        .start();
    // The guest's program opens all of them before it sends anything.
    let mut streams: Vec<_> = (0..COUNT).map(|_| listener.accept().unwrap().0).collect();
    for stream in &mut streams {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), LENGTH);
        stream.write_all(&sum(&bytes).to_le_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    }
    drop(streams);
    let mut streams: Vec<_> = (0..COUNT).map(|_| sockets.connect(2000)).collect();
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.write_all(&data(number as u64)).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, sum(&data(number as u64)).to_le_bytes(), "connection {number}");
    }
    let ended = guest.wait();
    ended.expect(0);
    let answers = ended.answers();
    assert_eq!((&answers["call"], &answers["serve"]), ("done", "done"));
    assert_eq!(ended.err, "");
    let gone = UnixStream::connect(sockets.path("vm")).unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound, "the socket is removed in the end");
}

#[test]
fn socat_on_either_side() {
    let sockets = Sockets::new();
    let (from_guest, to_guest) = (sockets.path("from-guest"), sockets.path("to-guest"));
    let mut server = process::command(SOCAT)
        .arg("-u")
        .arg(format!("UNIX-LISTEN:{}", sockets.path("vm_1000").display()))
        .arg(format!("CREATE:{}", from_guest.display()))
        .spawn()
        .unwrap();
    let guest = Guest::new()
        .args(sockets.args())
        .host_program(SOCAT)
        .run("made", &format!("head -c {SIZE} /dev/urandom >/dev/shm/data; sha256sum </dev/shm/data"))
        .run("call", &format!("{SOCAT} -u OPEN:/dev/shm/data VSOCK-CONNECT:2:1000"))
        .run("refused", &format!("! {SOCAT} -u OPEN:/dev/null VSOCK-CONNECT:2:1001"))
        .run("serve", &format!("{SOCAT} -u VSOCK-LISTEN:2000 CREATE:/dev/shm/got; sha256sum </dev/shm/got"))
        .start();
    assert!(server.wait().unwrap().success());
    let mut data = vec![0; SIZE];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut data).unwrap();
    fs::write(&to_guest, [b"CONNECT 2000\n", &data[..]].concat()).unwrap();
    fs::write(sockets.path("data"), &data).unwrap();
    let since = Instant::now();
    loop {
        assert!(since.elapsed() < LIMIT, "the guest does not listen");
        let mut client = process::command(SOCAT);
        client.args(["-t", "100", "-", &format!("UNIX-CONNECT:{}", sockets.path("vm").display())]);
        client.stdin(fs::File::open(&to_guest).unwrap()).stderr(Stdio::null());
        let output = client.output().unwrap();
        if output.stdout.starts_with(b"OK ") {
            assert!(output.status.success());
            break;
        }
    }
    let ended = guest.wait();
    ended.expect(0);
    let answers = ended.answers();
    assert_eq!(&answers["made"], sum_of_file(&from_guest));
    assert_eq!(&answers["serve"], sum_of_file(&sockets.path("data")));
    assert!(
        answers["refused"].contains("refused") || answers["refused"].contains("reset"),
        "{}",
        &answers["refused"]
    );
}
