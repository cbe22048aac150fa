//! A chain: the log of one timeline of one database system from some segment on, as one vault has it.
//!
//! Invariant: a chain goes on only where the vault itself says that it ends; what the server has not kept until there begins another.

use jiff::Timestamp;
use lifeboat_engine::port::{NamedVault, StreamRequest};
use lifeboat_vault::{LogPiece, LogWriter, Position, VaultError};

use super::piece::{Piece, PieceError};
use crate::postgres::lsn::Lsn;

#[derive(Debug, thiserror::Error)]
pub(super) enum ChainError {
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error(transparent)]
    Piece(#[from] PieceError),
}

impl ChainError {
    /// Whether the vault's chain can never be gone on with: something of it is lost or not to be trusted.
    pub(super) fn ends_chain(&self) -> bool {
        matches!(
            self,
            ChainError::Vault(
                VaultError::Damaged { .. }
                    | VaultError::Missing { .. }
                    | VaultError::Untrusted { .. }
                    | VaultError::RolledBack { .. }
            )
        )
    }
}

/// What a chain is of: `SYSTEM-TIMELINE-START` in hexadecimal digits, its lineage in a vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lineage {
    pub(super) system: u64,
    pub(super) timeline: u32,
    pub(super) start: Lsn,
}

impl std::fmt::Display for Lineage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}-{:08x}-{:016x}", self.system, self.timeline, self.start.0)
    }
}

impl Lineage {
    pub(super) fn parse(text: &str) -> Option<Lineage> {
        let mut parts = text.split('-');
        let mut part = |digits: usize| parts.next().filter(|part| part.len() == digits);
        let lineage = Lineage {
            system: u64::from_str_radix(part(16)?, 16).ok()?,
            timeline: u32::from_str_radix(part(8)?, 16).ok()?,
            start: Lsn(u64::from_str_radix(part(16)?, 16).ok()?),
        };
        (lineage.to_string() == text).then_some(lineage)
    }
}

/// A chain, open for appending.
pub(super) struct Chain {
    writer: LogWriter,
    pub(super) lineage: Lineage,
    /// Up to here the vault has it.
    pub(super) shipped: Lsn,
    /// A base backup of this chain is in the vault.
    pub(super) based: bool,
    /// Up to this moment everything committed is in it: what the vault itself says.
    pub(super) as_of: Option<Timestamp>,
    pub(super) is_final: bool,
    is_empty: bool,
}

impl Chain {
    /// The newest chain of this system and timeline under the epoch, if it can be gone on with.
    pub(super) fn newest(
        vault: &NamedVault,
        request: &StreamRequest,
        system: u64,
        timeline: u32,
    ) -> Result<Option<Chain>, ChainError> {
        let lineages = vault.vault.log_lineages(&request.dataset)?;
        let of_it = lineages.iter().filter_map(|text| Lineage::parse(text));
        let newest = of_it.filter(|lineage| (lineage.system, lineage.timeline) == (system, timeline));
        let Some(lineage) = newest.max_by_key(|lineage| lineage.start) else { return Ok(None) };
        let chain = Chain::open(vault, request, lineage)?;
        // Nothing follows a final mark; and times in a chain never go back, so after a clock was set back another begins.
        let is_over = chain.is_final || chain.as_of.is_some_and(|as_of| as_of > Timestamp::now());
        Ok(Some(chain).filter(|chain| !is_over && !chain.is_empty))
    }

    pub(super) fn open(vault: &NamedVault, request: &StreamRequest, lineage: Lineage) -> Result<Chain, ChainError> {
        let writer = vault.vault.log_writer(&request.dataset, &lineage.to_string(), request.epoch)?;
        let last = writer.last().cloned();
        let points = vault.vault.points(Some(&request.dataset))?.points;
        let of_chain =
            |position: &Position| position.lineage == lineage.to_string() && position.timeline == request.epoch;
        let based = points.iter().filter_map(|point| point.position.as_ref()).any(of_chain);
        Ok(Chain {
            writer,
            lineage,
            shipped: last.as_ref().map_or(lineage.start, |last| Lsn(last.last)),
            based,
            as_of: last.as_ref().map(|last| last.source_time),
            is_final: last.as_ref().is_some_and(|last| last.final_mark),
            is_empty: last.is_none(),
        })
    }

    /// Where the next begins that leaves nothing out.
    pub(super) fn is_empty(&self) -> bool {
        self.is_empty
    }

    /// Appends what follows; durable in the vault when it returns. `moment`: everything committed by then lies in it or before.
    pub(super) fn append(&mut self, piece: &Piece, moment: Option<Timestamp>) -> Result<(), ChainError> {
        let end = piece.end();
        let source_time = self.as_of.max(moment).unwrap_or(Timestamp::UNIX_EPOCH);
        let log_piece = LogPiece { first: piece.start.0 + 1, last: end.0, source_time, mark: false, final_mark: false };
        self.writer.append(log_piece, &piece.encode()?)?;
        (self.shipped, self.as_of, self.is_empty) = (end, Some(source_time), false);
        Ok(())
    }

    /// Says that nothing was committed since what was shipped, up to `moment`.
    pub(super) fn mark(&mut self, moment: Timestamp, is_final: bool) -> Result<(), ChainError> {
        let source_time = self.as_of.max(Some(moment)).unwrap_or(moment);
        let at = self.shipped.0;
        self.writer.append(LogPiece { first: at, last: at, source_time, mark: true, final_mark: is_final }, &[])?;
        (self.as_of, self.is_final) = (Some(source_time), is_final);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lineages_are_read_as_they_are_written() {
        let lineage = Lineage { system: 7_412_345_678_901_234_567, timeline: 11, start: Lsn(0x16_b300_0000) };
        assert_eq!(lineage.to_string(), "66ddf11f674f4b87-0000000b-00000016b3000000");
        assert_eq!(Lineage::parse(&lineage.to_string()), Some(lineage));
        for strange in ["", "a-b-c", "66DDF11F674F4B87-0000000b-00000016b3000000", "1-1-1"] {
            assert_eq!(Lineage::parse(strange), None, "{strange}");
        }
    }
}
