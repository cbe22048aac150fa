//! A proxy that spoils what it is told to, between a client and a real server.
//!
//! One request a connection, read and answered whole, so that it knows what the server has done when it spoils the answer.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spoil {
    /// The connection ends before the server has heard of it.
    ResetBefore,
    /// The server acts, its answer is lost.
    ResetAfter,
    /// No answer, and the server never hears of it.
    Hang,
    /// The server acts, its answer never comes.
    HangAfter,
    InternalError,
    /// The server acts, and then it is said that it failed.
    InternalErrorAfter,
    SlowDown,
    /// The server hears half of it.
    TornRequest,
    /// Half of the answer comes.
    TornAnswer,
    /// What was refused because something is there (412, Azure: 409) is said to be done, as by a server that knows no conditions.
    Unconditional,
    /// The first answer that a list request ever got, again.
    StaleList,
}

pub(crate) const CHAOS: [Spoil; 9] = [
    Spoil::ResetBefore,
    Spoil::ResetAfter,
    Spoil::Hang,
    Spoil::HangAfter,
    Spoil::InternalError,
    Spoil::InternalErrorAfter,
    Spoil::SlowDown,
    Spoil::TornRequest,
    Spoil::TornAnswer,
];

#[derive(Debug)]
struct Order {
    /// Of the first line, such as `PUT /bucket/claims/`.
    contains: String,
    spoil: Spoil,
    times: usize,
}

#[derive(Debug, Default)]
struct Script {
    orders: Vec<Order>,
    chaos: Option<(StdRng, f64)>,
    lists: HashMap<String, Vec<u8>>,
    spoiled: Vec<(Spoil, String)>,
    requests: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    script: Arc<Mutex<Script>>,
}

impl Proxy {
    pub(crate) fn before(server: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let script = Arc::new(Mutex::new(Script::default()));
        let shared = script.clone();
        // Ends with the test binary; every connection has its own thread.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let script = shared.clone();
                std::thread::spawn(move || {
                    // A broken connection is what this is for.
                    let _ = serve(client, server, &script);
                });
            }
        });
        Proxy { port, script }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Spoils the next `times` requests whose first line contains this.
    pub(crate) fn spoil(&self, contains: &str, spoil: Spoil, times: usize) {
        self.script.lock().unwrap().orders.push(Order { contains: contains.to_owned(), spoil, times });
    }

    /// Spoils this part of all requests, each in some way.
    pub(crate) fn chaos(&self, seed: u64, part: f64) {
        self.script.lock().unwrap().chaos = Some((StdRng::seed_from_u64(seed), part));
    }

    pub(crate) fn calm(&self) {
        let mut script = self.script.lock().unwrap();
        script.orders.clear();
        script.chaos = None;
    }

    pub(crate) fn spoiled(&self) -> Vec<(Spoil, String)> {
        self.script.lock().unwrap().spoiled.clone()
    }

    /// First lines of all requests that came.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.script.lock().unwrap().requests.clone()
    }
}

impl Script {
    fn turn(&mut self, line: &str) -> Option<Spoil> {
        self.requests.push(line.to_owned());
        let due = self.orders.iter_mut().find(|order| order.times > 0 && line.contains(&order.contains));
        let spoil = match due {
            Some(order) => {
                order.times -= 1;
                Some(order.spoil)
            }
            None => self.chaos.as_mut().and_then(|(random, part)| {
                random.random_bool(*part).then(|| CHAOS[random.random_range(0..CHAOS.len())])
            }),
        }?;
        self.spoiled.push((spoil, line.to_owned()));
        Some(spoil)
    }
}

