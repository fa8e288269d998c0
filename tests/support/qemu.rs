//! What QEMU's tools say of images.

use std::path::Path;

use xtask::process;

fn img(words: &[&str], files: &[&Path]) -> Result<String, String> {
    let output = process::command("qemu-img").args(words).args(files).output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    if output.status.success() { Ok(text) } else { Err(text) }
}

/// Whether `qemu-img check` likes a qcow2 image that nobody uses, and what it says.
pub fn check(image: &Path) -> (bool, String) {
    match img(&["check", "-f", "qcow2"], &[image]) {
        Ok(text) => (text.contains("No errors were found"), text),
        Err(text) => (false, text),
    }
}

#[track_caller]
pub fn is_clean(image: &Path) {
    let (clean, text) = check(image);
    assert!(clean, "{text}");
}

/// Has QEMU repair an image, and find nothing wrong with it then.
#[track_caller]
pub fn repair(image: &Path) {
    img(&["check", "-r", "all", "-f", "qcow2"], &[image]).unwrap();
    is_clean(image);
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
