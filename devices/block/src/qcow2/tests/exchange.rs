//! Images of QEMU are read right, and QEMU reads ours.

use super::*;

/// A raw image with data, zeros and holes.
fn source(dir: &TempDir) -> (PathBuf, Vec<u8>) {
    let mut data = vec![0; 5 << 20];
    data[..300_000].copy_from_slice(&noise(1, 300_000));
    data[1 << 20..(1 << 20) + 70_000].fill(b'x');
    data[(4 << 20) + 512..(4 << 20) + 200_000].copy_from_slice(&noise(2, 199_488));
    let path = dir.path().join("source.img");
    fs::write(&path, &data).unwrap();
    (path, data)
}

#[test]
fn images_of_every_kind_that_qemu_makes_are_read_and_written() {
    let dir = dir();
    let (raw, data) = source(&dir);
    let mut kinds: Vec<String> =
        [512, 4096, 65536, 2 << 20].iter().map(|size| format!("cluster_size={size}")).collect();
    kinds.extend([1, 2, 4, 8, 16, 32, 64].iter().map(|bits| format!("refcount_bits={bits}")));
    kinds.extend(["lazy_refcounts=on", "preallocation=metadata", "preallocation=full"].map(str::to_owned));
    for kind in kinds {
        for compressed in [false, true] {
            if compressed && (kind.starts_with("preallocation") || kind == "refcount_bits=1") {
                continue;
            }
            let path = dir.path().join("of-qemu.qcow2");
            let mut args = vec!["convert", "-f", "raw", "-O", "qcow2", "-o", &kind];
            args.extend(compressed.then_some("-c"));
            args.extend([text(&raw), text(&path)]);
            qemu("qemu-img", &args);
            let mut want = data.clone();
            let reader = Guest::open(&path, &read_only());
            assert!(reader.all() == want, "{kind} {compressed}");
            assert!(reader.try_write(0, &[0; 512]).is_err());
            drop(reader);
            let guest = Guest::open(&path, &read_write());
            for (at, len) in [(512, 1024), (130_560, 70_144), (3 << 20, 512), ((5 << 20) - 512, 512)] {
                let new = noise(at as u64, len);
                guest.write(at as u64, &new);
                want[at..at + len].copy_from_slice(&new);
            }
            guest.disk.discard(1 << 20, 65536).unwrap();
            guest.disk.write_zeroes(1 << 20, 65536, true).unwrap();
            want[1 << 20..(1 << 20) + 65536].fill(0);
            guest.disk.resize(6 << 20).unwrap();
            want.resize(6 << 20, 0);
            assert!(guest.all() == want, "{kind} {compressed}");
            drop(guest);
            check(&path);
            assert!(contents(&path) == want, "{kind} {compressed}");
        }
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let dir = dir();
    let path = dir.path().join("disk.qcow2");
    let data = dir.path().join("data");
    let external = format!("data_file={}", data.display());
    for (kind, modes, want) in [
        ("extended_l2=on", "rw", "extended L2"),
        ("compression_type=zstd", "rw", "zstd"),
        (external.as_str(), "rw", "external data file"),
        ("compat=0.10", "w", "version 2"),
    ] {
        qemu("qemu-img", &["create", "-f", "qcow2", "-o", kind, text(&path), "1M"]);
        for (mode, options) in [("r", read_only()), ("w", read_write())] {
            match Qcow2::open(&path, &options) {
                Err(e) => assert!(modes.contains(mode) && e.to_string().contains(want), "{e}"),
                Ok(_) => assert!(!modes.contains(mode), "{kind} {mode}"),
            }
        }
        fs::remove_file(&path).unwrap();
    }
    qemu("qemu-img", &["create", "-f", "qcow2", text(&path), "1M"]);
    qemu("qemu-img", &["snapshot", "-c", "one", text(&path)]);
    assert!(Qcow2::open(&path, &read_write()).unwrap_err().to_string().contains("internal snapshots"));
    assert!(Guest::open(&path, &read_only()).all().iter().all(|byte| *byte == 0));
}

#[test]
fn a_chain_of_qemu_is_read_to_its_end() {
    let dir = dir();
    let (raw, mut want) = source(&dir);
    let mut below = (raw, "raw");
    for level in 0..4 {
        let path = dir.path().join(format!("level{level}"));
        let relative = below.0.file_name().unwrap().to_str().unwrap();
        let name = if level % 2 == 0 { text(&below.0) } else { relative };
        qemu("qemu-img", &["create", "-f", "qcow2", "-b", name, "-F", below.1, text(&path)]);
        let at = (level + 1) * 100_000 / 512 * 512;
        let pattern = format!("write -P {} {at} 1024", level + 1);
        qemu("qemu-io", &["-f", "qcow2", "-c", &pattern, "-c", "write -z 2M 64k", text(&path)]);
        want[at..at + 1024].fill(level as u8 + 1);
        want[2 << 20..(2 << 20) + 65536].fill(0);
        below = (path, "qcow2");
    }
    let options = read_write().with_backing_folder(dir.path());
    let guest = Guest::open(&below.0, &options);
    assert!(guest.all() == want);
    guest.write(0, &[77; 512]);
    want[..512].fill(77);
    drop(guest);
    check(&below.0);
    assert!(contents(&below.0) == want);
}

#[test]
fn an_image_that_was_not_closed_is_repaired() {
    let dir = dir();
    for bits in [1, 16, 64] {
        let path = dir.path().join(format!("disk{bits}"));
        let kind = format!("cluster_size=4k,refcount_bits={bits}");
        qemu("qemu-img", &["create", "-f", "qcow2", "-o", &kind, text(&path), "64M"]);
        let guest = Guest::open(&path, &read_write());
        for round in 0..300_u64 {
            guest.write(round * 7919 % 16384 * 4096, &noise(round, 4096));
        }
        guest.disk.flush().unwrap();
        let want = guest.all();
        // Not flushed: it may be lost, and harms nothing.
        for round in 300..400_u64 {
            guest.write(round * 7919 % 16384 * 4096 + 512, &[1; 512]);
        }
        let copy = dir.path().join("copy");
        fs::copy(&path, &copy).unwrap();
        let error = Qcow2::open(&copy, &read_only()).unwrap_err().to_string();
        assert!(error.contains("not closed"), "{error}");
        let again = Guest::open(&copy, &read_write());
        for round in 0..300_u64 {
            let at = round * 7919 % 16384 * 4096;
            assert_eq!(again.read(at, 512), want[at as usize..][..512]);
        }
        again.write(0, &[3; 512]);
        drop(again);
        check(&copy);
        // QEMU repairs such an image too.
        let other = dir.path().join("other");
        fs::copy(&path, &other).unwrap();
        qemu("qemu-img", &["check", "-r", "all", "-f", "qcow2", text(&other)]);
        check(&other);
        drop(guest);
        check(&path);
    }
}
