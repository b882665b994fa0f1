//! One step of AdamW over one tensor whose moments are held in 8 bits: a code an element, and an absolute maximum each block of 256.
//!
//! Source: Dettmers, Lewis, Shleifer and Zettlemoyer, "8-bit optimizers via block-wise quantization", ICLR 2022. The codes are those of a map
//! with a dynamic exponent ([`taper_quant::dynamic::map`]), signed for the first moment and unsigned for the second. Block size, maps and the
//! size from which a tensor is coded are bitsandbytes'; to its numbers the test holds a step. A value gets the code nearest to it; of two that
//! are equally near, the lower.

use crate::adamw::{AdamW, Constants};
use rayon::prelude::*;
use std::sync::LazyLock;
use taper_quant::dynamic;

/// Elements that share an absolute maximum.
pub const BLOCK_SIZE: usize = 256;
/// Tensors of fewer elements keep moments in f32: they take little memory, and norms and biases are sensitive.
pub const LEAST_ELEMENTS: usize = 4096;
/// Elements of a task.
const TASK: usize = 16 * 1024;

/// How the moments of AdamW are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateFormat {
    /// In 8 bits, for tensors of at least [`LEAST_ELEMENTS`].
    pub eight_bit: bool,
    /// On a device, in memory whose pages the driver moves between the host and the device.
    pub paged: bool,
}

impl StateFormat {
    /// Whether a tensor of so many elements has coded moments.
    pub fn is_coded(self, elements: usize) -> bool {
        self.eight_bit && elements >= LEAST_ELEMENTS
    }

    /// Bytes of both moments of a tensor of so many elements.
    pub fn bytes(self, elements: usize) -> usize {
        match self.is_coded(elements) {
            true => 2 * (elements + 4 * elements.div_ceil(BLOCK_SIZE)),
            false => 8 * elements,
        }
    }
}

/// A tensor in codes: element i is `values[codes[i]] * absmax[i / 256]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Coded {
    /// One an element.
    pub codes: Vec<u8>,
    /// One a block; the last block may be short.
    pub absmax: Vec<f32>,
}

impl Coded {
    /// Zeros.
    pub fn zeros(elements: usize) -> Self {
        Self { codes: vec![0; elements], absmax: vec![0.0; elements.div_ceil(BLOCK_SIZE)] }
    }
}

/// A moment of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub enum Moment {
    /// Its elements.
    Plain(Vec<f32>),
    /// Their codes.
    Coded(Coded),
}

impl Moment {
    /// Zeros.
    pub fn zeros(elements: usize, format: StateFormat) -> Self {
        match format.is_coded(elements) {
            true => Self::Coded(Coded::zeros(elements)),
            false => Self::Plain(vec![0.0; elements]),
        }
    }

    /// Whether it is one of a tensor of so many elements in `format`.
    pub fn fits(&self, elements: usize, format: StateFormat) -> bool {
        match self {
            Self::Plain(values) => !format.is_coded(elements) && values.len() == elements,
            Self::Coded(coded) => {
                let blocks = elements.div_ceil(BLOCK_SIZE);
                format.is_coded(elements) && (coded.codes.len(), coded.absmax.len()) == (elements, blocks)
            }
        }
    }
}

/// What codes stand for, and where the values of two neighbours part.
#[derive(Clone, Debug)]
pub struct CodeMap {
    /// Ascending.
    pub values: [f32; 256],
    /// Up to `bounds[c]` a value has code c or a lower one. The last is infinite.
    pub bounds: [f32; 256],
}

impl CodeMap {
    fn new(signed: bool) -> Self {
        let values = dynamic::map(signed);
        let mut bounds = [f32::INFINITY; 256];
        for (bound, pair) in bounds.iter_mut().zip(values.windows(2)) {
            *bound = (pair[0] + pair[1]) / 2.0;
        }
        Self { values, bounds }
    }

