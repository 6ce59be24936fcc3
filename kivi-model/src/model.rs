//! A transformer on a backend: its weights, and one step through it. Families put it together from these parts.

mod bytes;
mod layer;

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

/// A normalisation of rows.
pub(crate) enum Norm<B: Backend> {
    /// Root mean square, with a weight.
    Rms(B::Buffer<f32>),
    /// Layer normalisation, with weight and bias.
    Layer(B::Buffer<f32>, B::Buffer<f32>),
}

/// RMS norms of each head of queries and of keys.
pub(crate) struct QkNorm<B: Backend> {
    pub query: B::Buffer<f32>,
    pub key: B::Buffer<f32>,
}

/// One transformer layer; `BlockOrder` says in which order its blocks run.
pub(crate) struct Layer<B: Backend> {
    pub attention_norm: Norm<B>,
    /// Queries, keys and values, stacked.
    pub qkv: Projection<B>,
    pub qk_norm: Option<QkNorm<B>>,
    pub output: Projection<B>,
    /// `None`: the feed-forward block reads what attention reads.
    pub mlp_norm: Option<Norm<B>>,
    /// Gate and up, stacked; up alone where the block has no gate.
    pub gate_up: Projection<B>,
    pub down: Projection<B>,
}

/// A model's weights on a backend.
pub struct Model<B: Backend> {
    pub(crate) config: ModelConfig,
    pub(crate) fingerprint: String,
    pub(crate) embed: Weight<B>,
    pub(crate) layers: Vec<Layer<B>>,
    pub(crate) norm: Norm<B>,
    /// The head, unless it is the embedding.
    pub(crate) head: Option<Weight<B>>,
    /// Slopes of the query heads, where positions are linear biases.
    pub(crate) alibi: Option<B::Buffer<f32>>,
}

/// Activations of a step, allocated once.
pub struct Workspace<B: Backend> {
    hidden: B::Buffer<B::Act>,
    normed: B::Buffer<B::Act>,
    qkv: B::Buffer<B::Act>,
    /// Queries and keys behind their norms, where the model has them.
    normed_qk: Option<B::Buffer<B::Act>>,
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
        Self::read(&config, &mut Loader::new(backend, &checkpoint, progress))
    }

    /// A model of this shape with random weights, made on the device: for measuring. `progress` is called with the bytes done and
    /// in all.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn random(
        backend: &B,
        config: &ModelConfig,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, ModelError<B::Error>> {
        Self::read(config, &mut Loader::random(backend, config, progress))
    }

    fn read(config: &ModelConfig, loader: &mut Loader<'_, B>) -> Result<Self, ModelError<B::Error>> {
        match config.architecture {
            Architecture::Llama | Architecture::Mistral | Architecture::Qwen2 | Architecture::Qwen3 => {
                crate::llama::load(config, loader)
            }
            Architecture::Falcon => crate::falcon::load(config, loader),
        }
    }

    /// What its attention asks of a backend, with pages of this layout: a sliding window if any layer has one.
    pub fn spec(&self, layout: PageLayout) -> Spec {
        let gqa = GqaRatio(self.config.n_heads / self.config.n_kv_heads);
        let window = self.config.windows.iter().any(Option::is_some);
        Spec { layout, gqa, act: B::Act::DTYPE, window, alibi: self.config.alibi }
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
        let qk = (c.n_heads + c.n_kv_heads) * c.head_dim;
        let gate_up = if c.mlp_gated { 2 * c.intermediate_size } else { c.intermediate_size };
        let tables = if c.rope.is_dynamic() { max_seqs } else { 1 };
        let mut inv_freq = backend.zeros(tables * c.head_dim / 2)?;
        if !c.rope.is_dynamic() {
            backend.write(&mut inv_freq, 0, &c.rope.inv_freq(c.head_dim, 0))?;
        }
        Ok(Workspace {
            hidden: backend.zeros(max_tokens * c.hidden_size)?,
            normed: backend.zeros(max_tokens * c.hidden_size)?,
            qkv: backend.zeros(max_tokens * c.qkv_width())?,
            normed_qk: if c.qk_norm { Some(backend.zeros(max_tokens * qk)?) } else { None },
            attended: backend.zeros(max_tokens * c.n_heads * c.head_dim)?,
            projected: backend.zeros(max_tokens * c.hidden_size)?,
            gate_up: backend.zeros(max_tokens * gate_up)?,
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
        batch: &mut Batch<B>,
        probe: &mut Probe<'_, B>,
    ) -> Result<(), StepError<B::Error>> {
        let (c, n) = (&self.config, batch.n_tokens());
        backend.embed(ops::Embed::new(
            RowsMut::new(&mut ws.hidden, n, c.hidden_size)?,
            &self.embed,
            &batch.tokens,
        )?)?;
        probe(0, &ws.hidden)?;
        self.plan_attention(backend, cache, batch)?;
        for (i, layer) in self.layers.iter().enumerate() {
            self.layer(backend, layer, ws, cache, batch, i)?;
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
    /// embedding, `i + 1` for layer `i`, one more than the last layer's for the output head.
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
        let (n_pages, n_slots) = (cache.n_pages(), 1);
        let capacity = BatchCapacity { max_seqs: 1, max_tokens: tokens.len(), max_pages, n_pages, n_slots };
        let mut batch = Batch::new(backend, capacity, &configs)?;
        let groups = cache.plan(&seq, tokens.len());
        batch.plan(backend, &StepPlan { seqs: vec![SeqStep { tokens, len: 0, active: true, groups }] })?;
        let mut ws = self.workspace(backend, tokens.len(), 1)?;
        self.write_frequencies(backend, &mut ws, [tokens.len()].into_iter())?;
        let mut first = None;
        let mut values = vec![B::Act::from_f64(0.0); tokens.len() * self.config.hidden_size];
        self.forward(backend, &mut ws, &mut cache, &mut batch, &mut |part, hidden| {
            backend.read(hidden, 0, &mut values)?;
            if first.is_none() && values.iter().any(|x| !x.to_f64().is_finite()) {
                first = Some(part);
            }
            Ok(())
        })?;
        if first.is_none() {
            let mut logits = vec![B::Act::from_f64(0.0); self.config.vocab_size];
            backend.read(&ws.logits, 0, &mut logits)?;
            first = logits.iter().any(|x| !x.to_f64().is_finite()).then_some(self.layers.len() + 1);
        }
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
}

/// Sees the residual stream between layers.
pub(crate) type Probe<'a, B> = dyn FnMut(usize, &<B as Backend>::Buffer<<B as Backend>::Act>) -> Result<(), StepError<<B as Backend>::Error>>
    + 'a;
