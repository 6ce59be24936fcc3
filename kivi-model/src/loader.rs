//! From tensors of a checkpoint to buffers of a backend.

use std::borrow::Cow;
use std::collections::BTreeMap;

use half::{bf16, f16};
use kivi_kernels::{Backend, DType, Element, Weight};

use crate::config::ModelConfig;
use crate::model::{ModelError, Projection};
use crate::random::Random;
use crate::weights::{Checkpoint, TensorView, WeightDtype};

/// Bytes that are uploaded at a time; a multiple of every element's size.
const PIECE: usize = 32 << 20;

/// Where the values of tensors come from.
enum Values<'a> {
    Checkpoint(&'a Checkpoint),
    Random(Box<Random>),
}

/// Uploads tensors by name and tells how far it is.
pub(crate) struct Loader<'a, B: Backend> {
    backend: &'a B,
    from: Values<'a>,
    progress: &'a mut dyn FnMut(u64, u64),
    done: u64,
}

impl<'a, B: Backend> Loader<'a, B> {
    pub fn new(backend: &'a B, checkpoint: &'a Checkpoint, progress: &'a mut dyn FnMut(u64, u64)) -> Self {
        Self { backend, from: Values::Checkpoint(checkpoint), progress, done: 0 }
    }

    /// Random values in place of a checkpoint's; 16-bit ones where activations or `config` have such.
    pub fn random(backend: &'a B, config: &ModelConfig, progress: &'a mut dyn FnMut(u64, u64)) -> Self {
        let dtype = match (B::Act::DTYPE, config.dtype) {
            (DType::F16, _) => WeightDtype::F16,
            (DType::Bf16, _) => WeightDtype::Bf16,
            (_, stated) => stated.unwrap_or(WeightDtype::F32),
        };
        Self { backend, from: Values::Random(Box::new(Random::new(dtype))), progress, done: 0 }
    }

    /// Checks that the checkpoint has the `expected` tensors and no others but those to `ignore`.
    pub fn check(
        &mut self,
        expected: &BTreeMap<String, Vec<usize>>,
        ignore: impl Fn(&str) -> bool,
    ) -> Result<(), ModelError<B::Error>> {
        match &mut self.from {
            Values::Checkpoint(checkpoint) => checkpoint.check(expected, ignore)?,
            Values::Random(random) => random.shapes.clone_from(expected),
        }
        Ok(())
    }

    /// What tells the checkpoint from others.
    pub fn fingerprint(&self, config: &ModelConfig) -> String {
        match &self.from {
            Values::Checkpoint(checkpoint) => checkpoint.fingerprint(&format!("{config:?}")),
            Values::Random(_) => format!("random {config:?}"),
        }
    }

    /// A vector, in f32.
    pub fn vector(&mut self, name: &str) -> Result<B::Buffer<f32>, ModelError<B::Error>> {
        self.vectors(&[name])
    }