    /// The code nearest to `x`: how many bounds lie below it, found by halving. 0 for NaN.
    #[inline(always)]
    fn nearest(&self, x: f32) -> u8 {
        let mut code = 0;
        for width in [128, 64, 32, 16, 8, 4, 2, 1] {
            code += if x > self.bounds[code + width - 1] { width } else { 0 };
        }
        code as u8
    }
}

/// The maps of the first and of the second moment.
pub fn code_maps() -> &'static [CodeMap; 2] {
    static MAPS: LazyLock<[CodeMap; 2]> = LazyLock::new(|| [CodeMap::new(true), CodeMap::new(false)]);
    &MAPS
}

/// Updates the parameter and both moments in place, as [`crate::adamw::adamw_step`] does; the moments are decoded before and coded again
/// after.
///
/// # Panics
/// When the lengths differ or `step` is zero.
pub fn adamw_8bit_step(
    param: &mut [f32],
    grad: &[f32],
    first: &mut Coded,
    second: &mut Coded,
    settings: &AdamW,
) {
    let (n, blocks) = (param.len(), param.len().div_ceil(BLOCK_SIZE));
    assert_eq!((grad.len(), first.codes.len(), second.codes.len()), (n, n, n), "lengths of grad, m, v");
    assert_eq!((first.absmax.len(), second.absmax.len()), (blocks, blocks), "blocks of m, v");
    assert!(settings.step > 0, "steps count from 1");
    let (constants, maps) = (Constants::new(settings), code_maps());
    let moments = tasks(first).zip(tasks(second));
    let tensors = param.par_chunks_mut(TASK).zip(grad.par_chunks(TASK));
    tensors.zip(moments).for_each(|((param, grad), (first, second))| {
        step_blocks(param, grad, first, second, constants, maps);
    });
}

type Codes<'a> = (&'a mut [u8], &'a mut [f32]);

fn tasks(coded: &mut Coded) -> impl IndexedParallelIterator<Item = Codes<'_>> {
    let Coded { codes, absmax } = coded;
    codes.par_chunks_mut(TASK).zip(absmax.par_chunks_mut(TASK / BLOCK_SIZE))
}

multiversion! {
    fn step_blocks(param: &mut [f32], grad: &[f32], first: Codes<'_>, second: Codes<'_>, c: Constants, maps: &[CodeMap; 2]) {
        let blocks = param.chunks_mut(BLOCK_SIZE).zip(grad.chunks(BLOCK_SIZE));
        let first = first.0.chunks_mut(BLOCK_SIZE).zip(first.1);
        let second = second.0.chunks_mut(BLOCK_SIZE).zip(second.1);
        for (((param, grad), (m_codes, m_absmax)), (v_codes, v_absmax)) in blocks.zip(first).zip(second) {
            let (mut m, mut v) = ([0.0; BLOCK_SIZE], [0.0; BLOCK_SIZE]);
            decode(m_codes, *m_absmax, &maps[0], &mut m);
            decode(v_codes, *v_absmax, &maps[1], &mut v);
            for (((p, &g), m), v) in param.iter_mut().zip(grad).zip(&mut m).zip(&mut v) {
                let g = g * c.grad_scale;
                let kept = *p * c.keep;
                *m += c.one_less_beta1 * (g - *m);
                *v = *v * c.beta2 + c.one_less_beta2 * g * g;
                let denominator = v.sqrt() / c.root_correction2 + c.eps;
                *p = kept - c.step_size * *m / denominator;
            }
            *m_absmax = encode(&m[..m_codes.len()], &maps[0], m_codes);
            *v_absmax = encode(&v[..v_codes.len()], &maps[1], v_codes);
        }
    }
}

#[inline(always)]
fn decode(codes: &[u8], absmax: f32, map: &CodeMap, values: &mut [f32; BLOCK_SIZE]) {
    for (value, code) in values.iter_mut().zip(codes) {
        *value = map.values[usize::from(*code)] * absmax;
    }
}

