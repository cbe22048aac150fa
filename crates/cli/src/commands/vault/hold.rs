//! `lifeboat vault hold`: recovery points that must not be pruned, until a date or until someone lets go.

use std::path::PathBuf;

use jiff::Timestamp;
use lifeboat_vault::prune::{Hand, Held, Hold, Placed};
use lifeboat_vault::{PointInfo, Vault};
use serde::Serialize;

use crate::commands::points::{dataset_named, point_named, time};
use crate::door::{self, Named, VaultArgs};
use crate::error::{CommandError, Exit, Explain, Kind};
use crate::report;
use crate::ui::Ui;

/// Hold recovery points, so that no prune takes them
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Hold a point, or all points of a data set, those to come included
    Add {
        #[command(flatten)]
        vault: VaultArgs,
        /// All points of this data set
        #[arg(long, value_name = "NAME", required_unless_present = "point", conflicts_with = "point")]
        dataset: Option<String>,
        /// This point: HOST/DATASET/NUMBER, as `points --json` shows it
        #[arg(long, value_name = "ID")]
        point: Option<String>,
        /// Until this day or moment [default: until it is released]
        #[arg(long, value_name = "TIME")]
        until: Option<String>,
        /// Why, for those who come later
        #[arg(long, value_name = "TEXT")]
        why: String,
        /// The owner's key [default: in the name of this machine, as the roster has it]
        #[arg(long, value_name = "FILE")]
        key: Vec<PathBuf>,
    },
    /// Show the holds that stand
    List {
        #[command(flatten)]
        vault: VaultArgs,
    },
    /// Let go: who put the hold there, or the owner
    Release {
        #[command(flatten)]
        vault: VaultArgs,
        /// The hold's number, as `hold list` shows it
        #[arg(value_name = "NUMBER")]
        number: u64,
        /// Why, for those who come later
        #[arg(long, value_name = "TEXT")]
        why: String,
        /// The owner's key
        #[arg(long, value_name = "FILE")]
        key: Vec<PathBuf>,
    },
}

#[derive(Serialize)]
struct Shown<'a> {
    holds: &'a [Hold],
    /// Of the hold that was just put: its number, and for what it may have come too late.
    #[serde(skip_serializing_if = "Option::is_none")]
    placed: Option<&'a Placed>,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    match args.verb {
        Verb::List { vault } => list(&vault.find(ui)?, None, ui),
        Verb::Add { vault, dataset, point, until, why, key } => {
            let named = vault.find(ui)?;
            let until = until.as_deref().map(moment).transpose()?;
            let opened = named.open(ui)?;
            let points = opened.points(None).map_err(CommandError::of_vault)?.points;
            let what = match (dataset, point) {
                (_, Some(id)) => Held::Point(point_or_pruned(&opened, &points, &id)?),
                (dataset, None) => Held::Dataset(dataset_named(&points, &dataset.unwrap_or_default())?),
            };
            let placed = match key.is_empty() {
                true => opened.hold(Hand::Member(&door::state(ui, None)?), &what, until, &why),
                false => opened.hold(Hand::Owner(&named.unlock(&key, ui)?), &what, until, &why),
            }
            .map_err(CommandError::of_vault)?;
            let exit = list(&named, Some(&placed), ui)?;
            Ok(if say_what_is_late(&placed, ui) { Exit::Finding } else { exit })
        }
        Verb::Release { vault, number, why, key } => {
            let named = vault.find(ui)?;
            let opened = named.open(ui)?;
            match key.is_empty() {
                true => opened.release_hold(Hand::Member(&door::state(ui, None)?), number, &why),
                false => opened.release_hold(Hand::Owner(&named.unlock(&key, ui)?), number, &why),
            }
            .map_err(CommandError::of_wish)?;
            list(&named, None, ui)
        }
    }
}

/// A point that is there, or one that was pruned: until it is deleted, a hold brings it back.
fn point_or_pruned(vault: &Vault, points: &[PointInfo], word: &str) -> Result<String, CommandError> {
    let missing = match point_named(points, word) {
        Ok(point) => return Ok(point.id.clone()),
        Err(error) => error,
    };
    let pruned = vault.pruned_points().map_err(CommandError::of_vault)?.into_iter().map(|point| point.id);
    let mut meant = pruned.filter(|id| id == word || id.ends_with(&format!("/{word}")));
    match (meant.next(), meant.next()) {
        (Some(only), None) => Ok(only),
        _ => Err(missing),
    }
}

/// A hold that came when deleting had begun is no promise.
fn say_what_is_late(placed: &Placed, ui: &Ui) -> bool {
    for id in &placed.going {
        ui.alarm(format_args!(
            "deleting {id} had begun when the hold came: it stays if all that it needs is still there, and that shows when the prune is \
             done (`lifeboat vault prune` goes on with it, `lifeboat points` shows what stayed)"
        ));
    }
    for id in &placed.gone {
        ui.alarm(format_args!("{id} was deleted before the hold came; it is in no hold's power to bring it back"));
    }
    !placed.going.is_empty() || !placed.gone.is_empty()
}

fn list(named: &Named, placed: Option<&Placed>, ui: &Ui) -> Result<Exit, CommandError> {
    let vault = named.open(ui)?;
    let (holds, mut findings) = vault.holds().map_err(CommandError::of_vault)?;
    ui.document(&Shown { holds: &holds, placed })?;
    if holds.is_empty() {
        ui.note("nothing is held");
    } else {
        let rows: Vec<Vec<String>> = holds.iter().map(row).collect();
        ui.line(report::table(&["HOLD", "WHAT", "UNTIL", "WHO", "WHY"], &rows).trim_end());
    }
    findings.extend(vault.findings());
    door::show(&findings, ui);
    Ok(door::ends(&findings))
}

fn row(hold: &Hold) -> Vec<String> {
    let what = match &hold.what {
        Held::Dataset(dataset) => format!("all of {dataset}"),
        Held::Point(id) => id.clone(),
    };
    let until = match hold.until {
        Some(until) if hold.has_ended(Timestamp::now()) => format!("{} (ended)", time(until)),
        Some(until) => time(until),
        None => "released".to_owned(),
    };
    vec![hold.number.to_string(), what, until, hold.who.clone(), hold.why.clone()]
}

/// A day (its end, UTC) or a moment.
fn moment(text: &str) -> Result<Timestamp, CommandError> {
    if let Ok(day) = text.parse::<jiff::civil::Date>() {
        let end = day.at(23, 59, 59, 0).to_zoned(jiff::tz::TimeZone::UTC);
        return end.map(|end| end.timestamp()).kind(Kind::Usage).hint("name a day such as 2027-12-31");
    }
    text.parse().map_err(|_| {
        CommandError::usage(format!("--until {text}: this is neither a day nor a moment"))
            .hint("for example 2027-12-31, or 2027-12-31T12:00:00Z")
    })
}
