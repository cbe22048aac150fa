//! The verbs of slots.

use super::super::lsn::Lsn;
use super::super::session::Purpose;
use super::super::slot::{self, SlotError};
use super::cluster::Cluster;
use super::session;

#[tokio::test]
async fn slots_are_made_once_found_and_dropped_and_others_kinds_are_refused_by_name() {
    let mut cluster = Cluster::new();
    cluster.set("wal_level", "logical");
    cluster.set("max_slot_wal_keep_size", "64MB");
    cluster.start();
    let mut session = session(&cluster, Purpose::Queries).await;
    assert_eq!(slot::find(&mut session, "boat").await.unwrap(), None);
    let later = slot::ensure(&mut session, "boat", false).await.unwrap();
    assert_eq!((later.restart_lsn, later.active_pid, later.temporary), (None, None, false));
    assert_eq!(slot::ensure(&mut session, "boat", true).await.unwrap(), later, "a slot that is there stays as it is");

    let now = slot::ensure(&mut session, "boat2", true).await.unwrap();
    let flushed: Lsn = cluster.psql("select pg_current_wal_flush_lsn()").parse().unwrap();
    assert!(now.restart_lsn.is_some_and(|kept| kept <= flushed && kept > Lsn(0)), "{now:?}");
    assert_eq!(now.wal_status.as_deref(), Some("reserved"));
    assert!(now.safe_wal_size.is_some_and(|bytes| bytes > 0), "{now:?}");

    slot::drop(&mut session, "boat").await.unwrap();
    slot::drop(&mut session, "boat").await.unwrap();
    assert_eq!(cluster.psql("select string_agg(slot_name, ' ') from pg_replication_slots"), "boat2");

    cluster.psql("select pg_create_logical_replication_slot('theirs', 'pgoutput')");
    for error in [
        slot::find(&mut session, "theirs").await.unwrap_err(),
        slot::ensure(&mut session, "theirs", true).await.unwrap_err(),
        slot::drop(&mut session, "theirs").await.unwrap_err(),
    ] {
        assert!(matches!(&error, SlotError::Logical(name) if name == "theirs") && !error.may_pass(), "{error}");
    }
    assert_eq!(cluster.psql("select count(*) from pg_replication_slots where slot_name = 'theirs'"), "1");
    for bad in ["", "Boat", "a'; drop table x; --", &"x".repeat(64)] {
        assert!(matches!(slot::ensure(&mut session, bad, true).await, Err(SlotError::Name(_))), "{bad}");
    }
}
