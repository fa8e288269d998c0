use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use ossature_memory::Segment;
use ossature_memory::vm_memory::GuestAddress;
use tempfile::TempDir;

use super::open::open_error;
use super::*;
use crate::testing::guest_ram;

fn disk(dir: &TempDir, len: u64) -> PathBuf {
    let path = dir.path().join("disk.img");
    File::create(&path).unwrap().set_len(len).unwrap();
    path
}

fn dir() -> TempDir {
    tempfile::tempdir().unwrap()
}

#[track_caller]
fn refused(path: impl AsRef<Path>, mode: OpenMode, want: &str) {
    let error = RawFile::open(&path, mode).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&format!("{:?}", path.as_ref())), "{text:?} names the file");
    assert!(text.contains(want), "{text:?} says {want:?}");
}

#[test]
fn moves_bytes_between_file_and_guest() {
    let dir = dir();
    let path = disk(&dir, 8192);
    let mem = guest_ram(&[(0, 0x1_0000)]);
    let raw = RawFile::open(&path, OpenMode::ReadWrite).unwrap();
    assert_eq!((raw.capacity(), raw.read_only()), (8192, false));
    mem.write(GuestAddress(0x100), &[7; 1024]).unwrap();
    let from =
        [Segment { addr: GuestAddress(0x100), len: 100 }, Segment { addr: GuestAddress(0x200), len: 924 }];
    assert_eq!(raw.write(&mem, (&from).into(), 512).unwrap(), 1024);
    raw.flush().unwrap();
    let bytes = fs::read(&path).unwrap();
    assert!(bytes[..512].iter().all(|b| *b == 0) && bytes[1536..].iter().all(|b| *b == 0));
    assert!(bytes[512..868].iter().all(|b| *b == 7));

    let to = [Segment { addr: GuestAddress(0x4000), len: 512 }];
    assert_eq!(raw.read(&mem, (&to).into(), 512).unwrap(), 512);
    let mut back = [0; 512];
    mem.read(GuestAddress(0x4000), &mut back).unwrap();
    assert_eq!(back, bytes[512..1024]);
}

#[test]
fn a_file_that_shrank_reads_short_and_never_more() {
    let dir = dir();
    let path = disk(&dir, 8192);
    let mem = guest_ram(&[(0, 0x1_0000)]);
    let raw = RawFile::open(&path, OpenMode::ReadOnly).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(1000).unwrap();
    let to = [Segment { addr: GuestAddress(0), len: 1024 }];
    assert_eq!(raw.read(&mem, (&to).into(), 512).unwrap(), 488);
    assert_eq!(raw.read(&mem, (&to).into(), 4096).unwrap(), 0);
}

#[test]
fn d4_the_format_is_never_guessed() {
    let dir = dir();
    let path = dir.path().join("disk.img");
    let mut bytes = vec![0; 1024];
    // A qcow2 header, version 3, with a backing file.
    bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    fs::write(&path, &bytes).unwrap();
    let mem = guest_ram(&[(0, 0x1000)]);
    let raw = RawFile::open(&path, OpenMode::ReadWrite).unwrap();
    assert_eq!(raw.capacity(), 1024);
    let to = [Segment { addr: GuestAddress(0), len: 1024 }];
    assert_eq!(raw.read(&mem, (&to).into(), 0).unwrap(), 1024);
    let mut back = vec![0; 1024];
    mem.read(GuestAddress(0), &mut back).unwrap();
    assert_eq!(back, bytes);
}

#[test]
fn what_is_no_disk_is_refused_with_its_name() {
    let dir = dir();
    for mode in [OpenMode::ReadOnly, OpenMode::ReadWrite] {
        refused(dir.path().join("none.img"), mode, "does not exist");
        refused(dir.path(), mode, "is a folder");
        refused("/dev/null", mode, "is a character device");
    }
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    refused(&socket, OpenMode::ReadOnly, "is a socket");
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    refused(&pipe, OpenMode::ReadOnly, "is a pipe");
    refused(&pipe, OpenMode::ReadWrite, "is a pipe");
}

#[test]
fn sizes_that_are_no_sectors_are_refused_with_the_right_size() {
    let dir = dir();
    refused(disk(&dir, 0), OpenMode::ReadOnly, "is empty");
    refused(disk(&dir, 1000), OpenMode::ReadOnly, "1000 bytes long, not a multiple of 512: pad it to 1024");
    refused(disk(&dir, 511), OpenMode::ReadWrite, "pad it to 512");
    assert_eq!(RawFile::open(disk(&dir, 512), OpenMode::ReadOnly).unwrap().capacity(), 512);
}

