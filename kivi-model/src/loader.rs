//! From tensors of a checkpoint to buffers of a backend.

use std::collections::BTreeMap;

use half::{bf16, f16};
use kivi_kernels::{Backend, Element, Weight};

use crate::config::ModelConfig;
use crate::model::{ModelError, Projection};
use crate::weights::{Checkpoint, TensorView, WeightDtype};

/// Uploads tensors by name and tells how far it is.
pub(crate) struct Loader<'a, B: Backend> {
    backend: &'a B,
    checkpoint: &'a Checkpoint,
    progress: &'a mut dyn FnMut(u64, u64),
    done: u64,
}

impl<'a, B: Backend> Loader<'a, B> {
    pub fn new(backend: &'a B, checkpoint: &'a Checkpoint, progress: &'a mut dyn FnMut(u64, u64)) -> Self {
        Self { backend, checkpoint, progress, done: 0 }
    }

    /// Checks that the checkpoint has the `expected` tensors and no others but those to `ignore`.
    pub fn check(
        &self,
        expected: &BTreeMap<String, Vec<usize>>,
        ignore: impl Fn(&str) -> bool,
    ) -> Result<(), ModelError<B::Error>> {
        Ok(self.checkpoint.check(expected, ignore)?)
    }

    /// What tells the checkpoint from others.
    pub fn fingerprint(&self, config: &ModelConfig) -> String {
        self.checkpoint.fingerprint(&format!("{config:?}"))
    }

    /// A vector, in f32.
    pub fn vector(&mut self, name: &str) -> Result<B::Buffer<f32>, ModelError<B::Error>> {
        self.vectors(&[name])
    }

    /// A matrix in the checkpoint's dtype.
    pub fn matrix(&mut self, name: &str) -> Result<Weight<B>, ModelError<B::Error>> {
        self.matrices(&[name])
    }

    /// The product with the matrices `NAME.weight`, their rows stacked, and, with `bias`, `NAME.bias` likewise.
    pub fn projection(
        &mut self,
        names: &[String],
        bias: bool,
    ) -> Result<Projection<B>, ModelError<B::Error>> {
        let with = |suffix: &str| names.iter().map(|name| format!("{name}.{suffix}")).collect::<Vec<_>>();
        let weight = self.matrices(&with("weight"))?;
        let bias = if bias { Some(self.vectors(&with("bias"))?) } else { None };
        Ok(Projection { weight, bias })
    }

    /// As [`Loader::projection`] of one matrix, whose rows are `order.len()` equal blocks; block `i` of the result is block
    /// `order[i]` of the checkpoint.
    pub fn reordered(
        &mut self,
        name: &str,
        bias: bool,
        order: &[usize],
    ) -> Result<Projection<B>, ModelError<B::Error>> {
        let weight = reorder(self.views(&[format!("{name}.weight")])?.remove(0), order);
        let bias = match bias {
            true => {
                let bias = reorder(self.views(&[format!("{name}.bias")])?.remove(0), order);
                Some(self.values(&to_f32(&bias.view()))?)
            }
            false => None,
        };
        Ok(Projection { weight: self.stack(&[weight.view()])?, bias })
    }

    /// Values that no tensor has.
    pub fn values(&self, values: &[f32]) -> Result<B::Buffer<f32>, ModelError<B::Error>> {
        self.upload(values)
    }

    fn vectors<S: AsRef<str>>(&mut self, names: &[S]) -> Result<B::Buffer<f32>, ModelError<B::Error>> {
        let views = self.views(names)?;
        let values: Vec<f32> = views.iter().flat_map(to_f32).collect();
        self.upload(&values)
    }

    fn matrices<S: AsRef<str>>(&mut self, names: &[S]) -> Result<Weight<B>, ModelError<B::Error>> {
        let views = self.views(names)?;
        self.stack(&views)
    }

    fn stack(&self, views: &[TensorView<'_>]) -> Result<Weight<B>, ModelError<B::Error>> {
        let dtype = views[0].dtype;
        if views.iter().any(|view| view.dtype != dtype) {
            let values: Vec<f32> = views.iter().flat_map(to_f32).collect();
            return Ok(Weight::F32(self.upload(&values)?));
        }
        Ok(match dtype {
            WeightDtype::F32 => Weight::F32(self.upload(&stacked::<f32>(views))?),
            WeightDtype::F16 => Weight::F16(self.upload(&stacked::<f16>(views))?),
            WeightDtype::Bf16 => Weight::Bf16(self.upload(&stacked::<bf16>(views))?),
        })
    }

    fn views<S: AsRef<str>>(&mut self, names: &[S]) -> Result<Vec<TensorView<'a>>, ModelError<B::Error>> {
        let views = names.iter().map(|name| self.checkpoint.tensor(name.as_ref()));
        let views = views.collect::<Result<Vec<_>, _>>()?;
        self.done += views.iter().map(|view| view.bytes.len() as u64).sum::<u64>();
        (self.progress)(self.done, self.checkpoint.total_bytes());
        Ok(views)
    }

    fn upload<T: Element>(&self, values: &[T]) -> Result<B::Buffer<T>, ModelError<B::Error>> {
        self.backend.upload(values).map_err(ModelError::Device)
    }
}

/// A tensor whose blocks of rows are in another order than in the checkpoint.
struct Reordered<'a> {
    tensor: TensorView<'a>,
    bytes: Vec<u8>,
}

impl Reordered<'_> {
    fn view(&self) -> TensorView<'_> {
        TensorView { bytes: &self.bytes, ..self.tensor.clone() }
    }
}

fn reorder<'a>(tensor: TensorView<'a>, order: &[usize]) -> Reordered<'a> {
    let block = tensor.bytes.len() / order.len();
    let bytes = order.iter().flat_map(|i| &tensor.bytes[i * block..][..block]).copied().collect();
    Reordered { tensor, bytes }
}

/// The elements of all views, one after the other. The bytes need not be aligned.
fn stacked<T: Element>(views: &[TensorView<'_>]) -> Vec<T> {
    let size = size_of::<T>();
    let bytes = views.iter().flat_map(|view| view.bytes.chunks_exact(size));
    bytes.map(bytemuck::pod_read_unaligned).collect()
}

fn to_f32(view: &TensorView<'_>) -> Vec<f32> {
    let one = std::slice::from_ref(view);
    match view.dtype {
        WeightDtype::F32 => stacked::<f32>(one),
        WeightDtype::F16 => stacked::<f16>(one).into_iter().map(f16::to_f32).collect(),
        WeightDtype::Bf16 => stacked::<bf16>(one).into_iter().map(bf16::to_f32).collect(),
    }
}