fn serve(mut client: TcpStream, server: u16, script: &Mutex<Script>) -> std::io::Result<()> {
    let (head, body) = read_request(&mut client)?;
    let line = head.lines().next().unwrap_or_default().to_owned();
    let spoil = script.lock().unwrap().turn(&line);
    let is_list = line.starts_with("GET") && line.contains("list-type=2");
    let ask = |head: &str, body: &[u8]| -> std::io::Result<TcpStream> {
        let mut upstream = TcpStream::connect(("127.0.0.1", server))?;
        upstream.write_all(head.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes())?;
        upstream.write_all(body)?;
        Ok(upstream)
    };
    let forward = |head: &str, body: &[u8]| -> std::io::Result<Vec<u8>> {
        let mut answer = Vec::new();
        ask(head, body)?.read_to_end(&mut answer)?;
        Ok(answer)
    };
    match spoil {
        Some(Spoil::ResetBefore) => reset(&client),
        Some(Spoil::ResetAfter) => {
            forward(&head, &body)?;
            reset(&client)
        }
        Some(Spoil::Hang) => hang(&mut client),
        Some(Spoil::HangAfter) => {
            forward(&head, &body)?;
            hang(&mut client)
        }
        Some(Spoil::InternalError) => refuse(&mut client, "500 Internal Server Error", "", "InternalError"),
        Some(Spoil::InternalErrorAfter) => {
            forward(&head, &body)?;
            refuse(&mut client, "500 Internal Server Error", "", "InternalError")
        }
        Some(Spoil::SlowDown) => refuse(&mut client, "503 Slow Down", "Retry-After: 1\r\n", "SlowDown"),
        Some(Spoil::TornRequest) => {
            let upstream = ask(&head, &body[..body.len() / 2])?;
            upstream.shutdown(Shutdown::Both)?;
            reset(&client)
        }
        Some(Spoil::TornAnswer) => {
            let answer = forward(&head, &body)?;
            client.write_all(&answer[..answer.len() - answer.len().min(200) / 2])?;
            reset(&client)
        }
        Some(Spoil::Unconditional) => {
            let answer = forward(&head, &body)?;
            let is_azures = || String::from_utf8_lossy(&answer).contains("BlobAlreadyExists");
            if answer.starts_with(b"HTTP/1.1 412") || is_azures() {
                return write!(
                    client,
                    "HTTP/1.1 200 OK\r\nETag: \"0\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
            }
            client.write_all(&answer)
        }
        Some(Spoil::StaleList) if is_list => {
            let old = script.lock().unwrap().lists.get(&line).cloned();
            client.write_all(&old.map_or_else(|| forward(&head, &body), Ok)?)
        }
        Some(Spoil::StaleList) | None => {
            let answer = forward(&head, &body)?;
            if is_list {
                script.lock().unwrap().lists.entry(line).or_insert_with(|| answer.clone());
            }
            client.write_all(&answer)
        }
    }
}

fn refuse(client: &mut TcpStream, status: &str, header: &str, code: &str) -> std::io::Result<()> {
    let body = format!("<Error><Code>{code}</Code><Message>said the proxy</Message></Error>");
    let length = body.len();
    write!(client, "HTTP/1.1 {status}\r\n{header}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

/// Says nothing until the client has left.
fn hang(client: &mut TcpStream) -> std::io::Result<()> {
    std::io::copy(client, &mut std::io::sink()).map(|_| ())
}

/// Ends a connection with a reset, and not in good order.
fn reset(client: &TcpStream) -> std::io::Result<()> {
    rustix::net::sockopt::set_socket_linger(client, Some(Duration::ZERO))?;
    Ok(())
}

/// Head and body of a request.
fn read_request(stream: &mut TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    let end = loop {
        if let Some(place) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break place + 4;
        }
        match stream.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => bytes.extend_from_slice(&buffer[..read]),
        }
    };
    let body = bytes.split_off(end);
    let head = String::from_utf8_lossy(&bytes).into_owned();
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    let mut body = body;
    while body.len() < length.unwrap_or(0) {
        match stream.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => body.extend_from_slice(&buffer[..read]),
        }
    }
    Ok((head, body))
}
