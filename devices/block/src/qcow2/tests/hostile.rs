//! Images that were made to do harm, or that were damaged.

use std::os::unix::fs::symlink;

use super::*;

/// Size of the file that the others are made from.
const SIZE: u64 = 1 << 20;

/// An image with data in its first MiB, 4 KiB clusters, and a base if it has a name.
fn victim(dir: &TempDir, backing: Option<&str>) -> PathBuf {
    let path = dir.path().join("victim.qcow2");
    let _ = fs::remove_file(&path);
    NewQcow2::new(SIZE).with_cluster_size(4096).create(&path).unwrap();
    let guest = Guest::open(&path, &read_write());
    guest.write(0, &noise(1, 300 << 10));
    drop(guest);
    if let Some(name) = backing {
        Qcow2::rename_base(&path, Some((name, ImageFormat::Raw))).unwrap();
    }
    path
}

fn patch(path: &Path, at: usize, bytes: &[u8]) {
    let mut file = fs::read(path).unwrap();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    fs::write(path, file).unwrap();
}

/// A folder whose files reach no disk: for thousands of images.
fn in_memory() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| dir())
}

/// Opens and takes it into use; the error, if that is refused.
fn refusal(path: &Path, options: &Qcow2Options) -> Option<String> {
    match Qcow2::open(path, options) {
        Err(e) => Some(e.to_string()),
        Ok(disk) => disk.lock().err().map(|e| e.to_string()),
    }
}

#[track_caller]
fn refused(path: &Path, options: &Qcow2Options, want: &str) {
    let error = refusal(path, options).unwrap_or_else(|| panic!("is opened, and {want:?} was to be refused"));
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(error.contains(name) && error.contains(want), "{error:?} names {name:?} and says {want:?}");
}

/// Whatever is wrong with it, using it ends in success or errors, and it is based on what it was.
fn use_it(path: &Path, options: &Qcow2Options) {
    let backing = named(path);
    let Ok(disk) = Qcow2::open(path, options) else { return };
    if disk.lock().is_err() {
        return;
    }
    let guest = Guest { mem: guest_ram(&[(0, RAM)]), disk: Arc::new(disk) };
    let size = guest.disk.capacity().min(SIZE);
    for at in (0..size).step_by(64 << 10) {
        let len = (size - at).min(64 << 10) as usize;
        let _ = guest.try_read(at, len);
        if options.top_writable {
            let _ = guest.try_write(at, &vec![0xa5; len]);
            let _ = guest.disk.discard(at + 4096, 8192);
            let _ = guest.disk.write_zeroes(at, 1024, true);
        }
    }
    let _ = guest.disk.flush();
    assert!(!guest.disk.broken.load(Ordering::Relaxed), "imago has panicked");
    drop(guest);
    assert!(fs::metadata(path).unwrap().len() < 8 << 20);
    assert_eq!(named(path), backing);
}

/// What the image says it is based on, if its header is in order.
fn named(path: &Path) -> Option<Option<header::BackingName>> {
    let file = fs::File::open(path).unwrap();
    let len = file.metadata().unwrap().len();
    header::Header::read(&file, path, len).ok().map(|header| header.backing)
}

#[test]
fn d4_a_header_that_a_guest_writes_into_its_raw_disk_is_data() {
    let dir = dir();
    let secret = dir.path().join("secret");
    fs::write(&secret, [0x5e; 1 << 20]).unwrap();
    let header = fs::read(victim(&dir, Some(text(&secret)))).unwrap();
    let raw = dir.path().join("raw.img");
    let mut disk = vec![0; 1 << 20];
    disk[..header.len()].copy_from_slice(&header);
    fs::write(&raw, &disk).unwrap();
    // Named as raw by the caller, or by the image over it: its bytes.
    let options = read_write().with_backing_folder(dir.path());
    let guest =
        Guest::new(Qcow2::overlay(dir.path().join("over"), &raw, ImageFormat::Raw, &options).unwrap());
    assert!(guest.all() == disk);
    drop(guest);
    assert!(Guest::open(&dir.path().join("over"), &options).all() == disk);
    // Named by nobody: refused.
    let unnamed = dir.path().join("unnamed");
    qemu(
        "qemu-img",
        &["create", "-q", "-u", "-f", "qcow2", "-b", text(&raw), "-F", "raw", text(&unnamed), "1M"],
    );
    let bytes = fs::read(&unnamed).unwrap();
    let at = bytes.windows(4).position(|four| four == 0xe279_2aca_u32.to_be_bytes()).unwrap();
    patch(&unnamed, at, &0x1234_5678_u32.to_be_bytes());
    refused(&unnamed, &options, "has no named format");
    let named = options.clone().with_unnamed_backing(ImageFormat::Raw);
    assert!(Guest::open(&unnamed, &named).all() == disk);
    // A raw disk is no qcow2 because it is called so, either.
    refused(&secret, &options, "magic");
}

