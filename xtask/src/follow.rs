//! Files that another process writes, passed on while they grow.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use crate::{Context, Result};

/// A file, and where its content goes.
pub struct Follow<'a> {
    file: File,
    to: &'a mut dyn Write,
}

impl<'a> Follow<'a> {
    /// Makes the file, empty.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(path: &Path, to: &'a mut dyn Write) -> Result<Follow<'a>> {
        File::create(path).context(path.display())?;
        Ok(Follow { file: File::open(path).context(path.display())?, to })
    }

    /// Passes on what is new; returns true if there was anything.
    ///
    /// # Errors
    /// The reader of what is passed on has gone.
    pub fn pass_on(&mut self) -> io::Result<bool> {
        let mut buffer = [0; 65536];
        let mut any = false;
        while let Ok(length @ 1..) = self.file.read(&mut buffer) {
            any = true;
            self.to.write_all(&buffer[..length]).and_then(|()| self.to.flush())?;
        }
        Ok(any)
    }
}
