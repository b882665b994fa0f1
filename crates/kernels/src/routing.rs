//! Routing tokens to a few of many experts, and mixing what the experts give.
//!
//! E experts, k of them a token. A token's experts are the k largest of its logits; their weights w are those of softmax(logits), divided
//! by their sum where the model says so. out_t = sum over j of `w_tj` part of (t, j). Sources: Shazeer et al., "Outrageously large neural
//! networks: the sparsely-gated mixture-of-experts layer", 2017; Fedus et al., "Switch transformers", 2022.
//!
//! A *place* is the number `t k + j` of a token's j-th expert; the rows of `parts` stand in an order of their own, with the place of each.

use crate::threads::{for_each_rows, rows_per_block};

/// The k largest of each row of logits `[T, E]`, by rising number, in chosen `[T, k]`. Among equals the lower number wins.
///
/// # Panics
/// When a length does not fit or k is not within 1 to E.
pub fn top_k(logits: &[f32], experts: usize, k: usize, chosen: &mut [u32]) {
    assert!((1..=experts).contains(&k), "{k} of {experts} experts");
    assert_eq!(logits.len() / experts * k, chosen.len(), "lengths of logits and chosen");
    for (row, chosen) in logits.chunks_exact(experts).zip(chosen.chunks_exact_mut(k)) {
        for slot in 0..k {
            let mut best: Option<usize> = None;
            for expert in 0..experts {
                let taken = chosen[..slot].contains(&(expert as u32));
                // The first that is left is a candidate even when it is a NaN.
                if !taken && best.is_none_or(|best| row[expert] > row[best]) {
                    best = Some(expert);
                }
            }
            chosen[slot] = best.unwrap_or(0) as u32;
        }
        chosen.sort_unstable();
    }
}

/// The weights `[T, k]` of the chosen experts.
///
/// # Panics
/// When a length does not fit.
pub fn weights_forward(
    logits: &[f32],
    experts: usize,
    chosen: &[u32],
    k: usize,
    normalised: bool,
    weights: &mut [f32],
) {
    assert_eq!((logits.len() / experts * k, weights.len()), (chosen.len(), chosen.len()), "lengths");
    let rows = logits.chunks_exact(experts).zip(chosen.chunks_exact(k)).zip(weights.chunks_exact_mut(k));
    for ((row, chosen), weights) in rows {
        let p = probabilities(row, chosen, normalised);
        for (weight, expert) in weights.iter_mut().zip(chosen) {
            *weight = p[*expert as usize] as f32;
        }
    }
}

/// From g `[T, k]`, the gradient of the logits, `[T, E]`: `p_e (g_e - sum over chosen j of p_j g_j)`, `g_e` being 0 where e was not chosen.
///
/// # Panics
/// When a length does not fit.
pub fn weights_backward(
    g: &[f32],
    logits: &[f32],
    experts: usize,
    chosen: &[u32],
    k: usize,
    normalised: bool,
    dlogits: &mut [f32],
) {
    assert_eq!((g.len(), dlogits.len()), (chosen.len(), logits.len()), "lengths of g and dlogits");
    assert_eq!(logits.len() / experts * k, chosen.len(), "lengths of logits and chosen");
    let inputs = g.chunks_exact(k).zip(chosen.chunks_exact(k)).zip(logits.chunks_exact(experts));
    for (((g, chosen), row), dlogits) in inputs.zip(dlogits.chunks_exact_mut(experts)) {
        let p = probabilities(row, chosen, normalised);
        let pairs = || g.iter().zip(chosen).map(|(g, expert)| (f64::from(*g), *expert as usize));
        let mean: f64 = pairs().map(|(g, expert)| p[expert] * g).sum();
        for (dlogit, p) in dlogits.iter_mut().zip(&p) {
            *dlogit = (-p * mean) as f32;
        }
        for (g, expert) in pairs() {
            dlogits[expert] = (p[expert] * (g - mean)) as f32;
        }
    }
}

