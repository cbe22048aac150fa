//! Evidence as a file for programs: the document, the journal that it renders, and the controller's signature.
//!
//! Invariant: what is signed is a short statement in plain text that names the journal by its hash; who verifies
//! rebuilds the document from the journal in the file and trusts nothing that only stands beside it.

use lifeboat_core::run::{BrokenChain, Sealed, ViewError, open_chain};
use lifeboat_vault::sign::{PublicKey, SigningKey};
use serde::{Deserialize, Serialize};

use super::{Evidence, Losses};

/// What the signature is made for, so that it counts for nothing else.
const KIND: &str = "evidence";

/// Larger files are not evidence.
const DOCUMENT_BYTES_MAX: usize = 64 << 20;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    #[serde(flatten)]
    pub evidence: Evidence,
    /// Every entry as it was stored.
    pub journal: Vec<Sealed>,
    pub signature: Signature,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// Exactly what was signed, as an object of the kind `evidence`.
    pub statement: String,
    /// The controller's public key, 64 hex digits.
    pub signer: String,
    /// Ed25519, 128 hex digits.
    pub signature: String,
}

#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("the journal of run {run} is not whole, so no evidence is made of it")]
    Broken {
        run: String,
        #[source]
        source: BrokenChain,
    },
    #[error("the journal of run {run} cannot be shown as a run, so no evidence is made of it")]
    View {
        run: String,
        #[source]
        source: ViewError,
    },
}

/// Why a file is not evidence.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("the file is larger than {DOCUMENT_BYTES_MAX} bytes; it is no evidence of a run")]
    TooLarge,
    #[error("the file is not evidence as this version writes it (JSON)")]
    Unreadable {
        #[source]
        source: serde_json::Error,
    },
    #[error("the journal in the file is not what it was: do not rely on this evidence")]
    Journal {
        #[source]
        source: SealError,
    },
    #[error("what the file says of run {run} does not follow from the journal in it: do not rely on this evidence")]
    Differs { run: String },
    #[error("the signature is not by {signer}, or what it covers was changed: do not rely on this evidence")]
    Signature { signer: String },
}

/// Makes the document of a whole journal and signs it.
pub fn seal(run: &str, journal: Vec<Sealed>, losses: Option<Losses>, key: &SigningKey) -> Result<Document, SealError> {
    let evidence = render(run, &journal, losses)?;
    let statement = statement(&evidence);
    let signature = hex(&key.sign(KIND, statement.as_bytes()));
    let signature = Signature { statement, signer: key.public().to_string(), signature };
    Ok(Document { evidence, journal, signature })
}

pub(super) fn render(run: &str, journal: &[Sealed], losses: Option<Losses>) -> Result<Evidence, SealError> {
    let entries = open_chain(run, journal).map_err(|source| SealError::Broken { run: run.to_owned(), source })?;
    let head = journal.last().map(|last| last.hash.as_str()).unwrap_or_default();
    Evidence::of(&entries, head, losses).map_err(|source| SealError::View { run: run.to_owned(), source })
}

/// What a signature on evidence says, in words.
pub fn statement(evidence: &Evidence) -> String {
    let counted = match &evidence.losses {
        None => "not counted".to_owned(),
        Some(losses) => format!(
            "{} acknowledged, {} present, {} lost, {} wrong, first lost {}, counted {} by {:?}",
            losses.acknowledged,
            losses.present,
            losses.lost,
            losses.wrong,
            losses.first_lost_at.map_or("never".to_owned(), |at| at.to_string()),
            losses.counted_at,
            losses.counted_by
        ),
    };
    format!(
        "lifeboat evidence {}\nrun {:?}\njournal {} with {} entries\nwrites {counted}\nverdict {:?}\n",
        evidence.format, evidence.run, evidence.journal_hash, evidence.journal_entries, evidence.verdict
    )
}

/// Reads a document, rebuilds it from its journal, and checks the signature. Whether `signer` counts is the caller's question.
pub fn verify(text: &[u8]) -> Result<(Document, PublicKey), VerifyError> {
    if text.len() > DOCUMENT_BYTES_MAX {
        return Err(VerifyError::TooLarge);
    }
    let document: Document = serde_json::from_slice(text).map_err(|source| VerifyError::Unreadable { source })?;
    let run = document.evidence.run.clone();
    let again = render(&run, &document.journal, document.evidence.losses.clone())
        .map_err(|source| VerifyError::Journal { source })?;
    if again != document.evidence || statement(&again) != document.signature.statement {
        return Err(VerifyError::Differs { run });
    }
    let refused = || VerifyError::Signature { signer: document.signature.signer.chars().take(64).collect() };
    let signer: PublicKey = document.signature.signer.parse().map_err(|_| refused())?;
    let signature = unhex(&document.signature.signature).ok_or_else(refused)?;
    if !signer.verify(KIND, document.signature.statement.as_bytes(), &signature) {
        return Err(refused());
    }
    Ok((document, signer))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<[u8; 64]> {
    let digits = text.as_bytes();
    if digits.len() != 128 {
        return None;
    }
    let mut bytes = [0; 64];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}
