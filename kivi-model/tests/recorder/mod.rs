//! A backend that computes nothing and writes down what it is asked for. Every element is 0.

use std::cell::{Cell, RefCell};
use std::marker::PhantomData;

use kivi_kernels::{
    Backend, Buffer, Element, ErrorKind, KernelError, Rows, RowsMut, Spec, StepError, StepKey, Weight, ops,
};

/// What the device fails with.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("no memory for {0} elements")]
    OutOfMemory(usize),
    #[error("the device is gone")]
    Lost,
}

impl KernelError for Failure {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::OutOfMemory(_) => ErrorKind::OutOfMemory,
            Self::Lost => ErrorKind::DeviceLost,
        }
    }
}

/// A buffer of zeros, with a number of its own.
pub struct Zeros<T> {
    len: usize,
    id: usize,
    element: PhantomData<T>,
}

impl<T: Element> Buffer<T> for Zeros<T> {
    fn len(&self) -> usize {
        self.len
    }
}

/// One call: an op and its operands, and the buffers that they lie in.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    pub text: String,
    pub buffers: Vec<usize>,
}

pub struct Recorder {
    /// Whether kernels are said to exist.
    pub supported: bool,
    /// Elements of the largest buffer that there is memory for.
    pub largest: Cell<usize>,
    /// The op that fails.
    pub failing: Cell<&'static str>,
    pub specs: RefCell<Vec<Spec>>,
    calls: RefCell<Vec<Call>>,
    buffers: Cell<usize>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            supported: true,
            largest: Cell::new(usize::MAX),
            failing: Cell::new(""),
            specs: RefCell::default(),
            calls: RefCell::default(),
            buffers: Cell::new(0),
        }
    }
}

impl Recorder {
    /// The calls since the last one of this.
    pub fn take(&self) -> Vec<Call> {
        self.calls.take()
    }

    fn call(&self, text: String, buffers: &[usize]) -> Result<(), Failure> {
        let failing = self.failing.get();
        if !failing.is_empty() && text.starts_with(failing) {
            return Err(Failure::Lost);
        }
        self.calls.borrow_mut().push(Call { text, buffers: buffers.to_vec() });
        Ok(())
    }
}

/// `[rows, cols]`, with the columns' place in wider rows.
fn shape<T: Element>(x: &Rows<'_, Recorder, T>) -> String {
    text_of(x.shape(), x.offset(), x.stride())
}

fn shape_mut<T: Element>(x: &RowsMut<'_, Recorder, T>) -> String {
    text_of(x.shape(), x.offset(), x.stride())
}

fn text_of((rows, cols): (usize, usize), offset: usize, stride: usize) -> String {
    if stride == cols {
        format!("[{rows}, {cols}]")
    } else {
        format!("[{rows}, {offset}+{cols} of {stride}]")
    }
}

fn weight(x: &Weight<Recorder>) -> usize {
    match x {
        Weight::F32(x) => x.id,
        Weight::F16(x) => x.id,
        Weight::Bf16(x) => x.id,
    }
}

impl Backend for Recorder {
    type Act = f32;
    type Buffer<T: Element> = Zeros<T>;
    type Error = Failure;
    type Recordings = ();
    type Later = usize;

    fn name(&self) -> &str {
        "recorder"
    }

    fn supports(&self, spec: &Spec) -> bool {
        self.specs.borrow_mut().push(*spec);
        self.supported
    }

    fn zeros<T: Element>(&self, len: usize) -> Result<Zeros<T>, Failure> {
        if len > self.largest.get() {
            return Err(Failure::OutOfMemory(len));
        }
        self.buffers.set(self.buffers.get() + 1);
        Ok(Zeros { len, id: self.buffers.get(), element: PhantomData })
    }

    fn upload<T: Element>(&self, src: &[T]) -> Result<Zeros<T>, Failure> {
        self.zeros(src.len())
    }

    fn write<T: Element>(&self, dst: &mut Zeros<T>, offset: usize, src: &[T]) -> Result<(), Failure> {
        assert!(offset + src.len() <= dst.len, "a write outside its buffer");
        Ok(())
    }

    fn read<T: Element>(&self, src: &Zeros<T>, offset: usize, dst: &mut [T]) -> Result<(), Failure> {
        assert!(offset + dst.len() <= src.len, "a read outside its buffer");
        dst.fill(T::from_f64(0.0));
        self.call(format!("read {} {} at {offset}", dst.len(), T::DTYPE.name()), &[src.id])
    }

    fn synchronize(&self) -> Result<(), Failure> {
        self.call("synchronize".into(), &[])
    }

    fn read_later(&self, src: &Zeros<u32>, len: usize) -> Result<usize, Failure> {
        assert!(len <= src.len, "a read outside its buffer");
        self.call(format!("read later {len} u32"), &[src.id])?;
        Ok(len)
    }

    fn wait(&self, later: usize) -> Result<Vec<u32>, Failure> {
        self.call(format!("wait for {later}"), &[])?;
        Ok(vec![0; later])
    }