/// The softmax of a row, over all experts or (`normalised`) over the chosen ones, the others being 0.
fn probabilities(row: &[f32], chosen: &[u32], normalised: bool) -> Vec<f64> {
    let of = |expert: usize| !normalised || chosen.contains(&(expert as u32));
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let e = |(expert, x): (usize, &f32)| if of(expert) { f64::from(x - most).exp() } else { 0.0 };
    let mut p: Vec<f64> = row.iter().enumerate().map(e).collect();
    let sum: f64 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= sum);
    p
}

/// out `[T, H]` = for each token the sum of its parts times their weights; parts `[T k, H]`, weights `[T, k]`, and for each place the row of
/// its part.
///
/// # Panics
/// When a length does not fit.
pub fn mix_forward(parts: &[f32], weights: &[f32], rows: &[u32], k: usize, width: usize, out: &mut [f32]) {
    assert_eq!(
        (parts.len(), weights.len(), out.len() / width * k),
        (rows.len() * width, rows.len(), rows.len()),
        "lengths of parts, weights and out"
    );
    for_each_rows(out, width, rows_per_block(width), |first, block| {
        for (t, out) in block.chunks_exact_mut(width).enumerate() {
            out.fill(0.0);
            for place in (first + t) * k..(first + t + 1) * k {
                let (weight, row) = (weights[place], rows[place] as usize);
                for (out, part) in out.iter_mut().zip(&parts[row * width..(row + 1) * width]) {
                    *out += weight * part;
                }
            }
        }
    });
}

/// From g `[T, H]`, the gradient of the first rows of parts, as many as dparts has: `w g_t`; places: for each row its place.
///
/// # Panics
/// When a length does not fit.
pub fn mix_backward_parts(
    g: &[f32],
    weights: &[f32],
    places: &[u32],
    k: usize,
    width: usize,
    dparts: &mut [f32],
) {
    assert_eq!(g.len() / width * k, weights.len(), "lengths of g and weights");
    for_each_rows(dparts, width, rows_per_block(width), |first, block| {
        for (row, dpart) in block.chunks_exact_mut(width).enumerate() {
            let place = places[first + row] as usize;
            let (weight, token) = (weights[place], place / k);
            for (dpart, g) in dpart.iter_mut().zip(&g[token * width..(token + 1) * width]) {
                *dpart = weight * g;
            }
        }
    });
}

