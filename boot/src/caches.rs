//! The caches of a machine's processors, where guests learn of them from tables.

/// The caches of a machine's processors, as tables of aarch64 tell guests of them. On x86_64, CPUID does.
///
/// Each processor has those of the first level, and those in [`own`](Self::own), for itself; all of a package have those in
/// [`shared`](Self::shared) together: all of the machine, or of a NUMA node.
///
/// ```
/// use ossature_boot::{Cache, Caches};
/// let caches = Caches::new(Cache::new(64 << 10).lines(64, 256), Cache::new(64 << 10).lines(64, 256))
///     .own(Cache::new(1 << 20).lines(64, 2048))
///     .shared(Cache::new(32 << 20));
/// assert_eq!(caches.check(), Ok(()));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Caches {
    /// Of the first level, for data.
    pub data: Cache,
    /// Of the first level, for instructions.
    pub instruction: Cache,
    /// Of the second level and further ones, for both, that each processor has for itself: the nearest first.
    pub own: Vec<Cache>,
    /// Of the levels behind, for both, that all processors of a package share.
    pub shared: Vec<Cache>,
}

/// One of the [`Caches`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Cache {
    /// Bytes.
    pub size: u32,
    /// Bytes of a line and number of sets, if they are known.
    pub lines: Option<(u32, u32)>,
}

/// Why caches cannot be described.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// More levels than a processor of this architecture can have.
    #[error("the caches have {levels} levels; {MAX_LEVELS} are possible")]
    Levels {
        /// How many there are.
        levels: usize,
    },
    /// A cache that cannot be.
    #[error(
        "{cache:?} of level {level} is none: its size has to be a multiple of lines (a power of two from 4 to 32768 \
         bytes) times sets, and none of them zero"
    )]
    Size {
        /// Its level.
        level: usize,
        /// The cache.
        cache: Cache,
    },
}

/// What CLIDR_EL1 has room for.
const MAX_LEVELS: usize = 7;
/// The longest line: ACPI has 16 bits for it.
const MAX_LINE: u32 = 0x8000;

impl Caches {
    /// With these of the first level and no others.
    pub const fn new(data: Cache, instruction: Cache) -> Self {
        Self { data, instruction, own: Vec::new(), shared: Vec::new() }
    }

    /// Behind those that each processor has for itself, with another one.
    #[must_use]
    pub fn own(mut self, cache: Cache) -> Self {
        self.own.push(cache);
        self
    }

    /// Behind all others, with one that all processors of a package share.
    #[must_use]
    pub fn shared(mut self, cache: Cache) -> Self {
        self.shared.push(cache);
        self
    }

    /// Fails if no processor can have them.
    pub fn check(&self) -> Result<(), CacheError> {
        let levels = 1 + self.own.len() + self.shared.len();
        if levels > MAX_LEVELS {
            return Err(CacheError::Levels { levels });
        }
        let first = [(1, &self.data), (1, &self.instruction)];
        match first
            .into_iter()
            .chain((2..).zip(self.own.iter().chain(&self.shared)))
            .find(|(_, c)| !c.is_valid())
        {
            Some((level, &cache)) => Err(CacheError::Size { level, cache }),
            None => Ok(()),
        }
    }
}

impl Cache {
    /// One of so many bytes.
    pub const fn new(size: u32) -> Self {
        Self { size, lines: None }
    }

    /// With lines of so many bytes, in so many sets.
    #[must_use]
    pub const fn lines(mut self, line_size: u32, sets: u32) -> Self {
        self.lines = Some((line_size, sets));
        self
    }

    /// Lines in each set, where they are known.
    pub(crate) fn ways(&self) -> Option<u32> {
        let (line_size, sets) = self.lines?;
        self.size.checked_div(line_size.checked_mul(sets)?)
    }

    /// Returns true if there can be such a cache.
    pub fn is_valid(&self) -> bool {
        let whole = match self.lines {
            None => true,
            Some((line_size, sets)) => {
                line_size.is_power_of_two()
                    && (4..=MAX_LINE).contains(&line_size)
                    && line_size.checked_mul(sets).is_some_and(|way| way > 0 && self.size.is_multiple_of(way))
            }
        };
        self.size > 0 && whole
    }
}

#[cfg(test)]
mod tests;
