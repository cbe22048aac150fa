//! A real HTTP server for tests, whose answer can be changed: it answers every request alike and remembers the last one.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What it answers with, and what it was asked last.
#[derive(Debug)]
struct Behaviour {
    status: u16,
    body: String,
    last: String,
}

#[derive(Debug)]
pub(crate) struct Web {
    pub(crate) address: SocketAddr,
    behaviour: Arc<Mutex<Behaviour>>,
    task: tokio::task::JoinHandle<()>,
}

impl Web {
    pub(crate) async fn start(ip: &str) -> Web {
        Web::start_at(ip, 0).await
    }

    pub(crate) async fn start_at(ip: &str, port: u16) -> Web {
        let listener = TcpListener::bind((ip, port)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let behaviour = Arc::new(Mutex::new(Behaviour { status: 200, body: "ok".to_owned(), last: String::new() }));
        let shared = Arc::clone(&behaviour);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, Arc::clone(&shared)));
            }
        });
        Web { address, behaviour, task }
    }

    pub(crate) fn answer_with(&self, status: u16, body: &str) {
        let mut behaviour = self.behaviour.lock().unwrap();
        behaviour.status = status;
        behaviour.body = body.to_owned();
    }

    /// The last request: its head and what of its body came with it.
    pub(crate) fn last_request(&self) -> String {
        self.behaviour.lock().unwrap().last.clone()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Closes the listener: connections are refused from now on.
    pub(crate) fn stop(&self) {
        self.task.abort();
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(mut stream: TcpStream, behaviour: Arc<Mutex<Behaviour>>) {
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    while !whole(&request) {
        match stream.read(&mut buffer).await {
            Ok(length @ 1..) => request.extend_from_slice(&buffer[..length]),
            _ => return,
        }
    }
    let (status, body) = {
        let mut behaviour = behaviour.lock().unwrap();
        behaviour.last = String::from_utf8_lossy(&request).into_owned();
        (behaviour.status, behaviour.body.clone())
    };
    let head = format!("HTTP/1.1 {status} Told\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(body.as_bytes()).await;
}

fn whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}