#[test]
fn a_file_marked_read_only_is_not_opened_read_write_even_by_root() {
    let dir = dir();
    let path = disk(&dir, 512);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    let error = RawFile::open(&path, OpenMode::ReadWrite).unwrap_err();
    // The kernel refuses it to users, we to those whom the kernel lets through.
    assert!(matches!(error, DiskError::ReadOnlyFile { .. } | DiskError::Permission { .. }), "{error:?}");
    assert!(error.to_string().contains("open it read-only"), "{error}");
    let raw = RawFile::open(&path, OpenMode::ReadOnly).unwrap();
    assert!(raw.read_only());
}

#[test]
fn kernel_answers_become_errors_that_name_file_and_remedy() {
    let path = Path::new("/a/disk");
    let of = |code, mode| open_error(path, mode, io::Error::from_raw_os_error(code));
    let text = of(libc::EACCES, OpenMode::ReadWrite).to_string();
    assert_eq!(
        text,
        r#"disk "/a/disk": no permission to read and write it; open it read-only or change its mode"#
    );
    assert_eq!(
        of(libc::EACCES, OpenMode::ReadOnly).to_string(),
        r#"disk "/a/disk": no permission to read it"#
    );
    assert!(matches!(of(libc::EROFS, OpenMode::ReadWrite), DiskError::ReadOnlyFile { .. }));
    assert!(matches!(of(libc::ELOOP, OpenMode::ReadOnly), DiskError::Io { action: "open", .. }));
}

#[test]
fn locks_keep_writers_alone_and_let_readers_share() {
    let dir = dir();
    let path = disk(&dir, 512);
    let open = |mode| RawFile::open(&path, mode).unwrap();
    let (one, two) = (open(OpenMode::ReadOnly), open(OpenMode::ReadOnly));
    let (writer, other) = (open(OpenMode::ReadWrite), open(OpenMode::ReadWrite));
    let busy = |disk: &RawFile| {
        let text = disk.lock().unwrap_err().to_string();
        assert!(text.contains(&format!("{path:?}")), "{text:?} names the file");
        assert!(text.contains("is in use by another process, or by another disk of this one"), "{text}");
    };
    one.lock().unwrap();
    two.lock().unwrap();
    busy(&writer);
    one.unlock().unwrap();
    drop(two);
    writer.lock().unwrap();
    writer.lock().unwrap();
    busy(&one);
    busy(&other);
    writer.unlock().unwrap();
    other.lock().unwrap();
    busy(&writer);
}

#[test]
fn a_file_that_changed_its_size_is_not_gone_on_with() {
    let dir = dir();
    let path = disk(&dir, 1024);
    let raw = RawFile::open(&path, OpenMode::ReadWrite).unwrap();
    raw.lock().unwrap();
    raw.unlock().unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(512).unwrap();
    let text = raw.lock().unwrap_err().to_string();
    assert!(text.ends_with("is 512 bytes long, and was 1024 when it was opened"), "{text}");
    // Whoever can go on with it may.
    RawFile::open(&path, OpenMode::ReadWrite).unwrap().lock().unwrap();
}

#[test]
fn a_descriptor_is_used_as_it_was_opened_or_refused() {
    let dir = dir();
    let path = disk(&dir, 1024);
    let open = |flags: i32| {
        OpenOptions::new()
            .read(true)
            .write(flags & libc::O_RDWR != 0)
            .custom_flags(flags)
            .open(&path)
            .unwrap()
    };
    let refused = |file: File, mode, want: &str| {
        let text = RawFile::from_fd(file, mode).unwrap_err().to_string();
        assert!(text.starts_with("disk \"descriptor ") && text.contains(want), "{text:?} says {want:?}");
    };
    refused(
        open(0),
        OpenMode::ReadWrite,
        "is open for reading only; open it for reading and writing (O_RDWR)",
    );
    let writes = || OpenOptions::new().write(true).open(&path).unwrap();
    refused(writes(), OpenMode::ReadOnly, "is open for writing only; open it for reading (O_RDONLY)");
    refused(writes(), OpenMode::ReadWrite, "is open for writing only; open it for reading and writing");
    refused(open(libc::O_RDWR | libc::O_APPEND), OpenMode::ReadWrite, "is open for appending (O_APPEND)");
    refused(open(libc::O_PATH), OpenMode::ReadOnly, "is only a place in the file system (O_PATH)");
    refused(File::open(dir.path()).unwrap(), OpenMode::ReadOnly, "is a folder");
    refused(File::open("/dev/null").unwrap(), OpenMode::ReadOnly, "is a character device");

    let mem = guest_ram(&[(0, 0x1000)]);
    mem.write(GuestAddress(0), &[7; 512]).unwrap();
    let all = [Segment { addr: GuestAddress(0), len: 512 }];
    let raw = RawFile::from_fd(open(libc::O_RDWR), OpenMode::ReadWrite).unwrap();
    assert_eq!((raw.capacity(), raw.read_only()), (1024, false));
    assert_eq!(raw.write(&mem, (&all).into(), 512).unwrap(), 512);
    assert_eq!(fs::read(&path).unwrap(), [[0; 512], [7; 512]].concat());
    // It locks as one with a path does.
    raw.lock().unwrap();
    let text = RawFile::open(&path, OpenMode::ReadOnly).unwrap().lock().unwrap_err().to_string();
    assert!(text.contains("in use"), "{text}");
    // What may be written need not be.
    assert!(RawFile::from_fd(open(libc::O_RDWR), OpenMode::ReadOnly).unwrap().read_only());
}

