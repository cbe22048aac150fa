//! Questions and answers.

use std::time::Duration;

use super::super::error::SessionError;
use super::super::session::{Purpose, Session, literal};
use super::cluster::Cluster;
use super::{door, session};

#[tokio::test]
async fn answers_are_text_null_and_errors_and_the_session_goes_on() {
    let cluster = Cluster::started();
    let mut session = session(&cluster, Purpose::Queries).await;
    assert_eq!(session.server_version() / 10_000, *super::cluster::MAJOR);
    assert_eq!(session.parameter("client_encoding"), Some("UTF8"));

    let rows = session.query("select i, null, 'é' || i from generate_series(1, 3) as i").await.unwrap();
    let all: Vec<_> = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect();
    assert_eq!(all[2], (Some("3"), None, Some("é3"), None));
    assert_eq!(all.len(), 3);
    // Of several statements the last that answers; of none, nothing.
    assert_eq!(session.query("select 1; select 2; create table t (a text)").await.unwrap()[0].get(0), Some("2"));
    assert!(session.query("").await.unwrap().is_empty());

    let error = session.query("select 1; select x from nothing").await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("42P01"));
    assert!(error.to_string().contains("relation \"nothing\" does not exist") && !error.may_pass(), "{error}");
    let error = session.query("select 1/0").await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("22012"));

    let odd = r#"it's a "quoted" \ text with ❤ and $1"#;
    let row = session.query_one(&format!("select {}", literal(odd))).await.unwrap();
    assert_eq!(row.get(0), Some(odd));
    for wrong in ["select 1 where false", "select generate_series(1, 2)"] {
        assert!(matches!(session.query_one(wrong).await, Err(SessionError::Protocol { .. })), "{wrong}");
    }

    session.query("do $$ begin raise warning 'look out'; end $$").await.unwrap();
    assert_eq!(session.notices(), ["WARNING: look out"]);
    assert!(session.notices().is_empty());
    session.query("set application_name = 'another'").await.unwrap();
    assert_eq!(session.parameter("application_name"), Some("another"));
    session.close().await;
}

#[tokio::test]
async fn a_session_whose_answer_was_not_read_asks_nothing_more() {
    let cluster = Cluster::started();
    let mut late = session(&cluster, Purpose::Queries).await;
    late.set_patience(Duration::from_millis(200));
    let error = late.query("select pg_sleep(60)").await.unwrap_err();
    assert!(matches!(error, SessionError::Timeout { .. }) && error.may_pass(), "{error}");
    late.set_patience(Duration::from_secs(60));
    assert!(matches!(late.query("select 1").await, Err(SessionError::Lost { .. })));

    let mut dropped = session(&cluster, Purpose::Queries).await;
    tokio::select! {
        biased;
        answer = dropped.query("select pg_sleep(60)") => panic!("{answer:?}"),
        () = tokio::time::sleep(Duration::from_millis(100)) => {}
    }
    assert!(matches!(dropped.query("select 1").await, Err(SessionError::Lost { .. })));

    let mut copying = session(&cluster, Purpose::Queries).await;
    let error = copying.query("copy (select 1) to stdout").await.unwrap_err();
    assert!(error.to_string().contains("COPY"), "{error}");
    assert!(copying.query("select 1").await.is_err());
}

#[tokio::test]
async fn ends_and_absences_of_a_server_are_told_and_may_pass() {
    let mut cluster = Cluster::started();
    let mut ended = session(&cluster, Purpose::Queries).await;
    let pid = ended.query_one("select pg_backend_pid()").await.unwrap().get(0).unwrap().to_owned();
    cluster.psql(&format!("select pg_terminate_backend({pid})"));
    let error = ended.query("select 1").await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("57P01"), "{error}");
    assert!(error.may_pass());

    let error = Session::open(&door(&cluster).with_database("nowhere"), Purpose::Queries, "").await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("3D000"));
    assert!(error.to_string().contains("name a database that exists") && !error.may_pass(), "{error}");

    let mut killed = session(&cluster, Purpose::Queries).await;
    cluster.kill();
    let error = killed.query("select pg_sleep(60)").await.unwrap_err();
    assert!(error.may_pass(), "{error}");
    cluster.wait_until("nobody answers", |cluster| {
        std::os::unix::net::UnixStream::connect(cluster.socket_directory().join(format!(".s.PGSQL.{}", cluster.port())))
            .is_err()
    });
    let error = Session::open(&door(&cluster), Purpose::Queries, "").await.unwrap_err();
    assert!(matches!(error, SessionError::Unreachable { .. }) && error.may_pass(), "{error}");
}

#[tokio::test]
async fn what_is_no_text_is_refused_and_not_changed() {
    let cluster = Cluster::started();
    cluster.psql("create database bytes encoding 'SQL_ASCII' template template0 locale 'C'");
    let door = door(&cluster).with_database("bytes");
    let mut session = Session::open(&door, Purpose::Queries, "").await.unwrap();
    session.query("set client_encoding = 'SQL_ASCII'").await.unwrap();
    let error = session.query("select chr(200)").await.unwrap_err();
    assert!(error.to_string().contains("UTF-8"), "{error}");
    assert_eq!(session.query_one("select 'plain'").await.unwrap().get(0), Some("plain"));
}
