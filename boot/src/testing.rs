//! What tests have in common.

use std::error::Error;

/// What an error says, and what is behind it.
pub fn chain(error: &dyn Error) -> String {
    match error.source() {
        Some(source) if !error.to_string().contains(&source.to_string()) => {
            format!("{error}: {}", chain(source))
        }
        _ => error.to_string(),
    }
}
