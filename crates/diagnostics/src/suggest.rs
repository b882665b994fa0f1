//! "Did you mean": the nearest of the names that exist.

/// The candidate nearest to `given`, or `None` when none is near enough to be a slip of the finger.
///
/// Nearness is the Jaro-Winkler similarity (0 to 1) of the lowercased names; at least 0.8 counts, or one name containing
/// the other.
pub fn did_you_mean<'a, S: AsRef<str> + 'a + ?Sized>(
    given: &str,
    candidates: impl IntoIterator<Item = &'a S>,
) -> Option<&'a str> {
    let given = given.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (similarity(&given, &candidate.as_ref().to_lowercase()), candidate.as_ref()))
        .filter(|(score, _)| *score >= 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// Names in backticks, comma-separated, at most `most` of them and the count of the rest.
pub fn list_names<S: AsRef<str>>(names: impl IntoIterator<Item = S>, most: usize) -> String {
    let names: Vec<String> = names.into_iter().map(|n| format!("`{}`", n.as_ref())).collect();
    let shown = names.iter().take(most).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(most) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

fn similarity(given: &str, candidate: &str) -> f64 {
    let contained =
        given.len() >= 3 && candidate.len() >= 3 && (candidate.contains(given) || given.contains(candidate));
    let score = strsim::jaro_winkler(given, candidate);
    if contained { score.max(0.85) } else { score }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_name_and_nonsense_finds_none() {
        let names = ["learning_rate", "weight_decay", "adam_beta1"];
        assert_eq!(did_you_mean("lerning_rate", names), Some("learning_rate"));
        assert_eq!(did_you_mean("Learning-Rate", names), Some("learning_rate"));
        assert_eq!(did_you_mean("zebra", names), None);
    }

    #[test]
    fn long_lists_are_cut_and_counted() {
        assert_eq!(list_names(["a", "b", "c"], 2), "`a`, `b` and 1 more");
        assert_eq!(list_names(["a"], 2), "`a`");
    }
}
