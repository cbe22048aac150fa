//! What the service promises: durable before it answers, idempotent, healthy only when it can write.

use std::net::SocketAddr;

use crate::process::{start_service, wait_for};

fn client() -> reqwest::Client {
    reqwest::Client::new()
}

async fn post_entry(server: SocketAddr, id: &str, text: &str) -> (u16, serde_json::Value) {
    let request = client().post(format!("http://{server}/entries")).header("x-entry-id", id).body(text.to_owned());
    answer(request).await
}

async fn get(server: SocketAddr, path: &str) -> (u16, serde_json::Value) {
    answer(client().get(format!("http://{server}{path}"))).await
}

async fn answer(request: reqwest::RequestBuilder) -> (u16, serde_json::Value) {
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    (status, serde_json::from_str(&response.text().await.unwrap()).unwrap_or_default())
}

#[tokio::test]
async fn an_acknowledged_entry_survives_a_kill() {
    let home = tempfile::tempdir().unwrap();
    let (service, address) = start_service(home.path(), "127.0.0.1:0", &[]);
    assert_eq!(post_entry(address, "a", "first").await, (201, serde_json::json!({"id": "a", "sequence": 1})));
    assert_eq!(post_entry(address, "b", "second").await.0, 201);
    let put = client().put(format!("http://{address}/uploads/photo.bin")).body(vec![7u8; 3000]);
    assert_eq!(answer(put).await.0, 201);
    service.kill();

    let (_service, address) = start_service(home.path(), "127.0.0.1:0", &[]);
    let (status, entry) = get(address, "/entries/b").await;
    assert_eq!((status, entry["text"].as_str(), entry["sequence"].as_i64()), (200, Some("second"), Some(2)));
    let (_, page) = get(address, "/entries?after=1").await;
    assert_eq!(page["entries"].as_array().map(Vec::len), Some(1));
    let upload = client().get(format!("http://{address}/uploads/photo.bin")).send().await.unwrap();
    assert_eq!(upload.bytes().await.unwrap(), vec![7u8; 3000]);
}

#[tokio::test]
async fn the_same_entry_again_is_no_second_entry_and_another_text_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let (_service, address) = start_service(home.path(), "127.0.0.1:0", &[]);
    assert_eq!(post_entry(address, "a", "text").await.0, 201);
    assert_eq!(post_entry(address, "a", "text").await, (200, serde_json::json!({"id": "a", "sequence": 1})));
    let (status, said) = post_entry(address, "a", "other").await;
    assert_eq!((status, said["error"].as_str()), (409, Some("the id a is taken by another text")));
    assert_eq!(post_entry(address, "", "text").await.0, 400);
    assert_eq!(get(address, "/entries/nobody").await.0, 404);
}

#[tokio::test]
async fn two_instances_share_one_database() {
    let home = tempfile::tempdir().unwrap();
    let (_one, first) = start_service(home.path(), "127.0.0.1:0", &[]);
    let (_two, second) = start_service(home.path(), "127.0.0.1:0", &[]);
    let mut writes = tokio::task::JoinSet::new();
    for number in 0..40 {
        let server = if number % 2 == 0 { first } else { second };
        writes.spawn(async move { post_entry(server, &format!("n{number}"), "text").await.0 });
    }
    assert!(writes.join_all().await.into_iter().all(|status| status == 201));
    let (_, page) = get(first, "/entries").await;
    let sequences: Vec<i64> =
        page["entries"].as_array().unwrap().iter().map(|entry| entry["sequence"].as_i64().unwrap()).collect();
    assert_eq!(sequences, (1..=40).collect::<Vec<_>>());
}

#[tokio::test]
async fn health_is_bad_when_the_database_was_taken_away() {
    let home = tempfile::tempdir().unwrap();
    let (_service, address) = start_service(home.path(), "127.0.0.1:0", &[]);
    assert_eq!(get(address, "/healthz").await.0, 200);
    std::fs::remove_file(home.path().join("logbook.db")).unwrap();
    let (status, said) = get(address, "/healthz").await;
    assert_eq!(status, 503);
    assert!(said["error"].as_str().unwrap().contains("removed or replaced"), "{said}");
}

#[tokio::test]
async fn health_is_bad_while_another_process_keeps_the_database_locked() {
    let home = tempfile::tempdir().unwrap();
    let (_service, address) = start_service(home.path(), "127.0.0.1:0", &[]);
    let other = rusqlite::Connection::open(home.path().join("logbook.db")).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let (status, said) = get(address, "/healthz").await;
    assert_eq!(status, 503);
    assert!(said["error"].as_str().unwrap().contains("locked"), "{said}");
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(get(address, "/healthz").await.0, 200);
}

#[tokio::test]
async fn canaries_are_read_back_newest_first() {
    let home = tempfile::tempdir().unwrap();
    let (_service, address) = start_service(home.path(), "127.0.0.1:0", &[]);
    let url = format!("http://{address}/canary");
    assert_eq!(client().get(&url).send().await.unwrap().status().as_u16(), 404);
    for value in ["1 at noon", "2 at one"] {
        assert_eq!(client().post(&url).body(value).send().await.unwrap().status().as_u16(), 201);
    }
    assert_eq!(client().get(&url).send().await.unwrap().text().await.unwrap(), "2 at one");
}

#[tokio::test]
async fn a_bad_release_destroys_data_only_where_it_is_allowed_to() {
    let home = tempfile::tempdir().unwrap();
    let (service, address) = start_service(home.path(), "127.0.0.1:0", &[]);
    for number in 1..=6 {
        assert_eq!(post_entry(address, &format!("n{number}"), "a good text").await.0, 201);
    }
    let corrupt = |address| answer(client().post(format!("http://{address}/corrupt")));
    assert_eq!(corrupt(address).await.0, 403);
    assert_eq!(get(address, "/entries/n1").await.1["text"], "a good text");
    assert_eq!(service.terminate(), Some(0));

    let (_service, address) = start_service(home.path(), "127.0.0.1:0", &["--allow-corrupt"]);
    assert_eq!(corrupt(address).await, (200, serde_json::json!({"garbled": 4, "deleted": 2})));
    assert_eq!(get(address, "/entries/n3").await.0, 404);
    assert_ne!(get(address, "/entries/n1").await.1["text"], "a good text");
}

#[tokio::test]
async fn hostile_names_of_uploads_reach_no_other_file() {
    let home = tempfile::tempdir().unwrap();
    let (_service, address) = start_service(home.path(), "127.0.0.1:0", &[]);
    for name in ["..%2Flogbook.db", ".hidden", "%00", "a%2Fb", &"x".repeat(200)] {
        let (status, _) = get(address, &format!("/uploads/{name}")).await;
        assert_eq!(status, 400, "{name}");
    }
}

#[tokio::test]
async fn sigterm_ends_the_service_although_a_connection_is_open() {
    let home = tempfile::tempdir().unwrap();
    let (service, address) = start_service(home.path(), "127.0.0.1:0", &[]);
    let idle = std::net::TcpStream::connect(address).unwrap();
    assert_eq!(get(address, "/healthz").await.0, 200);
    assert_eq!(service.terminate(), Some(0));
    drop(idle);
    wait_for("the port to be free", || std::net::TcpListener::bind(address).ok());
}
