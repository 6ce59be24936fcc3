//! One layer of a step: attention, the feed-forward block, and in which order they read and add.

use kivi_kernels::{Backend, Batch, Rows, RowsMut, StepError, ops};

use super::{Layer, Model, Norm, Projection, Workspace};
use crate::cache::KvCache;
use crate::config::BlockOrder;

impl<B: Backend> Model<B> {
    pub(super) fn norm(
        &self,
        backend: &B,
        norm: &Norm<B>,
        out: &mut B::Buffer<B::Act>,
        x: &B::Buffer<B::Act>,
        rows: usize,
    ) -> Result<(), StepError<B::Error>> {
        let (n, eps) = (self.config.hidden_size, self.config.norm_eps as f32);
        let (out, x) = (RowsMut::new(out, rows, n)?, Rows::new(x, rows, n)?);
        match norm {
            Norm::Rms(weight) => backend.rms_norm(ops::RmsNorm::new(out, x, weight, eps)?)?,
            Norm::Layer(weight, bias) => {
                backend.layer_norm(ops::LayerNorm::new(out, x, weight, Some(bias), eps)?)?;
            }
        }
        Ok(())
    }

    /// One layer: `ws.hidden` before and after it, and where [`Self::norm_behind`] says so, its norm in `ws.normed`.
    pub(super) fn layer(
        &self,
        backend: &B,
        layer: &Layer<B>,
        ws: &mut Workspace<B>,
        cache: &mut KvCache<B>,
        batch: &Batch<B>,
        index: usize,
    ) -> Result<(), StepError<B::Error>> {
        let (n, sequential) = (batch.n_tokens(), self.config.block_order == BlockOrder::Sequential);
        if index == 0 || self.norm_behind(index - 1).is_none() {
            self.norm(backend, &layer.attention_norm, &mut ws.normed, &ws.hidden, n)?;
        }
        self.queries_and_keys(backend, layer, ws, batch)?;
        self.attention(backend, ws, cache, batch, index)?;
        match &layer.mlp_norm {
            Some(Norm::Rms(weight)) if sequential => {
                self.project_attended(backend, layer, ws, n)?;
                self.add_and_norm(backend, weight, ws, n)?;
            }
            norm => {
                if sequential {
                    self.add_attended(backend, layer, ws, n)?;
                }
                if let Some(norm) = norm {
                    self.norm(backend, norm, &mut ws.normed, &ws.hidden, n)?;
                }
            }
        }
        self.feed_forward(backend, layer, ws, n)?;
        if !sequential {
            self.add_attended(backend, layer, ws, n)?;
        }
        let (hidden, inner) = (self.config.hidden_size, self.config.intermediate_size);
        project(backend, &layer.down, (&mut ws.projected, hidden), (&ws.activated, inner), n)?;
        match self.norm_behind(index) {
            Some(weight) => self.add_and_norm(backend, weight, ws, n),
            None => add(backend, &mut ws.hidden, &ws.projected, n, hidden),
        }
    }

    /// The weight of the norm that the next layer begins with, if layer `index` makes that together with its last addition.
    fn norm_behind(&self, index: usize) -> Option<&B::Buffer<f32>> {
        match &self.layers.get(index + 1)?.attention_norm {
            Norm::Rms(weight) => Some(weight),
            Norm::Layer(..) => None,
        }
    }

    /// Queries, keys and values of `ws.normed`; queries and keys with their norms and rotated.
    fn queries_and_keys(
        &self,
        backend: &B,
        layer: &Layer<B>,
        ws: &mut Workspace<B>,
        batch: &Batch<B>,
    ) -> Result<(), StepError<B::Error>> {
        let (c, n, all) = (&self.config, batch.n_tokens(), self.config.qkv_width());
        let (q, k) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        project(backend, &layer.qkv, (&mut ws.qkv, all), (&ws.normed, c.hidden_size), n)?;
        let (heads, width) = match (&layer.qk_norm, &mut ws.normed_qk) {
            (Some(norm), Some(out)) => {
                for (weight, columns) in [(&norm.query, 0..q), (&norm.key, q..q + k)] {
                    let x = Rows::new(&ws.qkv, n, all)?.columns(columns.clone())?;
                    let out = RowsMut::new(out, n, q + k)?.columns(columns)?;
                    backend.rms_norm(ops::RmsNorm::new(out, x, weight, c.norm_eps as f32)?)?;
                }
                (out, q + k)
            }
            _ => (&mut ws.qkv, all),
        };
        if c.alibi {
            return Ok(());
        }
        let rotated = RowsMut::new(heads, n, width)?.columns(0..q + k)?;
        let table = c.rope.is_dynamic().then_some(&batch.seq_of_row);
        let (dims, scaling) = ((c.head_dim, c.head_dim), c.rope.attention_scaling());
        Ok(backend.rope(ops::Rope::new(rotated, dims, &batch.positions, &ws.inv_freq, table, scaling)?)?)
    }

