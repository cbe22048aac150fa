//! `lifeboat vault stat` and `lifeboat vault check`.

use std::path::PathBuf;

use lifeboat_core::units::Size;
use lifeboat_vault::{
    Badge, CheckOptions, CheckReport, DatasetStat, PointInfo, Sample, SampleWish, Severity, Unlocked, Vault,
    VaultError, Witness,
};
use serde::Serialize;

use crate::commands::points::time;
use crate::door::{self, Named, VaultArgs, WitnessArgs};
use crate::error::{CommandError, Exit};
use crate::interrupt;
use crate::report;
use crate::ui::Ui;

/// Show what lies in a vault, and who owns it
#[derive(Debug, clap::Args)]
pub(crate) struct StatArgs {
    #[command(flatten)]
    vault: VaultArgs,
}

/// Check a vault: its structure without keys, its contents with them
///
/// Ends with exit code 3 if anything is lost, damaged, forged, rolled back or not as it should be.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    vault: VaultArgs,
    #[command(flatten)]
    witness: WitnessArgs,
    /// A key that opens the vault: what is sealed is checked, too; may be given several times
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// Read every pack: against its name without a key, every chunk against its id with one; then, where this host may
    /// write and all is well, recovery points are marked as verified
    #[arg(long)]
    read_data: bool,
    /// As --read-data, for a part of the packs: 5% reads the next twentieth, so that after twenty times everything was
    /// read; 3/20 reads that part
    #[arg(long, value_name = "SHARE", conflicts_with = "read_data")]
    sample: Option<SampleWish>,
}

#[derive(Serialize)]
struct Checked<'a> {
    sound: bool,
    with_key: bool,
    read_data: bool,
    /// Recovery points that are verified from now on.
    marked: u64,
    /// Recovery points that are corrupt from now on, and packs that are new on their hosts' heal lists.
    marked_corrupt: u64,
    listed: u64,
    /// Who was asked whether the vault is fresh, and what they prove.
    witnesses: Vec<Witness>,
    #[serde(flatten)]
    report: &'a CheckReport,
}

pub(crate) fn stat(args: StatArgs, ui: &Ui) -> Result<Exit, CommandError> {
    let vault = args.vault.find(ui)?.open(ui)?;
    let stat = vault.stat().map_err(CommandError::of_vault)?;
    ui.line(format_args!("vault {} at {}", stat.vault, vault.storage().location()));
    ui.line(format_args!("owner {}", stat.owner));
    ui.line(format_args!(
        "{}, roster version {}, {}, {}",
        report::counted(stat.recipients as u64, "recipient"),
        stat.roster_version,
        report::counted(stat.objects, "object"),
        Size(stat.bytes).rounded()
    ));
    if !stat.datasets.is_empty() {
        let rows: Vec<Vec<String>> = stat.datasets.iter().map(row).collect();
        ui.line(report::table(&["DATA SET", "POINTS", "NEWEST", "SIZE", "STORED"], &rows).trim_end());
    }
    ui.document(&stat)?;
    let findings = vault.findings();
    door::show(&findings, ui);
    Ok(door::ends(&findings))
}

