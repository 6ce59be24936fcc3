//! A transformer on a backend: its weights, and one step through it. Families put it together from these parts.

use kivi_kernels::{
    Backend, Batch, BatchCapacity, Element, GqaRatio, Rows, RowsMut, SeqStep, Spec, StepError, StepPlan,
    Weight, ops,
};
use kivi_quant::{Bits, GroupSize, KiviConfig, KvDtype, PageLayout};

use crate::cache::{CacheShape, CacheSizes, KvCache};
use crate::config::{Architecture, ModelConfig};
use crate::error::LoadError;
use crate::loader::Loader;
use crate::source::Source;
use crate::weights::Checkpoint;

/// Why a model could not be loaded onto a backend.
#[derive(Debug, thiserror::Error)]
pub enum ModelError<E: kivi_kernels::KernelError> {
    /// The checkpoint.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The device.
    #[error("loading weights: {0}")]
    Device(#[source] E),
}

/// A matrix product with optional bias, `[out_features, in_features]`.
pub(crate) struct Projection<B: Backend> {
    pub weight: Weight<B>,
    pub bias: Option<B::Buffer<f32>>,
}

/// One transformer layer: `h += attention(norm(h)); h += mlp(norm(h))`.
pub(crate) struct Layer<B: Backend> {
    pub attention_norm: B::Buffer<f32>,
    /// Queries, keys and values, stacked.
    pub qkv: Projection<B>,
    pub output: Projection<B>,
    pub mlp_norm: B::Buffer<f32>,
    /// Gate and up, stacked.
    pub gate_up: Projection<B>,
    pub down: Projection<B>,
}

/// A model's weights on a backend.
pub struct Model<B: Backend> {
    pub(crate) config: ModelConfig,
    pub(crate) fingerprint: String,
    pub(crate) embed: Weight<B>,
    pub(crate) layers: Vec<Layer<B>>,
    pub(crate) norm: B::Buffer<f32>,
    /// The head, unless it is the embedding.
    pub(crate) head: Option<Weight<B>>,
}

/// Activations of a step, allocated once.
pub struct Workspace<B: Backend> {
    hidden: B::Buffer<B::Act>,
    normed: B::Buffer<B::Act>,
    qkv: B::Buffer<B::Act>,
    attended: B::Buffer<B::Act>,
    projected: B::Buffer<B::Act>,
    gate_up: B::Buffer<B::Act>,
    activated: B::Buffer<B::Act>,
    last: B::Buffer<B::Act>,
    /// `[max_seqs, vocab_size]`: a row a sequence of the step.
    pub logits: B::Buffer<B::Act>,
    /// One row a sequence where the frequencies depend on its length, else one row.
    inv_freq: B::Buffer<f32>,
}

impl<B: Backend> Model<B> {
    /// Reads the model of `source` onto `backend`. `progress` is called with the bytes done and in all.
    ///
    /// # Errors
    /// A checkpoint that is incomplete, damaged or not supported, or a failure of the device.
    pub fn load(
        backend: &B,
        source: &Source,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, ModelError<B::Error>> {
        let config = ModelConfig::load(source)?;
        let checkpoint = Checkpoint::open(source)?;
        match config.architecture {
            Architecture::Llama => {
                crate::llama::load(&config, &mut Loader::new(backend, &checkpoint, progress))
            }
        }
    }

    /// What its attention asks of a backend, with pages of this layout.
    pub fn spec(&self, layout: PageLayout) -> Spec {
        let gqa = GqaRatio(self.config.n_heads / self.config.n_kv_heads);
        Spec { layout, gqa, act: B::Act::DTYPE, window: false, alibi: false }
    }

    /// What the model is.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What tells this model from others: a hash of its configuration and of a part of each tensor, before they were loaded. Saved
    /// caches carry it.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Allocates activations for steps of up to `max_tokens` rows and `max_seqs` sequences.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn workspace(
        &self,
        backend: &B,
        max_tokens: usize,
        max_seqs: usize,
    ) -> Result<Workspace<B>, B::Error> {
        let c = &self.config;
        let heads = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim;
        let tables = if c.rope.is_dynamic() { max_seqs } else { 1 };
        let mut inv_freq = backend.zeros(tables * c.head_dim / 2)?;
        if !c.rope.is_dynamic() {
            backend.write(&mut inv_freq, 0, &c.rope.inv_freq(c.head_dim, 0))?;
        }
        Ok(Workspace {
            hidden: backend.zeros(max_tokens * c.hidden_size)?,
            normed: backend.zeros(max_tokens * c.hidden_size)?,
            qkv: backend.zeros(max_tokens * heads)?,
            attended: backend.zeros(max_tokens * c.n_heads * c.head_dim)?,
            projected: backend.zeros(max_tokens * c.hidden_size)?,
            gate_up: backend.zeros(max_tokens * 2 * c.intermediate_size)?,
            activated: backend.zeros(max_tokens * c.intermediate_size)?,
            last: backend.zeros(max_seqs * c.hidden_size)?,
            logits: backend.zeros(max_seqs * c.vocab_size)?,
            inv_freq,
        })
    }

