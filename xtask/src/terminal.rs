//! A terminal's transcript as a page: colours and bold from ANSI sequences, and lines that were drawn over.
//!
//! Invariant: every byte of the transcript is escaped; a sequence that is not understood is left out, never shown.

use std::fmt::Write;

/// What a run of characters looks like.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Look {
    bold: bool,
    dim: bool,
    /// 30–37 and 90–97, as SGR numbers them.
    colour: Option<u8>,
}

/// The screen that a transcript leaves behind: rows of characters with their looks.
#[derive(Debug, Default)]
struct Screen {
    rows: Vec<Vec<(char, Look)>>,
    row: usize,
    column: usize,
    look: Look,
}

impl Screen {
    fn put(&mut self, character: char) {
        while self.rows.len() <= self.row {
            self.rows.push(Vec::new());
        }
        if let Some(row) = self.rows.get_mut(self.row) {
            while row.len() <= self.column {
                row.push((' ', Look::default()));
            }
            if let Some(cell) = row.get_mut(self.column) {
                *cell = (character, self.look);
            }
        }
        self.column += 1;
    }

    fn erase_line(&mut self, from: usize) {
        if let Some(row) = self.rows.get_mut(self.row) {
            row.truncate(from);
        }
    }

    /// A control sequence: its parameters and its last letter.
    fn control(&mut self, parameters: &str, letter: char) {
        let count = parameters.parse().unwrap_or(1).max(1);
        match letter {
            'A' => self.row = self.row.saturating_sub(count),
            'B' => self.row += count,
            'C' => self.column += count,
            'D' => self.column = self.column.saturating_sub(count),
            'G' => self.column = count - 1,
            'K' if parameters == "2" => self.erase_line(0),
            'K' => self.erase_line(self.column),
            'J' => {
                self.erase_line(self.column);
                self.rows.truncate(self.row + 1);
            }
            'm' => self.select(parameters),
            _ => {}
        }
    }

    fn select(&mut self, parameters: &str) {
        let mut codes = parameters.split(';').map(|code| code.parse::<u8>().unwrap_or(0));
        while let Some(code) = codes.next() {
            match code {
                0 => self.look = Look::default(),
                1 => self.look.bold = true,
                2 => self.look.dim = true,
                22 => (self.look.bold, self.look.dim) = (false, false),
                30..=37 | 90..=97 => self.look.colour = Some(code),
                38 if codes.next() == Some(5) => {
                    // 256 colours: the first sixteen are the ones above, the others are shown as text.
                    self.look.colour = codes.next().and_then(|index| match index {
                        0..=7 => Some(30 + index),
                        8..=15 => Some(90 + index - 8),
                        _ => None,
                    });
                }
                39 => self.look.colour = None,
                _ => {}
            }
        }
    }
}

fn draw(transcript: &str) -> Screen {
    let mut screen = Screen::default();
    let mut characters = transcript.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\n' => (screen.row, screen.column) = (screen.row + 1, 0),
            '\r' => screen.column = 0,
            '\u{1b}' => match characters.next() {
                Some('[') => {
                    let mut parameters = String::new();
                    for next in characters.by_ref() {
                        if ('@'..='~').contains(&next) {
                            screen.control(&parameters, next);
                            break;
                        }
                        parameters.push(next);
                    }
                }
                Some(']') => {
                    // A title: up to BEL or ST.
                    for next in characters.by_ref() {
                        if next == '\u{7}' || next == '\\' {
                            break;
                        }
                    }
                }
                _ => {}
            },
            character if character.is_control() => {}
            character => screen.put(character),
        }
    }
    screen
}

/// How many rows the transcript leaves behind.
pub(crate) fn height_rows(transcript: &str) -> usize {
    draw(transcript).rows.iter().rposition(|row| row.iter().any(|(c, _)| *c != ' ')).map_or(0, |last| last + 1)
}

/// The transcript as a whole HTML page that looks like a terminal with `title`.
pub(crate) fn page(title: &str, transcript: &str) -> String {
    let screen = draw(transcript);
    let mut body = String::new();
    for row in screen.rows.iter().take(height_rows(transcript)) {
        for run in row.chunk_by(|a, b| a.1 == b.1) {
            let Some((_, look)) = run.first() else { continue };
            let text: String = run.iter().map(|(character, _)| *character).collect();
            let _ = write!(body, "<span class=\"{}\">{}</span>", classes(*look), escape(&text));
        }
        body.push('\n');
    }
    format!(
        "<!doctype html><meta charset=utf-8><style>{STYLE}</style>\
         <div class=window><div class=bar><i></i><i></i><i></i><b>{}</b></div><pre>{body}</pre></div>",
        escape(title)
    )
}

fn classes(look: Look) -> String {
    let mut classes = String::new();
    if look.bold {
        classes.push_str("bold ");
    }
    if look.dim {
        classes.push_str("dim ");
    }
    if let Some(colour) = look.colour {
        let _ = write!(classes, "c{colour}");
    }
    classes
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "\
html{background:#e9ecf1}body{margin:0;padding:20px}\
.window{background:#14181f;border-radius:8px;overflow:hidden;box-shadow:0 4px 18px #0004;width:max-content;min-width:920px}\
.bar{background:#252b36;padding:9px 12px;display:flex;gap:7px;align-items:center}\
.bar i{width:11px;height:11px;border-radius:50%;background:#4b5464}\
.bar b{font:13px 'DejaVu Sans',sans-serif;color:#aab3c2;margin-left:8px}\
pre{margin:0;padding:16px 20px;color:#d8dee9;font:14px/19px 'DejaVu Sans Mono',monospace}\
.bold{font-weight:bold;color:#fff}.dim{color:#8590a2}\
.c30{color:#6b7486}.c31,.c91{color:#ff7b72}.c32,.c92{color:#7ee787}.c33,.c93{color:#f0c05a}\
.c34,.c94{color:#79b8ff}.c35,.c95{color:#d2a8ff}.c36,.c96{color:#6fd6d6}.c37,.c97{color:#fff}.c90{color:#8590a2}";

#[cfg(test)]
mod screen {
    use super::{height_rows, page};

    #[test]
    fn what_was_drawn_over_is_gone_and_text_is_escaped() {
        let transcript = "10%\r\u{1b}[2K20% <b>\r\n\u{1b}[32;1mdone\u{1b}[0m & out\u{1b}]0;title\u{7}\r\n\r\n";
        let page = page("a < b", transcript);
        assert!(!page.contains("10%") && !page.contains("title\u{7}"), "{page}");
        assert!(page.contains("20% &lt;b&gt;"), "{page}");
        assert!(page.contains("<span class=\"bold c32\">done</span>"), "{page}");
        assert!(page.contains("<b>a &lt; b</b>"), "{page}");
        assert_eq!(height_rows(transcript), 2);
    }

    #[test]
    fn several_progress_lines_are_redrawn_in_their_places() {
        let transcript = "one 1%\ntwo 1%\u{1b}[1A\rone 9%\n\u{1b}[2Ktwo 9%";
        let page = page("", transcript);
        assert!(page.contains("one 9%") && page.contains("two 9%") && !page.contains("1%"), "{page}");
    }
}
