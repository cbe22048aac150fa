//! Typing errors are found where they were made; any m of n shares make the key, fewer or others do not.
#![allow(clippy::unwrap_used, clippy::panic)]

use proptest::prelude::*;

use super::*;

fn key() -> Secret {
    Secret::Key(Identity::generate())
}

fn share() -> Secret {
    Secret::Share(split(&Identity::generate(), 3, 2).unwrap().remove(1))
}

fn same(left: &Secret, right: &Secret) -> bool {
    left.word() == right.word()
}

fn faults(text: &str) -> Vec<Fault> {
    match read(text) {
        Err(PaperError::Faulty { faults }) => faults,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_printed_reads_back_however_it_is_typed() {
    for secret in [key(), share()] {
        let lines = secret.lines();
        let bare: Vec<&str> = lines.lines().filter(|line| !line.starts_with("-----")).collect();
        let mut backwards = bare.clone();
        backwards.reverse();
        let texts = [
            lines.clone(),
            lines
                .to_ascii_lowercase()
                .replace("-----begin key on paper-----", "")
                .replace("-----end key on paper-----", ""),
            bare.join("\n"),
            bare[1..].join("\n"),
            backwards.join("\r\n"),
            bare[1..bare.len() - 1].join("\n").replace("  ", " ").replace('0', "O").replace('L', "1")
                + "\n"
                + bare[bare.len() - 1],
            format!("<html><pre>{lines}</pre> 7 more words</html>"),
            secret.word(),
            format!("QR-Code:{}\n", secret.word()),
            format!("# a comment\n{}", secret.word().to_ascii_lowercase()),
        ];
        for (place, text) in texts.iter().enumerate() {
            let read = read(text).unwrap_or_else(|e| panic!("text {place}: {e}"));
            assert!(same(&read, &secret), "text {place}");
        }
        assert!(!format!("{secret:?}").contains(&secret.word()[20..40]));
    }
}

#[test]
fn every_slip_of_the_fingers_is_found_in_its_line_and_place() {
    // Always the same ones: of other keys one slip in some thousands looks like another one.
    let lasting: Vec<u8> = (0..32).map(|byte| byte * 7 + 3).collect();
    let identity = share::identity_of(&lasting).unwrap();
    let mut shared = split(&identity, 3, 2).unwrap().remove(1);
    (shared.set, shared.value) = ([7; 4], [9; 32]);
    for secret in [Secret::Key(identity), Secret::Share(shared)] {
        let lines: Vec<String> = secret.lines().lines().map(str::to_owned).collect();
        let with = |line: usize, text: String| {
            let mut lines = lines.clone();
            lines[line + 1] = text;
            lines.join("\n")
        };
        let count = secret.kind().lines();
        for line in 1..=count {
            let printed: Vec<char> = lines[line + 1].chars().collect();
            let written: Vec<usize> = (4..printed.len()).filter(|at| printed[*at] != ' ').collect();
            for (character, at) in (1..).zip(&written) {
                let in_body = written.len() - character >= LINE_CHECK;
                let mut wrong = printed.clone();
                wrong[*at] = if wrong[*at] == 'Q' { 'P' } else { 'Q' };
                let found = faults(&with(line, wrong.iter().collect()));
                let expected = if in_body {
                    Slip::Wrong { character }
                } else {
                    Slip::InChecksum { character: Some(character + LINE_CHECK - written.len()) }
                };
                assert_eq!(found, [Fault { line, slip: expected }], "{printed:?}");
                let mut short = printed.clone();
                short.remove(*at);
                let found = faults(&with(line, short.iter().collect()));
                assert_eq!((found.len(), found[0].line), (1, line));
                let mut swapped = printed.clone();
                let Some(next) = written.get(character).filter(|next| printed[**next] != printed[*at]) else {
                    continue;
                };
                swapped.swap(*at, *next);
                let found = faults(&with(line, swapped.iter().collect()));
                assert_eq!((found.len(), found[0].line), (1, line));
                if written.len() - character > LINE_CHECK {
                    assert_eq!(found[0].slip, Slip::Swapped { character });
                }
            }
            let mut left_out = lines.clone();
            left_out.remove(line + 1);
            assert_eq!(faults(&left_out.join("\n")), [Fault { line, slip: Slip::Missing }]);
        }
        let last = lines.len() - 2;
        let mut no_whole = lines.clone();
        no_whole.remove(last);
        assert_eq!(faults(&no_whole.join("\n")), [Fault { line: 0, slip: Slip::Missing }]);
    }
}

#[test]
fn lines_of_two_pages_do_not_make_a_key() {
    let (left, right) = (key(), key());
    let mut lines: Vec<String> = left.lines().lines().map(str::to_owned).collect();
    lines[3] = right.lines().lines().nth(3).unwrap().to_owned();
    assert!(matches!(read(&lines.join("\n")), Err(PaperError::Mixed)));
    let numbered: Vec<String> = left.lines().lines().map(|line| line.replacen(" 2  ", " 3  ", 1)).collect();
    let text = match read(&numbered.join("\n")) {
        Err(e) => e.to_string(),
        Ok(_) => panic!("a line under another number was taken"),
    };
    assert!(text.contains("line 2 is missing") && text.contains("line 3"), "{text}");
}

#[test]
fn a_word_mistyped_without_its_lines_is_wrong_and_names_no_character() {
    for secret in [key(), share()] {
        let word = secret.word();
        for at in 16..word.len() {
            let mut wrong: Vec<u8> = word.clone().into_bytes();
            wrong[at] = if wrong[at] == b'Q' { b'P' } else { b'Q' };
            let error = read(std::str::from_utf8(&wrong).unwrap()).unwrap_err();
            assert!(matches!(error, PaperError::Mistyped { .. }), "{error}");
        }
        assert!(matches!(read(&word[..word.len() - 1]), Err(PaperError::Mistyped { .. })));
    }
    assert!(matches!(read(""), Err(PaperError::Nothing)));
}

/// A share's word with one byte of it changed and its checksum made to fit.
fn forged(share: &Share, at: usize, byte: u8) -> String {
    let word = share.word();
    let checked = bech32::primitives::decode::CheckedHrpstring::new::<bech32::Bech32m>(&word).unwrap();
    let mut bytes: Vec<u8> = checked.byte_iter().collect();
    bytes[at] = byte;
    bech32::encode_upper::<bech32::Bech32m>(checked.hrp(), &bytes).unwrap()
}

#[test]
fn a_share_of_another_version_or_with_numbers_that_cannot_be_is_refused() {
    let share = split(&Identity::generate(), 3, 2).unwrap().remove(2);
    let (version, threshold, shares, index) = (0, 5, 6, 7);
    assert!(same(&read(&forged(&share, index, 3)).unwrap(), &Secret::Share(share.clone())));
    assert!(matches!(read(&forged(&share, version, 2)), Err(PaperError::Version { found: 2 })));
    for number in [0, 4, 255] {
        let error = read(&forged(&share, index, number)).unwrap_err();
        assert!(matches!(error, PaperError::Mistyped { what: "share" }), "{number}: {error}");
    }
    for (at, number) in [(threshold, 0), (threshold, 1), (threshold, 4), (shares, 33)] {
        assert!(matches!(read(&forged(&share, at, number)), Err(PaperError::Numbers { .. })), "{at} {number}");
    }
}

#[test]
fn a_text_may_be_as_large_as_a_page_and_no_larger() {
    let secret = key();
    let mut text = secret.lines();
    text.extend(std::iter::repeat_n(' ', PAGE_BYTES_MAX - text.len()));
    assert!(same(&read(&text).unwrap(), &secret));
    text.push(' ');
    assert!(matches!(read(&text), Err(PaperError::TooLarge)));
}

#[test]
fn a_line_twice_or_with_a_number_that_no_line_has_is_named() {
    let (left, right) = (key(), key());
    let lines: Vec<String> = left.lines().lines().map(str::to_owned).collect();
    let and = |line: &str| {
        let mut lines = lines.clone();
        lines.insert(lines.len() - 2, line.to_owned());
        lines.join("\n")
    };
    // The same once more is no fault: somebody started again.
    assert!(same(&read(&and(&lines[3])).unwrap(), &left));
    let other = right.lines().lines().nth(3).unwrap().to_owned();
    assert_eq!(faults(&and(&other)), [Fault { line: 2, slip: Slip::Twice }]);
    insta::assert_snapshot!(read(&and(&other)).unwrap_err(), @"it was not typed as it was printed: line 2 is there twice, and differs");
    for number in [0, 5, 17, 99] {
        let stray = format!("{number}{}", &lines[3][2..]);
        assert_eq!(faults(&and(&stray)), [Fault { line: number, slip: Slip::NoSuchLine { lines: 4 } }]);
    }
    insta::assert_snapshot!(read(&and(&format!("17{}", &lines[3][2..]))).unwrap_err(), @"it was not typed as it was printed: line 17: the page has 4 numbered lines only");
}

#[test]
fn a_line_is_asked_for_by_its_number_and_no_other_is_taken_for_it() {
    for secret in [key(), share()] {
        let is_share = secret.kind() == Kind::Share;
        let lines: Vec<String> = secret.lines().lines().skip(2).map(str::to_owned).collect();
        assert_eq!(line_count(is_share), lines.len() - 2);
        for (number, line) in (1..=line_count(is_share)).zip(&lines) {
            assert_eq!(check_line(line, number, is_share), Ok(()));
            // Without its number, as it is asked for.
            assert_eq!(check_line(&line[2..], number, is_share), Ok(()));
            let asked = number % line_count(is_share) + 1;
            assert_eq!(
                check_line(line, asked, is_share),
                Err(Fault { line: asked, slip: Slip::Numbered { found: number } })
            );
            assert!(check_line(&line[2..], asked, is_share).is_err(), "line {number} was taken for line {asked}");
        }
    }
}

fn named(shares: &[Share]) -> Vec<Named> {
    shares.iter().map(|share| Named { name: format!("sheet {}", share.index), share: share.clone() }).collect()
}

#[test]
fn wrong_mixes_are_named() {
    let identity = Identity::generate();
    let (ours, theirs) = (split(&identity, 5, 3).unwrap(), split(&identity, 5, 3).unwrap());
    let error = combine(&named(&[ours[0].clone(), ours[1].clone(), theirs[2].clone()])).unwrap_err().to_string();
    assert!(error.contains("sheet 3 belongs to set") && error.contains(&theirs[0].set_name()), "{error}");
    let error = combine(&named(&[ours[0].clone(), ours[4].clone(), ours[0].clone()])).unwrap_err().to_string();
    assert!(error.contains("2 different shares of set") && error.contains("any of shares 2, 3, 4 will do"), "{error}");
    assert!(combine(&[]).is_err());

    let mut forged = ours.clone();
    forged[1].value[7] ^= 1;
    let error = combine(&named(&forged[..3])).unwrap_err().to_string();
    assert!(error.contains("with one share more it can be said which"), "{error}");
    for forged in [&forged[..4], &forged[..]] {
        let error = combine(&named(forged)).unwrap_err().to_string();
        assert!(error.contains("sheet 2 is not what was printed"), "{error}");
    }
    // One that was not needed is named, too.
    let mut forged = ours.clone();
    forged[4].value[0] ^= 128;
    assert!(combine(&named(&forged)).unwrap_err().to_string().contains("sheet 5 is not what was printed"));
    let both = [ours[1].clone(), forged[4].clone(), ours[4].clone()];
    assert!(matches!(combine(&named(&both)), Err(PaperError::Contradiction { index: 5, .. })));
    let mut other = ours.clone();
    other[2].threshold = 2;
    assert!(matches!(combine(&named(&other[..3])), Err(PaperError::Disagreement { .. })));
    for (shares, threshold) in [(1, 1), (3, 1), (2, 3), (33, 2), (0, 0)] {
        assert!(matches!(split(&identity, shares, threshold), Err(PaperError::Numbers { .. })));
    }
}

/// Libraries have got this wrong: coefficients that were never 0, or always odd, gave the secret away over many splittings.
#[test]
fn fewer_shares_than_the_threshold_say_nothing() {
    let identity = Identity::generate();
    let mut seen = vec![0u32; 256];
    for _ in 0..200 {
        for byte in split(&identity, 2, 2).unwrap()[0].value {
            seen[usize::from(byte)] += 1;
        }
    }
    // 6,400 bytes, 25 of each value expected: chi-square with 255 degrees of freedom is above 390 once in ten million times.
    let chi: f64 = seen.iter().map(|count| (f64::from(*count) - 25.0).powi(2) / 25.0).sum();
    assert!(chi < 390.0, "{chi}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn any_m_of_n_make_the_key_and_fewer_do_not((shares, threshold, order) in (2usize..=8).prop_flat_map(|shares| {
        (Just(shares), 2..=shares, Just((0..shares).collect::<Vec<_>>()).prop_shuffle())
    })) {
        let identity = Identity::generate();
        let made = split(&identity, shares, threshold).unwrap();
        let printed: Vec<Share> = order.iter().map(|at| {
            match read(&Secret::Share(made[*at].clone()).lines()).unwrap() {
                Secret::Share(share) => share,
                Secret::Key(_) => panic!("a share reads as a key"),
            }
        }).collect();
        for count in threshold..=shares {
            let key = combine(&named(&printed[..count])).unwrap();
            prop_assert_eq!(key.expose(), identity.expose());
        }
        let few = combine(&named(&printed[..threshold - 1]));
        prop_assert!(few.is_err_and(|e| e.to_string().contains("are needed")));
    }

    #[test]
    fn no_text_makes_it_stumble(text in "\\PC{0,200}", lines in prop::collection::vec("[ 0-9a-zA-Z:=.-]{0,40}", 0..10)) {
        let _ = read(&text);
        let _ = read(&lines.join("\n"));
        let _ = check_line(&text, 2, true);
    }
}