/// A folder beside the test program, where the file system is likely to have O_DIRECT.
fn on_disk() -> TempDir {
    let program = std::env::current_exe().unwrap();
    tempfile::tempdir_in(program.parent().unwrap()).unwrap()
}

fn blocks(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn discarding_gives_space_back_and_keeps_the_size() {
    let dir = dir();
    let path = dir.path().join("disk.img");
    fs::write(&path, vec![7; 1 << 20]).unwrap();
    let raw = RawFile::open(&path, OpenMode::ReadWrite).unwrap();
    let before = blocks(&path);
    raw.discard(1 << 16, 1 << 19).unwrap();
    raw.discard(512, 0).unwrap();
    assert!(blocks(&path) <= before - (1 << 19), "{before} bytes before, {} now", blocks(&path));
    let bytes = fs::read(&path).unwrap();
    assert_eq!(bytes.len(), 1 << 20);
    let hole = 1 << 16..(1 << 16) + (1 << 19);
    assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == if hole.contains(&at) { 0 } else { 7 }));
}

#[test]
fn zeros_are_zeros_with_and_without_their_space() {
    for unmap in [false, true] {
        let dir = dir();
        let path = dir.path().join("disk.img");
        fs::write(&path, vec![7; 1 << 20]).unwrap();
        let raw = RawFile::open(&path, OpenMode::ReadWrite).unwrap();
        let before = blocks(&path);
        raw.write_zeroes(512, 300 << 10, unmap).unwrap();
        raw.write_zeroes(0, 0, unmap).unwrap();
        let bytes = fs::read(&path).unwrap();
        let zeros = 512..512 + (300 << 10);
        assert_eq!(bytes.len(), 1 << 20);
        assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == if zeros.contains(&at) { 0 } else { 7 }));
        assert_eq!(blocks(&path) < before, unmap, "the space stays unless it may go");
    }
}

#[test]
fn zeros_are_written_where_there_are_no_holes() {
    let dir = dir();
    let path = dir.path().join("disk.img");
    fs::write(&path, vec![7; 200_704]).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    space::write_zeros(&file, 1024, 150_016).unwrap();
    let bytes = fs::read(&path).unwrap();
    let zeros = 1024..1024 + 150_016;
    assert_eq!(bytes.len(), 200_704);
    assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == if zeros.contains(&at) { 0 } else { 7 }));
}

#[test]
fn a_disk_that_another_machine_has_is_not_resized() {
    let dir = tempfile::tempdir().unwrap();
    let path = disk(&dir, 8192);
    let open = || RawFile::open(&path, OpenMode::ReadWrite).unwrap();
    let (ours, other) = (open(), open());
    ours.lock().unwrap();
    ours.unlock().unwrap();
    other.lock().unwrap();
    assert!(matches!(ours.resize(4096), Err(DiskError::InUse { .. })));
    assert_eq!((fs::metadata(&path).unwrap().len(), ours.capacity()), (8192, 8192));
    other.unlock().unwrap();
    ours.resize(4096).unwrap();
    assert_eq!(ours.capacity(), 4096);
    // It is not locked after that, and the other machine sees that it is not what it had.
    assert!(other.lock().unwrap_err().to_string().contains("was 8192 when it was opened"));
    ours.lock().unwrap();
    ours.resize(8192).unwrap();
    assert!(other.lock().is_err(), "it stays locked");
}

#[test]
fn a_disk_is_resized_while_it_is_used_and_only_to_whole_sectors() {
    let dir = dir();
    let path = disk(&dir, 1024);
    let raw = RawFile::open(&path, OpenMode::ReadWrite).unwrap();
    raw.lock().unwrap();
    raw.resize(4096).unwrap();
    assert_eq!((raw.capacity(), fs::metadata(&path).unwrap().len()), (4096, 4096));
    raw.resize(512).unwrap();
    assert_eq!((raw.capacity(), fs::metadata(&path).unwrap().len()), (512, 512));
    assert!(raw.resize(0).unwrap_err().to_string().contains("is empty"));
    assert!(raw.resize(1000).unwrap_err().to_string().contains("pad it to 1024"));
    assert_eq!(raw.capacity(), 512);
    // The new size is the one that counts after a pause.
    raw.unlock().unwrap();
    raw.lock().unwrap();
    // Grown by somebody else, and this disk told.
    let reader = RawFile::open(&path, OpenMode::ReadOnly).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(2048).unwrap();
    reader.resize(2048).unwrap();
    assert_eq!(reader.capacity(), 2048);
    assert!(reader.resize(4096).unwrap_err().to_string().contains("cannot resize it"));
}