    fn record(
        &self,
        _recordings: &mut (),
        key: StepKey,
        step: impl FnOnce(&Self) -> Result<(), StepError<Failure>>,
    ) -> Result<(), StepError<Failure>> {
        let StepKey { n_seqs, n_tokens, .. } = key;
        let decode = key.is_decode();
        self.call(format!("record {n_seqs} sequences, {n_tokens} rows, decode: {decode}"), &[])?;
        step(self)?;
        Ok(self.call("recorded".into(), &[])?)
    }

    fn embed(&self, op: ops::Embed<'_, Self>) -> Result<(), Failure> {
        let mut op = op.into_parts();
        let text = format!("embed {} from {}", shape_mut(&op.out), op.table.len());
        self.call(text, &[op.out.buffer().id, weight(op.table), op.tokens.id])
    }

    fn rms_norm(&self, op: ops::RmsNorm<'_, Self>) -> Result<(), Failure> {
        let mut op = op.into_parts();
        let text = format!("rms_norm {} of {}", shape_mut(&op.out), shape(&op.x));
        self.call(text, &[op.out.buffer().id, op.x.buffer().id, op.weight.id])
    }

    fn layer_norm(&self, op: ops::LayerNorm<'_, Self>) -> Result<(), Failure> {
        let op = op.into_parts();
        self.call(format!("layer_norm of {}", shape(&op.x)), &[])
    }

    fn linear(&self, op: ops::Linear<'_, Self>) -> Result<(), Failure> {
        let mut op = op.into_parts();
        let text = format!("linear {} of {}", shape_mut(&op.out), shape(&op.x));
        self.call(text, &[op.out.buffer().id, op.x.buffer().id, weight(op.weight)])
    }

    fn rope(&self, op: ops::Rope<'_, Self>) -> Result<(), Failure> {
        let mut op = op.into_parts();
        let text = format!("rope {}, {} of {}", shape_mut(&op.x), op.rotary_dim, op.head_dim);
        self.call(text, &[op.x.buffer().id, op.positions.id, op.inv_freq.id])
    }

    fn activate(&self, op: ops::Activate<'_, Self>) -> Result<(), Failure> {
        let mut op = op.into_parts();
        let up = op.up.expect("a gated feed-forward");
        let text = format!("activate {} of {} and {}", shape_mut(&op.out), shape(&op.x), shape(&up));
        self.call(text, &[op.out.buffer().id, op.x.buffer().id, up.buffer().id])
    }

    fn add(&self, op: ops::Add<'_, Self>) -> Result<(), Failure> {
        let mut op = op.into_parts();
        let text = format!("add {} to {}", shape(&op.x), shape_mut(&op.out));
        self.call(text, &[op.out.buffer().id, op.x.buffer().id])
    }

    fn attend(&self, op: ops::Attend<'_, Self>) -> Result<(), Failure> {
        let mut op = op.into_parts();
        let new = format!("{} {}", shape(&op.k_new), shape(&op.v_new));
        let text = format!("attend {} of {} over {new}", shape_mut(&op.out), shape(&op.q));
        let buffers = [
            op.out.buffer().id,
            op.q.buffer().id,
            op.k_new.buffer().id,
            op.v_new.buffer().id,
            op.cache.pool.id,
        ];
        self.call(text, &buffers)
    }

    fn append(&self, op: ops::Append<'_, Self>) -> Result<(), Failure> {
        let op = op.into_parts();
        let text = format!("append {} {}", shape(&op.k_new), shape(&op.v_new));
        self.call(text, &[op.k_new.buffer().id, op.v_new.buffer().id, op.cache.pool.id])
    }

    fn clear_pages(&self, op: ops::ClearPages<'_, Self>) -> Result<(), Failure> {
        let op = op.into_parts();
        self.call(format!("clear_pages {}", op.n), &[op.cache.pool.id])
    }

    fn gather(&self, op: ops::Gather<'_, Self>) -> Result<(), Failure> {
        let mut op = op.into_parts();
        let text = format!("gather {} of {}", shape_mut(&op.out), shape(&op.x));
        self.call(text, &[op.out.buffer().id, op.x.buffer().id, op.rows.id])
    }

    fn argmax(&self, op: ops::Argmax<'_, Self>) -> Result<(), Failure> {
        let op = op.into_parts();
        self.call(format!("argmax of {}", shape(&op.logits)), &[op.out.id, op.logits.buffer().id])
    }

    fn sample(&self, op: ops::Sample<'_, Self>) -> Result<(), Failure> {
        let op = op.into_parts();
        let buffers = [op.out.id, op.logits.buffer().id, op.draws.id];
        self.call(format!("sample of {}", shape(&op.logits)), &buffers)
    }

    fn top_k(&self, op: ops::TopK<'_, Self>) -> Result<(), Failure> {
        let op = op.into_parts();
        self.call(format!("top_k of {}", shape(&op.logits)), &[])
    }
}