#[test]
fn d4_backing_files_are_opened_only_where_the_caller_allows_it() {
    let dir = dir();
    let (allowed, outside) = (dir.path().join("allowed"), dir.path().join("outside"));
    for folder in [&allowed, &outside] {
        fs::create_dir_all(folder.join("below")).unwrap();
        fs::write(folder.join("below/base.img"), vec![1; 1 << 20]).unwrap();
    }
    symlink("below/base.img", allowed.join("link-in")).unwrap();
    symlink(outside.join("below/base.img"), allowed.join("link-out")).unwrap();
    symlink(&outside, allowed.join("folder-out")).unwrap();
    symlink("../outside/below/base.img", allowed.join("link-up")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, allowed.join("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    let options = read_write().with_backing_folder(&allowed);
    let absolute = |name: &str| allowed.join(name).to_str().unwrap().to_owned();
    for name in [absolute("below/base.img"), absolute("link-in"), "allowed/below/base.img".into()] {
        assert_eq!(refusal(&victim(&dir, Some(&name)), &options), None, "{name}");
    }
    for (name, want) in [
        (text(&outside.join("below/base.img")).to_owned(), "not below an allowed folder"),
        (absolute("../outside/below/base.img"), ".. in its name"),
        ("allowed/../outside/below/base.img".into(), ".. in its name"),
        ("../../etc/passwd".into(), ".. in its name"),
        ("/etc/passwd".into(), "not below an allowed folder"),
        ("outside/below/base.img".into(), "not below an allowed folder"),
        (absolute("link-out"), "leads out"),
        (absolute("link-up"), "leads out"),
        (absolute("folder-out/below/base.img"), "leads out"),
        ("nbd://localhost/x".into(), "not a plain file name"),
        ("json:{\"driver\":\"file\"}".into(), "not a plain file name"),
        ("file:base.img".into(), "not a plain file name"),
    ] {
        let path = victim(&dir, Some(&name));
        refused(&path, &options, want);
        refused(&path, &read_write(), if want.contains("below") { "no folder" } else { "backing file" });
    }
    for (name, want) in [("pipe", "is a pipe"), ("below", "is a folder"), ("none", "does not exist")] {
        let error = refusal(&victim(&dir, Some(&absolute(name))), &options).unwrap();
        assert!(error.contains(want) && error.contains(name), "{error}");
    }
    // Whoever has only a descriptor does not know what a relative name means.
    let path = victim(&dir, Some("allowed/below/base.img"));
    let file = fs::File::options().read(true).write(true).open(&path).unwrap();
    assert!(Qcow2::from_fd(file, &options).unwrap_err().to_string().contains("is relative"));
}

#[test]
fn d5_each_field_of_the_header_is_checked() {
    let dir = dir();
    let be32 = |value: u32| value.to_be_bytes().to_vec();
    let be64 = |value: u64| value.to_be_bytes().to_vec();
    let mut rows: Vec<(usize, Vec<u8>, &str)> = vec![
        (0, b"QED\0".to_vec(), "magic"),
        (32, be32(1), "crypt_method"),
        (32, be32(2), "crypt_method"),
        (16, be32(1024), "backing_file_size"),
        (16, be32(0), "backing_file_size"),
        (8, be64(4095), "backing_file_offset"),
        (8, be64(8), "backing_file_offset"),
        (8, be64(u64::MAX), "backing_file_offset"),
        (40, be64(!4095), "l1_table_offset"),
        (48, be64(!4095), "refcount_table_offset"),
        (36, be32(0), "l1_size"),
        (36, be32(u32::MAX), "l1_size"),
        (36, be32(4 << 20), "l1_table_offset"),
        (56, be32(0), "refcount_table_clusters"),
        (56, be32(u32::MAX), "refcount_table_clusters"),
        (56, be32(2048), "refcount_table_offset"),
        (72, be64(1 << 1), "corrupt"),
        (72, be64(1 << 2), "external data file"),
        (72, be64(1 << 3), "compression"),
        (72, be64(1 << 4), "extended L2"),
        (72, be64(1 << 5), "bit 5"),
        (72, be64(1 << 63), "bit 63"),
        (104, be32(7), "header extension"),
    ];
    rows.extend([0, 1, 4, u32::MAX].map(|version| (4, be32(version), "version")));
    rows.extend([0, 1, 8, 22, 31, 32, 63, 64, u32::MAX].map(|bits| (20, be32(bits), "cluster_bits")));
    rows.extend([7, 31, 32, 64, u32::MAX].map(|order| (96, be32(order), "refcount_order")));
    rows.extend([0, 72, 103, 105, 4104, u32::MAX].map(|len| (100, be32(len), "header_length")));
    rows.extend([0, 511, 513, u64::MAX].map(|size| (24, be64(size), "size")));
    rows.extend([1 << 40, u64::MAX - 511].map(|size| (24, be64(size), "l1_size")));
    rows.extend([0, 512, 4097, 1 << 40].map(|at| (40, be64(at), "l1_table_offset")));
    rows.extend([0, 512, 4097, 1 << 40].map(|at| (48, be64(at), "refcount_table_offset")));
    for (at, bytes, want) in rows {
        let path = victim(&dir, Some("base"));
        match at {
            // The first extension: one byte of feature names, which is no name.
            104 => patch(&path, 104, &[0x6803_f857_u32.to_be_bytes(), 1_u32.to_be_bytes()].concat()),
            at => patch(&path, at, &bytes),
        }
        for options in [read_only(), read_write()] {
            refused(&path, &options, want);
        }
    }
    for (kind, len) in [(1_u32, 4096_u32), (1, u32::MAX), (1, 4000), (0xe279_2aca, 4), (0xe279_2aca, 0)] {
        let path = victim(&dir, Some("base"));
        patch(&path, 104, &[kind.to_be_bytes(), len.to_be_bytes()].concat());
        refused(&path, &read_only(), "header extension");
    }
}

#[test]
fn d5_any_value_anywhere_in_header_and_tables_ends_in_an_error_at_worst() {
    let dir = in_memory();
    let path = victim(&dir, None);
    let original = fs::read(&path).unwrap();
    let (l1, refcounts) = (header::be64(&original, 40) as usize, header::be64(&original, 48) as usize);
    let l2 = (header::be64(&original, l1) & tables::OFFSET) as usize;
    let block = header::be64(&original, refcounts) as usize;
    let len = original.len() as u64;
    let mut places: Vec<usize> = (4..104).step_by(4).chain((104..136).step_by(8)).collect();
    places.extend([l1, l1 + 8, l1 + 16, l2, l2 + 8, l2 + 64, block, block + 8, refcounts, refcounts + 8]);
    let copied = 1 << 63;
    let values = [
        0,
        1,
        2,
        u64::MAX,
        u64::MAX - 1,
        1 << 62,
        copied,
        4096,
        l1 as u64,
        l2 as u64,
        block as u64,
        len,
        len - 4096,
    ]
    .into_iter()
    .flat_map(|value| [value, value | copied, (value << 32) | value & 0xffff_ffff]);
    for value in values {
        for place in &places {
            for options in [read_only(), read_write()] {
                let mut bytes = original.clone();
                bytes[*place..place + 8].copy_from_slice(&value.to_be_bytes());
                fs::write(&path, bytes).unwrap();
                use_it(&path, &options);
            }
        }
    }
}

#[test]
fn d5_tables_that_overlap_or_lie_outside_of_the_file_are_found_before_use() {
    let dir = dir();
    let path = victim(&dir, None);
    let original = fs::read(&path).unwrap();
    let (l1, refcounts) = (header::be64(&original, 40), header::be64(&original, 48));
    let block = header::be64(&original, refcounts as usize);
    let copied = 1 << 63;
    for (at, value, want) in [
        (l1, copied | block, "table"),
        (l1, copied | l1, "table"),
        (l1, copied | refcounts, "table"),
        (l1, copied | 1 << 40, "outside of the file"),
        (l1, copied | (block + 512), "not the offset of a cluster"),
        (l1, copied | block | 1, "not the offset of a cluster"),
        (refcounts, l1, "overlap"),
        (refcounts + 8, block, "overlap"),
        (refcounts, 1 << 40, "outside of the file"),
        (refcounts, block + 512, "not the offset of a cluster"),
        (40, refcounts, "L1 table"),
    ] {
        fs::write(&path, &original).unwrap();
        patch(&path, at as usize, &value.to_be_bytes());
        refused(&path, &read_write(), want);
    }
}

#[test]
fn d5_data_that_its_tables_put_elsewhere_is_refused_before_anything_is_written() {
    let dir = dir();
    let path = victim(&dir, None);
    let original = fs::read(&path).unwrap();
    let (l1, refcounts) = (header::be64(&original, 40), header::be64(&original, 48));
    let l2 = header::be64(&original, l1 as usize) & tables::OFFSET;
    let block = header::be64(&original, refcounts as usize);
    let data = header::be64(&original, l2 as usize + 8) & tables::OFFSET;
    let copied = 1_u64 << 63;
    for (place, value, want) in [
        (l2, l1 | copied, "overlaps"),
        (l2, refcounts | copied, "overlaps"),
        (l2, l2 | copied, "overlaps"),
        (l2, block | copied, "overlaps"),
        (l2, data | copied, "overlaps"),
        (l2, copied, "not the offset of a cluster"),
        (l2, 2 | copied, "not the offset of a cluster"),
        (l2, (data + 512) | copied, "not the offset of a cluster"),
        (l2, 1 << 40 | copied, "outside of the file"),
        (l2, data, "overlaps"),
        (l2, 1 << 62 | 1 << 40, "outside of the file"),
        (l2, 1 << 62 | data, "overlaps"),
        (block, 0, "refcount of cluster 0 is smaller"),
        (refcounts, 0, "is 0, and clusters that it stands for are in use"),
    ] {
        fs::write(&path, &original).unwrap();
        patch(&path, place as usize, &value.to_be_bytes());
        let before = fs::read(&path).unwrap();
        let error = refusal(&path, &read_write()).unwrap();
        let shared = error.contains("shared, but not by a snapshot");
        assert!(error.contains("victim.qcow2") && (error.contains(want) || shared), "{error}: {want}");
        assert!(fs::read(&path).unwrap() == before);
    }
    // An image that is only read shows what its tables say, but nothing behind the end of its file.
    fs::write(&path, &original).unwrap();
    patch(&path, l2 as usize, &(1_u64 << 40 | copied).to_be_bytes());
    let guest = Guest::open(&path, &read_only());
    assert!(guest.try_read(0, 512).unwrap_err().to_string().contains("behind the end"));
    assert_eq!(guest.read(4096, 512), noise(1, 8192)[4096..4608]);
}

#[test]
fn d5_a_file_that_was_cut_off_anywhere_ends_in_an_error_at_worst() {
    let dir = in_memory();
    let path = victim(&dir, None);
    let original = fs::read(&path).unwrap();
    for len in (0..4096).step_by(24).chain((4096..original.len()).step_by(3000)) {
        for options in [read_only(), read_write()] {
            fs::write(&path, &original[..len]).unwrap();
            if len < 4096 {
                assert!(refusal(&path, &options).is_some(), "{len}");
            } else {
                use_it(&path, &options);
            }
        }
    }
}

#[test]
fn d5_compressed_clusters_that_lie_fail_and_harm_nothing() {
    let dir = dir();
    let raw = dir.path().join("raw");
    fs::write(&raw, [b'x'; 1 << 20]).unwrap();
    let path = dir.path().join("victim.qcow2");
    qemu(
        "qemu-img",
        &["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "cluster_size=4k", text(&raw), text(&path)],
    );
    let original = fs::read(&path).unwrap();
    let l1 = header::be64(&original, 40) as usize;
    let l2 = (header::be64(&original, l1) & tables::OFFSET) as usize;
    let entry = header::be64(&original, l2);
    assert_ne!(entry & 1 << 62, 0);
    for lie in [entry ^ 512, entry ^ 1, entry | 0xf << 58, entry | 1 << 50, 1 << 62, u64::MAX >> 1, u64::MAX]
    {
        for options in [read_only(), read_write()] {
            fs::write(&path, &original).unwrap();
            patch(&path, l2, &lie.to_be_bytes());
            if refusal(&path, &options).is_none() {
                let guest = Guest::open(&path, &options);
                let _ = guest.try_read(0, 4096);
                // An entry that is no entry spoils its table.
                if lie != u64::MAX {
                    assert_eq!(guest.read(4096, 4096), [b'x'; 4096]);
                }
            }
            fs::write(&path, &original).unwrap();
            patch(&path, l2, &lie.to_be_bytes());
            use_it(&path, &options);
        }
    }
    fs::write(&path, &original).unwrap();
    patch(&path, l2, &(entry | 1 << 50).to_be_bytes());
    assert!(Guest::open(&path, &read_only()).try_read(0, 512).is_err());
}

#[test]
fn d5_chains_end_and_their_memory_is_bounded() {
    let dir = dir();
    let options = read_only().with_backing_folder(dir.path());
    let make = |name: &str, base: &str, kind: &str, size: &str| {
        let path = dir.path().join(name);
        qemu(
            "qemu-img",
            &["create", "-q", "-u", "-f", "qcow2", "-o", kind, "-b", base, "-F", "qcow2", text(&path), size],
        );
        path
    };
    let itself = make("itself", "itself", "cluster_size=64k", "1M");
    refused(&itself, &options, "a loop");
    let one = make("one", "two", "cluster_size=64k", "1M");
    let two = make("two", "one", "cluster_size=64k", "1M");
    for path in [&one, &two] {
        assert!(refusal(path, &options).unwrap().contains("a loop"));
    }
    // A second name does not hide that.
    fs::hard_link(&itself, dir.path().join("other-name")).unwrap();
    let path = make("itself", "other-name", "cluster_size=64k", "1M");
    assert!(refusal(&path, &options).is_some());
    for level in 0..70 {
        make(&format!("level{level}"), &format!("level{}", level + 1), "cluster_size=64k", "1M");
    }
    make("level70", "two", "cluster_size=64k", "1M");
    assert!(refusal(&dir.path().join("level0"), &options).unwrap().contains("more than 64"));
    for level in 0..6 {
        make(&format!("big{level}"), &format!("big{}", level + 1), "cluster_size=2M", "128T");
    }
    NewQcow2::new(512).create(dir.path().join("big6")).unwrap();
    assert!(refusal(&dir.path().join("big0"), &options).unwrap().contains("MiB of memory"));
}

#[test]
fn e1_a_panic_in_the_format_fails_requests_and_leaves_an_image_that_is_repaired() {
    let dir = dir();
    let path = victim(&dir, None);
    let guest = Guest::open(&path, &read_write());
    guest.write(0, &[1; 512]);
    guest.disk.flush().unwrap();
    let error = guest.disk.alone(|_| -> io::Result<()> { panic!("for the test") }).unwrap_err();
    assert!(error.to_string().contains("has panicked"), "{error}");
    assert!(guest.try_read(0, 512).is_err() && guest.disk.flush().is_err());
    guest.disk.unlock().unwrap();
    drop(guest);
    let guest = Guest::open(&path, &read_write());
    assert_eq!(guest.read(0, 512), [1; 512]);
    drop(guest);
    check(&path);
}

#[test]
fn e1_a_host_without_space_fails_what_needs_some_and_nothing_else() {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let dir = dir();
    let memory = memfd_create("disk", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    NewQcow2::new(64 << 20).create_in(memory.try_clone().unwrap()).unwrap();
    let guest = Guest::new(Qcow2::from_fd(memory.try_clone().unwrap(), &read_write()).unwrap());
    guest.write(0, &noise(1, 128 << 10));
    // From now on the file cannot grow.
    fcntl_add_seals(&memory, SealFlags::GROW).unwrap();
    for at in [1 << 20, 2 << 20, 40 << 20] {
        let error = guest.try_write(at, &[1; 4096]).unwrap_err();
        assert!(matches!(error, DmaIoError::Io(ref e) if e.raw_os_error() == Some(libc::EPERM)), "{error}");
    }
    guest.write(512, &[2; 512]);
    guest.disk.flush().unwrap();
    assert_eq!(guest.read(512, 512), [2; 512]);
    assert_eq!(guest.read(1 << 20, 4096), [0; 4096]);
    // Space that is given up can be used.
    guest.disk.discard(65536, 65536).unwrap();
    guest.write(1 << 20, &[3; 65536]);
    guest.disk.unlock().unwrap();
    let path = dir.path().join("copy");
    let mut file = fs::File::from(memory);
    io::Seek::rewind(&mut file).unwrap();
    io::copy(&mut file, &mut fs::File::create(&path).unwrap()).unwrap();
    check(&path);
    assert_eq!(contents(&path)[1 << 20..(1 << 20) + 65536], [3; 65536]);
}