    /// Runs one step: attends and appends the batch's new tokens in every layer, and leaves the logits of each
    /// sequence's last row in `ws.logits`. `probe` sees the residual stream after the embedding (0) and after
    /// layer `i` (`i + 1`).
    ///
    /// # Errors
    /// Shapes that do not fit (a fault of kivi), or a failure of the device.
    pub(crate) fn forward(
        &self,
        backend: &B,
        ws: &mut Workspace<B>,
        cache: &mut KvCache<B>,
        batch: &Batch<B>,
        probe: &mut Probe<'_, B>,
    ) -> Result<(), StepError<B::Error>> {
        let (c, n) = (&self.config, batch.n_tokens());
        backend.embed(ops::Embed::new(
            RowsMut::new(&mut ws.hidden, n, c.hidden_size)?,
            &self.embed,
            &batch.tokens,
        )?)?;
        probe(0, &ws.hidden)?;
        for (i, layer) in self.layers.iter().enumerate() {
            self.attention(backend, layer, ws, cache, batch, i)?;
            self.mlp(backend, layer, ws, n)?;
            probe(i + 1, &ws.hidden)?;
        }
        let seqs = batch.n_seqs();
        let last = RowsMut::new(&mut ws.last, seqs, c.hidden_size)?;
        backend.gather(ops::Gather::new(last, Rows::new(&ws.hidden, n, c.hidden_size)?, &batch.last_row)?)?;
        self.norm(backend, &self.norm, &mut ws.normed, &ws.last, seqs)?;
        let logits = RowsMut::new(&mut ws.logits, seqs, c.vocab_size)?;
        let x = Rows::new(&ws.normed, seqs, c.hidden_size)?;
        backend.linear(ops::Linear::new(logits, x, self.head.as_ref().unwrap_or(&self.embed), None)?)?;
        Ok(())
    }

    /// Runs `tokens` alone, unquantized over rows of `kv_dtype`, and says after which part a value is not finite first: 0 for the
    /// embedding, `i + 1` for layer `i`.
    pub(crate) fn first_not_finite(
        &self,
        backend: &B,
        tokens: &[u32],
        kv_dtype: KvDtype,
    ) -> Result<Option<usize>, StepError<B::Error>> {
        let config = KiviConfig::new(Bits::B16, Bits::B16, GroupSize::G32, 32).expect("a valid setting");
        let config = config.with_kv_dtype(kv_dtype);
        let shape = CacheShape::new(&self.config, &config.into()).expect("this model has a cache already");
        let configs = shape.configs();
        let sizes = CacheSizes { pool_tokens: tokens.len(), n_slots: 1, step_tokens: tokens.len() };
        let mut cache = KvCache::new(backend, shape, sizes)?;
        let mut seq = cache.open().expect("one slot");
        cache.reserve(&mut seq, tokens.len());
        let max_pages = vec![config.pages(tokens.len()); configs.len()];
        let capacity = BatchCapacity { max_seqs: 1, max_tokens: tokens.len(), max_pages };
        let mut batch = Batch::new(backend, capacity, &configs)?;
        let groups = cache.plan(&seq, tokens.len());
        batch.plan(backend, &StepPlan { seqs: vec![SeqStep { tokens, len: 0, active: true, groups }] })?;
        let mut ws = self.workspace(backend, tokens.len(), 1)?;
        self.write_frequencies(backend, &mut ws, [tokens.len()].into_iter())?;
        let mut first = None;
        let mut values = vec![B::Act::from_f64(0.0); tokens.len() * self.config.hidden_size];
        self.forward(backend, &mut ws, &mut cache, &batch, &mut |part, hidden| {
            backend.read(hidden, 0, &mut values)?;
            if first.is_none() && values.iter().any(|x| !x.to_f64().is_finite()) {
                first = Some(part);
            }
            Ok(())
        })?;
        Ok(first)
    }

