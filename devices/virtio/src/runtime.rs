//! The runtimes that host workers: a shared thread, a thread each, or the caller's.

mod engine;
mod inline;
#[cfg(test)]
mod tests;
mod threads;

pub use inline::Inline;
pub use threads::{DedicatedThread, SharedLoop};
