//! A client that writes without pause, and remembers what was acknowledged, when, and by which server.
//!
//! Invariant: a write is on the list when the server has acknowledged it, and no number is written twice: what was not acknowledged is given up.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::super::client::Connection;
use super::door::Door;

/// The pause between two writes, and before another connection is tried: an outage is measured as closely as this.
pub(super) const EVERY: Duration = Duration::from_millis(10);
pub(super) const TABLE: &str = "create table written(number bigint primary key)";
const LOOK_EVERY: Duration = Duration::from_millis(5);

#[derive(Debug, Clone, Copy)]
pub(super) struct Write {
    number: u64,
    pub(super) at: Instant,
    /// The server's own address.
    pub(super) by: Ipv4Addr,
}

pub(super) struct Writer {
    written: Arc<Mutex<Vec<Write>>>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(door: Door) -> Writer {
        let (written, ended) = (Arc::<Mutex<Vec<Write>>>::default(), Arc::<AtomicBool>::default());
        let (list, end) = (Arc::clone(&written), Arc::clone(&ended));
        let thread = std::thread::spawn(move || {
            let mut connection = None;
            for number in 1.. {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let began = Instant::now();
                if let Ok((open, by)) = write(connection.take(), &door, number) {
                    connection = Some(open);
                    lock(&list).push(Write { number, at: Instant::now(), by });
                }
                std::thread::sleep(EVERY.saturating_sub(began.elapsed()));
            }
        });
        Writer { written, ended, thread: Some(thread) }
    }

    /// The last one that was acknowledged by this server.
    pub(super) fn last_by(&self, server: Ipv4Addr) -> Option<Write> {
        lock(&self.written).iter().rev().find(|write| write.by == server).copied()
    }

    /// The first one that this server acknowledged after a moment; waits for it.
    pub(super) fn first_by(&self, server: Ipv4Addr, after: Instant, within: Duration) -> Result<Write, String> {
        let until = Instant::now() + within;
        let is_it = |write: &Write| write.by == server && write.at > after;
        loop {
            // The list grows in order of time: only its end is looked through.
            let found =
                lock(&self.written).iter().rev().take_while(|write| write.at > after).copied().filter(is_it).last();
            match found {
                Some(write) => return Ok(write),
                None if Instant::now() > until => {
                    return Err(format!("no write was acknowledged by {server} within {} s", within.as_secs()));
                }
                None => std::thread::sleep(LOOK_EVERY),
            }
        }
    }

    /// Ends, and counts: how many writes were acknowledged, and how many of them the server does not have.
    pub(super) fn count(mut self, server: &mut Connection) -> Result<(usize, usize), String> {
        self.end();
        let row = server.ask("select string_agg(number::text, ' ') from written")?;
        let there: BTreeSet<u64> =
            row.iter().flat_map(|text| text.split(' ')).filter_map(|word| word.parse().ok()).collect();
        let written = lock(&self.written);
        Ok((written.len(), written.iter().filter(|write| !there.contains(&write.number)).count()))
    }

    fn end(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end();
    }
}

fn lock(list: &Mutex<Vec<Write>>) -> MutexGuard<'_, Vec<Write>> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One row in a transaction of its own, over the connection that is there, or a new one. After an error that connection is gone.
fn write(connection: Option<Connection>, door: &Door, number: u64) -> Result<(Connection, Ipv4Addr), String> {
    let mut connection = connection.map_or_else(|| door.open(), Ok)?;
    let sql = format!("insert into written values ({number}) returning host(inet_server_addr())");
    let row = connection.ask(&sql)?;
    let by = row.first().and_then(|text| text.parse().ok()).ok_or("the server does not say where it is")?;
    Ok((connection, by))
}
