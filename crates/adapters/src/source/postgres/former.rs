//! What a former primary left behind, set aside by its site: the beginning of a standby, and what it committed that nobody else has.
//!
//! Invariant: what was set aside is only read. Work goes on in a clone of it, and what could not be told of it is said, never passed over.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use lifeboat_engine::port::Cancel;

use super::facts::Facts;
use super::recover::{REPLAY_WITHIN, RecoverError, STOP_WITHIN, run};
use crate::postgres::control::Control;
use crate::postgres::lsn::{Lsn, parse_history};
use crate::postgres::programs::Programs;
use crate::postgres::server::{Server, Start, Stop, end_left_behind};
use crate::postgres::session::{Purpose, Session, literal};

/// How sites name what they move away: `NAME.aside-EPOCH-TIME`.
const ASIDE: &str = ".aside-";
/// Beside it: what only it has.
const LOST: &str = ".lost-writes.jsonl";
/// What a clone is called until it is of use, before a number that no other has.
const COPY: &str = ".clone-";
const ROWS_AT_ONCE: usize = 1000;
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A directory that was set aside, and whose it is.
#[derive(Debug)]
pub(super) struct Former {
    path: PathBuf,
    control: Control,
}

/// What was committed after the timelines parted.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) commits: u64,
    pub(super) rows: u64,
    /// Tuples that those transactions deleted, or replaced by newer ones; they are in none of the files.
    pub(super) deletes: u64,
    pub(super) file: PathBuf,
}

/// What its log says of the time after a place.
#[derive(Debug, Default)]
struct After {
    commits: BTreeSet<u32>,
    count: u64,
    deletes: u64,
    /// Database and relation's file, of ordinary tables and whatever else was written to; and which blocks of it were.
    relations: BTreeMap<(u32, u32), BTreeSet<u32>>,
}

/// In more blocks than so many, rows are not looked for one by one.
const BLOCKS_MAX: usize = 2000;

