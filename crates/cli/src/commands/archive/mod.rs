//! Portable archives: `export` makes one of a recovery point, `import` brings one back.
//!
//! Invariant: what an export says how to restore it by is what its test restores it by.

pub(crate) mod export;
pub(crate) mod import;

use lifeboat_adapters::portable::ProgramError;
use lifeboat_vault::portable::PortableError;

use crate::error::{CommandError, Kind};

fn of_portable(error: PortableError) -> CommandError {
    let kind = match &error {
        PortableError::NotEmpty { .. } => Kind::Refused,
        PortableError::NoSums { .. } => Kind::Usage,
        PortableError::Cancelled => Kind::Interrupted,
        _ => Kind::Failed,
    };
    match error {
        PortableError::Vault(error) => CommandError::of_vault(error),
        other => CommandError::from(other).kind(kind),
    }
}

fn of_program(error: ProgramError) -> CommandError {
    CommandError::from(error)
}
