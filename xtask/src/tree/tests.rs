use std::process::Stdio;

use super::*;
use crate::{paths, process};

fn sample() -> Tree {
    let mut tree = Tree::new();
    tree.file("/etc/deep/odd", 0o640, "12345");
    tree.file("/init", 0o755, "#!/bin/sh\n");
    tree.link("/bin", "usr/bin");
    tree.directory("/proc");
    tree
}

#[test]
fn other_tools_read_the_archive_back() {
    use std::io::Write;
    let mut cpio = process::command("busybox")
        .args(["cpio", "-tv"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("busybox-static is among the packages that the commands install");
    cpio.stdin.take().unwrap().write_all(&sample().to_cpio()).unwrap();
    let listing = String::from_utf8(cpio.wait_with_output().unwrap().stdout).unwrap();
    let shape: Vec<(&str, &str)> = listing
        .lines()
        .map(|line| (line.split(' ').next().unwrap(), line.rsplit("  ").next().unwrap()))
        .map(|(mode, rest)| (mode, rest.split_once(' ').map_or(rest, |(_, name)| name)))
        .collect();
    assert_eq!(shape.len(), 6, "{listing}");
    assert!(listing.contains("-rw-r-----"), "{listing}");
    assert!(listing.contains("etc/deep/odd"), "{listing}");
    assert!(listing.contains("bin -> usr/bin"), "{listing}");
    assert!(
        listing.lines().any(|line| line.starts_with("drwxr-xr-x") && line.ends_with("etc/deep")),
        "{listing}"
    );
}

#[test]
fn every_header_and_every_content_starts_on_a_word() {
    let archive = sample().to_cpio();
    assert_eq!(archive.len() % 4, 0);
    let headers = (0..archive.len()).step_by(4).filter(|&at| archive[at..].starts_with(b"070701")).count();
    assert_eq!(headers, 7, "six entries and the trailer");
}

#[test]
fn an_ext4_image_holds_the_files() {
    let folder = paths::target().join("xtask-tests");
    fs::create_dir_all(&folder).unwrap();
    let image = folder.join(format!("{}.ext4", std::process::id()));
    sample().write_ext4(&image, 4).unwrap();
    let content = process::text(process::command("debugfs").args(["-R", "cat /etc/deep/odd"]).arg(&image));
    fs::remove_file(&image).unwrap();
    assert_eq!(content.unwrap(), "12345");
}
