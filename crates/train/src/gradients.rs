//! Gradients of all trained parameters, summed over the micro-batches of a step.

use crate::error::{Doing, Error, Result};
use candle_core::{Shape, Tensor, TensorId};
use std::collections::{BTreeSet, HashMap};
use taper_kernels::reduce;
use taper_nn::tape::ParameterGradients;
use taper_nn::{GradientSums, Parameter};

/// One f32 buffer a parameter, in the order of the parameters' names, so that nothing depends on the order in which
/// modules were visited.
#[derive(Debug)]
pub struct Gradients {
    parameters: Vec<Parameter>,
    sums: GradientSums,
    received: Vec<bool>,
    places: HashMap<TensorId, usize>,
    strays: Vec<Vec<usize>>,
}

/// The backward adds to the sums where they lie.
impl ParameterGradients for Gradients {
    fn sum(&mut self, id: TensorId, _shape: &Shape) -> Option<&Tensor> {
        let place = *self.places.get(&id)?;
        self.received[place] = true;
        Some(self.sums.tensor(place))
    }

    fn stray(&mut self, shape: &Shape) {
        self.strays.push(shape.dims().to_vec());
    }
}

impl Gradients {
    /// Empty buffers, 4 bytes an element.
    ///
    /// # Errors
    /// When there is no parameter, or two have one name.
    pub fn new(parameters: &[Parameter]) -> Result<Self> {
        let parameters = ordered(parameters)?;
        let sums = GradientSums::new(&parameters).doing(|| "make room for the gradients".into())?;
        let places = parameters.iter().enumerate().map(|(i, p)| (p.var.as_tensor().id(), i)).collect();
        Ok(Self { received: vec![false; parameters.len()], sums, parameters, places, strays: Vec::new() })
    }

    /// The parameters, ordered by name.
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// The sums, in the order of [`Self::parameters`]: zero for those that received none, as for an expert that no token went to.
    pub fn sums(&self) -> &GradientSums {
        &self.sums
    }

    /// A copy of the sums on the host.
    ///
    /// # Errors
    /// What the device says.
    pub fn to_vecs(&self) -> Result<Vec<Vec<f32>>> {
        self.sums.to_vecs().doing(|| "read the gradients".into())
    }

    /// Which parameters have received a gradient since [`Self::clear`], in the order of [`Self::parameters`].
    pub fn received(&self) -> &[bool] {
        &self.received
    }

    /// Back to zero.
    ///
    /// # Errors
    /// What the device says.
    pub fn clear(&mut self) -> Result<()> {
        self.received.fill(false);
        self.sums.clear().doing(|| "clear the gradients".into())
    }

    /// The shapes of gradients that were made for variables that are no parameters, since the last call.
    pub fn take_strays(&mut self) -> Vec<Vec<usize>> {
        std::mem::take(&mut self.strays)
    }

    /// The Euclidean norm over all elements, in f64, summed in the order of the names.
    ///
    /// # Errors
    /// What the device says.
    pub fn norm(&self) -> Result<f64> {
        self.sums.sum_of_squares().map(f64::sqrt).doing(|| "compute the norm of the gradients".into())
    }

    /// The names of the parameters with a NaN or an infinity.
    ///
    /// # Errors
    /// What the device says.
    pub fn not_finite(&self) -> Result<Vec<String>> {
        let sums = self.to_vecs()?;
        let bad = self.parameters.iter().zip(&sums).filter(|(_, sum)| !reduce::all_finite(sum));
        Ok(bad.map(|(parameter, _)| parameter.name.clone()).collect())
    }
}

/// Factor that brings a gradient of norm `norm` to at most `max_norm`, as `torch.nn.utils.clip_grad_norm_` computes it;
/// `max_norm` 0 never clips.
pub fn clip_factor(norm: f64, max_norm: f64) -> f64 {
    if max_norm > 0.0 { (max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
}

/// The parameters ordered by name.
pub(crate) fn ordered(parameters: &[Parameter]) -> Result<Vec<Parameter>> {
    if parameters.is_empty() {
        return Err(Error::NoParameters);
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = parameters.iter().find(|p| !seen.insert(&p.name)) {
        return Err(Error::DuplicateParameter { name: twice.name.clone() });
    }
    let mut parameters = parameters.to_vec();
    parameters.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor, Var};
    use std::rc::Rc;
    use taper_nn::{ParameterKind, ops, tape};

    fn parameter(name: &str, values: &[f32]) -> Parameter {
        let var = Var::from_tensor(&Tensor::new(values, &Device::Cpu).unwrap()).unwrap();
        Parameter { name: name.into(), kind: ParameterKind::Weight, var }
    }

    #[test]
    fn gradients_add_up_by_name_and_leave_strangers_behind() {
        let (b, a) = (parameter("b", &[3.0, 4.0]), parameter("a", &[1.0, 1.0]));
        let stranger = parameter("c", &[1.0, 1.0]);
        let mut gradients = Gradients::new(&[b.clone(), a.clone()]).unwrap();
        assert_eq!(gradients.parameters()[0].name, "a");
        for _ in 0..2 {
            let sum = || ops::add(&ops::scale(b.var.as_tensor(), 3.0)?, stranger.var.as_tensor());
            let (y, tape) = tape::record(&[], sum).unwrap();
            let seed = Rc::new(Tensor::new(&[2.0f32, 1.0], &Device::Cpu).unwrap());
            tape.backward(&y, seed, [], &mut gradients).unwrap();
            assert_eq!(gradients.take_strays(), [[2]]);
        }
        assert_eq!(gradients.to_vecs().unwrap(), [vec![0.0, 0.0], vec![12.0, 6.0]]);
        assert_eq!(gradients.received(), [false, true]);
        assert_eq!(gradients.norm().unwrap(), 180f64.sqrt());
        gradients.clear().unwrap();
        assert_eq!((gradients.norm().unwrap(), gradients.received()), (0.0, &[false, false][..]));
    }

    #[test]
    fn a_gradient_that_is_not_finite_is_named() {
        let p = parameter("p", &[1.0, 2.0]);
        let mut gradients = Gradients::new(std::slice::from_ref(&p)).unwrap();
        let (y, tape) = tape::record(&[], || ops::scale(p.var.as_tensor(), f64::NAN)).unwrap();
        let seed = Rc::new(y.ones_like().unwrap());
        tape.backward(&y, seed, [], &mut gradients).unwrap();
        assert_eq!(gradients.not_finite().unwrap(), ["p"]);
    }

    #[test]
    fn clipping_never_lengthens() {
        assert_eq!(clip_factor(0.5, 1.0), 1.0);
        assert!((clip_factor(4.0, 1.0) - 0.25).abs() < 1e-6);
        assert_eq!(clip_factor(4.0, 0.0), 1.0);
        assert_eq!(clip_factor(0.0, 1.0), 1.0);
    }

    #[test]
    fn no_parameter_and_one_name_for_two_are_errors() {
        assert!(matches!(Gradients::new(&[]), Err(Error::NoParameters)));
        let twice = [parameter("p", &[1.0]), parameter("p", &[1.0])];
        assert!(matches!(Gradients::new(&twice), Err(Error::DuplicateParameter { .. })));
    }
}
