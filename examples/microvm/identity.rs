//! What tells a guest which of several it is: a generation ID.

use ossature::boot::x86_64::smbios::Uuid;
use ossature::legacy::GenerationId;

/// `auto`, or a UUID.
pub fn generation(text: &str) -> std::result::Result<GenerationId, String> {
    match text {
        "auto" => GenerationId::random().map_err(|e| e.to_string()),
        uuid => uuid.parse().map(|uuid: Uuid| GenerationId(uuid.0)).map_err(|e| format!("{e}, or auto")),
    }
}
