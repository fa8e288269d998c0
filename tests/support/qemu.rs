//! What QEMU's tools say of images.

use std::path::Path;

use xtask::process;

fn img(words: &[&str], files: &[&Path]) -> Result<String, String> {
    let output = process::command("qemu-img").args(words).args(files).output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    if output.status.success() { Ok(text) } else { Err(text) }
}

/// QEMU finds nothing wrong with a qcow2 image that nobody uses.
#[track_caller]
pub fn is_clean(image: &Path) {
    let text = img(&["check", "-f", "qcow2"], &[image]).unwrap();
    assert!(text.contains("No errors were found"), "{text}");
}

/// Has QEMU repair an image, after which it checks it once more.
#[track_caller]
pub fn repair(image: &Path) {
    img(&["check", "-r", "all", "-f", "qcow2"], &[image]).unwrap();
}

/// The contents of a qcow2 image as a raw file.
#[track_caller]
pub fn to_raw(image: &Path, raw: &Path) {
    img(&["convert", "-f", "qcow2", "-O", "raw"], &[image, raw]).unwrap();
}

/// A qcow2 image and a raw file have the same contents.
#[track_caller]
pub fn is_same(image: &Path, raw: &Path) {
    img(&["compare", "-f", "qcow2", "-F", "raw"], &[image, raw]).unwrap();
}

/// The same, where `qemu-nbd` reads the image.
#[track_caller]
pub fn is_same_over_nbd(image: &Path, raw: &Path) {
    let socket = image.with_extension("nbd");
    let mut server = process::command("qemu-nbd");
    server.args(["--read-only", "--fork", "--format", "qcow2", "--socket"]).arg(&socket).arg(image);
    process::output(&mut server).unwrap();
    // It ends when its only client has gone.
    let url = format!("nbd+unix:///?socket={}", socket.display());
    img(&["compare", "-f", "raw", "-F", "raw", &url], &[raw]).unwrap();
}