/// Codes of one block, whose absolute maximum is returned: NaN where an element is.
#[inline(always)]
fn encode(values: &[f32], map: &CodeMap, codes: &mut [u8]) -> f32 {
    let larger = |m: f32, x: &f32| if x.abs() <= m || m.is_nan() { m } else { x.abs() };
    let absmax = values.iter().fold(0.0, larger);
    for (code, value) in codes.iter_mut().zip(values) {
        *code = map.nearest(if absmax == 0.0 { 0.0 } else { value / absmax });
    }
    absmax
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adamw::adamw_step;
    use crate::rng::CounterRng;
    use safetensors::SafeTensors;

    fn settings(step: u64) -> AdamW {
        AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, step, grad_scale: 1.0 }
    }

    fn filled(stream: u64, n: usize) -> Vec<f32> {
        let mut x = vec![0.0; n];
        CounterRng::new(9, stream).fill_normal(0, 1.0, &mut x);
        x
    }

    fn decoded(coded: &Coded, map: &CodeMap) -> Vec<f32> {
        let of = |(i, code): (usize, &u8)| map.values[usize::from(*code)] * coded.absmax[i / BLOCK_SIZE];
        coded.codes.iter().enumerate().map(of).collect()
    }

    /// The slow twin: a step in f64 from decoded moments, whose codes are then looked for one by one.
    struct Plain {
        param: Vec<f64>,
        moments: [Vec<f64>; 2],
    }

    impl Plain {
        fn step(param: &[f32], grad: &[f32], coded: [&Coded; 2], s: &AdamW) -> Self {
            let maps = code_maps();
            let mut moments = [0, 1].map(|i| crate::plain::widen(&decoded(coded[i], &maps[i])));
            let mut param = crate::plain::widen(param);
            let correction = |beta: f64| 1.0 - beta.powi(s.step as i32);
            for i in 0..param.len() {
                let g = f64::from(grad[i]) * f64::from(s.grad_scale);
                let [m, v] = [moments[0][i], moments[1][i]];
                let (m, v) = (s.beta1 * m + (1.0 - s.beta1) * g, s.beta2 * v + (1.0 - s.beta2) * g * g);
                param[i] *= 1.0 - s.lr * s.weight_decay;
                param[i] -= s.lr / correction(s.beta1) * m / ((v / correction(s.beta2)).sqrt() + s.eps);
                (moments[0][i], moments[1][i]) = (m, v);
            }
            Self { param, moments }
        }

        /// Whether `coded` is what these moments become, but for codes that a rounding decides.
        fn check(&self, which: usize, coded: &Coded, what: &str) {
            let map = &code_maps()[which].values;
            for (block, values) in self.moments[which].chunks(BLOCK_SIZE).enumerate() {
                let absmax = values.iter().fold(0f64, |m, v| m.max(v.abs()));
                let got = f64::from(coded.absmax[block]);
                assert!((got - absmax).abs() <= 1e-6 * absmax, "{what}: {got} and not {absmax}");
                for (i, value) in values.iter().enumerate() {
                    let off = |code: u8| (f64::from(map[usize::from(code)]) * absmax - value).abs();
                    let least = (0..=255).map(off).fold(f64::INFINITY, f64::min);
                    let got = off(coded.codes[block * BLOCK_SIZE + i]);
                    assert!(got <= least + 3e-7 * absmax, "{what}: {i} of block {block}: {got}, {least}");
                }
            }
        }
    }

    #[test]
    fn a_step_equals_that_of_the_plain_twin_for_any_length() {
        for n in [0usize, 1, 255, 256, 257, 4096, 40_000] {
            let (mut p, g) = (filled(0, n), filled(1, n));
            let (mut m, mut v) = (Coded::zeros(n), Coded::zeros(n));
            for step in 1..=3 {
                let g: Vec<f32> = g.iter().map(|g| g * [1.0, 1e-3, 3.0][step as usize - 1]).collect();
                let settings = AdamW { grad_scale: 0.5, ..settings(step) };
                let want = Plain::step(&p, &g, [&m, &v], &settings);
                adamw_8bit_step(&mut p, &g, &mut m, &mut v, &settings);
                for (p, want) in p.iter().zip(&want.param) {
                    assert!((f64::from(*p) - want).abs() < 1e-6, "{p} and not {want}");
                }
                want.check(0, &m, "first");
                want.check(1, &v, "second");
            }
        }
    }

    #[test]
    fn every_version_and_number_of_threads_gives_the_same_bits() {
        let n = 50_001;
        let run = || {
            let (mut p, mut m, mut v) = (filled(0, n), Coded::zeros(n), Coded::zeros(n));
            (1..4).for_each(|step| {
                adamw_8bit_step(&mut p, &filled(step, n), &mut m, &mut v, &settings(step));
            });
            (p, m, v)
        };
        let want = run();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        assert!(pool.install(run) == want);
        // Those of the plain loop, whatever the instruction set.
        let (mut p, mut m, mut v) = (filled(0, n), Coded::zeros(n), Coded::zeros(n));
        for step in 1..4 {
            let (mut wide_m, mut wide_v) = (decoded(&m, &code_maps()[0]), decoded(&v, &code_maps()[1]));
            adamw_step(&mut p, &filled(step, n), &mut wide_m, &mut wide_v, &settings(step));
            for (coded, values, map) in [(&mut m, wide_m, 0), (&mut v, wide_v, 1)] {
                let blocks = values.chunks(BLOCK_SIZE).zip(coded.codes.chunks_mut(BLOCK_SIZE));
                for ((values, codes), absmax) in blocks.zip(&mut coded.absmax) {
                    *absmax = encode(values, &code_maps()[map], codes);
                }
            }
        }
        assert!((p, m, v) == want);
    }

    #[test]
    fn the_nearest_code_is_found_and_of_two_the_lower() {
        for map in code_maps() {
            for code in 0..=255u8 {
                let i = usize::from(code);
                assert_eq!(map.nearest(map.values[i]), code);
                assert_eq!(map.nearest(map.bounds[i]), code);
                if i < 255 {
                    assert_eq!(map.nearest(map.bounds[i].next_up()), code + 1);
                }
            }
            assert_eq!((map.nearest(f32::NAN), map.values[usize::from(map.nearest(0.0))]), (0, 0.0));
        }
    }

    #[test]
    fn zeros_stay_zeros_and_what_is_not_finite_is_passed_on() {
        let n = 600;
        let (mut p, mut m, mut v) = (vec![1.0; n], Coded::zeros(n), Coded::zeros(n));
        let still = AdamW { weight_decay: 0.0, ..settings(1) };
        adamw_8bit_step(&mut p, &vec![0.0; n], &mut m, &mut v, &still);
        assert!(p.iter().all(|p| *p == 1.0) && m.absmax.iter().chain(&v.absmax).all(|a| *a == 0.0));
        let mut grad = vec![1e-30; n];
        grad[300] = f32::NAN;
        adamw_8bit_step(&mut p, &grad, &mut m, &mut v, &AdamW { step: 2, ..still });
        assert!(p[300].is_nan() && p[0].is_finite() && p[301].is_finite());
        assert!(m.absmax[1].is_nan() && v.absmax[1].is_nan() && m.absmax[0] > 0.0);
        adamw_8bit_step(&mut p, &vec![0.0; n], &mut m, &mut v, &AdamW { step: 3, ..still });
        assert!(p[301].is_nan() && p[0].is_finite());
    }

    /// Each of ten steps of bitsandbytes' CPU backend, from its own state; `optimizers_8bit.py` says with which settings.
    #[test]
    fn ten_steps_are_those_of_bitsandbytes() {
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/train/optimizers_8bit.safetensors");
        let bytes = fs_err::read(path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            let data = file.tensor(name).unwrap().data();
            data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
        };
        let (params, grads) = (floats("params"), floats("grads"));
        let (n, blocks) = (grads.len() / 10, grads.len().div_ceil(10 * BLOCK_SIZE));
        let state = |which: usize, row: usize| Coded {
            codes: file.tensor(&format!("state{which}")).unwrap().data()[row * n..][..n].to_vec(),
            absmax: floats(&format!("absmax{which}"))[row * blocks..][..blocks].to_vec(),
        };
        let (mut same, mut all) = (0, 0);
        for step in 0..10 {
            let mut p = params[step * n..][..n].to_vec();
            let (mut m, mut v) = (state(1, step), state(2, step));
            let grad = &grads[step * n..][..n];
            let settings = settings(step as u64 + 1);
            let exact = Plain::step(&p, grad, [&m, &v], &settings);
            adamw_8bit_step(&mut p, grad, &mut m, &mut v, &settings);
            for (p, want) in p.iter().zip(&params[(step + 1) * n..]) {
                assert!((p - want).abs() <= 1e-6, "step {step}: {p} and not {want}");
            }
            for (which, got) in [&m, &v].into_iter().enumerate() {
                let (theirs, map) = (state(which + 1, step + 1), &code_maps()[which].values);
                for (i, value) in exact.moments[which].iter().enumerate() {
                    let (a, b) = (got.absmax[i / BLOCK_SIZE], theirs.absmax[i / BLOCK_SIZE]);
                    assert!((a - b).abs() <= 1e-6 * b, "step {step}: absmax {a} and not {b}");
                    let off = |code: u8| f64::from(map[usize::from(code)]) * f64::from(b) - value;
                    let (ours, theirs_off) = (off(got.codes[i]).abs(), off(theirs.codes[i]).abs());
                    // Theirs is one of 65536 steps away at most, and never nearer.
                    let allowed = f64::from(b) * 1e-6;
                    assert!(ours <= theirs_off + allowed, "step {step}: {i}: {ours}, {theirs_off}");
                    assert!(theirs_off <= ours + f64::from(b) * 3.2e-5, "step {step}: {i}");
                    (same, all) = (same + usize::from(got.codes[i] == theirs.codes[i]), all + 1);
                }
            }
        }
        assert!(same * 100 >= all * 97, "{same} of {all} codes are the same");
    }

    /// 200 steps downhill on a noisy quadratic: over the tensor, the parameters end 2.9% of their way from those of 32-bit AdamW, and the loss is
    /// the same within 2%.
    #[test]
    fn two_hundred_steps_stay_near_those_of_32_bits() {
        let n = 5000;
        let goal = filled(100, n);
        let curvature: Vec<f32> = filled(101, n).iter().map(|x| x.exp()).collect();
        let loss = |p: &[f32]| -> f64 {
            let one = |i: usize| f64::from(curvature[i]) * f64::from(p[i] - goal[i]).powi(2) / 2.0;
            (0..n).map(one).sum()
        };
        let (mut p32, mut p8) = (vec![0.0; n], vec![0.0; n]);
        let (mut m32, mut v32) = (vec![0.0; n], vec![0.0; n]);
        let (mut m8, mut v8) = (Coded::zeros(n), Coded::zeros(n));
        for step in 1..=200u64 {
            let noise = filled(1000 + step, n);
            let grad = |p: &[f32]| -> Vec<f32> {
                (0..n).map(|i| curvature[i] * (p[i] - goal[i]) + 0.1 * noise[i]).collect()
            };
            let settings = AdamW { beta2: 0.999, weight_decay: 0.01, ..settings(step) };
            let (g32, g8) = (grad(&p32), grad(&p8));
            adamw_step(&mut p32, &g32, &mut m32, &mut v32, &settings);
            adamw_8bit_step(&mut p8, &g8, &mut m8, &mut v8, &settings);
        }
        let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let apart = norm(&mut p32.iter().zip(&p8).map(|(a, b)| a - b)) / norm(&mut p32.iter().copied());
        let (start, end32, end8) = (loss(&vec![0.0; n]), loss(&p32), loss(&p8));
        assert!(apart < 0.04, "{apart} of the way apart");
        assert!(end32 < 0.2 * start && (end8 / end32 - 1.0).abs() < 0.02, "{start}, {end32}, {end8}");
    }
}
