//! A value that is replaced as a whole and read without locks, and the proof that no thread reads the old one.
//!
//! Values are numbered by generations. A [`Reader`] keeps a copy of the value it read last and looks at one counter
//! to learn that there is a newer one. When it has copied the newer one it drops the old copy, and then writes down
//! in its own [`Seat`] how far it has come. A generation is *passed* when each live reader has come at least
//! that far: then no reader has, or can ever again get, a value from before.

use crate::sync::{Arc, AtomicU64, AtomicUsize, Condvar, Mutex, Ordering, Swap, fence, lock};

struct Versioned<T> {
    generation: u64,
    value: T,
}

/// Where the value is replaced.
pub(crate) struct Publisher<T> {
    /// Of the value in `current`; stored after it.
    generation: AtomicU64,
    current: Swap<Versioned<T>>,
    /// How far each live reader has come.
    seats: Mutex<Vec<Arc<AtomicU64>>>,
    /// Threads that wait for a seat to move on.
    waiting: AtomicUsize,
    moved: Condvar,
}

impl<T> Publisher<T> {
    /// Publishes `value` as the first generation.
    pub(crate) fn new(value: T) -> Self {
        Self {
            generation: AtomicU64::new(0),
            current: Swap::new(Arc::new(Versioned { generation: 0, value })),
            seats: Mutex::new(Vec::new()),
            waiting: AtomicUsize::new(0),
            moved: Condvar::new(),
        }
    }

    /// Calls `f` with the current value.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&T) -> R) -> R {
        f(&self.current.load().value)
    }

    /// Replaces the value and returns the new one's generation. One thread at a time: callers hold a lock.
    pub(crate) fn publish(&self, value: T) -> u64 {
        let generation = self.generation.load(Ordering::Relaxed) + 1;
        self.current.store(Arc::new(Versioned { generation, value }));
        self.generation.store(generation, Ordering::Release);
        generation
    }

    /// Returns true if no reader has a value from before `generation`, which has been published.
    pub(crate) fn is_passed(&self, generation: u64) -> bool {
        Self::all_passed(&lock(&self.seats), generation)
    }

    fn all_passed(seats: &[Arc<AtomicU64>], generation: u64) -> bool {
        seats.iter().all(|seat| seat.load(Ordering::Acquire) >= generation)
    }

    /// Returns when `generation` is passed.
    pub(crate) fn wait(&self, generation: u64) {
        // A reader stores its seat and then looks for waiters; we announce ourselves and then look at the seats.
        // With the fences in between, one of the two sees the other.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let mut seats = lock(&self.seats);
        while !Self::all_passed(&seats, generation) {
            seats = self.moved.wait(seats).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        drop(seats);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A reader's entry in [`Publisher::seats`].
struct Seat<T> {
    publisher: Arc<Publisher<T>>,
    passed: Arc<AtomicU64>,
}

impl<T> Seat<T> {
    fn pass(&self, generation: u64) {
        self.passed.store(generation, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.publisher.waiting.load(Ordering::Relaxed) != 0 {
            // With the lock, so that a waiter that has looked already is asleep by now.
            let _seats = lock(&self.publisher.seats);
            self.publisher.moved.notify_all();
        }
    }
}

impl<T> Drop for Seat<T> {
    fn drop(&mut self) {
        lock(&self.publisher.seats).retain(|seat| !Arc::ptr_eq(seat, &self.passed));
        self.publisher.moved.notify_all();
    }
}

/// One thread's access to the current value: a copy of it, in whatever form the reader likes best. The copy is the
/// reader's own, to be changed as well; it is made anew for each generation.
pub(crate) struct Reader<T, C> {
    // Before the seat: the copy must be gone when the seat is given up.
    copy: C,
    generation: u64,
    seat: Seat<T>,
}

impl<T, C: for<'a> From<&'a T>> Reader<T, C> {
    pub(crate) fn new(publisher: Arc<Publisher<T>>) -> Self {
        // In one step for `is_passed`: either it sees the seat, or the value is newer than what it asks about.
        let mut seats = lock(&publisher.seats);
        let current = publisher.current.load();
        let generation = current.generation;
        let passed = Arc::new(AtomicU64::new(generation));
        seats.push(passed.clone());
        drop(seats);
        Self { copy: C::from(&current.value), generation, seat: Seat { publisher, passed } }
    }

    /// The copy of the current value. Without a newer one, reads one counter that all readers share and writes
    /// nothing.
    #[inline]
    pub(crate) fn get(&mut self) -> &mut C {
        if self.seat.publisher.generation.load(Ordering::Acquire) != self.generation {
            self.refresh();
        }
        &mut self.copy
    }

    #[cold]
    #[inline(never)]
    fn refresh(&mut self) {
        let current = self.seat.publisher.current.load();
        self.copy = C::from(&current.value);
        self.generation = current.generation;
        drop(current);
        self.seat.pass(self.generation);
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests;

#[cfg(loom)]
#[cfg(test)]
mod loom_tests;
