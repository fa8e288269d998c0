//! `clone PORT`: tells the host which guest this is, whenever it has become another one. What the guests of
//! `examples/fork.rs` run: it takes over host name, MAC and CID that a clone is given, as a cloud image's agent would.

use std::error::Error;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{io, thread};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The host.
const HOST: u32 = 2;
const NAME: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/org.ossature/hostname/raw";
const CARD: &str = "/sys/class/net/eth0";
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_net";
const PARENT: &str = "guest-00000";
const DISK: &str = "/dev/vda";
/// How long the kernel may take for what it has been told to do.
const LIMIT: Duration = Duration::from_secs(240);
const FREQUENTLY: Duration = Duration::from_millis(50);

fn main() -> Result<()> {
    let port = std::env::args().nth(1).ok_or("give a port")?.parse()?;
    let calls = listen(port)?;
    thread::spawn(move || answer(&calls).unwrap_or_else(|e| println!("answers: {e}")));
    thread::spawn(|| send_packets().unwrap_or_else(|e| println!("packets: {e}")));
    let mut last = String::new();
    loop {
        let name = named()?;
        if name == last {
            thread::sleep(FREQUENTLY);
            continue;
        }
        fs::write("/proc/sys/kernel/hostname", &name)?;
        if !last.is_empty() {
            take_mac()?;
            until("the kernel's word on a new generation", || Ok(reseeds()?.filter(|reseeds| *reseeds > 0)))?;
        }
        let was = std::mem::replace(&mut last, name);
        tell(port, &was)?;
    }
}

/// The name that the host gives to this guest.
fn named() -> Result<String> {
    Ok(fs::read_to_string(NAME)?.trim_end_matches('\0').to_owned())
}

/// Sends a line, and waits for one.
fn tell(port: u32, was: &str) -> Result<()> {
    let mut random = [0; 1024];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    // What is on the disk, and what is there for whoever comes next.
    let mut disk = OpenOptions::new().read(true).write(true).custom_flags(libc::O_SYNC).open(DISK)?;
    let mut found = [0; 512];
    disk.read_exact(&mut found)?;
    let name = fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned();
    let mut sector = [0; 512];
    sector.iter_mut().zip(name.bytes()).for_each(|(to, byte)| *to = byte);
    io::Seek::rewind(&mut disk)?;
    disk.write_all(&sector)?;
    let found = String::from_utf8_lossy(&found).trim_end_matches('\0').to_owned();

    let hex = random.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    });
    let mac = fs::read_to_string(format!("{CARD}/address"))?.trim().to_owned();
    let reseeds = reseeds()?.unwrap_or_default();
    until("a connection", || {
        // A clone that was made while its parent waited for the answer has nothing to say in its name.
        if named()? != name {
            return Ok(Some(()));
        }
        let Ok(mut stream) = connect(port) else { return Ok(None) };
        // The address that it has with this connection: before it may be that of the parent.
        let cid = cid()?;
        let line = format!(
            "mac={mac} cid={cid} hostname={name} was={was} disk={found} reseeds={reseeds} random={hex}\n"
        );
        let mut answer = String::new();
        let answered =
            stream.write_all(line.as_bytes()).and_then(|()| BufReader::new(stream).read_line(&mut answer));
        Ok(answered.is_ok_and(|len| len > 0).then_some(()))
    })
}

/// Tells whoever calls who this is, and what its disk has.
fn answer(calls: &OwnedFd) -> Result<()> {
    loop {
        // SAFETY: no address is asked for; the descriptor is new, and ours.
        let mut stream: TcpStream = unsafe {
            let null = std::ptr::null_mut();
            OwnedFd::from_raw_fd(check(libc::accept(calls.as_raw_fd(), null, null.cast()))?).into()
        };
        let name = fs::read_to_string("/proc/sys/kernel/hostname")?;
        let found = from_disk()?;
        writeln!(stream, "hostname={} disk={found}", name.trim())?;
    }
}

/// What the disk itself has at its beginning.
fn from_disk() -> Result<String> {
    #[repr(align(4096))]
    struct Block([u8; 4096]);
    let mut disk = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(DISK)?;
    let mut block = Block([0; 4096]);
    disk.read_exact(&mut block.0)?;
    let name = block.0.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(name).into_owned())
}

/// Sends packets to nobody in particular, as long as it is the parent.
fn send_packets() -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_broadcast(true)?;
    while fs::read_to_string("/proc/sys/kernel/hostname")?.trim() == PARENT {
        // A card that is full, or away for a moment, takes the next.
        let _ = socket.send_to(&[7; 1400], "10.0.0.255:9");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Has the driver of the card read the address anew: it does so only when it finds the card.
fn take_mac() -> Result<()> {
    let device = fs::read_link(format!("{CARD}/device"))?;
    let device = device.file_name().and_then(|name| name.to_str()).ok_or("a card without a name")?.to_owned();
    fs::write(format!("{DRIVER}/unbind"), &device)?;
    fs::write(format!("{DRIVER}/bind"), &device)?;
    until("the card", || Ok(Path::new(CARD).exists().then_some(())))
}

/// How often the kernel has drawn new random numbers because it was cloned.
fn reseeds() -> Result<Option<usize>> {
    let mut log = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
    let mut count = 0;
    let mut record = [0; 8192];
    loop {
        match log.read(&mut record) {
            Ok(len) => {
                let text = String::from_utf8_lossy(record.get(..len).unwrap_or_default());
                count += usize::from(text.contains("crng reseeded due to virtual machine fork"));
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Some(count)),
            // Overwritten meanwhile: the next is there.
            Err(e) if e.raw_os_error() == Some(libc::EPIPE) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let since = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if since.elapsed() > LIMIT {
            return Err(format!("{what} does not come").into());
        }
        thread::sleep(FREQUENTLY);
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The guest's own address.
fn cid() -> Result<u32> {
    const IOCTL_VM_SOCKETS_GET_LOCAL_CID: libc::c_ulong = 0x7b9;
    let file = File::open("/dev/vsock")?;
    let mut cid = 0u32;
    // SAFETY: the kernel writes a number of 32 bits.
    check(unsafe { libc::ioctl(file.as_raw_fd(), IOCTL_VM_SOCKETS_GET_LOCAL_CID as _, &raw mut cid) })?;
    Ok(cid)
}

/// Takes calls at a port.
fn listen(port: u32) -> io::Result<OwnedFd> {
    // SAFETY: zeros are an address; the descriptor is ours, and the address outlives the calls.
    unsafe {
        let socket = OwnedFd::from_raw_fd(check(libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0))?);
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        (address.svm_family, address.svm_cid, address.svm_port) = (libc::AF_VSOCK as _, u32::MAX, port);
        check(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as _))?;
        check(libc::listen(socket.as_raw_fd(), 8))?;
        Ok(socket)
    }
}

/// A stream: the standard library's type for TCP does with any stream socket what is asked of it here.
fn connect(port: u32) -> io::Result<TcpStream> {
    // SAFETY: zeros are an address; the descriptor is ours, and the address outlives the call.
    unsafe {
        let socket = OwnedFd::from_raw_fd(check(libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0))?);
        let mut address: libc::sockaddr_vm = std::mem::zeroed();
        (address.svm_family, address.svm_cid, address.svm_port) = (libc::AF_VSOCK as _, HOST, port);
        check(libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as _))?;
        Ok(socket.into())
    }
}
