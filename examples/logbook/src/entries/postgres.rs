//! The entries and canary values in PostgreSQL.
//!
//! Invariant: one connection, made anew when it is lost. A transaction whose outcome was not heard is an error, and never tried again here:
//! the client asks again with the same id.

use std::time::Duration;

use ::postgres::{Client, Config, Error, NoTls, Row};

use super::{Added, CANARIES_KEPT, Corruption, EntriesError, Entry};

const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// Two services that begin at once must not both make the tables; any number will do.
const TABLES_LOCK: i64 = 7_210_845;

const TABLES: &str = "
    create table if not exists entries (
        sequence bigint generated always as identity primary key,
        id text not null unique,
        text text not null,
        at text not null);
    create table if not exists canaries (
        number bigint generated always as identity primary key,
        value text not null,
        at text not null);";

#[derive(Debug)]
pub(super) struct InPostgres {
    config: Config,
    client: Option<Connected>,
}

struct Connected(Client);

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Connected").field(&!self.0.is_closed()).finish()
    }
}

impl InPostgres {
    /// Reaches the server later, if it is not there yet.
    pub(super) fn open(url: &str) -> Result<InPostgres, EntriesError> {
        let mut config: Config = url.parse().map_err(|source| EntriesError::Server { source })?;
        config.connect_timeout(CONNECT_WITHIN).application_name("logbook");
        Ok(InPostgres { config, client: None })
    }

    fn client(&mut self) -> Result<&mut Client, EntriesError> {
        let client = match self.client.take().filter(|client| !client.0.is_closed()) {
            Some(client) => client,
            None => self.connect()?,
        };
        Ok(&mut self.client.insert(client).0)
    }

    fn connect(&self) -> Result<Connected, EntriesError> {
        let failed = |source| EntriesError::Server { source };
        let mut client = self.config.connect(NoTls).map_err(failed)?;
        if is_read_only(&mut client).map_err(failed)? {
            return Err(EntriesError::ReadOnly);
        }
        let mut transaction = client.transaction().map_err(failed)?;
        transaction.execute("select pg_advisory_xact_lock($1)", &[&TABLES_LOCK]).map_err(failed)?;
        transaction.batch_execute(TABLES).map_err(failed)?;
        transaction.commit().map_err(failed)?;
        Ok(Connected(client))
    }

    /// Does it with the connection; one that failed is not used again.
    fn with<T>(&mut self, work: impl FnOnce(&mut Client) -> Result<T, Error>) -> Result<T, EntriesError> {
        let done = work(self.client()?);
        if done.is_err() {
            self.client = None;
        }
        done.map_err(|source| EntriesError::Server { source })
    }

    pub(super) fn add(&mut self, id: &str, text: &str) -> Result<Added, EntriesError> {
        self.with(|client| {
            let at = crate::now().to_string();
            let added = client.query_opt(
                "insert into entries (id, text, at) values ($1, $2, $3) on conflict (id) do nothing returning sequence",
                &[&id, &text, &at],
            )?;
            if let Some(row) = added {
                return Ok(Added::New { sequence: row.get(0) });
            }
            let row = client.query_one("select sequence, text from entries where id = $1", &[&id])?;
            let (sequence, old): (i64, String) = (row.get(0), row.get(1));
            Ok(if old == text { Added::Again { sequence } } else { Added::Conflict })
        })
    }

    pub(super) fn get(&mut self, id: &str) -> Result<Option<Entry>, EntriesError> {
        self.with(|client| {
            let row = client.query_opt("select id, sequence, text, at from entries where id = $1", &[&id])?;
            Ok(row.as_ref().map(entry))
        })
    }

    pub(super) fn after(&mut self, sequence: i64, limit: u32) -> Result<Vec<Entry>, EntriesError> {
        self.with(|client| {
            let sql = "select id, sequence, text, at from entries where sequence > $1 order by sequence limit $2";
            Ok(client.query(sql, &[&sequence, &i64::from(limit)])?.iter().map(entry).collect())
        })
    }

    pub(super) fn check_writable(&mut self) -> Result<(), EntriesError> {
        match self.with(is_read_only)? {
            true => Err(EntriesError::ReadOnly),
            false => Ok(()),
        }
    }

    pub(super) fn write_canary(&mut self, value: &str) -> Result<(), EntriesError> {
        self.with(|client| {
            let mut transaction = client.transaction()?;
            let at = crate::now().to_string();
            transaction.execute("insert into canaries (value, at) values ($1, $2)", &[&value, &at])?;
            transaction.execute(
                "delete from canaries where number <= (select max(number) from canaries) - $1",
                &[&CANARIES_KEPT],
            )?;
            transaction.commit()
        })
    }

    pub(super) fn newest_canary(&mut self) -> Result<Option<String>, EntriesError> {
        self.with(|client| {
            let row = client.query_opt("select value from canaries order by number desc limit 1", &[])?;
            Ok(row.map(|row| row.get(0)))
        })
    }

    pub(super) fn corrupt(&mut self) -> Result<Corruption, EntriesError> {
        self.with(|client| {
            let mut transaction = client.transaction()?;
            let deleted = transaction.execute("delete from entries where sequence % 3 = 0", &[])?;
            let garbled = transaction.execute("update entries set text = 'NaN ' || substr(text, 1, 3)", &[])?;
            transaction.commit()?;
            Ok(Corruption { garbled, deleted })
        })
    }
}

fn is_read_only(client: &mut Client) -> Result<bool, Error> {
    let row = client.query_one("select pg_is_in_recovery() or current_setting('transaction_read_only') = 'on'", &[])?;
    Ok(row.get(0))
}

fn entry(row: &Row) -> Entry {
    Entry { id: row.get(0), sequence: row.get(1), text: row.get(2), at: row.get(3) }
}
