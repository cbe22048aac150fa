//! Medians and ratios.
//!
//! Invariant: a ratio pairs what ran in the same round; a median of nothing is absent, not zero.

/// The middle one, the mean of the middle two.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    let upper = sorted.get(half)?;
    if sorted.len() % 2 == 1 { Some(*upper) } else { sorted.get(half - 1).map(|lower| (lower + upper) / 2.0) }
}

pub(super) fn spread(values: &[f64]) -> Option<(f64, f64)> {
    let least = values.iter().copied().reduce(f64::min)?;
    Some((least, values.iter().copied().reduce(f64::max)?))
}

/// For each round: the best (least) of the others, divided by ours. Above 1 we are the better.
pub(super) fn against_best(ours: &[f64], others: &[Vec<f64>]) -> Vec<f64> {
    let rounds = others.iter().map(Vec::len).chain([ours.len()]).min().unwrap_or(0);
    (0..rounds)
        .filter_map(|round| {
            let best = others.iter().filter_map(|values| values.get(round)).copied().reduce(f64::min)?;
            ours.get(round).map(|own| best / own)
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ratios_pair_rounds_and_take_the_best_of_the_others() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(spread(&[2.0, 1.0]).unwrap(), (1.0, 2.0));
        assert_eq!(against_best(&[1.0, 2.0], &[vec![3.0, 8.0], vec![5.0, 4.0]]), [3.0, 2.0]);
        assert!(against_best(&[1.0], &[vec![]]).is_empty());
    }
}
