//! The printed page of a key or a share: what it opens, how to use it, a QR code, and numbered lines with checksums.
//!
//! Invariant: the page loads nothing and runs nothing; with the page and `age` alone a vault opens.

use jiff::Timestamp;
use lifeboat_vault::paper::{Secret, Share};
use lifeboat_vault::{Identity, Recipient};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use qrcodegen::{QrCode, QrCodeEcc};

use crate::error::CommandError;

const STYLE: &str = include_str!("page.css");
/// Light modules around the code; readers want four.
const QUIET: i32 = 4;

/// What is printed.
pub(super) struct Page {
    secret: Secret,
    of: String,
    /// Where the vault is that it opens, and the owner it must have.
    vault: Option<String>,
    owner: Option<String>,
}

impl Page {
    pub(super) fn of_key(identity: &Identity, vault: Option<&str>, owner: Option<&str>) -> Page {
        Page::new(Secret::Key(identity.clone()), &identity.recipient(), vault, owner)
    }

    pub(super) fn of_share(share: &Share, of: &Recipient, vault: Option<&str>, owner: Option<&str>) -> Page {
        Page::new(Secret::Share(share.clone()), of, vault, owner)
    }

    fn new(secret: Secret, of: &Recipient, vault: Option<&str>, owner: Option<&str>) -> Page {
        Page { secret, of: of.to_string(), vault: vault.map(str::to_owned), owner: owner.map(str::to_owned) }
    }

    fn title(&self) -> String {
        match &self.secret {
            Secret::Key(_) => "Recovery key".to_owned(),
            Secret::Share(share) => {
                format!("Share {} of {} of a recovery key, set {}", share.index, share.shares, share.set_name())
            }
        }
    }

    /// What it is, in sentences.
    fn about(&self) -> Vec<String> {
        let mut about = match &self.secret {
            Secret::Key(_) => vec![
                "This sheet opens every vault that is sealed to the recipient below. Whoever has it (or a photograph of it) reads everything in them. Keep it as you keep money, away from the machines that are backed up.".to_owned(),
            ],
            Secret::Share(share) => vec![format!(
                "Any {} of the {} shares of set {} make the key that opens every vault sealed to the recipient below. Fewer say nothing about it. Keep the shares in different places or with different people, and do not photograph them.",
                share.threshold, share.shares, share.set_name()
            )],
        };
        about.push("The printer may keep what it printed: use one that is your own, without network or memory. Then remove the file this was printed from.".to_owned());
        about
    }

    fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = vec![("Recipient", self.of.clone())];
        facts.extend(self.vault.clone().map(|vault| ("Vault", vault)));
        facts.extend(self.owner.clone().map(|owner| ("Owner of the vault", owner)));
        facts.push(("Made", Timestamp::now().strftime("%Y-%m-%d").to_string()));
        facts
    }

    /// How it is used: a heading, then steps or commands.
    fn steps(&self) -> Vec<(&'static str, Vec<String>)> {
        let vault = self.vault.as_deref().unwrap_or("THE-VAULT");
        let owner = self.owner.as_ref().map_or_else(String::new, |owner| format!(" --owner {owner}"));
        let restore = format!("lifeboat restore --vault {vault}{owner} --key my.key --to DIRECTORY");
        let check =
            "Scanned: put what the QR code says into a file, and give that file's name after --read.".to_owned();
        let without =
            "age -d -i my.key keys/content/DATASET/HASH.age > data.key   (docs/vault-format.md tells the rest)";
        match &self.secret {
            Secret::Key(_) => vec![
                (
                    "To use it, type the numbered lines:",
                    vec!["lifeboat key paper --read -o my.key".to_owned(), restore],
                ),
                ("", vec![check]),
                (
                    "Without lifeboat: the QR code is the key as age reads it. Typed, it is AGE-SECRET-KEY-1 and then all characters of the numbered lines, without spaces and without the last group (the checksum) of each line:",
                    vec![without.to_owned()],
                ),
                (
                    "Try it today, not on the day you need it: read it back as above, and compare the recipient.",
                    Vec::new(),
                ),
            ],
            Secret::Share(share) => vec![
                (
                    "To use it, type the numbered lines of each share, then put them together:",
                    vec![
                        format!("lifeboat key paper --read -o share-{}.txt", share.index),
                        "lifeboat key combine share-*.txt -o my.key".to_owned(),
                        restore,
                    ],
                ),
                ("", vec![check]),
                (
                    "Without lifeboat: docs/keys-on-paper.md has a short Python program that puts shares together; then:",
                    vec![without.to_owned()],
                ),
            ],
        }
    }

    pub(super) fn html(&self) -> Result<String, CommandError> {
        let title = self.title();
        let code = drawn(&code(&self.secret)?);
        let page = html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="referrer" content="no-referrer";
                    meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'";
                    title { (title) }
                    style { (PreEscaped(STYLE)) }
                }
                body {
                    h1 { (title) }
                    @for sentence in self.about() { p { (sentence) } }
                    div class="code" { (code) }
                    dl { @for (name, value) in self.facts() { dt { (name) } dd { (value) } } }
                    pre { "\n" (self.secret.lines()) }
                    p class="soft" {
                        "The characters are 2 to 9, 0, and letters without B, I and O. The last group of a line is the line's checksum; lifeboat says which line, and mostly which character, was mistyped."
                    }
                    @for (heading, lines) in self.steps() {
                        @if !heading.is_empty() { p { (heading) } }
                        @for line in lines { p class="line" { (line) } }
                    }
                }
            }
        };
        Ok(page.into_string())
    }

    pub(super) fn text(&self) -> Result<String, CommandError> {
        let mut parts = vec![self.title().to_uppercase()];
        parts.extend(self.about());
        let facts: Vec<String> = self.facts().iter().map(|(name, value)| format!("{name}: {value}")).collect();
        parts.push(facts.join("\n"));
        parts.push(blocks(&code(&self.secret)?));
        parts.push(self.secret.lines().trim_end().to_owned());
        for (heading, lines) in self.steps() {
            let lines = lines.iter().map(|line| format!("  {line}"));
            let told: Vec<String> =
                (!heading.is_empty()).then(|| heading.to_owned()).into_iter().chain(lines).collect();
            parts.push(told.join("\n"));
        }
        Ok(parts.join("\n\n") + "\n")
    }
}

fn code(secret: &Secret) -> Result<QrCode, CommandError> {
    // Upper case: a QR code packs it tighter. The strongest correction: paper folds and fades.
    QrCode::encode_text(&secret.word().to_ascii_uppercase(), QrCodeEcc::High)
        .map_err(|_| CommandError::failed("the key does not fit into a QR code"))
}

/// As SVG, one path.
fn drawn(code: &QrCode) -> Markup {
    let size = code.size();
    let dark = (0..size).flat_map(|y| (0..size).filter(move |x| code.get_module(*x, y)).map(move |x| (x, y)));
    let path: String = dark.map(|(x, y)| format!("M{},{}h1v1h-1z", x + QUIET, y + QUIET)).collect();
    let edge = size + 2 * QUIET;
    html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox=(format!("0 0 {edge} {edge}")) shape-rendering="crispEdges" {
            rect width=(edge) height=(edge) fill="#fff" {}
            path d=(path) fill="#000" {}
        }
    }
}

/// As text, two modules in a character: black ink on white paper.
fn blocks(code: &QrCode) -> String {
    let size = code.size();
    let mut lines = Vec::new();
    for y in (0..size).step_by(2) {
        let line = (0..size).map(|x| match (code.get_module(x, y), code.get_module(x, y + 1)) {
            (true, true) => '█',
            (true, false) => '▀',
            (false, true) => '▄',
            (false, false) => ' ',
        });
        lines.push(format!("    {}", line.collect::<String>().trim_end()));
    }
    lines.join("\n")
}