#[test]
fn disks_from_one_sector_to_tens_of_tebibytes() {
    let dir = dir();
    let mem = guest_ram(&[(0, 0x1000)]);
    let all = [Segment { addr: GuestAddress(0), len: 512 }];
    for len in [512, 513 * 512, (12 << 40) + 512] {
        let path = disk(&dir, 0);
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        if file.set_len(len).is_err() {
            // The file system has a limit of its own, which every one has above 1 TiB.
            assert!(len > 1 << 40);
            continue;
        }
        let raw = RawFile::open(&path, OpenMode::ReadWrite).unwrap();
        assert_eq!(raw.capacity(), len);
        mem.write(GuestAddress(0), &[9; 512]).unwrap();
        assert_eq!(raw.write(&mem, (&all).into(), len - 512).unwrap(), 512);
        let mut last = [0; 512];
        File::open(&path).unwrap().read_exact_at(&mut last, len - 512).unwrap();
        assert_eq!(last, [9; 512]);
    }
}

#[test]
fn transfers_past_the_page_cache_are_the_same_bytes_whatever_their_alignment() {
    let dir = on_disk();
    let path = disk(&dir, 1 << 16);
    let raw = match RawFile::open(&path, RawOptions::new(OpenMode::ReadWrite).direct(true)) {
        Ok(raw) => raw,
        Err(error @ DiskError::NotDirect { .. }) => {
            // A file system without O_DIRECT says so by name.
            assert!(error.to_string().contains("cannot be used without the page cache (direct)"), "{error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let mem = guest_ram(&[(0, 0x4_0000)]);
    let (_, direct) = raw.files();
    let aligned = [Segment { addr: GuestAddress(0x1000), len: 4096 }];
    assert!(direct.unwrap().takes((&aligned).into(), 4096));
    let mut model = vec![0; 1 << 16];
    for (round, (addr, len, offset)) in
        [(0x1000, 4096, 4096), (0x1001, 512, 512), (0x2000, 1024, 4096 + 512), (0x8003, 8192, 8192)]
            .iter()
            .enumerate()
    {
        let bytes: Vec<u8> = (0..*len).map(|i| (i * 7 + round as u32 + 1) as u8).collect();
        mem.write(GuestAddress(*addr), &bytes).unwrap();
        let from = [Segment { addr: GuestAddress(*addr), len: *len }];
        assert_eq!(raw.write(&mem, (&from).into(), *offset).unwrap(), *len as usize);
        model[*offset as usize..][..*len as usize].copy_from_slice(&bytes);
        for (to, len) in [(0x2_0000, 1 << 16), (0x2_0001, 1 << 16)] {
            let to = [Segment { addr: GuestAddress(to), len }];
            assert_eq!(raw.read(&mem, (&to).into(), 0).unwrap(), 1 << 16);
            let mut back = vec![0; 1 << 16];
            mem.read(to[0].addr, &mut back).unwrap();
            assert_eq!(back, model, "round {round}");
        }
    }
    assert_eq!(fs::read(&path).unwrap(), model);
    assert_eq!(raw.logical_block() % 512, 0);
}

#[test]
fn a_file_that_is_written_is_an_identity_by_any_name() {
    let dir = dir();
    let (path, other) = (disk(&dir, 8192), dir.path().join("other"));
    fs::hard_link(&path, &other).unwrap();
    let identities = |path: &Path, mode| RawFile::open(path, mode).unwrap().identities();
    let own = identities(&path, OpenMode::ReadWrite);
    assert_eq!((own.len(), &own), (1, &identities(&other, OpenMode::ReadWrite)));
    assert_eq!(identities(&path, OpenMode::ReadOnly), []);
    // Over one base, each overlay is its own.
    let overlay = |name| {
        let options = crate::Qcow2Options::new(OpenMode::ReadWrite).with_backing_folder(dir.path());
        let format = crate::ImageFormat::Raw;
        crate::Qcow2::overlay(dir.path().join(name), &path, format, &options).unwrap().identities()
    };
    let overlays = [overlay("one"), overlay("two")];
    assert!(overlays[0] != overlays[1] && overlays.iter().all(|ids| ids.len() == 1 && *ids != own));
}
