//! Several questions at once.

/// Holm's step-down adjustment (Holm, "A simple sequentially rejective multiple test procedure", 1979), in the order given: p-values that
/// hold at the level as they are, so that the chance of even one false "better" among all metrics stays at it, whatever depends on what.
///
/// The smallest p is multiplied by the number of metrics, the next by one less and so on; none is below the one before it or above 1.
pub fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|a, b| p_values[*a].total_cmp(&p_values[*b]));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut least = 0.0f64;
    for (rank, index) in order.into_iter().enumerate() {
        least = least.max(p_values[index] * (p_values.len() - rank) as f64).min(1.0);
        adjusted[index] = least;
    }
    adjusted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn p_values_are_adjusted_step_by_step() {
        let adjusted = holm(&[0.03, 0.01, 0.04, 0.6]);
        let expected = [0.09, 0.04, 0.09, 0.6];
        assert!(adjusted.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-15), "{adjusted:?}");
        assert!(holm(&[]).is_empty());
    }
}
