//! Bytes that a model takes on its device.

use kivi_kernels::{Backend, Buffer, Weight};

use super::{Layer, Model, Norm, Projection};

impl<B: Backend> Model<B> {
    /// Bytes of all weights as they are on the device.
    pub fn bytes(&self) -> u64 {
        let layers: u64 = self.layers.iter().map(layer).sum();
        let head = self.head.as_ref().map_or(0, matrix);
        let alibi = self.alibi.as_ref().map_or(0, vector::<B>);
        layers + matrix(&self.embed) + norm(&self.norm) + head + alibi
    }
}

fn layer<B: Backend>(layer: &Layer<B>) -> u64 {
    let projections =
        [&layer.qkv, &layer.output, &layer.gate_up, &layer.down].map(projection).iter().sum::<u64>();
    let qk_norm = layer.qk_norm.as_ref().map_or(0, |n| vector::<B>(&n.query) + vector::<B>(&n.key));
    projections + norm(&layer.attention_norm) + layer.mlp_norm.as_ref().map_or(0, norm) + qk_norm
}

fn projection<B: Backend>(projection: &Projection<B>) -> u64 {
    matrix(&projection.weight) + projection.bias.as_ref().map_or(0, vector::<B>)
}

fn norm<B: Backend>(norm: &Norm<B>) -> u64 {
    match norm {
        Norm::Rms(weight) => vector::<B>(weight),
        Norm::Layer(weight, bias) => vector::<B>(weight) + vector::<B>(bias),
    }
}

fn matrix<B: Backend>(weight: &Weight<B>) -> u64 {
    let size = if matches!(weight, Weight::F32(_)) { 4 } else { 2 };
    (weight.len() * size) as u64
}

fn vector<B: Backend>(vector: &B::Buffer<f32>) -> u64 {
    (vector.len() * size_of::<f32>()) as u64
}
