//! `bench vault`: first backup, unchanged again, changed, restored; every tool in turn, round after round.
//!
//! Invariant: a tool whose restore differs from the source has no results at all, and its round is not kept.

use std::collections::BTreeMap;

use super::data::{self, Change, Data};
use super::measure::{Took, bytes_below, occupied_below, touch_memory};
use super::peers::{self, Repository, Tool};
use super::rounds::Rounds;
use super::{Asked, place, remove};

/// Figures of one tool, by name, a value a round.
pub(super) type Figures = BTreeMap<String, Vec<f64>>;

pub(super) fn run(asked: &Asked) -> Result<(), String> {
    let tools: Vec<Tool> = peers::ALL.into_iter().filter(|tool| Asked::wants(&asked.tools, tool.name())).collect();
    let wanted: Vec<Data> = data::ALL.into_iter().filter(|data| Asked::wants(&asked.data, data.name())).collect();
    if tools.is_empty() || wanted.is_empty() {
        return Err("there is no such tool, or no such data".to_owned());
    }
    peers::prepare(&tools)?;
    for data in wanted {
        measure(data, &tools, asked.runs)?;
        remove(&place().join("data").join(data.name()))?;
    }
    Ok(())
}

/// Adds the rounds that are missing to those that were kept.
fn measure(data: Data, tools: &[Tool], runs: usize) -> Result<(), String> {
    let source = data.prepare()?;
    let occupied = occupied_below(&source)?;
    let contestants = tools.iter().map(|tool| tool.contestant()).collect::<Result<Vec<_>, String>>()?;
    let complete = tools.len() == peers::ALL.len();
    let mut rounds = Rounds::open(data.name(), &data.describe(&source)?, contestants, complete)?;
    println!("{}: {} of {runs} rounds are there", data.name(), rounds.count());
    while rounds.count() < runs {
        let mut round = vec![Figures::new(); tools.len()];
        rounds.begin();
        // Each round begins with another tool, so that none always comes after the same.
        for turn in 0..tools.len() {
            let index = (turn + rounds.count()) % tools.len();
            let (Some(tool), Some(figures)) = (tools.get(index), round.get_mut(index)) else { continue };
            take_turn(data, *tool, (&source, occupied), figures)
                .map_err(|error| format!("{}, {}: {error}", tool.name(), data.name()))?;
            rounds.ended_turn(runs, tool.name(), figures);
        }
        rounds.keep(round)?;
    }
    Ok(())
}

fn take_turn(
    data: Data,
    tool: Tool,
    (source, occupied): (&std::path::Path, u64),
    figures: &mut Figures,
) -> Result<(), String> {
    let touch = || touch_memory(&place(), occupied);
    let mut note = |name: &str, value: f64| figures.entry(name.to_owned()).or_default().push(value);
    let mut repository = Repository::make(tool, &place().join("repository"))?;
    let mut memory: f64 = 0.0;
    let mut took = |name: &str, took: Took, note: &mut dyn FnMut(&str, f64)| {
        note(name, took.seconds);
        note(&format!("{name}-cpu"), took.cpu_seconds);
        memory = memory.max(took.memory_mb);
    };
    touch()?;
    took("first", repository.backup(source, 1)?, &mut note);
    let mut stored = bytes_below(&repository.stored())?;
    note("stored", stored as f64 / 1e6);
    if !tool.is_floor() {
        touch()?;
        took("again", repository.backup(source, 2)?, &mut note);
        note("again-stored", (bytes_below(&repository.stored())?.saturating_sub(stored)) as f64 / 1e6);
    }
    if data == Data::Database && !tool.is_floor() {
        for (change, name) in [(Change::Clustered, "clustered"), (Change::Scattered, "scattered")] {
            stored = bytes_below(&repository.stored())?;
            data::change(source, change, false)?;
            touch()?;
            took(name, repository.backup(source, 3 + change as usize)?, &mut note);
            note(&format!("{name}-stored"), (bytes_below(&repository.stored())?.saturating_sub(stored)) as f64 / 1e6);
        }
    }
    let to = place().join("restored");
    touch()?;
    let (restored, restore_took) = repository.restore(source, &to)?;
    note("restore", restore_took.seconds);
    note("restore-cpu", restore_took.cpu_seconds);
    note("restore-memory", restore_took.memory_mb);
    note("backup-memory", memory);
    let same = data::compare(source, &restored);
    if data == Data::Database && !tool.is_floor() {
        data::change(source, Change::Scattered, true)?;
        data::change(source, Change::Clustered, true)?;
    }
    remove(&to)?;
    remove(&place().join("repository"))?;
    same
}