    /// Writes the frequencies of each sequence of the step, where they depend on its length.
    pub(crate) fn write_frequencies(
        &self,
        backend: &B,
        ws: &mut Workspace<B>,
        lens_after: impl Iterator<Item = usize>,
    ) -> Result<(), B::Error> {
        if !self.config.rope.is_dynamic() {
            return Ok(());
        }
        let head_dim = self.config.head_dim;
        let rows: Vec<f32> = lens_after.flat_map(|len| self.config.rope.inv_freq(head_dim, len)).collect();
        backend.write(&mut ws.inv_freq, 0, &rows)
    }

    fn norm(
        &self,
        backend: &B,
        weight: &B::Buffer<f32>,
        out: &mut B::Buffer<B::Act>,
        x: &B::Buffer<B::Act>,
        rows: usize,
    ) -> Result<(), StepError<B::Error>> {
        let (n, eps) = (self.config.hidden_size, self.config.norm_eps as f32);
        Ok(backend.rms_norm(ops::RmsNorm::new(
            RowsMut::new(out, rows, n)?,
            Rows::new(x, rows, n)?,
            weight,
            eps,
        )?)?)
    }

    fn attention(
        &self,
        backend: &B,
        layer: &Layer<B>,
        ws: &mut Workspace<B>,
        cache: &mut KvCache<B>,
        batch: &Batch<B>,
        index: usize,
    ) -> Result<(), StepError<B::Error>> {
        let (c, n) = (&self.config, batch.n_tokens());
        let (q, k) = (c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim);
        let all = q + 2 * k;
        self.norm(backend, &layer.attention_norm, &mut ws.normed, &ws.hidden, n)?;
        project(backend, &layer.qkv, (&mut ws.qkv, all), (&ws.normed, c.hidden_size), n)?;
        let rotated = RowsMut::new(&mut ws.qkv, n, all)?.columns(0..q + k)?;
        let table = c.rope.is_dynamic().then_some(&batch.seq_of_row);
        let dims = (c.head_dim, c.head_dim);
        let scaling = c.rope.attention_scaling();
        backend.rope(ops::Rope::new(rotated, dims, &batch.positions, &ws.inv_freq, table, scaling)?)?;
        let qkv = Rows::new(&ws.qkv, n, all)?;
        let new = (qkv.columns(q..q + k)?, qkv.columns(q + k..all)?);
        let (kv, group) = cache.layer(index);
        let scale = 1.0 / (c.head_dim as f32).sqrt();
        let out = RowsMut::new(&mut ws.attended, n, q)?;
        backend.attend(ops::Attend::new(out, qkv.columns(0..q)?, new, kv, (batch, group), scale)?)?;
        backend.append(ops::Append::new(new, kv, (batch, group))?)?;
        project(backend, &layer.output, (&mut ws.projected, c.hidden_size), (&ws.attended, q), n)?;
        add(backend, &mut ws.hidden, &ws.projected, n, c.hidden_size)
    }

    fn mlp(
        &self,
        backend: &B,
        layer: &Layer<B>,
        ws: &mut Workspace<B>,
        n: usize,
    ) -> Result<(), StepError<B::Error>> {
        let (hidden, inner) = (self.config.hidden_size, self.config.intermediate_size);
        self.norm(backend, &layer.mlp_norm, &mut ws.normed, &ws.hidden, n)?;
        project(backend, &layer.gate_up, (&mut ws.gate_up, 2 * inner), (&ws.normed, hidden), n)?;
        let gate_up = Rows::new(&ws.gate_up, n, 2 * inner)?;
        let (gate, up) = (gate_up.columns(0..inner)?, gate_up.columns(inner..2 * inner)?);
        let out = RowsMut::new(&mut ws.activated, n, inner)?;
        backend.activate(ops::Activate::new(out, gate, Some(up), self.config.hidden_act)?)?;
        project(backend, &layer.down, (&mut ws.projected, hidden), (&ws.activated, inner), n)?;
        add(backend, &mut ws.hidden, &ws.projected, n, hidden)
    }
}

/// Sees the residual stream between layers.
pub(crate) type Probe<'a, B> = dyn FnMut(usize, &<B as Backend>::Buffer<<B as Backend>::Act>) -> Result<(), StepError<<B as Backend>::Error>>
    + 'a;

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