impl Former {
    /// The newest of them beside `to` that is of the same database system.
    pub(super) async fn beside(to: &Path, programs: &Programs, facts: &Facts) -> Result<Option<Former>, RecoverError> {
        let (Some(directory), Some(name)) = (to.parent(), to.file_name()) else { return Ok(None) };
        let mut begin = name.to_os_string();
        begin.push(ASIDE);
        let listed = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            listed => listed.map_err(RecoverError::file("read", directory))?,
        };
        let mut found: Vec<PathBuf> = Vec::new();
        for entry in listed {
            let entry = entry.map_err(RecoverError::file("read", directory))?;
            let begins = entry.file_name().as_encoded_bytes().starts_with(begin.as_encoded_bytes());
            if begins && super::PostgresSource::is_cluster(&entry.path()) {
                found.push(entry.path());
            }
        }
        // The name's end is the time.
        found.sort_by_key(|path| path.to_string_lossy().rsplit('-').next().map(str::to_owned));
        let system = facts.system()?;
        for path in found.into_iter().rev() {
            // Tablespaces lie elsewhere, and would be shared with the clone.
            let has_tablespaces =
                fs::read_dir(path.join("pg_tblspc")).is_ok_and(|mut entries| entries.next().is_some());
            match Control::read(programs, &path).await {
                Ok(control) if control.system_id == system && !has_tablespaces => {
                    return Ok(Some(Former { path, control }));
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(path = %path.display(), %error, "what was set aside cannot be used"),
            }
        }
        Ok(None)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn control(&self) -> &Control {
        &self.control
    }

    /// What it is told apart from others by.
    pub(super) fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Copies it beside `work`, sharing what the file system can share.
    pub(super) fn copy(&self, work: &Path, cancel: &Cancel) -> Result<Draft, RecoverError> {
        Draft::remove_old(work)?;
        // Whatever an interrupted process left at work goes on in a copy of its own.
        let draft = Draft(super::files::beside(work, &format!("{COPY}{:x}", rand::random::<u64>())));
        self.copy_part(&self.path, &draft.0, cancel)?;
        let log = draft.0.join("pg_wal");
        if fs::symlink_metadata(&log).is_ok_and(|seen| seen.is_symlink()) {
            // It leads to what was set aside.
            fs::remove_file(&log).map_err(RecoverError::file("replace", &log))?;
            self.copy_part(&self.path.join("pg_wal/."), &log, cancel)?;
        }
        // The number that a killed server left may be another process's by now.
        super::files::remove_if_there(&draft.0.join("postmaster.pid"))?;
        Ok(draft)
    }

    fn copy_part(&self, from: &Path, to: &Path, cancel: &Cancel) -> Result<(), RecoverError> {
        let mut command = Command::new("cp");
        command.args(["-a", "--reflink=auto", "--"]).arg(from).arg(to).stdin(Stdio::null());
        let mut child = command.spawn().map_err(RecoverError::file("copy", from))?;
        let copied = await_end(&mut child, cancel).map_err(RecoverError::file("copy", from))?;
        match copied {
            true => Ok(()),
            false if cancel.is_cancelled() => Err(RecoverError::Cancelled),
            false => Err(RecoverError::file("copy", from)(io::Error::other("cp failed; see its own words"))),
        }
    }

    /// Where its timeline was left by what the vault goes on with; none if it was not.
    pub(super) fn parted_at(&self, facts: &Facts) -> Result<Option<Lsn>, RecoverError> {
        let history = parse_history(facts.history.as_bytes()).unwrap_or_default();
        let left = history.iter().find(|switch| switch.timeline == self.control.timeline);
        Ok(left.map(|switch| switch.at))
    }

    /// Whether its log is there up to where the timelines parted. What a crash took of it, the writer may have nevertheless.
    pub(super) fn reaches(
        &self,
        programs: &Programs,
        facts: &Facts,
        parted_at: Lsn,
        cancel: &Cancel,
    ) -> Result<bool, RecoverError> {
        let segments = facts.segments()?;
        let start = segments.start(segments.number_of(Lsn(parted_at.0.saturating_sub(1))));
        let mut command = self.waldump(programs, start);
        // It says whether it came to the end that it was given; `run` bounds what it says besides.
        Ok(run(command.args(["--end", &parted_at.to_string()]), cancel)?.status.success())
    }

    /// Has the clone recovered by its own server, which shows every row that was committed after `parted_at`; they are written down. None:
    /// nothing was committed. `clean`: it is left as by a server that was stopped in good order, with all of its log.
    pub(super) async fn tell_lost(
        &self,
        programs: &Programs,
        clone: &Path,
        facts: &Facts,
        parted_at: Lsn,
        clean: bool,
    ) -> Result<Option<Lost>, RecoverError> {
        let after = self.after(programs, parted_at)?;
        if after.count == 0 && !clean {
            return Ok(None);
        }
        let keep = if facts.major()? < 13 { ("wal_keep_segments", "1000000") } else { ("wal_keep_size", "1TB") };
        let settings = [
            ("autovacuum", "off"),
            ("default_transaction_read_only", "on"),
            // The clone is written over in a moment, or made durable by who goes on with it.
            ("fsync", "off"),
            // From where the timelines parted, and before.
            keep,
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let start = Start { user: facts.superuser.clone(), settings, within: REPLAY_WITHIN };
        let server = Server::start(programs, clone, &start).await?;
        let told = match after.count {
            0 => Ok(None),
            _ => self.write_rows(&server, &after).await.map(Some),
        };
        match clean {
            true => server.stop(Stop::Fast, STOP_WITHIN).await?,
            // As in a crash: nobody needs the clone as it is.
            false => drop(server),
        }
        told
    }

    async fn write_rows(&self, server: &Server, after: &After) -> Result<Lost, RecoverError> {
        let file = super::files::beside(&self.path, LOST);
        let mut writing = Writing::begin(&file)?;
        let mut session = Session::open(server.door(), Purpose::Queries, "lifeboat").await?;
        let names = session.query("select oid, datname from pg_catalog.pg_database where datallowconn").await?;
        session.close().await;
        let databases: BTreeMap<u32, String> =
            names.iter().filter_map(|row| Some((row.get(0)?.parse().ok()?, row.get(1)?.to_owned()))).collect();
        let written: BTreeSet<u32> = after.relations.keys().map(|(database, _)| *database).collect();
        for database in written {
            let Some(name) = databases.get(&database) else { continue };
            let door = server.door().with_database(name);
            let mut session = Session::open(&door, Purpose::Queries, "lifeboat").await?;
            let of_database = after.relations.iter().filter(|((of, _), _)| *of == database);
            for ((_, relation), blocks) in of_database {
                writing.take_table(&mut session, name, (*relation, blocks), &after.commits).await?;
            }
            session.close().await;
        }
        let rows = writing.end()?;
        Ok(Lost { commits: after.count, rows, deletes: after.deletes, file })
    }

    fn waldump(&self, programs: &Programs, start: Lsn) -> Command {
        let mut command = Command::new(programs.program("pg_waldump"));
        command.arg("--path").arg(self.path.join("pg_wal")).args(["--timeline", &self.control.timeline.to_string()]);
        command.args(["--start", &start.to_string()]).env("LC_ALL", "C");
        command
    }

    fn after(&self, programs: &Programs, parted_at: Lsn) -> Result<After, RecoverError> {
        let program = programs.program("pg_waldump");
        let mut command = self.waldump(programs, parted_at);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(RecoverError::file("run", &program))?;
        let mut after = After::default();
        if let Some(output) = child.stdout.take() {
            for line in BufReader::new(output).split(b'\n') {
                let line = line.map_err(RecoverError::file("read what it says:", &program))?;
                after.take_in(&String::from_utf8_lossy(&line));
            }
        }
        // It ends with an error, where the log does.
        child.wait().map_err(RecoverError::file("wait for", &program))?;
        Ok(after)
    }
}

/// A clone in the making; gone when this is dropped, unless it was given a name.
pub(super) struct Draft(PathBuf);

impl Draft {
    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Removes what interrupted processes left of theirs, and ends its servers.
    pub(super) fn remove_old(work: &Path) -> Result<(), RecoverError> {
        let (Some(directory), Some(name)) = (work.parent(), work.file_name()) else { return Ok(()) };
        let begin = [name.as_encoded_bytes(), COPY.as_bytes()].concat();
        for entry in fs::read_dir(directory).map_err(RecoverError::file("read", directory))? {
            let entry = entry.map_err(RecoverError::file("read", directory))?;
            if entry.file_name().as_encoded_bytes().starts_with(&begin) {
                drop(Draft(entry.path()));
            }
        }
        Ok(())
    }

    /// Takes the place of whatever stands there.
    pub(super) fn name(self, work: &Path) -> Result<(), RecoverError> {
        if work.exists() {
            fs::remove_dir_all(work).map_err(RecoverError::file("remove", work))?;
        }
        fs::rename(&self.0, work).map_err(RecoverError::file("give its name to", work))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        if let Err(error) = end_left_behind(&self.0).then(|| fs::remove_dir_all(&self.0)).transpose()
            && !gone(&error)
        {
            tracing::warn!(path = %self.0.display(), %error, "a clone cannot be removed");
        }
    }
}

impl After {
    /// `rmgr: Heap …, tx: 735, lsn: …, desc: INSERT …, blkref #0: rel 1663/5/16384 blk 0`
    fn take_in(&mut self, line: &str) {
        let Some((head, desc)) = line.split_once("desc: ") else { return };
        let number = |text: &str| text.trim().parse::<u32>().ok();
        let own = head.split_once("tx:").and_then(|(_, rest)| number(rest.split(',').next()?));
        if let Some(rest) = desc.strip_prefix("COMMIT") {
            self.count += 1;
            // `COMMIT_PREPARED 735: …` is of another transaction than it is in.
            let prepared = rest.strip_prefix("_PREPARED ").and_then(|rest| number(rest.split([':', ' ']).next()?));
            self.commits.extend(prepared.or(own));
            if let Some((_, subtransactions)) = rest.split_once("subxacts: ") {
                let numbers = subtransactions.split([';', ',']).next().unwrap_or_default();
                self.commits.extend(numbers.split_ascii_whitespace().filter_map(number));
            }
        }
        if head.contains("Heap") && (desc.starts_with("DELETE") || desc.contains("UPDATE")) {
            self.deletes += 1;
        }
        // A table that is written anew is logged as pages.
        if !head.contains("Heap") && !desc.starts_with("FPI") {
            return;
        }
        for reference in desc.split("rel ").skip(1) {
            let mut words = reference.split(['/', ' ', ',']);
            let mut number = || words.next().and_then(|word| word.parse::<u32>().ok());
            if let (Some(_), Some(database), Some(relation)) = (number(), number(), number()) {
                let blocks = self.relations.entry((database, relation)).or_default();
                // Of a fork its name stands there instead.
                let is_main = words.next() == Some("blk");
                let block = words.next().filter(|_| is_main).and_then(|word| word.parse::<u32>().ok());
                let has_room = blocks.len() <= BLOCKS_MAX;
                blocks.extend(block.filter(|_| has_room));
            }
        }
    }
}

/// The file of rows, one a line.
struct Writing {
    path: PathBuf,
    draft: PathBuf,
    out: BufWriter<File>,
    rows: u64,
}

impl Writing {
    fn begin(path: &Path) -> Result<Writing, RecoverError> {
        use std::os::unix::fs::OpenOptionsExt;
        let draft = super::files::beside(path, ".draft");
        let mut options = File::options();
        // Rows are as secret as the database that they are of.
        let options = options.create(true).truncate(true).write(true).mode(0o600);
        let file = options.open(&draft).map_err(RecoverError::file("write", &draft))?;
        Ok(Writing { path: path.to_owned(), draft, out: BufWriter::new(file), rows: 0 })
    }

    async fn take_table(
        &mut self,
        session: &mut Session,
        database: &str,
        (relation, blocks): (u32, &BTreeSet<u32>),
        commits: &BTreeSet<u32>,
    ) -> Result<(), RecoverError> {
        // Tables of the system's own, indexes and what holds long values are not what somebody wrote.
        let named = session
            .query(&format!(
                "select n.nspname, c.relname from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace \
                 where pg_catalog.pg_relation_filenode(c.oid) = {relation} and c.relkind = 'r' \
                 and n.nspname not in ('pg_catalog', 'information_schema', 'pg_toast')"
            ))
            .await?;
        let Some((schema, table)) =
            named.first().and_then(|row| Some((row.get(0)?.to_owned(), row.get(1)?.to_owned())))
        else {
            return Ok(());
        };
        let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
        let list = |numbers: &BTreeSet<u32>| {
            let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
            literal(&format!("{{{}}}", numbers.join(",")))
        };
        // No row is shorter than 28 bytes with what leads to it.
        let within = match blocks.len() {
            ..=BLOCKS_MAX => format!(
                " and lifeboat_row.ctid = any (array(select ('(' || block || ',' || line || ')')::pg_catalog.tid \
                 from pg_catalog.unnest({}::pg_catalog.int8[]) block, \
                 pg_catalog.generate_series(1, pg_catalog.current_setting('block_size')::pg_catalog.int4 / 28) line))",
                list(blocks)
            ),
            _ => String::new(),
        };
        let from = format!("{}.{}", quoted(&schema), quoted(&table));
        session.query("begin").await?;
        session
            .query(&format!(
                "declare lost no scroll cursor for select pg_catalog.row_to_json(lifeboat_row)::text \
                 from {from} lifeboat_row where lifeboat_row.xmin = any ({}::pg_catalog.xid[]){within}",
                list(commits)
            ))
            .await?;
        loop {
            let rows = session.query(&format!("fetch {ROWS_AT_ONCE} from lost")).await?;
            for row in &rows {
                self.write(database, &format!("{schema}.{table}"), row.get(0).unwrap_or("null"))?;
            }
            if rows.len() < ROWS_AT_ONCE {
                break;
            }
        }
        session.query("commit").await?;
        Ok(())
    }

    fn write(&mut self, database: &str, table: &str, row: &str) -> Result<(), RecoverError> {
        let mut write = || {
            let [database, table] =
                [database, table].map(serde_json::to_string).map(|name| name.map_err(io::Error::other));
            // The row stays as the server wrote it: numbers there have more digits than readers of JSON keep.
            writeln!(self.out, "{{\"database\":{},\"table\":{},\"row\":{row}}}", database?, table?)
        };
        write().map_err(RecoverError::file("write", &self.draft))?;
        self.rows += 1;
        Ok(())
    }

    fn end(mut self) -> Result<u64, RecoverError> {
        let ended = self.out.flush().and_then(|()| self.out.get_ref().sync_all());
        ended.and_then(|()| fs::rename(&self.draft, &self.path)).map_err(RecoverError::file("write", &self.path))?;
        Ok(self.rows)
    }
}

/// False: it failed, or was ended because of a cancel.
fn await_end(child: &mut Child, cancel: &Cancel) -> io::Result<bool> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        if cancel.is_cancelled() {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_log_says_of_the_time_after() {
        let mut after = After::default();
        for line in [
            "rmgr: Heap        len (rec/tot):     59/   251, tx:        735, lsn: 0/0155A2D0, prev 0/0155A2A0, desc: INSERT off 3 flags 0x00, blkref #0: rel 1663/5/16384 blk 0 FPW",
            "rmgr: Btree       len (rec/tot):     64/    64, tx:        735, lsn: 0/0155A3D0, prev 0/0155A2D0, desc: INSERT_LEAF off 2, blkref #0: rel 1663/5/16390 blk 1",
            "rmgr: Heap        len (rec/tot):     54/    54, tx:        736, lsn: 0/0155A4D0, prev 0/0155A3D0, desc: DELETE off 1 flags 0x00 KEYS_UPDATED , blkref #0: rel 1663/5/16384 blk 0",
            "rmgr: Heap        len (rec/tot):     69/    69, tx:        737, lsn: 0/0155A5D0, prev 0/0155A4D0, desc: HOT_UPDATE off 1 xmax 737 flags 0x20 ; new off 9 xmax 0, blkref #0: rel 1663/6/16400 blk 0",
            "rmgr: Heap        len (rec/tot):     69/    69, tx:        737, lsn: 0/0155A5E0, prev 0/0155A5D0, desc: UPDATE off 1 xmax 737 flags 0x20 ; new off 9 xmax 0, blkref #0: rel 1663/6/16400 blk 9, blkref #1: rel 1663/6/16400 blk 0",
            "rmgr: Heap2       len (rec/tot):     69/    69, tx:          0, lsn: 0/0155A5E8, prev 0/0155A5D0, desc: VISIBLE cutoff xid 0 flags 0x01, blkref #0: rel 1663/5/16384 fork vm blk 3 FPW, blkref #1: rel 1663/5/16384 blk 0",
            "rmgr: XLOG        len (rec/tot):     49/  8193, tx:        737, lsn: 0/0155A5F0, prev 0/0155A5E8, desc: FPI , blkref #0: rel 1663/5/16384 blk 7 FPW",
            "rmgr: Transaction len (rec/tot):     46/    46, tx:        735, lsn: 0/0155A6D0, prev 0/0155A5D0, desc: COMMIT 2026-11-22 20:50:32.123456 UTC",
            "rmgr: Transaction len (rec/tot):     82/    82, tx:        736, lsn: 0/0155A7D0, prev 0/0155A6D0, desc: COMMIT 2026-11-22 20:50:33.123456 UTC; subxacts: 738 739",
            "rmgr: Transaction len (rec/tot):     82/    82, tx:          0, lsn: 0/0155A8D0, prev 0/0155A7D0, desc: COMMIT_PREPARED 741: 2026-11-22 20:50:33.123456 UTC",
            "rmgr: Transaction len (rec/tot):     34/    34, tx:        740, lsn: 0/0155A9D0, prev 0/0155A8D0, desc: ABORT 2026-11-22 20:50:34.123456 UTC",
            "pg_waldump: fatal: error in WAL record at 0/0155A9D0: invalid record length",
        ] {
            after.take_in(line);
        }
        assert_eq!(after.commits, BTreeSet::from([735, 736, 738, 739, 741]));
        assert_eq!((after.count, after.deletes), (3, 3));
        let blocks = |numbers: &[u32]| numbers.iter().copied().collect::<BTreeSet<_>>();
        assert_eq!(after.relations, BTreeMap::from([((5, 16384), blocks(&[0, 7])), ((6, 16400), blocks(&[0, 9]))]));
    }
}
