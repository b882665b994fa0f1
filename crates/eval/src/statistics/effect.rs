//! Effect sizes: differences on a scale that does not depend on the metric.

/// Cohen's h of two shares: `2 asin sqrt(b) - 2 asin sqrt(a)` (Cohen 1988). 0.2 is called small, 0.5 medium, 0.8 large. It does not
/// look at the pairing; `discordant_odds` does.
pub fn cohen_h(a: f64, b: f64) -> f64 {
    let angle = |share: f64| 2.0 * share.clamp(0.0, 1.0).sqrt().asin();
    angle(b) - angle(a)
}

/// Cohen's dz of paired differences: their mean over their standard deviation (n - 1). `None` below two differences or where all are
/// equal.
pub fn cohen_dz(differences: &[f64]) -> Option<f64> {
    let n = differences.len() as f64;
    let mean = differences.iter().sum::<f64>() / n;
    let squares: f64 = differences.iter().map(|d| (d - mean) * (d - mean)).sum();
    let deviation = (squares / (n - 1.0)).sqrt();
    (differences.len() > 1 && deviation > 0.0).then(|| mean / deviation)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn effects_are_those_computed_by_hand() {
        // asin sqrt(1/4) = pi / 6, asin sqrt(3/4) = pi / 3.
        assert!((cohen_h(0.25, 0.75) - std::f64::consts::FRAC_PI_3).abs() < 1e-12);
        assert!((cohen_dz(&[1.0, 2.0, 3.0]).unwrap() - 2.0).abs() < 1e-12);
        assert_eq!((cohen_dz(&[1.0, 1.0]), cohen_dz(&[1.0]), cohen_dz(&[])), (None, None, None));
    }
}
