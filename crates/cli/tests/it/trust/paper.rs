//! Keys on paper and in shares: printed, read by tools that are not ours, typed back, and a vault restored from them alone.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use crate::machine::{Machine, Ran, assert_alike, noise};

/// What zbar reads in a picture.
fn scanned(picture: &std::path::Path) -> String {
    let output = Command::new("zbarimg")
        .args(["--quiet", "--raw", "-Sdisable", "-Sqrcode.enable"])
        .arg(picture)
        .output()
        .unwrap();
    assert!(output.status.success(), "zbarimg: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The QR code of an HTML page, drawn by librsvg, read by zbar.
fn scanned_html(machine: &Machine, page: &str) -> String {
    let html = fs::read_to_string(machine.path(page)).unwrap();
    let start = html.find("<svg").unwrap();
    let end = html.find("</svg>").unwrap() + "</svg>".len();
    let (svg, png) = (machine.path("code.svg"), machine.path("code.png"));
    fs::write(&svg, &html[start..end]).unwrap();
    let drawn = Command::new("rsvg-convert").args(["--width", "400"]).arg(&svg).arg("-o").arg(&png).status().unwrap();
    assert!(drawn.success());
    scanned(&png)
}

/// The QR code of a text page: its blocks as pixels, in a picture that zbar reads.
fn scanned_text(machine: &Machine, page: &str) -> String {
    let text = fs::read_to_string(machine.path(page)).unwrap();
    let rows: Vec<Vec<char>> =
        text.lines().filter(|line| line.contains(['█', '▀', '▄'])).map(|line| line.chars().skip(4).collect()).collect();
    let (scale, quiet) = (6, 4);
    let size = rows.iter().map(Vec::len).max().unwrap();
    let edge = (size + 2 * quiet) * scale;
    let mut picture = format!("P1 {edge} {edge}\n");
    for y in 0..edge {
        for x in 0..edge {
            let dark = (|| {
                let (x, y) = ((x / scale).checked_sub(quiet)?, (y / scale).checked_sub(quiet)?);
                let character = rows.get(y / 2)?.get(x)?;
                Some(*character == '█' || (*character == '▀' && y % 2 == 0) || (*character == '▄' && y % 2 == 1))
            })();
            picture.push_str(if dark == Some(true) { "1 " } else { "0 " });
        }
        picture.push('\n');
    }
    let path = machine.path("code.pbm");
    fs::write(&path, picture).unwrap();
    scanned(&path)
}

fn typed(machine: &Machine, line: &str, text: &str) -> Ran {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mut child =
        machine.command(&words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    machine.finish(child)
}

/// The numbered lines of a text page, as somebody types them.
fn numbered(machine: &Machine, page: &str) -> String {
    let text = fs::read_to_string(machine.path(page)).unwrap();
    let block = text.split("-----").nth(2).unwrap();
    block.to_lowercase().replace("  ", " ")
}

#[test]
fn a_vault_is_restored_from_the_paper_alone() {
    let machine = Machine::new();
    let owner = machine.make_vault();
    machine.write("data/file", noise(1, 200_000));
    let vault = machine.at("backup");
    machine.line(&format!("backup --vault {vault} {}", machine.at("data"))).ends(0);
    for page in ["page.html", "page.txt"] {
        let printed = machine
            .line(&format!("key paper paper.key -o {} --vault {vault} --owner {owner}", machine.at(page)))
            .ends(0);
        assert!(printed.err.contains("printers may remember"), "{}", printed.err);
        assert_eq!(fs::metadata(machine.path(page)).unwrap().mode() & 0o777, 0o600);
        let text = fs::read_to_string(machine.path(page)).unwrap();
        assert!(text.contains(&owner) && text.contains(&vault) && text.contains("age -d -i my.key"));
        machine.line(&format!("key paper paper.key -o {}", machine.at(page))).ends(4);
    }
    let secret = fs::read_to_string(machine.path("work/paper.key")).unwrap();
    let secret = secret.lines().find(|line| line.starts_with("AGE-SECRET-KEY-1")).unwrap().to_owned();
    let recipient = machine.line("key inspect paper.key").ends(0).out;
    // Only paper is left.
    for key in ["owner.key", "paper.key"] {
        fs::remove_file(machine.path("work").join(key)).unwrap();
    }
    assert_eq!(scanned_html(&machine, "page.html"), secret);
    assert_eq!(scanned_text(&machine, "page.txt"), secret);
    machine.write("scanned", format!("QR-Code:{secret}\n"));
    let ways = [
        ("typed", typed(&machine, "key paper --read -o typed.key", &numbered(&machine, "page.txt"))),
        ("scan", machine.line(&format!("key paper --read {} -o scan.key", machine.at("scanned")))),
        ("html", machine.line(&format!("key paper --read {} -o html.key", machine.at("page.html")))),
        ("text", machine.line(&format!("key paper --read {} -o text.key", machine.at("page.txt")))),
    ];
    for (way, ran) in ways {
        assert_eq!(ran.ends(0).out, recipient, "{way}");
        let key = machine.path("work").join(format!("{way}.key"));
        assert_eq!(fs::metadata(&key).unwrap().mode() & 0o777, 0o600);
        assert!(fs::read_to_string(&key).unwrap().contains(&secret), "{way}");
    }
    // A machine that has never seen the vault: fresh state, the key from paper, the owner from paper.
    let out = machine.at("out");
    let key = machine.at("work/typed.key");
    let line = format!("restore --vault {vault} --owner {owner} --key {key} --to {out}");
    assert!(machine.elsewhere("fresh", &line).ends(3).err.contains("freshness unproven"));
    assert_alike(&machine.path("data"), &machine.path("out"));
    // Plain age opens with what the QR code says.
    let opened = machine.shell(&format!("age -d -i {} {vault}/keys/refs/*.age", machine.at("work/scan.key"))).ends(0);
    assert!(opened.out.contains("AGE-SECRET-KEY-1"), "{}", opened.out);
}

#[test]
fn a_typing_error_is_found_where_it_was_made_and_nothing_is_written() {
    let machine = Machine::new();
    machine.line("key new -o a.key").ends(0);
    let page = machine.line("key paper a.key").ends(0).out;
    machine.write("a.txt", &page);
    let lines = numbered(&machine, "a.txt");
    let broken: Vec<String> = lines
        .lines()
        .map(|line| match line.trim().strip_prefix("2 ") {
            Some(rest) => {
                let mut characters: Vec<char> = rest.chars().collect();
                // The seventh character: the third of the second group.
                characters[7] = if characters[7] == 'q' { 'p' } else { 'q' };
                format!("2 {}", characters.into_iter().collect::<String>())
            }
            None => line.to_owned(),
        })
        .collect();
    let ran = typed(&machine, "key paper --read -o b.key", &broken.join("\n")).ends(2);
    assert!(ran.err.contains("line 2: character 7 (in group 2) is wrong"), "{}", ran.err);
    assert!(!machine.path("work/b.key").exists());
    let cut: Vec<&str> = lines.lines().filter(|line| !line.trim().starts_with('3')).collect();
    assert!(typed(&machine, "key paper --read -o b.key", &cut.join("\n")).ends(2).err.contains("line 3 is missing"));
    assert!(typed(&machine, "key paper --read -o b.key", "").ends(2).err.contains("there is no key in this text"));
    let ran = machine.line("key paper a.key --owner nonsense").ends(2);
    assert!(ran.err.contains("not an owner's fingerprint"), "{}", ran.err);
    machine.line("key paper --read").ends(2);
    machine.line("--json key paper a.key").ends(2);
    assert!(machine.line("key paper --read a.key -o again.key").ends(0).out.starts_with("age1"));

    // On a terminal it asks line by line, and again after a slip.
    let mut answers = String::from("AGE-SECRET-KEY-1\n");
    for (number, line) in (1..).zip(lines.trim().lines().skip(1)) {
        if number == 2 {
            answers.push_str(broken.iter().find(|line| line.starts_with("2 ")).unwrap());
            answers.push('\n');
        }
        answers.push_str(line);
        answers.push('\n');
    }
    machine.write("answers", answers);
    let screen = machine.shell(&format!(
        "script --quiet --return --command 'stty -echo; lifeboat key paper --read -o asked.key' /dev/null < {}",
        machine.at("answers")
    ));
    let screen = screen.ends(0);
    assert!(screen.out.contains("line 2: character 7 (in group 2) is wrong"), "{}", screen.out);
    assert_eq!(machine.line("key inspect asked.key").ends(0).out, machine.line("key inspect a.key").ends(0).out);
}

#[test]
fn shares_make_the_key_again_and_a_wrong_mix_is_named() {
    let machine = Machine::new();
    let recipient = machine.line("key new -o a.key").ends(0).out;
    let split = machine.line("--json key split a.key --shares 5 --threshold 3 -o shares").ends(0).json();
    assert_eq!(split["files"].as_array().unwrap().len(), 10);
    let set = split["set"].as_str().unwrap();
    assert_eq!(fs::metadata(machine.path("work/shares")).unwrap().mode() & 0o777, 0o700);
    let word = scanned_html(&machine, "work/shares/share-2-of-5.html");
    assert_eq!(scanned_text(&machine, "work/shares/share-2-of-5.txt"), word);
    assert!(word.starts_with("LIFEBOAT-SHARE-1"), "{word}");
    machine.write("work/scanned", &word);
    let read =
        typed(&machine, "key paper --read -o typed.txt", &numbered(&machine, "work/shares/share-4-of-5.txt")).ends(0);
    assert!(read.out.contains("share 4 of 5"), "{}", read.out);

    let made = machine.line("key combine shares/share-1-of-5.html scanned typed.txt -o made.key").ends(0);
    assert_eq!(made.out, recipient);
    let secret = |file: &str| {
        let text = fs::read_to_string(machine.path("work").join(file)).unwrap();
        text.lines().find(|line| line.starts_with("AGE-SECRET")).unwrap().to_owned()
    };
    assert_eq!(secret("made.key"), secret("a.key"));

    let few = machine.line("key combine shares/share-1-of-5.txt scanned -o few.key").ends(2);
    assert!(few.err.contains(&format!("2 different shares of set {set} here, 3 are needed")), "{}", few.err);
    machine.line("key split a.key --shares 3 --threshold 3 -o others").ends(0);
    let mixed = machine.line("key combine scanned typed.txt others/share-1-of-3.txt -o mixed.key").ends(2);
    assert!(mixed.err.contains("others/share-1-of-3.txt belongs to set"), "{}", mixed.err);
    let text = fs::read_to_string(machine.path("work/typed.txt")).unwrap();
    let at = text.find(" 5  ").unwrap() + 4;
    let mut damaged = text.clone().into_bytes();
    damaged[at] = if damaged[at] == b'Q' { b'P' } else { b'Q' };
    machine.write("work/damaged.txt", &damaged);
    let ran = machine.line("key combine scanned damaged.txt shares/share-1-of-5.txt -o no.key").ends(2);
    assert!(ran.err.contains("damaged.txt") && ran.err.contains("line 5: character 1"), "{}", ran.err);
    let whole = machine.line("key combine a.key scanned -o no.key").ends(2);
    assert!(whole.err.contains("a.key is a whole key, not a share"), "{}", whole.err);
    machine.line("key split a.key --shares 5 --threshold 3 -o shares").ends(4);
    assert!(machine.line("key split a.key --shares 2 --threshold 3 -o bad").ends(2).err.contains("not into 2 with 3"));
    for absent in ["few.key", "mixed.key", "no.key", "bad"] {
        assert!(!machine.path("work").join(absent).exists(), "{absent}");
    }
}

#[test]
fn shares_are_put_together_without_lifeboat_by_the_program_in_the_documents() {
    let machine = Machine::new();
    machine.line("key new -o a.key").ends(0);
    machine.line("key split a.key --shares 4 --threshold 3 -o shares").ends(0);
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/keys-on-paper.md");
    let document = fs::read_to_string(page).unwrap();
    let program = document.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    machine.write("work/combine.py", program);
    let words: Vec<String> =
        [4, 1, 3].iter().map(|n| scanned_html(&machine, &format!("work/shares/share-{n}-of-4.html"))).collect();
    machine.write("work/words.txt", words.join("\n"));
    let made = machine.shell("python3 combine.py < words.txt").ends(0).out;
    let secret = fs::read_to_string(machine.path("work/a.key")).unwrap();
    assert!(secret.contains(made.trim()) && made.starts_with("AGE-SECRET-KEY-1"), "{made}");
}
