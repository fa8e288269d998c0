//! Runtimes with workers that count.
