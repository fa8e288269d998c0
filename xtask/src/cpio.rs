//! Writer of the "newc" cpio format, which Linux unpacks as its initial file system
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

/// Appends one entry. `mode` holds the file type and the permissions; for a symbolic link `data` is
/// its target. `device` is the (major, minor) number of a device node.
pub fn entry(out: &mut Vec<u8>, name: &str, inode: u32, mode: u32, device: (u32, u32), data: &[u8]) {
    let links = 1;
    let size = data.len() as u32;
    let name_size = name.len() as u32 + 1;
    let fields = [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(data);
    pad(out);
}

/// Ends an archive. Another archive may follow it: Linux unpacks one after the other.
pub fn trailer(out: &mut Vec<u8>) {
    entry(out, "TRAILER!!!", 0, 0, (0, 0), &[]);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}