/// From g `[T, H]`, the gradient of the weights, `[T, k]`: `g_t . part of (t, j)`.
///
/// # Panics
/// When a length does not fit.
pub fn mix_backward_weights(
    g: &[f32],
    parts: &[f32],
    rows: &[u32],
    k: usize,
    width: usize,
    dweights: &mut [f32],
) {
    assert_eq!((dweights.len(), g.len() / width * k), (rows.len(), rows.len()), "lengths of dweights and g");
    for_each_rows(dweights, k, rows_per_block(width * k), |first, block| {
        for (at, dweight) in block.iter_mut().enumerate() {
            let place = first * k + at;
            let (token, row) = (place / k, rows[place] as usize);
            let pairs =
                g[token * width..(token + 1) * width].iter().zip(&parts[row * width..(row + 1) * width]);
            *dweight = pairs.map(|(g, part)| f64::from(*g) * f64::from(*part)).sum::<f64>() as f32;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plain;
    use crate::testing::{assert_close, assert_same_for_any_threads, poisoned, random};

    #[test]
    fn the_largest_are_chosen_and_among_equals_the_first() {
        let logits = [0.0, 3.0, 1.0, 3.0, 2.0, 2.0, 2.0, 2.0, f32::NAN, 1.0, 5.0, 4.0];
        let mut chosen = [9; 6];
        top_k(&logits, 4, 2, &mut chosen);
        assert_eq!(chosen, [1, 3, 0, 1, 0, 2]);
        let mut all = [9; 12];
        top_k(&logits, 4, 4, &mut all);
        assert_eq!(all, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]);
    }

    #[test]
    fn weights_are_the_softmaxs_and_their_gradient_that_of_differences() {
        let (t, experts, k) = (5, 6, 3);
        let (logits, g) = (random(t * experts, 1), random(t * k, 2));
        let logits: Vec<f32> = logits.iter().map(|x| 3.0 * x).collect();
        let mut chosen = vec![0; t * k];
        top_k(&logits, experts, k, &mut chosen);
        for normalised in [false, true] {
            let plain = |logits: &[f64]| -> Vec<f64> {
                let rows = logits.chunks(experts).zip(chosen.chunks(k));
                rows.flat_map(|(row, chosen)| {
                    let e: Vec<f64> = chosen.iter().map(|c| row[*c as usize].exp()).collect();
                    let all: f64 =
                        if normalised { e.iter().sum() } else { row.iter().map(|x| x.exp()).sum() };
                    e.into_iter().map(move |e| e / all)
                })
                .collect()
            };
            let wide = plain::widen(&logits);
            let mut weights = poisoned(t * k);
            weights_forward(&logits, experts, &chosen, k, normalised, &mut weights);
            assert_close(&weights, &plain(&wide), 1e-6, "weights");
            let mut dlogits = poisoned(t * experts);
            weights_backward(&g, &logits, experts, &chosen, k, normalised, &mut dlogits);
            let loss =
                |logits: &[f64]| plain(logits).iter().zip(&g).map(|(w, g)| w * f64::from(*g)).sum::<f64>();
            assert_close(&dlogits, &plain::numeric_gradient(&wide, loss), 1e-5, "gradient");
        }
    }

    /// Rows in an order of their own.
    fn places(t: usize, k: usize) -> (Vec<u32>, Vec<u32>) {
        let n = t * k;
        let places: Vec<u32> = (0..n).map(|row| ((row * 7 + 3) % n) as u32).collect();
        let mut rows = vec![0; n];
        places.iter().enumerate().for_each(|(row, place)| rows[*place as usize] = row as u32);
        (places, rows)
    }

    #[test]
    fn parts_are_mixed_by_their_places_and_so_are_gradients() {
        let (t, k, width) = (5, 2, 9);
        let (places, rows) = places(t, k);
        let (parts, weights, g) = (random(t * k * width, 1), random(t * k, 2), random(t * width, 3));
        let mut out = poisoned(t * width);
        mix_forward(&parts, &weights, &rows, k, width, &mut out);
        let mut want = vec![0f64; t * width];
        let (mut dparts_want, mut dweights_want) = (vec![0f64; parts.len()], vec![0f64; t * k]);
        for (row, place) in places.iter().map(|p| *p as usize).enumerate() {
            for i in 0..width {
                let (at, from) = (place / k * width + i, row * width + i);
                want[at] += f64::from(weights[place]) * f64::from(parts[from]);
                dparts_want[from] = f64::from(weights[place]) * f64::from(g[at]);
                dweights_want[place] += f64::from(parts[from]) * f64::from(g[at]);
            }
        }
        assert_close(&out, &want, 1e-6, "mixed");
        let (mut dparts, mut dweights) = (poisoned(parts.len()), poisoned(t * k));
        mix_backward_parts(&g, &weights, &places, k, width, &mut dparts);
        mix_backward_weights(&g, &parts, &rows, k, width, &mut dweights);
        assert_close(&dparts, &dparts_want, 1e-6, "gradient of parts");
        assert_close(&dweights, &dweights_want, 1e-6, "gradient of weights");
        let mut some = poisoned(3 * width);
        mix_backward_parts(&g, &weights, &places, k, width, &mut some);
        assert_eq!(some, dparts[..3 * width]);
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let (t, k, width) = (101, 3, 500);
        let (places, rows) = places(t, k);
        let (parts, weights, g) = (random(t * k * width, 1), random(t * k, 2), random(t * width, 3));
        assert_same_for_any_threads("mixing", || {
            let (mut out, mut dparts, mut dweights) =
                (poisoned(t * width), poisoned(parts.len()), poisoned(t * k));
            mix_forward(&parts, &weights, &rows, k, width, &mut out);
            mix_backward_parts(&g, &weights, &places, k, width, &mut dparts);
            mix_backward_weights(&g, &parts, &rows, k, width, &mut dweights);
            [out, dparts, dweights].concat()
        });
    }
}
