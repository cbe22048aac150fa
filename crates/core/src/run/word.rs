//! What a person signs: the exact bytes behind an approval and an attestation.
//!
//! Invariant: two different meanings never have the same bytes, so no signature can be used for another run, step,
//! run-book, statement, person or kind of word.

use serde_json::json;

/// What an approval's signature covers.
pub fn approval(run: &str, step: &str, runbook_hash: &str, by: &str, at: &str) -> Vec<u8> {
    json!(["lifeboat approval 1", run, step, runbook_hash, by, at]).to_string().into_bytes()
}

/// What an attestation's signature covers.
pub fn attestation(run: &str, step: &str, statement: &str, by: &str, at: &str) -> Vec<u8> {
    json!(["lifeboat attestation 1", run, step, statement, by, at]).to_string().into_bytes()
}
