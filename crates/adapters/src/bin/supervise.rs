//! A local site's supervisor as a program of its own: `supervise --root DIR`. The `lifeboat` program has the same as a
//! hidden command; tests use this one.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [option, root] = arguments.as_slice() else {
        eprintln!("usage: supervise --root DIR");
        return ExitCode::from(2);
    };
    if option != "--root" {
        eprintln!("usage: supervise --root DIR");
        return ExitCode::from(2);
    }
    match lifeboat_adapters::site::local::supervise(Path::new(root)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("supervise: {error}");
            ExitCode::FAILURE
        }
    }
}
