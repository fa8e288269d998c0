//! A file tree in memory, written out as an initramfs or as an ext4 image.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::{Context, Result, cpio, process};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

enum Node {
    Directory,
    File { mode: u32, data: Vec<u8> },
    Link { target: String },
    Character { major: u32, minor: u32 },
}

/// Files, folders and links by absolute path; parent folders appear by themselves.
#[derive(Default)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    /// An empty tree.
    pub fn new() -> Tree {
        Tree::default()
    }

    /// Adds or replaces a regular file.
    pub fn file(&mut self, path: &str, mode: u32, data: impl Into<Vec<u8>>) {
        self.put(path, Node::File { mode, data: data.into() });
    }

    /// Adds a file with the content and the permissions of one of the host's.
    ///
    /// # Errors
    /// The host's file cannot be read.
    pub fn copy(&mut self, path: &str, source: &Path) -> Result<()> {
        let data = fs::read(source).context(source.display())?;
        let mode = fs::metadata(source).context(source.display())?.permissions().mode() & 0o7777;
        self.file(path, mode, data);
        Ok(())
    }

    /// Adds a folder.
    pub fn directory(&mut self, path: &str) {
        self.put(path, Node::Directory);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.put(path, Node::Link { target: target.to_owned() });
    }

    /// Adds a character device. Device nodes go into archives only, not into images.
    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.put(path, Node::Character { major, minor });
    }

    fn put(&mut self, path: &str, node: Node) {
        let path = path.trim_matches('/');
        for (end, _) in path.match_indices('/') {
            self.nodes.entry(path[..end].to_owned()).or_insert(Node::Directory);
        }
        self.nodes.insert(path.to_owned(), node);
    }

    /// The tree as an uncompressed newc archive. Archives may be concatenated: what comes later
    /// replaces files of the same name.
    pub fn to_cpio(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for (inode, (path, node)) in (1..).zip(&self.nodes) {
            match node {
                Node::Directory => cpio::entry(&mut out, path, inode, DIRECTORY | 0o755, (0, 0), &[]),
                Node::File { mode, data } => {
                    cpio::entry(&mut out, path, inode, REGULAR | mode, (0, 0), data);
                }
                Node::Link { target } => {
                    cpio::entry(&mut out, path, inode, LINK | 0o777, (0, 0), target.as_bytes());
                }
                Node::Character { major, minor } => {
                    cpio::entry(&mut out, path, inode, CHARACTER_DEVICE | 0o600, (*major, *minor), &[]);
                }
            }
        }
        cpio::trailer(&mut out);
        out
    }

    /// Writes the tree below a folder of the host.
    ///
    /// # Errors
    /// The host refuses one of the files.
    pub fn write_below(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).context(folder.display())?;
        for (path, node) in &self.nodes {
            let place = folder.join(path);
            match node {
                Node::Directory => fs::create_dir_all(&place).context(place.display())?,
                Node::File { mode, data } => {
                    fs::write(&place, data).context(place.display())?;
                    let permissions = fs::Permissions::from_mode(*mode);
                    fs::set_permissions(&place, permissions).context(place.display())?;
                }
                Node::Link { target } => symlink(target, &place).context(place.display())?,
                Node::Character { .. } => {}
            }
        }
        Ok(())
    }

    /// Writes an ext4 image of `size_mib` MiB that holds the tree.
    ///
    /// # Errors
    /// The tree does not fit, or `mke2fs` (package e2fsprogs) is missing.
    pub fn write_ext4(&self, image: &Path, size_mib: u64) -> Result<()> {
        let folder = image.with_extension("tree");
        if folder.exists() {
            fs::remove_dir_all(&folder).context(folder.display())?;
        }
        self.write_below(&folder)?;
        if image.exists() {
            fs::remove_file(image).context(image.display())?;
        }
        let mut make = process::command("mke2fs");
        make.args(["-q", "-F", "-t", "ext4", "-E", "root_owner=0:0", "-d"]);
        process::output(make.arg(&folder).arg(image).arg(format!("{size_mib}M")))?;
        fs::remove_dir_all(&folder).context(folder.display())
    }
}

#[cfg(test)]
mod tests;