    /// Works out what the attention of all layers of a cache group shares.
    pub(super) fn plan_attention(
        &self,
        backend: &B,
        cache: &mut KvCache<B>,
        batch: &mut Batch<B>,
    ) -> Result<(), StepError<B::Error>> {
        for (index, &window) in self.config.windows.iter().enumerate() {
            let (kv, group) = cache.layer(index);
            if !batch.attention_is_planned(group) {
                let op = ops::PlanAttend::new((batch, group), kv, self.config.n_heads, window)?;
                backend.plan_attend(op)?;
            }
        }
        Ok(())
    }

    /// Attends to the cache and the new rows, then appends those to the cache.
    fn attention(
        &self,
        backend: &B,
        ws: &mut Workspace<B>,
        cache: &mut KvCache<B>,
        batch: &Batch<B>,
        index: usize,
    ) -> Result<(), StepError<B::Error>> {
        let (c, n, all) = (&self.config, batch.n_tokens(), self.config.qkv_width());
        let (q, k) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let qkv = Rows::new(&ws.qkv, n, all)?;
        let heads = match &ws.normed_qk {
            Some(normed) => Rows::new(normed, n, q + k)?,
            None => qkv,
        };
        let new = (heads.columns(q..q + k)?, qkv.columns(q + k..all)?);
        let (kv, group) = cache.layer(index);
        let scale = 1.0 / (c.head_dim as f32).sqrt();
        let out = RowsMut::new(&mut ws.attended, n, q)?;
        let mut op = ops::Attend::new(out, heads.columns(0..q)?, new, kv, (batch, group), scale)?;
        if let Some(window) = c.windows[index] {
            op = op.with_window(window)?;
        }
        if let Some(slopes) = &self.alibi {
            op = op.with_alibi(slopes)?;
        }
        backend.attend(op)?;
        Ok(backend.append(ops::Append::new(new, kv, (batch, group))?)?)
    }

    /// Adds what attention found to the residual stream.
    fn add_attended(
        &self,
        backend: &B,
        layer: &Layer<B>,
        ws: &mut Workspace<B>,
        n: usize,
    ) -> Result<(), StepError<B::Error>> {
        self.project_attended(backend, layer, ws, n)?;
        add(backend, &mut ws.hidden, &ws.projected, n, self.config.hidden_size)
    }

    fn project_attended(
        &self,
        backend: &B,
        layer: &Layer<B>,
        ws: &mut Workspace<B>,
        n: usize,
    ) -> Result<(), StepError<B::Error>> {
        let (hidden, heads) = (self.config.hidden_size, self.config.n_heads * self.config.head_dim);
        project(backend, &layer.output, (&mut ws.projected, hidden), (&ws.attended, heads), n)
    }

    /// Adds what was projected to the residual stream, and normalises that.
    fn add_and_norm(
        &self,
        backend: &B,
        weight: &B::Buffer<f32>,
        ws: &mut Workspace<B>,
        n: usize,
    ) -> Result<(), StepError<B::Error>> {
        let (cols, eps) = (self.config.hidden_size, self.config.norm_eps as f32);
        let (out, hidden) = (RowsMut::new(&mut ws.normed, n, cols)?, RowsMut::new(&mut ws.hidden, n, cols)?);
        let x = Rows::new(&ws.projected, n, cols)?;
        Ok(backend.add_rms_norm(ops::AddRmsNorm::new(out, hidden, x, weight, eps)?)?)
    }

    /// The feed-forward block up to its activations.
    fn feed_forward(
        &self,
        backend: &B,
        layer: &Layer<B>,
        ws: &mut Workspace<B>,
        n: usize,
    ) -> Result<(), StepError<B::Error>> {
        let (c, inner) = (&self.config, self.config.intermediate_size);
        let width = if c.mlp_gated { 2 * inner } else { inner };
        project(backend, &layer.gate_up, (&mut ws.gate_up, width), (&ws.normed, c.hidden_size), n)?;
        let gate_up = Rows::new(&ws.gate_up, n, width)?;
        let up = if c.mlp_gated { Some(gate_up.columns(inner..width)?) } else { None };
        let out = RowsMut::new(&mut ws.activated, n, inner)?;
        let op = ops::Activate::new(out, gate_up.columns(0..inner)?, up, c.hidden_act)?;
        Ok(backend.activate(op)?)
    }
}

/// `out[n, features] = x[n, features] projection^T`.
fn project<B: Backend>(
    backend: &B,
    projection: &Projection<B>,
    (out, out_features): (&mut B::Buffer<B::Act>, usize),
    (x, in_features): (&B::Buffer<B::Act>, usize),
    n: usize,
) -> Result<(), StepError<B::Error>> {
    let (out, x) = (RowsMut::new(out, n, out_features)?, Rows::new(x, n, in_features)?);
    Ok(backend.linear(ops::Linear::new(out, x, &projection.weight, projection.bias.as_ref())?)?)
}

/// `out[n, cols] += x[n, cols]`.
fn add<B: Backend>(
    backend: &B,
    out: &mut B::Buffer<B::Act>,
    x: &B::Buffer<B::Act>,
    n: usize,
    cols: usize,
) -> Result<(), StepError<B::Error>> {
    Ok(backend.add(ops::Add::new(RowsMut::new(out, n, cols)?, Rows::new(x, n, cols)?)?)?)
}
