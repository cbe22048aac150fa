//! `lifeboat vault`: makes a vault, looks after it, and decides who writes to it and who opens it.
//!
//! Invariant: whatever changes the roster or the recipients is done with the owner's key, and is said.

mod accept;
mod check;
mod copy;
mod doctor;
mod enroll;
mod freeze;
mod heal;
mod hold;
mod init;
mod leave;
mod lock;
mod prune;
mod recipients;
mod serve;

use crate::error::{CommandError, Exit};
use crate::ui::Ui;

/// Make a vault, look after it, and say who writes to it and who opens it
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    Init(init::Args),
    Stat(check::StatArgs),
    Check(check::Args),
    Doctor(doctor::Args),
    Enroll(enroll::Args),
    Members(leave::MembersArgs),
    Revoke(leave::RevokeArgs),
    Rotate(leave::RotateArgs),
    Recipients(recipients::Args),
    Serve(serve::Args),
    Copy(copy::Args),
    Prune(Box<prune::Args>),
    Lock(lock::Args),
    Freeze(freeze::Args),
    Hold(hold::Args),
    Heal(heal::Args),
    Accept(accept::Args),
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    match args.verb {
        Verb::Init(args) => init::run(args, ui),
        Verb::Stat(args) => check::stat(args, ui),
        Verb::Check(args) => check::run(args, ui),
        Verb::Doctor(args) => doctor::run(args, ui),
        Verb::Enroll(args) => enroll::run(args, ui),
        Verb::Members(args) => leave::members(&args, ui),
        Verb::Revoke(args) => leave::revoke(&args, ui),
        Verb::Rotate(args) => leave::rotate(&args, ui),
        Verb::Recipients(args) => recipients::run(args, ui),
        Verb::Serve(args) => serve::run(args, ui),
        Verb::Copy(args) => copy::run(args, ui),
        Verb::Prune(args) => prune::run(*args, ui),
        Verb::Lock(args) => lock::run(&args, ui),
        Verb::Freeze(args) => freeze::run(args, ui),
        Verb::Hold(args) => hold::run(args, ui),
        Verb::Heal(args) => heal::run(args, ui),
        Verb::Accept(args) => accept::run(args, ui),
    }
}