    /// A matrix in the checkpoint's dtype, or in that of activations ([`Self::stack`]).
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
        if matches!(self.from, Values::Random(_)) {
            return self.projection(&[name.to_owned()], bias); // Any order is as random.
        }
        let weight = reorder(self.views(&[format!("{name}.weight")])?.remove(0), order);
        let bias = match bias {
            true => {
                let bias = reorder(self.views(&[format!("{name}.bias")])?.remove(0), order);
                self.advance(bias.bytes.len());
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
        if let Values::Random(random) = &self.from {
            let values = random.vector(names);
            self.advance(random.bytes(names));
            return self.upload(&values);
        }
        let views = self.views(names)?;
        let values: Vec<f32> = views.iter().flat_map(to_f32).collect();
        self.advance(views.iter().map(|view| view.bytes.len()).sum());
        self.upload(&values)
    }

    fn matrices<S: AsRef<str>>(&mut self, names: &[S]) -> Result<Weight<B>, ModelError<B::Error>> {
        if matches!(self.from, Values::Random(_)) {
            return self.random_matrix(names);
        }
        let views = self.views(names)?;
        self.stack(&views)
    }

    fn random_matrix<S: AsRef<str>>(&mut self, names: &[S]) -> Result<Weight<B>, ModelError<B::Error>> {
        let Values::Random(random) = &mut self.from else { unreachable!("by the caller") };
        let (backend, len, bytes) = (self.backend, random.len(names), random.bytes(names));
        let weight = match random.dtype {
            WeightDtype::F32 => random_buffer(backend, len, random.next::<f32>()).map(Weight::F32),
            WeightDtype::F16 => random_buffer(backend, len, random.next::<f16>()).map(Weight::F16),
            WeightDtype::Bf16 => random_buffer(backend, len, random.next::<bf16>()).map(Weight::Bf16),
        };
        self.advance(bytes);
        weight.map_err(ModelError::Device)
    }

    /// The elements of all views, in their type, or in that of activations where these have 16 bits: what multiplies them takes
    /// both in one type.
    fn stack(&mut self, views: &[TensorView<'_>]) -> Result<Weight<B>, ModelError<B::Error>> {
        let first = views[0].dtype;
        let same = views.iter().all(|view| view.dtype == first);
        Ok(match B::Act::DTYPE {
            DType::F16 => Weight::F16(self.fill(views)?),
            DType::Bf16 => Weight::Bf16(self.fill(views)?),
            _ if same && first == WeightDtype::F16 => Weight::F16(self.fill(views)?),
            _ if same && first == WeightDtype::Bf16 => Weight::Bf16(self.fill(views)?),
            _ => Weight::F32(self.fill(views)?),
        })
    }

    /// A buffer with the elements of all views, piece by piece, so that no tensor is in memory as a whole.
    fn fill<T: Element>(&mut self, views: &[TensorView<'_>]) -> Result<B::Buffer<T>, ModelError<B::Error>> {
        let len = views.iter().map(|view| view.bytes.len() / view.dtype.size()).sum();
        let mut buffer = self.backend.zeros(len).map_err(ModelError::Device)?;
        let mut at = 0;
        for view in views {
            for bytes in view.bytes.chunks(PIECE) {
                let piece = elements::<T>(view.dtype, bytes);
                self.backend.write(&mut buffer, at, &piece).map_err(ModelError::Device)?;
                at += piece.len();
                self.advance(bytes.len());
            }
        }
        Ok(buffer)
    }

    fn views<S: AsRef<str>>(&self, names: &[S]) -> Result<Vec<TensorView<'a>>, ModelError<B::Error>> {
        let Values::Checkpoint(checkpoint) = self.from else { return Ok(Vec::new()) };
        let views = names.iter().map(|name| checkpoint.tensor(name.as_ref()));
        Ok(views.collect::<Result<Vec<_>, _>>()?)
    }

    fn advance(&mut self, bytes: usize) {
        self.done += bytes as u64;
        let total = match &self.from {
            Values::Checkpoint(checkpoint) => checkpoint.total_bytes(),
            Values::Random(random) => random.total_bytes(),
        };
        (self.progress)(self.done, total);
    }

    fn upload<T: Element>(&self, values: &[T]) -> Result<B::Buffer<T>, ModelError<B::Error>> {
        self.backend.upload(values).map_err(ModelError::Device)
    }
}

fn random_buffer<B: Backend, T: Element>(
    backend: &B,
    len: usize,
    pattern: &[T],
) -> Result<B::Buffer<T>, B::Error> {
    let mut buffer = backend.zeros(len)?;
    backend.repeat(&mut buffer, pattern)?;
    Ok(buffer)
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

/// Elements of type `dtype` as elements of type `T`; those that are such already, and aligned, where they lie.
fn elements<T: Element>(dtype: WeightDtype, bytes: &[u8]) -> Cow<'_, [T]> {
    let same = match dtype {
        WeightDtype::F32 => T::DTYPE == DType::F32,
        WeightDtype::F16 => T::DTYPE == DType::F16,
        WeightDtype::Bf16 => T::DTYPE == DType::Bf16,
    };
    match (same, bytemuck::try_cast_slice(bytes)) {
        (true, Ok(elements)) => Cow::Borrowed(elements),
        (true, Err(_)) => Cow::Owned(read(bytes).collect()),
        (false, _) => Cow::Owned(match dtype {
            WeightDtype::F32 => read::<f32>(bytes).map(|x| T::from_f64(x.into())).collect(),
            WeightDtype::F16 => read::<f16>(bytes).map(|x| T::from_f64(x.into())).collect(),
            WeightDtype::Bf16 => read::<bf16>(bytes).map(|x| T::from_f64(x.into())).collect(),
        }),
    }
}

/// The bytes need not be aligned.
fn read<T: Element>(bytes: &[u8]) -> impl Iterator<Item = T> {
    bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned)
}

fn to_f32(view: &TensorView<'_>) -> Vec<f32> {
    elements(view.dtype, view.bytes).into_owned()
}