fn row(dataset: &DatasetStat) -> Vec<String> {
    vec![
        dataset.dataset.clone(),
        dataset.points.to_string(),
        dataset.newest.map(time).unwrap_or_default(),
        Size(dataset.bytes).rounded(),
        Size(dataset.bytes_stored).rounded(),
    ]
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let named = args.vault.find(ui)?.against(&args.witness);
    let options = CheckOptions { read_data: args.read_data };
    let cancel = interrupt::listen(ui)?;
    let waiting = ui.waiting("checking");
    let with_key = !args.key.is_empty();
    let mut marked = 0;
    let mut unlocked = None;
    let opened;
    let report = match with_key {
        false => {
            let vault = named.open(ui)?;
            named.ask_others(&vault, ui)?;
            opened = vault.clone();
            opened.stop_on(cancel.shared());
            look(&vault, args.sample, &|part| match part {
                Some(part) => vault.check_sample(part),
                None => vault.check(options),
            })?
        }
        true => {
            let unlocked = unlocked.insert(named.unlock(&args.key, ui)?);
            named.ask_others(unlocked, ui)?;
            opened = Vault::clone(unlocked);
            opened.stop_on(cancel.shared());
            let report = look(unlocked, args.sample, &|part| match part {
                Some(part) => unlocked.check_sample(part),
                None => unlocked.check(options),
            })?;
            if args.read_data && report.is_sound() {
                marked = mark_verified(&named, unlocked, &report, ui)?;
            }
            report
        }
    };
    let (marked_corrupt, listed) = match report.bad_objects().is_empty() {
        true => (0, 0),
        false => super::heal::mark_bad(&named, unlocked.as_ref(), &report, ui)?,
    };
    drop(waiting);
    let read_data = args.read_data || args.sample.is_some();
    let sound = report.is_sound();
    let witnesses = opened.witnesses();
    ui.document(&Checked { sound, with_key, read_data, marked, marked_corrupt, listed, witnesses, report: &report })?;
    door::show(&report.findings, ui);
    ui.line(format_args!(
        "{}, {}, {}",
        report::counted(report.points, "recovery point"),
        report::counted(report.packs, "pack"),
        report::counted(report.log_objects, "log object"),
    ));
    ui.line(depth(&report, with_key, read_data));
    if marked > 0 {
        ui.line(format_args!("{} marked as verified", report::counted(marked, "recovery point")));
    }
    if marked_corrupt > 0 {
        ui.line(format_args!("{} marked as corrupt", report::counted(marked_corrupt, "recovery point")));
    }
    if listed > 0 {
        let packs = report::counted(listed, "bad pack");
        ui.line(format_args!("{packs} put on the heal list: the next backups store them again (see `vault heal`)"));
    }
    ui.line(door::freshness(&opened, &report.findings));
    let stands = report.findings.iter().filter(|finding| finding.severity != Severity::Note).count();
    ui.line(match (stands, sound) {
        (0, _) => "nothing wrong found".to_owned(),
        (1, true) => "1 finding, nothing lost or damaged".to_owned(),
        (count, true) => format!("{count} findings, nothing lost or damaged"),
        (1, false) => "1 finding".to_owned(),
        (count, false) => format!("{count} findings"),
    });
    Ok(if stands == 0 { Exit::Done } else { Exit::Finding })
}

/// Checks all, or the part whose turn it is, and ends that turn.
fn look(
    vault: &Vault,
    wish: Option<SampleWish>,
    check: &dyn Fn(Option<Sample>) -> Result<CheckReport, VaultError>,
) -> Result<CheckReport, CommandError> {
    let part = wish.map(|wish| vault.sample(wish)).transpose().map_err(CommandError::of_vault)?;
    let report = check(part).map_err(CommandError::of_vault)?;
    if let Some(part) = part {
        vault.sample_read(part).map_err(CommandError::of_vault)?;
    }
    Ok(report)
}

/// Everything of the data sets that the keys open was read and is right: says so in the vault, where this host may write to
/// it. Where it may not, the check itself is no less worth.
fn mark_verified(named: &Named, unlocked: &Unlocked, report: &CheckReport, ui: &Ui) -> Result<u64, CommandError> {
    let Ok(host) = named.open_as_host(ui) else { return Ok(0) };
    let unread = unlocked.unread_points(report).map_err(CommandError::of_vault)?;
    let opened = unlocked.datasets();
    let points = unlocked.points(None).map_err(CommandError::of_vault)?.points;
    let mut marked = 0;
    let was_read =
        |point: &&PointInfo| opened.contains(&point.dataset) && unread.iter().all(|other| other.id != point.id);
    for point in points.iter().filter(|point| point.badge != Badge::Verified).filter(was_read) {
        if let Err(error) = host.record_verification(point, Badge::Verified, "every chunk read") {
            ui.note(format_args!("the points cannot be marked as verified: {}", CommandError::of_vault(error).message));
            return Ok(marked);
        }
        marked += 1;
    }
    Ok(marked)
}

/// How deep the check went, and what it left out.
fn depth(report: &CheckReport, with_key: bool, read_data: bool) -> String {
    if let Some(sample) = report.sample {
        return format!("{} read, {sample}", read(report));
    }
    match (with_key, read_data) {
        (false, false) => "structure checked; contents not read (--read-data), nothing opened (--key FILE)".to_owned(),
        (false, true) => format!("{} read against packs' names; nothing opened (--key FILE)", read(report)),
        (true, false) => "structure and recovery points checked; contents not read (--read-data)".to_owned(),
        (true, true) => {
            format!("{} and {} read and verified", read(report), report::counted(report.chunks_read, "chunk"))
        }
    }
}

fn read(report: &CheckReport) -> String {
    Size(report.bytes_read).rounded()
}
