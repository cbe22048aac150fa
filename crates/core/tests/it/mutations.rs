//! Plans with parts torn out, doubled and changed: the parser answers, and a plan without an error always becomes one.

use lifeboat_core::plan;
use proptest::prelude::*;

use crate::plans::plans;

fn mutated(text: &str, edits: &[(usize, usize, String)]) -> String {
    let mut text: Vec<char> = text.chars().collect();
    for (at, length, put) in edits {
        let start = at % (text.len() + 1);
        let end = (start + length).min(text.len());
        text.splice(start..end, put.chars());
    }
    text.into_iter().collect()
}

fn look(text: &str) -> Result<(), TestCaseError> {
    let parsed = plan::parse(&[("plan.toml", text)]);
    prop_assert_eq!(parsed.plan.is_none(), parsed.has_errors());
    prop_assert!(parsed.diagnostics.iter().all(|found| found.code != "P0199"));
    for found in &parsed.diagnostics {
        let spans = found.span.iter().chain(found.related.iter().map(|(span, _)| span));
        for span in spans {
            prop_assert!(parsed.files[span.file].text.get(span.range.clone()).is_some());
        }
    }
    crate::rendered::diagnostics(&parsed);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_plan_is_read_or_refused(
        which in 0_usize..2,
        edits in prop::collection::vec((any::<usize>(), 0_usize..40, "[a-z0-9 \\[\\]{}=.\",\\n#é-]{0,12}"), 1..4),
    ) {
        look(&mutated(&plans("good")[which].1, &edits))?;
    }

    /// Lines taken out leave many plans well-formed, so that the checks see them, too.
    #[test]
    fn a_plan_without_some_lines_is_read_or_refused(which in 0_usize..2, gone in prop::collection::vec(any::<usize>(), 1..6)) {
        let text = &plans("good")[which].1;
        let count = text.lines().count();
        let kept = text.lines().enumerate().filter(|(number, _)| !gone.iter().any(|line| line % count == *number));
        look(&kept.map(|(_, line)| format!("{line}\n")).collect::<String>())?;
    }

    /// Values swapped between keys: the right shape, the wrong place.
    #[test]
    fn a_plan_with_values_exchanged_is_read_or_refused(which in 0_usize..2, one: usize, other: usize) {
        let text = &plans("good")[which].1;
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        let keyed: Vec<usize> = (0..lines.len()).filter(|number| lines[*number].contains(" = ")).collect();
        let (one, other) = (keyed[one % keyed.len()], keyed[other % keyed.len()]);
        let value = |line: &str| line.split_once(" = ").map(|(key, value)| (key.to_owned(), value.to_owned())).unwrap();
        let ((key, _), (_, value)) = (value(&lines[one]), value(&lines[other]));
        lines[one] = format!("{key} = {value}");
        look(&lines.join("\n"))?;
    }

    #[test]
    fn noise_is_refused(text in "\\PC{0,300}") {
        look(&text)?;
    }
}
