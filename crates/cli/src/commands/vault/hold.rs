//! `lifeboat vault hold`: recovery points that must not be pruned, until a date or until someone lets go.

use std::path::PathBuf;

use jiff::Timestamp;
use lifeboat_vault::prune::{Hand, Held, Hold};
use serde::Serialize;

use crate::commands::points::{dataset_named, time};
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
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    match args.verb {
        Verb::List { vault } => list(&vault.find(ui)?, ui),
        Verb::Add { vault, dataset, point, until, why, key } => {
            let named = vault.find(ui)?;
            let until = until.as_deref().map(moment).transpose()?;
            let opened = named.open(ui)?;
            let points = opened.points(None).map_err(CommandError::of_vault)?.points;
            let what = match (dataset, point) {
                (_, Some(id)) if points.iter().any(|point| point.id == id) => Held::Point(id),
                (_, Some(id)) => {
                    return Err(CommandError::usage(format!("the vault has no recovery point {id}"))
                        .hint("`lifeboat points --json` lists their ids"));
                }
                (dataset, None) => Held::Dataset(dataset_named(&points, &dataset.unwrap_or_default())?),
            };
            match key.is_empty() {
                true => opened.hold(Hand::Member(&door::state(ui, None)?), &what, until, &why),
                false => opened.hold(Hand::Owner(&named.unlock(&key, ui)?), &what, until, &why),
            }
            .map_err(CommandError::of_vault)?;
            list(&named, ui)
        }
        Verb::Release { vault, number, why, key } => {
            let named = vault.find(ui)?;
            let opened = named.open(ui)?;
            match key.is_empty() {
                true => opened.release_hold(Hand::Member(&door::state(ui, None)?), number, &why),
                false => opened.release_hold(Hand::Owner(&named.unlock(&key, ui)?), number, &why),
            }
            .map_err(CommandError::of_wish)?;
            list(&named, ui)
        }
    }
}

fn list(named: &Named, ui: &Ui) -> Result<Exit, CommandError> {
    let vault = named.open(ui)?;
    let (holds, mut findings) = vault.holds().map_err(CommandError::of_vault)?;
    ui.document(&Shown { holds: &holds })?;
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
